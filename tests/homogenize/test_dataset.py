"""Datasets and scans brought to one pose and size: results, resumption, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from homogenized_datasets import SMALL, assert_nnunet, files, run
from patients import patient, write_dataset

from bright import bright_model, dice, make_scene
from io_helpers import write_series
from isopose.config import HomogenizeConfig
from isopose.data.check import check_dataset
from isopose.errors import InputError
from isopose.homogenize import case as module
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.record import read_record, record_path
from isopose.homogenize.restore import restore
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.io.masks import with_masks
from isopose.models.folder import save_model
from isopose.models.info import ReferenceInfo
from isopose.models.shipped import load_shipped
from isopose.presets import homogenize_config
from isopose.progress import Silent


def test_records_contain_no_path(source, homogenized, tmp_path) -> None:
    texts = [path.read_text() for path in homogenized.rglob("*.json")]
    assert not any(str(source.parent) in text or str(homogenized) in text for text in texts)
    scans = tmp_path / "Muster Erika"
    write_image(patient(0, slices=3).volume, scans / "one.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"no image")
    output = tmp_path / "out"
    good = run(scans, output)[1]
    assert good.record is not None
    texts = [path.read_text() for path in output.rglob("*") if path.suffix in (".json", ".csv")]
    assert len(texts) == 3
    assert not any("Muster" in text or "/" + str(tmp_path.name) in text for text in texts)


def test_scans_without_labels_become_a_test_set(tmp_path) -> None:
    write_image(patient(0, slices=3).volume, tmp_path / "scans" / "one_0000.nii.gz")
    write_image(patient(1, slices=3).volume, tmp_path / "scans" / "two.nrrd")
    [one, two] = run(tmp_path / "scans", tmp_path / "out")
    assert (one.name, two.name) == ("one", "two")
    assert files(tmp_path / "out") == {
        "dataset.json",
        "homogenize.json",
        "imagesTs/one_0000.nii.gz",
        "imagesTs/two_0000.nii.gz",
        "transforms/one.json",
        "transforms/two.json",
    }
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (content["labels"], content["numTraining"]) == ({"background": 0}, 0)
    opened = open_dataset(tmp_path / "out")
    assert opened.labels.values == {}
    assert [case.split for case in opened.cases] == ["test", "test"]
    assert {p.severity for p in check_dataset(opened)} == {"warning"}
    # A single file gives the same voxels.
    run(tmp_path / "scans" / "two.nrrd", tmp_path / "single")
    same = [read_volume(tmp_path / d / "imagesTs" / "two_0000.nii.gz").array for d in ("out", "single")]
    np.testing.assert_array_equal(*same)


def test_a_dataset_with_labels_needs_label_names(source, tmp_path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(source, folder)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0}}))
    with pytest.raises(InputError, match="expected at least one label besides background"):
        open_input(folder)
    with pytest.raises(InputError, match="scans without labels"):
        open_input(folder / "imagesTs", {"kidney": 1})


def test_a_stopped_run_leaves_no_dataset_and_can_be_continued(source, tmp_path, counted, monkeypatch) -> None:
    class Stopped(BaseException):
        pass

    write = module.write_image

    def stopping(volume, path):
        if path.name.startswith("bert"):
            raise Stopped
        write(volume, path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_image", stopping)
        with pytest.raises(Stopped):
            run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not json.loads((tmp_path / "out" / "homogenize.json").read_text())["complete"]
    assert record_path(tmp_path / "out", "anna").exists()
    assert not record_path(tmp_path / "out", "bert").exists()
    counted.clear()
    run(source, tmp_path / "out")
    assert len(counted) == 2
    assert_nnunet(tmp_path / "out")


def test_a_bad_scan_is_reported_and_leaves_no_files(source, tmp_path) -> None:
    folder, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(source, folder)
    run(folder, output)
    (folder / "imagesTr" / "anna_0000.nii.gz").write_bytes(b"no image")
    write_image(make_scene(slices=2, empty=(0, 1)).volume, folder / "imagesTs" / "cleo_0000.nii.gz")
    (folder / "labelsTs" / "cleo.nii.gz").unlink()
    anna, bert, cleo = run(folder, output)
    assert "anna_0000.nii.gz: " in anna.problem
    assert "cleo_0000.nii.gz: no body found" in cleo.problem
    assert bert.problem is None
    assert files(output) == {
        "dataset.json",
        "homogenize.json",
        "imagesTr/bert_0000.nii.gz",
        "labelsTr/bert.nii.gz",
        "transforms/bert.json",
    }
    assert json.loads((output / "homogenize.json").read_text())["failed"] == ["anna", "cleo"]
    assert_nnunet(output)
    # Labels of another grid, and unknown values, are bad input too.
    labels = read_labels(folder / "labelsTr" / "bert.nii.gz")
    write_labels(labels.with_array(labels.array * 3), folder / "labelsTr" / "bert.nii.gz")
    outcomes = run(folder, output)
    assert "unknown label value" in outcomes[1].problem
    assert not (output / "dataset.json").exists(), "no case is no dataset"


def test_an_output_folder_inside_a_series_is_refused(tmp_path) -> None:
    folder = write_series(tmp_path / "scan", np.zeros((3, 8, 8), np.uint16))
    for output in (folder, folder / "upright"):
        with pytest.raises(InputError, match="is the folder of the scans"):
            homogenize(open_input(folder), output, HomogenizeConfig(), reporter=Silent())
    assert sorted(path.suffix for path in folder.iterdir()) == [".dcm"] * 3


def test_one_of_several_series_is_chosen(tmp_path) -> None:
    stored = (patient(1, slices=4).volume.array + 1024).clip(0).astype(np.uint16)
    for number, rows in (("4", slice(0, 4)), ("7", slice(1, 4))):
        fields = {"SeriesNumber": number, "SeriesInstanceUID": f"1.2.{number}"}
        write_series(tmp_path / "scan" / number, stored[rows], BitsStored=16, HighBit=15, **fields)
    [several] = run(tmp_path / "scan", tmp_path / "out")
    assert "choose one by its number (--series of homogenize" in several.problem
    for number, slices in (("4", 4), ("7", 3)):
        opened = open_input(tmp_path / "scan", series=number)
        [outcome] = homogenize(opened, tmp_path / "out", SMALL, series=number, reporter=Silent())
        assert outcome.made
        assert len(outcome.record.transform.poses) == slices
    with pytest.raises(InputError, match="--series chooses a DICOM series, got a dataset; leave it out"):
        open_input(write_dataset(tmp_path / "data", {"anna": "Tr"}), series="4")


def test_a_scan_whose_slices_would_lie_far_apart_is_refused(tmp_path) -> None:
    """Its image could not be read back: the error would blame the segmenter that copied the header."""
    volume = patient(1, slices=3).volume
    write_image(volume, tmp_path / "scans" / "one.nii.gz")
    body = np.zeros(volume.array.shape, np.uint8)
    body[1, 60, 60] = 1
    write_labels(volume.with_array(body), tmp_path / "masks" / "one.nii.gz")
    opened = with_masks(open_input(tmp_path / "scans"), tmp_path / "masks")
    [outcome] = homogenize(opened, tmp_path / "out", SMALL, reporter=Silent())
    assert "mm apart instead of" in outcome.problem
    assert "is the body's mask, or the voxel size, right?" in outcome.problem
    config = homogenize_config(size=96, scale_z=False)
    [outcome] = homogenize(opened, tmp_path / "unscaled", config, reporter=Silent())
    assert outcome.problem is None


def test_another_process_writes_the_same_bytes(source, homogenized, tmp_path) -> None:
    run(source, tmp_path / "out", workers=1)
    for name in files(homogenized):
        assert (tmp_path / "out" / name).read_bytes() == (homogenized / name).read_bytes(), name


@pytest.mark.parametrize(
    ("values", "words"),
    [({"per": "patient"}, "per: "), ({"size": 8}, "size: "), ({"size": 4000}, "size: ")],
)
def test_settings_out_of_range_are_refused(values, words) -> None:
    with pytest.raises(InputError, match=words):
        homogenize_config(**values)
    assert homogenize_config(per=None, size=None) == HomogenizeConfig()


def test_a_dataset_of_crops_is_restored(tmp_path) -> None:
    model = bright_model(
        {"pose": {"start": "anatomy", "learned": False, "per": "smooth"}, "crop": {"learned": False}},
        crop_start=(-0.75, -0.6, 0.7, 0.85),
        real_unet=True,
    )
    load_shipped(model.pipeline.pose.roll)
    save_model(
        tmp_path / "model", replace(model, info=replace(model.info, reference=ReferenceInfo(area_cm2=226.2)))
    )
    write_dataset(tmp_path / "data", {"a": "Tr", "b": "Ts"})
    config = HomogenizeConfig(size=256, crop=True)
    options = {"model": tmp_path / "model", "reporter": Silent()}
    outcomes = homogenize(open_dataset(tmp_path / "data"), tmp_path / "out", config, **options)
    assert [outcome.problem for outcome in outcomes] == [None, None]
    head = json.loads((tmp_path / "out" / "homogenize.json").read_text())
    assert (head["crop"], head["cases"]) == (True, ["a", "b"])
    for case, part in (("a", "Tr"), ("b", "Ts")):
        image = read_volume(tmp_path / "out" / f"images{part}" / f"{case}_0000.nii.gz")
        size = read_record(record_path(tmp_path / "out", case)).transform.grid.size
        assert image.array.shape[1:] == (size, size) < (256, 256)
        restore(tmp_path / "out" / f"labels{part}", tmp_path / "out", tmp_path / "back", reporter=Silent())
        back = read_labels(tmp_path / "back" / f"{case}.nii.gz")
        truth = read_labels(tmp_path / "data" / f"labels{part}" / f"{case}.nii.gz")
        assert back.same_grid(truth)
        for value in (1, 7):
            assert dice(back.array == value, truth.array == value) > 0.98
    # Whole and cropped do not mix in one folder.
    with pytest.raises(InputError, match="with another model, settings or labels"):
        homogenize(open_dataset(tmp_path / "data"), tmp_path / "out", HomogenizeConfig(size=256), **options)
