"""Models in front of contrasts that they were not trained on: phantoms of any contrast, and a real abdomen.

    python benchmarks/contrast.py OUT MODEL MODEL ... [--cases 30]

MODEL is the folder of a trained model with the labels kidney and tumor. Phantoms that nothing was trained on
are drawn twice: in the early arterial phase, as all cohorts are, and with random densities, over
all phases and beyond. The real abdomen is that of ``shared/data``, where it is there; its kidneys were drawn
by another network. Writes ``OUT/contrast.md``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from isopose.devices import one_thread
from isopose.errors import InputError
from isopose.files import output_folder, write_text
from isopose.geometry.volume import Volume
from isopose.inference.predict import predict
from isopose.io.images import read_labels, read_volume
from isopose.models.folder import Model, load_model
from isopose.phantom import render, sample_case, texture_generator
from isopose.phantom.randomized import dense
from isopose.phantom.render import KIDNEY, TUMOR
from isopose.progress import Terminal

#: A cohort that nothing else draws from.
UNSEEN = 3_000_103
REAL = Path(__file__).parents[2] / "shared" / "data" / "real-ct"
#: Values of the right and the left kidney in the real abdomen's labels.
REAL_KIDNEYS = (2, 3)
USUAL, ANY = "arterial phase", "any contrast"


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    models: Annotated[list[Path], typer.Argument(help="folders of models")],
    cases: Annotated[int, typer.Option(help="phantoms")] = 30,
    size: Annotated[int, typer.Option(help="pixels of the phantoms' slices")] = 192,
    slices: int = 20,
) -> None:
    """Draw, predict and score."""
    output_folder(output)
    loaded = {str(path): load_model(path) for path in models}
    for name, model in loaded.items():
        if not {"kidney", "tumor"} <= set(model.labels.values):
            raise InputError(f"{name}: expected a model of kidney and tumor, got {dict(model.labels.values)}")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with one_thread(), Terminal().counting("contrasts") as progress:
        for number, (kind, volume, truth) in enumerate(_phantoms(cases, size, slices), start=1):
            for name, model in loaded.items():
                found.setdefault((name, kind), []).append(_scores(model, volume, truth))
            progress(number, 2 * cases)
    lines = [
        "| model | phantoms | kidney: mean (sd) / median / worst | tumor: mean (sd) / median / worst |",
        "| --- " * 4 + "|",
    ]
    for (name, kind), scores in found.items():
        lines.append(f"| {name} | {kind} | {' | '.join(map(_spread, np.array(scores).T))} |")
    if REAL.is_dir():
        lines += ["", "| model | kidneys of a real abdomen, marked as kidney or tumor |", "| --- | --- |"]
        volume = read_volume(REAL / "abdomen.nii.gz")
        truth = np.isin(read_labels(REAL / "abdomen-organs.nii.gz").array, REAL_KIDNEYS)
        with one_thread():
            for name, model in loaded.items():
                answer = predict(model, volume).labels.array > 0
                lines.append(f"| {name} | {100.0 * _dice(answer, truth):.1f} |")
    table = "\n".join(lines) + "\n"
    write_text(output / "contrast.md", table)
    typer.echo(table, nl=False)


def _phantoms(cases: int, size: int, slices: int) -> Iterator[tuple[str, Volume, np.ndarray]]:
    """Yield each patient in the usual contrast and in a random one, with the true labels."""
    for index in range(cases):
        case = sample_case(UNSEEN, index, size=size, slices=slices)
        other = dense(np.random.default_rng([UNSEEN, index]), case.anatomy)
        for kind, anatomy in ((USUAL, case.anatomy), (ANY, other)):
            image, labels = render(anatomy, case.pose, case.scan, texture_generator(case))
            yield kind, Volume(image, case.scan.world_from_index), labels


def _scores(model: Model, volume: Volume, truth: np.ndarray) -> tuple[float, float]:
    """Return the Dice of kidney and tumor on the scan's own grid."""
    answer, values = predict(model, volume).labels.array, model.labels.values
    return _dice(answer == values["kidney"], truth == KIDNEY), _dice(
        answer == values["tumor"], truth == TUMOR
    )


def _dice(answer: np.ndarray, truth: np.ndarray) -> float:
    return float(2.0 * (answer & truth).sum() / max(answer.sum() + truth.sum(), 1))


def _spread(dice: np.ndarray) -> str:
    percent = 100.0 * dice
    return f"{percent.mean():.1f} ({percent.std():.1f}) / {np.median(percent):.1f} / {percent.min():.1f}"


if __name__ == "__main__":
    typer.run(main)
