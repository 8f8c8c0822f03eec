"""Draw the README's picture from a finished ``isopose demo``: one slice each of patients unlike each other.

Run ``python docs/make_pictures.py demo`` after ``make demo``.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from isopose.files import read_json
from isopose.inference.predict import predict
from isopose.io.images import read_labels, read_volume
from isopose.models.folder import load_model
from isopose.report.figure import draw_steps
from isopose.report.steps import steps_of


def main(demo: Path) -> None:
    """Draw the youngest, the most rolled, the prone or most off-center, and the oldest test patient."""
    truths = [c for c in read_json(demo / "cohort" / "phantom.json")["cases"] if c["split"] == "test"]
    by_age = sorted(truths, key=lambda c: c["age_years"])
    by_roll = sorted(truths, key=lambda c: -abs(c["roll"]))
    chosen: list[dict[str, Any]] = []
    for case in (by_age[0], by_roll[0], by_roll[1], by_age[-1], *by_age):
        if case not in chosen and len(chosen) < 4:
            chosen.append(case)
    model = load_model(demo / "with" / "model")
    rows = []
    for case in chosen:
        name = case["case"]
        volume = read_volume(demo / "cohort" / "imagesTs" / f"{name}_0000.nii.gz")
        truth = read_labels(demo / "cohort" / "labelsTs" / f"{name}.nii.gz", like=volume)
        steps = steps_of(model, volume, predict(model, volume), truth=truth, rows=7)
        both = [int(np.unique(s.native_truth).size) if s.native_truth is not None else 0 for s in steps]
        row = steps[int(np.argmax(both))] if max(both) < 3 else steps[[b == 3 for b in both].index(True)]
        rows.append(row)
    draw_steps(rows, Path(__file__).parent / "pictures" / "steps.png", model.labels.names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
