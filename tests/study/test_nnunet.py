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

from isopose.io.images import read_labels
from isopose.phantom import write_cohort
from isopose.study import nnunet

pytestmark = [
    pytest.mark.skipif(not nnunet.available(), reason="nnunetv2 is not installed (extra: nnunet)"),
    pytest.mark.slow,
]

SETTINGS = (
    *("data.size=64", "unet.base_features=4", "unet.optimizer.epochs=3", "unet.optimizer.iterations=4"),
    *("unet.optimizer.batch_size=4", "train.folds=3", "train.device=cpu"),
)

ARMS = ("nnunet", "nnunet-plain", "nnunet-pose")


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
    done = subprocess.run(command(children, tmp_path / "study", *ARMS), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report: {tmp_path / 'study' / 'report.html'}\n"
    raw = tmp_path / "study" / "stores" / "nnunet-fold-0" / "raw" / nnunet.NAME
    # No patient who is tested on is planned, normalized or trained with.
    assert sorted(p.name for p in (raw / "labelsTr").iterdir()) == [
        f"phantom_{n:03d}.nii.gz" for n in range(4)
    ]
    assert set(np.unique(read_labels(raw / "labelsTr" / "phantom_000.nii.gz").array)) <= {0, 1, 2}
    for arm in ARMS:
        run = tmp_path / "study" / "runs" / "default" / arm / "seed-0-fold-0"
        result = json.loads((run / "result.json").read_text())
        rows = result["history"]
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
    with open(tmp_path / "study" / "runs.csv", newline="") as file:
        assert {row["arm"] for row in csv.DictReader(file)} == set(ARMS)


def test_a_training_that_is_stopped_goes_on(children: Path, tmp_path: Path) -> None:
    given = command(children, tmp_path / "study", "nnunet")
    history = tmp_path / "study" / "runs" / "default" / "nnunet" / "seed-0-fold-0" / "history.json"
    process = subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(6000):
        time.sleep(0.1)
        if history.exists():
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    first = json.loads(history.read_text())
    assert len(first) < 3
    done = subprocess.run(given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(history.read_text())
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0] == first[0], "what was trained was not trained again"
