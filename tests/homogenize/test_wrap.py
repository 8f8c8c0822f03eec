"""``isopose wrap``: scans are homogenized for a third-party program and its results restored."""

import json
import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from patients import patient, write_dataset
from segmenters import BODY, BONE
from segmenters import __file__ as SEGMENTER

from bright import dice, make_scene, stored_otherwise
from isopose.config import HomogenizeConfig
from isopose.errors import InputError
from isopose.files import sha256
from isopose.homogenize import wrap as module
from isopose.homogenize.command import read_command
from isopose.homogenize.command_output import sort_by_case
from isopose.homogenize.wrap import open_scans, wrap
from isopose.io.images import read_labels, read_volume, write_image
from isopose.progress import Silent
from reporters import RecordingReporter

#: Some of the 48 ways in which a scan may be stored.
STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))[::7]
ONE, ALL = ("{input}", "{output}"), ("{inputs}", "{outputs}")


def run(path, output, how, places=ONE, *, size=128, reporter=None, **options):
    command = read_command([sys.executable, SEGMENTER, how, *places])
    heard = reporter or Silent()
    return wrap(open_scans(path), output, command, HomogenizeConfig(size=size), reporter=heard, **options)


@pytest.fixture
def scan(tmp_path) -> Path:
    """A patient who lies turned by 200 degrees against the header."""
    path = tmp_path / "in" / "scan.nii.gz"
    write_image(patient(2, 200.0, 96, 3).volume, path)
    return path


@pytest.mark.parametrize(
    ("how", "threshold", "volume"),
    [
        ("body", BODY, lambda: patient(1, 25.0, 128, 4).volume),
        ("bone", BONE, lambda: make_scene(roll=0.4, slices=4).volume),
    ],
    ids=("body", "bone"),
)
def test_a_thresholded_mask_is_restored_on_the_scans_grid(how, threshold, volume, tmp_path) -> None:
    write_image(volume(), tmp_path / "scan.nii.gz")
    [one] = run(tmp_path / "scan.nii.gz", tmp_path / "r", how, size=256)
    assert one.problem is None
    image, result = read_volume(tmp_path / "scan.nii.gz"), read_labels(tmp_path / "r" / "scan.nii.gz")
    np.testing.assert_array_equal(result.world_from_index, image.world_from_index)
    marked = result.array > 0
    assert dice(marked, image.array > threshold) >= 0.95
    ml = float(np.prod(image.spacing)) * np.count_nonzero(marked) / 1000
    assert one.record["volumes_ml"] == {"1": pytest.approx(ml)}


def test_left_stays_left_in_every_storage_order(tmp_path) -> None:
    """The program calls left what lies at x > 0; the patient is turned by 200 degrees against the header."""
    who = patient(2, 200.0, 96, 3)
    for number, (axes, flips) in enumerate(STORAGES):
        write_image(stored_otherwise(who.volume, axes, flips), tmp_path / "in" / f"s_{number}.nii.gz")
    outcomes = run(tmp_path / "in", tmp_path / "r", "sides", ALL)
    assert [one.problem for one in outcomes] == [None] * len(STORAGES)
    own, other = (1, 2) if who.left > 0 else (2, 1)
    for number, (axes, flips) in enumerate(STORAGES):
        result = read_labels(tmp_path / "r" / f"s_{number}.nii.gz")
        image = read_volume(tmp_path / "in" / f"s_{number}.nii.gz")
        np.testing.assert_array_equal(result.world_from_index, image.world_from_index)
        tumor = stored_otherwise(who.volume.with_array(who.classes), axes, flips).array == 2
        assert tumor.any()
        assert np.mean(result.array[tumor] == own) > 0.95
        assert not (result.array[tumor] == other).any()
        assert dice(result.array > 0, image.array > BODY) > 0.95


def test_the_record_describes_the_command_without_paths(scan, tmp_path) -> None:
    [one] = run(scan, tmp_path / "r", "sides", labels={"left": 1, "right": 2})
    record = json.loads((tmp_path / "r" / "scan.json").read_text())
    assert record == one.record
    assert record["command"] == [sys.executable, SEGMENTER, "sides", "{input}", "{output}"]
    assert (record["exit_code"], record["command_scans"]) == (0, 1)
    assert record["input_sha256"] == sha256(scan)
    assert record["files"] == {"scan.nii.gz": sha256(tmp_path / "r" / "scan.nii.gz")}
    assert (record["pose"]["per"], record["pose"]["size"]) == ("volume", 128)
    assert record["labels"] == {"left": 1, "right": 2}
    assert set(record["volumes_ml"]) == {"left", "right"}
    # It lies the other way around than its header says.
    assert abs(record["roll_degrees"]) > 120
    assert record["warnings"]
    assert str(tmp_path) not in json.dumps(record)
    assert "segmented scan.nii.gz" in (tmp_path / "r" / "logs" / "scan.log").read_text()
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["logs", "scan.json", "scan.nii.gz"]


