"""The paper's preset at its own sizes: seconds and memory of a step of each stage.

    python benchmarks/paper_sizes.py OUT [--sizes 512 --sizes 128] [--batches 12 --batches 32] [--steps 10]

The paper trains on slices of 512 pixels, 12 a batch, and of 128 pixels, 32 a batch. Phantoms are drawn at
each size, and ``isopose fit --preset paper`` trains each stage for STEPS steps, with the preset's networks,
losses and optimizers, on one thread. Nothing is learned in so few steps. Seconds are those of training,
without validation; memory is the peak of the process, and what of it the stage itself added. Writes
``OUT/paper-sizes.md``.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from isopose.devices import one_thread
from isopose.files import output_folder, write_text
from isopose.io.datasets import open_dataset
from isopose.models.folder import Model
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.study.measure import Measuring
from isopose.training.fabric import fabric_for
from isopose.training.fit import fit

STAGES = {"pose": "STN1", "crop": "STN2", "unet": "U-Net"}
#: Phantoms, and slices of each; the last is validated on.
CASES, SLICES, FOLDS = 4, 12, 4


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    sizes: Annotated[list[int] | None, typer.Option(help="pixels along a side")] = None,
    batches: Annotated[list[int] | None, typer.Option(help="slices a batch, of each size")] = None,
    steps: Annotated[int, typer.Option(min=1, help="of each stage")] = 10,
) -> None:
    """Train at each size and write the table."""
    output_folder(output)
    pairs = list(zip(sizes or [512, 128], batches or [12, 32], strict=True))
    lines = ["| pixels | slices a step | stage | s a step | peak, MB | of it the stage's, MB |"]
    lines += ["| --- " * 6 + "|"]
    for size, batch in pairs:
        folder = output / str(size)
        with one_thread():
            model, memory = _trained(folder, size, batch, steps)
        for row in model.info.history:
            stage = str(row["stage"])
            seconds = (float(row["seconds"]) - float(row["validation_seconds"])) / steps
            peak, before = (float(memory[stage][name]) for name in ("peak_mb", "before_mb"))
            held = f"{peak:.0f} | {peak - before:.0f}"
            lines.append(f"| {size} | {batch} | {STAGES[stage]} | {seconds:.2f} | {held} |")
    table = "\n".join(lines) + "\n"
    write_text(output / "paper-sizes.md", table)
    typer.echo(table, nl=False)


def _trained(folder: Path, size: int, batch: int, steps: int) -> tuple[Model, dict[str, Any]]:
    """Train each stage for some steps, and return the model and its stages' memory."""
    cohort = folder / "cohort"
    if not cohort.exists():
        write_cohort(cohort, cases=CASES, slices=SLICES, size=size, seed=6, test_fraction=0.0)
    settings = [f"data.size={size}", f"pose.size={size}", f"crop.size={size}", f"train.folds={FOLDS}"]
    for stage in STAGES:
        settings += [f"{stage}.optimizer.{name}=1" for name in ("epochs", "min_epochs")]
        settings += [f"{stage}.optimizer.iterations={steps}", f"{stage}.optimizer.batch_size={batch}"]
    config = load_config("paper", settings=settings)
    meter = Measuring(folder / "measured.json", fabric_for(config).device)
    model = fit(open_dataset(cohort), folder / "model", config, store=folder / "store", reporter=meter)
    return model, meter.values["memory"]


if __name__ == "__main__":
    typer.run(main)
