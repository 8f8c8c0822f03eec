"""The user's own masks: read on the scan's grid, or refused with a one-line error."""

import numpy as np
import pytest

from io_helpers import upright
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.cases import Case, dataset_of
from isopose.io.images import write_labels
from isopose.io.masks import mask_path, read_mask, with_masks
from isopose.labels import Labels


def test_a_mask_in_another_storage_order_is_aligned_with_the_scan(tmp_path):
    scan = upright()
    marked = np.zeros(scan.array.shape, np.uint8)
    marked[1, 2, 3], marked[2, 0, 5] = 1, 7
    flipped = Volume(
        np.ascontiguousarray(marked[:, :, ::-1]),
        scan.world_from_index @ np.array([[-1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    write_labels(flipped, tmp_path / "a.nrrd")
    assert mask_path(tmp_path, "a") == tmp_path / "a.nrrd"
    np.testing.assert_array_equal(read_mask(tmp_path / "a.nrrd", scan), marked > 0)


def test_missing_mismatched_and_empty_masks_are_refused_in_one_line(tmp_path):
    scan = upright()
    write_labels(Volume(np.ones((2, 5, 6), np.uint8), scan.world_from_index), tmp_path / "short.nii.gz")
    write_labels(scan.with_array(np.zeros(scan.array.shape, np.uint8)), tmp_path / "empty.nii.gz")
    for name, message in (
        ("absent", "absent.nii.gz"),
        ("short", "does not lie on the image's grid"),
        ("empty", "is empty, expected the body's mask"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read_mask(mask_path(tmp_path, name), scan)
        assert "\n" not in str(error.value)


def test_masks_are_matched_to_cases_by_name(tmp_path):
    dataset = dataset_of("d", "scans", tmp_path, Labels({}), [Case("a", tmp_path / "a.nii", None, "a")])
    assert with_masks(dataset, None) is dataset
    assert with_masks(dataset, tmp_path).cases[0].mask == tmp_path / "a.nii.gz"
    with pytest.raises(InputError, match="--masks"):
        with_masks(dataset, tmp_path / "nowhere")
