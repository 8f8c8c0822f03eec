import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.geometry.pose import add_residual, matrix_from_pose, pose_from_matrix
from isopose.geometry.warp import compose, invert
from isopose.phantom.pose import Pose

poses = st.tuples(
    *(st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
    *(st.floats(-1.5, 1.5),) * 3,
    *(st.floats(-2, 2),) * 3,
).map(lambda values: torch.tensor([values], dtype=torch.float64))


@settings(max_examples=100, deadline=None)
@given(poses)
def test_matrix_and_pose_are_inverse(pose):
    assert torch.allclose(pose_from_matrix(matrix_from_pose(pose)), pose, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(poses)
def test_every_pose_inverts(pose):
    matrix = matrix_from_pose(pose)
    eye = torch.eye(4, dtype=torch.float64)[None]
    assert torch.allclose(compose(invert(matrix), matrix), eye, atol=1e-9)
    assert torch.allclose(invert(matrix), torch.linalg.inv(matrix), atol=1e-9)


@pytest.mark.parametrize(
    ("place", "source", "target"),
    [
        (0, (1, 0, 0), (0, 1, 0)),  # roll: +x to +y
        (1, (0, 1, 0), (0, 0, 1)),  # pitch: +y to +z
        (2, (0, 0, 1), (1, 0, 0)),  # yaw: +z to +x
    ],
)
def test_sign_of_each_rotation(place, source, target):
    pose = torch.zeros(9)
    pose[place] = math.pi / 2
    turned = matrix_from_pose(pose)[:3, :3] @ torch.tensor(source, dtype=torch.float32)
    assert torch.allclose(turned, torch.tensor(target, dtype=torch.float32), atol=1e-6)


def test_angles_are_those_of_the_phantoms():
    truth = Pose("supine", True, 0.4, -0.3, 0.2, (0.0, 0.0, 0.0))
    pose = torch.tensor([truth.roll, truth.pitch, truth.yaw, *(0.0,) * 6], dtype=torch.float64)
    np.testing.assert_allclose(matrix_from_pose(pose).numpy(), truth.world_from_canonical, atol=1e-12)


def test_the_order_is_translate_rotate_scale():
    """By hand: a point on the output's y axis is scaled by 3, pitched to +z, then shifted."""
    pose = torch.tensor([0.0, math.pi / 2, 0.0, math.log(2.0), math.log(3.0), math.log(5.0), 0.1, 0.2, 0.3])
    point = matrix_from_pose(pose) @ torch.tensor([0.0, 0.5, 0.0, 1.0])
    assert torch.allclose(point, torch.tensor([0.1, 0.2, 0.3 + 1.5, 1.0]), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(poses, st.floats(-0.5, 0.5), st.floats(-1, 1))
def test_a_residual_of_scale_and_shift_is_the_product(start, log_scale, shift):
    residual = torch.tensor([[0, 0, 0, *(log_scale,) * 3, *(shift,) * 3]], dtype=torch.float64)
    product = compose(matrix_from_pose(start), matrix_from_pose(residual))
    assert torch.allclose(matrix_from_pose(add_residual(start, residual)), product, atol=1e-8)


def test_float32_under_autocast_and_gradients():
    pose = torch.linspace(-0.4, 0.5, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrix_from_pose(pose), matrix_from_pose(pose.clone()))
        assert matrix_from_pose(pose).dtype == torch.float32
    exact = pose.double()[None].requires_grad_()
    assert torch.autograd.gradcheck(matrix_from_pose, exact)
    assert torch.autograd.gradcheck(lambda p: invert(matrix_from_pose(p)), exact)
