import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.geometry.box import (
    MIN_CROP,
    box_from_matrix,
    box_of_mask,
    enlarged,
    filled_fraction,
    jittered,
    matrix_from_box,
    mirrored,
    transferred,
)
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import compose, invert, warp

corner = st.floats(-1, 1)


@settings(max_examples=100, deadline=None)
@given(corner, corner, corner, corner)
def test_the_square_contains_the_box_and_has_a_minimum_side(xa, xb, ya, yb):
    x0, x1, y0, y1 = min(xa, xb), max(xa, xb), min(ya, yb), max(ya, yb)
    matrix = matrix_from_box(torch.tensor([[x0, y0, x1, y1]]))
    left, top, right, bottom = box_from_matrix(matrix)[0].tolist()
    assert left <= x0 + 1e-5
    assert right >= x1 - 1e-5
    assert top <= y0 + 1e-5
    assert bottom >= y1 - 1e-5
    assert right - left == pytest.approx(bottom - top, abs=1e-5)
    assert right - left >= 2 * MIN_CROP - 1e-5
    assert right - left <= 2 + 1e-5


def test_a_crop_shows_exactly_its_box():
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 16:48, 8:40] = 1.0
    box = box_of_mask(image[:, 0])[0]
    assert torch.allclose(
        box, torch.tensor([[2 * 8 / 64 - 1, 2 * 16 / 64 - 1, 2 * 40 / 64 - 1, 2 * 48 / 64 - 1]])
    )
    crop = warp(image, matrix_from_box(box), (32, 32))
    assert torch.allclose(crop, torch.ones_like(crop), atol=1e-5)


def test_empty_masks_give_the_whole_frame_and_are_flagged():
    mask = torch.zeros(2, 10, 20)
    mask[1, 3, 4] = 1
    box, has_box = box_of_mask(mask, margin=0.5)
    assert has_box.tolist() == [False, True]
    assert box[0].tolist() == [-1, -1, 1, 1]
    # One pixel: 0.1 wide, 0.2 high; the margin is half of the longer side on each side.
    assert torch.allclose(box[1], torch.tensor([-0.6 - 0.1, -0.4 - 0.1, -0.5 + 0.1, -0.2 + 0.1]), atol=1e-6)


def test_jitter_stays_within_its_bounds():
    matrix = matrix_from_box(torch.tensor([[-0.4, -0.2, 0.4, 0.6]])).repeat(100, 1, 1)
    noise = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = jittered(matrix, noise, shift=0.1, scale=0.05)
    assert ((out[:, 0, 0] / 0.4).log().abs() <= 0.05 + 1e-5).all()
    assert ((out[:, :2, 2] - matrix[:, :2, 2]).abs() <= 0.04 + 1e-5).all()
    assert torch.equal(jittered(matrix, noise, shift=0.0, scale=0.0), matrix)
    assert out[:, 0, 2].std() > 0.01


@settings(max_examples=30, deadline=None)
@given(
    angle=st.floats(-3.2, 3.2),
    scales=st.tuples(*[st.floats(-0.6, 0.6)] * 2),
    shift=st.tuples(*[st.floats(-0.4, 0.4)] * 2),
    corner=st.tuples(*[st.floats(-0.9, 0.1)] * 2),
    side=st.floats(0.55, 0.9),
)
def test_the_mirrored_crop_of_a_mirrored_patient_is_the_flipped_crop(angle, scales, shift, corner, side):
    """For any pose and crop (rotated, small, off center), and for the inverse."""
    theta1 = matrix_from_pose(torch.tensor([[angle, *scales, *shift]]))
    theta2 = matrix_from_box(torch.tensor([[*corner, corner[0] + side, corner[1] + side]]))
    theta = compose(theta1, theta2)
    # The crop of the mirrored frame: the same size, its center on the other side.
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.equal(
        box_from_matrix(mirrored(compose(mirror, theta2))),
        box_from_matrix(theta2)[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]),
    )
    assert torch.allclose(
        compose(theta1, mirror, compose(mirror, theta2, mirror)), mirrored(theta), atol=1e-6
    )
    assert torch.equal(mirrored(mirrored(theta)), theta)
    assert torch.linalg.det(mirrored(theta)[0]) * torch.linalg.det(theta[0]) < 0
    image = torch.rand(1, 2, 40, 40, generator=torch.Generator().manual_seed(0))
    plain = warp(image, theta, (32, 32), fill=0.3)
    assert torch.allclose(warp(image, mirrored(theta), (32, 32), fill=0.3), plain.flip(3), atol=1e-4)
    back = warp(plain, invert(theta), (40, 40))
    assert torch.allclose(warp(plain.flip(3), invert(mirrored(theta)), (40, 40)), back, atol=1e-4)


