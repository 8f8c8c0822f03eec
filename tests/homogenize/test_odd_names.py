"""Scans whose names cannot be those of results are one line each, and the others are done."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from homogenized_datasets import SMALL, files, run
from patients import patient, write_dataset
from segmenters import __file__ as SEGMENTER
from typer.testing import CliRunner

from isopose.cli import app
from isopose.data.check import check_dataset
from isopose.errors import InputError
from isopose.files import sha256
from isopose.homogenize.command import read_command
from isopose.homogenize.wrap import open_scans, wrap
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, write_image
from isopose.progress import Silent

#: Names of files, and what is said of each scan among them.
ODD = {
    "twin.nii": "two inputs would be written as twin; rename one",
    "twin.nii.gz": "two inputs would be written as twin; rename one",
    "Ann.nii.gz": "two inputs would be written as Ann and ann, one name on some file systems; rename one",
    "ann.nii.gz": "two inputs would be written as Ann and ann, one name on some file systems; rename one",
    "-x.nii.gz": "case id '-x' cannot be a file name; rename it",
    "what?.nii.gz": "case id 'what?' cannot be a file name; rename it",
    "two\nlines.nii.gz": "its name has control characters; rename it",
    "_0000.nii.gz": "its name without extension and channel is empty; rename it",
    f"{'n' * 201}.nii.gz": "its name has over 200 bytes; rename it",
    f"{'m' * 151}.nii.gz": "at most 150 of them",
    os.fsdecode(b"bad\xff.nii.gz"): "its name is not UTF-8; rename it",
    "pair_0000.nii.gz": "has 2 channels (_0000, _0001, ...)",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scans = tmp_path / "in"
    write_image(patient(1, 25.0, 96, 3).volume, scans / "good.nii.gz")
    write_image(patient(1, 25.0, 96, 3).volume, scans / "twin.nii")
    for name in (*ODD, "pair_0001.nii.gz"):
        if name != "twin.nii":
            shutil.copy(scans / "good.nii.gz", scans / name)
    return scans


def wrapped(path: Path, output: Path, *places: str, reporter=None):
    command = read_command([sys.executable, SEGMENTER, "body", *(places or ("{input}", "{output}"))])
    return wrap(open_scans(path), output, command, SMALL, reporter=reporter or Silent())


def assert_one_line_each(outcomes) -> None:
    problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    assert len(problems) == len(ODD)
    assert all(problem.isprintable() for problem in problems)
    for expected in ODD.values():
        assert any(expected in problem for problem in problems), expected
    [good] = [outcome for outcome in outcomes if outcome.problem is None]
    assert good.name == "good"


def test_homogenize(folder: Path, tmp_path: Path) -> None:
    outcomes = run(folder, tmp_path / "out")
    assert_one_line_each(outcomes)
    made = {"dataset.json", "homogenize.json", "imagesTs/good_0000.nii.gz", "transforms/good.json"}
    assert files(tmp_path / "out") == made
    run(folder / "good.nii.gz", tmp_path / "alone")
    images = [tmp_path / name / "imagesTs" / "good_0000.nii.gz" for name in ("out", "alone")]
    assert sha256(images[0]) == sha256(images[1])


@pytest.mark.parametrize("places", [(), ("{inputs}", "{outputs}")])
def test_wrap(places, folder: Path, tmp_path: Path) -> None:
    outcomes = wrapped(folder, tmp_path / "r", *places)
    assert_one_line_each(outcomes)
    wrapped(folder / "good.nii.gz", tmp_path / "alone")
    found = [read_labels(tmp_path / name / "good.nii.gz").array for name in ("r", "alone")]
    assert found[0].any()
    np.testing.assert_array_equal(found[0], found[1])
    log = "command.log" if places else "good.log"
    assert files(tmp_path / "r") == {"good.json", "good.nii.gz", f"logs/{log}"}


def test_the_commands_say_it_and_exit_with_2(folder: Path, tmp_path: Path) -> None:
    command = ["--", sys.executable, SEGMENTER, "body", "{input}", "{output}"]
    for options in (
        ["homogenize", str(folder), str(tmp_path / "out"), "--size", "96"],
        ["wrap", str(folder), "--output", str(tmp_path / "r"), "--size", "96", *command],
    ):
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 2
        assert f"isopose: {folder / 'twin.nii'}: two inputs would be written as twin" in result.output
        assert "two\nlines" not in result.output
    assert (tmp_path / "out" / "imagesTs" / "good_0000.nii.gz").is_file()
    assert (tmp_path / "r" / "good.nii.gz").is_file()


def test_a_result_of_a_scan_does_not_stay_when_another_gets_its_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(patient(1, 25.0, 96, 3).volume, tmp_path / "in" / f"{name}.nii.gz")
    run(tmp_path / "in", tmp_path / "out")
    wrapped(tmp_path / "in", tmp_path / "r")
    write_image(patient(2, 0.0, 96, 3).volume, tmp_path / "in" / "a.nii")
    outcomes = run(tmp_path / "in", tmp_path / "out")
    assert [(one.name, one.problem is None, one.made) for one in outcomes] == [
        *(("a", False, True), ("a", False, True)),
        ("b", True, False),
    ]
    made = {"dataset.json", "homogenize.json", "imagesTs/b_0000.nii.gz", "transforms/b.json"}
    assert files(tmp_path / "out") == made
    wrapped(tmp_path / "in", tmp_path / "r")
    assert files(tmp_path / "r") == {"b.json", "b.nii.gz", "logs/a.log", "logs/b.log"}


def test_nothing_is_written_where_no_scan_can_be_used(tmp_path: Path) -> None:
    write_image(patient(1, 25.0, 96, 3).volume, tmp_path / "in" / "-x.nii.gz")
    for outcomes in (run(tmp_path / "in", tmp_path / "out"), wrapped(tmp_path / "in", tmp_path / "r")):
        assert ["case id '-x' cannot be a file name" in str(one.problem) for one in outcomes] == [True]
    command = ["--", sys.executable, SEGMENTER, "body", "{input}", "{output}"]
    result = CliRunner().invoke(
        app, ["wrap", str(tmp_path / "in"), "--output", str(tmp_path / "r"), *command]
    )
    assert result.exit_code == 2
    assert "output of the command" not in result.output
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "r").exists()


def test_a_dataset_with_such_a_case_is_checked_and_homogenized_but_not_trained_on(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", {"anna": "Tr", "bert": "Tr", "Bert": "Tr"})
    with pytest.raises(InputError, match="case ids must be unique, got 'Bert' and 'bert'; rename one"):
        open_dataset(data)
    checked = check_dataset(open_dataset(data, allow_unusable=True))
    errors = [(one.case, one.message) for one in checked if one.severity == "error"]
    line = f"{data}: case ids must be unique, got 'Bert' and 'bert'; rename one"
    assert errors == [("Bert", line), ("bert", line)]
    result = CliRunner().invoke(app, ["check", str(data)])
    assert result.exit_code == 2
    assert f"error: bert: {line}" in result.output
    assert "2 of 3 cases cannot be used" in result.output
    outcomes = run(data, tmp_path / "out")
    assert [(one.name, one.problem) for one in outcomes] == [("Bert", line), ("bert", line), ("anna", None)]
    assert [path.name for path in (tmp_path / "out" / "labelsTr").iterdir()] == ["anna.nii.gz"]
