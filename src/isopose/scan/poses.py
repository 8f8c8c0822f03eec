"""Turn the poses of single slices into those of a scan: one, smoothly varying, or each slice's own."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from isopose.choices import Per
from isopose.config import Config
from isopose.geometry.box import common_crop, transferred
from isopose.geometry.moments import Moments
from isopose.geometry.pose import ANGLE, LOG_SCALE_X, matrix_from_pose
from isopose.models.pipeline import SliceTransforms
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.models.roll import calibrated_concentration, effective_count, log_odds_of, turned, views_at_angle
from isopose.scan.aggregate import common_values, pooled_evidence, smooth_values
from isopose.scan.pose import agreement_weight
from isopose.scan.prior import (
    CORRECT_WITHIN,
    ScanRoll,
    direction,
    header_roll,
    log_i0,
    probability_within,
    scan_roll,
)
from isopose.settings import PoseConfig

#: Number of slices from which the initial roll of a scan is estimated.
INITIAL_SLICES = 5
#: Standard deviation of the roll along a scan, around the scan's own: a patient is twisted by no more.
ALONG_SD = math.radians(2.0)


def with_per(config: PoseConfig, per: Per | None) -> PoseConfig:
    """Return the configuration with another ``per``; with None as it is."""
    return config if per is None else config.model_copy(update={"per": per})


def concatenated(batches: Sequence[SlicePoses]) -> SlicePoses:
    """Concatenate the poses of batches of slices of one scan."""
    *tensors, outlines = zip(*batches, strict=True)
    outline = Moments(*map(torch.cat, zip(*outlines, strict=True)))
    return SlicePoses._make([*map(torch.cat, tensors), outline])


def slice_poses(
    transformer: PoseTransformer,
    read: Callable[[np.ndarray], tuple[Tensor, Tensor]],
    batches: Sequence[np.ndarray],
    min_agreement: float,
    per: Per | None = None,
) -> SlicePoses:
    """Estimate the pose of each slice of one scan, starting at a roll estimated from a few of them.

    Args:
        transformer: STN1.
        read: returns image and mask ``(n, 1, S, S)`` for indices of slices.
        batches: indices of the slices, a batch at a time; at least one batch.
        min_agreement: agreement from which a pose is accepted, see :meth:`PoseTransformer.estimate`.
        per: which slices share a pose; None: as the transformer's configuration says.
    """
    initial = None
    if transformer.roll is not None and (per or transformer.config.per) != "slice":
        rows = np.concatenate(batches)
        # Evenly spread, without the outermost slices, which may show lungs or hips.
        count = min(INITIAL_SLICES, len(rows))
        sampled = rows[(np.arange(count) * 2 + 1) * len(rows) // (2 * count)]
        initial = initial_roll(transformer, *read(sampled))
    return concatenated([transformer.estimate(*read(rows), min_agreement, initial) for rows in batches])


def initial_roll(transformer: PoseTransformer, image: Tensor, mask: Tensor) -> Tensor:
    """Return the roll ``()`` in radians from which all slices of a scan start, from a few of them.

    The closer to upright the slices are when the network sees them, the less its errors depend on the
    patient's position. Therefore these few slices pass through it twice: as scanned, and turned back by the
    first estimate.

    Args:
        transformer: STN1, with the roll network.
        image: frames ``(n, 1, S, S)``.
        mask: the same shape, foreground.
    """
    network = transformer.roll
    assert network is not None, "only with the roll network"
    slices, angle = transformer.roll_input(image, mask), image.new_zeros(())
    for _ in range(2):
        views = views_at_angle(slices, angle.expand(mask.shape[0]))
        evidence = turned(network(views)[:, :2], angle)
        # Only an initial value, so it does not matter whether it overrides the header.
        not_filled = torch.zeros_like(evidence[:, 0])
        angle = scan_roll(evidence, not_filled, network.calibration, transformer.config).mean
    return angle


def scan_poses(
    transformer: PoseTransformer, slices: SlicePoses, z_mm: Tensor, per: Per | None = None
) -> tuple[Tensor, Tensor, ScanRoll | None]:
    """Combine the poses of one scan's slices as ``pose.per`` says.

    The scan's roll comes first: the posterior of what all slices show and of the header. With ``volume`` all
    slices have it; with ``smooth`` they vary around it as they and their neighbors show; with ``slice`` each
    has its own. If the slices do not show the roll, all keep the header's. Sizes and centers are computed at
    that roll. If no outline is visible, the poses are the identity. With ``start=header`` all slices have
    the header's.

    Args:
        transformer: STN1.
        slices: of one scan, in order.
        z_mm: ``(N,)`` positions along the scan.
        per: which slices share a pose; None: as the transformer's configuration says.

    Returns:
        Poses ``(N, 5)``; the probability ``(N,)`` that each roll is right within
        :data:`isopose.scan.prior.CORRECT_WITHIN`, without the roll network the agreement with the reference's
        outline; and the scan's roll, None if it comes from outlines or STN1.
    """
    config, network = with_per(transformer.config, per), transformer.roll
    if network is None and not transformer.keeps_header:
        return *_outline_poses(slices, z_mm, config), None
    if network is None:
        scan = header_roll(slices.filled, config)
    else:
        scan = scan_roll(slices.evidence, slices.filled, network.calibration, config)
    count = slices.evidence.shape[0]
    angle, probability = scan.angle.expand(count), scan.probability.expand(count)
    if network is not None and config.per != "volume":
        if config.per == "smooth":
            angle, probability = _smooth_roll(slices.evidence, z_mm, scan, network.calibration, config)
        else:
            angle = slices.pose[:, ANGLE]
            probability = _slice_probability(slices.evidence, network.calibration)
        angle = torch.where(scan.overrides_header, angle, scan.angle)
        probability = torch.where(scan.overrides_header, probability, scan.probability)
    pose = transformer.pose_at_angle(slices.outline, angle)
    size_and_center = _combine_slices(pose[:, LOG_SCALE_X:], slices.agreement, z_mm, config)
    pose = torch.cat([angle[:, None], size_and_center], dim=1)
    return torch.where(scan.outline_visible, pose, torch.zeros_like(pose)), probability, scan


def _outline_poses(slices: SlicePoses, z_mm: Tensor, config: PoseConfig) -> tuple[Tensor, Tensor]:
    """Return poses ``(N, 5)`` and agreements ``(N,)`` of slices whose roll comes from the outline."""
    if config.per == "slice":
        return slices.pose, slices.agreement
    width = math.inf if config.per == "volume" else config.smooth_mm
    evidence, _ = pooled_evidence(slices.evidence, z_mm, width)
    angle = torch.atan2(evidence[:, 1], evidence[:, 0])
    size_and_center = _combine_slices(slices.pose[:, LOG_SCALE_X:], slices.agreement, z_mm, config)
    return torch.cat([angle[:, None], size_and_center], dim=1), slices.agreement


def _smooth_roll(
    evidence: Tensor, z_mm: Tensor, scan: ScanRoll, calibration: Tensor, config: PoseConfig
) -> tuple[Tensor, Tensor]:
    """Return rolls ``(N,)`` that vary around the scan's, and the probability ``(N,)`` that each is right.

    A slice that contradicts the scan's roll, which a shoulder or a lung may do with confidence, has little
    weight: the probability that it shows a roll near the scan's rather than any direction.

    Args:
        evidence: ``(N, 2)`` of each slice.
        z_mm: ``(N,)`` positions along the scan.
        scan: the scan's roll.
        calibration: of the roll network.
        config: width of the neighborhood.
    """
    length = evidence.norm(dim=1)
    own_concentration = calibrated_concentration(length, calibration)
    scan_concentration = 1.0 / (ALONG_SD**2 + 1.0 / scan.concentration.clamp(min=1e-6))
    concentration = own_concentration * scan_concentration / (own_concentration + scan_concentration)
    offset = torch.atan2(evidence[:, 1], evidence[:, 0]) - scan.angle
    weights = torch.sigmoid(
        log_odds_of(length, calibration) + concentration * offset.cos() - log_i0(concentration)
    )
    local, count = pooled_evidence(weights[:, None] * evidence, z_mm, config.smooth_mm)
    strength = calibrated_concentration(local.norm(dim=1), calibration) * effective_count(count, calibration)
    local_vector = strength[:, None] * local / local.norm(dim=1, keepdim=True).clamp(min=1e-9)
    joint_vector = local_vector + scan_concentration * direction(scan.angle)
    angle = torch.atan2(joint_vector[:, 1], joint_vector[:, 0])
    zeros = torch.zeros_like(strength)
    correct = scan.probability / probability_within(zeros[:1], scan.concentration[None])[0]
    return angle, correct.clamp(max=1.0) * probability_within(zeros, joint_vector.norm(dim=1))


def _slice_probability(evidence: Tensor, calibration: Tensor) -> Tensor:
    """Return the probability ``(N,)`` that the roll of each slice by itself is right."""
    length = evidence.norm(dim=1)
    within = probability_within(torch.zeros_like(length), calibrated_concentration(length, calibration))
    reliable = log_odds_of(length, calibration).sigmoid()
    return reliable * within + (1.0 - reliable) * CORRECT_WITHIN / math.pi


def scan_transforms(
    config: Config, initial_pose: Tensor, slices: SliceTransforms, z_mm: Tensor, per: Per | None = None
) -> tuple[Tensor, Tensor]:
    """Combine theta1 and theta2 of one scan's slices as ``pose.per`` and ``crop.per`` say.

    The initial poses are the scan's already; the joint network adds a residual for each slice. The residuals
    are combined into one for the scan, or smoothed along it, and the crops are transferred to the resulting
    poses, so that they keep their position in the slice.

    Args:
        config: of the model.
        initial_pose: ``(N, 5)``, the scan's poses before the joint network.
        slices: transforms of the slices, in order.
        z_mm: ``(N,)`` positions along the scan.
        per: which slices share a refinement; None: as the configuration says.

    Returns:
        Poses ``(N, 5)`` and crops ``(N, 3, 3)``.
    """
    pose, theta2 = slices.pose, slices.theta2
    pose_config = with_per(config.pose, per)
    if config.stn == "joint" and pose_config.per != "slice":
        residual = _combine_slices(slices.pose - initial_pose, slices.agreement, z_mm, pose_config)
        pose = initial_pose + residual
        theta2 = transferred(theta2, matrix_from_pose(slices.pose), matrix_from_pose(pose))
    if config.crop.enabled and config.crop.per == "volume":
        theta2 = common_crop(theta2).expand(theta2.shape[0], 3, 3)
    return pose, theta2


def _combine_slices(values: Tensor, agreement: Tensor, z_mm: Tensor, config: PoseConfig) -> Tensor:
    """Combine values of slices as ``config.per`` says: unchanged, the weighted median of all, or smoothed.

    The weight of a slice grows with its agreement.

    Args:
        values: ``(N, K)``.
        agreement: ``(N,)`` of each slice with the reference's outline.
        z_mm: ``(N,)`` positions along the scan.
        config: which slices share a pose.

    Returns:
        ``(N, K)``.
    """
    if config.per == "slice":
        return values
    weight = agreement_weight(agreement)
    if config.per == "volume":
        return common_values(values, weight).expand(weight.shape[0], -1)
    return smooth_values(values, weight, z_mm, config.smooth_mm)
