"""Transforms of all slices, computed once: when STN1, and then STN2, no longer change."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from isopose.data.slices import Slices
from isopose.geometry.box import box_of_mask
from isopose.geometry.pose import ANGLE, POSE_SIZE, matrix_from_pose
from isopose.geometry.warp import warp
from isopose.models.pipeline import Pipeline, SliceTransforms
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.scan.poses import TURNED, scan_poses, scan_transforms, slice_poses
from isopose.training.losses import one_hot

#: Slices that are looked at at a time, but no more than have so many pixels together.
BATCH, PIXELS = 32, 32 * 256**2


def batch_of(slices: Slices) -> int:
    """How many slices are looked at at a time, so that memory does not grow with their pixels."""
    largest = max(case.record.frame.size for case in slices.cases)
    return max(1, min(BATCH, PIXELS // largest**2))


@torch.no_grad()
def poses_of(pipeline: Pipeline, slices: Slices, device: torch.device) -> Tensor:
    """theta1 of every slice as poses ``(N, 5)``, scan by scan as in prediction; jointly, the start of it."""
    least = pipeline.config.predict.min_pose_dice
    out = torch.empty(len(slices), POSE_SIZE)
    for rows, z_mm in _scans(slices, device):
        of_scan = np.flatnonzero(rows.cpu().numpy())
        single = slices_of_scan(pipeline.pose, slices, of_scan, least, device)
        out[of_scan] = scan_poses(pipeline.pose, single, z_mm).pose.cpu()
    return out


def slices_of_scan(
    transformer: PoseTransformer, slices: Slices, rows: np.ndarray, least: float, device: torch.device
) -> SlicePoses:
    """Poses of some rows that are one scan's, each by itself."""

    def read(some: np.ndarray) -> tuple[Tensor, Tensor]:
        batch = slices.read(some).to(device)
        return batch.image, batch.mask

    size = batch_of(slices)
    batches = [rows[first : first + size] for first in range(0, len(rows), size)]
    return slice_poses(transformer, read, batches, least)


def turned(slices: Slices) -> list[str]:
    """A line for each case that lies turned against its header, so that people look at it."""
    assert slices.pose is not None, "turned cases are told after poses are estimated"
    lines = []
    for number, case in enumerate(slices.cases):
        angle = slices.pose[torch.from_numpy(slices.rows[:, 0] == number), ANGLE]
        middle = float(angle.median()) if len(angle) else 0.0
        if abs(middle) > TURNED:
            lines.append(
                f"{case.record.id}: lies turned by {math.degrees(middle):+.0f} degrees against its header; "
                "turned back"
            )
    return lines


@torch.no_grad()
def transforms_of(pipeline: Pipeline, slices: Slices, device: torch.device) -> tuple[Tensor, Tensor]:
    """theta1 ``(N, 5)`` and theta2 ``(N, 3, 3)`` of every slice, scan by scan as prediction does.

    ``slices.pose`` is known; it is changed only where one network does pose and crop.
    """
    parts = []
    for batch in slices.in_order(batch_of(slices)):
        on_device = batch.to(device)
        assert on_device.pose is not None, "transforms follow a first estimate of the pose"
        parts.append(pipeline.transforms(on_device.image, on_device.mask, on_device.pose))
    assert slices.pose is not None, "transforms follow a first estimate of the pose"
    single, start = SliceTransforms(*map(torch.cat, zip(*parts, strict=True))), slices.pose.to(device)
    pose, theta2 = single.pose.clone(), single.theta2.clone()
    for rows, z_mm in _scans(slices, device):
        of_scan = SliceTransforms(*(value[rows] for value in single))
        pose[rows], theta2[rows] = scan_transforms(pipeline.config, start[rows], of_scan, z_mm)
    return pose.cpu(), theta2.cpu()


def _scans(slices: Slices, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Which rows are of a scan, ``(N,)``, and their places along it in mm, scan after scan."""
    for number, case in enumerate(slices.cases):
        rows = slices.rows[:, 0] == number
        if rows.any():
            z_mm = torch.from_numpy(slices.rows[rows, 1] * case.record.spacing[2])
            yield torch.from_numpy(rows).to(device), z_mm.to(device)


@torch.no_grad()
def box_of_all(pipeline: Pipeline, slices: Slices, device: torch.device) -> Tensor:
    """One box ``(4,)`` that holds every training label in the homogenized frame, where no crop is learned."""
    size = (pipeline.config.crop.size, pipeline.config.crop.size)
    union = torch.zeros(1, *size)
    for batch in slices.in_order(batch_of(slices)):
        on_device = batch.to(device)
        assert on_device.pose is not None, "the box is found after the pose"
        labels = one_hot(on_device.labels, pipeline.classes)[:, 1:].sum(dim=1, keepdim=True)
        seen = warp(labels, matrix_from_pose(on_device.pose), size)
        union = torch.maximum(union, (seen[:, 0] > 0.25).float().amax(dim=0, keepdim=True).cpu())
    box: Tensor = box_of_mask(union, margin=pipeline.config.crop.margin)[0][0]
    return box
