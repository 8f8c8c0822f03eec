import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from patients import patient, write_dataset

from bright import bright_model, dice, scene
from io_helpers import write_series
from isopose.config import HomogenizeConfig
from isopose.data.check import check_dataset
from isopose.errors import InputError, RunError
from isopose.files import sha256
from isopose.homogenize import dataset as module
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.record import read_record, record_path
from isopose.homogenize.restore import restore
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.models.folder import save_model
from isopose.models.info import ReferenceInfo
from isopose.models.shipped import load_shipped
from isopose.outputs import damaged
from isopose.presets import homogenize_config
from isopose.progress import Silent

SMALL = HomogenizeConfig(size=96)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source") / "Dataset007_Phantoms"
    return write_dataset(root, {"anna": "Tr", "bert": "Tr", "cleo": "Ts"})


@pytest.fixture(scope="module")
def done(source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("done") / "Dataset008_Upright"
    outcomes = run(source, output)
    assert [outcome.problem for outcome in outcomes] == [None] * 3
    return output


def run(path, output, config=SMALL, **options):
    return homogenize(open_input(path), output, config, reporter=Silent(), **options)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def assert_nnunet(root: Path) -> None:
    """The rules of nnU-Net's ``verify_dataset_integrity``, and that isopose's own check finds no error."""
    content = json.loads((root / "dataset.json").read_text())
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= set(content)
    assert content["channel_names"] == {"0": "CT"}
    images = sorted(path.name for path in (root / "imagesTr").glob("*"))
    labels = sorted(path.name for path in (root / "labelsTr").glob("*"))
    assert images == [name.replace(".nii.gz", "_0000.nii.gz") for name in labels]
    assert content["numTraining"] == len(labels)
    stored = [value if isinstance(value, list) else [value] for value in content["labels"].values()]
    listed = {value for values in stored for value in values}
    assert sorted(listed) == list(range(len(listed)))
    assert content["labels"]["background"] == 0
    for name in labels:
        label = sitk.ReadImage(str(root / "labelsTr" / name))
        image = sitk.ReadImage(str(root / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz")))
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(label, get)(), getattr(image, get)(), rtol=0, atol=1e-6)
        assert set(np.unique(sitk.GetArrayFromImage(label))) <= listed
        assert image.GetPixelID() == sitk.sitkInt16
    assert [p for p in check_dataset(open_dataset(root)) if p.severity == "error"] == []


def test_the_result_is_an_nnunet_dataset(source, done) -> None:
    assert_nnunet(done)
    opened = open_dataset(done)
    assert [(case.id, case.split, case.label is not None) for case in opened.cases] == [
        ("anna", "train", True),
        ("bert", "train", True),
        ("cleo", "test", True),
    ]
    # Values are consecutive, whatever the source had.
    assert opened.labels.values == {"kidney": 1, "tumor": 2}
    assert open_dataset(source).labels.values == {"kidney": 1, "tumor": 7}
    head = json.loads((done / "homogenize.json").read_text())
    assert head["labels"] == {"kidney": {"value": 1, "stored": 1}, "tumor": {"value": 2, "stored": 7}}
    assert (head["complete"], head["cases"], head["failed"]) == (True, ["anna", "bert", "cleo"], [])
    assert (head["per"], head["poses_from"], head["reference"]["size"]) == ("volume", "shipped", 96)
    assert files(done) == {
        "dataset.json",
        "homogenize.json",
        *(f"imagesTr/{name}_0000.nii.gz" for name in ("anna", "bert")),
        *(f"labelsTr/{name}.nii.gz" for name in ("anna", "bert")),
        "imagesTs/cleo_0000.nii.gz",
        "labelsTs/cleo.nii.gz",
        *(f"transforms/{name}.json" for name in ("anna", "bert", "cleo")),
    }


def test_the_record_says_all_that_undoes_it_and_what_it_was_made_from(source, done) -> None:
    record = read_record(record_path(done, "anna"))
    scan = source / "imagesTr" / "anna_0000.nii.gz"
    assert record.sources == {"image": sha256(scan), "label": sha256(source / "labelsTr" / "anna.nii.gz")}
    assert record.files["imagesTr/anna_0000.nii.gz"] == sha256(done / "imagesTr" / "anna_0000.nii.gz")
    assert damaged(done, record.files) is None
    volume = read_volume(scan)
    assert record.transform.native.same_grid(volume, 0.0)
    written = read_volume(done / "imagesTr" / "anna_0000.nii.gz")
    assert record.transform.homogenized.same_grid(written, 1e-4)
    assert len(record.slices) == len(record.transform.poses) == len(volume.array)
    for facts in record.slices:
        assert facts.pose_from == "anatomy"
        assert 0.9 < facts.agreement <= 1.0
        assert 0.0 < facts.confidence <= 1.0
    assert record.warnings == ()
    # Kidney and tumor of the file are those of the patient.
    labels = read_labels(done / "labelsTr" / "anna.nii.gz")
    assert set(np.unique(labels.array)) == {0, 1, 2}
    assert dice(labels.array > 0, written.array > 100) > 0.1


def test_no_path_and_no_folder_is_named(source, done, tmp_path) -> None:
    texts = [path.read_text() for path in done.rglob("*.json")]
    assert not any(str(source.parent) in text or str(done) in text for text in texts)
    scans = tmp_path / "Muster Erika"
    write_image(patient(0, slices=3).volume, scans / "one.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"no image")
    output = tmp_path / "out"
    good = run(scans, output)[1]
    assert good.record is not None
    texts = [path.read_text() for path in output.rglob("*") if path.suffix in (".json", ".csv")]
    assert len(texts) == 3
    assert not any("Muster" in text or "/" + str(tmp_path.name) in text for text in texts)


def test_patients_stay_together_under_numbers(source, tmp_path) -> None:
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


def test_regions_of_nnunet_stay_regions(tmp_path) -> None:
    regions = {"background": 0, "whole": [1, 7], "mass": 7}
    folder = write_dataset(tmp_path / "data", {"a": "Tr"}, regions, regions_class_order=[1, 7])
    run(folder, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "mass": 2}
    assert content["regions_class_order"] == [1, 2]
    assert_nnunet(tmp_path / "out")


def test_scans_without_labels_are_a_dataset_to_predict(tmp_path) -> None:
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


def test_a_dataset_with_labels_must_name_them(source, tmp_path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(source, folder)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0}}))
    with pytest.raises(InputError, match="expected at least one label besides background"):
        open_input(folder)
    with pytest.raises(InputError, match="scans without labels"):
        open_input(folder / "imagesTs", {"kidney": 1})


