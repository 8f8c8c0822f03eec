import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.geometry.pose import (
    add_residual,
    bounded,
    identity_pose,
    isotropic,
    matrix_from_pose,
    pose_from_matrix,
)
from isopose.geometry.warp import compose, invert

poses = st.tuples(
    st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(-2, 2), st.floats(-2, 2)
).map(lambda values: torch.tensor([values], dtype=torch.float64))


@settings(max_examples=100, deadline=None)
@given(poses)
def test_matrix_and_pose_are_inverse(pose):
    assert torch.allclose(pose_from_matrix(matrix_from_pose(pose)), pose, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(poses)
def test_every_pose_inverts(pose):
    matrix = matrix_from_pose(pose)
    assert torch.allclose(compose(invert(matrix), matrix), torch.eye(3, dtype=torch.float64)[None], atol=1e-9)


def test_the_order_is_translate_rotate_scale():
    """By hand: a point on the output's x axis is first scaled, then turned, then shifted."""
    pose = torch.tensor([[math.pi / 2, math.log(2.0), math.log(3.0), 0.1, 0.2]])
    point = matrix_from_pose(pose)[0] @ torch.tensor([0.5, 0.0, 1.0])
    assert torch.allclose(point, torch.tensor([0.1, 0.2 + 1.0, 1.0]), atol=1e-6)
    point = matrix_from_pose(pose)[0] @ torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(point, torch.tensor([0.1 - 1.5, 0.2, 1.0]), atol=1e-6)


def test_identity():
    assert torch.equal(matrix_from_pose(identity_pose(2)), torch.eye(3).repeat(2, 1, 1))


@settings(max_examples=50, deadline=None)
@given(poses, poses)
def test_adding_a_residual_to_a_true_similarity_equals_the_matrix_product(start, residual):
    """With one scale nothing shears, so adding must equal multiplying."""
    start = isotropic(start)
    product = compose(matrix_from_pose(start), matrix_from_pose(residual))
    assert torch.allclose(matrix_from_pose(add_residual(start, residual)), product, atol=1e-8)


@settings(max_examples=50, deadline=None)
@given(poses)
def test_residual_of_zero_changes_nothing(pose):
    assert torch.allclose(add_residual(pose, torch.zeros_like(pose)), pose)


def test_isotropic_keeps_the_area():
    pose = torch.tensor([[0.3, 0.4, -0.2, 0.1, 0.0]])
    one = isotropic(pose)
    assert one[0, 1] == one[0, 2]
    assert torch.det(matrix_from_pose(one)).item() == pytest.approx(torch.det(matrix_from_pose(pose)).item())


def test_bounded_is_the_identity_near_zero_and_has_a_gradient_far_away():
    raw = torch.tensor([0.01, -5.0, 3.0], requires_grad=True)
    out = bounded(raw, 0.7)
    assert out[0].item() == pytest.approx(0.01, rel=1e-3)
    assert out.abs().max() <= 0.7
    out.sum().backward()
    assert (raw.grad[1:] > 0).all()


def test_residual_is_float32_under_autocast():
    """A shift of 0.3 in bfloat16 would be off by up to 0.001, an eighth of a pixel of 256."""
    start = torch.tensor([[0.3, 0.2, -0.1, 0.123, -0.077]])
    residual = torch.tensor([[0.1, 0.05, 0.02, 0.3123, 0.2777]])
    expected = add_residual(start, residual)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(add_residual(start, residual), expected)
