"""A model of adults in front of children: as scanned, brought to adult size, to adult pose, and to both.

    python benchmarks/adults.py OUT

A 2D U-Net with nnU-Net's augmentation (or nnU-Net v2 itself with ``--segmenter 2d``) is trained on adult
phantoms until its validation score stops rising. Children, whom nothing was trained on, are shown to it in
four ways; its answers are restored and scored on each child's own grid. A model trained on as many other
children is the measure (``--no-on-children`` leaves it out). Writes ``OUT/adults.md`` and
``OUT/adults.json``; what was drawn, trained or predicted before in OUT is used again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from isopose.config import Config, HomogenizeConfig
from isopose.devices import choose_device, one_thread
from isopose.errors import IsoposeError
from isopose.evaluation.evaluate import CaseScores, Evaluation, evaluate
from isopose.evaluation.summary import age_strata, summarize
from isopose.files import output_folder, read_json, write_json, write_text
from isopose.geometry.pose import ANGLE, LOG_SCALE_X, SHIFT_X
from isopose.geometry.volume import Volume
from isopose.homogenize.estimator import PoseEstimator, open_estimator
from isopose.homogenize.scan import homogenize_scan
from isopose.homogenize.transform import Transform
from isopose.homogenize.warping import homogenized_image, restored_labels
from isopose.inference.files import predict_scans
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.io.scans import Scan
from isopose.models.folder import for_prediction, versions
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.progress import Silent, Terminal
from isopose.study import nnunet
from isopose.study.arms import SOURCE, Peer
from isopose.study.measure import Measuring
from isopose.training.fit import fit

#: Cohorts that nothing else draws from: adults to train on, children to train on, children to test on.
ADULTS, OTHERS, CHILDREN = 3_000_061, 3_000_073, 3_000_077
#: What is shown: whether in the reference's pose, and at its size.
WAYS: dict[str, tuple[bool, bool] | None] = {
    "as scanned": None,
    "adult size": (False, True),
    "adult pose": (True, False),
    "both": (True, True),
}
TRAINED_ON_CHILDREN = "trained on children"
SLICES = 24

#: Writes a label map for each scan into a folder.
Segmenter = Callable[[Sequence[Scan], Path], None]


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    adults: Annotated[int, typer.Option(help="adults to train on")] = 30,
    children: Annotated[int, typer.Option(help="children to test on, and others to train on")] = 40,
    seeds: Annotated[int, typer.Option(help="trainings, each from other weights")] = 2,
    size: Annotated[int, typer.Option(help="pixels of the phantoms' slices")] = 192,
    segmenter: Annotated[
        list[str] | None,
        typer.Option(help="isopose (default), or nnU-Net v2 with its extra: 2d or 3d_fullres; repeated"),
    ] = None,
    on_children: Annotated[bool, typer.Option(help="train on other children as well")] = True,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value for the trainings, repeated")
    ] = None,
    workers: int = 2,
) -> None:
    """Draw, train, show, restore and score."""
    output_folder(output)
    grown = _cohort(output / "adults", ADULTS, adults, size, "adult", workers)
    others = _cohort(output / "others", OTHERS, children, size, "child", workers)
    tested = _cohort(output / "children", CHILDREN, children, size, "child", workers)
    scans = [Scan(case.id, case.image) for case in tested.cases]
    with one_thread():
        shown = {way: _shown(output / "shown" / way, scans, way) for way in WAYS}
    found: dict[str, dict[str, list[Evaluation]]] = {}
    for seed in range(seeds):
        config = load_config(settings=[*SOURCE.settings, *(settings or []), f"train.seed={seed}"])
        for name in segmenter or ["isopose"]:
            of_name = found.setdefault("isopose's U-Net" if name == "isopose" else f"nnU-Net v2 {name}", {})
            folder = output / f"{name}-{seed}"
            segment = _segmenter(folder / "adults", grown, config, name, workers)
            for way, given in shown.items():
                of_name.setdefault(way, []).append(_scored(folder / way, given, segment, tested))
            if not on_children:
                continue
            segment = _segmenter(folder / "children", others, config, name, workers)
            plain = shown["as scanned"]
            scores = _scored(folder / TRAINED_ON_CHILDREN, plain, segment, tested)
            of_name.setdefault(TRAINED_ON_CHILDREN, []).append(scores)
    write_text(output / "adults.md", table_of(found))
    write_json(
        output / "adults.json",
        {
            "versions": versions(),
            "cohorts": {
                "adults": [ADULTS, adults],
                "others": [OTHERS, children],
                "tested": [CHILDREN, children],
            },
            "settings": [*SOURCE.settings, *(settings or [])],
            "scores": {
                name: {way: [one.to_json() for one in some] for way, some in ways.items()}
                for name, ways in found.items()
            },
        },
    )
    typer.echo(table_of(found))
    typer.echo(f"table: {output / 'adults.md'}")


def _cohort(folder: Path, seed: int, cases: int, size: int, population: Any, workers: int) -> Dataset:
    """Draw phantoms and open them as a dataset without test cases."""
    with Terminal().counting(folder.name) as progress:
        write_cohort(
            folder, cases=cases, slices=SLICES, size=size, seed=seed, test_fraction=0.0,
            population=population, workers=workers, progress=progress,
        )  # fmt: skip
    return open_dataset(folder)


def _shown(folder: Path, scans: Sequence[Scan], way: str) -> list[tuple[Scan, Transform | None]]:
    """Return what the model of adults sees of each child, and what brings its answer back."""
    parts = WAYS[way]
    if parts is None:
        return [(scan, None) for scan in scans]
    estimator = open_estimator(None, HomogenizeConfig(reference="adult"))
    found: list[tuple[Scan, Transform | None]] = []
    with Terminal().counting(way) as progress:
        for number, scan in enumerate(scans, start=1):
            path, kept = folder / f"{scan.name}.nii.gz", folder / f"{scan.name}.transform.json"
            if not kept.exists():
                folder.mkdir(parents=True, exist_ok=True)
                volume = read_volume(scan.path)
                transform = brought(estimator, volume, *parts)
                write_image(homogenized_image(volume, transform), path)
                write_text(kept, transform.to_text())
            found.append((Scan(scan.name, path), Transform.from_text(kept.read_text())))
            progress(number, len(scans))
    return found


def brought(estimator: PoseEstimator, volume: Volume, pose: bool, size: bool) -> Transform:
    """Return what brings a scan to the reference's pose, to its size, or to both.

    Args:
        estimator: with the reference.
        volume: the scan.
        pose: whether the patient is turned upright; else the roll stays as it is.
        size: whether the patient gets the reference's size, along z too; without the pose by one factor for
            both axes of the slices. Else the size stays as it is.
    """
    transform = homogenize_scan(estimator, volume).transform
    poses, grid = np.array(transform.poses), transform.grid
    scales = poses[:, LOG_SCALE_X:SHIFT_X]
    if not pose:
        poses[:, ANGLE] = 0.0
        scales[:] = scales.mean(axis=1, keepdims=True)
    if not size:
        scales[:] = np.log(estimator.side_mm / transform.frame.fov_mm)
        grid = replace(grid, z_scale=1.0)
    return replace(transform, poses=tuple(tuple(row) for row in poses.tolist()), grid=grid)


def _segmenter(folder: Path, dataset: Dataset, config: Config, name: str, workers: int) -> Segmenter:
    """Train on a dataset, or go on with that, and return what segments scans."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "isopose":
        model = fit(dataset, folder, config, resume=True, workers=workers, reporter=Terminal())
        ready = for_prediction(model)

        def predict(scans: Sequence[Scan], target: Path) -> None:
            for outcome in predict_scans(ready, scans, target, probabilities=False, reporter=Silent()):
                if outcome.problem:
                    raise IsoposeError(outcome.problem)

        return predict
    meter = Measuring(folder / "measures.json", choose_device(config.train.device))
    shared = folder.parent / f"{folder.name}-data"
    trained = nnunet.train(folder, shared, dataset, config, Peer(configuration=name), workers, meter)

    def predict_with_nnunet(scans: Sequence[Scan], target: Path) -> None:
        own = Measuring(target / "measures.json", choose_device(config.train.device))
        nnunet.predict(trained, scans, dataset, target, own)
        for scan in scans:
            (target / "predictions" / f"{scan.name}.nii.gz").replace(target / f"{scan.name}.nii.gz")

    return predict_with_nnunet


