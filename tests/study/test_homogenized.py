"""Homogenization and restoration of nnU-Net's homogenized arms, without nnU-Net."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from isopose.errors import InputError
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, write_labels
from isopose.phantom import write_cohort
from isopose.progress import Silent
from isopose.study.arms import BY_NAME, Peer
from isopose.study.homogenized import SECONDS, homogenize_patients
from isopose.study.results import StudyRun


class Oracle:
    """A stand-in for nnU-Net that predicts the homogenized reference."""

    def predict_from_files_sequential(self, inputs: list[list[str]], outputs: list[str]) -> None:
        [[source]], [target] = inputs, outputs
        labels = Path(source).parents[1] / "labelsTs" / Path(source).name.replace("_0000", "")
        shutil.copy(labels, f"{target}.nii.gz")


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("homogenized") / "children"
    write_cohort(folder, cases=3, slices=5, size=96, seed=2, test_fraction=0.67)
    # Stored values that are not 1, 2, as nnU-Net wants them.
    for path in folder.glob("labels*/*.nii.gz"):
        labels = read_labels(path)
        write_labels(labels.with_array(np.array([0, 1, 7], dtype=np.uint8)[labels.array]), path)
    described = json.loads((folder / "dataset.json").read_text())
    described["labels"]["tumor"] = 7
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def test_predictions_are_restored_to_the_patients_position(children: Path, tmp_path: Path) -> None:
    root = tmp_path / "raw" / "Dataset001_study"
    result = homogenize_patients(open_dataset(children), root, 192, Silent())
    assert result.learned == ("phantom_000",)
    assert sorted(path.name for path in (root / "imagesTr").iterdir()) == ["phantom_000_0000.nii.gz"]
    for case in ("phantom_001", "phantom_002"):
        taken = result.predict(Oracle(), case, tmp_path / "upright", tmp_path / "predictions")
        assert taken["cpu_seconds"] > result.seconds[case]["cpu_seconds"] > 0
        truth = read_labels(children / "labelsTs" / f"{case}.nii.gz")
        back = read_labels(tmp_path / "predictions" / f"{case}.nii.gz")
        assert back.same_grid(truth)
        for value in (1, 7):
            both = 2.0 * np.count_nonzero((back.array == value) & (truth.array == value))
            dice = both / (np.count_nonzero(back.array == value) + np.count_nonzero(truth.array == value))
            assert dice > 0.9, (case, value, dice)


def test_the_time_of_shared_preparation_counts_in_every_run(
    children: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dataset = tmp_path / "raw" / "Dataset001_study", open_dataset(children)
    first = homogenize_patients(dataset, root, 64, Silent())
    row = first.row
    assert row["cpu_seconds"] == first.seconds["phantom_000"]["cpu_seconds"] > 0, "not the tested ones'"
    written_ns = (root / "imagesTr" / "phantom_000_0000.nii.gz").stat().st_mtime_ns
    # Stopped between a case and its time: that case alone is made and timed again.
    kept = json.loads((root.parent / SECONDS).read_text())
    del kept["phantom_001"]
    (root.parent / SECONDS).write_text(json.dumps(kept))
    again = homogenize_patients(dataset, root, 64, Silent())
    assert again.row == row
    assert again.seconds["phantom_001"]["cpu_seconds"] > 0.2 * first.seconds["phantom_001"]["cpu_seconds"]
    assert (root / "imagesTr" / "phantom_000_0000.nii.gz").stat().st_mtime_ns == written_ns
    # The next seed homogenizes nothing, and its curve begins as late as the first one's.
    monkeypatch.setattr("isopose.study.homogenized.homogenize", None)
    assert homogenize_patients(dataset, root, 64, Silent()).row == row
    epoch = {"stage": "unet", "epoch": 1, "seconds": 12.0, "cpu_seconds": 20.0, "validation_seconds": 2.0,
             "dice kidney": 0.5}  # fmt: skip
    run = StudyRun("", 0, 0, (row, epoch), {}, {}, None, {})  # type: ignore[arg-type]
    assert run.curve("dice kidney") == [(pytest.approx(row["seconds"] + 10.0), 0.5)]
    assert run.seconds("cpu_seconds") == {"homogenize": row["cpu_seconds"], "unet": 20.0}


def test_a_patient_that_cannot_be_homogenized_stops_the_arm(children: Path, tmp_path: Path) -> None:
    """Otherwise the arm would be scored on fewer patients than the others."""
    broken = tmp_path / "broken"
    shutil.copytree(children, broken)
    (broken / "imagesTr" / "phantom_000_0000.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"phantom_000.*\(1 in total; leave out the patients or the arm\)"):
        homogenize_patients(open_dataset(broken), tmp_path / "raw" / "Dataset001_study", 64, Silent())


def test_arms_that_share_their_data_share_a_folder() -> None:
    homogenized = [BY_NAME[f"nnunet-homogenized{end}"].peer for end in ("", "-unturned")]
    assert [peer and peer.store for peer in homogenized] == ["nnunet-homogenized"] * 2
    assert [peer and peer.turned for peer in homogenized] == [True, False]
    assert Peer().store == "nnunet"
