"""Of three scans the middle one raises any error: it is reported in one line, the others are processed."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from bright import bright_model, make_scene
from isopose.errors import InputError, IsoposeError, RunError
from isopose.files import hash_of, replacing
from isopose.homogenize.case import make_case
from isopose.io.images import write_image, write_labels
from isopose.isolation import failure_of, line_of, named
from isopose.models.folder import save_model

#: What a library may quote, and nobody may read.
SECRET = "DOE^JOHN"


class Unsendable(Exception):
    """One that is not the same once it was pickled, as those of C++ libraries."""

    def __init__(self, place, line):
        super().__init__(f"{place}: {line} {SECRET}")


def endless(depth=0):
    return endless(depth + 1)


RAISED = {
    "MemoryError": lambda: MemoryError(SECRET),
    "RecursionError": endless,
    "ValueError": lambda: ValueError(f"invalid literal: {SECRET}"),
    "KeyError": lambda: KeyError(SECRET),
    "SystemError": lambda: SystemError(f"<built-in {SECRET}> returned NULL"),
    "bad allocation": lambda: RuntimeError(f"ITK: bad allocation for {SECRET}"),
    "CUDA": lambda: RuntimeError(f"CUDA out of memory. {SECRET}"),
    "FloatingPointError": lambda: FloatingPointError(f"overflow in {SECRET}"),
    "EIO": lambda: OSError(errno.EIO, SECRET),
    "EACCES": lambda: PermissionError(errno.EACCES, SECRET, "slice_3.dcm"),
    "OSError": lambda: OSError(SECRET),
    "Unsendable": lambda: Unsendable(SECRET, 3),
}
raised = pytest.mark.parametrize("kind", RAISED)


def raising(original, kind, name="case_1"):
    """Make a function of one or several paths that raises if a path names the case."""

    def function(path, *args, **kwargs):
        if name in str(path):
            raise RAISED[kind]()
        return original(path, *args, **kwargs)

    return function


def plant(monkeypatch, target, kind):
    """Replace a function of the package by one that raises for the middle case."""
    from pkgutil import resolve_name

    module, _, name = target.rpartition(".")
    monkeypatch.setattr(target, raising(getattr(resolve_name(module), name), kind))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def of_others(files, *more):
    """Return the files of other cases than the middle one, without those that concern all cases."""
    return {name: data for name, data in files.items() if "case_1" not in name and name not in more}


def checked(code, out, err, count=1):
    """Assert what holds for every command; return its lines about the middle case."""
    assert code == 2, err
    assert "Traceback" not in err + out
    assert SECRET not in err + out
    lines = [line for line in err.splitlines() if line.startswith("isopose: ")]
    assert len(lines) == count, err
    assert all("case_1" in line for line in lines), err
    return lines


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, bright_model({"data": {"size": 64}}, real_unet=True))
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three labeled cases in nnU-Net's layout."""
    root = tmp_path_factory.mktemp("data") / "Dataset001_Bright"
    for number in range(3):
        scene = make_scene(slices=4, roll=0.1 * number)
        write_image(scene.volume, root / "imagesTr" / f"case_{number}_0000.nii.gz")
        write_labels(scene.volume.with_array(scene.truth), root / "labelsTr" / f"case_{number}.nii.gz")
    labels = {"background": 0, "kidney": 1, "tumor": 7}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def clean(cohort, model, tmp_path_factory):
    """Results of each command without errors."""
    from typer.testing import CliRunner

    from isopose.cli import app

    out = tmp_path_factory.mktemp("clean")
    for command in (
        ("predict", model, cohort / "imagesTr", "--output", out / "predict"),
        ("homogenize", cohort, out / "homogenize", "--size", 64),
        (
            "restore",
            out / "homogenize" / "labelsTr",
            "--homogenized",
            out / "homogenize",
            "--output",
            out / "r",
        ),
        ("evaluate", out / "predict", cohort / "labelsTr", "--output", out / "evaluate"),
        ("preprocess", cohort, "--store", out / "store", *PREPARED),
    ):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output
    return out


PREPARED = ("--fold", "all", "--set", "data.size=64", "--workers", "0")


@raised
def test_predict_reports_a_failing_scan_and_processes_the_others(
    kind, isopose, cohort, model, clean, tmp_path, monkeypatch
):
    plant(monkeypatch, "isopose.inference.files.read_channels", kind)
    code, out, err = isopose("predict", model, cohort / "imagesTr", "--output", tmp_path / "out")
    checked(code, out, err)
    assert contents(tmp_path / "out") == of_others(contents(clean / "predict"))
    assert [line.split("/")[-1].split()[0] for line in out.splitlines()] == ["case_0.nii.gz", "case_2.nii.gz"]


