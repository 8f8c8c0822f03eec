"""The whole of ``isopose study``, with the smallest runs: resumption, budget, report; once in processes."""

import csv
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isopose.api.homogenizer import Homogenizer
from isopose.api.images import as_volume
from isopose.api.pipeline import Pipeline
from isopose.errors import InputError, IsoposeError
from isopose.files import only_writer, write_json
from isopose.io.images import read_labels, write_labels
from isopose.phantom import write_cohort
from isopose.progress import Silent
from isopose.study import job as study_job
from isopose.study import run as study_run
from isopose.study.arms import BY_NAME, UNTRAINED
from isopose.study.job import run_job
from isopose.study.nnunet_trainer import lengths
from isopose.study.plan import Options, PlannedRun
from isopose.study.run import RunFailed, _format_time, run_study
from reporters import RecordingReporter

pytestmark = pytest.mark.long

SMALL = {
    "data": {"size": 64},
    "pose": {"size": 32, "optimizer": {"epochs": 2, "iterations": 2, "batch_size": 4}},
    "crop": {"size": 32, "optimizer": {"epochs": 2, "iterations": 2, "batch_size": 4}},
    "unet": {"base_features": 4, "optimizer": {"epochs": 4, "iterations": 2, "batch_size": 4}},
    "train": {"folds": 3, "device": "cpu"},
}
ARMS = ["plain", "augmented", "crop-half", "direct", "direct-homogenized", "decoder"]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run studies in this process, which is faster; yields the list of folders that were run."""
    ran: list[str] = []

    def start(command: list[str]) -> SimpleNamespace:
        ran.append(command[-1])
        run_job(Path(command[-1]))
        return SimpleNamespace(wait=lambda: 0, poll=lambda: 0)

    monkeypatch.setattr(study_run.subprocess, "Popen", start)
    return ran


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cohorts")
    children = write_cohort(folder / "children", cases=6, slices=5, size=64, test_fraction=0.34)
    adults = write_cohort(
        folder / "adults", cases=4, slices=5, size=64, test_fraction=0.0, population="adult"
    )
    return children, adults


def options(cohorts: tuple[Path, Path], **change) -> Options:
    children, adults = cohorts
    values_of_study = {
        "dataset": children, "labels": None, "presets": ("default",), "seeds": (0,), "folds": 1,
        "settings": (), "values": SMALL, "source": adults, "short_stns": True,
    }  # fmt: skip
    return Options(**values_of_study | change)


def _check_homogenized(output: Path, folder: str, children: Path, modality: str = "ct") -> None:
    """Predictions of the source's model in its reference's pose and size are on each child's own grid."""
    source = next((output / "runs").glob("*/source/*/model"))
    scans = sorted((children / "imagesTs").iterdir())
    assert len(scans) == 2
    for scan in scans:
        case = scan.name.removesuffix("_0000.nii.gz")
        result = read_labels(output / folder / "predictions" / f"{case}.nii.gz")
        homogenizer = Homogenizer(reference=source, modality=modality)
        upright = homogenizer.transform(scan)
        marked = Pipeline.load(source, "cpu").predict(upright.image).labels
        expected = as_volume(homogenizer.inverse_transform(marked, upright))
        assert result.same_grid(expected)
        np.testing.assert_array_equal(result.array, expected.array)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_of_mr_finds_bodies_and_poses_in_mr(tmp_path: Path, in_process: list[str]) -> None:
    children, adults = (
        write_cohort(tmp_path / name, cases=5, slices=4, size=64, modality="mr", **more)
        for name, more in (
            ("children", {"test_fraction": 0.4}),
            ("adults", {"test_fraction": 0.0, "population": "adult"}),
        )
    )
    arms, output = ["pose", "direct-homogenized"], tmp_path / "study"
    # The paper's STN1 learns the roll itself.
    study_options = options((children, adults), presets=("paper",))
    page = run_study(output, study_options, arms=arms, reporter=Silent()).read_text()
    assert "STN1 and STN2 in each run" in page
    assert "<dt>Channels</dt><dd>MR</dd>" in page
    runs = {row["arm"]: row for row in rows(output / "runs.csv") if row["stage"] in ("pose", "")}
    assert 0 <= float(runs["pose"]["roll_degrees_from_truth"]) <= 180
    truth = {case["case"]: case for case in json.loads((children / "phantom.json").read_text())["cases"]}
    for row in rows(output / "scores.csv"):
        # A turned body's box is up to a third wider or narrower.
        assert 0.7 < float(row["body_size_mm"]) / truth[row["case"]]["body_width_mm"] < 1.4
    folder = next((output / "runs").glob("*/direct-homogenized/*")).relative_to(output)
    _check_homogenized(output, str(folder), children, "mr")


