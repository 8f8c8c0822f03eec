"""The description (dataset.json) of a homogenized dataset, and which folders are refused."""

import csv
import json
import shutil

import pytest
from homogenized_datasets import SMALL, assert_nnunet, files, run
from patients import write_dataset

from isopose.config import HomogenizeConfig
from isopose.errors import InputError
from isopose.files import sha256
from isopose.homogenize.dataset import homogenize, open_input
from isopose.io.datasets import open_dataset
from isopose.progress import Silent


def test_the_result_is_an_nnunet_dataset(source, homogenized) -> None:
    assert_nnunet(homogenized)
    opened = open_dataset(homogenized)
    assert [(case.id, case.split, case.label is not None) for case in opened.cases] == [
        ("anna", "train", True),
        ("bert", "train", True),
        ("cleo", "test", True),
    ]
    # Values are consecutive, whatever the source had.
    assert opened.labels.values == {"kidney": 1, "tumor": 2}
    assert open_dataset(source).labels.values == {"kidney": 1, "tumor": 7}
    head = json.loads((homogenized / "homogenize.json").read_text())
    assert head["labels"] == {"kidney": {"value": 1, "stored": 1}, "tumor": {"value": 2, "stored": 7}}
    assert (head["complete"], head["cases"], head["failed"]) == (True, ["anna", "bert", "cleo"], [])
    assert (head["per"], head["poses_from"], head["reference"]["size"]) == ("volume", "shipped", 96)
    assert files(homogenized) == {
        "dataset.json",
        "homogenize.json",
        *(f"imagesTr/{name}_0000.nii.gz" for name in ("anna", "bert")),
        *(f"labelsTr/{name}.nii.gz" for name in ("anna", "bert")),
        "imagesTs/cleo_0000.nii.gz",
        "labelsTs/cleo.nii.gz",
        *(f"transforms/{name}.json" for name in ("anna", "bert", "cleo")),
    }


def test_case_numbers_keep_the_scans_of_a_patient_together(source, tmp_path) -> None:
    assert not (source / "patients.csv").exists()
    folder = tmp_path / "data"
    shutil.copytree(source, folder)
    (folder / "patients.csv").write_text(
        "case,patient,age_years\nanna,Muster,3.5\nbert,Adler,\ncleo,Muster,4\n"
    )
    run(folder, tmp_path / "out")
    text = (tmp_path / "out" / "patients.csv").read_text()
    assert "Muster" not in text
    assert list(csv.reader(text.splitlines())) == [
        ["case", "patient", "age_years"],
        ["anna", "patient_001", "3.5"],
        ["bert", "patient_000", ""],
        ["cleo", "patient_001", "4.0"],
    ]
    cases = {case.id: case for case in open_dataset(tmp_path / "out").cases}
    assert cases["anna"].patient == cases["cleo"].patient != cases["bert"].patient
    assert cases["anna"].age_years == 3.5


def test_regions_of_nnunet_are_kept(tmp_path) -> None:
    regions = {"background": 0, "whole": [1, 7], "mass": 7}
    folder = write_dataset(tmp_path / "data", {"a": "Tr"}, regions, regions_class_order=[1, 7])
    run(folder, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "mass": 2}
    assert content["regions_class_order"] == [1, 2]
    assert_nnunet(tmp_path / "out")


def test_a_folder_with_other_files_is_refused_and_not_changed(source, tmp_path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no homogenized dataset"):
        run(source, output)
    assert files(output) == {"thesis.txt"}
    with pytest.raises(InputError, match="is not empty"):
        run(source, source)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be used as a folder"):
        run(source, tmp_path / "file")


def test_other_settings_and_other_cases_need_another_folder(source, homogenized, tmp_path) -> None:
    output = tmp_path / "out"
    shutil.copytree(homogenized, output)
    before = {name: sha256(output / name) for name in files(output)}
    for config in (HomogenizeConfig(size=128), HomogenizeConfig(size=96, per="slice")):
        with pytest.raises(InputError, match="with another model, settings or labels"):
            run(source, output, config)
    renamed = open_input(source, {"kidney": 7, "tumor": 1})
    with pytest.raises(InputError, match="with another model, settings or labels"):
        homogenize(renamed, output, SMALL, reporter=Silent())
    part = tmp_path / "part"
    shutil.copytree(source, part)
    (part / "imagesTs" / "cleo_0000.nii.gz").unlink()
    (part / "labelsTs" / "cleo.nii.gz").unlink()
    with pytest.raises(InputError, match="holds case 'cleo'"):
        run(part, output)
    assert {name: sha256(output / name) for name in files(output)} == before
