"""One pose for a scan, or poses that change smoothly along it, from poses of single slices.

Slices of a scan are of one patient who lies one way; a slice may show little, or be cut by a bad mask. So the
roll is what the slices say together, each by how sure it is, and sizes and centres are robust means.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

#: Rows that are smoothed at a time, so that memory grows with the slices and not with their square.
CHUNK = 256


def pooled(evidence: Tensor, z_mm: Tensor, width_mm: float) -> tuple[Tensor, Tensor]:
    """What each slice and its neighbours say of the roll: a Gaussian mean along the scan.

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
    means, counts = [], []
    for near, _ in _near(z_mm, width_mm):
        weight = near / near.sum(dim=1, keepdim=True)
        means.append(weight @ evidence.double())
        counts.append(1.0 / weight.square().sum(dim=1))
    return torch.cat(means).to(evidence.dtype), torch.cat(counts).to(evidence.dtype)


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
        width_mm: standard deviation of the Gaussian by which neighbours count.
    """
    y = values.double()
    out = []
    for near, distance in _near(z_mm, width_mm):
        w = near * weight.double()
        s0, s1, s2 = w.sum(1), (w * distance).sum(1), (w * distance.square()).sum(1)
        t0, t1 = w @ y, (w * distance) @ y
        # A little stiffness, so that a single slice, or slices at one place, keep a level line.
        s2 = s2 + 1e-3 * s0 * width_mm**2
        out.append((s2[:, None] * t0 - s1[:, None] * t1) / (s0 * s2 - s1.square()).clamp(min=1e-24)[:, None])
    return torch.cat(out).to(values.dtype)


def _near(z_mm: Tensor, width_mm: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of rows: Gaussian weights ``(n, N)`` and signed distances ``(n, N)`` in mm to all slices."""
    z = z_mm.double()
    if torch.compiler.is_compiling():
        # A graph that is exported has no loop over a number of slices that it does not know.
        distance = z[None, :] - z[:, None]
        yield torch.exp(-0.5 * (distance / width_mm).square()), distance
        return
    for first in range(0, len(z), CHUNK):
        distance = z[None, :] - z[first : first + CHUNK, None]
        yield torch.exp(-0.5 * (distance / width_mm).square()), distance
