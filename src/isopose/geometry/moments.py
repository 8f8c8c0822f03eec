"""Estimate a body's pose in closed form from its outline's moments: centroid, principal axes and radii."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from isopose.geometry.pose import matrix_from_pose

#: Mean and standard deviation of log(width / depth) of a trunk: the ratio grows from 1.17 at birth to 1.5 in
#: the teens (docs/phantom.md); a few trunks are deeper than wide (a large mass, ascites).
ASPECT_MEAN, ASPECT_SD = math.log(1.3), 0.12
#: Standard deviations of the patients' true roll, and of the relative change of an outline's second moments
#: that is due to shape, not to roll; both weigh the axis of a nearly round outline (docs/concepts/pose.md,
#: "Moments").
ROLL_SD = math.radians(20.0)
SHAPE_SD = 0.04
#: Bound of the absolute log scales between the reference and an outline.
MAX_LOG_SCALE = math.log(6.0)
#: Devices without float64.
NO_FLOAT64 = ("mps",)


class Moments(NamedTuple):
    """Moments of masks up to second order, in normalized coordinates of a square frame.

    Args:
        center: ``(N, 2)`` centroid ``(x, y)``.
        angle: ``(N,)`` of the longer axis, radians in (-pi/2, pi/2], positive from +x to +y.
        radii: ``(N, 2)`` standard deviations along the longer axis and across it.
        elongation: ``(N,)`` (l1 - l2) / (l1 + l2) of the covariance's eigenvalues: 0 is round, 1 a line.
        empty: ``(N,)`` booleans, which masks are empty; their center and angle are 0, their radii 1.
    """

    center: Tensor
    angle: Tensor
    radii: Tensor
    elongation: Tensor
    empty: Tensor


def moments(mask: Tensor) -> Moments:
    """Compute the moments of soft or binary masks ``(N, 1, H, W)`` with H = W."""
    h, w = mask.shape[2:]
    # Runtimes of exported graphs lack some float64 operators.
    float32_only = mask.device.type in NO_FLOAT64 or torch.compiler.is_compiling()
    precise = torch.float32 if float32_only else torch.float64
    # Sums along one axis are short, so float32 is exact enough; copying whole masks to float64 is slow.
    weight = mask[:, 0] if mask.dtype.is_floating_point else mask[:, 0].float()
    x = (2.0 * torch.arange(w, device=mask.device, dtype=precise) + 1.0) / w - 1.0
    y = (2.0 * torch.arange(h, device=mask.device, dtype=precise) + 1.0) / h - 1.0
    columns, rows = weight.sum(dim=1).to(precise), weight.sum(dim=2).to(precise)
    with torch.autocast(mask.device.type, enabled=False):
        weighted_x = (weight @ x.to(weight.dtype)).to(precise)
    mass = rows.sum(dim=1)
    empty = mass <= 0
    mass = mass.clamp(min=1e-12)
    cx, cy = (columns @ x) / mass, (rows @ y) / mass
    xx = (columns @ x.square()) / mass - cx.square()
    yy = (rows @ y.square()) / mass - cy.square()
    xy = (weighted_x @ y) / mass - cx * cy
    angle = 0.5 * torch.atan2(2.0 * xy, xx - yy)
    root = ((xx - yy) / 2.0).square().add(xy.square()).sqrt()
    mean = (xx + yy) / 2.0
    radii = torch.stack([mean + root, mean - root], dim=1).clamp(min=(0.5 / w) ** 2).sqrt()
    center = torch.stack([cx, cy], dim=1)
    is_empty = empty[:, None]
    return Moments(
        center=torch.where(is_empty, 0.0, center).float(),
        angle=torch.where(empty, 0.0, angle).float(),
        radii=torch.where(is_empty, 1.0, radii).float(),
        elongation=torch.where(empty, 0.0, root / mean.clamp(min=1e-12)).float(),
        empty=empty,
    )


def shrunk_angle(elongation: Tensor, angle: Tensor) -> Tensor:
    """Shrink the angle of an axis toward 0 where the outline is nearly round and noise dominates the angle.

    A change of shape of relative size s rotates the axis of second moments with elongation e by about
    s / (2 e). The result is the posterior mean under that noise and a Gaussian prior of the roll
    (:data:`ROLL_SD`).

    Args:
        elongation: ``(N,)``, see :class:`Moments`.
        angle: ``(N,)`` of the axis, radians.

    Returns:
        ``(N,)`` radians.
    """
    noise = SHAPE_SD / (2.0 * elongation.clamp(min=1e-6))
    return angle * ROLL_SD**2 / (ROLL_SD**2 + noise.square())


def transverse_angle(outline: Moments) -> Tensor:
    """Choose which of the two principal axes runs from the patient's right to left, and return its angle.

    Usually it is the longer one, but a straight body that is slightly deeper than wide must not be turned by
    90 degrees. Of the two readings (wider than deep, at the longer axis's angle; or deeper than wide, at the
    shorter axis's angle) the likelier one is taken, under Gaussian priors of the log aspect ratio and the
    roll.

    Returns:
        ``(N,)`` radians in (-pi/2, pi/2].
    """
    aspect = (outline.radii[:, 0] / outline.radii[:, 1]).log()
    other = torch.where(outline.angle > 0, outline.angle - math.pi / 2, outline.angle + math.pi / 2)

    def penalty(angle: Tensor, log_aspect: Tensor) -> Tensor:
        return (angle / ROLL_SD).square() + ((log_aspect - ASPECT_MEAN) / ASPECT_SD).square()

    is_deeper = penalty(other, -aspect) < penalty(outline.angle, aspect)
    return torch.where(is_deeper, other, outline.angle)


def pose_from_moments(outline: Moments, reference: Moments) -> Tensor:
    """Return the poses that map the reference's center, axes and radii onto those of outlines.

    The pose's matrix is ``input_from_homogenized``. Float32, also under autocast.

    Args:
        outline: moments of N masks.
        reference: moments of one reference mask (N = 1).

    Returns:
        ``(N, 5)``; zeros for empty masks.
    """
    reference_angle = shrunk_angle(reference.elongation, transverse_angle(reference))
    angle = shrunk_angle(outline.elongation, transverse_angle(outline))
    return _pose_onto(outline, angle, reference, reference_angle)


def pose_at_angle(outline: Moments, angle: Tensor, reference: Moments, *, by_width: bool = False) -> Tensor:
    """Return the poses that map an upright reference onto outlines whose roll is known.

    Scales and shift map the reference's center, and its radii along the axes, onto those of each outline.

    Args:
        outline: moments of N masks.
        angle: ``(N,)`` roll, radians.
        reference: moments of one reference mask (N = 1), which lies upright.
        by_width: take both scales from the radius across the patient, where the field of view cuts the
            outline above and below.

    Returns:
        ``(N, 5)``; zeros for empty masks.
    """
    return _pose_onto(outline, angle, reference, torch.zeros_like(reference.angle), by_width=by_width)


def radii_along(outline: Moments, angle: Tensor) -> Tensor:
    """Return the standard deviations ``(N, 2)`` of masks along an axis and across it.

    Args:
        outline: moments of N masks.
        angle: ``(N,)`` of the axis, radians.
    """
    cos2, sin2 = torch.cos(outline.angle - angle).square(), torch.sin(outline.angle - angle).square()
    first, second = outline.radii[:, 0].square(), outline.radii[:, 1].square()
    return torch.stack([cos2 * first + sin2 * second, sin2 * first + cos2 * second], dim=1).sqrt()


def _pose_onto(
    outline: Moments, angle: Tensor, reference: Moments, reference_angle: Tensor, *, by_width: bool = False
) -> Tensor:
    """Return the poses that map the reference, at its angle, onto outlines at theirs."""
    log_scale = (radii_along(outline, angle) / radii_along(reference, reference_angle)).log()
    log_scale = log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    if by_width:
        log_scale = log_scale[:, :1].expand(-1, 2)
    turn = angle - reference_angle
    linear = matrix_from_pose(torch.cat([turn[:, None], log_scale, torch.zeros_like(log_scale)], dim=1))
    with torch.autocast(linear.device.type, enabled=False):
        center = (linear[:, :2, :2] @ reference.center[..., None]).squeeze(-1)
    pose = torch.cat([turn[:, None], log_scale, outline.center - center], dim=1)
    return torch.where(outline.empty[:, None], torch.zeros_like(pose), pose)
