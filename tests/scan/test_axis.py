import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.phantom.pose import Pose
from isopose.scan.axis import CENTROID_SD, MAX_TILT, TILT_SD, fit_line, tilt_of

Z = torch.linspace(-0.4, 0.4, 20)
EVEN = torch.ones(20)


def centers(at_zero, slope, z=Z):
    return torch.tensor([at_zero]) + z[:, None] * torch.tensor([slope])


def test_a_straight_axis_is_recovered_at_the_middle_of_the_scan():
    at_zero, slope = fit_line(centers((0.1, -0.2), (0.05, -0.12)), EVEN, Z)
    assert at_zero.tolist() == pytest.approx([0.1, -0.2], abs=1e-5)
    # The prior draws the slope toward none by what it says against 20 slices.
    expected = 1 / (1 + (CENTROID_SD / math.tan(TILT_SD)) ** 2 / float((Z**2).sum()))
    assert (slope / torch.tensor([0.05, -0.12])).tolist() == pytest.approx([expected] * 2, abs=1e-3)
    assert expected > 0.98


def test_slice_positions_need_not_be_centered():
    z = Z + 0.6
    at_zero, slope = fit_line(centers((0.1, -0.2), (0.05, -0.12), z), EVEN, z)
    assert at_zero.tolist() == pytest.approx([0.1, -0.2], abs=0.002)
    assert slope.tolist() == pytest.approx([0.05, -0.12], abs=0.003)


@pytest.mark.parametrize("weight_of_bad", [1.0, 0.001])
def test_slices_with_an_arm_do_not_tilt_the_line(weight_of_bad):
    """Five slices at the head are 0.15 off to one side."""
    points, weight = centers((0.0, 0.0), (0.05, 0.0)), EVEN.clone()
    points[15:, 0] += 0.15
    weight[15:] = weight_of_bad
    _, slope = fit_line(points, weight, Z)
    plain = ((Z - Z.mean()) @ (points - points.mean(dim=0)) / (Z - Z.mean()).square().sum())[0]
    assert abs(float(plain) - 0.05) > 0.1
    assert slope[0].item() == pytest.approx(0.05, abs=0.01)


def test_few_slices_close_together_give_a_small_slope():
    z = torch.tensor([-0.01, 0.01])
    _, slope = fit_line(torch.tensor([[0.0, 0.0], [0.02, 0.0]]), torch.ones(2), z)
    assert abs(slope[0].item()) < 0.02
    at_zero, slope = fit_line(torch.tensor([[0.3, 0.1]]), torch.ones(1), torch.tensor([0.0]))
    assert at_zero.tolist() == pytest.approx([0.3, 0.1])
    assert slope.tolist() == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(roll=st.floats(-3.1, 3.1), pitch=st.floats(-0.3, 0.3), yaw=st.floats(-0.3, 0.3))
def test_tilt_agrees_with_the_phantoms(roll, pitch, yaw):
    axis = Pose("supine", True, roll, pitch, yaw, (0, 0, 0)).world_from_canonical[:3, 2]
    slope = torch.tensor([axis[0] / axis[2], axis[1] / axis[2]])
    result = tilt_of(slope, torch.tensor(roll, dtype=torch.float64))
    assert [float(angle) for angle in result] == pytest.approx([pitch, yaw], abs=1e-6)


def test_slices_at_one_position_have_no_slope():
    centers = torch.tensor([[0.1, 0.2], [0.3, 0.0], [0.2, 0.4]])
    at_middle, slope = fit_line(centers, torch.ones(3), torch.full((3,), 0.5))
    torch.testing.assert_close(slope, torch.zeros(2))
    assert at_middle.isfinite().all()


@pytest.mark.parametrize("count", [2, 127, 128, 129, 300])
def test_a_subset_of_many_slices_gives_the_same_axis(count):
    """Above 128 slices, only a subset of pairs is used."""
    z = torch.linspace(-1.0, 1.0, count)
    centers = torch.stack([0.1 + 0.05 * z, -0.2 - 0.03 * z], dim=1)
    at_middle, slope = fit_line(centers, torch.ones(count), z)
    torch.testing.assert_close(at_middle, torch.tensor([0.1, -0.2]), atol=1e-4, rtol=0)
    if count > 2:
        torch.testing.assert_close(slope, torch.tensor([0.05, -0.03]), atol=1e-3, rtol=0)


def test_tilt_is_bounded():
    pitch, yaw = tilt_of(torch.tensor([5.0, 5.0]), torch.tensor(0.0))
    assert (pitch.item(), yaw.item()) == pytest.approx((-MAX_TILT, MAX_TILT))
