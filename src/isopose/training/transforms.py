"""Transforms of all slices, computed once after STN1, and again after STN2, is trained."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from isopose.data.samples import Slices, Volumes
from isopose.geometry.box import box_of_mask
from isopose.geometry.pose import ANGLE, LOG_SCALES, POSE_SIZE
from isopose.models.pipeline import Networks, SliceTransforms
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.scan.poses import scan_poses, scan_transforms, slice_poses
from isopose.scan.prior import TURNED_ROLL
from isopose.scan.volume import slice_positions, volume_pose
from isopose.training.targets import homogenizing_matrix, where_labeled

#: Maximum number of slices, and of their pixels, per batch.
MAX_BATCH_SLICES, MAX_BATCH_PIXELS = 32, 32 * 256**2


def batch_size_of(slices: Slices) -> int:
    """Return the number of slices per batch, limited by their pixels to bound the memory."""
    largest = max(case.record.frame.size for case in slices.cases)
    return max(1, min(MAX_BATCH_SLICES, MAX_BATCH_PIXELS // largest**2))


@torch.no_grad()
def poses_of(networks: Networks, slices: Slices, device: torch.device) -> Tensor:
    """Return theta1 of every slice as poses ``(N, 5)``, by scan as in prediction (joint: initial pose)."""
    min_agreement = networks.config.predict.min_pose_dice
    out = torch.empty(len(slices), POSE_SIZE)
    for rows, z_mm in _scans(slices, device):
        of_scan = np.flatnonzero(rows.cpu().numpy())
        single = slices_of_scan(networks.pose, slices, of_scan, min_agreement, device)
        out[of_scan] = scan_poses(networks.pose, single, z_mm)[0].cpu()
    return out


def slices_of_scan(
    transformer: PoseTransformer, slices: Slices, rows: np.ndarray, min_agreement: float, device: torch.device
) -> SlicePoses:
    """Return the independent poses of some rows of one scan."""

    def read(batch_rows: np.ndarray) -> tuple[Tensor, Tensor]:
        batch = slices.read(batch_rows).to(device)
        return batch.image, batch.mask

    size = batch_size_of(slices)
    batches = [rows[first : first + size] for first in range(0, len(rows), size)]
    return slice_poses(transformer, read, batches, min_agreement)


def rotation_warnings(samples: Slices | Volumes) -> list[str]:
    """Return a warning for each case that is rotated against its header."""
    assert samples.pose is not None, "turned cases are known after the poses"
    lines = []
    for number, case in enumerate(samples.cases):
        rows = samples.rows[:, 0] == number if isinstance(samples, Slices) else [number]
        angle = samples.pose[torch.from_numpy(np.asarray(rows)), ANGLE]
        middle = float(angle.median()) if len(angle) else 0.0
        if abs(middle) > TURNED_ROLL:
            lines.append(
                f"{case.record.id}: rotated by {math.degrees(middle):+.0f} degrees relative to the position "
                "in its header; turned back"
            )
    return lines


@torch.no_grad()
def transforms_of(networks: Networks, slices: Slices, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return theta1 ``(N, 5)`` and theta2 ``(N, 3, 3)`` of every slice, scan by scan as in prediction.

    ``slices.pose`` must be known; it changes only if one network estimates pose and crop.
    """
    parts = []
    for batch in slices.batches(batch_size_of(slices)):
        on_device = batch.to(device)
        assert on_device.pose is not None, "transforms follow a first estimate of the pose"
        parts.append(networks.transforms(on_device.image, on_device.mask, on_device.pose))
    assert slices.pose is not None, "transforms follow a first estimate of the pose"
    single, start = SliceTransforms(*map(torch.cat, zip(*parts, strict=True))), slices.pose.to(device)
    pose, theta2 = single.pose.clone(), single.theta2.clone()
    for rows, z_mm in _scans(slices, device):
        of_scan = SliceTransforms(*(value[rows] for value in single))
        pose[rows], theta2[rows] = scan_transforms(networks.config, start[rows], of_scan, z_mm)
    return pose.cpu(), theta2.cpu()


def _scans(slices: Slices, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows ``(N,)`` of each scan and their positions along it in mm."""
    for number, case in enumerate(slices.cases):
        rows = slices.rows[:, 0] == number
        if rows.any():
            z_mm = torch.from_numpy(slices.rows[rows, 1] * case.record.spacing[2])
            yield torch.from_numpy(rows).to(device), z_mm.to(device)


@torch.no_grad()
def volume_poses_of(networks: Networks, volumes: Volumes, device: torch.device) -> Tensor:
    """Return theta1 of every volume as poses ``(N, 9)``, as prediction finds them."""
    min_agreement = networks.config.predict.min_pose_dice
    poses = []
    for case, stack_from_frame in zip(volumes.cases, volumes.stack_from_frame, strict=True):
        slices = Slices([case])
        single = slices_of_scan(networks.pose, slices, np.arange(len(slices)), min_agreement, device)
        z = slice_positions(slices.rows[:, 1], case.record.shape[0], stack_from_frame)
        poses.append(volume_pose(networks.pose, single, z.to(device))[0])
    return torch.stack(poses).cpu()


def extent_of(volumes: Volumes) -> float:
    """Return the largest extent of posed scans along z in the homogenized frame, in half sides."""
    assert volumes.pose is not None, "the reach is known after the poses"
    # stack_from_frame has the reciprocal of a stack's half depth.
    half = 1.0 / volumes.stack_from_frame[:, 2, 2]
    return float((half / volumes.pose[:, LOG_SCALES][:, 2].exp()).max())


@torch.no_grad()
def volume_crops_of(networks: Networks, volumes: Volumes, device: torch.device) -> Tensor:
    """Return theta2 of every volume, ``(N, 4, 4)``."""
    crops = []
    for batch in (each.to(device) for each in volumes.batches(1)):
        crops.append(networks.theta2(batch.image[0], batch.mask[0], homogenizing_matrix(networks, batch)))
    return torch.cat(crops).cpu()


@torch.no_grad()
def box_of_all(networks: Networks, samples: Slices | Volumes, device: torch.device) -> Tensor:
    """Return one box ``(4,)`` or ``(6,)`` that contains all training labels in the homogenized frame.

    It is the crop if none is learned.
    """
    size = batch_size_of(samples) if isinstance(samples, Slices) else 1
    union: Tensor | None = None
    for batch in samples.batches(size):
        on_device = batch.to(device)
        matrix = homogenizing_matrix(networks, on_device)
        labeled = where_labeled(on_device.labels, matrix, networks.config.crop).any(dim=0, keepdim=True).cpu()
        union = labeled if union is None else union | labeled
    assert union is not None, "there are training samples"
    return box_of_mask(union, margin=networks.config.crop.margin)[0][0]
