"""Tumors predicted on the wrong side of the body are detected in any position of the patient."""

from pathlib import Path

import numpy as np
import pytest

from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, write_labels
from isopose.io.truth import true_poses
from isopose.phantom import write_cohort
from isopose.study.sides import count_sides


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(
        tmp_path_factory.mktemp("sides") / "cohort", cases=4, slices=5, size=48, seed=3, test_fraction=0.0
    )


def test_the_side_is_that_of_the_patient_and_not_of_the_header(cohort: Path, tmp_path: Path) -> None:
    dataset, poses = open_dataset(cohort), true_poses(cohort)
    for case in dataset.cases:
        truth = read_labels(case.label)
        z, y, x = np.nonzero(truth.array)
        points = np.stack([x, y, z, np.ones_like(x)])
        # Mirrored about the patient's own midplane, whichever way the scan shows it.
        index_from_patient = np.linalg.inv(truth.world_from_index) @ poses[case.id]
        mirror = index_from_patient @ np.diag([-1.0, 1, 1, 1]) @ np.linalg.inv(index_from_patient)
        index = np.rint(mirror @ points)[:3].astype(int)
        inside = np.all((index >= 0) & (index < np.array(truth.array.shape)[::-1, None]), axis=0)
        mirrored = np.zeros_like(truth.array)
        mirrored[tuple(index[::-1][:, inside])] = truth.array[z, y, x][inside]
        write_labels(truth, tmp_path / "same" / f"{case.id}.nii.gz")
        write_labels(truth.with_array(mirrored), tmp_path / "mirrored" / f"{case.id}.nii.gz")
        write_labels(truth.with_array(np.zeros_like(mirrored)), tmp_path / "none" / f"{case.id}.nii.gz")

    result = {
        name: count_sides(dataset.cases, dataset.labels, tmp_path / name, poses)["tumor"]
        for name in ("same", "mirrored", "none")
    }
    known = result["same"]["known"]
    assert len(known) >= 3
    assert result["same"]["wrong"] == result["none"]["wrong"] == [], "what is missed is on no side"
    assert result["mirrored"] == {"known": known, "wrong": known}
    # Of real patients the pose is not known, and nothing is said.
    unknown = count_sides(dataset.cases, dataset.labels, tmp_path / "same", {})
    assert unknown["tumor"] == {"known": [], "wrong": []}
