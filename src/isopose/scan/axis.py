"""Fit the line through a body from feet to head to the centroids of its slices."""

import math

import torch
from torch import Tensor

from isopose.scan.aggregate import common_values, median

#: Standard deviations of a slice's centroid around the line (due to shape, in half sides of the frame) and of
#: true tilts; together they determine how strongly the slope of a few close slices is shrunk to 0.
CENTROID_SD = 0.01
TILT_SD = math.radians(5.0)
#: Largest tilt of a body on the table; more is due to a bad mask.
MAX_TILT = math.radians(20.0)
#: Rounds of reweighting, and the residual, in medians, beyond which a slice's weight is less than half.
ROUNDS, OUTLIER_MEDIANS = 10, 3.0
#: Most slices, evenly spread, whose pairs give the initial slope.
MAX_PAIRED_SLICES = 128


def line_through(centers: Tensor, weight: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a robust straight line to the centroids of a scan's slices.

    It starts from the median slope of all pairs of slices (Theil and Sen), then iterates least squares with
    Cauchy's weights, so that slices far off the line (a mask with an arm) hardly count, and with a Gaussian
    prior on the slope (:data:`TILT_SD`).

    Args:
        centers: ``(N, 2)`` as ``(x, y)``.
        weight: ``(N,)`` weights of the slices.
        z: ``(N,)`` positions along the scan, in the units of the centers.

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
        # Residuals within the usual scatter of centroids are not down-weighted.
        scale = OUTLIER_MEDIANS * median(off).clamp(min=CENTROID_SD / OUTLIER_MEDIANS)
        w = belief / (1.0 + (off / scale).square())
        middle, mean = (w @ places) / w.sum(), (w @ points) / w.sum()
        along = places - middle
        slope = ((w * along) @ (points - mean)) / ((w * along.square()).sum() + stiffness)
    return (mean - middle * slope).to(centers.dtype), slope.to(centers.dtype)


def _median_slope(points: Tensor, belief: Tensor, places: Tensor) -> Tensor:
    """Return the weighted median ``(2,)`` of the slopes of all pairs of slices."""
    count = places.shape[0]
    some = torch.arange(0, count, (count + MAX_PAIRED_SLICES - 1) // MAX_PAIRED_SLICES, device=places.device)
    points, belief, places = points[some], belief[some], places[some]
    distance = places[None] - places[:, None]
    # Each pair once, without pairs at one position; without any pair the slope is 0.
    apart = distance > 1e-9
    slopes = (points[None] - points[:, None]) * (apart / distance.where(apart, 1.0))[..., None]
    weight = belief[None] * belief[:, None] * apart
    return common_values(slopes.flatten(0, 1), weight.flatten())


def tilt_of(slope: Tensor, roll: Tensor) -> tuple[Tensor, Tensor]:
    """Return pitch and yaw (radians) of a body from the slopes of its axis, given its roll.

    The third column of R = z (roll) · y (yaw) · x (pitch) is the axis; turned back by the roll it is
    (sin yaw cos pitch, -sin pitch, cos yaw cos pitch). Both are bounded by :data:`MAX_TILT`.

    Args:
        slope: ``(2,)`` of x and y along z.
        roll: ``()`` radians.
    """
    x = roll.cos() * slope[0] + roll.sin() * slope[1]
    y = -roll.sin() * slope[0] + roll.cos() * slope[1]
    yaw = torch.atan(x)
    pitch = torch.atan(-y * yaw.cos())
    return pitch.clamp(-MAX_TILT, MAX_TILT), yaw.clamp(-MAX_TILT, MAX_TILT)