def test_a_whole_study_writes_estimate_results_and_report(
    cohorts, tmp_path: Path, in_process: list[str]
) -> None:
    reporter = RecordingReporter()
    output = tmp_path / "study"
    report = run_study(output, options(cohorts), arms=ARMS, reporter=reporter)
    assert report == output / "report.html"
    # Tried are the arms that train anew; the source is trained before what begins from it.
    tried = [Path(folder).parts[-2] for folder in in_process if "tried" in folder]
    ran = [Path(folder).parts[-2] for folder in in_process if "runs" in folder]
    assert tried == ["plain", "augmented", "crop-half", "source"]
    assert ran == ["plain", "augmented", "crop-half", "source", "direct", "direct-homogenized", "decoder"]
    assert not list((output / "tried").glob("*/*/seed*"))
    assert any(re.search(r"7 of 7 runs to do, about \d+ s of training", line) for line in reporter.lines)

    # Every score and every stage of every run, and each with its folder.
    scores = rows(output / "scores.csv")
    assert {(row["arm"], row["case"]) for row in scores} == {
        (arm, case) for arm in ARMS for case in ("phantom_004", "phantom_005")
    }
    assert {row["target"] for row in scores} == {"kidney", "tumor", "kidney+tumor"}
    assert all(60 < float(row["body_size_mm"]) < 500 for row in scores)
    stages = {(row["arm"], row["stage"]): row for row in rows(output / "runs.csv")}
    trained = {(arm, "unet") for arm in (*ARMS, "source") if arm not in UNTRAINED}
    assert set(stages) == trained | {("crop-half", "crop"), *((arm, "") for arm in UNTRAINED)}
    homogenized = stages.pop(("direct-homogenized", ""))
    assert float(homogenized["predict_seconds_median"]) > 0
    _check_homogenized(output, homogenized["folder"], cohorts[0])
    direct = stages.pop(("direct", ""))
    assert (direct["seconds"], direct["epochs"]) == ("0.0", "0"), "nothing is trained"
    assert float(direct["predict_seconds_median"]) > 0
    assert (output / direct["folder"] / "result.json").exists()
    for row in stages.values():
        assert (row["device"], row["threads"]) == ("cpu", str(torch.get_num_threads()))
        assert row["processor"]
        assert (output / row["folder"] / "result.json").exists()
        assert float(row["memory_peak_mb"]) >= float(row["memory_before_mb"]) > 50
        assert float(row["cpu_seconds"]) > 0
    assert stages["plain", "unet"]["epochs"] == "4"

    page, text = report.read_text(), (output / "report.md").read_text()
    for word in (
        "Table 1: transfer learning",
        "Table 2: normalization of pose",
        "Table 3: the crop",
        "88.07 (5.61)",
    ):
        assert word in page
        assert word in text
    assert "Results on phantoms" in page
    assert page.count("data:image/png") >= 6
    figures = re.findall(r"!\[.*\]\((.*)\)\n\n\*(.*)\.\* (.*)", text)
    for figure, *_ in figures:
        assert (output / figure).read_bytes().startswith(b"\x89PNG")
    names = ["boxes", "curves", "size", "steps-best", "steps-median", "steps-worst"]
    # Fewer patients than pictures: one who is the median is also another.
    assert [name for _, name, _ in figures] == [f"default-{name}" for name in names]
    assert "of runs/default/crop-half/seed-0-fold-0, step by step" in figures[-1][2]
    assert "* Training and validation patients: 4\n* Test patients: 2\n" in text
    assert re.search(r"\* Hardware and versions: cpu, .+, \d+ threads; isopose .+, torch .+\n", text)
    assert "may come from different machines" not in text
    # Table 3 begins with the U-Net on whole slices, the paper's memory beside it.
    third = text[text.index("Table 3: the crop") :]
    heading, _, *lines = third.split("\n\n")[1].splitlines()
    names = [name.strip() for name in heading.split("|")]
    cells = [dict(zip(names, (cell.strip() for cell in line.split("|")), strict=True)) for line in lines]
    assert [(row["Arm"], row["U-Net input"], row["Paper: memory (GB)"]) for row in cells] == [
        ("plain", "whole slice", "10.05"),
        ("augmented", "whole slice", "10.05"),
        ("crop-half", "half", "3.52"),
    ]
    tex = (output / "tables.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 3
    assert "20.83 (35.55)" in tex
    # STN2 was trained in four steps, which was asked for and is said beside the table.
    short = "STN2 was shortened in crop-half (4 of 3,000 steps): this does not test the default preset."
    assert short in text
    assert short in tex
    assert short in page
    result = json.loads((output / "runs/default/crop-half/seed-0-fold-0/result.json").read_text())
    lengths = {"steps": 4, "preset_steps": 3000, "slices": 16, "preset_slices": 48000}
    assert result["stn"] == {"lengths": {"STN2": lengths}, "turning": None}
    # The side of each tumor is known of phantoms; kidneys are on both.
    assert set(result["sides"]["tumor"]["known"]) <= {"phantom_004", "phantom_005"}
    assert result["sides"]["kidney"]["known"] == []
    for caption in ("Failures", "Validation Dice during training", "Scores over patients"):
        assert caption in text
    assert "Primary comparisons" not in text, "none of them was run"
    whole = json.loads((output / "study-results.json").read_text())
    numbers = whole["presets"]["default"]["arms"]["plain"]
    base = whole["presets"]["default"]["arms"]["augmented"]
    assert 0 < base["cpu_seconds_to_baseline"]["kidney"]["seed-0-fold-0"] <= base["cpu_seconds"]
    assert set(numbers["predict"][0]) == {"phantom_004", "phantom_005"}
    dice = [float(r["dice"]) for r in scores if (r["arm"], r["target"]) == ("plain", "kidney")]
    assert numbers["scores"]["kidney"]["dice"]["mean"] == pytest.approx(sum(dice) / len(dice))
    assert numbers["size"]["unet_multiply_adds"] > numbers["size"]["unet_parameters"]

    # The same again runs nothing; another seed runs that seed alone.
    in_process.clear()
    run_study(output, options(cohorts), arms=ARMS, reporter=reporter)
    assert in_process == []
    run_study(output, options(cohorts, seeds=(0, 1)), arms=["plain"], reporter=reporter)
    assert [Path(folder).name for folder in in_process] == ["seed-1-fold-0"]
    assert {row["seed"] for row in rows(output / "scores.csv") if row["arm"] == "plain"} == {"0", "1"}
    assert {row["seed"] for row in rows(output / "scores.csv") if row["arm"] == "decoder"} == {"0"}


def test_the_source_model_is_trained_only_if_needed(cohorts, tmp_path: Path, in_process: list[str]) -> None:
    """A study that was copied without its models trains the source model again if an arm needs it."""
    output = tmp_path / "study"
    run_study(output, options(cohorts), arms=["decoder"], reporter=Silent())
    shutil.rmtree(output / "runs" / "default" / "source" / "seed-0-fold-0" / "model")
    in_process.clear()
    run_study(output, options(cohorts), arms=["decoder"], reporter=Silent())
    assert in_process == []
    run_study(output, options(cohorts), arms=["decoder", "direct"], reporter=Silent())
    assert [Path(folder).parts[-2] for folder in in_process if "runs" in folder] == ["source", "direct"]
    # Without what was estimated it is tried again, though it is there.
    (output / "estimate.json").unlink()
    in_process.clear()
    run_study(output, options(cohorts), arms=["all"], reporter=Silent())
    assert [Path(folder).parts[-4::2] for folder in in_process] == [("tried", "source"), ("runs", "all")]


def test_the_source_dataset_has_its_own_labels(cohorts, tmp_path: Path, in_process: list[str]) -> None:
    """The option --label applies to the target; label values of the source may differ."""
    children, adults = cohorts
    turned = tmp_path / "turned"
    shutil.copytree(children, turned)
    for path in turned.glob("labelsT?/*.nii.gz"):
        labels = read_labels(path)
        write_labels(labels.with_array(np.array([0, 2, 1], dtype=np.uint8)[labels.array]), path)
    study_options = options((turned, adults), labels={"tumor": 1, "kidney": 2}, presets=("default",))
    with pytest.raises(InputError, match="kidney, tumor, the dataset tumor, kidney: expected the same"):
        run_study(tmp_path / "other", study_options, arms=["direct"], reporter=Silent())
    study_options = options((children, adults), labels={"kidney": 1, "tumor": 2}, source_labels=None)
    run_study(tmp_path / "study", study_options, arms=["direct"], reporter=Silent())
    job = json.loads((tmp_path / "study/runs/default/source/seed-0-fold-0/job.json").read_text())
    assert job["labels"] is None
    study_options = options(
        (children, adults), labels={"kidney": 1, "tumor": 2}, source_labels={"kidney": 1, "tumor": 9}
    )
    with pytest.raises(InputError, match="holds a study of other source"):
        run_study(tmp_path / "study", study_options, arms=["direct"], reporter=Silent())
    study_options = options((children, adults), source=None, source_labels={"kidney": 1})
    with pytest.raises(InputError, match="--source-label: there is no source"):
        run_study(tmp_path / "none", study_options, arms=["plain"], reporter=Silent())


def test_a_source_that_holds_a_patient_who_is_tested_on_is_refused(cohorts, tmp_path: Path) -> None:
    children, adults = cohorts
    pooled = tmp_path / "pooled"
    shutil.copytree(adults, pooled)
    for kind, end in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        shutil.copy(children / f"{kind}Ts" / f"phantom_004{end}", pooled / f"{kind}Tr" / f"case_x{end}")
    message = r"case_x is the same scan as the test patient phantom_004 \(1 in total\): remove"
    with pytest.raises(InputError, match=message):
        run_study(tmp_path / "study", options((children, pooled)), arms=["plain"], reporter=Silent())
    assert not (tmp_path / "study").exists()


def test_cross_validation_tests_every_patient_once(cohorts, tmp_path: Path, in_process: list[str]) -> None:
    run_study(tmp_path / "study", options(cohorts, folds=3, source=None), arms=["plain"], reporter=Silent())
    scores = [r for r in rows(tmp_path / "study" / "scores.csv") if r["target"] == "kidney"]
    assert sorted(r["case"] for r in scores) == [f"phantom_{n:03d}" for n in range(6)]
    for row in scores:
        folder = tmp_path / "study" / "runs" / "default" / "plain" / f"seed-0-fold-{row['fold']}"
        splits = json.loads((folder / "job.json").read_text())["splits"]
        assert splits[row["case"]] == "test"
        record = json.loads((folder / "predictions" / f"{row['case']}.json").read_text())
        assert not any("was used to" in warning for warning in record["warnings"])


def test_a_budget_shortens_all_arms_equally_and_is_refused_if_too_small(
    cohorts, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second a batch: 8 of each U-Net and 4 of the crop are 20 s of training.
    tried = {"unet batch": 1.0, "unet validation": 0.0}
    crop = {"crop batch": 1.0, "crop validation": 0.0}
    monkeypatch.setattr(
        study_run, "_try_briefly",
        lambda study, job: tried | (crop if job.arm == "crop-half" else {}),
    )  # fmt: skip
    study_options = options(cohorts, source=None)
    arms = ["plain", "crop-half"]
    # 4 s of 5 are the crop's.
    with pytest.raises(
        InputError,
        match=r"leaves 0\.2 of 4 epochs for each U-Net; STN1 and STN2 need 4 s and are not shortened; "
        r"give at least 16 s",
    ):
        run_study(tmp_path / "small", study_options, arms=arms, budget_s=5.0, reporter=Silent())
    run_study(tmp_path / "study", study_options, arms=arms, budget_s=16.0, reporter=Silent())
    epochs = {(r["arm"], r["stage"]): r["epochs"] for r in rows(tmp_path / "study" / "runs.csv")}
    # The crop's two epochs stay, whatever is left for the U-Nets: of 16 s 4 are its own.
    assert epochs == {("plain", "unet"): "3", ("crop-half", "unet"): "3", ("crop-half", "crop"): "2"}
    # Settled: arms that come later are as long, whatever is said then.
    reporter = RecordingReporter()
    run_study(tmp_path / "study", study_options, arms=["augmented"], budget_s=1000.0, reporter=reporter)
    assert any("--budget has no effect" in line for line in reporter.lines)
    assert {r["epochs"] for r in rows(tmp_path / "study" / "runs.csv") if r["stage"] == "unet"} == {"3"}


def test_a_failed_run_is_reported_and_the_others_continue(cohorts, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        study_run, "_try_briefly", lambda study, job: {"unet batch": 0.1, "unet validation": 0.0}
    )
    codes = {"plain": 1, "augmented": 0, "pose": 0}

    def start(command: list[str]) -> SimpleNamespace:
        code = codes[Path(command[-1]).parts[-2]]
        if code == 0:
            run_job(Path(command[-1]))
        return SimpleNamespace(wait=lambda: code, poll=lambda: code)

    monkeypatch.setattr(study_run.subprocess, "Popen", start)
    study_options = options(cohorts, source=None)
    with pytest.raises(IsoposeError, match=r"1 of the runs failed: default plain, seed 0, fold 0 \(code 1\)"):
        run_study(tmp_path / "study", study_options, arms=["plain", "augmented"], reporter=Silent())
    assert {row["arm"] for row in rows(tmp_path / "study" / "scores.csv")} == {"augmented"}
    # One that was stopped stops the study.
    codes["plain"] = 130
    with pytest.raises(IsoposeError, match="default plain, seed 0, fold 0: stopped"):
        run_study(tmp_path / "study", study_options, arms=["plain", "pose"], reporter=Silent())
    codes["plain"] = 0
    run_study(tmp_path / "study", study_options, arms=["plain", "augmented"], reporter=Silent())
    assert {row["arm"] for row in rows(tmp_path / "study" / "scores.csv")} == {"plain", "augmented"}


def test_an_unusable_arm_does_not_stop_the_others(cohorts, tmp_path: Path, in_process, monkeypatch) -> None:
    def tried(study, job):
        if job.arm in ("plain", "source"):
            raise RunFailed(f"{job.name} (code 1)")
        return {"unet batch": 0.1, "unet validation": 0.0}

    monkeypatch.setattr(study_run, "_try_briefly", tried)
    arms = ["plain", "augmented", "direct", "decoder"]
    with pytest.raises(IsoposeError, match="2 of the runs failed: default plain, seed 0, fold 0"):
        run_study(tmp_path / "study", options(cohorts), arms=arms, reporter=Silent())
    assert {row["arm"] for row in rows(tmp_path / "study" / "scores.csv")} == {"augmented"}


def test_an_untimed_prediction_is_repeated(cohorts, tmp_path: Path, in_process, monkeypatch) -> None:
    """If a study stops between a result and its timing, timing the existing result would give zero."""
    run_study(tmp_path / "study", options(cohorts), arms=["plain"], reporter=Silent())
    [folder] = (tmp_path / "study" / "runs").glob("*/*/*")
    measures = json.loads((folder / "measures.json").read_text())
    [first, *others] = measures["predict"]
    del measures["predict"][first]
    (folder / "measures.json").write_text(json.dumps(measures))
    (folder / "result.json").unlink()
    predicted = []
    predict_scans = study_job.predict_scans

    def counted(model, scans, output, **named):
        predicted.extend(scan.name for scan in scans if not (output / f"{scan.name}.json").exists())
        return predict_scans(model, scans, output, **named)

    monkeypatch.setattr(study_job, "predict_scans", counted)
    run_job(folder)
    assert predicted == [first]
    assert list(json.loads((folder / "result.json").read_text())["measures"]["predict"]) == [*others, first]


def test_a_run_of_another_process_is_awaited(tmp_path: Path) -> None:
    """A killed study may leave the process of a run behind; the restarted study waits for it."""
    # Of no dataset at all: had it begun, it would have failed.
    write_json(tmp_path / "job.json", {"splits": {}})
    held = threading.Event()

    def left_behind() -> None:
        with only_writer(tmp_path):
            held.set()
            time.sleep(0.3)
            (tmp_path / "result.json").write_text("{}")

    other = threading.Thread(target=left_behind)
    other.start()
    assert held.wait(10)
    run_job(tmp_path)
    assert (tmp_path / "result.json").read_text() == "{}"
    other.join()


def test_a_folder_without_a_study_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        run_job(tmp_path / "nowhere")
    write_json(tmp_path / "job.json", [])
    with pytest.raises(InputError, match="expected a folder that isopose study made"):
        run_job(tmp_path)


def test_nnunets_time_is_estimated_by_the_slices_it_sees(cohorts, tmp_path: Path, monkeypatch) -> None:
    """A patch of 64 slices: one of its iterations is tried where four were asked for, and three are run."""
    unet = {"optimizer": {"epochs": 2, "iterations": 30, "batch_size": 12}}
    study_options = options(cohorts, source=None, values=SMALL | {"unet": SMALL["unet"] | unet})

    def start(study, folder: Path, *rest, **named) -> None:
        row = {"stage": "unet", "seconds": 25.0, "validation_seconds": 5.0, "slices_a_batch": 128}
        write_json(folder / "result.json", {"history": [row, row]})

    monkeypatch.setattr(study_run, "_start_process", start)
    study = study_run.Study(tmp_path, study_options, 0, Silent())
    job = PlannedRun("default", "nnunet-3d", 0, 0)
    tried = study_run._try_briefly(study, job)
    assert tried == {"unet batch": pytest.approx(20.0 * 3 / 30), "unet validation": 5.0}
    # Two epochs of three iterations and a validation.
    assert study_run._estimate_run(study_options, job, {"default/nnunet-3d": tried}) == pytest.approx(
        2 * (60.0 + 5.0)
    )
    assert lengths(
        study_run.config_of(study_options, "default", BY_NAME["nnunet"], 0).unet.optimizer, 12
    ) == (30, 6)


def test_the_study_command_in_separate_processes(cohorts, tmp_path: Path) -> None:
    config = tmp_path / "small.json"
    config.write_text(json.dumps(SMALL))
    command = [sys.executable, "-m", "isopose", "study", str(cohorts[0]), "--output", str(tmp_path / "study"),
               "--config", str(config), "--arms", "plain", "--workers", "0"]  # fmt: skip
    bad = subprocess.run([*command, "--budget", "soon"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.strip() == "isopose: --budget: expected hours and minutes, e.g. 6h or 90m, got 'soon'"
    assert not (tmp_path / "study").exists()
    short = subprocess.run(command, capture_output=True, text=True)
    assert short.returncode == 2
    assert short.stderr.count("\n") == 1
    assert "a study shortens only the U-Net" in short.stderr
    assert not (tmp_path / "study").exists()
    process = subprocess.run([*command, "--short-stns"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == f"report: {tmp_path / 'study' / 'report.html'}"
    assert "estimate: 1 of 1 runs to do" in process.stderr


def test_times_are_reported_in_hours_and_minutes() -> None:
    assert [_format_time(s) for s in (3.2, 119, 121, 3599, 3661, 7 * 3600)] == [
        "4 s", "119 s", "3 min", "1 h 00 min", "1 h 02 min", "7 h 00 min",
    ]  # fmt: skip
