"""The pose of a whole volume, in closed form from what its slices say."""

import numpy as np
import torch
from torch import Tensor

from isopose.geometry.moments import moments
from isopose.geometry.overlap import soft_dice
from isopose.geometry.pose import (
    ANGLE,
    LOG_SCALE_X,
    LOG_SCALES,
    PITCH,
    POSE_SIZES,
    ROLL,
    SHIFT_X,
    SHIFTS,
    YAW,
    matrix_from_pose,
)
from isopose.geometry.warp import warp
from isopose.models.pipeline import Networks
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.scan.aggregate import median
from isopose.scan.axis import line_through, tilt_of
from isopose.scan.pose import LEAST_AGREEMENT
from isopose.scan.poses import scan_poses


def volume_pose(transformer: PoseTransformer, slices: SlicePoses, z: Tensor) -> tuple[Tensor, Tensor]:
    """The pose that lays a whole scan like the reference.

    The roll is what all slices say together, the scales in plane are medians over the slices (``pose.per`` is
    ``volume``); pitch and yaw are those of the line through the slices' centroids, x and y of the shift where
    it passes the scan's middle. Nothing tells the scale along z, for how far a scan reaches is the
    radiographer's choice: it is the geometric mean of the two in plane. Nor the shift along z: the scan's
    middle is taken, and the crop finds its place from there.

    Args:
        transformer: STN1 as for slices.
        slices: each by itself, those that show a body, in order.
        z: ``(N,)`` their places in isotropic units of half the frame's side from the scan's middle.

    Returns:
        The pose ``(9,)``, and ``()`` the probability that its roll is right: the median of the slices'.
    """
    poses, confidence = scan_poses(transformer, slices, z, "volume")
    out = torch.zeros(POSE_SIZES[3], device=z.device)
    if transformer.config.start != "identity":
        flat = poses[0]
        log_scale = flat[LOG_SCALE_X:SHIFT_X]
        weight = (slices.agreement - LEAST_AGREEMENT).clamp(min=1e-3)
        at_middle, slope = line_through(slices.outline.center, weight, z)
        out[ROLL] = flat[ANGLE]
        out[PITCH], out[YAW] = tilt_of(slope, flat[ANGLE])
        out[LOG_SCALES] = torch.cat([log_scale, log_scale.mean(dim=0, keepdim=True)])
        center = moments(transformer.reference_mask).center[0]
        carried = matrix_from_pose(out)[:3, :2] @ center
        # The reference's centroid, as high as the scan's middle, comes to lie on the line there.
        out[SHIFTS] = torch.cat([at_middle, at_middle.new_zeros(1)]) - carried
    return out, median(confidence)


def volume_agreement(networks: Networks, mask: Tensor, stack_from_homogenized: Tensor) -> Tensor:
    """Return the mean ``()`` of Eq. 1 of homogenized slices that show a body, with the reference's outline.

    Args:
        networks: of volumes.
        mask: ``(1, 1, Z, S, S)`` of one scan.
        stack_from_homogenized: ``(1, 4, 4)``.
    """
    reference = networks.pose.reference_mask
    side = reference.shape[-1]
    slices = warp(mask, stack_from_homogenized, (networks.config.crop.depth, side, side))[0, 0]
    area = slices.flatten(1).sum(dim=1)
    return soft_dice(slices[area > 0.5 * area.max()], reference[0]).mean()


def places(slices: np.ndarray, count: int, stack_from_frame: Tensor) -> Tensor:
    """Places ``(N,)`` of some of a stack's slices along z, in isotropic units from its middle."""
    normalized = torch.from_numpy((2.0 * np.asarray(slices) + 1.0) / count - 1.0).float()
    return normalized / stack_from_frame[2, 2]