@pytest.mark.parametrize("kind", ["MemoryError", "KeyError", "Unsendable"])
def test_a_scan_that_fails_while_writing_leaves_no_files(
    kind, isopose, cohort, model, clean, tmp_path, monkeypatch
):
    """The label map and probabilities are already written when the step images fail."""
    from isopose.report import steps

    def fail(model, volume, prediction, path, original=steps.write_steps):
        if "case_1" in path.name:
            raise RAISED[kind]()
        original(model, volume, prediction, path)

    command = ("predict", model, cohort / "imagesTr", "--output", tmp_path / "out")
    assert isopose(*command)[0] == 0
    monkeypatch.setattr(steps, "write_steps", fail)
    checked(*isopose(*command, "--steps", "--probabilities"))
    names = contents(tmp_path / "out").keys()
    assert [name for name in names if "case_1" in name] == []
    assert {f"steps/case_{n}.png" for n in (0, 2)} < names
    assert len([name for name in names if "/case_0_" in name]) == 3


def test_predict_keeps_an_older_result_after_a_failure(isopose, cohort, model, clean, tmp_path, monkeypatch):
    """If a scan can no longer be read, its former result and record are kept."""
    shutil.copytree(clean / "predict", tmp_path / "out")
    plant(monkeypatch, "isopose.inference.files.hash_of_channels", "EIO")
    checked(*isopose("predict", model, cohort / "imagesTr", "--output", tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(clean / "predict")


@raised
def test_homogenize_reports_a_failing_scan_and_processes_the_others(
    kind, isopose, cohort, clean, tmp_path, monkeypatch
):
    plant(monkeypatch, "isopose.homogenize.case.read_channels", kind)
    checked(*isopose("homogenize", cohort, tmp_path / "out", "--size", 64))
    of_all = ("dataset.json", "homogenize.json")
    files = contents(tmp_path / "out")
    assert of_others(files, *of_all) == of_others(contents(clean / "homogenize"), *of_all)
    assert [name for name in files if "case_1" in name] == []
    head = json.loads(files["homogenize.json"])
    assert (head["cases"], head["failed"]) == (["case_0", "case_2"], ["case_1"])
    assert json.loads(files["dataset.json"])["numTraining"] == 2


@pytest.mark.parametrize("kind", ["MemoryError", "KeyError"])
def test_homogenize_that_fails_while_it_writes(kind, isopose, cohort, tmp_path, monkeypatch):
    """The labels were already written when the image fails."""
    monkeypatch.setattr(
        "isopose.homogenize.case.write_image",
        lambda image, path: raising(lambda p: write_image(image, p), kind)(path),
    )
    checked(*isopose("homogenize", cohort, tmp_path / "out", "--size", 64))
    assert [name for name in contents(tmp_path / "out") if "case_1" in name] == []


def make_or_die(case, *, settings):
    if case.id == "case_1":
        (settings.root / "labelsTr").mkdir(exist_ok=True)
        (settings.root / "labelsTr" / "case_1.nii.gz").write_bytes(b"half of a run")
        os.kill(os.getpid(), signal.SIGKILL)
    return make_case(case, settings=settings)


def test_homogenize_whose_worker_is_killed(isopose, cohort, clean, tmp_path, monkeypatch):
    """As by the system's out-of-memory killer: its case is reported and the others are processed."""
    monkeypatch.setattr("isopose.homogenize.dataset.make_case", make_or_die)
    code, out, err = isopose("homogenize", cohort, tmp_path / "out", "--size", 64, "--workers", 2)
    (line,) = checked(code, out, err)
    assert "a worker process died at this case" in line
    of_all = ("dataset.json", "homogenize.json")
    files = contents(tmp_path / "out")
    assert of_others(files, *of_all) == of_others(contents(clean / "homogenize"), *of_all)
    assert [name for name in files if "case_1" in name] == []


@raised
def test_restore_reports_a_failing_case_and_processes_the_others(kind, isopose, clean, tmp_path, monkeypatch):
    plant(monkeypatch, "isopose.homogenize.restore.read_labels", kind)
    homogenized = clean / "homogenize"
    checked(
        *isopose(
            "restore", homogenized / "labelsTr", "--homogenized", homogenized, "--output", tmp_path / "out"
        )
    )
    assert contents(tmp_path / "out") == of_others(contents(clean / "r"))


@raised
def test_evaluate_reports_a_failing_case_and_scores_the_others(
    kind, isopose, cohort, clean, tmp_path, monkeypatch
):
    plant(monkeypatch, "isopose.evaluation.evaluate.read_labels", kind)
    code, out, err = isopose(
        "evaluate", clean / "predict", cohort / "labelsTr", "--output", tmp_path / "out", "--workers", 2
    )
    (line,) = checked(code, out, err)
    scores, expected = (
        json.loads((folder / "scores.json").read_text()) for folder in (tmp_path / "out", clean / "evaluate")
    )
    assert scores["cases"] == [case for case in expected["cases"] if case["case"] != "case_1"]
    assert {f"isopose: {why}" for why in scores["failed"].values()} == {line}
    for name in ("scores.md", "report.html"):
        assert (
            "Could not be scored, left out of all means (1): case_1." in (tmp_path / "out" / name).read_text()
        )


def test_evaluate_without_a_readable_case(isopose, cohort, clean, tmp_path, monkeypatch):
    def fail(path):
        raise MemoryError(SECRET)

    monkeypatch.setattr("isopose.evaluation.evaluate.read_labels", fail)
    command = ("evaluate", clean / "predict", cohort / "labelsTr", "--output", tmp_path / "out")
    code, out, err = isopose(*command)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("isopose: ")]
    assert [line.split(":")[1] for line in lines] == [" case_0", " case_1", " case_2"]
    assert list((tmp_path / "out").iterdir()) == []


@raised
def test_check_reports_a_failing_case_and_checks_the_others(kind, isopose, cohort, tmp_path, monkeypatch):
    expected = json.loads(isopose("check", cohort, "--json")[1])
    plant(monkeypatch, "isopose.data.check.read_volume", kind)
    code, out, err = isopose("check", cohort, "--json")
    checked(code, out, err, count=0)
    report = json.loads(out)
    (problem,) = [one for one in report["problems"] if one not in expected["problems"]]
    assert (problem["case"], problem["severity"]) == ("case_1", "error")
    assert problem["message"].startswith("image: ")
    assert report["fingerprint"]["cases"] == 2
    assert report["stopped"] is None


@raised
def test_check_reports_a_case_whose_fingerprint_fails(kind, isopose, cohort, tmp_path, monkeypatch):
    """A case that can be read but not measured adds a problem and hides no others."""
    broken = tmp_path / "Dataset002_Broken"
    shutil.copytree(cohort, broken)
    (broken / "labelsTr" / "case_2.nii.gz").write_bytes(b"no labels")
    plant(monkeypatch, "isopose.data.fingerprint.read_channels", kind)
    code, out, err = isopose("check", broken)
    checked(code, out, err, count=0)
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1:3] for line in errors] == [["case_2", "label"], ["case_1", "fingerprint"]]
    assert out.splitlines()[-1] == "2 of 3 cases cannot be used"
    code, out, err = isopose("check", broken, "--json")
    checked(code, out, err, count=0)
    report = json.loads(out)
    assert [(p["case"], p["severity"]) for p in report["problems"] if p["severity"] == "error"] == [
        ("case_2", "error"),
        ("case_1", "error"),
    ]
    assert report["fingerprint"]["cases"] == 1


