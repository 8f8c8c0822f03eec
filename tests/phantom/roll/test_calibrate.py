import math

import numpy as np
import pytest
import torch

from isopose.models.roll import calibrated_concentration, effective_count, probability_within
from isopose.phantom.roll.calibrate import RollEvidence, calibrate


def made(claimed: float, true: float, shared: float, patients: int = 400, slices: int = 10) -> RollEvidence:
    """Slices that claim one concentration and have another; part of the variance is common to a patient."""
    rng = np.random.default_rng(0)
    spread = 1.0 / math.sqrt(true)
    common = rng.normal(0.0, spread * math.sqrt(shared), (patients, 1))
    own = rng.normal(0.0, spread * math.sqrt(1.0 - shared), (patients, slices))
    error = torch.from_numpy((common + own).ravel()).float()
    evidence = claimed * torch.stack([error.cos(), error.sin()], dim=1)
    return RollEvidence(evidence, torch.arange(patients).repeat_interleave(slices))


@pytest.mark.parametrize(("claimed", "true"), [(400.0, 100.0), (50.0, 200.0), (150.0, 150.0)])
def test_the_true_concentration_is_found_of_slices(claimed, true):
    calibration = calibrate(made(claimed, true, 0.0))
    assert calibrated_concentration(torch.tensor([claimed]), calibration).item() == pytest.approx(
        true, rel=0.1
    )


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.8])
def test_what_slices_share_is_found_of_patients(shared):
    calibration = calibrate(made(100.0, 100.0, shared))
    expected = 10.0 / (1.0 + 9.0 * shared)
    assert effective_count(torch.tensor([10.0]), calibration).item() == pytest.approx(expected, rel=0.25)


def test_probabilities_are_then_those_that_happen():
    seen = made(500.0, 80.0, 0.0)
    calibration = calibrate(seen)
    stated = probability_within(
        calibrated_concentration(seen.evidence.norm(dim=1), calibration), math.radians(6.0)
    ).mean()
    happened = (seen.error.abs() <= math.radians(6.0)).float().mean()
    assert stated.item() == pytest.approx(happened.item(), abs=0.02)
