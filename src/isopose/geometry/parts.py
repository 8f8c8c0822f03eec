"""Resample a volume slab by slab, or find the window of the output that a part of the input reaches."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from isopose.geometry.blur import MIN_SIGMA, blur, prefilter_sigmas
from isopose.geometry.volume import PixelWindow
from isopose.geometry.warp import Size, invert, sampling_grid


def warp_slabs(
    volume: Tensor, input_from_output: Tensor, size: Size, *, fill: float = 0.0, voxels: int
) -> Iterator[tuple[slice, Tensor]]:
    """Resample one volume, linearly and prefiltered, a slab of output slices at a time to bound the memory.

    Args:
        volume: ``(D, H, W)``, float32.
        input_from_output: ``(4, 4)``, normalized output to normalized input coordinates.
        size: ``(d, h, w)`` of the output.
        fill: value outside the input.
        voxels: output voxels at a time.

    Yields:
        The slab's slices, and their values ``(n, h, w)``.
    """
    depth, height, width = size
    matrix = input_from_output.to(volume.dtype)[None]
    source = (volume - fill)[None, None]
    source = blur(source, prefilter_sigmas(matrix, tuple(volume.shape), size))
    step = max(1, voxels // (height * width))
    for first in range(0, depth, step):
        last = min(first + step, depth)
        from_slab = whole_from_slab(first, last, depth).to(matrix)
        grid = sampling_grid(matrix @ from_slab, (last - first, height, width))
        values = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        yield slice(first, last), values[0, 0] + fill


def whole_from_slab(first: int, last: int, depth: int) -> Tensor:
    """Return the ``(4, 4)`` matrix from a slab's normalized coordinates to the whole stack's.

    Args:
        first: index of the slab's first slice.
        last: index after its last slice.
        depth: number of slices of the stack.
    """
    matrix = torch.eye(4)
    matrix[2, 2], matrix[2, 3] = (last - first) / depth, (first + last) / depth - 1.0
    return matrix


def reachable_window(
    box: PixelWindow, input_from_output: Tensor, input_size: tuple[int, int], size: tuple[int, int]
) -> PixelWindow:
    """Return the rows and columns of the output that a part of the input can reach, linearly sampled.

    Args:
        box: rows and columns of the input.
        input_from_output: ``(N, 3, 3)``, normalized coordinates.
        input_size: ``(h, w)``.
        size: ``(h, w)`` of the output.
    """
    # A sample depends on one pixel on each side, and on the pixels that the blur mixes into it.
    sigma = float(prefilter_sigmas(input_from_output, input_size, size).max())
    reach = 1 + (math.ceil(3.0 * sigma) if sigma >= MIN_SIGMA else 0)
    y, x = (
        torch.tensor([part.start - reach, part.stop + reach]) * 2.0 / side - 1.0
        for part, side in zip(box, input_size, strict=True)
    )
    corners = torch.stack([x[[0, 0, 1, 1]], y[[0, 1, 0, 1]], torch.ones(4)])
    output_corners = (invert(input_from_output) @ corners)[:, :2].transpose(0, 1).flatten(1)
    sides = torch.tensor([size[1], size[0]])
    low, high = (
        (ends + 1.0) / 2.0 * sides for ends in (output_corners.amin(dim=1), output_corners.amax(dim=1))
    )
    columns, rows = (
        slice(min(max(math.floor(first) - 1, 0), side), min(max(math.ceil(last) + 1, 0), side))
        for first, last, side in zip(low.tolist(), high.tolist(), sides.tolist(), strict=True)
    )
    return rows, columns