def test_unnamed_label_values_are_refused_if_labels_are_named(scan, tmp_path) -> None:
    [one] = run(scan, tmp_path / "r", "sides", labels={"left": 1})
    assert "scan.nii.gz: label value 2, expected 0 or one of [1]; name it too" in one.problem
    assert not (tmp_path / "r" / "scan.nii.gz").exists()


def test_probabilities_of_one_class_are_restored(scan, tmp_path) -> None:
    [one] = run(scan, tmp_path / "r", "soft")
    assert [*one.record["files"]] == ["probabilities/scan.nii.gz"]
    run(scan, tmp_path / "l", "float")
    labels = read_labels(tmp_path / "l" / "scan.nii.gz")
    result = read_volume(tmp_path / "r" / "probabilities" / "scan.nii.gz")
    np.testing.assert_array_equal(result.world_from_index, read_volume(scan).world_from_index)
    assert result.array.dtype == np.float32
    assert result.array[labels.array == 1].mean() == pytest.approx(0.8, abs=0.03)
    assert result.array[labels.array == 2].mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("how", ["npz", "npz-turned"])
def test_probabilities_of_all_classes_are_restored_on_the_correct_side(how, scan, tmp_path) -> None:
    [one] = run(scan, tmp_path / "r", how, labels={"left": 1, "right": 2})
    assert sorted(one.record["files"]) == [
        *(f"probabilities/scan_{name}.nii.gz" for name in ("background", "left", "right")),
        "scan.nii.gz",
    ]
    assert not [warning for warning in one.record["warnings"] if "left out" in warning]
    run(scan, tmp_path / "l", "sides")
    labels, probabilities = (read_labels(tmp_path / d / "scan.nii.gz").array for d in "lr")
    parts = [
        read_volume(tmp_path / "r" / "probabilities" / f"scan_{name}.nii.gz").array
        for name in ("background", "left", "right")
    ]
    np.testing.assert_allclose(np.sum(parts, axis=0), 1.0, atol=1e-5)
    np.testing.assert_array_equal(np.argmax(parts, axis=0), probabilities)
    for value in (1, 2):
        assert dice(probabilities == value, labels == value) > 0.97
        assert parts[value][labels == value].mean() > 0.75


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("npz-other", "shows other labels"),
        ("npz-regions", "do not add up to 1"),
        ("empty", "any order of the axes fits"),
    ],
)
def test_probabilities_that_contradict_the_label_map_are_left_out(how, why, scan, tmp_path) -> None:
    [one] = run(scan, tmp_path / "r", how)
    assert [*one.record["files"]] == ["scan.nii.gz"]
    assert [warning for warning in one.record["warnings"] if why in warning]


def test_the_axis_order_of_empty_results_comes_from_the_plans(scan, tmp_path) -> None:
    [one] = run(scan, tmp_path / "r", "empty-planned")
    run(scan, tmp_path / "l", "sides")
    labels = read_labels(tmp_path / "l" / "scan.nii.gz").array
    assert not read_labels(tmp_path / "r" / "scan.nii.gz").array.any()
    assert sorted(one.record["files"]) == [
        *(f"probabilities/scan_{name}.nii.gz" for name in ("1", "2", "background")),
        "scan.nii.gz",
    ]
    left = read_volume(tmp_path / "r" / "probabilities" / "scan_1.nii.gz").array
    assert left[labels == 1].mean() > left[labels == 2].mean() + 0.1


def test_a_program_that_writes_one_map_for_each_organ(scan, tmp_path) -> None:
    [one] = run(scan, tmp_path / "r", "organs", ("{input}", "{output_folder}"))
    assert [*one.record["files"]] == ["maps/scan/left half.nii.gz", "maps/scan/right half.nii.gz"]
    assert "left out, neither label maps nor probabilities: notes.txt" in one.record["warnings"]
    assert set(one.record["volumes_ml"]) == {"left half", "right half"}
    run(scan, tmp_path / "l", "sides")
    labels = read_labels(tmp_path / "l" / "scan.nii.gz")
    for value, name in ((1, "left half"), (2, "right half")):
        result = read_labels(tmp_path / "r" / "maps" / "scan" / f"{name}.nii.gz")
        np.testing.assert_array_equal(result.world_from_index, labels.world_from_index)
        assert dice(result.array == 1, labels.array == value) > 0.99


