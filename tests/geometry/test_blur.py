"""The prefilter before a shrinking warp: no aliasing, one sigma per image, along the axes of the input."""

import math

import numpy as np
import pytest
import torch
from smooth_images import smooth_image

from isopose.geometry.blur import blur, pixels_per_step
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import compose, warp


def test_prefilter_suppresses_aliasing():
    """Stripes of two pixels, shrunk to a quarter, become gray and not new stripes."""
    stripes = torch.zeros(1, 1, 128, 128)
    stripes[..., ::2] = 1.0
    shrink = torch.diag(torch.tensor([1.0, 1.0, 1.0]))
    plain = warp(stripes, shrink, (30, 30), prefilter=False)[0, 0, 4:-4, 4:-4]
    smooth = warp(stripes, shrink, (30, 30))[0, 0, 4:-4, 4:-4]
    assert plain.std() > 0.1
    assert smooth.std() < 0.01
    assert smooth.mean().item() == pytest.approx(0.5, abs=0.01)


def test_each_image_of_a_batch_has_its_own_prefilter():
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


def test_a_transform_that_is_no_number_is_reported() -> None:
    """Sampling at NaN would silently give the fill value."""
    theta = torch.eye(3)[None].clone()
    theta[0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="a pose or crop is not finite"):
        warp(torch.ones(1, 1, 8, 8), theta, (4, 4))


@pytest.mark.parametrize("sigmas", [(0.0, 0.1), (0.3, 0.25), (0.7, 2.0), (30.0, 9.0)])
def test_blur_is_the_same_with_and_without_gradients(sigmas) -> None:
    image = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 3, 20, 31))).float()
    both = torch.tensor([sigmas, sigmas[::-1]])
    expected = blur(image.clone().requires_grad_(), both).detach()
    torch.testing.assert_close(blur(image, both), expected, atol=1e-5, rtol=0.0)
    turned = image.transpose(2, 3)
    torch.testing.assert_close(blur(turned, both.flip(1)), expected.transpose(2, 3), atol=1e-5, rtol=0.0)
