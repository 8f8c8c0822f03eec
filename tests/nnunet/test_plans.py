import json
import subprocess
import sys

import pytest

from isopose.errors import InputError
from isopose.nnunet.plans import LOWEST_HU, SEEN_FROM_KEY, keeping_fat, write_plans

PLANS = {
    "plans_name": "nnUNetPlans",
    "configurations": {
        "2d": {"data_identifier": "nnUNetPlans_2d", "batch_size": 12},
        "3d_cascade": {"inherits_from": "3d_fullres"},
    },
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 97.0, "percentile_00_5": 6.0, "percentile_99_5": 225.0}
    },
}


@pytest.fixture
def planned(tmp_path, monkeypatch):
    folder = tmp_path / "Dataset007_Kidneys"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return folder


def test_keeping_fat_changes_only_the_lower_clip():
    kept = keeping_fat(PLANS)
    assert kept["plans_name"] == "nnUNetPlansIsopose"
    assert kept["configurations"] == {
        "2d": {"data_identifier": "nnUNetPlansIsopose_2d", "batch_size": 12},
        "3d_cascade": {"inherits_from": "3d_fullres"},
    }
    assert kept["foreground_intensity_properties_per_channel"]["0"] == {
        "mean": 97.0, "percentile_00_5": LOWEST_HU, "percentile_99_5": 225.0, SEEN_FROM_KEY: 6.0
    }  # fmt: skip
    assert PLANS["plans_name"] == "nnUNetPlans"


def test_a_lower_clip_below_fat_is_kept():
    wide = {**PLANS, "foreground_intensity_properties_per_channel": {"0": {"percentile_00_5": -990.0}}}
    assert keeping_fat(wide)["foreground_intensity_properties_per_channel"]["0"]["percentile_00_5"] == -990.0


@pytest.mark.parametrize("dataset", ["7", "Dataset007_Kidneys"])
def test_plans_are_written_beside_nnunets_own(planned, dataset):
    path = write_plans(dataset)
    assert path == planned / "nnUNetPlansIsopose.json"
    assert json.loads(path.read_text()) == keeping_fat(PLANS)
    assert json.loads((planned / "nnUNetPlans.json").read_text()) == PLANS


def test_missing_plans_and_other_modalities_are_refused(planned, monkeypatch):
    with pytest.raises(InputError, match=r"expected one dataset 8 with nnUNetPlans.json, found 0"):
        write_plans("8")
    (planned / "nnUNetPlans.json").write_text(json.dumps({"plans_name": "nnUNetPlans"}))
    with pytest.raises(InputError, match="expected nnU-Net's plans of a CT"):
        write_plans("7")
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(InputError, match="nnUNet_preprocessed"):
        write_plans("7")


def test_the_command_prints_the_next_step_and_fails_in_one_line(planned):
    def run(dataset):
        return subprocess.run(
            [sys.executable, "-m", "isopose.nnunet", dataset], capture_output=True, text=True
        )

    process = run("7")
    assert process.returncode == 0
    assert "next: nnUNetv2_preprocess -d 7 -plans_name nnUNetPlansIsopose -c 2d" in process.stdout
    assert (planned / "nnUNetPlansIsopose.json").is_file()
    failed = run("8")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr
