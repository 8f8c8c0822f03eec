"""Restore probabilities from the crop to the image it was cut from, through the inverse transform."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from isopose.data.runs import CHUNK, slice_chunks
from isopose.geometry.parts import whole_from_slab
from isopose.geometry.warp import Mode, Size, compose, invert, warp


def most_probable(probabilities: Tensor) -> Tensor:
    """Return the most probable class.

    Args:
        probabilities: ``(N, classes, ...)``.

    Returns:
        ``(N, ...)`` uint8; the lowest class where several are equally probable.
    """
    # On a CPU argmax over an outer axis takes ten times as long.
    return probabilities.max(dim=1).indices.to(torch.uint8)


def marked(probabilities: Tensor) -> Tensor:
    """Return a mask of the foreground: True where the most probable class is not background.

    Args:
        probabilities: ``(N, classes, ...)``.

    Returns:
        ``(N, ...)`` booleans.
    """
    return probabilities[:, 1:].amax(dim=1) > probabilities[:, 0]


def reached(input_from_crop: Tensor, side: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of an image to which its crops can contribute; never empty.

    All pixels outside them are background.

    Args:
        input_from_crop: ``(N, 3, 3)``, the transforms by which the crops were cut.
        side: M, pixels along a side of the crops.
        size: ``(h, w)`` of the image.
    """
    # Interpolation reaches half a crop pixel beyond the crop.
    reach = 1.0 + 1.0 / side
    corners = input_from_crop.new_tensor(
        [[-reach, -reach, 1], [-reach, reach, 1], [reach, -reach, 1], [reach, reach, 1]]
    )
    corners_in_image = (input_from_crop @ corners.T)[:, :2].transpose(0, 1).flatten(1).cpu()
    ranges = []
    for values, pixels in zip(corners_in_image, (size[1], size[0]), strict=True):
        # Pixel i has its center at (i + 1/2) / pixels; one pixel is added on each side against rounding.
        first = math.floor(0.5 * (float(values.min()) + 1.0) * pixels - 0.5)
        last = math.ceil(0.5 * (float(values.max()) + 1.0) * pixels + 0.5)
        start = min(max(first, 0), pixels - 1)
        ranges.append(slice(start, min(max(last, start + 1), pixels)))
    return ranges[1], ranges[0]


def restore(
    probabilities: Tensor,
    input_from_crop: Tensor,
    size: Size,
    *,
    region: tuple[slice, slice] | None = None,
    mode: Mode = "bilinear",
) -> Tensor:
    """Restore probabilities from the crop to the image, through the inverse of the composed transform.

    Pixels outside the crop have no prediction: their probability is 1 for class 0, background. At the crop's
    border class 0 gets what is missing to a sum of 1.

    Args:
        probabilities: ``(N, classes, M, M)``, of volumes ``(N, classes, D, M, M)``.
        input_from_crop: ``(N, 3, 3)`` or ``(N, 4, 4)``, the transform by which the crop was cut.
        size: ``(h, w)`` or ``(d, h, w)`` of the image, at any resolution.
        region: rows and columns to compute, for example from :func:`reached`; None: all. Slices only.
        mode: interpolation.

    Returns:
        ``(N, classes, *size)``, or the region's size; sums to 1 over the classes.
    """
    if region is not None:
        input_from_region = torch.eye(3, device=input_from_crop.device)
        for axis, (part, pixels) in enumerate(zip(reversed(region), reversed(size), strict=True)):
            input_from_region[axis, axis] = (part.stop - part.start) / pixels
            input_from_region[axis, 2] = (part.start + part.stop) / pixels - 1.0
        input_from_crop = compose(invert(input_from_region), input_from_crop)
        size = tuple(part.stop - part.start for part in region)
    foreground = warp(probabilities[:, 1:], invert(input_from_crop), size, mode=mode)
    background = (1.0 - foreground.sum(dim=1, keepdim=True)).clamp(min=0.0)
    return torch.cat([background, foreground], dim=1)


def restore_slices(
    probabilities: Tensor, volume_from_crop: Tensor, shape: tuple[int, int, int], *, chunk: int = CHUNK
) -> Iterator[tuple[slice, Tensor]]:
    """Restore a volume's probabilities to the scan's own grid, a slab of slices at a time.

    Args:
        probabilities: ``(1, classes, D, M, M)``.
        volume_from_crop: ``(1, 4, 4)``, normalized crop to normalized coordinates of the scan's grid.
        shape: ``(z, y, x)`` of that grid.
        chunk: voxels at a time.

    Yields:
        The indices of the slab's slices, and their probabilities ``(classes, n, y, x)``, which sum to 1.
    """
    for part in slice_chunks(shape, chunk):
        yield part, restore_slab(probabilities, volume_from_crop, shape, part)


def restore_slab(
    probabilities: Tensor, volume_from_crop: Tensor, shape: tuple[int, int, int], part: slice
) -> Tensor:
    """Restore a volume's probabilities to some slices of the scan's own grid.

    Args:
        probabilities: ``(1, classes, D, M, M)``.
        volume_from_crop: ``(1, 4, 4)``, normalized crop to normalized coordinates of the scan's grid.
        shape: ``(z, y, x)`` of that grid.
        part: the slices, with a start and a stop.

    Returns:
        ``(classes, n, y, x)``, which sum to 1.
    """
    slices, height, width = shape
    volume_from_slab = whole_from_slab(part.start, part.stop, slices).to(probabilities.device)
    slab_from_crop = compose(invert(volume_from_slab), volume_from_crop)
    return restore(probabilities, slab_from_crop, (part.stop - part.start, height, width))[0]
