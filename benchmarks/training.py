"""A training step and its memory against nnU-Net v2 2D, on the same phantoms at several sizes.

    python benchmarks/training.py --output /tmp/training [--sizes 128 256 512] [--batches 12 6 2]
        [--cases 8] [--slices 20] [--rounds 3]

Needs nnU-Net (make peers). Each size is a short study of its own (isopose study): whole arms, read from their
stores, augmented and validated as ever, in turn, once for each of ROUNDS seeds, each in a process of its own.
Of steps the table gives the U-Net's training without validation, the median of all epochs but each run's
first. Nothing is learned in so few steps: for seconds to a Dice see docs/study.md. The table goes to stdout
and to OUTPUT/training.md; the studies stay in OUTPUT.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from isopose.files import read_json, write_text

ARMS = ("augmented", "pose", "crop-half", "nnunet")
PEER = ARMS[-1]
EPOCHS, ITERATIONS = 3, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[12, 6, 2], help="slices a step")
    parser.add_argument("--cases", type=int, default=8, help="phantoms of a size")
    parser.add_argument("--slices", type=int, default=20, help="of a phantom")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    lines = ["| pixels | slices a step | arm | ms a slice | CPU ms | part of nnU-Net's | memory, MB |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for size, batch in zip(given.sizes, given.batches, strict=True):
        folder = given.output / str(size)
        study(folder, size, batch, given)
        found = {arm: measured(folder / "study", arm, given.rounds, batch) for arm in ARMS}
        for arm, (wall, cpu, memory) in found.items():
            lines.append(
                f"| {size} | {batch} | {arm} | {wall:.0f} | {cpu:.0f} | {cpu / found[PEER][1]:.3f} "
                f"| {memory:.0f} |"
            )
        print(f"{size} pixels: done", file=sys.stderr, flush=True)
    print("\n".join(lines))
    write_text(given.output / "training.md", "\n".join(lines) + "\n")


def study(folder: Path, size: int, batch: int, given: argparse.Namespace) -> None:
    """A study of a few steps; what of it is there already is not run again."""
    from isopose.phantom import write_cohort

    settings = [f"[data]\nsize = {size}\n"]
    for stage in ("pose", "crop"):
        settings += [f"[{stage}.optimizer]\nepochs = 1\nmin_epochs = 1\niterations = 1\n"]
    settings += [
        f"[unet.optimizer]\nepochs = {EPOCHS}\nmin_epochs = {EPOCHS}\niterations = {ITERATIONS}\n"
        f"batch_size = {batch}\n"
    ]
    write_text(folder / "study.toml", "\n".join(settings))
    if not (folder / "cohort").exists():
        write_cohort(
            folder / "cohort", cases=given.cases, slices=given.slices, size=size, seed=6, test_fraction=0.15
        )
    seeds = ",".join(map(str, range(given.rounds)))
    command = [Path(sys.executable).parent / "isopose", "study", folder / "cohort"]
    command += ["--output", folder / "study", "--config", folder / "study.toml", "--presets", "default"]
    # What is measured is the U-Net's training: nobody looks at what STN2 has learned in one step.
    command += ["--short-stns"]
    command += ["--arms", ",".join(ARMS), "--seeds", seeds]
    subprocess.run(list(map(str, command)), check=True)


def measured(folder: Path, arm: str, rounds: int, batch: int) -> tuple[float, float, float]:
    """Milliseconds and CPU milliseconds a slice, and megabytes that the U-Net's training takes."""
    walls, cpus, memory = [], [], []
    for seed in range(rounds):
        result = read_json(folder / "runs" / "default" / arm / f"seed-{seed}-fold-0" / "result.json")
        rows: list[dict[str, Any]] = [row for row in result["history"] if row["stage"] == "unet"]
        for row in rows[1:]:
            slices = ITERATIONS * batch
            trained = row["seconds"] - row["validation_seconds"]
            walls.append(1e3 * trained / slices)
            # Validation uses the processors as training does.
            cpus.append(1e3 * row["cpu_seconds"] * trained / row["seconds"] / slices)
        taken = result["measures"]["memory"]["unet"]
        memory.append(taken["peak_mb"] - taken["before_mb"])
    return statistics.median(walls), statistics.median(cpus), statistics.median(memory)


if __name__ == "__main__":
    main()
