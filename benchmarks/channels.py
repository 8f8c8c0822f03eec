"""What a second channel is worth: CT alone, and CT with the uptake of a tracer in which tumors stand out.

    python benchmarks/channels.py OUT

Phantoms are drawn with ``--pet``; a small U-Net is trained on the first channel alone and on both, from the
same weights in as many steps, and predicts the cohort's test patients. Writes ``OUT/channels.md``; what was
drawn and trained before in OUT is used again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

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
    "crop": {"learned": False},
    "unet": {
        "base_features": 12,
        "optimizer": {"epochs": 6, "min_epochs": 6, "iterations": 40, "batch_size": 8},
    },
    "train": {"folds": 4, "device": "cpu"},
}
TARGETS = ("kidney", "tumor")


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    cases: Annotated[int, typer.Option(help="phantoms, a third to test")] = 24,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value for both trainings, repeated")
    ] = None,
    workers: int = 2,
) -> None:
    """Draw, train with one channel and with both, predict and score."""
    output_folder(output)
    folder = write_cohort(
        output / "cohort", cases=cases, slices=10, size=128, test_fraction=0.33, pet=True, workers=workers
    )
    both = open_dataset(folder)
    alone = replace(
        both,
        cases=tuple(replace(case, further=()) for case in both.cases),
        channels=both.channels[:1],
    )
    lines = ["| channels | kidney Dice | tumor Dice |", "| --- | --- | --- |"]
    with one_thread():
        for dataset in (alone, both):
            name = " and ".join(dataset.channels)
            dice = _trained(dataset, output / name.replace(" ", "-"), settings or [], workers)
            lines.append(f"| {name} | {dice[0]:.3f} | {dice[1]:.3f} |")
    table = "\n".join(lines) + "\n"
    write_text(output / "channels.md", table)
    typer.echo(table, nl=False)


def _trained(dataset: Dataset, folder: Path, settings: list[str], workers: int) -> list[float]:
    """Train on a dataset, predict its test patients, and return the mean Dice of each target."""
    config = load_config(base=SETTINGS, settings=settings)
    model = fit(dataset, folder / "model", config, resume=True, workers=workers, reporter=Terminal())
    held = [case for case in dataset.cases if case.split == "test"]
    ready = for_prediction(model)
    for outcome in predict_scans(
        ready, [scan_of(case) for case in held], folder / "results", probabilities=False, reporter=Silent()
    ):
        if outcome.problem:
            raise IsoposeError(outcome.problem)
    found = evaluate(folder / "results", dataset, cases=[case.id for case in held])
    return [summarize(found.cases, target).statistics["dice"].mean or 0.0 for target in TARGETS]


if __name__ == "__main__":
    typer.run(main)
