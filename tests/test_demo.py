import json
import re
from pathlib import Path

import pytest

import isopose.demo as demo
from isopose.errors import InputError, IsoposeError
from isopose.models.folder import load_model
from isopose.outputs import Outcome
from isopose.presets import load_config
from reporters import RecordingReporter

pytestmark = pytest.mark.slow

TINY = {
    "data": {"size": 64},
    "pose": {"size": 32, "optimizer": {"epochs": 1, "min_epochs": 1, "iterations": 2, "batch_size": 2}},
    "crop": {"size": 32, "optimizer": {"epochs": 1, "min_epochs": 1, "iterations": 2, "batch_size": 2}},
    "unet": {
        "base_features": 2,
        "optimizer": {"epochs": 2, "min_epochs": 2, "iterations": 3, "batch_size": 2},
    },
    "train": {"validation_slices": 4, "folds": 2},
}


def shrink(patch) -> None:
    small = {"CASES": 6, "TEST_FRACTION": 0.34, "SLICES": 6, "SIZE": 64, "SMALL_PRESET": TINY}
    for name, value in small.items():
        patch.setattr(demo, name, value)
    without = {
        **TINY,
        "pose": {"start": "identity", "learned": False, "size": 32},
        "crop": {"enabled": False},
        "unet": {**TINY["unet"], "pose_jitter": 0.0},
    }
    patch.setattr(demo, "NOT_HOMOGENIZED_PRESET", without)


def times(folder: Path) -> dict[str, int]:
    """Return modification times of all files but the cohort's lists, scores and report."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and "scores" not in path.parts and path.parent not in (folder, folder / "cohort")
    }


@pytest.fixture(scope="module")
def demo_runs(tmp_path_factory):
    """The whole demo, small, run twice: folder, and for each run report, messages and file times."""
    folder = tmp_path_factory.mktemp("demo")
    runs = []
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        for _ in range(2):
            reporter = RecordingReporter()
            report = demo.run_demo(folder, workers=0, seed=1, reporter=reporter)
            runs.append((report, reporter.lines, times(folder)))
    return folder, runs


def test_the_report_shows_both_arms(demo_runs):
    folder, runs = demo_runs
    report, lines, _ = runs[0]
    assert report == folder / "report.html"
    html = report.read_text()
    for arm in ("with", "without"):
        scores = json.loads((folder / arm / "scores" / "scores.json").read_text())
        dice = scores["summary"]["all"]["all"]["kidney"]["dice"]["mean"]
        line = next(text for text in lines if text.strip().startswith(f"{arm} homogenization: "))
        assert f"kidney Dice {dice:.3f}" in line
        assert "tumor Dice" in line
        assert f"{arm.capitalize()} homogenization" in html
        # Nobody's test patient was trained on.
        assert sorted(case["case"] for case in scores["cases"]) == ["phantom_004", "phantom_005"]
        assert not any(
            "used to train" in warning
            for record in (folder / arm / "predictions").glob("*.json")
            for warning in json.loads(record.read_text())["warnings"]
        )
    # Three patients' steps and two arms' curves, within the one file.
    assert html.count("data:image/png;base64,") + html.count("data:image/svg+xml") >= 5
    assert not re.search(r"""(src|href)=["']?https?:""", html)
    # A short demo is no test of any preset, and says so.
    assert "2 of 2 slices: shortened, the default preset has 3000" in html
    assert "does not test the paper preset" in html
    assert re.search(r"Test patients.{0,80}\b2\b", html, re.S)
    assert lines[-1] == "these results are from phantoms and say nothing about patients"


def test_both_arms_have_the_same_network_and_steps(demo_runs):
    folder, _ = demo_runs
    configs = {
        arm: json.loads((folder / arm / "model" / "model.json").read_text())["config"]
        for arm in ("with", "without")
    }
    for key in ("base_features", "input", "optimizer"):
        assert configs["with"]["unet"][key] == configs["without"]["unet"][key]
    assert configs["with"]["data"] == configs["without"]["data"]
    assert configs["with"]["train"] == configs["without"]["train"]
    assert configs["without"]["pose"]["start"] == "identity"
    assert configs["with"]["pose"]["start"] == "anatomy"


def test_the_constants_of_both_arms_are_comparable():
    for key in ("data", "train"):
        assert demo.NOT_HOMOGENIZED_PRESET[key] == demo.SMALL_PRESET[key]
    for key in ("base_features", "optimizer"):
        assert demo.NOT_HOMOGENIZED_PRESET["unet"][key] == demo.SMALL_PRESET["unet"][key]
    assert not demo.NOT_HOMOGENIZED_PRESET["crop"]["enabled"]


def test_a_second_call_repeats_nothing(demo_runs):
    _, runs = demo_runs
    (first, messages, before), (second, second_messages, after) = runs
    assert first == second
    changed = sorted(name for name in before if before[name] != after.get(name))
    assert changed == []
    assert set(after) == set(before)
    assert any("finished already" in line for line in second_messages)
    assert not any("finished already" in line for line in messages)
    first_results, second_results = (
        [re.sub(r"\(\d+ s\)", "", line) for line in lines if " Dice " in line]
        for lines in (messages, second_messages)
    )
    assert len(first_results) == 2
    assert first_results == second_results


def test_a_patient_that_cannot_be_predicted_ends_the_demo(demo_runs, monkeypatch):
    folder, _ = demo_runs
    shrink(monkeypatch)
    monkeypatch.setattr(
        demo,
        "predict_scans",
        lambda model, scans, *a, **k: [Outcome(scans[0].name, None, "phantom_004: broken")],
    )
    with pytest.raises(IsoposeError, match="1 test patients could not be predicted: phantom_004: broken"):
        demo.run_demo(folder, workers=0, seed=1, reporter=RecordingReporter())


def test_both_arms_differ_in_homogenization_alone() -> None:
    ours, plain = (load_config(base=dict(base)) for base in (demo.SMALL_PRESET, demo.NOT_HOMOGENIZED_PRESET))
    assert (plain.unet, plain.data, plain.train) == (ours.unet, ours.data, ours.train)
    assert not plain.pose_estimated
    assert not plain.crop.enabled


def test_both_arms_are_configured_for_mr(tmp_path, monkeypatch):
    shrink(monkeypatch)
    report = demo.run_demo(tmp_path, workers=0, seed=1, reporter=RecordingReporter(), modality="mr")
    assert re.search(r"Images\W.{,40}\bMR\b", report.read_text(), re.DOTALL)
    arms = [load_model(tmp_path / arm / "model") for arm in ("with", "without")]
    assert [arm.modality for arm in arms] == ["mr", "mr"]
    assert arms[0].config.pose.contrast == "any"
    with pytest.raises(InputError, match="cohort"):
        demo.run_demo(tmp_path, workers=0, seed=1, reporter=RecordingReporter())
