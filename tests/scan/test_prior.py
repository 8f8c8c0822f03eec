"""The posterior of a scan's roll, compared with numerical integration, and the decision from it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ive
from scipy.stats import vonmises

from isopose.scan.prior import (
    CORRECT_WITHIN,
    TURNED_SD,
    WIDE_SD,
    ScanRoll,
    log_i0,
    probability_within,
    scan_roll,
)
from isopose.settings import PoseConfig

CONFIG = PoseConfig()
#: Offset and slope of the odds.
ODDS = (-0.7, 0.45)
#: Evidence of length L has concentration 2 L.
CALIBRATION = torch.tensor([2.0, 1.0, 0.5, *ODDS])


def roll(degrees: float, length: float, count: int = 1, filled: float = 0.8) -> ScanRoll:
    angle = math.radians(degrees)
    evidence = length * torch.tensor([math.cos(angle), math.sin(angle)])
    return scan_roll(evidence.expand(count, 2), torch.full((count,), filled), CALIBRATION, CONFIG)


def test_the_bessel_function_agrees_with_scipy() -> None:
    x = np.concatenate([[0.0], np.geomspace(1e-3, 1e5, 400)])
    result = log_i0(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(result, np.log(ive(0, x)) + x, atol=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 25.0, -70.0, 90.0, 140.0, 180.0])
@pytest.mark.parametrize("length", [2.0, 30.0, 300.0])
def test_the_posterior_agrees_with_numerical_integration(degrees: float, length: float) -> None:
    """The reference is prior times likelihood on a fine grid of rolls."""
    grid = np.linspace(-math.pi, math.pi, 72001)[:-1]
    step, near, wide = grid[1] - grid[0], math.radians(CONFIG.roll_sd) ** -2, WIDE_SD**-2
    prior = (1.0 - CONFIG.roll_wide_share - CONFIG.roll_turned_share) * vonmises.pdf(grid, near)
    prior += CONFIG.roll_wide_share * vonmises.pdf(grid, wide)
    for mean in (math.pi / 2, -math.pi / 2, math.pi):
        prior += CONFIG.roll_turned_share / 3.0 * vonmises.pdf(grid, TURNED_SD**-2, loc=mean)
    shows = prior * vonmises.pdf(grid, 2.0 * length, loc=math.radians(degrees))
    alone = math.exp(ODDS[0] + ODDS[1] * math.sqrt(length))
    odds = alone * shows.sum() * step * 2 * math.pi
    result = roll(degrees, length)
    assert float(result.odds) == pytest.approx(min(alone, odds), rel=1e-3)
    posterior = odds * shows / (shows.sum() * step) + prior
    posterior /= posterior.sum() * step
    off = np.angle(np.exp(1j * (grid - float(result.angle))))
    expected = posterior[np.abs(off) <= CORRECT_WITHIN].sum() * step
    assert float(result.probability) == pytest.approx(expected, abs=0.01)
    direction = np.angle((shows * np.exp(1j * grid)).sum())
    if length > 2.0:
        # The mean of the parts' directions, for that of the posterior; they differ where it is wide.
        assert abs(np.angle(np.exp(1j * (float(result.mean) - direction)))) < math.radians(1.0)


@pytest.mark.parametrize("degrees", [12.0, 40.0, -60.0, 170.0])
def test_an_accepted_roll_is_that_of_the_slices(degrees: float) -> None:
    """The header affects whether the roll is accepted, but not its value."""
    result = roll(degrees, 200.0)
    assert result.overrides_header
    assert math.degrees(float(result.angle)) == pytest.approx(degrees, abs=1e-3)
    assert math.degrees(float(result.mean)) != pytest.approx(degrees, abs=0.1)


def test_the_normal_approximation_of_the_angle_distribution() -> None:
    for concentration, offset in ((WIDE_SD**-2, 0.3), (30.0, -0.1), (800.0, 0.05)):
        expected = np.diff(vonmises.cdf([-CORRECT_WITHIN, CORRECT_WITHIN], concentration, loc=offset))[0]
        result = probability_within(torch.tensor([offset]), torch.tensor([concentration]))
        assert float(result) == pytest.approx(expected, abs=0.01)


def test_without_evidence_the_header_decides() -> None:
    for degrees in (20.0, 60.0, -125.0, 180.0):
        weak = roll(degrees, 5.0)
        assert not weak.overrides_header
        assert float(weak.angle) == 0.0
        assert float(weak.probability) < 0.5


@pytest.mark.parametrize("degrees", [-180.0, -90.0, -33.0, 0.0, 12.0, 58.0, 90.0, 175.0])
def test_clear_evidence_overrules_the_header(degrees: float) -> None:
    strong = roll(degrees, 400.0)
    assert strong.overrides_header
    away = math.degrees(float(strong.angle)) - degrees
    assert abs((away + 180.0) % 360.0 - 180.0) < 0.5
    assert float(strong.probability) > 0.95


def test_without_an_outline_the_posterior_is_the_prior() -> None:
    cut = roll(90.0, 400.0, filled=1.0)
    assert not cut.outline_visible
    assert not cut.overrides_header
    assert float(cut.angle) == 0.0
    assert float(cut.probability) == pytest.approx(float(roll(180.0, 0.0).probability), abs=0.1)
    assert roll(90.0, 400.0, filled=0.94).overrides_header


def test_a_roll_far_from_the_header_needs_more_evidence() -> None:
    assert float(roll(0.0, 60.0).odds) > CONFIG.turn_odds > float(roll(180.0, 60.0).odds)


@given(st.floats(-180.0, 180.0), st.floats(0.0, 2000.0), st.integers(1, 500))
def test_mirrored_evidence_gives_the_opposite_roll(degrees: float, length: float, count: int) -> None:
    one, other = roll(degrees, length, count), roll(-degrees, length, count)
    assert float(one.odds) == pytest.approx(float(other.odds), rel=1e-3)
    assert 0.0 <= float(one.probability) <= 1.0 + 1e-5
    if abs(float(one.slices_angle)) < math.pi - 1e-3:
        assert float(one.slices_angle) == pytest.approx(-float(other.slices_angle), abs=1e-4)
