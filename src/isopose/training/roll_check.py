"""Measure whether a pose network has learned rotations, which the Dice of the masks does not show.

Eq. 1 is near its optimum once position and size are right: a trunk rotated by ten degrees overlaps an upright
one by 0.95 to 0.98. Therefore slices are rotated by known angles, and STN1's estimate has to follow.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import Tensor

from isopose.data.samples import SliceBatch, Slices
from isopose.geometry.moments import moments, pose_from_moments
from isopose.geometry.pose import ANGLE, POSE_SIZE, matrix_from_pose
from isopose.geometry.warp import warp
from isopose.models.info import MIN_SLOPE, RollCheck
from isopose.models.pipeline import Networks
from isopose.models.roll import wrapped
from isopose.ranks import gathered
from isopose.training.transforms import batch_size_of

#: Applied rotations in radians: about as far as patients lie from upright (docs/phantom.md).
APPLIED_ROTATIONS = (-math.radians(15.0), math.radians(15.0))
#: After each epoch, one in this many slices is rotated, since every rotation needs a forward pass.
ROTATED_EVERY = 4

#: From images and masks ``(N, 1, S, S)`` to poses ``(N, 5)``.
Estimate = Callable[[Tensor, Tensor], Tensor]


def estimate_of(networks: Networks) -> Estimate | None:
    """Return the trained pose estimate of single slices; None if no trained network estimates the roll.

    With the shipped roll network no STN1 regresses the angle.
    """
    if networks.pose.localization is not None:
        return networks.pose
    if networks.joint is not None and networks.pose.roll is None:
        return lambda image, mask: networks.joint_step(image, mask, networks.pose.initial_pose(image, mask))[
            0
        ]
    return None


def slopes(estimate: Estimate, image: Tensor, mask: Tensor, air: float) -> Tensor:
    """Return the slope ``(N,)`` of each slice's estimated angle on the applied rotation.

    The regression over :data:`APPLIED_ROTATIONS` passes through the unrotated slice; changes are wrapped to
    half a turn.

    Args:
        estimate: returns poses.
        image: ``(N, 1, S, S)`` normalized.
        mask: ``(N, 1, S, S)``.
        air: value outside the image.
    """
    unrotated_angle = estimate(image, mask)[:, ANGLE].float()
    weighted_changes = torch.zeros_like(unrotated_angle)
    for rotation in APPLIED_ROTATIONS:
        # A matrix maps output to input, so rotating a slice by an angle takes the opposite angle.
        pose = torch.zeros(POSE_SIZE, device=image.device)
        pose[ANGLE] = -rotation
        theta = matrix_from_pose(pose)
        size = (image.shape[2], image.shape[3])
        rotated = warp(image, theta, size, fill=air), warp(mask, theta, size)
        weighted_changes += rotation * wrapped(estimate(*rotated)[:, ANGLE].float() - unrotated_angle)
    return weighted_changes / sum(rotation**2 for rotation in APPLIED_ROTATIONS)


def true_angles(truth: Mapping[str, float], slices: Slices, rows: Tensor) -> Tensor:
    """Return the true angles ``(N,)`` of rows in radians; NaN for unknown ones.

    Args:
        truth: case id to the angle of the patient relative to the reference.
        slices: whose cases have the ids.
        rows: ``(N,)`` of the slices.
    """
    if not truth:
        return torch.full((len(rows),), math.nan, device=rows.device)
    cases = [slices.cases[slices.rows[row, 0]].record.id for row in rows.cpu().tolist()]
    return torch.tensor([truth.get(case, math.nan) for case in cases], device=rows.device)


def axis_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles between axes ``(N,)``, which have no sign, in radians: at most pi / 2."""
    return 0.5 * wrapped(2.0 * (a - b)).abs()


def rotation_errors(
    estimate: Estimate,
    reference: Tensor,
    air: float,
    truth: Mapping[str, float],
    slices: Slices,
    batch: SliceBatch,
    *,
    every: int = ROTATED_EVERY,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return slopes of one in ``every`` slices, and angle errors of all in radians.

    Returns:
        Slopes ``(M,)``; distances ``(N,)`` of the estimate's and the moments' axes; distances ``(K,)`` of the
            estimate, and of the moments, from the true angle of the slices whose truth is known.
    """
    rotated = batch.select(torch.arange(0, len(batch.rows), every, device=batch.image.device))
    moments_angle = pose_from_moments(moments(batch.mask), moments(reference))[:, ANGLE].float()
    estimated_angle = estimate(batch.image, batch.mask)[:, ANGLE].float()
    true_angle = true_angles(truth, slices, batch.rows)
    true_errors, moments_errors = (
        wrapped(angle - true_angle).abs()[true_angle.isfinite()] for angle in (estimated_angle, moments_angle)
    )
    slope = slopes(estimate, rotated.image, rotated.mask, air)
    return slope, axis_distance(estimated_angle, moments_angle), true_errors, moments_errors


def summarize(batch_errors: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """Return the medians over all slices of the results of :func:`rotation_errors`."""
    slope, from_moments, from_truth, _ = _gathered(batch_errors)
    medians = {"roll slope": float(slope.median()), "degrees from moments": _degrees(from_moments)}
    return medians | ({"degrees from the true roll": _degrees(from_truth)} if len(from_truth) else {})


def _gathered(batch_errors: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    # By index, since a rank may have had no batch.
    return [gathered([errors[n] for errors in batch_errors]) for n in range(4)]


@torch.no_grad()
def check_roll(
    networks: Networks, slices: Slices, fabric: Fabric, truth: Mapping[str, float], patients: str
) -> RollCheck | None:
    """Measure the roll errors of the trained STN1; None if no trained network estimates the roll.

    Args:
        networks: with their best weights, in evaluation mode.
        slices: of validation patients, or of training patients if there are no others.
        fabric: ranks share the work; all return the same result.
        truth: case id to the true angle relative to the reference, radians; empty if unknown.
        patients: whose slices they are, for :class:`RollCheck`.
    """
    estimate = estimate_of(networks)
    if estimate is None:
        return None
    batches = slices.batches(batch_size_of(slices), fabric.global_rank, fabric.world_size)
    errors_of = partial(
        rotation_errors, estimate, networks.pose.reference_mask, networks.air, truth, slices, every=1
    )
    slope, from_moments, true_errors, moments_errors = _gathered(
        [errors_of(batch.to(fabric.device)) for batch in batches]
    )
    return RollCheck(
        slope=float(slope.median()),
        degrees_from_moments=_degrees(from_moments),
        degrees_from_truth=_degrees(true_errors) if len(true_errors) else None,
        moments_from_truth=_degrees(moments_errors) if len(true_errors) else None,
        slices=len(slope),
        patients="validation" if patients == "validation" else "training",
    )


def rotation_warning(check: RollCheck, section: str) -> str:
    """Return the warning that STN1 has not learned to rotate, and what to change."""
    degrees = math.degrees(APPLIED_ROTATIONS[-1])
    return (
        f"warning: STN1 has not learned rotation: for a rotation of {degrees:.0f} degrees its angle changes "
        f"by {check.slope * degrees:.1f} (slope {check.slope:.2f}, expected at least {MIN_SLOPE}), so "
        "homogenized slices keep the patient's own roll, whatever their mask Dice is; train it longer "
        f"({section}.optimizer.epochs) or with momentum ({section}.optimizer.momentum=0.9)"
    )


def _degrees(radians: Tensor) -> float:
    return math.degrees(float(radians.median()))
