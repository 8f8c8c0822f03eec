"""What the roll network's concentration is worth, on phantoms that it did not learn from.

Fitted are three numbers, by maximum likelihood: a factor and a power that correct the concentration of one
slice, and what the errors of a patient's slices share, by which pooled slices are worth fewer than they are.
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
class Seen:
    """What an uncalibrated network saw of held-out slices.

    Args:
        evidence: ``(N, 2)``, turned so that the truth is at angle 0.
        patient: ``(N,)``.
    """

    evidence: Tensor
    patient: Tensor

    @property
    def error(self) -> Tensor:
        """``(N,)`` signed, radians."""
        return torch.atan2(self.evidence[:, 1], self.evidence[:, 0])


@torch.no_grad()
def look(network: RollNetwork, slabs: Slabs, *, randomized: bool, seed: int) -> Seen:
    """Show every patient once, turned by any angle; as the slices are, or disturbed as in training.

    All slices of a patient alike: what spoils a scan spoils all of it, and pooling must not be believed to
    mend that.
    """
    found = []
    for patient in slabs.patient.unique().tolist():
        rows = torch.nonzero(slabs.patient == patient)[:, 0]
        image, mask, angle = turned_pictures(slabs, rows, randomized=randomized, seed=seed + patient)
        roll = network.estimate(roll_input_of(image, mask))
        error = roll.angle - angle
        found.append(roll.concentration[:, None] * torch.stack([error.cos(), error.sin()], dim=1))
    return Seen(torch.cat(found), slabs.patient)


def calibrate(seen: Seen) -> Tensor:
    """Factor, power and shared part ``(3,)``: see :func:`isopose.models.roll.calibrated_concentration`."""
    raw, error = seen.evidence.norm(dim=1), seen.error.double().numpy()

    def surprise(concentration: np.ndarray, error: np.ndarray) -> float:
        return float(np.mean(np.log(i0e(concentration)) + concentration * (1.0 - np.cos(error))))

    def of_slices(parameters: np.ndarray) -> float:
        factor, power = np.exp(parameters)
        return surprise(
            calibrated_concentration(raw, torch.tensor([factor, power, 0.0])).double().numpy(), error
        )

    factor, power = np.exp(minimize(of_slices, np.zeros(2), method="Nelder-Mead").x)
    means, counts = [], []
    for patient in seen.patient.unique():
        mine = seen.evidence[seen.patient == patient]
        means.append(mine.mean(dim=0))
        counts.append(float(len(mine)))
    pooled, count = torch.stack(means), torch.tensor(counts)
    pooled_error = torch.atan2(pooled[:, 1], pooled[:, 0]).double().numpy()

    def of_patients(shared: float) -> float:
        calibration = torch.tensor([factor, power, shared])
        concentration = calibrated_concentration(pooled.norm(dim=1), calibration) * effective_count(
            count, calibration
        )
        return surprise(concentration.double().numpy(), pooled_error)

    candidates = np.linspace(0.0, 1.0, 101)
    best = candidates[int(np.argmin([of_patients(shared) for shared in candidates]))]
    return torch.tensor([factor, power, best], dtype=torch.float32)
