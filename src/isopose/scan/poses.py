"""From poses of single slices to the poses of a scan: one, a smoothly varying one, or each slice's own."""

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
from isopose.models.roll import corrected, probability_within, worth_of
from isopose.scan.aggregate import common_values, pooled, smooth_values
from isopose.scan.pose import LEAST_AGREEMENT

#: A roll is right within this, and wrong beyond.
RIGHT = math.radians(6.0)
#: Slices of a scan that tell from where all are looked at.
FIRST = 5


def with_per(config: PoseConfig, per: Per | None) -> PoseConfig:
    """Return the configuration with another ``per``; with None as it is."""
    return config if per is None else config.model_copy(update={"per": per})


def joined(parts: Sequence[SlicePoses]) -> SlicePoses:
    """Batches of slices of one scan, one after the other."""
    outline = Moments(*(torch.cat(values) for values in zip(*(part.outline for part in parts), strict=True)))
    return SlicePoses._make(
        [*(torch.cat(values) for values in zip(*(part[:-1] for part in parts), strict=True)), outline]
    )


def slice_poses(
    transformer: PoseTransformer,
    read: Callable[[np.ndarray], tuple[Tensor, Tensor]],
    batches: Sequence[np.ndarray],
    least: float,
    per: Per | None = None,
) -> SlicePoses:
    """Poses of the slices of one scan, each by itself, seen from the roll that a few of them give together.

    Args:
        transformer: STN1.
        read: gives image and mask ``(n, 1, S, S)`` of some slices.
        batches: numbers of the slices, so many at a time; at least one.
        least: agreement that is enough, see :meth:`PoseTransformer.estimate`.
        per: which slices share a pose; None: as the transformer's configuration says.
    """
    start = None
    if transformer.roll is not None and (per or transformer.config.per) != "slice":
        rows = np.concatenate(batches)
        # Evenly spread and not the outermost, which may show lungs or hips.
        few = min(FIRST, len(rows))
        start = transformer.first_roll(*read(rows[(np.arange(few) * 2 + 1) * len(rows) // (2 * few)]))
    return joined([transformer.estimate(*read(part), least, start) for part in batches])


def scan_poses(
    transformer: PoseTransformer, slices: SlicePoses, z_mm: Tensor, per: Per | None = None
) -> tuple[Tensor, Tensor]:
    """Poses of the slices of one scan, as ``pose.per`` says.

    The roll is decided first, by all slices (or neighbors) together; sizes and centers follow along it.

    Args:
        transformer: STN1.
        slices: of one scan, in order.
        z_mm: ``(N,)`` places along the scan.
        per: which slices share a pose; None: as the transformer's configuration says.

    Returns:
        Poses ``(N, 5)``, and ``(N,)`` how sure they are, see :func:`confidence`.
    """
    config = with_per(transformer.config, per)
    if config.per == "slice":
        return slices.pose, confidence(transformer, slices, slices.evidence, None)
    width = math.inf if config.per == "volume" else config.smooth_mm
    evidence, count = pooled(slices.evidence, z_mm, width)
    angle = torch.atan2(evidence[:, 1], evidence[:, 0])
    pose = slices.pose if transformer.roll is None else transformer.at_angle(slices.outline, angle)
    rest = _together(pose[:, LOG_SCALE_X:], slices.agreement, z_mm, config)
    pose = torch.cat([angle[:, None], rest], dim=1)
    return pose, confidence(transformer, slices, evidence, count)


def scan_transforms(
    config: Config, start: Tensor, slices: SliceTransforms, z_mm: Tensor, per: Per | None = None
) -> tuple[Tensor, Tensor]:
    """theta1 and theta2 of the slices of one scan, as ``pose.per`` and ``crop.per`` say.

    The poses are the scan's already, but for a step that the joint network regressed from each slice. Of the
    steps one is made for the scan, or a smooth one; the crops are then carried into the poses that result, so
    that they stay where they are in the slice.

    Args:
        config: of the model.
        start: ``(N, 5)`` the scan's poses, in which the slices were looked at.
        slices: what was found, in order.
        z_mm: ``(N,)`` places along the scan.
        per: which slices share a step; None: as the configuration says.

    Returns:
        Poses ``(N, 5)`` and crops ``(N, 3, 3)``.
    """
    pose, theta2 = slices.pose, slices.theta2
    shared = with_per(config.pose, per)
    if config.stn == "joint" and shared.per != "slice":
        pose = start + _together(slices.pose - start, slices.agreement, z_mm, shared)
        theta2 = carried(theta2, matrix_from_pose(slices.pose), matrix_from_pose(pose))
    if config.crop.enabled and config.crop.per == "volume":
        theta2 = common_crop(theta2).expand(theta2.shape[0], 3, 3)
    return pose, theta2


def _together(values: Tensor, agreement: Tensor, z_mm: Tensor, config: PoseConfig) -> Tensor:
    """Values ``(N, K)`` of slices made one for the scan or smooth along it, good outlines counting more."""
    weight = (agreement - LEAST_AGREEMENT).clamp(min=1e-3)
    if config.per == "volume":
        return common_values(values, weight).expand(weight.shape[0], -1)
    return smooth_values(values, weight, z_mm, config.smooth_mm)


def confidence(
    transformer: PoseTransformer, slices: SlicePoses, evidence: Tensor, count: Tensor | None
) -> Tensor:
    """Probability ``(N,)`` that the roll is right within :data:`RIGHT`, calibrated on unseen phantoms.

    Args:
        transformer: STN1.
        slices: each by itself.
        evidence: ``(N, 2)``, pooled or of the slices.
        count: ``(N,)`` slices that were pooled, none for the slices themselves.
    """
    if transformer.roll is None:
        return slices.agreement
    calibration = transformer.roll.calibration
    concentration = corrected(evidence.norm(dim=1), calibration)
    if count is not None:
        concentration = concentration * worth_of(count, calibration)
    return probability_within(concentration, RIGHT)
