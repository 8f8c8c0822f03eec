"""Labels stored with a scale factor are rounded if within a thousandth of whole numbers, else refused."""

import json

import nibabel as nib
import numpy as np
import pytest

from bright import make_scene
from isopose.data.check import check_dataset
from isopose.data.fingerprint import fingerprint_of
from isopose.data.store import write_store
from isopose.errors import InputError
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, write_image, write_labels
from isopose.settings import DataConfig

HERE = make_scene(slices=4)
RAS = np.diag([-1.0, -1.0, 1.0, 1.0]) @ HERE.volume.world_from_index


def scaled(path):
    """Write labels as nibabel writes floats to uint16, with a slope that does not restore 1 exactly."""
    header = nib.Nifti1Header()
    header.set_data_dtype("uint16")
    nib.save(nib.Nifti1Image(HERE.truth.T.astype(float), RAS, header), path)
    return path


@pytest.fixture
def dataset(tmp_path):
    write_image(HERE.volume, tmp_path / "a.nii.gz")
    stored = nib.load(scaled(tmp_path / "a_l.nii.gz")).get_fdata()
    assert 0 < np.abs(stored - np.rint(stored)).max() < 1e-3
    (tmp_path / "list.csv").write_text("image,label\na.nii.gz,a_l.nii.gz\n")
    return tmp_path / "list.csv"


def test_label_values_are_rounded_with_a_warning(tmp_path):
    notes = []
    labels = read_labels(scaled(tmp_path / "a.nii.gz"), note=notes.append)
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, HERE.truth)
    (line,) = notes
    assert "were rounded" in line


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize(("value", "label"), [(1.0009, 1), (254.9995, 255), (255.0004, 255), (-0.0001, 0)])
def test_values_within_a_thousandth_of_an_integer_are_rounded(tmp_path, kind, value, label):
    array = np.zeros((3, 4, 5), kind)
    array[1, 2, 3] = value
    nib.save(nib.Nifti1Image(array.T, np.eye(4)), tmp_path / "a.nii.gz")
    notes = []
    labels = read_labels(tmp_path / "a.nii.gz", note=notes.append)
    assert labels.array[1, 2, 3] == label
    assert labels.array.sum() == label
    assert len(notes) == 1


@pytest.mark.parametrize("value", [0.4, 1.5, 0.002, 254.99, -0.4, -0.01])
def test_other_fractions_are_refused_with_a_reason(tmp_path, value):
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 2, 3] = value
    nib.save(nib.Nifti1Image(array.T, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=rf"not whole numbers, e\.g\. {value:g}.*nearest neighbor"):
        read_labels(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("value", "word"), [(255.6, "0 to 255"), (-1.0, "0 to 255"), (np.nan, "not finite")])
def test_label_values_out_of_range_or_not_finite_are_refused(tmp_path, value, word):
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 2, 3] = value
    nib.save(nib.Nifti1Image(array.T, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=word):
        read_labels(tmp_path / "a.nii.gz")


def test_integer_labels_give_no_warning(tmp_path):
    notes = []
    for kind in ("u1", "f4", "f8", "i8"):
        nib.save(nib.Nifti1Image(HERE.truth.T.astype(kind), RAS, dtype=np.dtype(kind)), tmp_path / "a.nii.gz")
        read_labels(tmp_path / "a.nii.gz", note=notes.append)
    assert notes == []


def test_check_lists_a_warning(dataset):
    opened = open_dataset(dataset, {"kidney": 1, "tumor": 7})
    (problem,) = check_dataset(opened)
    assert (problem.case, problem.severity) == ("a", "warning")
    assert problem.message.startswith("label: ")
    assert "were rounded" in problem.message


def test_preprocessing_rounds_and_keeps_the_warning(dataset, tmp_path):
    opened, config = open_dataset(dataset, {"kidney": 1, "tumor": 7}), DataConfig(size=64)
    fingerprint = fingerprint_of(opened.cases, opened.labels, config)
    store = write_store(tmp_path / "store", opened.cases, fingerprint, opened.labels, config)
    (stored,) = store.cases
    assert sum("were rounded" in line for line in stored.record.warnings) == 1


def test_evaluate_scores_rounded_labels(dataset, tmp_path, isopose):
    for name in ("truth", "found"):
        (tmp_path / name).mkdir()
    scaled(tmp_path / "truth" / "a.nii.gz")
    write_labels(HERE.volume.with_array(HERE.truth), tmp_path / "found" / "a.nii.gz")
    code, out, err = isopose(
        "evaluate", tmp_path / "found", tmp_path / "truth", "--label", "k=1", "--label", "t=7", "--json"
    )
    assert code == 0
    assert [s["dice"] for s in json.loads(out)["cases"][0]["scores"].values()] == [1.0, 1.0]
    assert err.count("were rounded") == 1
