"""The line that runs through a body from feet to head, from the centroids of its slices."""

import math

import torch
from torch import Tensor

from isopose.scan.aggregate import common_values, median

#: Scatter of a slice's centroid around the line that is shape and not tilt, in half sides of the frame, and
#: spread of true tilts: from both follows how far the line of a few slices close together is believed.
CENTROID_SD = 0.01
TILT_SD = math.radians(5.0)
#: A body leans no further over the table; what says so is a bad mask.
MAX_TILT = math.radians(20.0)
#: Rounds of reweighting, and residuals in medians beyond which a slice counts less than half.
ROUNDS, OUTLYING = 10, 3.0
#: At most so many slices, evenly spread, of which all pairs are taken for the first line.
PAIRED = 128


def line_through(centers: Tensor, weight: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """A robust straight line through the centroids of a scan's slices.

    First the median slope of all pairs of slices (Theil and Sen), then least squares, reweighted so that
    slices far off the line (a mask that took an arm for trunk) hardly count (Cauchy's weights), with a
    Gaussian prior on the slope (:data:`TILT_SD`).

    Args:
        centers: ``(N, 2)`` as ``(x, y)``.
        weight: ``(N,)`` how far each slice is believed.
        z: ``(N,)`` places, in the units of the centers.

    Returns:
        ``(2,)`` the line's x and y at z = 0, and ``(2,)`` their slopes along z.
    """
    points, places, belief = centers.double(), z.double(), weight.double()
    belief = belief / belief.sum().clamp(min=1e-12) * belief.shape[0]
    stiffness = (CENTROID_SD / math.tan(TILT_SD)) ** 2
    slope = _median_slope(points, belief, places)
    mean, middle = common_values(points - places[:, None] * slope, belief), places.new_zeros(())
    for _ in range(ROUNDS):
        off = (points - mean - (places - middle)[:, None] * slope).norm(dim=1)
        # No slice is off the line as long as all are as near to it as centroids ever are.
        scale = OUTLYING * median(off).clamp(min=CENTROID_SD / OUTLYING)
        w = belief / (1.0 + (off / scale).square())
        middle, mean = (w @ places) / w.sum(), (w @ points) / w.sum()
        along = places - middle
        slope = ((w * along) @ (points - mean)) / ((w * along.square()).sum() + stiffness)
    return (mean - middle * slope).to(centers.dtype), slope.to(centers.dtype)


def _median_slope(points: Tensor, belief: Tensor, places: Tensor) -> Tensor:
    """Weighted median ``(2,)`` of the slopes of all pairs of slices."""
    count = places.shape[0]
    some = torch.arange(0, count, (count + PAIRED - 1) // PAIRED, device=places.device)
    points, belief, places = points[some], belief[some], places[some]
    distance = places[None] - places[:, None]
    # Each pair once, and none of slices at one place; without any the slope is none.
    apart = distance > 1e-9
    slopes = (points[None] - points[:, None]) * (apart / distance.where(apart, 1.0))[..., None]
    weight = belief[None] * belief[:, None] * apart
    return common_values(slopes.flatten(0, 1), weight.flatten())


def tilt_of(slope: Tensor, roll: Tensor) -> tuple[Tensor, Tensor]:
    """Pitch and yaw of a body whose axis has slopes ``(2,)`` of x and y along z, given its roll.

    The third column of R = z (roll) · y (yaw) · x (pitch) is the axis; turned back by the roll it is
    (sin yaw cos pitch, -sin pitch, cos yaw cos pitch). Both are bounded by :data:`MAX_TILT`.
    """
    x = roll.cos() * slope[0] + roll.sin() * slope[1]
    y = -roll.sin() * slope[0] + roll.cos() * slope[1]
    yaw = torch.atan(x)
    pitch = torch.atan(-y * yaw.cos())
    return pitch.clamp(-MAX_TILT, MAX_TILT), yaw.clamp(-MAX_TILT, MAX_TILT)
