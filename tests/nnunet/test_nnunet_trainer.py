"""The trainer in the real nnU-Net v2, where it is installed (``make test-peers``)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isopose.io.images import read_labels, read_volume
from isopose.nnunet import trainers_folder
from isopose.phantom import write_cohort
from isopose.study.nnunet import available

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="nnunetv2 is not installed (extra: nnunet)"),
]

#: By ``python -m isopose.nnunet``.
PLANS = "nnUNetPlansIsopose"
#: The trainer but for its length.
BRIEF = """
import torch
from isopose.nnunet.trainers.nnUNetTrainerIsopose import nnUNetTrainerIsopose


class nnUNetTrainerIsoposeBrief(nnUNetTrainerIsopose):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 3, 1
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """nnU-Net's folders with a planned dataset, and the environment that names them."""
    root = tmp_path_factory.mktemp("nnunet")
    write_cohort(root / "raw" / "Dataset502_Children", cases=6, slices=6, size=96, seed=3, test_fraction=0.17)
    (root / "brief").mkdir()
    (root / "brief" / "brief.py").write_text(BRIEF)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "preprocessed"),
        "nnUNet_results": str(root / "results"),
        "nnUNet_extTrainer": os.pathsep.join([str(trainers_folder()), str(root / "brief")]),
        "nnUNet_n_proc_DA": "1",
    }
    run(environment, "nnUNetv2_plan_and_preprocess", "-d", "502", "-c", "2d", "3d_fullres", "-np", "2")
    output = run(environment, sys.executable, "-m", "isopose.nnunet", "502")
    command = output.split("next: ")[1].split()
    assert command[0] == "nnUNetv2_preprocess"
    run(environment, *command, "-np", "2")
    return root, environment


def run(environment, *command, fails=False):
    process = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert (process.returncode != 0) == fails, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout + process.stderr


def test_the_trainer_trains_and_predicts_through_nnunets_commands(planned):
    root, environment = planned
    name = "nnUNetTrainerIsoposeBrief"
    run(environment, "nnUNetv2_train", "502", "2d", "0", "-tr", name, "-p", PLANS, "-device", "cpu")
    images = root / "raw" / "Dataset502_Children" / "imagesTs"
    run(
        environment, "nnUNetv2_predict", "-i", images, "-o", root / "predicted", "-d", "502", "-c", "2d",
        "-f", "0", "-tr", name, "-p", PLANS, "-device", "cpu", "-npp", "1", "-nps", "1",
    )  # fmt: skip
    [scan] = images.glob("*.nii.gz")
    labels = read_labels(root / "predicted" / scan.name.replace("_0000", ""))
    assert labels.same_grid(read_volume(scan), 1e-4)
    assert set(np.unique(labels.array)) <= {0, 1, 2}


def test_nnunet_finds_the_trainer_and_it_refuses_unsuitable_configurations(planned):
    _, environment = planned
    trainer = ("-tr", "nnUNetTrainerIsopose", "-device", "cpu")
    output = run(environment, "nnUNetv2_train", "502", "3d_fullres", "0", *trainer, fails=True)
    assert "expected a 2D configuration, got 3d_fullres" in output
    output = run(environment, "nnUNetv2_train", "502", "2d", "0", *trainer, fails=True)
    assert "expected plans that keep fat" in output
    assert "python -m isopose.nnunet" in output
