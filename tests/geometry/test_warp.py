"""Warping against independent resamplers, and the conventions one by one."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from smooth_images import smooth_image
from torch.autograd import gradcheck

from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import compose, invert, normalized_from_pixel, resize, warp


def normalized(pixel_input_from_output: np.ndarray, size_in: tuple, size_out: tuple) -> torch.Tensor:
    """A matrix in pixel indices as one in normalized coordinates."""
    into = normalized_from_pixel(size_in, dtype=torch.float64)
    out_of = torch.linalg.inv(normalized_from_pixel(size_out, dtype=torch.float64))
    return (into @ torch.from_numpy(pixel_input_from_output) @ out_of).float()


def test_identity_keeps_every_value():
    image = smooth_image(17, 29)
    assert torch.allclose(warp(image, torch.eye(3), (17, 29)), image, atol=1e-5)


@pytest.mark.parametrize(("image", "out"), [((9, 14), (11, 6)), ((5, 8, 7), (6, 4, 9))])
def test_samples_where_pytorch_s_own_affine_grid_does(image, out):
    torch.manual_seed(3)
    source = torch.randn(2, 3, *image, dtype=torch.float64)
    axes = len(image)
    matrix = torch.eye(axes + 1, dtype=torch.float64).repeat(2, 1, 1)
    matrix[:, :axes] += 0.3 * torch.randn(2, axes, axes + 1, dtype=torch.float64)
    grid = torch.nn.functional.affine_grid(matrix[:, :axes], [2, 3, *out], align_corners=False)
    expected = torch.nn.functional.grid_sample(source, grid, align_corners=False)
    assert torch.allclose(warp(source, matrix, out, prefilter=False), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (-5, 4)])
def test_whole_pixel_shift_moves_whole_pixels(dx, dy):
    image = smooth_image(21, 33)
    shift = np.array([[1.0, 0, dx], [0, 1.0, dy], [0, 0, 1.0]])
    out = warp(image, normalized(shift, (21, 33), (21, 33)), (21, 33), fill=7.0)
    for y in range(21):
        for x in range(33):
            inside = 0 <= y + dy < 21 and 0 <= x + dx < 33
            expected = image[0, 0, y + dy, x + dx] if inside else torch.tensor(7.0)
            # A pixel next to the border mixes nothing in: the shift is whole.
            assert torch.isclose(out[0, 0, y, x], expected, atol=1e-4)


def test_positive_angle_turns_from_x_to_y():
    """theta maps output to input: with +90 degrees the output's +x shows the input's +y."""
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 28, 16] = 1.0  # at +y
    theta = matrix_from_pose(torch.tensor([[math.pi / 2, 0.0, 0.0, 0.0, 0.0]]))
    out = warp(image, theta, (32, 32), prefilter=False)
    y, x = np.unravel_index(int(out[0, 0].argmax()), (32, 32))
    assert x >= 27
    assert abs(y - 15.5) < 2


def test_scale_below_one_enlarges():
    image = torch.zeros(1, 1, 40, 40)
    image[0, 0, 15:25, 15:25] = 1.0
    theta = matrix_from_pose(torch.tensor([[0.0, math.log(0.5), math.log(0.5), 0.0, 0.0]]))
    out = warp(image, theta, (40, 40))
    assert out[0, 0].sum().item() == pytest.approx(400.0, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    out_height=st.integers(5, 50),
    out_width=st.integers(5, 50),
    angle=st.floats(-3.0, 3.0),
    scale_x=st.floats(0.4, 1.0),
    scale_y=st.floats(0.4, 1.0),
    tx=st.floats(-6, 6),
    ty=st.floats(-6, 6),
)
def test_agrees_with_scipy_on_any_grid(height, width, out_height, out_width, angle, scale_x, scale_y, tx, ty):
    """scipy resamples by (row, column) indices and knows nothing of normalized coordinates."""
    image = smooth_image(height, width)
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([scale_x, scale_y])
    pixel = np.eye(3)
    pixel[:2, :2] = linear
    pixel[:2, 2] = (width / 2 + tx, height / 2 + ty) - linear @ (out_width / 2, out_height / 2)
    out = warp(
        image,
        normalized(pixel, (height, width), (out_height, out_width)),
        (out_height, out_width),
        prefilter=False,
    )
    swapped = pixel[:2, :2][::-1, ::-1]
    oracle = ndimage.affine_transform(
        image[0, 0].numpy().astype(float),
        swapped,
        pixel[:2, 2][::-1],
        (out_height, out_width),
        order=1,
        mode="grid-constant",
    )
    assert np.abs(out[0, 0].numpy() - oracle).max() < 2e-3


def test_agrees_with_simpleitk_in_millimeters():
    """An anisotropic, non-square image turned about a point in mm, done by an independent toolkit."""
    height, width, spacing = 30, 44, (0.8, 1.7)
    image = smooth_image(height, width)
    itk = sitk.GetImageFromArray(image[0, 0].numpy())
    itk.SetSpacing(spacing)
    transform = sitk.Euler2DTransform((15.0, 22.0), 0.4, (2.0, -3.0))
    oracle = sitk.GetArrayFromImage(sitk.Resample(itk, itk, transform, sitk.sitkLinear, 0.0))
    cos, sin = math.cos(0.4), math.sin(0.4)
    turn = np.eye(3)
    turn[:2, :2] = [[cos, -sin], [sin, cos]]
    turn[:2, 2] = np.array([17.0, 19.0]) - turn[:2, :2] @ [15.0, 22.0]
    mm_from_pixel = np.diag([*spacing, 1.0])
    pixel = np.linalg.inv(mm_from_pixel) @ turn @ mm_from_pixel
    ours = warp(image, normalized(pixel, (height, width), (height, width)), (height, width), prefilter=False)
    inner = (slice(3, -3), slice(3, -3))
    difference = np.abs(ours[0, 0].numpy() - oracle)[inner]
    # At the image's edge ITK decides by the voxel's center; inside both interpolate the same.
    inside = ndimage.binary_erosion(oracle != 0, iterations=2)[inner]
    assert difference[inside].max() < 2e-3


def test_outside_the_input_is_the_fill_value():
    out = warp(torch.full((1, 1, 8, 8), 3.0), torch.diag(torch.tensor([2.0, 2.0, 1.0])), (16, 16), fill=-4.0)
    assert torch.allclose(out[0, 0, 0], torch.tensor(-4.0), atol=1e-5)
    assert out[0, 0, 8, 8].item() == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_geometry_is_float32_under_autocast(dtype):
    image = smooth_image(256, 256)
    theta = matrix_from_pose(torch.tensor([[0.1234, 0.05, -0.03, 0.011, -0.007]]))
    expected = warp(image, theta, (256, 256))
    with torch.autocast("cpu", torch.bfloat16):
        under = warp(
            image, matrix_from_pose(torch.tensor([[0.1234, 0.05, -0.03, 0.011, -0.007]])), (256, 256)
        )
        inverse = compose(invert(theta), theta)
    assert under.dtype == torch.float32
    assert torch.equal(under, expected)
    assert torch.allclose(inverse, torch.eye(3), atol=1e-6)
    low = warp(image.to(dtype), theta.to(dtype), (256, 256))
    assert low.dtype == dtype


def test_gradients():
    torch.manual_seed(0)
    image = smooth_image(9, 9).double().requires_grad_()
    pose = torch.tensor([[0.2, -0.3, -0.2, 0.05, 0.03]], dtype=torch.float64, requires_grad=True)

    def through(image, pose):
        return warp(image, matrix_from_pose(pose), (7, 6), prefilter=False)

    assert gradcheck(through, (image, pose), eps=1e-7, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_inverse(values):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2] += torch.tensor(values, dtype=torch.float64).reshape(2, 3) * 0.4
    if abs(float(torch.linalg.det(matrix))) < 0.05:
        return
    assert torch.allclose(invert(matrix), torch.linalg.inv(matrix), atol=1e-8)
    assert torch.allclose(compose(invert(matrix), matrix), torch.eye(3, dtype=torch.float64), atol=1e-8)


def test_resize_keeps_the_field_of_view():
    """A blob's place in normalized coordinates does not change with the number of pixels."""
    image = torch.zeros(1, 1, 120, 120)
    image[0, 0, 30:42, 60:72] = 1.0
    for size in (30, 60, 200):
        out = resize(image, (size, size))[0, 0]
        total = out.sum()
        axis = (2.0 * torch.arange(size) + 1.0) / size - 1.0
        x, y = (out.sum(0) @ axis) / total, (out.sum(1) @ axis) / total
        assert x.item() == pytest.approx(2 * 66 / 120 - 1, abs=2e-3)
        assert y.item() == pytest.approx(2 * 36 / 120 - 1, abs=2e-3)


def test_an_empty_batch_gives_an_empty_batch() -> None:
    theta = torch.eye(3).expand(0, 3, 3).clone().requires_grad_()
    out = warp(torch.ones(0, 1, 8, 8), theta, (4, 6))
    assert out.shape == (0, 1, 4, 6)
    out.sum().backward()
    assert theta.grad is not None