#: What a scan's name makes the program do, and what is said of it.
WRONG = {
    "broken": "broken.nii.gz: ",
    "fails": "fails: the command ended with exit code 3; see ",
    "grid": "does not lie on the image's grid",
    "killed": "the command was ended by SIGKILL",
    "logits": "values from -4.5 to -4.5 are neither labels (0 to 255) nor probabilities (0 to 1)",
    "nan": "holds values that are not finite",
    "nothing": "the command wrote no label map or probabilities; output of the command: ",
    "text": "(left out, neither label maps nor probabilities: answer.txt)",
}


@pytest.mark.parametrize(
    ("places", "workers", "named"),
    [
        (ALL, 0, ("broken", "grid", "logits", "nan")),
        (("{input}", "{output_folder}/x.nii.gz"), 2, ("fails", "killed", "nothing", "text")),
    ],
    ids=("all", "each"),
)
def test_a_failing_scan_does_not_stop_the_others(places, workers, named, tmp_path) -> None:
    for name in (*named, "sides of a scan", "zz"):
        write_image(patient(1, 0.0, 64, 2).volume, tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / "zz.nii.gz").write_bytes(b"no image")
    results = tmp_path / "r"
    outcomes = {
        one.name: one for one in run(tmp_path / "in", results, "name", places, size=64, workers=workers)
    }
    for name in named:
        assert WRONG[name] in outcomes[name].problem
        assert "running-" not in outcomes[name].problem
        assert (results / "logs" / ("command.log" if places == ALL else f"{name}.log")).is_file()
    if places != ALL:
        assert "out of luck" in (results / "logs" / "fails.log").read_text()
    assert "zz.nii.gz: " in outcomes["zz"].problem
    assert outcomes["sides of a scan"].problem is None
    left = sorted(path.name for path in results.iterdir())
    assert left == ["logs", "sides of a scan.json", "sides of a scan.nii.gz"]


def test_a_command_for_all_scans_that_fails_on_one(tmp_path) -> None:
    for name in ("fails", "nothing", "sides", "zeros"):
        write_image(patient(1, 0.0, 64, 2).volume, tmp_path / "in" / f"{name}.nii.gz")
    reporter = RecordingReporter()
    first, second, third, last = run(tmp_path / "in", tmp_path / "r", "name", ALL, size=64, reporter=reporter)
    assert first.problem == second.problem == third.problem == last.problem
    log = tmp_path / "r" / "logs" / "command.log"
    assert first.problem == (
        "fails, nothing, sides, zeros: the command ended with exit code 3, so that none of its output "
        f"counts; see {log}"
    )
    assert sum("exit code 3" in line for line in reporter.lines) == 1


def test_whatever_a_failed_command_for_all_scans_wrote_does_not_count(tmp_path) -> None:
    for name in ("late", "sides"):
        write_image(patient(1, 0.0, 64, 2).volume, tmp_path / "in" / f"{name}.nii.gz")
    # It writes a whole label map of "late" and then ends with 4: more may have been to come.
    outcomes = run(tmp_path / "in", tmp_path / "r", "name", ALL, size=64)
    log = tmp_path / "r" / "logs" / "command.log"
    problem = f"late, sides: the command ended with exit code 4, so that none of its output counts; see {log}"
    assert [(one.record, one.problem) for one in outcomes] == [(None, problem)] * 2
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["logs"]
    # The next run does them again.
    (tmp_path / "in" / "late.nii.gz").rename(tmp_path / "in" / "sides of another.nii.gz")
    outcomes = run(tmp_path / "in", tmp_path / "r", "name", ALL, size=64)
    assert [(one.problem, one.made, one.record["exit_code"]) for one in outcomes] == [(None, True, 0)] * 2


def test_the_kept_scan_is_not_the_file_that_a_command_may_overwrite(scan, tmp_path) -> None:
    run(scan, tmp_path / "whole", "sides", keep=True)
    for places, name in ((ONE, "each"), (ALL, "all")):
        [outcome] = run(scan, tmp_path / name, "in-place", places, keep=True)
        assert outcome.problem is None
        kept = Path("work", "imagesTs", "scan_0000.nii.gz")
        assert sha256(tmp_path / name / kept) == sha256(tmp_path / "whole" / kept)
        [command_input] = [
            path
            for path in (tmp_path / name / "work" / "runs").rglob("scan*.nii.gz")
            if "out" not in str(path.parent.name)
        ]
        assert command_input.read_bytes() == b"overwritten"


@pytest.mark.parametrize("places", [ALL, ("{input}", "{output_folder}/scan.nii.gz")])
def test_no_empty_folders_of_maps_stay(places, scan, tmp_path) -> None:
    [outcome] = run(scan, tmp_path / "r", "npz", places)
    assert [name for name in outcome.record["files"] if name.startswith("probabilities/")]
    [outcome] = run(scan, tmp_path / "r", "sides", places)
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["logs", "scan.json", "scan.nii.gz"]
    [outcome] = run(scan, tmp_path / "r", "npz-unfinished", places)
    if places != ALL:
        assert outcome.problem is not None
        assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["logs"]


