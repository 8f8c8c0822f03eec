"""Where the time of a prediction goes, step by step.

    python benchmarks/parts.py MODEL SCAN [SCAN ...] --output /tmp/parts [--rounds 5]

MODEL is any model of slices. Each scan is predicted as isopose predict does, in this process, ROUNDS times
after one to warm up; what is printed is the median of each step's part. A step's time is that of all that it
calls, but for other steps. The table goes to stdout and to OUTPUT/parts.md.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

from isopose.files import write_text
from isopose.inference.files import predict_scans
from isopose.io.scans import find_scans
from isopose.models.folder import Model, for_prediction, load_model
from isopose.progress import Silent

#: Steps, and the functions that take them, where they are called.
STEPS = {
    "reading, and its hash": (
        "isopose.inference.files.read_channels",
        "isopose.inference.files.hash_of_channels",
    ),
    "body mask": ("isopose.data.preprocess.find_body",),
    "into the frame": ("isopose.data.preprocess.warped",),
    "poses": (
        "isopose.inference.predict.slice_poses_of",
        "isopose.inference.predictors.find_poses",
    ),
    "crops (STN2, and the frames it sees)": ("isopose.inference.predictors.find_crops",),
    "the U-Net's input cut": ("isopose.models.pipeline.Networks.cut",),
    "U-Net": ("isopose.models.pipeline.Networks.probabilities",),
    "restoring": ("isopose.inference.predictors.restore", "isopose.inference.predict.most_probable"),
    "writing": ("isopose.inference.files.write_results",),
}
REST = "all else"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    model = for_prediction(load_model(given.model))
    found = []
    for scan in given.scans:
        predicted(model, scan)
        found.append([predicted(model, scan) for _ in range(given.rounds)])
    wholes = [statistics.median(sum(one.values()) for one in rounds) for rounds in found]
    lines = ["| part of a prediction, % | " + " | ".join(scan.name for scan in given.scans) + " |"]
    lines += ["| --- |" + " --- |" * len(found)]
    for step in (*STEPS, REST):
        parts = [statistics.median(one[step] / sum(one.values()) for one in rounds) for rounds in found]
        lines.append(f"| {step} | " + " | ".join(f"{100 * part:.0f}" for part in parts) + " |")
    lines.append("| the whole, s | " + " | ".join(f"{whole:.2f}" for whole in wholes) + " |")
    print("\n".join(lines))
    write_text(given.output / "parts.md", "\n".join(lines) + "\n")


def predicted(model: Model, scan: Path) -> dict[str, float]:
    """Seconds of each step of one prediction, and of all else."""
    with tempfile.TemporaryDirectory() as place, timed() as steps:
        started = time.perf_counter()
        [outcome] = predict_scans(
            model, find_scans([scan]), Path(place), probabilities=False, reporter=Silent()
        )
        whole = time.perf_counter() - started
    if outcome.problem:
        raise SystemExit(outcome.problem)
    return {**steps, REST: whole - sum(steps.values())}


@contextmanager
def timed(
    of: Mapping[str, tuple[str, ...]] | None = None, clock: str = "perf_counter"
) -> Iterator[dict[str, float]]:
    """Seconds of each step while the block runs, by a clock of the module ``time``."""
    of = STEPS if of is None else of
    steps = dict.fromkeys(of, 0.0)
    running: list[str] = []

    def clocked(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = getattr(time, clock)()
            running.append(step)
            try:
                return function(*args, **kwargs)
            finally:
                running.pop()
                took = getattr(time, clock)() - started
                steps[step] += took
                if running:
                    steps[running[-1]] -= took

        return call

    with ExitStack() as stack:
        for step, names in of.items():
            for name in names:
                stack.enter_context(patch(name, clocked(step, resolve_name(name))))
        yield steps


if __name__ == "__main__":
    main()
