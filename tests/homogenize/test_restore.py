import json
import shutil
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from patients import patient, write_dataset

from bright import dice, stored_otherwise, world_center
from isopose.config import HomogenizeConfig
from isopose.errors import InputError
from isopose.files import hash_of, sha256
from isopose.geometry.volume import Volume
from isopose.homogenize import restore as module
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.record import read_record, record_path
from isopose.homogenize.restore import restore
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.progress import Silent

#: Some of the 48 ways in which a scan may be stored: each axis first, flips of each.
STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))[::7]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source") / "data"
    return write_dataset(root, {"anna": "Tr", "anna_b": "Ts"})


@pytest.fixture(scope="module")
def homogenized(source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("done") / "out"
    run(source, output)
    return output


@pytest.fixture
def predictions(homogenized, tmp_path) -> Path:
    """Predictions of a perfect segmenter: the homogenized labels."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    shutil.copy(homogenized / "labelsTr" / "anna.nii.gz", folder)
    shutil.copy(homogenized / "labelsTs" / "anna_b.nii.gz", folder)
    (folder / "plans.json").write_text("{}")
    return folder


def run(path, output, size=256):
    return homogenize(open_input(path), output, HomogenizeConfig(size=size), reporter=Silent())


def back(predictions, homogenized, output, **options):
    return restore(predictions, homogenized, output, reporter=Silent(), **options)


def test_no_empty_folder_of_probabilities_stays(homogenized, tmp_path) -> None:
    inputs, out = tmp_path / "inputs", tmp_path / "r"
    labels = read_labels(homogenized / "labelsTr" / "anna.nii.gz")
    kidney = labels.with_array((labels.array == 1).astype(np.float32))
    write_image(kidney, inputs / "anna_kidney.nii.gz")
    [outcome] = back(inputs, homogenized, out)
    assert "probabilities/anna_kidney.nii.gz" in outcome.record["files"]
    # The second class cannot be read, after the first was written.
    (inputs / "anna_tumor.nii.gz").write_bytes(b"no image")
    [outcome] = back(inputs, homogenized, out)
    assert outcome.problem is not None
    assert not list(out.iterdir())


def test_labels_are_restored_on_the_exact_grid_with_their_values(
    source, homogenized, predictions, tmp_path
) -> None:
    restored = back(predictions, homogenized, tmp_path / "r")
    assert [(one.name, one.problem) for one in restored] == [("anna", None), ("anna_b", None)]
    for name, part in (("anna", "Tr"), ("anna_b", "Ts")):
        image = read_volume(source / f"images{part}" / f"{name}_0000.nii.gz")
        truth = read_labels(source / f"labels{part}" / f"{name}.nii.gz")
        result = read_labels(tmp_path / "r" / f"{name}.nii.gz")
        np.testing.assert_array_equal(result.world_from_index, image.world_from_index)
        assert result.array.shape == image.array.shape
        for value in (1, 7):
            assert dice(result.array == value, truth.array == value) > 0.98
        assert set(np.unique(result.array)) == {0, 1, 7}
    record = json.loads((tmp_path / "r" / "anna.json").read_text())
    assert record["predictions"] == {"anna.nii.gz": sha256(predictions / "anna.nii.gz")}
    assert record["files"] == {"anna.nii.gz": sha256(tmp_path / "r" / "anna.nii.gz")}
    assert record["labels"] == {"kidney": 1, "tumor": 7}
    assert str(tmp_path) not in json.dumps(record)


def test_keep_values_keeps_the_values_of_the_prediction(homogenized, predictions, tmp_path) -> None:
    back(predictions, homogenized, tmp_path / "r", keep_values=True)
    assert set(np.unique(read_labels(tmp_path / "r" / "anna.nii.gz").array)) == {0, 1, 2}


def test_predictions_with_other_labels_are_restored(homogenized, predictions, tmp_path) -> None:
    path = predictions / "anna.nii.gz"
    labels = read_labels(path)
    write_labels(labels.with_array(np.where(labels.array == 2, 200, labels.array)), path)
    bad, good = back(predictions, homogenized, tmp_path / "r")
    assert "label value 200, expected 0 or one of [1, 2]" in bad.problem
    assert good.problem is None
    assert not (tmp_path / "r" / "anna.nii.gz").exists()
    assert back(predictions, homogenized, tmp_path / "r", keep_values=True)[0].problem is None
    assert set(np.unique(read_labels(tmp_path / "r" / "anna.nii.gz").array)) == {0, 1, 200}


@pytest.mark.parametrize(("axes", "flips"), STORAGES, ids=lambda v: "".join(str(int(i)) for i in v))
def test_every_storage_order_is_restored_in_position(axes, flips, tmp_path) -> None:
    one = patient(2, 200.0, 96, 3)
    scan = stored_otherwise(one.volume, axes, flips)
    truth = stored_otherwise(one.volume.with_array(one.classes), axes, flips)
    write_image(scan, tmp_path / "scan.nii.gz")
    [outcome] = run(tmp_path / "scan.nii.gz", tmp_path / "out")
    transform = outcome.record.transform
    # What a segmenter would say that sees the upright image: the same labels, brought there by another way.
    write_labels(truth, tmp_path / "truth" / "scan.nii.gz")
    rows = f"image,label\n{tmp_path / 'scan.nii.gz'},{tmp_path / 'truth' / 'scan.nii.gz'}\n"
    (tmp_path / "cases.csv").write_text(rows)
    labeled = open_input(tmp_path / "cases.csv")
    [same] = homogenize(labeled, tmp_path / "other", HomogenizeConfig(size=256), reporter=Silent())
    assert same.record.transform == transform
    [restored] = back(tmp_path / "other" / "labelsTr", tmp_path / "out", tmp_path / "r")
    assert restored.problem is None
    result, image = read_labels(tmp_path / "r" / "scan.nii.gz"), read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(result.world_from_index, image.world_from_index)
    for value in (1, 2):
        assert dice(result.array == value, truth.array == value) > 0.98
        actual_center = world_center(result, result.array == value)
        assert np.linalg.norm(actual_center - world_center(truth, truth.array == value)) < 0.5


def test_a_prediction_in_another_axis_order_is_reordered(homogenized, predictions, tmp_path) -> None:
    back(predictions, homogenized, tmp_path / "r")
    labels = read_labels(predictions / "anna.nii.gz")
    (predictions / "anna.nii.gz").unlink()
    write_labels(stored_otherwise(labels, (2, 0, 1), (True, False, True)), predictions / "anna.nrrd")
    assert back(predictions, homogenized, tmp_path / "s")[0].problem is None
    same = [read_labels(tmp_path / d / "anna.nii.gz").array for d in "rs"]
    np.testing.assert_array_equal(*same)


def soft(homogenized: Path, folder: Path, names=("background", "kidney", "tumor")) -> None:
    """Write probabilities: 0.8 for the voxel's own class, 0.1 for each other class."""
    labels = read_labels(homogenized / "labelsTr" / "anna.nii.gz")
    for value, name in enumerate(names):
        share = np.where(labels.array == value, 0.8, 0.1).astype(np.float32)
        write_image(labels.with_array(share), folder / f"anna_{name}.nii.gz")


@pytest.mark.parametrize("inner", ["", "probabilities"])
def test_probabilities_are_restored_and_missing_mass_is_background(
    source, homogenized, inner, tmp_path
) -> None:
    soft(homogenized, tmp_path / "p" / inner)
    [one] = back(tmp_path / "p", homogenized, tmp_path / "r")
    assert one.problem is None
    image = read_volume(source / "imagesTr" / "anna_0000.nii.gz")
    truth = read_labels(source / "labelsTr" / "anna.nii.gz")
    parts = {
        name: read_volume(tmp_path / "r" / "probabilities" / f"anna_{name}.nii.gz")
        for name in ("background", "kidney", "tumor")
    }
    for part in parts.values():
        assert part.array.dtype == np.float32
        np.testing.assert_array_equal(part.world_from_index, image.world_from_index)
    values = np.stack([part.array for part in parts.values()])
    np.testing.assert_allclose(values.sum(axis=0), 1.0, atol=1e-5)
    # The corner of the image lies out of the homogenized frame.
    np.testing.assert_allclose(values[:, 0, 0, 0], [1.0, 0.0, 0.0])
    assert values[1][truth.array == 1].mean() > 0.75
    labels = read_labels(tmp_path / "r" / "anna.nii.gz")
    np.testing.assert_array_equal(np.array([0, 1, 7])[values.argmax(axis=0)], labels.array)
    assert dice(labels.array == 7, truth.array == 7) > 0.98


def test_probabilities_of_unknown_classes_give_no_label_map(homogenized, tmp_path) -> None:
    names = ("background", "liver", "mass%2Fcyst")
    soft(homogenized, tmp_path / "p", names)
    [one] = back(tmp_path / "p", homogenized, tmp_path / "r")
    assert sorted(path.name for path in (tmp_path / "r" / "probabilities").iterdir()) == [
        "anna_background.nii.gz",
        "anna_liver.nii.gz",
        "anna_mass%2Fcyst.nii.gz",
    ]
    assert not (tmp_path / "r" / "anna.nii.gz").exists()
    assert set(one.record["files"]) == {f"probabilities/anna_{name}.nii.gz" for name in names}


def test_a_case_name_that_is_a_prefix_of_another_is_distinguished(homogenized, predictions, tmp_path) -> None:
    soft(homogenized, predictions)
    labels = read_labels(predictions / "anna_b.nii.gz")
    share = (labels.array == 1).astype(np.float32)
    write_image(labels.with_array(share), predictions / "anna_b_kidney.nii.gz")
    first, second = back(predictions, homogenized, tmp_path / "r")
    assert set(first.record["predictions"]) == {
        "anna.nii.gz",
        *(f"anna_{name}.nii.gz" for name in ("background", "kidney", "tumor")),
    }
    assert set(second.record["predictions"]) == {"anna_b.nii.gz", "anna_b_kidney.nii.gz"}


def test_existing_results_are_not_computed_again(homogenized, predictions, tmp_path, monkeypatch) -> None:
    calls = []
    work = module.restored_labels
    monkeypatch.setattr(module, "restored_labels", lambda *a: calls.append(1) or work(*a))

    def again(**options) -> int:
        calls.clear()
        assert all(one.problem is None for one in back(predictions, homogenized, tmp_path / "r", **options))
        return len(calls)

    assert again() == 2
    assert again() == 0
    (tmp_path / "r" / "anna.nii.gz").write_bytes(b"damaged")
    assert again() == 1
    assert again(keep_values=True) == 2
    assert again() == 2
    labels = read_labels(predictions / "anna.nii.gz")
    write_labels(labels.with_array(np.zeros_like(labels.array)), predictions / "anna.nii.gz")
    assert again() == 1
    assert not read_labels(tmp_path / "r" / "anna.nii.gz").array.any()


def test_another_process_gives_the_same(homogenized, predictions, tmp_path) -> None:
    for workers in (0, 1):
        back(predictions, homogenized, tmp_path / str(workers), workers=workers)
    for path in (tmp_path / "0").iterdir():
        assert (tmp_path / "1" / path.name).read_bytes() == path.read_bytes()


def test_bad_predictions_are_reported_and_the_others_restored(homogenized, predictions, tmp_path) -> None:
    labels = read_labels(predictions / "anna.nii.gz")
    moved = labels.world_from_index.copy()
    moved[0, 3] += 30.0
    write_labels(Volume(labels.array, moved), predictions / "anna.nii.gz")
    write_labels(labels, predictions / "nobody.nii.gz")
    strange, bad, good = back(predictions, homogenized, tmp_path / "r")
    assert "nobody.nii.gz: belongs to no case" in strange.problem
    assert "does not lie on the image's grid" in bad.problem
    assert good.problem is None
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["anna_b.json", "anna_b.nii.gz"]
    soft(homogenized, tmp_path / "p")
    image = read_volume(tmp_path / "p" / "anna_tumor.nii.gz")
    write_image(image.with_array(image.array * 50), tmp_path / "p" / "anna_tumor.nii.gz")
    [one] = back(tmp_path / "p", homogenized, tmp_path / "r")
    assert "expected probabilities from 0 to 1, got values from 5 to 40" in one.problem
    assert not (tmp_path / "r" / "anna.json").exists()


def test_existing_files_are_not_overwritten(homogenized, predictions, tmp_path) -> None:
    before = sha256(predictions / "anna.nii.gz")
    with pytest.raises(InputError, match=r"anna\.nii\.gz: would be overwritten by its result"):
        back(predictions, homogenized, predictions)
    assert sha256(predictions / "anna.nii.gz") == before
    with pytest.raises(InputError, match="would be overwritten"):
        back(predictions, homogenized, homogenized / "labelsTr")
    labels = read_labels(predictions / "anna.nii.gz")
    write_labels(labels, predictions / "anna.nrrd")
    with pytest.raises(InputError, match="is of the same case; keep one"):
        back(predictions, homogenized, tmp_path / "r")


def test_a_folder_without_a_homogenized_dataset_is_refused(
    source, homogenized, predictions, tmp_path
) -> None:
    with pytest.raises(InputError, match=r"no homogenize\.json in here"):
        back(predictions, source, tmp_path / "r")
    with pytest.raises(InputError, match="no such file or folder"):
        back(tmp_path / "none", homogenized, tmp_path / "r")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label map or probabilities here"):
        back(tmp_path / "empty", homogenized, tmp_path / "r")
    assert not (tmp_path / "r").exists()
    copy = tmp_path / "copy"
    shutil.copytree(homogenized, copy)
    path = record_path(copy, "anna")
    record = json.loads(path.read_text())
    for damage, words in (
        ({"format": 9}, "expected format 3, got 9"),
        # One digit, which would put the labels elsewhere.
        ({"roll_degrees": record["roll_degrees"] + 1e-9}, "was changed since it was written"),
        ({"transform": {**record["transform"], "poses": [[0.0] * 4]}}, "was changed since it was written"),
        # With a hash that fits, as somebody who means harm would write it.
        ({"transform": {**record["transform"], "poses": [[0.0] * 4]}, "sha256": None}, "transform.poses.0"),
        ({"transform": {**record["transform"], "poses": [[1e300] * 5]}, "sha256": None}, "transform.poses.0"),
    ):
        values = {**record, **damage}
        if values["sha256"] is None:
            del values["sha256"]
            values["sha256"] = hash_of(values)
        path.write_text(json.dumps(values))
        first, second = back(predictions, copy, tmp_path / "r")
        assert words in first.problem
        assert second.problem is None
    (copy / "homogenize.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="its labels are damaged"):
        back(predictions, copy, tmp_path / "r")


@pytest.mark.slow
def test_a_round_trip_keeps_real_organs_on_their_sides(real_ct, tmp_path) -> None:
    """Right kidney 2, left kidney 3, liver 5; the stored axes run against LPS."""
    image, truth = read_volume(real_ct / "abdomen.nii.gz"), read_labels(real_ct / "abdomen-organs.nii.gz")
    values = np.unique(truth.array)[1:].tolist()
    rows = f"image,label\n{real_ct / 'abdomen.nii.gz'},{real_ct / 'abdomen-organs.nii.gz'}\n"
    (tmp_path / "cases.csv").write_text(rows)
    dataset = open_input(tmp_path / "cases.csv", {f"organ {value}": value for value in values})
    [outcome] = homogenize(dataset, tmp_path / "out", HomogenizeConfig(), reporter=Silent())
    assert outcome.record.warnings == ()
    assert abs(outcome.record.roll_degrees) < 6
    labels = read_labels(tmp_path / "out" / "labelsTr" / "abdomen.nii.gz")
    upright = read_volume(tmp_path / "out" / "imagesTr" / "abdomen_0000.nii.gz")

    def center(volume, value):
        return world_center(volume, volume.array == value)

    written = {value: number for number, value in enumerate(values, start=1)}
    right, left, liver = (center(labels, written[value]) for value in (2, 3, 5))
    assert right[0] < -20 < 20 < left[0]
    assert liver[0] < 0
    assert min(right[1], left[1]) > 0
    # Gas and fat apart, kidneys are where the image says: soft tissue.
    assert 0 < np.median(upright.array[labels.array == written[2]]) < 300
    [restored] = back(tmp_path / "out" / "labelsTr", tmp_path / "out", tmp_path / "r")
    assert restored.problem is None
    result = read_labels(tmp_path / "r" / "abdomen.nii.gz")
    np.testing.assert_array_equal(result.world_from_index, image.world_from_index)
    for value in (2, 3, 5):
        assert dice(result.array == value, truth.array == value) > 0.98
        assert np.linalg.norm(center(result, value) - center(truth, value)) < 0.5
    assert dice(result.array > 0, truth.array > 0) > 0.99


def test_a_real_dicom_series_with_table_and_arms(real_ct, tmp_path) -> None:
    [outcome] = run(real_ct / "dicom-series", tmp_path / "out", size=384)
    assert outcome.name == "dicom-series"
    transform = read_record(record_path(tmp_path / "out", "dicom-series")).transform
    native = read_volume(real_ct / "dicom-series")
    assert transform.native.same_grid(native, 0.0)
    assert abs(outcome.record.roll_degrees) < 8
    assert outcome.record.transform.grid.size == 384
