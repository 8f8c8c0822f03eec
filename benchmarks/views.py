"""What it does to the answers that several models take turns with the views of a crop.

    python benchmarks/views.py OUT DATASET MODEL MODEL ...

Predicts the test cases of DATASET with all models together in three ways: each answers to the crop and to its
mirror image; they take turns, as ``isopose predict`` lets them; each answers to the crop alone. The turns are
tried in both orders. Writes ``OUT/views.md``.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from isopose.devices import one_thread
from isopose.evaluation.metrics import score
from isopose.files import output_folder, write_text
from isopose.inference.ensemble import Ensemble, Views, load_ensemble
from isopose.inference.predict import predict
from isopose.io.channels import read_channels
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels
from isopose.progress import Terminal


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    dataset: Annotated[Path, typer.Argument(help="with labeled test cases")],
    models: Annotated[list[Path], typer.Argument(help="folders of models with the same labels")],
) -> None:
    """Predict in each way and write the table."""
    output_folder(output)
    opened, loaded = open_dataset(dataset), load_ensemble(models)
    number = len(loaded.members)
    turns = [(bool(place % 2),) for place in range(number)]
    ways: dict[str, list[Views]] = {
        "both views each": [(False, True)] * number,
        "in turns": [*turns],
        "in turns, exchanged": [(not mirrored,) for (mirrored,) in turns],
        "one view each": [(False,)] * number,
    }
    cases = [case for case in opened.cases if case.split == "test" and case.label is not None]
    found: dict[str, list[list[float | None]]] = {way: [] for way in ways}
    with one_thread(), Terminal().counting("views") as progress:
        for done, case in enumerate(cases, start=1):
            assert case.label is not None, "chosen so"
            volumes, truth = read_channels(case.images, opened.channels), read_labels(case.label).array
            for way, views in ways.items():
                answer = predict(_seeing(loaded, views), volumes).labels
                pairs = [(answer.array == value, truth == value) for value in loaded.labels.values.values()]
                found[way].append([score(*pair, answer.spacing, None).dice for pair in pairs])
            progress(done, len(cases))
    names = list(loaded.labels.values)
    lines = [f"| {' | '.join(['mean Dice', *names])} |", "| --- " * (len(names) + 1) + "|"]
    for way, dice in found.items():
        # A label that neither has is not counted.
        means = np.nanmean(np.array(dice, dtype=float), axis=0)
        lines.append(f"| {way} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    table = "\n".join(lines) + "\n"
    write_text(output / "views.md", table)
    typer.echo(table, nl=False)


def _seeing(ensemble: Ensemble, chosen: list[Views]) -> Ensemble:
    """Return the ensemble with other views than those that it would choose."""

    class Fixed(Ensemble):
        @property
        def views(self) -> tuple[Views, ...]:
            return tuple(chosen)

    return Fixed(ensemble.members)


if __name__ == "__main__":
    typer.run(main)
