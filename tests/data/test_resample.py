"""Label maps that are resampled in parts, against whole ones."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from isopose.data.resample import largest_share, warped, warped_labels
from isopose.geometry.pose import matrix_from_pose


@pytest.mark.parametrize("values", [(1,), (3, 7), tuple(range(1, 12))])
@pytest.mark.parametrize("alike", [True, False])
def test_resampling_in_parts_equals_resampling_at_once(values, alike) -> None:
    random = np.random.default_rng(len(values))
    smooth = ndimage.gaussian_filter(random.normal(size=(5, 60, 50)), (0, 4, 4))
    bins = np.quantile(smooth, np.linspace(0.2, 0.95, len(values)))
    labels = np.array([0, *values], np.uint8)[np.digitize(smooth, bins)]
    labels[2] = 0
    labels[:, :10] = 0
    pose = torch.tensor([[0.5, 0.2, -0.1, 0.1, 0.05]]).repeat(5, 1)
    if not alike:
        pose += 0.1 * torch.arange(5)[:, None]
    matrix, size = matrix_from_pose(pose), (70, 80)
    whole = ((value, warped(labels == value, matrix, size, 0.0, "bilinear")) for value in values)
    expected = largest_share(whole, (5, *size))
    assert set(np.unique(expected)) == {0, *values}
    np.testing.assert_array_equal(warped_labels(labels, matrix, size, values), expected)


def test_an_empty_label_map_stays_empty() -> None:
    labels = np.zeros((2, 20, 20), np.uint8)
    assert not warped_labels(labels, torch.eye(3), (30, 31), (1, 2)).any()
    labels[0, :3] = 9
    assert not warped_labels(labels, torch.eye(3).repeat(2, 1, 1), (30, 31), (1, 2)).any()
