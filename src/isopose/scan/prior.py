"""The roll of a scan: the posterior, given what its slices show and the position in the file's header.

The prior is a mixture of von Mises distributions around the header's pose: most patients lie near it, some
further off, a few are turned by a quarter or half turn. The slices give a direction, its concentration, and
the probability that they show the roll at all; if they do not, the direction is uniform. The posterior is
again a mixture of von Mises distributions, in closed form.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from isopose.models.roll import calibrated_concentration, effective_count, log_odds_of
from isopose.scan.aggregate import median
from isopose.settings import PoseConfig

#: Largest error of a roll that counts as right.
CORRECT_WITHIN = math.radians(6.0)
#: Roll (radians) beyond which the patient does not lie as the header says, but on a side or prone.
TURNED_ROLL = math.radians(60.0)
#: Standard deviations (radians) of patients who lie further off the header's pose, and around a quarter or
#: half turn of those who are turned by one.
WIDE_SD, TURNED_SD = math.radians(30.0), math.radians(20.0)
#: If the mask fills at least this part of its bounding box in most slices, the body exceeds the field of
#: view, and its outline is not visible. The outlines of five real trunks fill 0.79 to 0.84 at the median.
MAX_FILLED = 0.95


class ScanRoll(NamedTuple):
    """The roll of one scan.

    Args:
        angle: ``()`` radians; 0, the header's, where the slices do not override it.
        slices_angle: ``()`` radians, the roll that the slices show, whether it is used or not.
        mean: ``()`` radians, the mean of the posterior if the slices show the roll: where they are weak, near
            the header's.
        odds: ``()`` odds that the slices show the roll: alone or given the header, whichever is less.
        overrides_header: ``()`` True (the slices override the header) where the odds reach
            ``config.turn_odds`` and an outline is visible.
        outline_visible: ``()`` False where the body exceeds the field of view.
        concentration: ``()`` of the angle, where it rests on the slices.
        probability: ``()`` posterior probability that the angle is right within :data:`CORRECT_WITHIN`.
    """

    angle: Tensor
    slices_angle: Tensor
    mean: Tensor
    odds: Tensor
    overrides_header: Tensor
    outline_visible: Tensor
    concentration: Tensor
    probability: Tensor


def scan_roll(evidence: Tensor, filled: Tensor, calibration: Tensor, config: PoseConfig) -> ScanRoll:
    """Compute the posterior of a scan's roll from its slices and the header.

    With the prior sum_j w_j · vM(roll; m_j, k_j) and evidence of direction u and concentration K, the weight
    of component j in the posterior is w_j · I0(abs(K u + k_j m_j)) / (I0(K) · I0(k_j)), its direction and
    concentration those of K u + k_j m_j.

    The header only decides whether the slices override it, not how far the patient is rotated: if they do,
    the roll is u. The posterior's mean is smaller than every rotation, by one degree in a hundred where the
    slices are as sure as usual.

    Args:
        evidence: ``(N, 2)`` of the slices, see :class:`isopose.models.pose.SlicePoses`.
        filled: ``(N,)`` part of its bounding box that each slice's mask fills.
        calibration: ``(5,)``, see :func:`isopose.models.roll.log_odds_of`.
        config: the prior and the odds at which the slices override the header.
    """
    # The number of slices is a tensor, because an exported graph accepts any number.
    count, mean = torch.ones_like(evidence[:, 0]).sum(), evidence.mean(dim=0)
    length = mean.norm()
    concentration = calibrated_concentration(length, calibration) * effective_count(count, calibration)
    weight, prior = _prior(config, evidence)
    joint = concentration * mean / length.clamp(min=1e-9) + prior
    joint_concentration = joint.norm(dim=1)
    log_weight = (
        weight.log() + log_i0(joint_concentration) - log_i0(concentration) - log_i0(prior.norm(dim=1))
    )
    slice_log_odds = log_odds_of(length, calibration)
    against_header = slice_log_odds + log_weight.logsumexp(dim=0)
    # Agreement with the header must not raise the odds above those of the slices alone.
    odds = torch.minimum(slice_log_odds, against_header).exp()
    posterior = log_weight.softmax(dim=0) @ (joint / joint_concentration[:, None].clamp(min=1e-9))
    slices_angle, posterior_mean = torch.atan2(mean[1], mean[0]), torch.atan2(posterior[1], posterior[0])
    visible = median(filled) < MAX_FILLED
    overrides_header = (odds >= config.turn_odds) & visible
    angle = torch.where(overrides_header, slices_angle, torch.zeros_like(slices_angle))
    # The posterior is a mixture: with this probability the slices show the roll; otherwise, and always if no
    # outline is visible, only the prior is known.
    reliable = against_header.sigmoid() * visible
    components = torch.cat([joint, prior])
    concentrations = torch.cat([joint_concentration, prior.norm(dim=1)])
    weights = torch.cat([reliable * log_weight.softmax(dim=0), (1.0 - reliable) * weight])
    offset = torch.atan2(components[:, 1], components[:, 0]) - angle
    probability = (weights * probability_within(offset, concentrations)).sum()
    return ScanRoll(
        angle=angle,
        slices_angle=slices_angle,
        mean=posterior_mean,
        odds=odds,
        overrides_header=overrides_header,
        outline_visible=visible,
        concentration=joint_concentration[log_weight.argmax()],
        probability=probability,
    )


def header_roll(filled: Tensor, config: PoseConfig) -> ScanRoll:
    """Return the header's roll, for a scan whose roll is not estimated; its probability is the prior's.

    Args:
        filled: ``(N,)`` part of its bounding box that each slice's mask fills.
        config: the prior.
    """
    weight, prior = _prior(config, filled)
    zero, offset = torch.zeros_like(filled[0]), torch.atan2(prior[:, 1], prior[:, 0])
    concentrations = prior.norm(dim=1)
    visible = median(filled) < MAX_FILLED
    return ScanRoll(
        angle=zero,
        slices_angle=zero,
        mean=zero,
        odds=zero,
        overrides_header=torch.zeros_like(visible),
        outline_visible=visible,
        concentration=concentrations[0],
        probability=(weight * probability_within(offset, concentrations)).sum(),
    )


def direction(angle: Tensor) -> Tensor:
    """Return unit vectors ``(..., 2)`` of angles ``(...)`` in radians."""
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def probability_within(offset: Tensor, concentration: Tensor) -> Tensor:
    """Return the probability that angles of von Mises distributions lie within :data:`CORRECT_WITHIN` of 0.

    Approximated by the normal distribution of the same concentration.

    Args:
        offset: ``(N,)`` radians, mean directions; any multiple of a turn may be added.
        concentration: ``(N,)``, at least that of a standard deviation of :data:`WIDE_SD`.
    """
    offset = torch.remainder(offset + math.pi, 2.0 * math.pi) - math.pi
    scale = (concentration / 2.0).sqrt()
    return 0.5 * (torch.erf((offset + CORRECT_WITHIN) * scale) - torch.erf((offset - CORRECT_WITHIN) * scale))


def log_i0(x: Tensor) -> Tensor:
    """Return the logarithm of the modified Bessel function of order 0 of numbers that are not negative.

    Polynomials 9.8.1 and 9.8.2 of Abramowitz and Stegun, with errors below 1e-6; ``torch.special.i0e`` cannot
    be exported to ONNX.
    """
    small = (x.clamp(max=3.75) / 3.75).square()
    large = 3.75 / x.clamp(min=3.75)
    near, far = torch.zeros_like(x), torch.zeros_like(x)
    for factor in (0.0045813, 0.0360768, 0.2659732, 1.2067492, 3.0899424, 3.5156229, 1.0):
        near = near * small + factor
    for factor in (
        *(0.00392377, -0.01647633, 0.02635537, -0.02057706, 0.00916281),
        *(-0.00157565, 0.00225319, 0.01328592, 0.39894228),
    ):
        far = far * large + factor
    return torch.where(x < 3.75, near.log(), x + far.log() - 0.5 * x.clamp(min=3.75).log())


def _prior(config: PoseConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights ``(5,)`` of the prior's components, and concentration times direction ``(5, 2)``."""
    near, wide, turned = math.radians(config.roll_sd) ** -2, WIDE_SD**-2, TURNED_SD**-2
    weights = [
        1.0 - config.roll_wide_share - config.roll_turned_share,
        config.roll_wide_share,
        *[config.roll_turned_share / 3.0] * 3,
    ]
    means = [[near, 0.0], [wide, 0.0], [0.0, turned], [0.0, -turned], [-turned, 0.0]]
    return like.new_tensor(weights), like.new_tensor(means)
