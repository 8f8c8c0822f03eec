import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.geometry.moments import moments, pose_at_angle, pose_from_moments, radii_along, shrunk_angle
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import invert, warp

SIZE = 128


def blob(shape: str = "box") -> torch.Tensor:
    """A body that is no ellipse: off center, wider than deep, with a bulge on one side."""
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    body = ((x / 0.6).abs() ** 2.6 + (y / 0.38).abs() ** 2.2) < 1
    bulge = ((x - 0.35) ** 2 + (y + 0.2) ** 2) < 0.04
    return (body | bulge).float()[None, None]


def test_moments_of_a_rectangle_by_hand():
    mask = torch.zeros(1, 1, 100, 100)
    mask[0, 0, 40:60, 20:70] = 1
    of = moments(mask)
    assert torch.allclose(of.center, torch.tensor([[-0.1, 0.0]]), atol=1e-6)
    assert of.angle.item() == pytest.approx(0.0, abs=1e-6)
    assert of.radii[0, 0].item() == pytest.approx(1.0 / math.sqrt(12), rel=1e-3)
    assert of.radii[0, 1].item() == pytest.approx(0.4 / math.sqrt(12), rel=3e-3)


@settings(max_examples=30, deadline=None)
@given(
    angle=st.floats(-1.0, 1.0),
    log_scale=st.floats(-0.3, 0.5),
    tx=st.floats(-0.2, 0.2),
    ty=st.floats(-0.2, 0.2),
)
def test_an_applied_similarity_is_recovered(angle, log_scale, tx, ty):
    reference = blob()
    pose = torch.tensor([[angle, log_scale, log_scale, tx, ty]])
    # The image that, seen through the pose, is the reference.
    moved = warp(reference, invert(matrix_from_pose(pose)), (SIZE, SIZE))
    inside = moved.sum() * math.exp(-2 * log_scale) * 1.0
    if abs(inside - reference.sum()) > 0.02 * reference.sum() and moved[..., 0, :].sum() > 0:
        return
    if moved[0, 0, [0, -1]].sum() + moved[0, 0, :, [0, -1]].sum() > 0:
        return
    result = pose_from_moments(moments(moved), moments(reference))
    assert abs(result[0, 0].item() - angle) < max(0.02, 0.05 * abs(angle))
    assert torch.allclose(result[0, 1:3], pose[0, 1:3], atol=0.05)
    assert torch.allclose(result[0, 3:], pose[0, 3:], atol=0.02)


def test_a_round_outline_is_not_turned():
    """The principal axis of a disc is noise and must not rotate a patient."""
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    disc = ((x / 0.505) ** 2 + (y / 0.5) ** 2 + 0.02 * x * y / 0.25 < 1).float()[None, None]
    of = moments(disc)
    pose = pose_from_moments(of, moments(blob()))
    assert abs(of.angle.item()) > math.radians(15)
    assert abs(pose[0, 0].item()) < math.radians(3)


def test_an_elongated_outline_gives_the_roll():
    angle = torch.tensor([0.5])
    assert shrunk_angle(torch.tensor([0.3]), angle).item() == pytest.approx(0.5, rel=0.05)
    assert shrunk_angle(torch.tensor([0.0]), angle).item() == pytest.approx(0.0, abs=1e-6)


def test_an_empty_mask_changes_nothing():
    pose = pose_from_moments(moments(torch.zeros(2, 1, 16, 16)), moments(blob()))
    assert torch.equal(pose, torch.zeros(2, 5))


def ellipse(width: float, depth: float, degrees: float) -> torch.Tensor:
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    a = math.radians(degrees)
    along, across = math.cos(a) * x + math.sin(a) * y, -math.sin(a) * x + math.cos(a) * y
    return ((along / width) ** 2 + (across / depth) ** 2 < 1).float()[None, None]


@pytest.mark.parametrize("depth", [0.46, 0.5, 0.51, 0.53, 0.56, 0.6])
def test_a_body_deeper_than_wide_that_lies_straight_stays_straight(depth):
    pose = pose_from_moments(moments(ellipse(0.5, depth, 0)), moments(ellipse(0.6, 0.46, 0)))
    assert abs(math.degrees(pose[0, 0].item())) < 1
    assert pose[0, 1].exp().item() == pytest.approx(0.5 / 0.6, rel=0.02)
    assert pose[0, 2].exp().item() == pytest.approx(depth / 0.46, rel=0.02)


@pytest.mark.parametrize("degrees", [-60, -45, -20, 5, 30, 60])
def test_a_wide_body_is_turned_by_all_of_its_roll(degrees):
    pose = pose_from_moments(moments(ellipse(0.6, 0.42, degrees)), moments(ellipse(0.6, 0.42, 0)))
    assert math.degrees(pose[0, 0].item()) == pytest.approx(degrees, rel=0.06, abs=0.5)
    assert pose[0, 1:3].abs().max() < 0.03


def test_float32_under_autocast():
    reference = warp(
        blob(), torch.tensor([[1.0, 0.0, 0.317], [0.0, 1.0, -0.211], [0.0, 0.0, 1.0]]), (SIZE, SIZE)
    )
    expected = pose_from_moments(moments(blob()), moments(reference))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pose_from_moments(moments(blob()), moments(reference)), expected)


def test_a_device_without_float64_gets_nearly_the_same(monkeypatch):
    """Sums over 250,000 off-center pixels, in which float32 loses digits by cancellation."""
    turned = matrix_from_pose(torch.tensor([[0.4, 0.3, 0.2, 0.3, -0.2]]))
    mask = warp(blob(), turned, (512, 512))
    expected = moments(mask)
    monkeypatch.setattr("isopose.geometry.moments.NO_FLOAT64", ("cpu",))
    doubles = []
    monkeypatch.setattr(torch.Tensor, "double", lambda self: doubles.append(self))
    result = moments(mask)
    assert doubles == []
    assert torch.allclose(result.angle, expected.angle, atol=1e-3)
    assert torch.allclose(result.radii, expected.radii, rtol=1e-3)
    assert torch.allclose(result.center, expected.center, atol=1e-5)
    assert not torch.equal(result.radii, expected.radii)


def test_spread_along_any_axis_is_that_of_the_turned_mask():
    of = moments(blob())
    for degrees in (-70, -20, 0, 35, 90):
        angle = torch.tensor([math.radians(degrees)])
        pose = torch.tensor([[math.radians(degrees), 0.0, 0.0, *of.center[0].tolist()]])
        upright = warp(blob(), matrix_from_pose(pose), (SIZE, SIZE))
        y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
        measured = [
            float(
                (upright[0, 0] * c**2).sum() / upright.sum()
                - ((upright[0, 0] * c).sum() / upright.sum()) ** 2
            )
            for c in (x, y)
        ]
        assert radii_along(of, angle)[0].square().tolist() == pytest.approx(measured, rel=5e-3)


@pytest.mark.parametrize("degrees", [0, 40, -100, 180])
def test_with_a_known_roll_shift_and_scales_are_recovered_at_any_angle(degrees):
    """Moments alone leave the roll ambiguous."""
    applied = torch.tensor([[math.radians(degrees), -0.3, -0.3, 0.1, -0.05]])
    moved = warp(blob(), invert(matrix_from_pose(applied)), (SIZE, SIZE))
    reference = moments(blob())
    pose = pose_at_angle(moments(moved), applied[:, 0], reference)
    assert torch.allclose(matrix_from_pose(pose), matrix_from_pose(applied), atol=0.01)
