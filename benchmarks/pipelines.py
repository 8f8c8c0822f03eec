"""Pipelines side by side on the demo's phantom cohort: what the transformers are, all else being equal.

    python benchmarks/pipelines.py --output /tmp/pipelines --seeds 0 1

Each seed makes a cohort of its own, trains every arm on the same patients, slices and number of steps, and
predicts patients that no arm has seen. The table goes to stdout and to OUTPUT/pipelines.md. What is there
already is not done again; an arm that was broken off goes on from its last epoch.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from isopose.demo import CASES, SIZE, SLICES, SMALL_PRESET, TEST_FRACTION
from isopose.errors import IsoposeError
from isopose.evaluation.evaluate import Evaluation, evaluate
from isopose.files import read_json, write_json, write_text
from isopose.inference.files import predict_scans
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.scans import Scan, find_scans
from isopose.models.folder import Model
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.progress import Silent
from isopose.training.fit import fit

#: Changes of the demo's configuration (isopose.demo.SMALL_PRESET) by the arm's name; a new arm is a new line.
ARMS: dict[str, Mapping[str, Any]] = {
    "separate, anatomy (default)": {},
    "separate, moments, per slice": {
        "pose": {"start": "moments", "learned": True, "per": "slice"},
        "crop": {"per": "slice"},
    },
    "separate, identity, per slice (the paper's way)": {
        "pose": {"start": "identity", "learned": True, "per": "slice", "max_angle": 3.2, "max_shift": 1.0},
        "crop": {"per": "slice"},
    },
    "joint, anatomy": {"stn": "joint"},
    "joint, anatomy, roll as the start has it": {"stn": "joint", "pose": {"max_angle": 0.001}},
    "joint, moments, per slice": {
        "stn": "joint",
        "pose": {"start": "moments", "per": "slice"},
        "crop": {"per": "slice"},
    },
    "joint, identity, per slice": {
        "stn": "joint",
        "pose": {"start": "identity", "per": "slice", "max_angle": 3.2, "max_shift": 1.0},
        "crop": {"per": "slice"},
    },
    # As many slices seen as in the other arms, twenty a volume; fewer features, for each costs more.
    "volumes, anatomy": {
        "dims": 3,
        "crop": {"optimizer": {"iterations": 20, "batch_size": 2}},
        "unet": {"base_features": 8, "optimizer": {"iterations": 42, "batch_size": 1}},
    },
}

HEAD = (
    "| pipeline | kidney Dice | tumor Dice | crop overlap | roll off by | training, s | prediction, s "
    "| parameters |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)
NOTE = """
{patients} unseen phantom patients of {seeds} cohorts ({cases} patients each, seeds {names}). Dice: mean (sd)
over patients, 3D on the native grid. Crop overlap: intersection over union with the target square, single
slices of the validation patients. Roll off by: median / 90th percentile of degrees over the test patients'
slices, against the phantom's true roll. Of volumes the overlap is that of boxes, the roll one a scan.
Seconds are of one CPU core: training by stage, prediction for a volume of {slices} slices of {size} pixels
with reading and writing. Parameters of the transformers alone.
"""


class Meter(Silent):
    """Takes the core's seconds of every epoch and keeps them in a file, for runs that are broken off."""

    def __init__(self, path: Path, prefix: str) -> None:
        self.path, self.prefix = path, prefix
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}
        self.since = time.process_time()

    def say(self, text: str) -> None:
        print(f"{self.prefix}: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, name: str, epochs: int, iterations: int, done: int) -> Iterator["Meter"]:  # noqa: ARG002
        self.since = time.process_time()
        yield self

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.keep(f"{row['stage']} {row['epoch']}")

    def keep(self, key: str) -> None:
        """Put down the seconds since the last time."""
        now = time.process_time()
        self.seconds[key] = now - self.since
        self.since = now
        write_json(self.path, self.seconds)

    def total(self, stage: str) -> float:
        return sum(value for key, value in self.seconds.items() if key.rpartition(" ")[0] == stage)


def run(
    folder: Path, cohort: Path, store: Path, arm: str, seed: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Train, predict and score one arm on one cohort; its numbers."""
    result = folder / "result.json"
    if result.exists():
        known: dict[str, Any] = read_json(result)
        return known
    dataset = open_dataset(cohort)
    meter = Meter(folder / "seconds.json", f"seed {seed}, {arm}")
    config = load_config(
        base=merged(SMALL_PRESET, ARMS[arm]), settings=[*given.settings, f"train.seed={seed}"]
    )
    model = fit(
        dataset, folder / "model", config, resume=True, store=store, workers=given.workers, reporter=meter
    )
    scans = find_scans([dataset.root / "imagesTs"])
    evaluation = predicted_and_scored(model, scans, dataset, folder / "predictions", meter)
    stages = model.info.stages
    numbers = {
        "dice": {
            target: [case.scores[target].dice for case in evaluation.cases] for target in evaluation.targets
        },
        "overlap": overlap(model),
        "roll": roll_errors(folder / "predictions", cohort, [scan.name for scan in scans]),
        "training": {stage: meter.total(stage) for stage in stages},
        "prediction": meter.total("predict") / len(scans),
        "parameters": parameters(model),
    }
    write_json(result, numbers)
    return numbers


def predicted_and_scored(
    model: Model, scans: Sequence[Scan], dataset: Dataset, predictions: Path, meter: Meter
) -> Evaluation:
    """Predict the scans that the meter has no seconds of, one by one, and score all."""
    for scan in scans:
        if f"predict {scan.name}" not in meter.seconds:
            meter.since = time.process_time()
            (outcome,) = predict_scans(model, [scan], predictions, probabilities=False, reporter=Silent())
            if outcome.problem:
                raise IsoposeError(outcome.problem)
            meter.keep(f"predict {scan.name}")
    return evaluate(predictions, dataset, cases=[scan.name for scan in scans])


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """One nested mapping over another."""
    out = dict(base)
    for key, value in change.items():
        out[key] = merged(base.get(key, {}), value) if isinstance(value, Mapping) else value
    return out


def overlap(model: Model) -> float | None:
    """Of the crop network on single validation slices, in the epoch whose weights were kept."""
    for name, stage in model.info.stages.items():
        for row in model.info.history:
            if (row["stage"], row["epoch"]) == (name, stage.best_epoch) and "box overlap" in row:
                return float(row["box overlap"])
    return None


def roll_errors(predictions: Path, cohort: Path, names: Sequence[str]) -> list[float]:
    """Degrees between estimated and true roll of every slice of some phantoms."""
    truths = {case["case"]: case for case in read_json(cohort / "phantom.json")["cases"]}
    errors = []
    for name in names:
        left = np.array(truths[name]["world_from_canonical"])[:2, 0]
        true = np.degrees(np.arctan2(left[1], left[0]))
        record = read_json(predictions / f"{name}.json")
        # A volume has one roll for all its slices.
        found = np.array([row["roll_degrees"] for row in record.get("slices", [record])])
        errors += np.abs((found - true + 180.0) % 360.0 - 180.0).tolist()
    return errors


def parameters(model: Model) -> int:
    """Of pose and crop, whatever makes them, without the U-Net."""
    return sum(p.numel() for name, p in model.pipeline.named_parameters() if not name.startswith("unet."))


def row(arm: str, results: Sequence[Mapping[str, Any]]) -> str:
    """An arm's line of the table, all seeds together."""

    def dice(target: str) -> str:
        values = [value for result in results for value in result["dice"][target] if value is not None]
        return f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f})"

    overlaps = [result["overlap"] for result in results if result["overlap"] is not None]
    rolls = np.array([value for result in results for value in result["roll"]])
    training = " + ".join(
        f"{stage} {np.mean([result['training'][stage] for result in results]):.0f}"
        for stage in results[0]["training"]
    )
    cells = (
        arm,
        dice("kidney"),
        dice("tumor"),
        f"{np.mean(overlaps):.2f}" if overlaps else "",
        f"{np.median(rolls):.1f} / {np.percentile(rolls, 90):.1f}",
        training,
        f"{np.mean([result['prediction'] for result in results]):.1f}",
        f"{results[0]['parameters']:,}",
    )
    return "| " + " | ".join(cells) + " |"