def test_a_case_without_label_and_a_test_case_do_not_train(source, tmp_path) -> None:
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


# Going on, and refusing


@pytest.fixture
def counted(monkeypatch):
    """How many scans were homogenized."""
    calls = []
    work = module.homogenize_scan
    monkeypatch.setattr(module, "homogenize_scan", lambda *a: calls.append(1) or work(*a))
    return calls


def test_what_is_there_is_not_done_again(source, tmp_path, counted) -> None:
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
    for place in ("images", "labels"):
        tail = "_0000.nii.gz" if place == "images" else ".nii.gz"
        (folder / f"{place}Tr" / f"bert{tail}").rename(folder / f"{place}Ts" / f"bert{tail}")
    assert again() == 1
    assert "labelsTs/bert.nii.gz" in files(output)
    assert not any(name.startswith(("imagesTr/bert", "labelsTr/bert")) for name in files(output))


def test_a_stopped_run_leaves_no_dataset_and_goes_on(source, tmp_path, counted, monkeypatch) -> None:
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


def test_a_bad_scan_does_not_stop_the_rest_and_leaves_nothing(source, tmp_path) -> None:
    folder, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(source, folder)
    run(folder, output)
    (folder / "imagesTr" / "anna_0000.nii.gz").write_bytes(b"no image")
    write_image(scene(slices=2, empty=(0, 1)).volume, folder / "imagesTs" / "cleo_0000.nii.gz")
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


