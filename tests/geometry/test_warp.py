"""Warping against independent resamplers, and the conventions one by one."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.autograd import gradcheck

from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import (
    blur,
    compose,
    invert,
    normalized_from_pixel,
    pixels_per_step,
    resize,
    warp,
    warp_alike,
    warp_slabs,
    warp_straight,
    window_of,
)


def smooth_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(height, width))
    return torch.from_numpy(ndimage.gaussian_filter(noise, 2.0) * 10).float()[None, None]


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


def test_prefilter_keeps_aliases_out():
    """Stripes of two pixels, shrunk to a quarter, become gray and not new stripes."""
    stripes = torch.zeros(1, 1, 128, 128)
    stripes[..., ::2] = 1.0
    shrink = torch.diag(torch.tensor([1.0, 1.0, 1.0]))
    plain = warp(stripes, shrink, (30, 30), prefilter=False)[0, 0, 4:-4, 4:-4]
    smooth = warp(stripes, shrink, (30, 30))[0, 0, 4:-4, 4:-4]
    assert plain.std() > 0.1
    assert smooth.std() < 0.01
    assert smooth.mean().item() == pytest.approx(0.5, abs=0.01)


def test_prefilter_is_each_image_own():
    image = smooth_image(64, 64).repeat(2, 1, 1, 1)
    small, large = (torch.diag(torch.tensor([s, s, 1.0])) for s in (0.5, 2.5))
    both = warp(image, torch.stack([small, large]), (32, 32))
    for row, theta in enumerate((small, large)):
        assert torch.allclose(both[row : row + 1], warp(image[:1], theta, (32, 32)), atol=1e-5)


def test_prefilter_follows_the_sheared_axis():
    matrix = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]]])
    assert torch.allclose(pixels_per_step(matrix, (50, 100), (50, 100)), torch.tensor([[2.0, 0.5]]))
    turned = compose(matrix_from_pose(torch.tensor([[math.pi / 2, 0, 0, 0, 0]])), matrix)
    assert torch.allclose(pixels_per_step(turned, (50, 50), (50, 50)), torch.tensor([[0.5, 2.0]]), atol=1e-6)


def test_outside_is_fill():
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


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0.2, 3.0), st.floats(-2.0, 2.0).filter(lambda x: abs(x) > 0.1)),
    st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
def test_straight_warps_are_warps(size_in, size_out, scales, shifts, mode) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, *size_in)))
    matrix = torch.diag(torch.tensor([*scales, 1.0], dtype=torch.float64))
    matrix[:2, 2] = torch.tensor(shifts)
    wanted = warp(image, matrix, size_out, fill=-7.5, mode=mode).float()
    found = warp_straight(image, matrix, size_out, fill=-7.5, mode=mode)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0.0)


def test_straight_warps_are_float32_under_autocast_and_refuse_to_turn() -> None:
    image, matrix = smooth_image(40, 30), torch.diag(torch.tensor([0.7, 1.1, 1.0]))
    with torch.autocast("cpu", torch.bfloat16):
        found = warp_straight(image, matrix, (20, 25), mode="bicubic")
    assert torch.allclose(found, warp(image, matrix, (20, 25), mode="bicubic"), atol=1e-4)
    matrix[0, 1] = 0.1
    with pytest.raises(ValueError, match="scales and shifts only"):
        warp_straight(image, matrix, (20, 25))


@pytest.mark.parametrize("size", [(5, 8, 9), (12, 20, 14), (3, 40, 30)])
def test_some_slices_at_a_time_are_the_whole(size) -> None:
    generator = torch.Generator().manual_seed(1)
    volume = torch.randn(9, 16, 18, generator=generator)
    matrix = torch.eye(4) + 0.2 * torch.randn(4, 4, generator=generator)
    matrix[3] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    whole = warp(volume[None, None], matrix, size, fill=-2.0)[0, 0]
    found = torch.full(size, torch.nan)
    parts = 0
    for part, values in warp_slabs(volume, matrix, size, fill=-2.0, voxels=2 * size[1] * size[2]):
        found[part] = values
        parts += 1
    assert parts == math.ceil(size[0] / 2)
    torch.testing.assert_close(found, whole)


def test_a_transform_that_is_no_number_is_reported() -> None:
    """It would sample nothing and call it air."""
    theta = torch.eye(3)[None].clone()
    theta[0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="a pose or crop is not finite"):
        warp(torch.ones(1, 1, 8, 8), theta, (4, 4))


def test_nothing_is_warped_to_nothing() -> None:
    theta = torch.eye(3).expand(0, 3, 3).clone().requires_grad_()
    out = warp(torch.ones(0, 1, 8, 8), theta, (4, 6))
    assert out.shape == (0, 1, 4, 6)
    out.sum().backward()
    assert theta.grad is not None


@pytest.mark.parametrize("angle", [0.0, 0.4, 3.0])
@pytest.mark.parametrize(("scale", "size"), [(0.6, (30, 41)), (1.1, (37, 28)), (2.3, (16, 24))])
def test_images_of_one_matrix_are_sampled_as_one_by_one(angle, scale, size) -> None:
    images = torch.from_numpy(np.random.default_rng(1).normal(0, 300, size=(3, 33, 40)).astype(np.int16))
    pose = torch.tensor([[angle, math.log(scale), math.log(0.9 * scale), 0.2, -0.1]])
    wanted = warp(images[:, None].float(), matrix_from_pose(pose), size, fill=-1024.0, mode="bicubic")[:, 0]
    found = warp_alike(images, matrix_from_pose(pose)[0], size, fill=-1024.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-3.2, 3.2),
    st.floats(0.3, 3.0),
    st.tuples(st.floats(-0.8, 0.8), st.floats(-0.8, 0.8)),
    st.tuples(st.integers(0, 30), st.integers(1, 12)),
    st.tuples(st.integers(0, 30), st.integers(1, 12)),
)
def test_a_window_holds_all_that_its_part_of_the_input_reaches(angle, scale, shift, rows, columns) -> None:
    box = tuple(slice(first, first + count) for first, count in (rows, columns))
    image = torch.zeros(1, 1, 44, 43)
    image[(..., *box)] = 1.0
    matrix = matrix_from_pose(torch.tensor([[angle, math.log(scale), math.log(1.2 * scale), *shift]]))
    whole = warp(image, matrix, (50, 61))
    window = window_of(box, matrix, (44, 43), (50, 61))
    # Not by another rounding: labels that are restored in parts are those that are restored whole.
    assert torch.equal(warp(image, matrix, (50, 61), window=window), whole[(..., *window)])
    whole[(..., *window)] = 0.0
    assert not whole.any()


@pytest.mark.parametrize("sigmas", [(0.0, 0.1), (0.3, 0.25), (0.7, 2.0), (30.0, 9.0)])
def test_the_blur_without_a_gradient_is_that_with_one(sigmas) -> None:
    image = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 3, 20, 31))).float()
    both = torch.tensor([sigmas, sigmas[::-1]])
    wanted = blur(image.clone().requires_grad_(), both).detach()
    torch.testing.assert_close(blur(image, both), wanted, atol=1e-5, rtol=0.0)
    turned = image.transpose(2, 3)
    torch.testing.assert_close(blur(turned, both.flip(1)), wanted.transpose(2, 3), atol=1e-5, rtol=0.0)
