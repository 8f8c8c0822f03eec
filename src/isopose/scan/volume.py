"""Compute the pose of a whole volume in closed form from the poses of its slices."""

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
from isopose.scan.axis import fit_line, tilt_of
from isopose.scan.pose import agreement_weight
from isopose.scan.poses import scan_poses
from isopose.scan.prior import ScanRoll


def volume_pose(
    transformer: PoseTransformer, slices: SlicePoses, z: Tensor
) -> tuple[Tensor, Tensor, ScanRoll | None]:
    """Compute the pose that maps the reference onto a whole scan.

    The roll is pooled over all slices, and the scales in plane are medians over the slices (``pose.per`` is
    ``volume``). Pitch and yaw are those of the line through the slices' centroids; x and y of the shift are
    where that line passes the scan's middle. Scale and shift along z cannot be estimated, because the extent
    of a scan is the radiographer's choice: the scale is the geometric mean of the two in plane, the shift is
    the scan's middle, and the crop is found from there. If no outline is visible, the pose is the identity.

    Args:
        transformer: STN1 as for slices.
        slices: poses of the slices with a body, in order.
        z: ``(N,)`` their positions from the scan's middle, in units of half the frame's side.

    Returns:
        The pose ``(9,)``; the confidence ``()`` of its roll, the median of the slices' confidence; and the
        scan's roll, None without the roll network.
    """
    poses, confidence, roll = scan_poses(transformer, slices, z, "volume")
    out = torch.zeros(POSE_SIZES[3], device=z.device)
    if transformer.config.start != "identity":
        slice_pose = poses[0]
        log_scale = slice_pose[LOG_SCALE_X:SHIFT_X]
        at_middle, slope = fit_line(slices.outline.center, agreement_weight(slices.agreement), z)
        out[ROLL] = slice_pose[ANGLE]
        out[PITCH], out[YAW] = tilt_of(slope, slice_pose[ANGLE])
        out[LOG_SCALES] = torch.cat([log_scale, log_scale.mean(dim=0, keepdim=True)])
        center = moments(transformer.reference_mask).center[0]
        # The reference's centroid, at the height of the scan's middle, is mapped onto the line.
        unshifted = matrix_from_pose(out)[:3, :2] @ center
        out[SHIFTS] = torch.cat([at_middle, at_middle.new_zeros(1)]) - unshifted
    if roll is not None:
        out = torch.where(roll.outline_visible, out, torch.zeros_like(out))
    return out, median(confidence), roll


def volume_agreement(networks: Networks, mask: Tensor, stack_from_homogenized: Tensor) -> Tensor:
    """Return the mean ``()`` of Eq. 1 between homogenized slices with a body and the reference's outline.

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


def slice_positions(slices: np.ndarray, count: int, stack_from_frame: Tensor) -> Tensor:
    """Return positions ``(N,)`` of slices along z from the stack's middle, in half sides of the frame.

    Args:
        slices: indices ``(N,)``.
        count: slices of the stack.
        stack_from_frame: ``(4, 4)``, see :meth:`isopose.geometry.frame.Frame.stack_from_frame`.
    """
    normalized = torch.from_numpy((2.0 * np.asarray(slices) + 1.0) / count - 1.0).float()
    return normalized / stack_from_frame[2, 2]
