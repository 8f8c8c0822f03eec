"""The way back: probabilities from the crop to the grid that it was cut from."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from isopose.geometry.warp import Mode, Size, compose, invert, warp, whole_from_slab

#: Voxels that are restored at a time (48 MB of sampling grid), so that memory does not grow with the scan.
CHUNK = 4_000_000


def most_probable(probabilities: Tensor) -> Tensor:
    """Return classes ``(N, ...)`` uint8 of probabilities ``(N, classes, ...)``; of equal ones the first."""
    # On a CPU argmax over an outer axis takes ten times as long.
    return probabilities.max(dim=1).indices.to(torch.uint8)


def marked(probabilities: Tensor) -> Tensor:
    """Return booleans ``(N, ...)``: where :func:`most_probable` is not background."""
    return probabilities[:, 1:].amax(dim=1) > probabilities[:, 0]


def reached(input_from_crop: Tensor, side: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns outside of which crops leave only background; never empty.

    Args:
        input_from_crop: ``(N, 3, 3)``, the transforms by which the crops were cut.
        side: M, pixels along a side of the crops.
        size: ``(h, w)`` of the image.
    """
    # Interpolation reaches half a pixel of the crop out of it.
    edge = 1.0 + 1.0 / side
    corners = input_from_crop.new_tensor(
        [[-edge, -edge, 1], [-edge, edge, 1], [edge, -edge, 1], [edge, edge, 1]]
    )
    places = (input_from_crop @ corners.T)[:, :2].transpose(0, 1).flatten(1).cpu()
    out = []
    for values, pixels in zip(places, (size[1], size[0]), strict=True):
        # Centers of pixels at (i + 1/2) / pixels; a pixel more on each side for rounding.
        first = math.floor(0.5 * (float(values.min()) + 1.0) * pixels - 0.5)
        last = math.ceil(0.5 * (float(values.max()) + 1.0) * pixels + 0.5)
        start = min(max(first, 0), pixels - 1)
        out.append(slice(start, min(max(last, start + 1), pixels)))
    return out[1], out[0]


def restore(
    probabilities: Tensor,
    input_from_crop: Tensor,
    size: Size,
    *,
    region: tuple[slice, slice] | None = None,
    mode: Mode = "bilinear",
) -> Tensor:
    """Bring probabilities back from the crop through the inverse of the composed transform.

    Outside the crop nothing is known: the missing mass goes to class 0, background.

    Args:
        probabilities: ``(N, classes, M, M)``, of volumes ``(N, classes, D, M, M)``.
        input_from_crop: ``(N, 3, 3)`` or ``(N, 4, 4)``, the transform by which the crop was cut.
        size: ``(h, w)`` or ``(d, h, w)`` of the image that it was cut from, at any resolution.
        region: rows and columns of the image that are wanted, see :func:`reached`; none: all.
        mode: interpolation.

    Returns:
        ``(N, classes, *size)`` that sum to 1, or the region of it.
    """
    if region is not None:
        input_from_region = torch.eye(3, device=input_from_crop.device)
        for axis, (part, pixels) in enumerate(zip(reversed(region), reversed(size), strict=True)):
            input_from_region[axis, axis] = (part.stop - part.start) / pixels
            input_from_region[axis, 2] = (part.start + part.stop) / pixels - 1.0
        input_from_crop = compose(invert(input_from_region), input_from_crop)
        size = tuple(part.stop - part.start for part in region)
    back = warp(probabilities[:, 1:], invert(input_from_crop), size, mode=mode)
    rest = (1.0 - back.sum(dim=1, keepdim=True)).clamp(min=0.0)
    return torch.cat([rest, back], dim=1)


def restore_slices(
    probabilities: Tensor, volume_from_crop: Tensor, shape: tuple[int, int, int], *, chunk: int = CHUNK
) -> Iterator[tuple[slice, Tensor]]:
    """Bring a volume's probabilities back onto the scan's own grid, some slices at a time.

    Args:
        probabilities: ``(1, classes, D, M, M)``.
        volume_from_crop: ``(1, 4, 4)`` to normalized coordinates of the scan's grid.
        shape: ``(z, y, x)`` of that grid.
        chunk: voxels at a time.

    Yields:
        Which slices, and their probabilities ``(classes, n, y, x)``, which sum to 1.
    """
    slices, height, width = shape
    step = max(1, chunk // (height * width))
    for first in range(0, slices, step):
        last = min(first + step, slices)
        volume_from_slab = whole_from_slab(first, last, slices).to(probabilities.device)
        slab_from_crop = compose(invert(volume_from_slab), volume_from_crop)
        yield slice(first, last), restore(probabilities, slab_from_crop, (last - first, height, width))[0]
