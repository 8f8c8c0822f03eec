"""What several folds cost at prediction, beside one of them.

    python benchmarks/folds.py MODEL OUT [--folds 5] [--slices 300] [--size 512] [--rounds 3]

MODEL is a trained model of one member. The folds are that model as often: real folds have its normalization,
frame and reference as well (``train.shared``), other weights, and cost the same. The scan is a phantom's,
repeated along z. Both are predicted in turn, without reading and writing; medians go to stdout and to
OUT/folds.md. On a machine that others use, look at CPU seconds.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from growth import write_scan

from isopose.devices import one_thread
from isopose.files import output_folder, write_text
from isopose.geometry.volume import Volume
from isopose.inference.ensemble import Ensemble, load_ensemble
from isopose.inference.predict import predict
from isopose.io.images import read_volume


def seconds(model: Ensemble, volume: Volume) -> tuple[float, float]:
    """Seconds and CPU seconds of one prediction."""
    started, used = time.perf_counter(), time.process_time()
    predict(model, volume)
    return time.perf_counter() - started, time.process_time() - used


def main(
    model: Annotated[Path, typer.Argument(help="folder of a model of one member")],
    output: Annotated[Path, typer.Argument(help="folder")],
    folds: int = 5,
    slices: int = 300,
    size: Annotated[int, typer.Option(help="pixels a side")] = 512,
    rounds: int = 3,
) -> None:
    """Predict with one member and with several, in turn."""
    output_folder(output)
    one = load_ensemble([model])
    several = Ensemble(one.members * folds)
    found: dict[str, list[tuple[float, float]]] = {"one": [], f"{folds} folds": []}
    with tempfile.TemporaryDirectory() as place, one_thread():
        write_scan(Path(place) / "scan.nii.gz", slices, size)
        volume = read_volume(Path(place) / "scan.nii.gz")
        for number in range(rounds):
            for name, used in zip(found, (one, several), strict=True):
                found[name].append(seconds(used, volume))
            typer.echo(f"round {number + 1} of {rounds}", err=True)
    lines = ["| | seconds | CPU seconds | times one (CPU) |", "| --- | --- | --- | --- |"]
    first = statistics.median(cpu for _, cpu in found["one"])
    for name, values in found.items():
        wall, cpu = (statistics.median(kind) for kind in zip(*values, strict=True))
        lines.append(f"| {name} | {wall:.3f} | {cpu:.3f} | {cpu / first:.2f} |")
    table = "\n".join(lines) + "\n"
    write_text(output / "folds.md", table)
    typer.echo(table, nl=False)


if __name__ == "__main__":
    typer.run(main)
