from pathlib import Path

import numpy as np
import pydicom
import pytest

from io_helpers import dicom_slice, raw_slices, save, write_series
from isopose.errors import InputError
from isopose.io.images import read_volume
from isopose.io.scans import Scan, check_names, check_output_apart, find_scans


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def names(inputs):
    return [scan.name for scan in find_scans(inputs)]


def test_files_folders_of_files_and_dicom_folders_are_found(tmp_path):
    scan = touch(tmp_path / "one" / "child_0000.nii.gz")
    for name in ("b_0000.nii.gz", "a.nrrd", "c.MHA", "notes.txt", ".hidden.nii.gz", "d.json"):
        touch(tmp_path / "many" / name)
    (tmp_path / "many" / "sub").mkdir()
    touch(tmp_path / "CT series" / "0001.dcm")
    single = touch(tmp_path / "multi.DCM")
    odd = touch(tmp_path / "CT.1.2.840")
    result = find_scans([scan, tmp_path / "many", tmp_path / "CT series", single, odd])
    assert result == [
        Scan("child", scan),
        Scan("a", tmp_path / "many" / "a.nrrd"),
        Scan("b", tmp_path / "many" / "b_0000.nii.gz"),
        Scan("c", tmp_path / "many" / "c.MHA"),
        Scan("CT series", tmp_path / "CT series"),
        Scan("multi", single),
        Scan("CT.1.2.840", odd),
    ]


def test_scans_with_the_same_result_name_have_a_problem_and_the_others_none(tmp_path):
    one = touch(tmp_path / "a" / "child_0000.nii.gz")
    two = touch(tmp_path / "b" / "child.nrrd")
    upper, lower = touch(tmp_path / "b" / "Ann.nii"), touch(tmp_path / "b" / "ann.nii.gz")
    nameless, other = touch(tmp_path / "b" / "_0000.nii.gz"), touch(tmp_path / "b" / "other.nii.gz")
    problems = {scan.path: scan.problem for scan in find_scans([tmp_path / "a", tmp_path / "b"])}
    tail = "rename one, or give each its own run and output folder"
    assert problems == {
        **{path: f"{path}: two inputs would be written as child; {tail}" for path in (one, two)},
        **{
            path: f"{path}: two inputs would be written as Ann and ann, one name on some file systems; {tail}"
            for path in (upper, lower)
        },
        nameless: f"{nameless}: its name without extension and channel is empty; rename it",
        other: None,
    }
    with pytest.raises(InputError, match="two inputs would be written as"):
        check_names(find_scans([tmp_path / "a", tmp_path / "b"]))


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    touch(tmp_path / "series" / "0001.dcm")
    monkeypatch.chdir(tmp_path / "series")
    assert names([Path()]) == ["series"]


def test_a_series_with_an_archive_beside_it_stays_a_series(tmp_path):
    touch(tmp_path / "disc" / "0001.dcm")
    touch(tmp_path / "disc" / "viewer.zip")
    assert names([tmp_path / "disc"]) == ["disc"]
    touch(tmp_path / "packed" / "a.zip")
    touch(tmp_path / "packed" / "b.ZIP")
    assert names([tmp_path / "packed"]) == ["a", "b"]


def test_links_to_series_and_to_dicomdirs_are_followed(tmp_path):
    write_series(tmp_path / "store" / "1.2.840", raw_slices(3))
    (tmp_path / "anna").symlink_to(tmp_path / "store" / "1.2.840")
    save(dicom_slice(raw_slices(1)[0], (0, 0, 0)), tmp_path / "store" / "9f86d081")
    (tmp_path / "bert.dcm").symlink_to(tmp_path / "store" / "9f86d081")
    (tmp_path / "store" / "medium").mkdir()
    pydicom.dcmwrite(tmp_path / "store" / "medium" / "DICOMDIR", dicom_slice(raw_slices(1)[0], (0, 0, 0)))
    (tmp_path / "cleo").symlink_to(tmp_path / "store" / "medium")
    path = [tmp_path / "anna", tmp_path / "bert.dcm", tmp_path / "cleo" / "DICOMDIR"]
    assert names(path) == ["anna", "bert", "cleo"]
    np.testing.assert_array_equal(
        read_volume(tmp_path / "anna").array, read_volume(tmp_path / "store" / "1.2.840").array
    )


def test_relative_folders_give_the_real_folder_name(tmp_path, monkeypatch):
    write_series(tmp_path / "anna" / "series", raw_slices(1))
    (tmp_path / "link").symlink_to(tmp_path / "anna")
    monkeypatch.chdir(tmp_path / "anna" / "series")
    for path, name in ((".", "series"), ("..", "anna"), ("../series", "series"), ("../../link", "link")):
        assert names([type(tmp_path)(path)]) == [name]
    (tmp_path / "anna" / "series" / "DICOMDIR").write_bytes(b"x")
    assert names([type(tmp_path)("DICOMDIR")]) == ["series"]
    assert names([type(tmp_path)("../series/DICOMDIR")]) == ["series"]


def test_a_series_number_is_refused_for_other_formats(tmp_path):
    with pytest.raises(InputError, match="--series chooses a DICOM series"):
        find_scans([touch(tmp_path / "a.nii.gz")], "2")


def test_an_output_folder_with_scans_is_refused(tmp_path):
    volumes = touch(tmp_path / "volumes" / "a.nii.gz").parent
    series = touch(tmp_path / "series" / "0001.dcm").parent
    for inputs, output in (([volumes], volumes), ([volumes, series], series / "out")):
        with pytest.raises(InputError, match="where the next run would take results for scans"):
            check_output_apart(inputs, output)
    # A folder of volumes is not looked into below its files.
    check_output_apart([volumes, series], volumes / "out")
    check_output_apart([volumes / "a.nii.gz"], volumes)
