"""Find structures predicted on the wrong side of the body, where the true pose is known."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from isopose.geometry.volume import Volume
from isopose.io.cases import Case
from isopose.io.images import read_labels
from isopose.labels import Labels

#: Minimum fraction of the ground truth on one side of the midline for its side to count as known.
ONE_SIDED = 0.75


def count_sides(
    cases: Iterable[Case], labels: Labels, predictions: Path, poses: Mapping[str, np.ndarray]
) -> dict[str, dict[str, list[str]]]:
    """Find the scans in which a structure was predicted on the other side of the body.

    Args:
        cases: predicted cases.
        labels: labels of the dataset.
        predictions: folder of the predicted label maps.
        poses: ``(4, 4)`` true pose by case, from the patient's own frame to LPS mm; cases without a pose are
            left out.

    Returns:
        For each label the ids of the cases that are ``known`` (at least three quarters of the ground truth
        lie on one side) and, of these, ``wrong`` (most of the prediction lies on the other side).
    """
    by_label: dict[str, dict[str, list[str]]] = {name: {"known": [], "wrong": []} for name in labels.values}
    for case in cases:
        if case.id not in poses or case.label is None:
            continue
        truth = read_labels(case.label)
        predicted = read_labels(predictions / f"{case.id}.nii.gz", like=truth)
        for name, value in labels.values.items():
            left = _share_on_the_left(truth, value, poses[case.id])
            if left is None or max(left, 1.0 - left) < ONE_SIDED:
                continue
            by_label[name]["known"].append(case.id)
            marked = _share_on_the_left(predicted, value, poses[case.id])
            if marked is not None and marked != 0.5 and (marked > 0.5) != (left > 0.5):
                by_label[name]["wrong"].append(case.id)
    return by_label


def _share_on_the_left(volume: Volume, value: int, world_from_patient: np.ndarray) -> float | None:
    """Return the fraction of a value's voxels that lies left of the patient's midline; None without any."""
    z, y, x = np.nonzero(volume.array == value)
    if len(x) == 0:
        return None
    patient_from_index = np.linalg.inv(world_from_patient) @ volume.world_from_index
    across = patient_from_index[0] @ np.stack([x, y, z, np.ones_like(x)])
    return float(np.mean(across > 0))
