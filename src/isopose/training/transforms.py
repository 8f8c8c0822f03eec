"""Transforms of all slices, computed once: when STN1, and then STN2, no longer change."""

import math

import torch
from torch import Tensor

from isopose.data.slices import Slices
from isopose.geometry.crop import box_of_mask, common_crop
from isopose.geometry.similarity import ANGLE, matrix_from_pose
from isopose.geometry.warp import warp
from isopose.models.pipeline import Pipeline
from isopose.models.scan import TURNED, joined, scan_poses
from isopose.training.losses import one_hot

BATCH = 32


@torch.no_grad()
def poses_of(pipeline: Pipeline, slices: Slices, device: torch.device) -> Tensor:
    """theta1 of every slice as poses ``(N, 5)``, scan by scan as prediction does."""
    least = pipeline.config.predict.min_pose_dice
    batches = (batch.to(device) for batch in slices.in_order(BATCH))
    single = joined([pipeline.pose.estimate(batch.image, batch.mask, least) for batch in batches])
    out = single.pose.clone()
    for number, case in enumerate(slices.cases):
        rows = torch.from_numpy(slices.rows[:, 0] == number).to(device)
        if rows.any():
            z_mm = torch.from_numpy(slices.rows[slices.rows[:, 0] == number, 1] * case.record.spacing[2])
            out[rows] = scan_poses(pipeline.pose, single.of(rows), z_mm.to(device)).pose
    return out.cpu()


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
def crops_of(pipeline: Pipeline, slices: Slices, device: torch.device) -> Tensor:
    """theta2 of every slice ``(N, 3, 3)``; one for all of a scan where ``crop.per`` says so."""
    batches = (batch.to(device) for batch in slices.in_order(BATCH))
    theta2 = torch.cat(
        [pipeline.theta2(b.image, b.mask, b.pose).cpu() for b in batches if b.pose is not None]
    )
    if pipeline.config.crop.per == "volume":
        case_of_row = torch.from_numpy(slices.rows[:, 0])
        for case in case_of_row.unique():
            theta2[case_of_row == case] = common_crop(theta2[case_of_row == case])
    return theta2


@torch.no_grad()
def box_of_all(pipeline: Pipeline, slices: Slices, device: torch.device) -> Tensor:
    """One box ``(4,)`` that holds every training label in the homogenised frame, where no crop is learned."""
    size = (pipeline.config.crop.size, pipeline.config.crop.size)
    union = torch.zeros(1, *size)
    for batch in slices.in_order(BATCH):
        on_device = batch.to(device)
        assert on_device.pose is not None, "the box is found after the pose"
        labels = one_hot(on_device.labels, pipeline.classes)[:, 1:].sum(dim=1, keepdim=True)
        seen = warp(labels, matrix_from_pose(on_device.pose), size)
        union = torch.maximum(union, (seen[:, 0] > 0.25).float().amax(dim=0, keepdim=True).cpu())
    box: Tensor = box_of_mask(union, margin=pipeline.config.crop.margin)[0][0]
    return box