def _scored(
    folder: Path, shown: Sequence[tuple[Scan, Transform | None]], segment: Segmenter, tested: Dataset
) -> Evaluation:
    """Segment what is shown, restore the answers, and score them on the children's own grids."""
    kept = folder / "scores.json"
    if kept.exists():
        return Evaluation.from_json(read_json(kept))
    answers, restored = folder / "answers", folder / "restored"
    for place in (answers, restored):
        place.mkdir(parents=True, exist_ok=True)
    segment([scan for scan, _ in shown], answers)
    for scan, transform in shown:
        labels = read_labels(answers / f"{scan.name}.nii.gz")
        if transform is not None:
            on_grid = transform.homogenized.with_array(labels.array)
            labels = restored_labels(on_grid, transform)
        write_labels(labels, restored / f"{scan.name}.nii.gz")
    scores = evaluate(restored, tested)
    write_json(kept, scores.to_json())
    return scores


def table_of(found: dict[str, dict[str, list[Evaluation]]]) -> str:
    """Return the tables in Markdown: Dice in per cent over children and trainings, then by age."""
    lines = [
        "| segmenter | children | kidney: mean (sd) / median / worst | tumor: mean (sd) / median / worst | "
        "worse by over 1 point than as scanned: kidney / tumor |",
        "| --- " * 5 + "|",
    ]
    for name, ways in found.items():
        for way, some in ways.items():
            cells = [name, way]
            for target in ("kidney", "tumor"):
                dice = [summarize(one.cases, target).statistics["dice"] for one in some]
                mean, sd, median = (
                    100.0 * float(np.mean([getattr(one, part) or 0.0 for one in dice]))
                    for part in ("mean", "sd", "median")
                )
                worst = 100.0 * min(one.worst or 0.0 for one in dice)
                cells.append(f"{mean:.1f} ({sd:.1f}) / {median:.1f} / {worst:.1f}")
            plain = ways["as scanned"]
            cells.append(" / ".join(str(_worse(some, plain, target)) for target in ("kidney", "tumor")))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| segmenter | children | age | number | kidney | tumor |", "| --- " * 6 + "|"]
    for name, ways in found.items():
        for way, some in ways.items():
            strata = [age_strata(one.cases) for one in some]
            for age, cases in strata[0].items():
                means = " | ".join(
                    _mean([one[age] for one in strata], target) for target in ("kidney", "tumor")
                )
                lines.append(f"| {name} | {way} | {age} | {len(cases)} | {means} |")
    return "\n".join(lines) + "\n"


def _worse(some: Sequence[Evaluation], plain: Sequence[Evaluation], target: str) -> int:
    """Return the number of children, of all trainings, whose Dice is over a point below that as scanned."""
    pairs = zip((c for one in some for c in one.cases), (c for one in plain for c in one.cases), strict=True)
    return sum((a.scores[target].dice or 0.0) < (b.scores[target].dice or 0.0) - 0.01 for a, b in pairs)


def _mean(groups: Sequence[Sequence[CaseScores]], target: str) -> str:
    means = [summarize(cases, target).statistics["dice"].mean for cases in groups]
    return f"{100.0 * float(np.mean([mean or 0.0 for mean in means])):.1f}"


if __name__ == "__main__":
    typer.run(main)
