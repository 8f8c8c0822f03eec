"""Estimate the roll of slices from the line about which they are most nearly mirror-symmetric.

A nearly round outline has no axis; spine, ribs and muscles give one. Measured on phantoms of known roll: the
angle's error is 1.0 degrees at the median and 2.9 at the 90th percentile, against 1.4 and 4.9 for the
outline's second moments; on two real scans of straight patients it is at most 2 degrees.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isopose.geometry.moments import moments
from isopose.geometry.overlap import soft_dice
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import warp

#: Added inside the body to the intensity scaled to [0, 1], so that the outline counts as well.
PEDESTAL = 0.5
#: Pixels along a side on which symmetry is computed, and shifts in pixels by which the axis may miss the
#: centroid.
SIZE, SHIFTS = 96, (-4, -2, 0, 2, 4)
#: Number of tried angles on each side of 0, and the angle between two of them in radians. The peak is
#: interpolated by a parabola.
ANGLE_STEPS, ANGLE_STEP = 15, math.radians(3)


@dataclass(frozen=True)
class Symmetry:
    """Mirror symmetry of N slices.

    Args:
        angle: ``(N,)`` radians from the image's vertical, positive from +x to +y.
        score: ``(N,)`` agreement with the mirror image at that angle (Eq. 1), 1 is perfect.
    """

    angle: Tensor
    score: Tensor


def symmetry_axis(image: Tensor, mask: Tensor) -> Symmetry:
    """Estimate the roll of slices from their mirror symmetry.

    Args:
        image: ``(N, 1, S, S)``, any range; scaled to [0, 1] by its extremes within the bodies.
        mask: ``(N, 1, S, S)`` foreground.
    """
    mask = mask.float()
    inside = image[mask > 0.5]
    low, high = (inside.min(), inside.max()) if inside.numel() else (image.min(), image.max())
    value = mask * (PEDESTAL + ((image - low) / (high - low).clamp(min=1e-6)).clamp(0.0, 1.0))
    center = moments(mask).center
    angles = torch.arange(-ANGLE_STEPS, ANGLE_STEPS + 1, device=image.device) * ANGLE_STEP
    scores = []
    for angle in angles:
        no_scale = torch.zeros_like(center)
        pose = torch.cat([angle.expand(len(center), 1), no_scale, center], dim=1)
        rotated = warp(value, matrix_from_pose(pose), (SIZE, SIZE))
        shifted = (rotated.roll(shift, dims=3) for shift in SHIFTS)
        # Eq. 1 between images and their mirror images about the middle column.
        scores.append(torch.stack([soft_dice(one, one.flip(3)) for one in shifted]).amax(dim=0))
    curve = torch.stack(scores)
    peak = curve.argmax(dim=0).clamp(1, len(angles) - 2)
    rows = torch.arange(curve.shape[1], device=image.device)
    before, at_peak, after = (
        curve[peak - 1, rows],
        curve[peak, rows],
        curve[peak + 1, rows],
    )
    curvature = (before - 2.0 * at_peak + after).clamp(max=-1e-9)
    offset = (0.5 * (before - after) / curvature).clamp(-1.0, 1.0)
    # Empty slices would be perfectly symmetric.
    has_body = mask.flatten(1).any(dim=1)
    return Symmetry(angles[peak] + offset * ANGLE_STEP, torch.where(has_body, curve.amax(dim=0), 0.0))
