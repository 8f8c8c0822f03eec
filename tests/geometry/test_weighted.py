"""Axis-aligned warps as matrix products agree with the general warp."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from smooth_images import smooth_image

from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import warp
from isopose.geometry.weighted import warp_axis_aligned, warp_stack


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0.2, 3.0), st.floats(-2.0, 2.0).filter(lambda x: abs(x) > 0.1)),
    st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
def test_axis_aligned_warps_agree_with_warp(size_in, size_out, scales, shifts, mode) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, *size_in)))
    matrix = torch.diag(torch.tensor([*scales, 1.0], dtype=torch.float64))
    matrix[:2, 2] = torch.tensor(shifts)
    expected = warp(image, matrix, size_out, fill=-7.5, mode=mode).float()
    result = warp_axis_aligned(image, matrix, size_out, fill=-7.5, mode=mode)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0.0)


def test_axis_aligned_warps_are_float32_under_autocast_and_refuse_rotations() -> None:
    image, matrix = smooth_image(40, 30), torch.diag(torch.tensor([0.7, 1.1, 1.0]))
    with torch.autocast("cpu", torch.bfloat16):
        result = warp_axis_aligned(image, matrix, (20, 25), mode="bicubic")
    assert torch.allclose(result, warp(image, matrix, (20, 25), mode="bicubic"), atol=1e-4)
    matrix[0, 1] = 0.1
    with pytest.raises(ValueError, match="scales and shifts only"):
        warp_axis_aligned(image, matrix, (20, 25))


@pytest.mark.parametrize("angle", [0.0, 0.4, 3.0])
@pytest.mark.parametrize(("scale", "size"), [(0.6, (30, 41)), (1.1, (37, 28)), (2.3, (16, 24))])
def test_a_stack_with_one_matrix_equals_its_images_warped_one_by_one(angle, scale, size) -> None:
    images = torch.from_numpy(np.random.default_rng(1).normal(0, 300, size=(3, 33, 40)).astype(np.int16))
    pose = torch.tensor([[angle, math.log(scale), math.log(0.9 * scale), 0.2, -0.1]])
    expected = warp(images[:, None].float(), matrix_from_pose(pose), size, fill=-1024.0, mode="bicubic")[:, 0]
    result = warp_stack(images, matrix_from_pose(pose)[0], size, fill=-1024.0)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=0.02, rtol=0.0)
