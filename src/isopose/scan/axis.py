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


def fit_line(centers: Tensor, weight: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
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
    points, positions, weights = centers.double(), z.double(), weight.double()
    weights = weights / weights.sum().clamp(min=1e-12) * weights.shape[0]
    ridge = (CENTROID_SD / math.tan(TILT_SD)) ** 2
    slope = _median_slope(points, weights, positions)
    mean, middle = common_values(points - positions[:, None] * slope, weights), positions.new_zeros(())
    for _ in range(ROUNDS):
        residuals = (points - mean - (positions - middle)[:, None] * slope).norm(dim=1)
        # Residuals within the usual scatter of centroids are not down-weighted.
        scale = OUTLIER_MEDIANS * median(residuals).clamp(min=CENTROID_SD / OUTLIER_MEDIANS)
        w = weights / (1.0 + (residuals / scale).square())
        middle, mean = (w @ positions) / w.sum(), (w @ points) / w.sum()
        offset = positions - middle
        slope = ((w * offset) @ (points - mean)) / ((w * offset.square()).sum() + ridge)
    return (mean - middle * slope).to(centers.dtype), slope.to(centers.dtype)


def _median_slope(points: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
    """Return the weighted median ``(2,)`` of the slopes of all pairs of slices."""
    count = positions.shape[0]
    sampled = torch.arange(
        0, count, (count + MAX_PAIRED_SLICES - 1) // MAX_PAIRED_SLICES, device=positions.device
    )
    points, weights, positions = points[sampled], weights[sampled], positions[sampled]
    distance = positions[None] - positions[:, None]
    # Each pair once, without pairs at one position; without any pair the slope is 0.
    is_pair = distance > 1e-9
    slopes = (points[None] - points[:, None]) * (is_pair / distance.where(is_pair, 1.0))[..., None]
    weight = weights[None] * weights[:, None] * is_pair
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