def test_a_mask_beside_slices_is_not_taken_for_the_scan(tmp_path) -> None:
    here = scene(slices=3)
    stored = (here.volume.array + 1024).astype(np.uint16)
    folder = write_series(tmp_path / "scan", stored, BitsStored=16, HighBit=15)
    write_image(here.volume.with_array(here.truth.astype(np.uint8)), folder / "mask.nrrd")
    (outcome,) = run(folder, tmp_path / "out")
    assert outcome.problem is not None
    assert "holds both DICOM slices and mask.nrrd" in outcome.problem
    (tmp_path / "cases.csv").write_text("image,label\nscan,scan/mask.nrrd\n")
    problems = check_dataset(open_dataset(tmp_path / "cases.csv"))
    assert any("holds both DICOM slices and mask.nrrd" in problem.message for problem in problems)
    (outcome,) = run(tmp_path / "cases.csv", tmp_path / "from-manifest")
    assert outcome.problem is not None
    assert "holds both DICOM slices and mask.nrrd" in outcome.problem


def test_results_below_a_series_are_refused_since_they_would_belong_to_it(tmp_path) -> None:
    folder = write_series(tmp_path / "scan", np.zeros((3, 8, 8), np.uint16))
    for output in (folder, folder / "upright"):
        with pytest.raises(InputError, match="is the folder of the scans"):
            homogenize(open_input(folder), output, HomogenizeConfig(), reporter=Silent())
    assert sorted(path.suffix for path in folder.iterdir()) == [".dcm"] * 3


def test_a_folder_of_something_else_is_left_alone(source, tmp_path) -> None:
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


def test_other_settings_and_other_cases_need_another_folder(source, done, tmp_path) -> None:
    output = tmp_path / "out"
    shutil.copytree(done, output)
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


def test_another_process_writes_the_same_bytes(source, done, tmp_path) -> None:
    run(source, tmp_path / "out", workers=1)
    for name in files(done):
        assert (tmp_path / "out" / name).read_bytes() == (done / name).read_bytes(), name


def test_a_disk_that_is_full_ends_the_run(source, tmp_path, monkeypatch) -> None:
    def full(*args):
        raise RunError("disk full")

    monkeypatch.setattr(module, "write_image", full)
    with pytest.raises(RunError, match="disk full"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "words"),
    [({"per": "patient"}, "per: "), ({"size": 8}, "size: "), ({"size": 4000}, "size: ")],
)
def test_settings_out_of_range_are_refused(values, words) -> None:
    with pytest.raises(InputError, match=words):
        homogenize_config(**values)
    assert homogenize_config(per=None, size=None) == HomogenizeConfig()


def test_crops_of_a_model_are_a_dataset_that_comes_back(tmp_path) -> None:
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
    given = {"model": tmp_path / "model", "reporter": Silent()}
    outcomes = homogenize(open_dataset(tmp_path / "data"), tmp_path / "out", config, **given)
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
        homogenize(open_dataset(tmp_path / "data"), tmp_path / "out", HomogenizeConfig(size=256), **given)


def test_what_nobody_labeled_stays_so_and_enlarges_nothing(tmp_path) -> None:
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
    plain, made = (read_labels(tmp_path / out / "labelsTr" / "a.nii.gz") for out in ("plain", "out"))
    assert made.same_grid(plain)
    ignored = made.array == 3
    assert np.flatnonzero(ignored.any(axis=(1, 2))).tolist() == unknown
    assert ignored[unknown].mean() > 0.3
    np.testing.assert_array_equal(made.array[1:-1], plain.array[1:-1])
