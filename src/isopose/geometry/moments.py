"""Closed-form pose of a body's outline: centroid, principal axes and the two radii along them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from isopose.geometry.pose import matrix_from_pose

#: A trunk's width over its depth, as mean and spread of the logarithm: 1.17 at birth to 1.5 in the teens
#: (docs/phantom.md), and deeper than wide now and then (a large mass, ascites).
ASPECT_MEAN, ASPECT_SD = math.log(1.3), 0.12
#: Spread of the true roll of patients, and of an outline's second moments that is not roll but shape; from
#: both follows how far the axis of a nearly round outline is believed. See docs/concepts/pose.md, "Moments".
ROLL_SD = math.radians(20.0)
SHAPE_SD = 0.04
#: Devices that have no float64 and refuse it.
NO_FLOAT64 = ("mps",)


class Moments(NamedTuple):
    """Moments of masks up to the second order, in normalized coordinates of a square frame.

    Args:
        center: ``(N, 2)`` as ``(x, y)``.
        angle: ``(N,)`` of the longer axis, in (-pi/2, pi/2], positive from +x to +y.
        radii: ``(N, 2)`` standard deviations along the longer axis and across it.
        elongation: ``(N,)`` (l1 - l2) / (l1 + l2) of the eigenvalues: 0 is round, 1 a line.
        empty: ``(N,)`` no mass: center 0, angle 0, radii 1.
    """

    center: Tensor
    angle: Tensor
    radii: Tensor
    elongation: Tensor
    empty: Tensor


def moments(mask: Tensor) -> Moments:
    """Moments of soft or binary masks ``(N, 1, H, W)`` with H = W."""
    h, w = mask.shape[2:]
    # Runtimes of exported graphs lack functions of float64.
    single = mask.device.type in NO_FLOAT64 or torch.compiler.is_compiling()
    precise = torch.float32 if single else torch.float64
    # Sums along one axis are short and exact enough in float32; copying whole masks to float64 is slow.
    weight = mask[:, 0] if mask.dtype.is_floating_point else mask[:, 0].float()
    x = (2.0 * torch.arange(w, device=mask.device, dtype=precise) + 1.0) / w - 1.0
    y = (2.0 * torch.arange(h, device=mask.device, dtype=precise) + 1.0) / h - 1.0
    columns, rows = weight.sum(dim=1).to(precise), weight.sum(dim=2).to(precise)
    with torch.autocast(mask.device.type, enabled=False):
        mixed = (weight @ x.to(weight.dtype)).to(precise)
    mass = rows.sum(dim=1)
    empty = mass <= 0
    mass = mass.clamp(min=1e-12)
    cx, cy = (columns @ x) / mass, (rows @ y) / mass
    xx = (columns @ x.square()) / mass - cx.square()
    yy = (rows @ y.square()) / mass - cy.square()
    xy = (mixed @ y) / mass - cx * cy
    angle = 0.5 * torch.atan2(2.0 * xy, xx - yy)
    root = ((xx - yy) / 2.0).square().add(xy.square()).sqrt()
    mean = (xx + yy) / 2.0
    radii = torch.stack([mean + root, mean - root], dim=1).clamp(min=(0.5 / w) ** 2).sqrt()
    center = torch.stack([cx, cy], dim=1)
    blank = empty[:, None]
    return Moments(
        center=torch.where(blank, 0.0, center).float(),
        angle=torch.where(empty, 0.0, angle).float(),
        radii=torch.where(blank, 1.0, radii).float(),
        elongation=torch.where(empty, 0.0, root / mean.clamp(min=1e-12)).float(),
        empty=empty,
    )


def believed_angle(elongation: Tensor, angle: Tensor) -> Tensor:
    """The angle drawn toward upright where the outline is nearly round and its axis mostly noise.

    The axis of second moments with elongation e, disturbed by a change of shape of relative size s, turns by
    about s / (2 e); with a Gaussian prior of the roll this is the posterior mean.
    """
    noise = SHAPE_SD / (2.0 * elongation.clamp(min=1e-6))
    return angle * ROLL_SD**2 / (ROLL_SD**2 + noise.square())


def upright_axis(of: Moments) -> Tensor:
    """Which of the two principal axes runs from side to side, and its angle.

    Usually the longer one. But a body that is a little deeper than wide and lies straight must not be turned
    by 90 degrees: of the two readings (wider than deep, turned by the longer axis' angle; or deeper than
    wide, turned by the shorter one's) the one is taken that is likelier for a trunk of this aspect and a roll
    of this size, both Gaussian.

    Returns:
        Angle ``(N,)`` in (-pi/2, pi/2].
    """
    aspect = (of.radii[:, 0] / of.radii[:, 1]).log()
    other = torch.where(of.angle > 0, of.angle - math.pi / 2, of.angle + math.pi / 2)

    def surprise(angle: Tensor, log_aspect: Tensor) -> Tensor:
        return (angle / ROLL_SD).square() + ((log_aspect - ASPECT_MEAN) / ASPECT_SD).square()

    deeper = surprise(other, -aspect) < surprise(of.angle, aspect)
    return torch.where(deeper, other, of.angle)


def pose_from_moments(of: Moments, reference: Moments, *, max_log_scale: float = math.log(6.0)) -> Tensor:
    """Poses ``(N, 5)`` that bring outlines onto the reference's center, axis and radii.

    Matrix ``input_from_homogenized``: the reference's ellipse is mapped onto each outline's. Float32 under
    autocast.

    Args:
        of: moments of N masks.
        reference: moments of one reference mask (N = 1).
        max_log_scale: bound of the scales' logarithms.
    """
    own = believed_angle(reference.elongation, upright_axis(reference))
    believed = believed_angle(of.elongation, upright_axis(of))
    return _onto(of, believed, reference, own, max_log_scale)


def pose_at_angle(
    of: Moments, angle: Tensor, reference: Moments, *, max_log_scale: float = math.log(6.0)
) -> Tensor:
    """Likewise, where the roll ``(N,)`` is known by other means, and the reference lies upright."""
    return _onto(of, angle, reference, torch.zeros_like(reference.angle), max_log_scale)


def spread_along(of: Moments, angle: Tensor) -> Tensor:
    """Standard deviations ``(N, 2)`` of the mass along an axis at an angle ``(N,)`` and across it."""
    cos2, sin2 = torch.cos(of.angle - angle).square(), torch.sin(of.angle - angle).square()
    first, second = of.radii[:, 0].square(), of.radii[:, 1].square()
    return torch.stack([cos2 * first + sin2 * second, sin2 * first + cos2 * second], dim=1).sqrt()


def _onto(
    of: Moments, angle: Tensor, reference: Moments, reference_angle: Tensor, max_log_scale: float
) -> Tensor:
    """The pose that brings spreads along two axes, the one of each slice and the reference's, together."""
    log_scale = (spread_along(of, angle) / spread_along(reference, reference_angle)).log()
    log_scale = log_scale.clamp(-max_log_scale, max_log_scale)
    turn = angle - reference_angle
    linear = matrix_from_pose(torch.cat([turn[:, None], log_scale, torch.zeros_like(log_scale)], dim=1))
    with torch.autocast(linear.device.type, enabled=False):
        carried = (linear[:, :2, :2] @ reference.center[..., None]).squeeze(-1)
    pose = torch.cat([turn[:, None], log_scale, of.center - carried], dim=1)
    return torch.where(of.empty[:, None], torch.zeros_like(pose), pose)
