"""Homogenization before nnU-Net v2, end to end; needs nnU-Net (``make test-peers``)."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from isopose.io.images import read_labels, read_volume
from isopose.phantom import write_cohort
from isopose.study.nnunet import available
from scripts import ran

#: nnU-Net's own trainer but for its length.
BRIEF = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerBrief(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 3, 1
"""


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="nnunetv2 is not installed (extra: nnunet)")
def test_the_example_plans_trains_predicts_restores_and_evaluates(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=7, slices=6, size=96, test_fraction=0.28)
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "brief.py").write_text(BRIEF)
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    settings = {
        "PATH": os.pathsep.join(paths),
        "DEVICE": "cpu",
        "TRAINER": "nnUNetTrainerBrief",
        "FOLD": "0",
        "SIZE": "128",
        "nnUNet_extTrainer": str(tmp_path / "trainers"),
        "nnUNet_compile": "f",
        "nnUNet_n_proc_DA": "1",
    }
    output = ran("examples/homogenize_for_nnunet.sh", cohort, tmp_path / "work", env=settings)
    # nnU-Net's own check of the dataset.
    assert "verify_dataset_integrity Done." in output
    plans = json.loads((tmp_path / "work/preprocessed/Dataset501_Upright/nnUNetPlans.json").read_text())
    size = plans["original_median_shape_after_transp"][1:]
    assert size[0] == size[1] >= 128
    scored = json.loads((tmp_path / "work" / "scores" / "scores.json").read_text())
    tests = sorted((cohort / "imagesTs").glob("*_0000.nii.gz"))
    assert len(tests) == len(scored["cases"]) == 2
    for scan in tests:
        name = scan.name.removesuffix("_0000.nii.gz")
        labels = read_labels(tmp_path / "work" / "restored" / f"{name}.nii.gz")
        assert labels.same_grid(read_volume(scan), 1e-4)
        predicted = read_labels(tmp_path / "work" / "predicted" / f"{name}.nii.gz").array
        # After six steps it marks much or nothing; what it marks comes back.
        assert set(np.unique(labels.array)) <= set(np.unique(predicted))
