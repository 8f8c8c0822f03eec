"""Results are named after the path that the user gives, not after the target of a link."""

import contextlib
import os
import socket

import numpy as np
import pytest

from bright import bright_model, make_scene
from io_helpers import raw_slices, write_series
from isopose.data.check import check_dataset
from isopose.evaluation.evaluate import evaluate, open_truth
from isopose.homogenize.dataset import homogenize, open_input
from isopose.inference.files import predict_scans
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, write_image, write_labels
from isopose.io.scans import find_scans
from isopose.presets import homogenize_config
from isopose.progress import Silent


@pytest.fixture(scope="module")
def model():
    return bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})


def store(tmp_path, cases=("case_1", "case_2"), target="ct.nii.gz"):
    """Make a folder of links into a store, as data versioning tools do; each case has its own roll."""
    (tmp_path / "links").mkdir()
    for number, case in enumerate(cases):
        file = tmp_path / "store" / case / "ct.nii.gz"
        write_image(make_scene(slices=3, roll=0.1 * number).volume, file)
        if target != file.name:
            file = file.rename(file.with_name(target))
        (tmp_path / "links" / f"{case}_0000.nii.gz").symlink_to(file)
    return tmp_path / "links"


def names(inputs):
    return [scan.name for scan in find_scans(inputs)]


@pytest.mark.parametrize("target", ["ct.nii.gz", "SHA256E-s8181--0af31.nii.gz", "9a0364b9e99bb480"])
def test_results_are_named_after_the_links(tmp_path, model, target):
    links = store(tmp_path, target=target)
    predicted = predict_scans(
        model, find_scans([links]), tmp_path / "out", probabilities=False, reporter=Silent()
    )
    assert [outcome.problem for outcome in predicted] == [None, None]
    for number, case in enumerate(("case_1", "case_2")):
        scene = make_scene(slices=3, roll=0.1 * number)
        labels = read_labels(tmp_path / "out" / f"{case}.nii.gz", like=scene.volume)
        assert np.mean(labels.array == scene.truth) > 0.97
    brought = homogenize(open_input(links), tmp_path / "same", homogenize_config(size=64), reporter=Silent())
    assert [(outcome.name, outcome.problem) for outcome in brought] == [("case_1", None), ("case_2", None)]
    assert (tmp_path / "same" / "imagesTs" / "case_2_0000.nii.gz").is_file()


def test_datasets_and_evaluations_accept_links(tmp_path):
    links = store(tmp_path)
    (tmp_path / "found").mkdir()
    for number, case in enumerate(("case_1", "case_2")):
        scene = make_scene(slices=3, roll=0.1 * number)
        write_labels(scene.volume.with_array(scene.truth), tmp_path / "store" / case / "seg.nii.gz")
        (links / f"{case}_seg.nii.gz").symlink_to(tmp_path / "store" / case / "seg.nii.gz")
        (tmp_path / "found" / f"{case}.nii.gz").symlink_to(tmp_path / "store" / case / "seg.nii.gz")
    (links / "list.csv").write_text(
        "image,label\n" + "".join(f"{c}_0000.nii.gz,{c}_seg.nii.gz\n" for c in ("case_1", "case_2"))
    )
    dataset = open_dataset(links / "list.csv", {"kidney": 1, "tumor": 7})
    assert [case.id for case in dataset.cases] == ["case_1_0000", "case_2_0000"]
    assert check_dataset(dataset) == []
    evaluation = evaluate(tmp_path / "found", *open_truth(tmp_path / "found", {"kidney": 1, "tumor": 7}))
    assert [case.case for case in evaluation.cases] == ["case_1", "case_2"]


def test_a_broken_link_is_reported_in_one_line_and_the_others_are_processed(tmp_path, model):
    links = store(tmp_path)
    os.unlink(tmp_path / "store" / "case_1" / "ct.nii.gz")
    (links / "case_3.nii.gz").symlink_to(links / "case_3.nii.gz")
    scans = find_scans([links])
    outcomes = predict_scans(model, scans, tmp_path / "out", probabilities=False, reporter=Silent())
    assert [outcome.name for outcome in outcomes] == ["case_1", "case_2", "case_3"]
    assert outcomes[1].problem is None
    for scan, outcome in ((scans[0], outcomes[0]), (scans[2], outcomes[2])):
        assert outcome.problem.startswith(f"{scan.path}: is a broken link")
    (links / "list.csv").write_text("image,label\ncase_1_0000.nii.gz,\ncase_2_0000.nii.gz,\n")
    problems = check_dataset(open_dataset(links / "list.csv"))
    assert [p.case for p in problems if p.severity == "error"] == ["case_1_0000"]


def test_every_file_with_a_volume_suffix_is_a_scan(tmp_path, model):
    links = store(tmp_path, ("good",))
    os.mkfifo(links / "pipe.nii.gz")
    (links / "empty.nii.gz").mkdir()
    scene = make_scene(slices=3)
    stored = (scene.volume.array + 1024).astype(np.uint16)
    write_series(links / "series.nii.gz", stored, BitsStored=16, HighBit=15)
    server = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(links):  # the system limits the length of a socket's path
        server.bind("socket.nii.gz")
    scans = find_scans([links])
    assert [scan.name for scan in scans] == ["empty", "good", "pipe", "series", "socket"]
    outcomes = predict_scans(model, scans, tmp_path / "out", probabilities=False, reporter=Silent())
    homogenized = homogenize(
        open_input(links), tmp_path / "upright", homogenize_config(size=64), reporter=Silent()
    )
    table = links / "list.csv"
    table.write_text("image,label\n" + "".join(f"{scan.path.name},\n" for scan in scans))
    checked = check_dataset(open_dataset(table))
    for name, why in (
        ("empty", "is empty, expected the files of a DICOM series, or volumes"),
        ("pipe", "is neither a file nor a folder"),
        ("socket", "is neither a file nor a folder"),
    ):
        for outcome in (*outcomes, *homogenized):
            if outcome.name == name:
                assert outcome.problem.startswith(f"{links / name}.nii.gz: {why}"), outcome.problem
        errors = [p.message for p in checked if p.case == name and p.severity == "error"]
        assert len(errors) == 1
        assert why in errors[0]
    for results in (outcomes, homogenized):
        assert [outcome.name for outcome in results if outcome.problem is None] == ["good", "series"]
    server.close()


def test_a_link_to_a_series_beside_volumes_does_not_hide_them(tmp_path):
    links = store(tmp_path)
    (links / "raw").symlink_to(write_series(tmp_path / "series", raw_slices()), target_is_directory=True)
    assert names([links]) == ["case_1", "case_2"]
