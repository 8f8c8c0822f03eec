"""Hold the phantoms' kidneys, tumors and fields of view against masks of children with a Wilms tumor.

    python benchmarks/phantom_sizes.py --masks ../shared/data/wilms-masks --output /tmp/sizes [--phantoms 100]

Masks are of KiTS23: kidney 1, tumor 2. Phantoms are children up to an age, drawn and not rendered: their
kidneys are those before the tumor grew, without the sinus. The kidneys of a mask are its two largest parts;
the healthy one is that farther from the tumor. The table goes to stdout and to OUTPUT/phantom-sizes.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from isopose.files import write_text
from isopose.geometry.volume import Volume
from isopose.io.images import read_labels
from isopose.phantom.case import sample_case

KIDNEY, TUMOR = 1, 2
#: Of the cohort that is drawn, and the percentiles that are shown of it.
SEED, SHOWN = 20, (5, 50, 95)


@dataclass(frozen=True)
class Sizes:
    """What is compared of a patient, in ml and mm."""

    kidneys_ml: float
    healthy_ml: float
    healthy_mm: float
    tumor_ml: float
    field_mm: float


ROWS = {
    "both kidneys, ml": "kidneys_ml",
    "healthy kidney, ml": "healthy_ml",
    "its length, mm": "healthy_mm",
    "tumor, ml": "tumor_ml",
    "field of view, mm": "field_mm",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--oldest", type=float, default=2.0, help="years")
    given = parser.parse_args()
    real = {
        path.name.split(".")[0]: measure(read_labels(path)) for path in sorted(given.masks.glob("*.nii.gz"))
    }
    text = table(real, draw(given.phantoms, given.oldest), given.oldest)
    print(text, end="")
    write_text(given.output / "phantom-sizes.md", text)


def measure(labels: Volume) -> Sizes:
    """Measure a label map with two kidneys.

    Raises:
        ValueError: less than two parts are kidney.
    """
    upright = labels.reoriented()
    voxel_ml = float(np.prod(upright.spacing)) / 1000.0
    parts, _ = ndimage.label(upright.array == KIDNEY)
    counts = np.bincount(parts.ravel())[1:]
    if len(counts) < 2:
        raise ValueError("expected two kidneys")
    kidneys = np.argsort(counts)[-2:] + 1
    # The tumor's own kidney lies nearer to it.
    distance = ndimage.distance_transform_edt(upright.array != TUMOR, sampling=upright.spacing[::-1])
    healthy = max(kidneys, key=lambda part: float(distance[parts == part].mean()))
    z, y, x = np.nonzero(parts == healthy)
    return Sizes(
        kidneys_ml=float(counts.sum()) * voxel_ml,
        healthy_ml=float(counts[healthy - 1]) * voxel_ml,
        healthy_mm=longest(np.stack([x, y, z], axis=1) * np.array(upright.spacing)),
        tumor_ml=float(np.count_nonzero(upright.array == TUMOR)) * voxel_ml,
        field_mm=upright.spacing[0] * upright.array.shape[2],
    )


def longest(points: np.ndarray) -> float:
    """Return the length in mm along the main axis of points ``(n, 3)``, of voxels' centers."""
    centered = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(centered.T))
    along = centered @ axes[:, -1]
    return float(along.max() - along.min())


def draw(count: int, oldest: float) -> list[Sizes]:
    """Draw phantoms up to an age in years."""
    found: list[Sizes] = []
    index = 0
    while len(found) < count:
        case = sample_case(SEED, index, size=64, slices=4)
        index += 1
        if case.anatomy.age_years <= oldest:
            tumor = case.anatomy.tumor
            volumes = {kidney.side: kidney.volume_ml() for kidney in case.anatomy.kidneys}
            healthy = next(kidney for kidney in case.anatomy.kidneys if kidney.side != tumor.side)
            found.append(
                Sizes(
                    kidneys_ml=sum(volumes.values()),
                    healthy_ml=volumes[healthy.side],
                    healthy_mm=2.0 * float(healthy.axes[2]),
                    tumor_ml=float(np.pi / 6.0 * tumor.diameter_mm**3 / 1000.0),
                    field_mm=case.scan.pixel * case.scan.size,
                )
            )
    return found


def table(real: dict[str, Sizes], phantoms: Sequence[Sizes], oldest: float) -> str:
    """Return a row for each size: the masks', and percentiles of the phantoms."""
    names = [f"{one}th percentile" if one != 50 else "median" for one in SHOWN]
    lines = [
        f"{len(phantoms)} phantoms up to {oldest:g} years.",
        "",
        "| | " + " | ".join([*real, *(f"phantoms: {name}" for name in names)]) + " |",
        "| --- " * (1 + len(real) + len(names)) + "|",
    ]
    for row, key in ROWS.items():
        values = [getattr(one, key) for one in phantoms]
        cells = [*(getattr(one, key) for one in real.values()), *np.percentile(values, SHOWN)]
        lines.append(f"| {row} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
