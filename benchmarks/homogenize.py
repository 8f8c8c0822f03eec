"""What homogenizing costs a label, and what it does to a cohort: there and back, on phantoms of known pose.

    python benchmarks/homogenize.py OUT

writes ``OUT/homogenize.md`` and ``OUT/homogenize.json``. Labels go to the homogenized grid and back, as
``isopose homogenize`` and ``isopose restore`` take them; no segmenter is in between, so what is lost is lost
by the way alone. The cohort is one that nothing else draws from.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from isopose.config import HomogenizeConfig
from isopose.data.resample import warped_labels
from isopose.devices import one_thread
from isopose.files import output_folder, write_json, write_text
from isopose.geometry.volume import Volume
from isopose.geometry.warp import invert
from isopose.homogenize.estimator import shipped_estimator
from isopose.homogenize.scan import HomogenizedScan, homogenize_scan
from isopose.models.folder import versions
from isopose.phantom import render, sample_case, texture_generator
from isopose.phantom.case import PhantomCase
from isopose.phantom.randomized import roll_of
from isopose.progress import Terminal

COHORT = 3_000_017
NAMES = {1: "kidney", 2: "tumor"}
WAYS = [("volume", 384), ("volume", 256), ("volume", 512), ("smooth", 384), ("slice", 384)]


@dataclass(frozen=True)
class Row:
    """One patient, there and back."""

    dice: dict[str, float]
    roll_error_degrees: float
    width_mm: float
    width: float
    reach: float
    seconds: float


def measured(per: str, size: int, case: PhantomCase, volume: Volume, classes: np.ndarray) -> Row:
    """One patient by one way."""
    ours = shipped_estimator(HomogenizeConfig(per=per, size=size))
    started = time.monotonic()
    scan = homogenize_scan(ours, volume, volume.with_array(classes))
    seconds = time.monotonic() - started
    assert scan.labels is not None
    t = scan.transform
    back = warped_labels(scan.labels.array, invert(t.slice_from_grid), t.slice_shape, NAMES)
    off = math.degrees(scan.poses.roll - roll_of(case.pose))
    return Row(
        {name: dice(back == value, classes == value) for value, name in NAMES.items()},
        abs((off + 180) % 360 - 180),
        width_of(volume.array > -250) * float(volume.spacing[0]),
        body_width(scan),
        t.grid.size / t.grid.usual,
        seconds,
    )


def body_width(scan: HomogenizedScan) -> float:
    """Of the body in the middle slice, in sides of the reference's frame."""
    return width_of(scan.image.array > -250) / scan.transform.grid.usual


def width_of(body: np.ndarray) -> float:
    """Columns from the first to the last through the middle of the middle slice's body: no table, no arm."""
    plane = body[len(body) // 2]
    rows = np.flatnonzero(plane.sum(axis=1) > 0.3 * plane.shape[1])
    line = np.flatnonzero(plane[rows[len(rows) // 2]])
    return float(line[-1] - line[0] + 1)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks; 1 where both are empty."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2.0 * np.count_nonzero(a & b) / total if total else 1.0


def table(rows: dict[str, list[Row]]) -> str:
    """Markdown: a line for each way."""
    lines = [
        "| poses, pixels | kidney Dice, mean / worst | tumor Dice, mean / worst | largest grid | s a scan |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, all_of in rows.items():
        cells = [way]
        for name in NAMES.values():
            values = [row.dice[name] for row in all_of]
            cells.append(f"{np.mean(values):.4f} / {np.min(values):.4f}")
        cells.append(f"{max(row.reach for row in all_of):.2f}")
        cells.append(f"{np.mean([row.seconds for row in all_of]):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    patients: int = 10,
    slices: int = 8,
    size: Annotated[int, typer.Option(help="pixels of the phantoms' slices")] = 512,
) -> None:
    """Draw, homogenize, restore, compare."""
    output_folder(output)
    rows: dict[str, list[Row]] = {f"{per}, {pixels}": [] for per, pixels in WAYS}
    with Terminal().counting("patients") as progress, one_thread():
        for number in range(patients):
            case = sample_case(COHORT, number, size=size, slices=slices)
            image, classes = render(case.anatomy, case.pose, case.scan, texture_generator(case))
            volume = Volume(image, case.scan.world_from_index)
            for per, pixels in WAYS:
                rows[f"{per}, {pixels}"].append(measured(per, pixels, case, volume, classes))
            progress(number + 1, patients)
    first = next(iter(rows.values()))
    errors = [row.roll_error_degrees for row in first]
    facts = {
        "patients": patients,
        "roll_error_degrees_median": float(np.median(errors)),
        "roll_error_degrees_worst": float(np.max(errors)),
        "width_mm": [float(f([row.width_mm for row in first])) for f in (np.min, np.max)],
        "width_of_frame": [float(f([row.width for row in first])) for f in (np.mean, np.std)],
    }
    write_text(output / "homogenize.md", table(rows))
    write_json(
        output / "homogenize.json",
        {
            "cohort": COHORT,
            "slices": slices,
            "size": size,
            "versions": versions(),
            **facts,
            "rows": {way: [vars(row) for row in all_of] for way, all_of in rows.items()},
        },
    )
    typer.echo(table(rows))
    typer.echo(facts)


if __name__ == "__main__":
    typer.run(main)
