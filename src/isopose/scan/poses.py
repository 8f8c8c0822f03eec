"""Turn the poses of single slices into those of a scan: one, smoothly varying, or each slice's own."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from isopose.config import Config, Per, PoseConfig
from isopose.geometry.box import carried, common_crop
from isopose.geometry.moments import Moments
from isopose.geometry.pose import LOG_SCALE_X, matrix_from_pose
from isopose.models.pipeline import SliceTransforms
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.models.roll import calibrated_concentration, effective_count, probability_within
from isopose.scan.aggregate import common_values, pooled, smooth_values
from isopose.scan.pose import LEAST_AGREEMENT

#: Largest error of a roll that counts as right.
RIGHT = math.radians(6.0)
#: Number of slices from which the initial roll of a scan is estimated.
FIRST = 5


def with_per(config: PoseConfig, per: Per | None) -> PoseConfig:
    """Return the configuration with another ``per``; with None as it is."""
    return config if per is None else config.model_copy(update={"per": per})


def joined(parts: Sequence[SlicePoses]) -> SlicePoses:
    """Concatenate the poses of batches of slices of one scan."""
    outline = Moments(*(torch.cat(values) for values in zip(*(part.outline for part in parts), strict=True)))
    return SlicePoses._make(
        [*(torch.cat(values) for values in zip(*(part[:-1] for part in parts), strict=True)), outline]
    )


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
    scan_roll = None
    if transformer.roll is not None and (per or transformer.config.per) != "slice":
        rows = np.concatenate(batches)
        # Evenly spread, without the outermost slices, which may show lungs or hips.
        few = min(FIRST, len(rows))
        scan_roll = transformer.roll_of_scan(*read(rows[(np.arange(few) * 2 + 1) * len(rows) // (2 * few)]))
    return joined([transformer.estimate(*read(part), min_agreement, scan_roll) for part in batches])


def scan_poses(
    transformer: PoseTransformer, slices: SlicePoses, z_mm: Tensor, per: Per | None = None
) -> tuple[Tensor, Tensor]:
    """Combine the poses of one scan's slices as ``pose.per`` says.

    First the roll is pooled over all slices (or neighbors); then sizes and centers are computed at that roll.

    Args:
        transformer: STN1.
        slices: of one scan, in order.
        z_mm: ``(N,)`` positions along the scan.
        per: which slices share a pose; None: as the transformer's configuration says.

    Returns:
        Poses ``(N, 5)``, and their confidence ``(N,)``, see :func:`confidence`.
    """
    config = with_per(transformer.config, per)
    if config.per == "slice":
        return slices.pose, confidence(transformer, slices, slices.evidence, None)
    width = math.inf if config.per == "volume" else config.smooth_mm
    evidence, count = pooled(slices.evidence, z_mm, width)
    angle = torch.atan2(evidence[:, 1], evidence[:, 0])
    pose = slices.pose if transformer.roll is None else transformer.pose_at_angle(slices.outline, angle)
    rest = _combined(pose[:, LOG_SCALE_X:], slices.agreement, z_mm, config)
    pose = torch.cat([angle[:, None], rest], dim=1)
    return pose, confidence(transformer, slices, evidence, count)


def scan_transforms(
    config: Config, initial_pose: Tensor, slices: SliceTransforms, z_mm: Tensor, per: Per | None = None
) -> tuple[Tensor, Tensor]:
    """Combine theta1 and theta2 of one scan's slices as ``pose.per`` and ``crop.per`` say.

    The initial poses are the scan's already; the joint network adds a residual for each slice. The residuals
    are combined into one for the scan, or smoothed along it, and the crops are transferred to the resulting
    poses, so that they keep their place in the slice.

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
    shared = with_per(config.pose, per)
    if config.stn == "joint" and shared.per != "slice":
        pose = initial_pose + _combined(slices.pose - initial_pose, slices.agreement, z_mm, shared)
        theta2 = carried(theta2, matrix_from_pose(slices.pose), matrix_from_pose(pose))
    if config.crop.enabled and config.crop.per == "volume":
        theta2 = common_crop(theta2).expand(theta2.shape[0], 3, 3)
    return pose, theta2


def _combined(values: Tensor, agreement: Tensor, z_mm: Tensor, config: PoseConfig) -> Tensor:
    """Return values ``(N, K)`` of slices as their common median, or smoothed, weighted by agreement."""
    weight = (agreement - LEAST_AGREEMENT).clamp(min=1e-3)
    if config.per == "volume":
        return common_values(values, weight).expand(weight.shape[0], -1)
    return smooth_values(values, weight, z_mm, config.smooth_mm)


def confidence(
    transformer: PoseTransformer, slices: SlicePoses, evidence: Tensor, count: Tensor | None
) -> Tensor:
    """Return the probability ``(N,)`` that the roll is right within :data:`RIGHT`.

    It is calibrated on phantoms that the network was not trained on. Without the roll network it is the
    agreement with the reference's outline.

    Args:
        transformer: STN1.
        slices: poses estimated independently.
        evidence: ``(N, 2)``, of each slice or pooled.
        count: ``(N,)`` effective numbers of pooled slices; None: not pooled.
    """
    if transformer.roll is None:
        return slices.agreement
    calibration = transformer.roll.calibration
    concentration = calibrated_concentration(evidence.norm(dim=1), calibration)
    if count is not None:
        concentration = concentration * effective_count(count, calibration)
    return probability_within(concentration, RIGHT)
