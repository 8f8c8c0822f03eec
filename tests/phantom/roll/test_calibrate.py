import math

import numpy as np
import pytest
import torch

from isopose.models.roll import calibrated_concentration, effective_count, log_odds_of
from isopose.phantom.roll.calibrate import RollEvidence, calibrate, joined_evidence
from isopose.scan.prior import probability_within


def made(claimed: float, true: float, shared: float, patients: int = 400, slices: int = 10) -> RollEvidence:
    """Simulate slices whose stated concentration is wrong; part of the variance is shared by a patient."""
    rng = np.random.default_rng(0)
    spread = 1.0 / math.sqrt(true)
    common = rng.normal(0.0, spread * math.sqrt(shared), (patients, 1))
    own = rng.normal(0.0, spread * math.sqrt(1.0 - shared), (patients, slices))
    error = torch.from_numpy((common + own).ravel()).float()
    evidence = claimed * torch.stack([error.cos(), error.sin()], dim=1)
    return RollEvidence(evidence, torch.arange(patients).repeat_interleave(slices))


@pytest.mark.parametrize(("claimed", "true"), [(400.0, 100.0), (50.0, 200.0), (150.0, 150.0)])
def test_the_concentration_of_slices_is_recovered(claimed, true):
    calibration = calibrate(made(claimed, true, 0.0))
    assert calibrated_concentration(torch.tensor([claimed]), calibration).item() == pytest.approx(
        true, rel=0.1
    )


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.8])
def test_the_variance_shared_by_a_patients_slices_is_recovered(shared):
    calibration = calibrate(made(100.0, 100.0, shared))
    expected = 10.0 / (1.0 + 9.0 * shared)
    assert effective_count(torch.tensor([10.0]), calibration).item() == pytest.approx(expected, rel=0.25)


def test_calibrated_probabilities_match_frequencies():
    seen = made(500.0, 80.0, 0.0)
    concentration = calibrated_concentration(seen.evidence.norm(dim=1), calibrate(seen))
    expected = probability_within(torch.zeros_like(concentration), concentration).mean()
    happened = (seen.error.abs() <= math.radians(6.0)).float().mean()
    assert expected.item() == pytest.approx(happened.item(), abs=0.02)


def test_the_odds_of_arbitrary_directions_are_recovered():
    """Directions with long evidence are correct; a third of those with short evidence is random."""
    sure, rng = made(400.0, 150.0, 0.0), np.random.default_rng(1)
    vague = made(9.0, 150.0, 0.0)
    lost = torch.from_numpy(rng.random(len(vague.patient)) < 1.0 / 3.0)
    angle = torch.from_numpy(rng.uniform(-math.pi, math.pi, len(vague.patient))).float()
    anywhere = 9.0 * torch.stack([angle.cos(), angle.sin()], dim=1)
    evidence = torch.where(lost[:, None], anywhere, vague.evidence)
    seen = joined_evidence([sure, RollEvidence(evidence, vague.patient)])
    assert seen.patient.unique().numel() == 2 * sure.patient.unique().numel()
    calibration = calibrate(seen)
    arbitrary = (seen.error[len(sure.patient) :].abs() > math.radians(30.0)).float().mean().item()
    result = log_odds_of(torch.tensor([9.0, 400.0]), calibration).sigmoid()
    assert 1.0 - result[0].item() == pytest.approx(arbitrary, abs=0.15)
    assert result[1].item() > 0.998
