"""nnU-Net v2 as an arm, where it is installed (``make test-peers``), on the study's patients."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from isopose.geometry.volume import Volume
from isopose.homogenize.record import read_record, record_path
from isopose.homogenize.warping import restored_labels
from isopose.io.images import read_labels
from isopose.phantom import write_cohort
from isopose.study import nnunet, nnunet_trainer
from isopose.study.arms import BY_NAME

pytestmark = [
    pytest.mark.skipif(not nnunet.available(), reason="nnunetv2 is not installed (extra: nnunet)"),
    pytest.mark.slow,
]

SETTINGS = (
    *("data.size=64", "unet.base_features=4", "unet.optimizer.epochs=3", "unet.optimizer.iterations=4"),
    *("unet.optimizer.batch_size=4", "train.folds=3", "train.device=cpu"),
)

HOMOGENIZED = ("nnunet-homogenized", "nnunet-homogenized-unturned")
#: The second of the homogenized arms differs in its augmentation alone, which has a test of its own.
ARMS = ("nnunet", "nnunet-plain", "nnunet-pose", HOMOGENIZED[0])


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nnunet") / "children"
    write_cohort(folder, cases=6, slices=6, size=64, test_fraction=0.34)
    # Stored values that are not 1, 2, as nnU-Net wants them.
    for path in (*folder.glob("labels*/*.nii.gz"),):
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        changed = sitk.GetImageFromArray(np.where(array == 2, 7, array))
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(path))
    described = json.loads((folder / "dataset.json").read_text())
    described["labels"] = {"background": 0, "kidney": 1, "tumor": 7}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def command(children: Path, output: Path, *arms: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return [sys.executable, "-m", "isopose", "study", str(children), "--output", str(output), *settings,
            "--arms", ",".join(arms), "--workers", "1"]  # fmt: skip


def test_nnunet_trains_and_predicts_the_studys_patients(children: Path, tmp_path: Path) -> None:
    process = subprocess.run(command(children, tmp_path / "study", *ARMS), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"report: {tmp_path / 'study' / 'report.html'}\n"
    raw = tmp_path / "study" / "stores" / "nnunet-fold-0" / "raw" / nnunet.NAME
    # No test patient is used for planning, normalization or training.
    assert sorted(p.name for p in (raw / "labelsTr").iterdir()) == [
        f"phantom_{n:03d}.nii.gz" for n in range(4)
    ]
    assert set(np.unique(read_labels(raw / "labelsTr" / "phantom_000.nii.gz").array)) <= {0, 1, 2}
    for arm in ARMS:
        run = tmp_path / "study" / "runs" / "default" / arm / "seed-0-fold-0"
        result = json.loads((run / "result.json").read_text())
        rows = result["history"]
        if arm in HOMOGENIZED:
            before, *rows = rows
            assert before["stage"] == "homogenize"
            assert before["cpu_seconds"] > 0
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert all(row["seconds"] > row["validation_seconds"] > 0 for row in rows)
        assert all(row["cpu_seconds"] > 0 for row in rows)
        assert all(row["slices_a_batch"] == 4 for row in rows)
        assert result["made"]["nnunetv2"]
        assert result["made"]["precision"] == "32-true"
        checkpoints = [path.name for path in run.glob("results/*/*/fold_0/*.pth")]
        assert sorted(checkpoints) == ["checkpoint_best.pth", "checkpoint_final.pth"], "none in part"
        assert any("dice kidney" in row for row in rows)
        assert result["size"]["parameters"] > 1e5
        assert set(result["measures"]["predict"]) == {"phantom_004", "phantom_005"}
        for case in ("phantom_004", "phantom_005"):
            predicted = read_labels(run / "predictions" / f"{case}.nii.gz")
            assert predicted.same_grid(read_labels(children / "labelsTs" / f"{case}.nii.gz"))
            assert set(np.unique(predicted.array)) <= {0, 1, 7}
            if arm in HOMOGENIZED:
                _check_restored(tmp_path / "study" / "stores", run, case, predicted)
    with open(tmp_path / "study" / "runs.csv", newline="") as file:
        assert {row["arm"] for row in csv.DictReader(file)} == set(ARMS)


def _check_restored(stores: Path, run: Path, case: str, predicted: Volume) -> None:
    """Assert that the result is nnU-Net's prediction of the homogenized scan, restored by its transform."""
    root = stores / "nnunet-homogenized-fold-0" / "raw" / nnunet.NAME
    # Trained on is what lies there, at the pixels of the study's own arms.
    assert read_labels(root / "labelsTr" / "phantom_000.nii.gz").array.shape[1:] == (64, 64)
    upright = read_labels(run / "upright" / f"{case}.nii.gz")
    back = restored_labels(upright, read_record(record_path(root, case)).transform)
    np.testing.assert_array_equal(np.array([0, 1, 7], dtype=np.uint8)[back.array], predicted.array)


def test_only_rotation_and_scaling_are_removed_from_the_augmentation() -> None:
    parameters = {"patch_size": (64, 64), "rotation_for_DA": (-3.0, 3.0), "deep_supervision_scales": None,
             "mirror_axes": (0, 1), "do_dummy_2d_data_aug": False}  # fmt: skip
    turned, still = (
        nnunet_trainer.make_trainer_class(BY_NAME[arm].peer).get_training_transforms(**parameters)
        for arm in HOMOGENIZED
    )
    assert [type(each) for each in turned.transforms] == [type(each) for each in still.transforms]
    assert (turned.transforms[0].p_rotation, turned.transforms[0].p_scaling) == (0.2, 0.2)
    image = torch.rand(1, 64, 64)
    for _ in range(40):
        spatial = still.transforms[0]
        torch.testing.assert_close(spatial(image=image)["image"], image)
    assert any(not torch.equal(turned.transforms[0](image=image)["image"], image) for _ in range(40))


def test_a_stopped_training_is_continued(children: Path, tmp_path: Path) -> None:
    arguments = command(children, tmp_path / "study", "nnunet-homogenized")
    run = tmp_path / "study" / "runs" / "default" / "nnunet-homogenized" / "seed-0-fold-0"
    history = run / "history.json"
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(6000):
        time.sleep(0.1)
        if history.exists():
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    first = json.loads(history.read_text())
    assert len(first) < 3
    finished = subprocess.run(arguments, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(history.read_text())
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0] == first[0], "what was trained was not trained again"
    result = json.loads((run / "result.json").read_text())
    assert [row["stage"] for row in result["history"]] == ["homogenize", *["unet"] * 3]
