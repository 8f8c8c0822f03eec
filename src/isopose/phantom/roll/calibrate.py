"""Calibrate the roll network's concentration on phantoms that it was not trained on.

Five numbers are fitted: a factor and a power for the concentration of one slice, the share of error that a
patient's slices have in common, which reduces the effective number of pooled slices, and offset and slope of
the odds that evidence shows the roll at all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from isopose.choices import Contrast
from isopose.models.roll import (
    RollNetwork,
    calibrated_concentration,
    effective_count,
    log_odds_of,
    roll_input_of,
)
from isopose.phantom.roll.pictures import turned_pictures
from isopose.phantom.roll.slabs import Slabs

#: Error (radians) from which on a direction is taken for arbitrary.
ARBITRARY_ERROR = math.radians(30.0)


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
def roll_evidence(
    network: RollNetwork, slabs: Slabs, *, randomized: bool, seed: int, contrast: Contrast = "ct"
) -> RollEvidence:
    """Run the network on every patient once, rotated by a random angle.

    With ``randomized`` slices are disturbed as in training, all slices of a patient in the same way: a real
    artifact affects the whole scan, so pooling over slices does not remove it.
    """
    found = []
    for patient in slabs.patient.unique().tolist():
        rows = torch.nonzero(slabs.patient == patient)[:, 0]
        image, mask, angle = turned_pictures(
            slabs, rows, randomized=randomized, seed=seed + patient, contrast=contrast
        )
        roll = network.estimate(roll_input_of(image, mask))
        error = roll.angle - angle
        found.append(roll.concentration[:, None] * torch.stack([error.cos(), error.sin()], dim=1))
    return RollEvidence(torch.cat(found), slabs.patient)


def joined_evidence(parts: list[RollEvidence]) -> RollEvidence:
    """Concatenate evidence; the same patients, disturbed in different ways, become different ones."""
    most = 1 + max(int(part.patient.max()) for part in parts)
    return RollEvidence(
        torch.cat([part.evidence for part in parts]),
        torch.cat([part.patient + number * most for number, part in enumerate(parts)]),
    )


def calibrate(seen: RollEvidence) -> Tensor:
    """Fit the calibration ``(5,)`` on single slices and on whole patients, which weigh the same.

    First offset and slope of the odds, by logistic regression of whether the direction is off by more than
    :data:`ARBITRARY_ERROR`. Then factor and power of the concentration and the share of common error, by
    maximum likelihood: the error has a von Mises distribution around 0 where the evidence shows the roll, and
    is uniform where it does not. See :func:`isopose.models.roll.log_odds_of` and the functions beside it.
    """
    means, counts = [], []
    for patient in seen.patient.unique():
        own = seen.evidence[seen.patient == patient]
        means.append(own.mean(dim=0))
        counts.append(float(len(own)))
    pooled, count = torch.stack(means), torch.tensor(counts)
    pairs = ((seen.evidence, torch.ones(len(seen.evidence))), (pooled, count))

    def odds_loss(parameters: np.ndarray) -> float:
        return sum(_logistic_loss(evidence, _odds(parameters)) for evidence, _ in pairs)

    odds = _odds(_smallest(odds_loss, np.array([0.0, math.log(0.5)])))

    def loss(parameters: np.ndarray, some: Sequence[tuple[Tensor, Tensor]] = pairs) -> float:
        calibration = torch.cat([_concentration(parameters), odds])
        return sum(_negative_log_likelihood(*pair, calibration) for pair in some)

    # Single slices do not depend on the common error; they give the start of the rest.
    start = np.array([math.log(1e-3), math.log(2.0)])
    of_slices = _smallest(lambda two: loss(np.array([*two, 0.0]), pairs[:1]), start)
    best = _smallest(loss, np.array([*of_slices, 0.0]))
    return torch.cat([_concentration(best), odds]).float()


def _smallest(loss: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Return the parameters, all within 20 of 0, at which a loss is smallest."""
    bounds = [(-20.0, 20.0)] * len(start)
    found: np.ndarray = minimize(
        loss, start, method="Nelder-Mead", bounds=bounds, options={"maxiter": 4000}
    ).x
    return found


def _odds(parameters: np.ndarray) -> Tensor:
    """Return offset and slope of the odds from unconstrained parameters."""
    return torch.tensor([parameters[0], math.exp(parameters[1])], dtype=torch.float64)


def _concentration(parameters: np.ndarray) -> Tensor:
    """Return factor, power and share of common error from unconstrained parameters."""
    factor, power, shared = parameters
    return torch.tensor([math.exp(factor), math.exp(power), expit(shared)], dtype=torch.float64)


def _logistic_loss(evidence: Tensor, odds: Tensor) -> float:
    """Return the mean negative log likelihood of which directions are arbitrary."""
    evidence = evidence.double()
    logit = log_odds_of(evidence.norm(dim=1), torch.cat([odds.new_zeros(3), odds]))
    shows = torch.atan2(evidence[:, 1], evidence[:, 0]).abs() <= ARBITRARY_ERROR
    return float(torch.nn.functional.softplus(torch.where(shows, -logit, logit)).mean())


def _negative_log_likelihood(evidence: Tensor, count: Tensor, calibration: Tensor) -> float:
    """Return the mean negative log likelihood of angle 0.

    Args:
        evidence: ``(N, 2)`` means of the evidence of some slices, rotated so that the true roll is 0.
        count: ``(N,)`` numbers of slices.
        calibration: ``(5,)``.
    """
    evidence, count = evidence.double(), count.double()
    length = evidence.norm(dim=1)
    concentration = calibrated_concentration(length, calibration) * effective_count(count, calibration)
    off = 1.0 - evidence[:, 0] / length.clamp(min=1e-9)
    logit = log_odds_of(length, calibration)
    # Relative to the uniform density; by logarithms, because both terms may be too small for numbers.
    density = -concentration * off - torch.special.i0e(concentration).log()
    shows, does_not = (torch.nn.functional.logsigmoid(one) for one in (logit, -logit))
    return -float(torch.logaddexp(shows + density, does_not).mean())
