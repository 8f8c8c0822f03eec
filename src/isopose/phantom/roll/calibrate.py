"""Calibrate the roll network's concentration on phantoms that it was not trained on.

Three numbers are fitted by maximum likelihood: a factor and a power for the concentration of one slice, and
the share of error that a patient's slices have in common, which reduces the effective number of pooled
slices.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import i0e
from torch import Tensor

from isopose.models.roll import RollNetwork, calibrated_concentration, effective_count, roll_input_of
from isopose.phantom.roll.pictures import turned_pictures
from isopose.phantom.roll.slabs import Slabs


@dataclass(frozen=True)
class RollEvidence:
    """The evidence of an uncalibrated network on held-out slices.

    Args:
        evidence: ``(N, 2)`` concentration times direction, rotated so that the true roll is angle 0.
        patient: ``(N,)`` index.
    """

    evidence: Tensor
    patient: Tensor

    @property
    def error(self) -> Tensor:
        """``(N,)`` signed error of the roll, radians."""
        return torch.atan2(self.evidence[:, 1], self.evidence[:, 0])


@torch.no_grad()
def roll_evidence(network: RollNetwork, slabs: Slabs, *, randomized: bool, seed: int) -> RollEvidence:
    """Run the network on every patient once, rotated by a random angle.

    With ``randomized`` slices are disturbed as in training, all slices of a patient in the same way: a real
    artifact affects the whole scan, so pooling over slices does not remove it.
    """
    found = []
    for patient in slabs.patient.unique().tolist():
        rows = torch.nonzero(slabs.patient == patient)[:, 0]
        image, mask, angle = turned_pictures(slabs, rows, randomized=randomized, seed=seed + patient)
        roll = network.estimate(roll_input_of(image, mask))
        error = roll.angle - angle
        found.append(roll.concentration[:, None] * torch.stack([error.cos(), error.sin()], dim=1))
    return RollEvidence(torch.cat(found), slabs.patient)


def calibrate(seen: RollEvidence) -> Tensor:
    """Fit the calibration ``(3,)``: factor, power, share of common error.

    See :func:`isopose.models.roll.calibrated_concentration`.
    """
    raw, error = seen.evidence.norm(dim=1), seen.error.double().numpy()

    def negative_log_likelihood(concentration: np.ndarray, error: np.ndarray) -> float:
        return float(np.mean(np.log(i0e(concentration)) + concentration * (1.0 - np.cos(error))))

    def slices_loss(parameters: np.ndarray) -> float:
        factor, power = np.exp(parameters)
        return negative_log_likelihood(
            calibrated_concentration(raw, torch.tensor([factor, power, 0.0])).double().numpy(), error
        )

    factor, power = np.exp(minimize(slices_loss, np.zeros(2), method="Nelder-Mead").x)
    means, counts = [], []
    for patient in seen.patient.unique():
        own = seen.evidence[seen.patient == patient]
        means.append(own.mean(dim=0))
        counts.append(float(len(own)))
    pooled, count = torch.stack(means), torch.tensor(counts)
    pooled_error = torch.atan2(pooled[:, 1], pooled[:, 0]).double().numpy()

    def patients_loss(shared: float) -> float:
        calibration = torch.tensor([factor, power, shared])
        concentration = calibrated_concentration(pooled.norm(dim=1), calibration) * effective_count(
            count, calibration
        )
        return negative_log_likelihood(concentration.double().numpy(), pooled_error)

    candidates = np.linspace(0.0, 1.0, 101)
    best = candidates[int(np.argmin([patients_loss(shared) for shared in candidates]))]
    return torch.tensor([factor, power, best], dtype=torch.float32)
