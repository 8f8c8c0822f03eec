"""How much the height of kidneys varies from birth to adulthood, before and after homogenizing.

    python benchmarks/homogenized_size.py OUT

writes ``OUT/homogenized_size.md`` and ``OUT/homogenized_size.json``. The patients are phantoms of given ages
with healthy kidneys, which nothing else draws. A kidney's height is its extent along z in the millimeters of
the file's header: of the scan, and of the homogenized scan. With ``--no-scale-z`` the second is the first.
Labels go to the homogenized grid and back, with no segmenter in between.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.ndimage import find_objects, label

from isopose.cli.options import comma_separated
from isopose.config import HomogenizeConfig
from isopose.devices import one_thread
from isopose.files import output_folder, write_json, write_text
from isopose.geometry.volume import Volume
from isopose.homogenize.estimator import PoseEstimator, open_estimator
from isopose.homogenize.scan import homogenize_scan
from isopose.homogenize.warping import restored_labels
from isopose.models.folder import versions
from isopose.phantom import render
from isopose.phantom.anatomy import sample_anatomy
from isopose.phantom.growth import reference_size
from isopose.phantom.pose import sample_pose
from isopose.phantom.render import KIDNEY
from isopose.phantom.scan import sample_scan
from isopose.progress import Terminal

COHORT = 3_000_029
AGES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0, 13.0, 16.0, 30.0, 60.0)
#: So small a share of the usual tumor leaves both kidneys their shape.
HEALTHY = 0.02
#: What is compared: poses, reference.
WAYS = (("volume", "child"), ("volume", "adult"), ("smooth", "child"), ("slice", "child"))


@dataclass(frozen=True)
class Row:
    """One patient, homogenized in one way: heights in mm, and what the way there and back cost."""

    age_years: float
    native_mm: float
    homogenized_mm: float
    dice: float


def patient(age_years: float, number: int, size: int, slices: int) -> tuple[Volume, np.ndarray]:
    """Draw a patient who lies as the file's header says: the scan, and where its kidneys are."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([COHORT, number])))
    drawn = sample_pose(rng, 0.0, reference_size(age_years).width)
    pose = replace(drawn, position="supine", header_right=True, pitch=0.0, yaw=0.0)
    anatomy = sample_anatomy(rng, age_years, pose.gravity_canonical, tumor_share=HEALTHY)
    scan = sample_scan(rng, anatomy, pose, size, slices)
    image, classes = render(anatomy, pose, scan, rng)
    return Volume(image, scan.world_from_index), (classes == KIDNEY).astype(np.uint8)


def height_mm(marked: Volume) -> float:
    """Return the mean extent in mm along z of the two largest connected parts, the kidneys."""
    parts, _ = label(marked.array > 0)
    largest = np.argsort(np.bincount(parts.ravel())[1:])[::-1][:2]
    extents = [box[0].stop - box[0].start for box in np.array(find_objects(parts), object)[largest]]
    return float(np.mean(extents)) * float(marked.spacing[2])


def measured(estimator: PoseEstimator, age_years: float, volume: Volume, kidneys: np.ndarray) -> Row:
    """Homogenize one patient and restore the labels."""
    marked = volume.with_array(kidneys)
    scan = homogenize_scan(estimator, volume, marked)
    assert scan.labels is not None
    back = restored_labels(scan.labels, scan.transform).array
    dice = 2.0 * np.count_nonzero(back & kidneys) / (np.count_nonzero(back) + np.count_nonzero(kidneys))
    return Row(age_years, height_mm(marked), height_mm(scan.labels), dice)


def variation(values: Sequence[float]) -> float:
    """Return the coefficient of variation."""
    return float(np.std(values, ddof=1) / np.mean(values))


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Return the coefficients of variation, and the labels' Dice, of one way."""
    return {
        "native": variation([row.native_mm for row in rows]),
        "homogenized": variation([row.homogenized_mm for row in rows]),
        "dice_mean": float(np.mean([row.dice for row in rows])),
        "dice_worst": min(row.dice for row in rows),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: a line for each way."""
    lines = [
        "| poses, reference | height varies, scans | homogenized | kidney Dice, mean / worst |",
        "| --- | --- | --- | --- |",
    ]
    for way, of in found.items():
        percent = " | ".join(f"{100.0 * of[name]:.1f} %" for name in ("native", "homogenized"))
        lines.append(f"| {way} | {percent} | {of['dice_mean']:.4f} / {of['dice_worst']:.4f} |")
    return "\n".join(lines) + "\n"


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    ages: Annotated[str, typer.Option(help="years, separated by commas")] = ",".join(map(str, AGES)),
    each: Annotated[int, typer.Option(help="patients of each age")] = 1,
    slices: int = 24,
    size: Annotated[int, typer.Option(help="pixels of the phantoms' slices")] = 128,
    grid: Annotated[int, typer.Option(help="pixels of the homogenized slices")] = 256,
) -> None:
    """Draw, homogenize, measure, restore."""
    output_folder(output)
    years = [float(age) for age in comma_separated(ages) for _ in range(each)]
    estimators = {
        f"{per}, {reference}": open_estimator(None, HomogenizeConfig(per=per, size=grid, reference=reference))
        for per, reference in WAYS
    }
    rows: dict[str, list[Row]] = {way: [] for way in estimators}
    with Terminal().counting("patients") as progress, one_thread():
        for number, age in enumerate(years):
            volume, kidneys = patient(age, number, size, slices)
            for way, estimator in estimators.items():
                rows[way].append(measured(estimator, age, volume, kidneys))
            progress(number + 1, len(years))
    found = {way: summary(of) for way, of in rows.items()}
    heights = [row.native_mm for row in next(iter(rows.values()))]
    write_text(output / "homogenized_size.md", table(found))
    write_json(
        output / "homogenized_size.json",
        {
            "cohort": COHORT,
            "slices": slices,
            "size": size,
            "grid": grid,
            "versions": versions(),
            "native_mm": [math.floor(min(heights)), math.ceil(max(heights))],
            "summary": found,
            "rows": {way: [vars(row) for row in of] for way, of in rows.items()},
        },
    )
    typer.echo(table(found))
    typer.echo(
        f"{len(years)} patients, kidneys of {min(heights):.0f} to {max(heights):.0f} mm in their scans"
    )


if __name__ == "__main__":
    typer.run(main)
