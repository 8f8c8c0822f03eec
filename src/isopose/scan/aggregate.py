"""Combine the poses of slices into one pose for a scan, or into poses that change smoothly along it.

All slices show one patient in one position, but a single slice may show little or have a bad mask. The roll
is pooled from all slices, weighted by their concentration; sizes and centers are robust means.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Pairs of slices computed at a time, so that memory does not grow with the square of their number.
PAIRS_PER_CHUNK = 1_000_000


def pooled_evidence(evidence: Tensor, z_mm: Tensor, width_mm: float) -> tuple[Tensor, Tensor]:
    """Average the evidence of the roll over neighboring slices, with Gaussian weights along the scan.

    For independent slices with von Mises distributed angles the direction of the sum of concentration times
    direction is the most likely angle, and its length the concentration; slices that contradict each other
    cancel out.

    Args:
        evidence: ``(N, 2)`` concentration times direction of each slice.
        z_mm: ``(N,)`` positions of the slices along the scan.
        width_mm: standard deviation of the Gaussian; infinite for equal weights over the whole scan.

    Returns:
        Means ``(N, 2)``, and the effective number of slices in each, ``(N,)``: 1 / the sum of squared
        weights.
    """

    def means_and_counts(weights: Tensor, _: Tensor) -> Tensor:
        normalized = weights / weights.sum(dim=1, keepdim=True)
        counts = 1.0 / normalized.square().sum(dim=1, keepdim=True)
        return torch.cat([normalized @ evidence.double(), counts], dim=1)

    pooled = _apply_at_each_slice(means_and_counts, z_mm, width_mm).to(evidence.dtype)
    return pooled[:, :2], pooled[:, 2]


def common_values(values: Tensor, weight: Tensor) -> Tensor:
    """Return weighted medians over slices, on which a few outliers have no influence.

    Args:
        values: ``(N, K)``.
        weight: ``(N,)``, not negative.

    Returns:
        ``(K,)``.
    """
    order = values.argsort(dim=0)
    cumulative = weight[order].cumsum(dim=0) / weight.sum().clamp(min=1e-12)
    middle = (cumulative >= 0.5).float().argmax(dim=0, keepdim=True)
    return values.gather(0, order.gather(0, middle))[0]


def median(values: Tensor) -> Tensor:
    """Return the median ``()`` of ``(N,)``, the lower of two middle values.

    It equals ``Tensor.median``, which ONNX lacks.
    """
    return values.sort().values[(values.shape[0] - 1) // 2]


def smooth_values(values: Tensor, weight: Tensor, z_mm: Tensor, width_mm: float) -> Tensor:
    """Smooth values along the scan by local linear regression, which has no bias where they change linearly.

    Args:
        values: ``(N, K)``, for each slice.
        weight: ``(N,)`` weights of the slices.
        z_mm: ``(N,)`` positions of the slices along the scan.
        width_mm: standard deviation of the Gaussian weights of neighbors.

    Returns:
        ``(N, K)``.
    """
    y = values.double()

    def fitted_values(weights: Tensor, distance: Tensor) -> Tensor:
        w = weights * weight.double()
        s0, s1, s2 = w.sum(1), (w * distance).sum(1), (w * distance.square()).sum(1)
        t0, t1 = w @ y, (w * distance) @ y
        # A small ridge on the slope, so that the line is level for a single slice or slices at one position.
        s2 = s2 + 1e-3 * s0 * width_mm**2
        return (s2[:, None] * t0 - s1[:, None] * t1) / (s0 * s2 - s1.square()).clamp(min=1e-24)[:, None]

    return _apply_at_each_slice(fitted_values, z_mm, width_mm).to(values.dtype)


def _apply_at_each_slice(
    function: Callable[[Tensor, Tensor], Tensor], z_mm: Tensor, width_mm: float
) -> Tensor:
    """Apply a function to the Gaussian weights and the distances (mm) of each slice to all slices.

    Args:
        function: maps weights and distances ``(n, N)`` to values ``(n, K)``.
        z_mm: ``(N,)`` positions.
        width_mm: standard deviation of the Gaussian.

    Returns:
        ``(N, K)``.
    """
    z = z_mm.double()

    def values_at(positions: Tensor) -> Tensor:
        distance = z[None, :] - positions[:, None]
        return function(torch.exp(-0.5 * (distance / width_mm).square()), distance)

    # An exported graph cannot loop over a dynamic number of slices.
    if torch.compiler.is_compiling():
        return values_at(z)
    step = max(1, PAIRS_PER_CHUNK // max(len(z), 1))
    out = values_at(z[:step])
    if step < len(z):
        # Written in place: small results between large freed buffers would fragment the heap.
        out = torch.cat([out, out.new_empty(len(z) - len(out), out.shape[1])])
        for first in range(step, len(z), step):
            out[first : first + step] = values_at(z[first : first + step])
    return out