def test_existing_results_are_not_computed_again(tmp_path, monkeypatch) -> None:
    write_image(patient(1, 0.0, 64, 2).volume, tmp_path / "in" / "a.nii.gz")
    calls = []
    work = module.run_command
    monkeypatch.setattr(module, "run_command", lambda *a: calls.append(1) or work(*a))

    def again(how="body", places=ONE, size=64, **options) -> int:
        calls.clear()
        outcomes = run(tmp_path / "in", tmp_path / "r", how, places, size=size, **options)
        assert all(one.problem is None for one in outcomes)
        return len(calls)

    assert again() == 1
    assert again() == 0
    (tmp_path / "r" / "a.nii.gz").write_bytes(b"damaged")
    assert again() == 1
    assert again(labels={"body": 1}) == 1
    assert again("sides") == 1
    assert again("sides", size=96) == 1
    # Once for all that are not there.
    write_image(patient(2, 0.0, 64, 2).volume, tmp_path / "in" / "a.nii.gz")
    assert again(places=ALL) == 1
    assert again(places=ALL) == 0
    (tmp_path / "r" / "a.json").unlink()
    assert again(places=ALL) == 1


def test_a_stopped_run_is_continued(tmp_path, monkeypatch) -> None:
    for name in ("a", "b"):
        write_image(patient(1, 0.0, 64, 2).volume, tmp_path / "in" / f"{name}.nii.gz")
    work = module.run_command

    def stopped(words, log):
        if log.name == "b.log":
            raise KeyboardInterrupt
        return work(words, log)

    monkeypatch.setattr(module, "run_command", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "r", "body", size=64)
    files = [p.relative_to(tmp_path / "r").as_posix() for p in (tmp_path / "r").rglob("*") if p.is_file()]
    assert sorted(files) == [
        *("a.json", "a.nii.gz", "logs/a.log"),
        *("work/imagesTs/b_0000.nii.gz", "work/transforms/b.json"),
    ]
    monkeypatch.setattr(module, "run_command", work)
    first, second = run(tmp_path / "in", tmp_path / "r", "body", size=64)
    assert (first.made, second.made) == (False, True)
    assert not (tmp_path / "r" / "work").exists()


def test_results_of_another_command_are_removed_if_the_new_one_fails(scan, tmp_path) -> None:
    run(scan, tmp_path / "r", "sides")
    (tmp_path / "r" / "other.json").write_text('{"files": ["mine.txt"]}')
    (tmp_path / "r" / "mine.txt").write_text("mine")
    [one] = run(scan, tmp_path / "r", "fails")
    assert one.problem is not None
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["logs", "mine.txt", "other.json"]


def test_wrapping_a_dataset_passes_no_labels_and_keeps_the_work_folder(tmp_path) -> None:
    data = write_dataset(tmp_path / "data", {"anna": "Tr"})
    outcomes = run(data, tmp_path / "r", "body", ALL, size=64, keep=True)
    assert [(one.name, one.problem) for one in outcomes] == [("anna", None)]
    work = tmp_path / "r" / "work"
    kept = sorted(p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file())
    assert kept == [
        "imagesTs/anna_0000.nii.gz",
        "runs/all/inputs/anna_0000.nii.gz",
        "runs/all/outputs/anna.nii.gz",
        "transforms/anna.json",
    ]


def test_files_are_matched_to_the_longest_case_name() -> None:
    names = ["anna.nii.gz", "anna_b.nii.gz", "anna_b_kidney.nii.gz", "anna_0000/x_seg.nii.gz", "carl.nii.gz"]
    result, strange = sort_by_case(
        ["annabel.nii.gz", "plans.json", *names], ["anna", "anna_b", "carl", "dora"]
    )
    assert result == {
        "anna": ["anna.nii.gz", "anna_0000/x_seg.nii.gz"],
        "anna_b": ["anna_b.nii.gz", "anna_b_kidney.nii.gz"],
        "carl": ["carl.nii.gz"],
        "dora": [],
    }
    assert strange == ["annabel.nii.gz", "plans.json"]


def test_dicom_results_need_names_and_a_series(scan, tmp_path) -> None:
    with pytest.raises(InputError, match=r"--format dicom-seg: .*--label kidney=1"):
        run(scan, tmp_path / "r", "sides", formats=("dicom-seg",))
    with pytest.raises(InputError, match=r"expected a DICOM series, got \.nii\.gz"):
        run(scan, tmp_path / "r", "sides", formats=("dicom-seg",), labels={"left": 1, "right": 2})
    with pytest.raises(InputError, match="choose another folder for --output"):
        run(scan.parent, scan.parent, "sides")
    assert not (tmp_path / "r").exists()
