"""Resampling in parts gives the same result as resampling the whole."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.geometry.parts import reachable_window, warp_slabs
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import warp


@pytest.mark.parametrize("size", [(5, 8, 9), (12, 20, 14), (3, 40, 30)])
def test_slices_in_parts_equal_all_at_once(size) -> None:
    generator = torch.Generator().manual_seed(1)
    volume = torch.randn(9, 16, 18, generator=generator)
    matrix = torch.eye(4) + 0.2 * torch.randn(4, 4, generator=generator)
    matrix[3] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    whole = warp(volume[None, None], matrix, size, fill=-2.0)[0, 0]
    result = torch.full(size, torch.nan)
    parts = 0
    for part, values in warp_slabs(volume, matrix, size, fill=-2.0, voxels=2 * size[1] * size[2]):
        result[part] = values
        parts += 1
    assert parts == math.ceil(size[0] / 2)
    torch.testing.assert_close(result, whole)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-3.2, 3.2),
    st.floats(0.3, 3.0),
    st.tuples(st.floats(-0.8, 0.8), st.floats(-0.8, 0.8)),
    st.tuples(st.integers(0, 30), st.integers(1, 12)),
    st.tuples(st.integers(0, 30), st.integers(1, 12)),
)
def test_a_window_contains_every_input_pixel_that_its_part_samples(
    angle, scale, shift, rows, columns
) -> None:
    box = tuple(slice(first, first + count) for first, count in (rows, columns))
    image = torch.zeros(1, 1, 44, 43)
    image[(..., *box)] = 1.0
    matrix = matrix_from_pose(torch.tensor([[angle, math.log(scale), math.log(1.2 * scale), *shift]]))
    whole = warp(image, matrix, (50, 61))
    window = reachable_window(box, matrix, (44, 43), (50, 61))
    # Not by another rounding: labels that are restored in parts are those that are restored whole.
    assert torch.equal(warp(image, matrix, (50, 61), window=window), whole[(..., *window)])
    whole[(..., *window)] = 0.0
    assert not whole.any()
