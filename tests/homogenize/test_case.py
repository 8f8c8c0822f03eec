"""One case of a homogenized dataset: its record, reuse of complete results, and what is left out."""

import json
import shutil

import numpy as np
import pytest
from homogenized_datasets import SMALL, assert_nnunet, files, run
from patients import patient, write_dataset

from bright import dice, make_scene
from io_helpers import write_series
from isopose.data.check import check_dataset
from isopose.errors import RunError
from isopose.files import sha256
from isopose.homogenize import case as module
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.record import read_record, record_path
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.outputs import damaged
from isopose.progress import Silent


def test_the_record_holds_the_inverse_transform_and_the_source(source, homogenized) -> None:
    record = read_record(record_path(homogenized, "anna"))
    scan = source / "imagesTr" / "anna_0000.nii.gz"
    assert record.sources == {"image": sha256(scan), "label": sha256(source / "labelsTr" / "anna.nii.gz")}
    assert record.files["imagesTr/anna_0000.nii.gz"] == sha256(homogenized / "imagesTr" / "anna_0000.nii.gz")
    assert damaged(homogenized, record.files) is None
    volume = read_volume(scan)
    assert record.transform.native.same_grid(volume, 0.0)
    written = read_volume(homogenized / "imagesTr" / "anna_0000.nii.gz")
    assert record.transform.homogenized.same_grid(written, 1e-4)
    assert len(record.slices) == len(record.transform.poses) == len(volume.array)
    for facts in record.slices:
        assert facts.pose_from == "anatomy"
        assert 0.9 < facts.agreement <= 1.0
        assert 0.0 < facts.confidence <= 1.0
    assert record.warnings == ()
    # Kidney and tumor of the file are those of the patient.
    labels = read_labels(homogenized / "labelsTr" / "anna.nii.gz")
    assert set(np.unique(labels.array)) == {0, 1, 2}
    assert dice(labels.array > 0, written.array > 100) > 0.1


def test_unlabeled_and_test_cases_go_to_the_test_folder(source, tmp_path) -> None:
    rows = ["image,label,case,split"]
    label = source / "labelsTr" / "anna.nii.gz"
    for image, name, rest in (("Tr/anna", "a", "val"), ("Tr/bert", "b", "train"), ("Ts/cleo", "c", "")):
        rows.append(f"{source}/images{image}_0000.nii.gz,{label if name == 'a' else ''},{name},{rest}")
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    opened = open_input(tmp_path / "cases.csv", {"kidney": 1, "tumor": 7})
    homogenize(opened, tmp_path / "out", SMALL, reporter=Silent())
    parts = {case: read_record(record_path(tmp_path / "out", case)).part for case in "abc"}
    assert parts == {"a": "Tr", "b": "Ts", "c": "Ts"}
    assert_nnunet(tmp_path / "out")


def test_existing_results_are_not_computed_again(source, tmp_path, counted) -> None:
    folder, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(source, folder)

    def again() -> int:
        counted.clear()
        outcomes = run(folder, output)
        assert sum(outcome.made for outcome in outcomes) == len(counted)
        assert_nnunet(output)
        assert json.loads((output / "homogenize.json").read_text())["complete"]
        return len(counted)

    assert again() == 3
    before = {name: sha256(output / name) for name in files(output)}
    assert again() == 0
    # Whatever is missing, damaged or made from something else is made anew, and alike.
    (output / "imagesTr" / "anna_0000.nii.gz").unlink()
    (output / "labelsTr" / "bert.nii.gz").write_bytes(b"damaged")
    (output / "transforms" / "cleo.json").write_text("{")
    (output / "imagesTr" / ".7.partial.anna_0000.nii.gz").write_bytes(b"half")
    assert again() == 3
    assert {name: sha256(output / name) for name in files(output)} == before
    labels = read_labels(folder / "labelsTr" / "anna.nii.gz")
    joined = labels.with_array(np.minimum(labels.array, 1))
    write_labels(joined, folder / "labelsTr" / "anna.nii.gz")
    assert again() == 1
    assert set(np.unique(read_labels(output / "labelsTr" / "anna.nii.gz").array)) == {0, 1}
    write_image(patient(3).volume, folder / "imagesTs" / "cleo_0000.nii.gz")
    write_labels(patient(3).volume.with_array(patient(3).stored), folder / "labelsTs" / "cleo.nii.gz")
    assert again() == 1
    # A case that changes its part leaves nothing where it was.
    for kind in ("images", "labels"):
        tail = "_0000.nii.gz" if kind == "images" else ".nii.gz"
        (folder / f"{kind}Tr" / f"bert{tail}").rename(folder / f"{kind}Ts" / f"bert{tail}")
    assert again() == 1
    assert "labelsTs/bert.nii.gz" in files(output)
    assert not any(name.startswith(("imagesTr/bert", "labelsTr/bert")) for name in files(output))


def test_a_mask_beside_slices_is_not_taken_for_the_scan(tmp_path) -> None:
    scene = make_scene(slices=3)
    stored = (scene.volume.array + 1024).astype(np.uint16)
    folder = write_series(tmp_path / "scan", stored, BitsStored=16, HighBit=15)
    write_image(scene.volume.with_array(scene.truth.astype(np.uint8)), folder / "mask.nrrd")
    (outcome,) = run(folder, tmp_path / "out")
    assert outcome.problem is not None
    assert "holds both DICOM slices and mask.nrrd" in outcome.problem
    (tmp_path / "cases.csv").write_text("image,label\nscan,scan/mask.nrrd\n")
    problems = check_dataset(open_dataset(tmp_path / "cases.csv"))
    assert any("holds both DICOM slices and mask.nrrd" in problem.message for problem in problems)
    (outcome,) = run(tmp_path / "cases.csv", tmp_path / "from-manifest")
    assert outcome.problem is not None
    assert "holds both DICOM slices and mask.nrrd" in outcome.problem


def test_a_full_disk_ends_the_run(source, tmp_path, monkeypatch) -> None:
    def full(*args):
        raise RunError("disk full")

    monkeypatch.setattr(module, "write_image", full)
    with pytest.raises(RunError, match="disk full"):
        run(source, tmp_path / "out")


def test_the_ignore_value_is_kept_and_does_not_enlarge_crops(tmp_path) -> None:
    labels = {"background": 0, "kidney": 1, "tumor": 7, "ignore": 9}
    folder = write_dataset(tmp_path / "data", {"a": "Tr"}, labels)
    run(folder, tmp_path / "plain")
    path = folder / "labelsTr" / "a.nii.gz"
    stored = read_labels(path)
    array = stored.array.copy()
    unknown = [0, len(array) - 1]
    array[unknown] = 9
    write_labels(stored.with_array(array), path)
    run(folder, tmp_path / "out")
    assert_nnunet(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "kidney": 1, "tumor": 2, "ignore": 3}
    plain, partial = (read_labels(tmp_path / out / "labelsTr" / "a.nii.gz") for out in ("plain", "out"))
    assert partial.same_grid(plain)
    ignored = partial.array == 3
    assert np.flatnonzero(ignored.any(axis=(1, 2))).tolist() == unknown
    assert ignored[unknown].mean() > 0.3
    np.testing.assert_array_equal(partial.array[1:-1], plain.array[1:-1])
