"""What the U-Net sees around the reference pose: which parts help, on phantoms that no arm has seen.

    python benchmarks/augmentation.py --output OUT --seeds 0 1

Each seed makes a cohort of its own; all arms train on the same patients, slices and number of steps. Pose and
crop do not depend on what is compared: they are trained once for each start and shared. The table goes to
stdout and to ``OUT/augmentation.md``. What is there already is not done again, and an arm that was broken off
goes on from its last epoch.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pipelines import Meter, cohort_of, merged, parser_of, predicted_and_scored

from isopose.demo import SMALL_PRESET
from isopose.files import read_json, write_json, write_text
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.scans import find_scans
from isopose.models.folder import Model
from isopose.presets import load_config
from isopose.settings import IntensityConfig
from isopose.training.fit import fit

#: Where the pose comes from. From the identity no pose is estimated: the mirror line is the frame's middle.
STARTS: Mapping[str, Mapping[str, Any]] = {
    "anatomy": {"pose": {"start": "anatomy"}},
    "identity": {"pose": {"start": "identity", "learned": False}},
}
NO_JITTER: Mapping[str, Any] = {
    "unet": {"pose_jitter": 0.0},
    "crop": {"jitter_shift": 0.0, "jitter_scale": 0.0},
}


class Arm(NamedTuple):
    """A way to train (models of one way and start are one) and to predict."""

    name: str
    jitter: bool
    mirror: float
    averaged: bool
    intensities: bool = False
    elastic: bool = False
    context: int = 0
    convolutions: float = 0.0

    @property
    def model(self) -> str:
        changed = [
            name for name in ("intensities", "elastic", "context", "convolutions") if getattr(self, name)
        ]
        return "-".join(["jitter" if self.jitter else "still", f"mirror-{self.mirror:g}", *changed])


ARMS = (
    Arm("neither", False, 0.0, False),
    Arm("jitter", True, 0.0, False),
    Arm("jitter, mirroring", True, 0.5, False),
    Arm("jitter, mirroring, averaging", True, 0.5, True),
    Arm("mirroring", False, 0.5, False),
    Arm("jitter, intensities", True, 0.0, False, intensities=True),
    Arm("jitter, mirroring, averaging, intensities", True, 0.5, True, intensities=True),
    Arm("jitter, mirroring, averaging, deformation", True, 0.5, True, elastic=True),
    Arm("jitter, mirroring, averaging, both", True, 0.5, True, intensities=True, elastic=True),
    Arm("jitter, mirroring, averaging, random convolutions", True, 0.5, True, convolutions=0.5),
    Arm("jitter, neighbors", True, 0.0, False, context=1),
)
#: Against this arm differences are taken: what was done before there was any mirroring.
BASE = "jitter"
TARGETS = ("kidney", "tumor")

HEAD = (
    "| start of the pose | while the U-Net trains | patients | kidney Dice | tumor Dice "
    f"| kidney, against {BASE} | tumor, against {BASE} | training, s | prediction, s |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)
NOTE = """
Unseen phantom patients of cohorts of {cases}, seeds {names}; each seed is one cohort and one training.
Dice: mean (standard deviation) over patients, 3D on the native grid. Against {base}: mean of the patients'
differences and its standard error. Seconds are of one CPU core: training of the U-Net alone, prediction of a
volume of {slices} slices of {size} pixels with reading and writing.
"""


def changes(start: str, arm: Arm) -> dict[str, Any]:
    """What differs from the default configuration while a model trains."""
    unet: dict[str, Any] = {
        "mirror": arm.mirror,
        "context": arm.context,
        "augmentation": "homogenized" if arm.intensities or arm.elastic or arm.convolutions else "off",
    }
    if not arm.intensities:
        unet["intensity"] = dict.fromkeys(IntensityConfig.model_fields, 0.0)
    unet["intensity"] = {**unet.get("intensity", {}), "random_convolutions": arm.convolutions}
    if not arm.elastic:
        unet["elastic"] = 0.0
    mirror = {"unet": unet, "predict": {"mirror": False}}
    return reduce(merged, (SMALL_PRESET, STARTS[start], {} if arm.jitter else NO_JITTER, mirror), {})


def trained(
    folder: Path, dataset: Dataset, store: Path, start: str, arm: Arm, seed: int, settings: Sequence[str] = ()
) -> tuple[Model, float]:
    """The arm's model and the seconds of its U-Net; pose and crop are another arm's where one has them."""
    place = folder / start / arm.model
    checkpoints = place / "model" / "work" / "checkpoints"
    if not checkpoints.exists():
        for stage in ("pose", "crop"):
            # A stage of an arm that is finished with it: its U-Net has begun.
            for done in sorted((folder / start).glob(f"*/model/work/checkpoints/{stage}.safetensors")):
                if done.with_name("unet.safetensors").exists():
                    checkpoints.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(done, checkpoints / done.name)
                    break
    config = load_config(base=changes(start, arm), settings=[*settings, f"train.seed={seed}"])
    meter = Meter(place / "seconds.json", f"seed {seed}, {start}, {arm.model}")
    model = fit(dataset, place / "model", config, resume=True, store=store, reporter=meter)
    return model, meter.total("unet")


def run(
    folder: Path, dataset: Dataset, store: Path, start: str, arm: Arm, seed: int, settings: Sequence[str]
) -> dict[str, Any]:
    """Train, predict and score one arm on one cohort; its numbers."""
    place = folder / start / arm.model / ("averaged" if arm.averaged else "plain")
    result = place / "result.json"
    if result.exists():
        known: dict[str, Any] = read_json(result)
        return known
    model, training = trained(folder, dataset, store, start, arm, seed, settings)
    predict = model.config.predict.model_copy(update={"mirror": arm.averaged})
    model = replace(model, config=model.config.model_copy(update={"predict": predict}))
    scans = find_scans([dataset.root / "imagesTs"])
    meter = Meter(place / "seconds.json", f"seed {seed}, {start}, {arm.name}")
    evaluation = predicted_and_scored(model, scans, dataset, place / "predictions", meter)
    dice = {target: [case.scores[target].dice for case in evaluation.cases] for target in TARGETS}
    numbers = {
        "dice": dice,
        "training": training,
        "prediction": meter.total("predict") / len(scans),
    }
    write_json(result, numbers)
    means = [f"{target} {np.mean(_known(values)):.3f}" for target, values in dice.items()]
    meter.say(", ".join(means))
    return numbers


def table(results: Mapping[tuple[str, str], Mapping[int, dict[str, Any]]], given: argparse.Namespace) -> str:
    """The table of what is done.

    Args:
        results: start and arm to the numbers of each seed; seeds that an arm lacks are left out of its line.
        given: patients of a cohort (``cases``), their slices and pixels.
    """
    lines = [HEAD]
    for (start, arm), of_seed in results.items():
        if not of_seed:
            continue
        base = results.get((start, BASE), {})
        both = [seed for seed in of_seed if seed in base]
        cells = [start, arm, str(sum(len(numbers["dice"][TARGETS[0]]) for numbers in of_seed.values()))]
        for target in TARGETS:
            values = _known([v for numbers in of_seed.values() for v in numbers["dice"][target]])
            cells.append(f"{values.mean():.3f} ({values.std(ddof=1):.3f})")
        for target in TARGETS:
            pairs = [
                (mine, theirs)
                for seed in both
                for mine, theirs in zip(
                    of_seed[seed]["dice"][target], base[seed]["dice"][target], strict=True
                )
                if mine is not None and theirs is not None
            ]
            cells.append(_difference(pairs) if arm != BASE and pairs else "")
        cells += [
            f"{np.mean([numbers[what] for numbers in of_seed.values()]):.{digits}f}"
            for what, digits in (("training", 0), ("prediction", 1))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = sorted({seed for of_seed in results.values() for seed in of_seed})
    lines.append(
        NOTE.format(
            cases=given.cases,
            names=", ".join(map(str, seeds)),
            base=BASE,
            slices=given.slices,
            size=given.size,
        )
    )
    return "\n".join(lines)


def _known(values: Sequence[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None])


def _difference(pairs: Sequence[tuple[float, float]]) -> str:
    differences = np.array([mine - theirs for mine, theirs in pairs])
    return f"{differences.mean():+.3f} ± {differences.std(ddof=1) / np.sqrt(len(differences)):.3f}"


def main() -> None:
    parser = parser_of(__doc__, "augmentation", [0, 1])
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], help="some only")
    given = parser.parse_args()
    arms = [arm for arm in ARMS if given.arms is None or arm.name in given.arms]
    results: dict[tuple[str, str], dict[int, dict[str, Any]]] = {
        (start, arm.name): {} for start in given.starts for arm in arms
    }
    # One start after the other, so that a run that is broken off has whole parts.
    for start in given.starts:
        for seed in given.seeds:
            cohort = cohort_of(seed, given)
            folder, dataset = cohort.parent, open_dataset(cohort)
            for arm in arms:
                results[start, arm.name][seed] = run(
                    folder, dataset, folder / "store", start, arm, seed, given.settings
                )
                write_text(given.output / "augmentation.md", table(results, given))
    print(table(results, given))


if __name__ == "__main__":
    main()