def test_gradients_reach_the_corners_of_the_box():
    box = torch.tensor([[-0.5, -0.3, 0.5, 0.3]], requires_grad=True)
    matrix_from_box(box).sum().backward()
    assert (box.grad != 0).all()


def test_a_widened_crop_contains_the_old_one_and_stays_in_the_frame():
    crops = matrix_from_box(
        torch.tensor([[-0.5, -0.3, 0.1, 0.3], [0.4, 0.4, 1.0, 1.0], [-1.0, -1.0, 0.8, 0.8]])
    )
    wider = enlarged(crops, 1.2)
    assert wider[:, 0, 0].tolist() == pytest.approx([0.36, 0.36, 1.0])
    before, after = box_from_matrix(crops), box_from_matrix(wider)
    assert (after[:, :2] <= before[:, :2] + 1e-6).all()
    assert (after[:, 2:] >= before[:, 2:] - 1e-6).all()
    assert after.abs().max() <= 1.0 + 1e-6
    assert wider[0, :2, 2].tolist() == pytest.approx([-0.2, 0.0])
    assert torch.equal(wider[2], torch.eye(3))


def test_a_crop_transferred_to_another_pose_keeps_its_position_in_the_input():
    theta2 = matrix_from_box(torch.tensor([[-0.2, -0.6, 0.6, 0.2], [0.0, 0.1, 0.7, 0.8]]))
    old = matrix_from_pose(torch.tensor([[0.3, -0.2, 0.1, 0.1, -0.05], [-0.1, 0.0, 0.0, 0.0, 0.2]]))
    new = matrix_from_pose(torch.tensor([[0.1, 0.1, 0.2, -0.1, 0.1], [0.2, 0.1, -0.1, 0.1, 0.1]]))
    moved = transferred(theta2, old, new)
    assert (moved - theta2).abs().max() > 0.1
    before, after = old @ theta2, new @ moved
    assert torch.allclose(after[:, :2, 2], before[:, :2, 2], atol=1e-6)
    area = [matrix[:, :2, :2].det() for matrix in (before, after)]
    assert torch.allclose(area[0], area[1], atol=1e-6)
    # A square without rotation, and nothing moves where the pose does not.
    assert torch.equal(moved[:, 0, 0], moved[:, 1, 1])
    assert (moved[:, 0, 1] == 0).all()
    assert torch.allclose(transferred(theta2, old, old), theta2, atol=1e-6)
    # By hand: twice as large in the new frame, and half a side further left.
    half = matrix_from_pose(torch.tensor([[0.0, math.log(0.5), math.log(0.5), 0.25, 0.0]]))
    by_hand = transferred(matrix_from_box(torch.tensor([[0.0, 0.0, 0.5, 0.5]])), torch.eye(3)[None], half)
    assert box_from_matrix(by_hand)[0].tolist() == pytest.approx([-0.5, 0.0, 0.5, 1.0])


@pytest.mark.parametrize("box", [[-1.1, -1.2, 1.3, 1.05], [-0.1, 0.0, 0.1, 0.2]])
def test_a_box_beyond_the_bounds_still_has_a_gradient(box):
    """Sizes above the frame or below the smallest crop are bounded, with a gradient that is not zero."""
    corners = torch.tensor([box], requires_grad=True)
    matrix = matrix_from_box(corners)
    expected = 1.0 if box[2] > 1 else MIN_CROP
    assert matrix[0, 0, 0].item() == matrix[0, 1, 1].item() == expected
    target_size = 0.6
    for _ in range(400):
        loss = (matrix_from_box(corners)[0, 0, 0] - target_size).square()
        [gradient] = torch.autograd.grad(loss, corners)
        corners = (corners - 0.1 * gradient).detach().requires_grad_()
    assert matrix_from_box(corners)[0, 0, 0].item() == pytest.approx(target_size, abs=1e-3)


def test_filled_fraction_of_a_rectangle_and_an_ellipse() -> None:
    masks = torch.zeros(4, 1, 96, 96)
    masks[0, 0, 10:50, 20:90] = 1.0
    line = (torch.arange(96) + 0.5) / 48 - 1
    masks[1, 0] = ((line[None] / 0.9) ** 2 + (line[:, None] / 0.6) ** 2 < 1).float()
    masks[2] = 1.0
    result = filled_fraction(masks)
    assert result[[0, 2, 3]].tolist() == [1.0, 1.0, 0.0]
    assert result[1].item() == pytest.approx(math.pi / 4, abs=0.02)