def parser_of(description: str | None, output: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Return the options of a comparison on phantom cohorts, with the defaults of output and seeds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument(
        "--cases", type=int, default=CASES, help="patients of a cohort, a fifth only tested on"
    )
    parser.add_argument("--slices", type=int, default=SLICES, help="of a phantom")
    parser.add_argument("--size", type=int, default=SIZE, help="pixels of a phantom's side")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        help="section.key=value over every arm's, repeated",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--workers", type=int, default=0, help="processes that make phantoms")
    return parser


def cohort_of(seed: int, given: argparse.Namespace) -> Path:
    """Write the phantoms of a seed in a folder of their own below the output; return the dataset."""
    return write_cohort(
        given.output / f"seed-{seed}-of-{given.cases}" / "cohort",
        cases=given.cases,
        slices=given.slices,
        size=given.size,
        seed=seed,
        test_fraction=TEST_FRACTION,
        workers=given.workers,
    )


def main() -> None:
    parser = parser_of(__doc__, "pipelines", [0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    given = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in given.arms}
    for seed in given.seeds:
        cohort = cohort_of(seed, given)
        folder = cohort.parent
        for arm in given.arms:
            place = folder / arm.translate({ord(sign): "-" for sign in ",() '"})
            results[arm].append(run(place, cohort, folder / "store", arm, seed, given))
        # After each seed, so that a long run can be looked at.
        write_text(given.output / "pipelines.md", table(results, given))
    print(table(results, given))


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], given: argparse.Namespace) -> str:
    """The whole Markdown table and what its figures are."""
    done = len(next(iter(results.values())))
    patients = sum(len(result["dice"]["kidney"]) for result in next(iter(results.values())))
    note = NOTE.format(
        patients=patients,
        seeds=done,
        cases=given.cases,
        names=" ".join(map(str, given.seeds[:done])),
        slices=given.slices,
        size=given.size,
    )
    return "\n".join([HEAD, *(row(arm, of_arm) for arm, of_arm in results.items()), note])


if __name__ == "__main__":
    main()
