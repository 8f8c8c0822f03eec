"""One pose for a scan, or poses that change smoothly along it, from poses of single slices.

Slices of a scan are of one patient who lies one way; a slice may show little, or be cut by a bad mask. So the
roll is what the slices say together, each by how sure it is, and sizes and centers are robust means.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Pairs of slices that are looked at together, so that memory does not grow with the square of their number.
PAIRS = 1_000_000


def pooled(evidence: Tensor, z_mm: Tensor, width_mm: float) -> tuple[Tensor, Tensor]:
    """What each slice and its neighbors say of the roll: a Gaussian mean along the scan.

    For independent slices with von Mises distributed angles the direction of the sum of concentration times
    direction is the most likely angle, and its length the concentration; slices that contradict each other
    cancel out.

    Args:
        evidence: ``(N, 2)`` concentration times direction of each slice.
        z_mm: ``(N,)`` places of the slices.
        width_mm: standard deviation of the Gaussian; infinite for the whole scan alike.

    Returns:
        Means ``(N, 2)``, and how many slices each is worth, ``(N,)`` from 1: 1 / the sum of squared weights.
    """

    def rows(near: Tensor, _: Tensor) -> Tensor:
        weight = near / near.sum(dim=1, keepdim=True)
        counts = 1.0 / weight.square().sum(dim=1, keepdim=True)
        return torch.cat([weight @ evidence.double(), counts], dim=1)

    found = _each(rows, z_mm, width_mm).to(evidence.dtype)
    return found[:, :2], found[:, 2]


def common_values(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted medians ``(K,)`` of ``(N, K)`` with weights ``(N,)``: a few bad slices move nothing."""
    order = values.argsort(dim=0)
    share = weight[order].cumsum(dim=0) / weight.sum().clamp(min=1e-12)
    middle = (share >= 0.5).float().argmax(dim=0, keepdim=True)
    return values.gather(0, order.gather(0, middle))[0]


def median(values: Tensor) -> Tensor:
    """Median ``()`` of ``(N,)``, the lower of two middle ones, as ``Tensor.median``, which ONNX lacks."""
    return values.sort().values[(values.shape[0] - 1) // 2]


def smooth_values(values: Tensor, weight: Tensor, z_mm: Tensor, width_mm: float) -> Tensor:
    """Local straight lines through ``(N, K)`` values at every slice: no bias where they change steadily.

    Args:
        values: per slice.
        weight: ``(N,)`` how much a slice counts.
        z_mm: ``(N,)`` places of the slices.
        width_mm: standard deviation of the Gaussian by which neighbors count.
    """
    y = values.double()

    def rows(near: Tensor, distance: Tensor) -> Tensor:
        w = near * weight.double()
        s0, s1, s2 = w.sum(1), (w * distance).sum(1), (w * distance.square()).sum(1)
        t0, t1 = w @ y, (w * distance) @ y
        # A little stiffness, so that a single slice, or slices at one place, keep a level line.
        s2 = s2 + 1e-3 * s0 * width_mm**2
        return (s2[:, None] * t0 - s1[:, None] * t1) / (s0 * s2 - s1.square()).clamp(min=1e-24)[:, None]

    return _each(rows, z_mm, width_mm).to(values.dtype)


def _each(rows: Callable[[Tensor, Tensor], Tensor], z_mm: Tensor, width_mm: float) -> Tensor:
    """``(N, K)`` that ``rows`` makes of Gaussian weights ``(n, N)`` and distances in mm to all slices."""
    z = z_mm.double()

    def some(of: Tensor) -> Tensor:
        distance = z[None, :] - of[:, None]
        return rows(torch.exp(-0.5 * (distance / width_mm).square()), distance)

    # A graph that is exported has no loop over a number of slices that it does not know.
    if torch.compiler.is_compiling():
        return some(z)
    step = max(1, PAIRS // max(len(z), 1))
    out = some(z[:step])
    if step < len(z):
        # In place: small results kept between large ones that are freed leave holes as large as those.
        out = torch.cat([out, out.new_empty(len(z) - len(out), out.shape[1])])
        for first in range(step, len(z), step):
            out[first : first + step] = some(z[first : first + step])
    return out
