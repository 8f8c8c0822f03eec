"""What is lost if only every n-th slice is drawn, on phantoms that no arm has seen.

    python benchmarks/sparse.py --output OUT --seeds 0 1 [--every 6]

Each seed makes a cohort of its own. All arms train on the same scans with the same number of steps, and are
scored on the complete labels of the test patients; they differ in the training labels alone. The table goes
to stdout and to ``OUT/sparse.md``. What is there already is not done again, and an arm that was broken off
goes on from its last epoch.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pipelines import Meter, cohort_of, parser_of, predicted_and_scored

from isopose.demo import SMALL_PRESET
from isopose.files import read_json, write_json, write_text
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.images import read_labels, write_labels
from isopose.io.scans import find_scans
from isopose.presets import load_config
from isopose.training.fit import fit


class Arm(NamedTuple):
    """Which slices are drawn, and what the others are said to be.

    Args:
        name: in the table.
        every: one slice in so many is drawn; None: as ``--every`` says.
        marked: whether the others have the value to ignore; else they are 0.
        undrawn: the setting ``data.undrawn``.
    """

    name: str
    every: int | None = None
    marked: bool = False
    undrawn: str = "background"


ARMS = (
    Arm("every slice", every=1),
    Arm("others ignored by their value", marked=True),
    Arm("others 0, data.undrawn=ignore", undrawn="ignore"),
    Arm("others 0, taken for background"),
)
TARGETS = ("kidney", "tumor")
HEAD = (
    "| drawn | training slices with a kidney | kidney Dice | tumor Dice | kidney, against all "
    "| tumor, against all |\n"
    "| --- | --- | --- | --- | --- | --- |"
)
NOTE = """
Unseen phantom patients of cohorts of {cases} ({slices} slices of {size} pixels), seeds {names}; each seed is
one cohort and one training of each arm. But for the first arm one slice in {every} is drawn. Dice: mean
(standard deviation) over patients, 3D on the native grid, against complete labels. Against all: mean of the
patients' differences from the first arm, and its standard error.
"""


def thinned(dataset: Dataset, folder: Path, every: int, marked: bool) -> Dataset:
    """Return a dataset of whose training labels only one axial slice in so many is left.

    Args:
        dataset: with complete labels.
        folder: for the new label files.
        every: which slices are kept: the middle one of each so many.
        marked: give the others the value to ignore, the next after the labels; else 0.
    """
    value = max(dataset.labels.values.values()) + 1 if marked else 0
    cases = []
    for case in dataset.cases:
        if case.label is not None and case.split == "train":
            path = folder / f"{case.id}.nii.gz"
            if not path.exists():
                labels = read_labels(case.label).reoriented()
                array = np.full_like(labels.array, value)
                array[every // 2 :: every] = labels.array[every // 2 :: every]
                write_labels(labels.with_array(array), path)
            case = replace(case, label=path)
        cases.append(case)
    return replace(
        dataset,
        cases=tuple(cases),
        labels=replace(dataset.labels, ignore=value if marked else None),
    )


def run(folder: Path, dataset: Dataset, arm: Arm, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train, predict and score one arm on one cohort; its numbers."""
    place = folder / arm.name.translate({ord(sign): "-" for sign in ",= "})
    if (place / "result.json").exists():
        known: dict[str, Any] = read_json(place / "result.json")
        return known
    drawn = thinned(dataset, place / "labels", arm.every or given.every, arm.marked)
    settings = [*given.settings, f"train.seed={seed}", f"data.undrawn={arm.undrawn}"]
    meter = Meter(place / "seconds.json", f"seed {seed}, {arm.name}")
    config = load_config(base=dict(SMALL_PRESET), settings=settings)
    model = fit(drawn, place / "model", config, resume=True, store=folder / arm.undrawn, reporter=meter)
    scans = find_scans([dataset.root / "imagesTs"])
    evaluation = predicted_and_scored(model, scans, dataset, place / "predictions", meter)
    numbers = {
        "dice": {target: [case.scores[target].dice for case in evaluation.cases] for target in TARGETS},
        "slices": {label.name: label.slices for label in model.fingerprint.labels}["kidney"],
    }
    write_json(place / "result.json", numbers)
    return numbers


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], given: argparse.Namespace) -> str:
    """The Markdown table of what is done: arm to the numbers of each seed, in the seeds' order."""
    lines = [HEAD]
    for name, of_seed in results.items():
        cells = [name, f"{np.mean([numbers['slices'] for numbers in of_seed]):.0f}"]
        for target in TARGETS:
            values = _known([value for numbers in of_seed for value in numbers["dice"][target]])
            cells.append(f"{values.mean():.3f} ({values.std(ddof=1):.3f})")
        cells += [_against(results[ARMS[0].name], of_seed, target) for target in TARGETS]
        lines.append("| " + " | ".join(cells) + " |")
    done = given.seeds[: len(next(iter(results.values())))]
    names = " ".join(map(str, done))
    note = NOTE.format(
        cases=given.cases, slices=given.slices, size=given.size, names=names, every=given.every
    )
    return "\n".join([*lines, note])


def _against(base: Sequence[Mapping[str, Any]], of_seed: Sequence[Mapping[str, Any]], target: str) -> str:
    pairs = [
        (mine, all_drawn)
        for numbers, whole in zip(of_seed, base, strict=False)
        for mine, all_drawn in zip(numbers["dice"][target], whole["dice"][target], strict=True)
        if mine is not None and all_drawn is not None
    ]
    if of_seed is base or not pairs:
        return ""
    differences = np.array([mine - all_drawn for mine, all_drawn in pairs])
    return f"{differences.mean():+.3f} ± {differences.std(ddof=1) / np.sqrt(len(differences)):.3f}"


def _known(values: Sequence[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None])


def main() -> None:
    parser = parser_of(__doc__, "sparse", [0])
    parser.add_argument("--every", type=int, default=6, help="one slice in so many is drawn")
    given = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in ARMS}
    for seed in given.seeds:
        cohort = cohort_of(seed, given)
        dataset = open_dataset(cohort)
        for arm in ARMS:
            results[arm.name].append(run(cohort.parent, dataset, arm, seed, given))
        # After each seed, so that a long run can be looked at.
        write_text(given.output / "sparse.md", table(results, given))
    print(table(results, given))


if __name__ == "__main__":
    main()
