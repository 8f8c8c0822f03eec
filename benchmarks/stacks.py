"""Coronal and sagittal stacks: a U-Net on homogenized slices, and on slices as they lie with augmentation.

    python benchmarks/stacks.py OUT

MR phantoms are drawn in thick slices of each plane. The same small U-Net is trained in as many steps on
homogenized slices, and with nnU-Net's augmentation (``unet.augmentation=nnunet``), which takes them as they
lie. Both predict the cohort's test patients. Writes ``OUT/stacks.md``; what was drawn and trained before in
OUT is used again.
"""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from isopose.choices import Plane
from isopose.devices import one_thread
from isopose.errors import IsoposeError
from isopose.evaluation.evaluate import evaluate
from isopose.evaluation.summary import summarize
from isopose.files import output_folder, write_text
from isopose.inference.files import predict_scans
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.scans import scan_of
from isopose.models.folder import for_prediction
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.progress import Silent, Terminal
from isopose.training.fit import fit

SETTINGS: dict[str, Any] = {
    "data": {"size": 128},
    "crop": {"size": 64, "optimizer": {"epochs": 6, "min_epochs": 6, "iterations": 40}},
    "unet": {
        "base_features": 12,
        "optimizer": {"epochs": 8, "min_epochs": 8, "iterations": 60, "batch_size": 8},
    },
    "train": {"folds": 4, "device": "cpu"},
}
ARMS: dict[str, list[str]] = {
    "homogenized": [],
    "nnU-Net's augmentation": [
        "pose.start=identity",
        "crop.enabled=false",
        "unet.augmentation=nnunet",
        "unet.input=full",
    ],
}
TARGETS = ("kidney", "tumor")


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    planes: Annotated[list[str] | None, typer.Option("--plane", help="repeated; none: all")] = None,
    cases: Annotated[int, typer.Option(help="phantoms of a plane, a third to test")] = 36,
    slices: Annotated[int, typer.Option(help="of a stack")] = 24,
    size: Annotated[int, typer.Option(help="pixels of a phantom's side")] = 96,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value for all trainings, repeated")
    ] = None,
    workers: int = 0,
) -> None:
    """Draw, train, predict and score."""
    output_folder(output)
    head = ["| slices | trained on | test patients | kidney Dice | tumor Dice |", "| --- " * 5 + "|"]
    lines = list(head)
    for plane in planes or get_args(Plane):
        folder = write_cohort(
            output / plane / "cohort",
            cases=cases,
            slices=slices,
            size=size,
            test_fraction=0.33,
            modality="mr",
            plane=plane,  # type: ignore[arg-type]  # checked there
            workers=workers,
        )
        dataset = open_dataset(folder)
        for arm, own in ARMS.items():
            place = output / plane / arm.translate({ord(sign): "-" for sign in " '"})
            given = [f"data.plane={plane}", *own, *(settings or [])]
            with one_thread():
                tested, dice = _scored(dataset, place, given, workers)
            lines.append(f"| {plane} | {arm} | {tested} | {dice[0]:.3f} | {dice[1]:.3f} |")
            write_text(output / "stacks.md", "\n".join(lines) + "\n")
    typer.echo("\n".join(lines))


def _scored(dataset: Dataset, folder: Path, settings: list[str], workers: int) -> tuple[int, list[float]]:
    """Train on a dataset and predict its test patients; return their number and the mean Dice of targets."""
    config = load_config(base=SETTINGS, settings=settings)
    model = fit(dataset, folder / "model", config, resume=True, workers=workers, reporter=Terminal())
    held = [case for case in dataset.cases if case.split == "test"]
    for outcome in predict_scans(
        for_prediction(model),
        [scan_of(case) for case in held],
        folder / "results",
        probabilities=False,
        reporter=Silent(),
    ):
        if outcome.problem:
            raise IsoposeError(outcome.problem)
    found = evaluate(folder / "results", dataset, cases=[case.id for case in held])
    return len(held), [summarize(found.cases, target).statistics["dice"].mean or 0.0 for target in TARGETS]


if __name__ == "__main__":
    typer.run(main)
