"""The body in MR: phantoms against the drawn skin, and MR made of real CT against the body in the CT.

    python benchmarks/body_mr.py OUT [--phantoms 24] [--variants 12]

Phantoms come in four contrasts with bias field and Rician noise. Each real CT of ``shared/data``, where it is
there, is shown in so many variants: T1 or T2 with suppressed fat, brighter or darker toward one side and one
end, more or less noise, and in every third the air outside of the image's disc set to 0, as scanners do.
Writes ``OUT/body-mr.md``.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from mr_scans import T1, T2_FATSAT, phantom, seen_by_mr

from isopose.data.body import body_mask
from isopose.data.body_mr import mr_body_mask
from isopose.devices import one_thread
from isopose.files import output_folder, write_text
from isopose.geometry.volume import Volume
from isopose.io.images import read_volume
from isopose.phantom.mr import SEQUENCES
from isopose.progress import Terminal
from isopose.settings import DataConfig

REAL = Path(__file__).parents[2] / "shared" / "data" / "real-ct"
#: Slices of each real scan; and pixels along a side of the phantoms'.
SLICES, SIZE = 24, 192

#: Name of a group, a scan, and the true mask of its trunk.
Scanned = tuple[str, Volume, np.ndarray]


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    phantoms: int = 24,
    variants: Annotated[int, typer.Option(help="of each real scan")] = 12,
) -> None:
    """Find the bodies and write the table."""
    output_folder(output)
    real = [REAL / "dicom-series", REAL / "abdomen.nii.gz", *sorted((REAL / "trunk").glob("*.nii.gz"))]
    known = [path for path in real if path.exists()]
    total, found = phantoms + variants * len(known), dict[str, list[tuple[float, float]]]()
    with one_thread(), Terminal().counting("bodies") as progress:
        scans = (*_phantoms(phantoms), *_real(known, variants))
        for number, (group, volume, truth) in enumerate(scans, start=1):
            started = time.process_time()
            mask = mr_body_mask(volume)
            seconds = time.process_time() - started
            dice = 2.0 * (mask & truth).sum() / (mask.sum() + truth.sum())
            found.setdefault(group, []).append((float(dice), seconds))
            progress(number, total)
    lines = ["| scans | Dice, median | worst | below 0.95 | CPU seconds a scan |", "| --- " * 5 + "|"]
    for group, values in found.items():
        dice, seconds = np.array(values).T
        lines.append(
            f"| {len(dice)} {group} | {np.median(dice):.4f} | {dice.min():.4f} | {(dice < 0.95).sum()} "
            f"| {np.median(seconds):.2f} |"
        )
    table = "\n".join(lines) + "\n"
    write_text(output / "body-mr.md", table)
    typer.echo(table, nl=False)


def _phantoms(count: int) -> Iterator[Scanned]:
    for index in range(count):
        case = phantom(index, SEQUENCES[index % len(SEQUENCES)], size=SIZE)
        yield "phantoms", case.volume, case.trunk


def _real(paths: list[Path], variants: int) -> Iterator[Scanned]:
    for path in paths:
        ct = read_volume(path).reoriented()
        step = max(1, len(ct.array) // SLICES)
        ct = Volume(ct.array[::step], ct.world_from_index @ np.diag([1.0, 1.0, step, 1.0]))
        truth = body_mask(ct, DataConfig().body_threshold_hu)
        y, x = (np.linspace(-1.0, 1.0, side) for side in ct.array.shape[1:])
        corners = np.hypot(y[:, None], x[None]) > 1.0
        for variant in range(variants):
            scan = seen_by_mr(
                ct,
                (T1, T2_FATSAT)[variant % 2],
                bias=(0.2, 0.35, 0.5)[variant % 3],
                noise=(0.02, 0.03, 0.04, 0.05)[variant % 4],
                seed=variant,
            )
            if variant % 3 == 2:
                scan.array[:, corners & ~truth.any(axis=0)] = 0
            yield "MR made of real CT", scan, truth


if __name__ == "__main__":
    typer.run(main)