def test_check_reports_problems_before_the_error_that_stopped_it(isopose, cohort, tmp_path, monkeypatch):
    broken = tmp_path / "Dataset002_Broken"
    shutil.copytree(cohort, broken)
    (broken / "labelsTr" / "case_0.nii.gz").write_bytes(b"no labels")
    for number in (1, 2):
        scene = make_scene(slices=4, roll=0.1 * number)
        scene.volume.array[scene.truth > 0] = 200
        write_image(scene.volume, broken / "imagesTr" / f"case_{number}_0000.nii.gz")
    code, out, err = isopose("check", broken)
    assert code == 2
    assert out.splitlines()[1].startswith("error: case_0: label: ")
    assert err.splitlines()[-1].startswith("isopose: fingerprint: nearly all labeled voxels have the value")
    code, out, err = isopose("check", broken, "--json")
    assert code == 2
    report = json.loads(out)
    assert "case_0" in {one["case"] for one in report["problems"]}
    assert report["stopped"] == err.splitlines()[-1].removeprefix("isopose: ")


def test_check_that_is_stopped_by_a_signal(isopose, cohort, monkeypatch):
    def stop(path, **_):
        if "case_1" in str(path):
            os.kill(os.getpid(), signal.SIGINT)
        raise ValueError(SECRET)

    monkeypatch.setattr("isopose.data.check.read_volume", stop)
    code, out, err = isopose("check", cohort, "--json")
    assert code == 130
    report = json.loads(out)
    assert [one["case"] for one in report["problems"]] == ["case_0"]
    assert report["stopped"] == "stopped by a signal"
    assert err.splitlines()[-1].startswith("isopose: stopped; ")


