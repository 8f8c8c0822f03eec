import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bright import bright_model, dice
from isopose.cli import app
from isopose.files import hash_of, only_writer
from isopose.io.images import read_labels, read_volume, write_labels
from isopose.models.folder import save_model
from isopose.models.info import ReferenceInfo
from isopose.version import __version__

COMMANDS = (
    "demo",
    "phantom",
    "check",
    "preprocess",
    "fit",
    "predict",
    "export",
    "homogenize",
    "restore",
    "wrap",
    "evaluate",
    "study",
    "serve",
    "review",
)


def one_line(text: str) -> bool:
    return text.startswith("isopose: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"isopose {command}" in result.stdout
    documented = app.registered_commands[COMMANDS.index(command)].callback.__doc__
    assert documented.split(".")[0].split(",")[0] in result.stdout


def test_the_list_of_commands_is_complete():
    listed = CliRunner().invoke(app, ["--help"]).stdout
    visible = [command for command in app.registered_commands if not command.hidden]
    assert [command.callback.__name__ for command in visible] == list(COMMANDS)
    assert all(command in listed for command in COMMANDS)


def test_version(isopose):
    assert isopose("--version") == (0, f"isopose {__version__}\n", "")


def test_help_does_not_import_pytorch():
    code = (
        "import sys, isopose.cli\n"
        "try: isopose.cli.app(['predict', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'SimpleITK', 'matplotlib', 'monai', 'scipy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("heavy: []\n")


def test_predict_loads_neither_compiler_nor_matplotlib_nor_store(cohort, model_folder, tmp_path):
    arguments = ["predict", str(model_folder), str(cohort / "imagesTs"), "--output", str(tmp_path / "out")]
    code = (
        "import sys, isopose.cli\n"
        f"try: isopose.cli.app({arguments!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "unneeded = {'torch._dynamo', 'torch._inductor', 'matplotlib', 'isopose.data.store'}\n"
        "print('unneeded:', sorted(unneeded & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("unneeded: []\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "{tmp}/nowhere"), "nowhere: no such dataset"),
        (("check", "{tmp}"), "not a known dataset"),
        (("check", "{data}", "--label", "kidney"), "--label 'kidney': expected NAME=VALUE, e.g. kidney=1"),
        (("check", "{data}", "--label", "kidney=one"), "expected NAME=VALUE"),
        (("check", "{data}", "--label", "kidney=300"), "expected an integer from 1 to 255"),
        (("fit", "{data}", "--model", "{tmp}/m", "--set", "unet.color=3"), "unet.color"),
        (("fit", "{data}", "--model", "{tmp}/m", "--preset", "best"), "preset 'best' is unknown"),
        (("fit", "{data}", "--model", "{tmp}/m", "--fold", "9"), "train.fold is 9"),
        (("fit", "{data}", "--model", "{tmp}/m", "--config", "{tmp}/no.toml"), "no such file"),
        (("predict", "{tmp}", "{data}", "--output", "{tmp}/o"), "no model.json"),
        (("predict", "{model}", "{tmp}/no.nii.gz", "--output", "{tmp}/o"), "no such file or folder"),
        (("predict", "{model}", "{data}/imagesTs", "--output", "{tmp}/o", "--device", "abacus"), "abacus"),
        (("predict", "{model}", "{data}/imagesTs", "--output", "{tmp}/o", "--precision", "8"), "32-true"),
        (("homogenize", "{tmp}/none", "{tmp}/o"), "none: no such file or folder"),
        (("homogenize", "{data}", "{tmp}/o", "--per", "patient"), "homogenize: per: "),
        (("homogenize", "{data}", "{tmp}/o", "--size", "9"), "homogenize: size: "),
        (("homogenize", "{data}", "{tmp}/o", "--model", "{tmp}/m"), "no model.json"),
        (("homogenize", "{data}", "{tmp}/o", "--crop"), "name the model (--model)"),
        (("homogenize", "{data}", "{tmp}/o", "--model", "{model}"), "how large its reference is"),
        (("homogenize", "{data}/imagesTs", "{tmp}/o", "--label", "kidney=1"), "scans without labels"),
        (
            ("restore", "{data}/labelsTs", "--homogenized", "{data}", "--output", "{tmp}/o"),
            "no homogenize.json",
        ),
        (("wrap", "{data}/imagesTs", "--output", "{tmp}/o"), "no command, expected one after --"),
        (("wrap", "{data}/imagesTs", "--output", "{tmp}/o", "--", "true", "{{input}}"), "got {{input}}"),
        (
            ("wrap", "{data}/imagesTs", "--output", "{tmp}/o", "--", "true", "{{inputs}}", "{{output}}"),
            "placeholders of one scan",
        ),
        (
            ("wrap", "{data}", "{data}/more", "--output", "{tmp}/o", "--", "true", "{{input}}", "{{output}}"),
            "more: no such program, or it is not executable; give one path of scans",
        ),
        (
            ("wrap", "{tmp}/none", "--output", "{tmp}/o", "--", "true", "{{input}}", "{{output}}"),
            "none: no such file or folder",
        ),
        (
            ("wrap", "{data}", "--output", "{tmp}/o", "--size", "9", "--", "true", "{{input}}", "{{output}}"),
            "homogenize: size: ",
        ),
        (("evaluate", "{tmp}/none", "{data}"), "none"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_bad_input_gives_one_line_and_exit_code_2(arguments, words, isopose, cohort, model_folder, tmp_path):
    places = {"tmp": tmp_path, "data": cohort, "model": model_folder}
    code, out, err = isopose(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert out == ""
    assert words.format() in err
    assert one_line(err), err
    assert list(tmp_path.iterdir()) == [], "nothing is made of bad input"


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "{data}", "--model", "{out}", "--fold", "all"),
        ("predict", "{model}", "{data}/imagesTs", "--output", "{out}"),
        ("homogenize", "{data}", "{out}"),
        ("wrap", "{data}", "--output", "{out}", "--", "true", "{{input}}", "{{output}}"),
        ("study", "{data}", "--output", "{out}", "--arms", "plain"),
    ],
    ids=lambda value: value[0],
)
def test_a_folder_that_another_process_writes_to_is_refused(
    arguments, isopose, cohort, model_folder, tmp_path
):
    out = tmp_path / "out"
    out.mkdir()
    with only_writer(out):
        command = [argument.format(out=out, data=cohort, model=model_folder) for argument in arguments]
        code, _, err = isopose(*command)
    assert code == 2
    assert "another isopose process is writing to it" in err
    assert one_line(err), err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment",),
        ("fit", "data"),
        ("phantom", "out", "--cases", "0"),
        ("phantom", "out", "--cases", "many"),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_usage_gives_exit_code_2(arguments, isopose, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = isopose(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert err != ""
    assert list(tmp_path.iterdir()) == []


def test_check_of_a_good_cohort(isopose, cohort):
    code, out, err = isopose("check", cohort)
    assert code == 0
    assert (
        out.splitlines()[0] == "Bright: nnunet, 3 cases, labels {'kidney': 1, 'tumor': 7}" or "3 cases" in out
    )
    assert out.splitlines()[-1] == "no errors"
    assert "error: " not in out
    assert err.splitlines() == ["check: done", "fingerprint: done"]
    code, out, _ = isopose("check", cohort, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["cases"] == 3
    assert [problem for problem in report["problems"] if problem["severity"] == "error"] == []
    # Of the training cases alone: two of three.
    assert report["fingerprint"]["cases"] == 2
    assert report["fingerprint"]["spacing_median"] == pytest.approx([2.1, 2.9, 6.0])
    assert [label["name"] for label in report["fingerprint"]["labels"]] == ["kidney", "tumor"]


def test_check_of_a_broken_cohort(isopose, cohort, tmp_path):
    import shutil

    broken = tmp_path / "Dataset002_Broken"
    shutil.copytree(cohort, broken)
    (broken / "imagesTr" / "case_0_0000.nii.gz").write_bytes(b"no image")
    labels = read_labels(broken / "labelsTr" / "case_1.nii.gz")
    array = labels.array.copy()
    array[0, 0, 0] = 5
    write_labels(labels.with_array(array), broken / "labelsTr" / "case_1.nii.gz")
    code, out, err = isopose("check", broken)
    assert code == 2
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert any(line.startswith("error: case_0: image: ") for line in errors)
    assert any(line.startswith("error: case_1: ") and "5" in line for line in errors)
    assert out.splitlines()[-1] == "2 of 3 cases cannot be used"
    assert "Traceback" not in err
    code, out, _ = isopose("check", broken, "--json")
    assert code == 2
    report = json.loads(out)
    assert {p["case"] for p in report["problems"] if p["severity"] == "error"} == {"case_0", "case_1"}
    assert report["fingerprint"] is None


def test_phantoms_are_a_dataset_that_check_accepts(isopose, tmp_path):
    output = tmp_path / "cohort"
    options = ("--cases", 2, "--slices", 6, "--size", 64, "--seed", 3, "--test-fraction", 0.5)
    code, out, err = isopose("phantom", output, *options)
    assert (code, out, err) == (0, f"{output}\n", "phantoms: done\n")
    assert sorted(p.name for p in (output / "imagesTr").iterdir()) == ["phantom_000_0000.nii.gz"]
    assert sorted(p.name for p in (output / "imagesTs").iterdir()) == ["phantom_001_0000.nii.gz"]
    code, out, _ = isopose("check", output)
    assert code == 0, out
    # A folder of something else is not written into.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    code, out, err = isopose("phantom", tmp_path / "other", *options)
    assert code == 2
    assert one_line(err.removeprefix("phantoms: done\n"))
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_predict_prints_results_on_stdout_and_progress_on_stderr(isopose, cohort, model_folder, tmp_path):
    code, out, err = isopose("predict", model_folder, cohort / "imagesTs", "--output", tmp_path / "o")
    assert code == 0
    record = json.loads((tmp_path / "o" / "case_2.json").read_text())
    volumes = "  ".join(f"{name} {value:.1f} ml" for name, value in record["volumes_ml"].items())
    assert out == f"{tmp_path / 'o' / 'case_2.nii.gz'}  {volumes}\n"
    assert err.splitlines()[:2] == ["[1/1] case_2", "predict case_2: done"]
    code, out, _ = isopose("predict", model_folder, cohort / "imagesTs", "--output", tmp_path / "o", "--json")
    assert code == 0
    assert json.loads(out) == [{"name": "case_2", "problem": None, "record": record}]


def test_one_bad_scan_gives_exit_code_2_and_the_others_are_predicted(isopose, cohort, model_folder, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    inputs = (tmp_path / "bad.nii.gz", cohort / "imagesTs")
    code, out, err = isopose("predict", model_folder, *inputs, "--output", tmp_path / "o")
    assert code == 2
    assert len(out.splitlines()) == 1
    assert out.startswith(str(tmp_path / "o" / "case_2.nii.gz"))
    assert err.splitlines()[-1].startswith(f"isopose: {tmp_path / 'bad.nii.gz'}: ")
    assert "Traceback" not in err
    code, out, _ = isopose("predict", model_folder, *inputs, "--output", tmp_path / "o", "--json")
    assert code == 2
    bad, good = json.loads(out)
    assert (bad["name"], bad["record"]) == ("bad", None)
    assert bad["problem"].startswith(str(tmp_path / "bad.nii.gz"))
    assert (good["name"], good["problem"]) == ("case_2", None)


def test_restore_undoes_homogenize(isopose, cohort, tmp_path):
    upright = tmp_path / "upright"
    code, out, err = isopose("homogenize", cohort, upright, "--size", 128)
    assert code == 0, err
    assert out == f"{upright}  2 cases for training, 1 for testing, 128 x 128 pixels of 1.422 mm\n"
    assert [line for line in err.splitlines() if line.startswith("[")][2].startswith("[3/3] case_2")
    assert err.splitlines()[-1] == "homogenize: done"
    assert isopose("check", upright)[0] == 0
    code, out, _ = isopose("homogenize", cohort, upright, "--size", 128, "--json")
    assert code == 0
    report = json.loads(out)
    assert [(one["name"], one["problem"]) for one in report] == [(f"case_{n}", None) for n in range(3)]
    written = json.loads((upright / "transforms" / "case_2.json").read_text())
    assert written.pop("sha256") == hash_of(report[2]["record"])
    assert report[2]["record"] == written

    back = tmp_path / "back"
    code, out, err = isopose("restore", upright / "labelsTs", "--homogenized", upright, "--output", back)
    assert (code, out) == (0, f"{back / 'case_2.nii.gz'}\n")
    truth, result = (read_labels(folder / "case_2.nii.gz") for folder in (cohort / "labelsTs", back))
    np.testing.assert_array_equal(result.world_from_index, truth.world_from_index)
    for value in (1, 7):
        assert dice(result.array == value, truth.array == value) > 0.9
    code, out, _ = isopose(
        "restore", upright / "labelsTs", "--homogenized", upright, "--output", back, "--json"
    )
    assert code == 0
    assert json.loads(out)[0]["record"] == json.loads((back / "case_2.json").read_text())
    # What isopose evaluate takes.
    options = ("--label", "kidney=1", "--label", "tumor=7")
    assert isopose("evaluate", back, cohort / "labelsTs", *options)[0] == 0


def test_homogenize_uses_the_poses_of_a_model(isopose, cohort, tmp_path):
    folder, model = tmp_path / "model", bright_model({"data": {"size": 64}}, real_unet=True)
    save_model(folder, replace(model, info=replace(model.info, reference=ReferenceInfo(area_cm2=226.2))))
    code, out, err = isopose("homogenize", cohort, tmp_path / "o", "--model", folder, "--size", 64)
    assert code == 0, err
    # The reference's body of 226 cm2 lies in a frame of 230 mm.
    assert float(out.split()[-2]) == pytest.approx(230 / 64, rel=0.01)
    head = json.loads((tmp_path / "o" / "homogenize.json").read_text())
    assert head["poses_from"] == "model"
    code, _, err = isopose("homogenize", cohort, tmp_path / "o", "--size", 64)
    assert code == 2
    assert "choose another folder" in err
    assert one_line(err)
    # Crops of one size are printed as one.
    options = ("--model", folder, "--size", 64, "--crop")
    code, out, err = isopose("homogenize", cohort / "imagesTs", tmp_path / "crop", *options)
    assert code == 0, err
    width, height = re.search(r"testing, (\d+) x (\d+) pixels", out).groups()
    assert width == height


def test_homogenize_takes_a_case_as_reference_or_lists_the_references(isopose, cohort, tmp_path):
    code, _, err = isopose("homogenize", cohort, tmp_path / "o", "--reference", "case_9", "--size", 64)
    assert code == 2
    assert one_line(err)
    assert "--reference case_9: expected child, adult, a case of the dataset (case_0, case_1, case_2)" in err
    assert not (tmp_path / "o").exists()
    options = ("--reference", "case_1", "--no-scale-z", "--size", 64)
    code, out, err = isopose("homogenize", cohort, tmp_path / "o", *options)
    assert code == 0, err
    head = json.loads((tmp_path / "o" / "homogenize.json").read_text())
    assert (head["reference"]["kind"], head["reference"]["case"], head["scale_z"]) == (
        "case",
        "case_1",
        False,
    )
    assert float(out.split()[-2]) == pytest.approx(head["reference"]["pixel_mm"], abs=1e-3)
    assert isopose("homogenize", cohort, tmp_path / "o", "--size", 64)[0] == 2


#: A segmenter that marks what is bright, and fails on one scan.
SEGMENTER = """
import sys
import SimpleITK as sitk
if "bad" in sys.argv[1]:
    sys.exit("out of luck")
image = sitk.ReadImage(sys.argv[1])
mass, core = (sitk.Cast(image > level, sitk.sitkUInt8) for level in (145, 325))
sitk.WriteImage(mass + core * 6, sys.argv[2])
"""


def test_wrap_prints_results_logs_and_the_scans_that_failed(isopose, cohort, tmp_path):
    scans, out = tmp_path / "scans of two", tmp_path / "o"
    scans.mkdir()
    for name in ("a_bad", "good"):
        (scans / f"{name}.nii.gz").write_bytes((cohort / "imagesTs" / "case_2_0000.nii.gz").read_bytes())
    names = ("--label", "kidney=1", "--label", "tumor=7")
    command = ("--", sys.executable, "-c", SEGMENTER, "{input}", "{output}")
    code, report, err = isopose("wrap", scans, "--output", out, "--size", 128, *names, *command)
    assert code == 2
    record = json.loads((out / "good.json").read_text())
    volumes = "  ".join(f"{name} {value:.1f} ml" for name, value in record["volumes_ml"].items())
    assert report == f"{out / 'good.nii.gz'}  {volumes}\n"
    assert "kidney+tumor" in volumes
    log = out / "logs" / "a_bad.log"
    lines = err.splitlines()
    assert lines[-2:] == [
        f"output of the command: {out}/logs",
        f"isopose: a_bad: the command ended with exit code 1; see {log}",
    ]
    assert log.read_text() == "out of luck\n"
    truth, result = (read_labels(p) for p in (cohort / "labelsTs" / "case_2.nii.gz", out / "good.nii.gz"))
    np.testing.assert_array_equal(result.world_from_index, truth.world_from_index)
    for value in (1, 7):
        assert dice(result.array == value, truth.array == value) >= 0.95
    code, report, _ = isopose("wrap", scans, "--output", out, "--size", 128, *names, "--json", *command)
    assert code == 2
    assert [(one["name"], one["record"]) for one in json.loads(report)] == [
        ("a_bad", None),
        ("good", record),
    ]


def test_one_bad_scan_gives_exit_code_2_in_homogenize_and_restore(isopose, cohort, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a_bad.nii.gz").write_bytes(b"no image")
    (scans / "good.nii.gz").write_bytes((cohort / "imagesTs" / "case_2_0000.nii.gz").read_bytes())
    code, out, err = isopose("homogenize", scans, tmp_path / "o", "--size", 64)
    assert code == 2
    assert "0 cases for training, 1 for testing" in out
    assert err.splitlines()[-1].startswith(f"isopose: {scans / 'a_bad.nii.gz'}: ")
    assert "Traceback" not in err
    labels = tmp_path / "labels"
    labels.mkdir()
    image = read_volume(tmp_path / "o" / "imagesTs" / "good_0000.nii.gz")
    write_labels(image.with_array((image.array > 145).astype(np.uint8)), labels / "good.nii.gz")
    (labels / "other.nii.gz").write_bytes((labels / "good.nii.gz").read_bytes())
    code, out, err = isopose("restore", labels, "--homogenized", tmp_path / "o", "--output", tmp_path / "r")
    assert code == 2
    assert out == f"{tmp_path / 'r' / 'good.nii.gz'}\n"
    assert "other.nii.gz: belongs to no case" in err.splitlines()[-1]
    truth = read_labels(cohort / "labelsTs" / "case_2.nii.gz").array > 0
    assert dice(read_labels(tmp_path / "r" / "good.nii.gz").array > 0, truth) > 0.85


def test_help_shows_the_defaults_of_homogenize():
    from isopose.config import HomogenizeConfig
    from isopose.models.shipped import DEFAULT_REFERENCE

    text = CliRunner().invoke(app, ["homogenize", "--help"], env={"COLUMNS": "300"}).stdout
    default = HomogenizeConfig()
    assert f"one pose per {default.per} (the default)" in text
    assert f"(default: {default.size})" in text
    assert f"{DEFAULT_REFERENCE} (2 years, the default)" in text
    assert default.scale_z is True
    assert "(default: yes)" in text


def test_evaluate_scores_the_available_predictions(isopose, cohort, tmp_path):
    truth, wrong = cohort / "labelsTs", tmp_path / "wrong"
    labels = read_labels(truth / "case_2.nii.gz")
    moved = np.roll(labels.array, 5, axis=2)
    write_labels(labels.with_array(moved), wrong / "case_2.nii.gz")
    expected = {"truth": 1.0, "wrong": dice(labels.array == 1, moved == 1)}
    assert 0.3 < expected["wrong"] < 0.9
    options = ("--label", "kidney=1", "--label", "tumor=7")
    for name, folder in (("truth", truth), ("wrong", wrong)):
        code, out, err = isopose("evaluate", folder, truth, *options, "--output", tmp_path / name)
        assert code == 0, err
        assert err == "evaluate: done\n"
        row = next(line for line in out.splitlines() if line.startswith("| kidney |"))
        assert f"{expected[name]:.3f}" in row
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert files >= {"scores.csv", "scores.json", "scores.md"}
        report = (tmp_path / name / "report.html").read_text()
        assert f"{expected[name]:.3f}" in report
        assert "case_2" in report
        assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", report), "it needs another file"
        code, out, _ = isopose("evaluate", folder, truth, *options, "--json")
        assert code == 0
        result, written = json.loads(out), json.loads((tmp_path / name / "scores.json").read_text())
        assert result["cases"] == written["cases"]
        assert [case["case"] for case in result["cases"]] == ["case_2"]
    code, out, err = isopose("evaluate", truth, cohort)
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "no prediction for 2 of 3 cases: case_0, case_1" in err
    assert isopose("evaluate", truth, cohort, "--allow-missing")[0] == 0


def test_an_invalid_memory_limit_is_reported_before_reading(isopose, tmp_path):
    code, _, error = isopose("fit", tmp_path / "nothing", "--model", tmp_path / "model", "--memory", "4")
    assert code == 2
    assert error == "isopose: --memory: expected megabytes or gigabytes, e.g. 4GB or 800MB, got '4'\n"


def test_the_requested_precision_is_recorded(isopose, model_folder, cohort, tmp_path):
    for precision in ("32-true", "bf16-mixed"):
        arguments = ("--output", tmp_path / precision, "--precision", precision, "--json")
        code, out, _ = isopose("predict", model_folder, cohort / "imagesTs", *arguments)
        assert code == 0
        assert {scan["record"]["precision"] for scan in json.loads(out)} == {precision}


def test_the_shell_completes_commands_and_options():
    def completed(words, folder):
        completion = {"_ISOPOSE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(folder)}
        command = Path(sys.executable).with_name("isopose")
        shell = subprocess.run([command], env=os.environ | completion, capture_output=True, text=True)
        return shell.stdout.split()

    assert completed("isopose pred", 1) == ["predict"]
    assert completed("isopose fit --mod", 2) == ["--model"]
