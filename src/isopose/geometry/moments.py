"""Closed-form pose of a body's outline: centroid, principal axes and the two radii along them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isopose.geometry.similarity import matrix_from_pose

#: Spread of the true roll of patients, and of an outline's second moments that is not roll but shape; from
#: both follows how far the axis of a nearly round outline is believed. See docs/pipeline.md, "Moments".
ROLL_SD = math.radians(20.0)
SHAPE_SD = 0.04


@dataclass(frozen=True)
class Moments:
    """Moments of masks up to the second order, in normalised coordinates of a square frame.

    Args:
        centre: ``(N, 2)`` as ``(x, y)``.
        angle: ``(N,)`` of the longer axis, in (-pi/2, pi/2], positive from +x to +y.
        radii: ``(N, 2)`` standard deviations along the longer axis and across it.
        elongation: ``(N,)`` (l1 - l2) / (l1 + l2) of the eigenvalues: 0 is round, 1 a line.
        empty: ``(N,)`` no mass: centre 0, angle 0, radii 1.
    """

    centre: Tensor
    angle: Tensor
    radii: Tensor
    elongation: Tensor
    empty: Tensor


def moments(mask: Tensor) -> Moments:
    """Moments of soft or binary masks ``(N, 1, H, W)`` with H = W."""
    h, w = mask.shape[2:]
    weight = mask[:, 0].double()
    x = (2.0 * torch.arange(w, device=mask.device, dtype=torch.float64) + 1.0) / w - 1.0
    y = (2.0 * torch.arange(h, device=mask.device, dtype=torch.float64) + 1.0) / h - 1.0
    mass = weight.sum(dim=(1, 2))
    empty = mass <= 0
    mass = mass.clamp(min=1e-12)
    columns, rows = weight.sum(dim=1), weight.sum(dim=2)
    cx, cy = (columns @ x) / mass, (rows @ y) / mass
    xx = (columns @ x.square()) / mass - cx.square()
    yy = (rows @ y.square()) / mass - cy.square()
    xy = torch.einsum("nhw,h,w->n", weight, y, x) / mass - cx * cy
    angle = 0.5 * torch.atan2(2.0 * xy, xx - yy)
    root = ((xx - yy) / 2.0).square().add(xy.square()).sqrt()
    mean = (xx + yy) / 2.0
    radii = torch.stack([mean + root, mean - root], dim=1).clamp(min=(0.5 / w) ** 2).sqrt()
    centre = torch.stack([cx, cy], dim=1)
    blank = empty[:, None]
    return Moments(
        centre=torch.where(blank, 0.0, centre).float(),
        angle=torch.where(empty, 0.0, angle).float(),
        radii=torch.where(blank, 1.0, radii).float(),
        elongation=torch.where(empty, 0.0, root / mean.clamp(min=1e-12)).float(),
        empty=empty,
    )


def believed_angle(elongation: Tensor, angle: Tensor) -> Tensor:
    """The angle drawn towards upright where the outline is nearly round and its axis mostly noise.

    The axis of second moments with elongation e, disturbed by a change of shape of relative size s, turns by
    about s / (2 e); with a Gaussian prior of the roll this is the posterior mean.
    """
    noise = SHAPE_SD / (2.0 * elongation.clamp(min=1e-6))
    return angle * ROLL_SD**2 / (ROLL_SD**2 + noise.square())


def pose_from_moments(of: Moments, reference: Moments, *, max_log_scale: float = math.log(6.0)) -> Tensor:
    """Poses ``(N, 5)`` that bring outlines onto the reference's centre, axis and radii.

    Matrix ``input_from_homogenised``: the reference's ellipse is mapped onto each outline's.

    Args:
        of: moments of N masks.
        reference: moments of one reference mask (N = 1).
        max_log_scale: bound of the scales' logarithms.
    """
    angle = believed_angle(of.elongation, of.angle) - believed_angle(reference.elongation, reference.angle)
    # The radii are those along the body's own axes: for a leaning axis that is not believed, take the spread
    # along the axes that are.
    along = _radii_along(of, believed_angle(of.elongation, of.angle))
    reference_along = _radii_along(reference, believed_angle(reference.elongation, reference.angle))
    log_scale = (along / reference_along).log().clamp(-max_log_scale, max_log_scale)
    linear = matrix_from_pose(torch.cat([angle[:, None], log_scale, torch.zeros_like(log_scale)], dim=1))
    carried = (linear[:, :2, :2] @ reference.centre[..., None]).squeeze(-1)
    pose = torch.cat([angle[:, None], log_scale, of.centre - carried], dim=1)
    return torch.where(of.empty[:, None], torch.zeros_like(pose), pose)


def _radii_along(of: Moments, direction: Tensor) -> Tensor:
    """Standard deviations ``(N, 2)`` of the mass along an axis and across it."""
    cos2, sin2 = torch.cos(of.angle - direction).square(), torch.sin(of.angle - direction).square()
    major, minor = of.radii[:, 0].square(), of.radii[:, 1].square()
    return torch.stack([cos2 * major + sin2 * minor, sin2 * major + cos2 * minor], dim=1).sqrt()