@raised
@pytest.mark.parametrize("where", ["fingerprint", "store"])
def test_preprocess_reports_every_case_and_keeps_the_others(
    where, kind, isopose, cohort, clean, tmp_path, monkeypatch
):
    plant(monkeypatch, f"isopose.data.{where}.read_channels", kind)
    code, out, err = isopose("preprocess", cohort, "--store", tmp_path, *PREPARED)
    assert code == 1, "of all these the program or the machine is the reason, not what was given"
    assert SECRET not in out + err
    assert "Traceback" not in err
    assert [line.split(":")[1] for line in err.splitlines() if line.startswith("  error: ")] == [" case_1"]
    assert err.splitlines()[-1].startswith("isopose: case_1: ")
    if where == "store":
        files = {
            name: data for name, data in contents(clean / "store").items() if not name.endswith("/store.json")
        }
        assert contents(tmp_path) == of_others(files)


def test_fit_reports_every_case_that_cannot_be_used(isopose, cohort, tmp_path, monkeypatch):
    broken = tmp_path / "Dataset002_Broken"
    shutil.copytree(cohort, broken)
    (broken / "imagesTr" / "case_0_0000.nii.gz").write_bytes(b"no image")
    (broken / "labelsTr" / "case_2.nii.gz").unlink()
    command = ("fit", broken, "--model", tmp_path / "model", "--fold", "all", "--workers", 0)
    code, _, err = isopose(*command)
    assert code == 2
    lines = [line for line in err.splitlines() if "error: " in line]
    assert [line.split(":")[1] for line in lines] == [" case_0", " case_2"]
    assert err.splitlines()[-1].startswith("isopose: 2 of 3 cases cannot be used, the first: case_0: ")
    assert not (tmp_path / "model" / "model.json").exists()


@pytest.mark.parametrize("command", ["predict", "homogenize", "restore"])
def test_a_full_disk_ends_the_run_at_once(command, isopose, cohort, model, clean, tmp_path, monkeypatch):
    """An error that concerns all scans is raised at once; the next scan is not started."""
    begun = []

    def full(volume, path):
        begun.append(path)
        with replacing(Path(path)):
            raise OSError(errno.ENOSPC, SECRET)

    for module in ("io.results.formats.write_labels", "homogenize.case.write_labels"):
        monkeypatch.setattr(f"isopose.{module}", full)
    monkeypatch.setattr("isopose.homogenize.restore.write_labels", full)
    homogenized = clean / "homogenize"
    commands = {
        "predict": ("predict", model, cohort / "imagesTr", "--output", tmp_path / "out"),
        "homogenize": ("homogenize", cohort, tmp_path / "out", "--size", 64),
        "restore": (
            "restore",
            homogenized / "labelsTr",
            "--homogenized",
            homogenized,
            "--output",
            tmp_path / "out",
        ),
    }
    code, out, err = isopose(*commands[command])
    assert (code, out, len(begun)) == (1, "", 1)
    assert [line for line in err.splitlines() if line.startswith("isopose: ")] == [
        f"isopose: {begun[0]}: No space left on device; nothing was left half-written"
    ]
    assert [name for name in contents(tmp_path / "out") if name.endswith((".nii.gz", "case_0.json"))] == []


@pytest.mark.parametrize("kind", ["imagesTr", "series"])
def test_an_output_folder_among_the_scans_is_refused(kind, isopose, cohort, model, tmp_path):
    folder = tmp_path / "scans"
    if kind == "imagesTr":
        shutil.copytree(cohort / "imagesTr", folder)
        places = [folder, folder / ".." / "scans"]
    else:
        folder.mkdir()
        (folder / "slice_1").write_bytes(b"DICM")
        places = [folder, folder / "results"]
    before = contents(tmp_path)
    for output in places:
        code, out, err = isopose("predict", model, folder, "--output", output)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "is the folder of the scans" in err
    assert contents(tmp_path) == before


def test_messages_never_quote_a_library():
    for kind, make in RAISED.items():
        with pytest.raises(Exception) as error:
            raise make()
        line = str(line_of(error.value))
        assert SECRET not in line, kind
        assert "\n" not in line
    with pytest.raises(ValueError, match="JSON") as error:
        hash_of(float("nan"))
    assert str(line_of(error.value)).startswith("failed unexpectedly by ValueError at isopose.files:")
    assert str(line_of(error.value)).endswith("; please report it")


def test_input_errors_keep_their_message_and_global_errors_are_raised():
    refused = InputError("a.nii: no image")
    assert failure_of(refused) is refused
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        with pytest.raises(RunError, match=r"^out: .*; nothing was left half-written$"):
            failure_of(OSError(number, SECRET, "out"))
    with pytest.raises(RunError, match="full"):
        failure_of(RunError("full"))
    assert type(failure_of(OSError(errno.EACCES, SECRET, "a.nii"))) is IsoposeError
    assert named("a.nii: no image", "a.nii") == "a.nii: no image"
    assert named("no image", "a.nii") == "a.nii: no image"
