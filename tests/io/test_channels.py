"""Images of several channels: grouping by name, common grid, and hash."""

import json
from pathlib import Path

import numpy as np
import pytest

from isopose.data.check import check_dataset
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.channels import hash_of_channels, read_channels
from isopose.io.datasets import open_dataset
from isopose.io.images import write_image, write_labels
from isopose.io.scans import Scan, find_scans
from isopose.io.sources import hash_of_source


def image(path: Path, value: int = 0, shift_mm: float = 0.0, slices: int = 5) -> Path:
    array = np.full((slices, 20, 20), -1000, np.int16)
    array[:, 4:16, 3:17] = 40
    array[2, 10, 10] = value
    matrix = np.diag([10.0, 10.0, 5.0, 1.0])
    matrix[0, 3] = shift_mm
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(Volume(array, matrix), path)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two training cases and a test case of two channels."""
    root = tmp_path / "Dataset001"
    for number, (part, name) in enumerate((("Tr", "a"), ("Tr", "b"), ("Ts", "c"))):
        for channel in (0, 1):
            image(root / f"images{part}" / f"{name}_000{channel}.nii.gz", 10 * number + channel)
        marks = np.zeros((5, 20, 20), np.uint8)
        marks[2, 8:12, 8:12] = 1
        (root / f"labels{part}").mkdir(exist_ok=True)
        write_labels(
            Volume(marks, np.diag([10.0, 10.0, 5.0, 1.0])), root / f"labels{part}" / f"{name}.nii.gz"
        )
    facts = {
        "channel_names": {"1": "PET", "0": "CT"},
        "labels": {"background": 0, "kidney": 1},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(facts))
    return root


def test_a_dataset_lists_all_channels_in_the_order_of_their_numbers(dataset: Path) -> None:
    opened = open_dataset(dataset)
    assert opened.channels == ("CT", "PET")
    assert [[path.name for path in case.images] for case in opened.cases] == [
        [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"] for name in "abc"
    ]
    facts = json.loads((dataset / "dataset.json").read_text())
    images = ["imagesTr/a_0001.nii.gz", "imagesTr/a_0000.nii.gz"]
    listed = {"a": {"images": images, "label": "labelsTr/a.nii.gz"}}
    (dataset / "dataset.json").write_text(json.dumps({**facts, "dataset": listed}))
    case = open_dataset(dataset).cases[0]
    assert case.images == tuple(dataset / path for path in images)
    (dataset / "dataset.json").write_text(
        json.dumps({**facts, "dataset": {"a": {**listed["a"], "images": images[:1]}}})
    )
    with pytest.raises(InputError, match=r"case 'a' has 1 images, expected 2 \(CT, PET\)"):
        open_dataset(dataset)


def test_check_names_what_is_wrong_with_a_channel(dataset: Path) -> None:
    assert [p for p in check_dataset(open_dataset(dataset)) if p.severity == "error"] == []
    (dataset / "imagesTr/a_0001.nii.gz").unlink()
    image(dataset / "imagesTr/b_0001.nii.gz", shift_mm=30.0)
    image(dataset / "imagesTs/c_0001.nii.gz", slices=6)
    errors = {p.case: p.message for p in check_dataset(open_dataset(dataset)) if p.severity == "error"}
    assert errors.keys() == {"a", "b", "c"}
    assert errors["a"].startswith("channel PET: ")
    assert "a_0001.nii.gz" in errors["a"]
    assert errors["b"] == (
        "channel PET: 20 x 20 x 5 voxels of 10 x 10 x 5 mm, up to 30.00 mm away, does not lie on the grid of "
        "channel CT, 20 x 20 x 5 voxels of 10 x 10 x 5 mm; resample it to that grid"
    )
    assert "20 x 20 x 6 voxels of 10 x 10 x 5 mm does not lie on the grid of channel CT" in errors["c"]


def test_channels_are_read_together_or_not_at_all(tmp_path: Path) -> None:
    one, two = image(tmp_path / "a_0000.nii.gz", 7), image(tmp_path / "a_0001.nii.gz", 9)
    volumes = read_channels([one, two], ("CT", "PET"))
    assert [int(volume.array[2, 10, 10]) for volume in volumes] == [7, 9]
    with pytest.raises(InputError, match=r"expected 2 channels \(CT, PET\), got 1 image; give each channel"):
        read_channels([one], ("CT", "PET"))
    with pytest.raises(InputError, match=r"expected 1 channel \(CT\), got 2 images; .* rename them"):
        read_channels([one, two], ("CT",))


def test_the_hash_covers_all_channels_in_order(tmp_path: Path) -> None:
    one, two = image(tmp_path / "a_0000.nii.gz", 7), image(tmp_path / "a_0001.nii.gz", 9)
    assert hash_of_channels([one]) == hash_of_source(one)
    before = hash_of_channels([one, two])
    assert len({before, hash_of_channels([two, one]), hash_of_channels([one])}) == 3
    image(two, 10)
    assert hash_of_channels([one, two]) != before


def test_images_that_differ_in_the_channel_alone_are_one_scan(tmp_path: Path) -> None:
    names = ("b_0001", "b_0000", "a_0000", "c", "d_0001", "e_0000", "e_0002", "f_0000")
    paths = {name: image(tmp_path / f"{name}.nii.gz") for name in names}
    elsewhere = image(tmp_path / "more" / "f_0001.nii.gz")
    result = find_scans([tmp_path, elsewhere])
    assert result == [
        Scan("a", paths["a_0000"]),
        Scan("b", paths["b_0000"], further=(paths["b_0001"],)),
        Scan("c", paths["c"]),
        # Numbers that are not 0000, 0001, ... are part of a name.
        Scan("d_0001", paths["d_0001"]),
        Scan("e", paths["e_0000"]),
        Scan("e_0002", paths["e_0002"]),
        Scan("f", paths["f_0000"]),
        Scan("f_0001", elsewhere),
    ]
