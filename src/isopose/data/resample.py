"""Resample arrays of slices and volumes, a part at a time to bound the memory."""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from isopose import scratch
from isopose.data.runs import CHUNK, slice_chunks
from isopose.geometry.parts import reachable_window, warp_slabs
from isopose.geometry.volume import PixelWindow
from isopose.geometry.warp import Mode, warp
from isopose.geometry.weighted import warp_axis_aligned, warp_stack

#: Voxels at a time where several arrays of their size should stay in the processor's cache.
CACHED_VOXELS = 1_100_000


def warped_labels(
    labels: np.ndarray, input_from_output: Tensor, size: tuple[int, int], values: Iterable[int]
) -> np.ndarray:
    """Resample label maps ``(z, y, x)`` to ``(z, h, w)`` uint8.

    The mask of each value is resampled linearly; a pixel gets the value with the largest share.

    Nearest-neighbor sampling makes borders jagged and, where pixels become larger, loses thin structures at
    random; linear interpolation keeps each structure's area.

    Args:
        labels: whole numbers, 0 is background.
        input_from_output: ``(3, 3)`` for all slices, or ``(z, 3, 3)``, one for each.
        size: ``(h, w)``.
        values: the label values to resample; voxels of other values become background.
    """
    values = tuple(values)
    out = scratch.zeros((len(labels), *size), np.uint8)
    # Slices with different scales are blurred together with the widest kernel among them.
    alike = input_from_output.ndim == 2 or bool((input_from_output == input_from_output[:1]).all())
    for part in chunks(labels.shape, size, CACHED_VOXELS if alike else CHUNK):
        chunk, matrix = labels[part], input_from_output
        matrix = matrix if matrix.ndim == 2 else matrix[part]
        shares = [
            (value, windows, partial(warped, chunk == value, matrix, size, 0.0, "bilinear", windows))
            for value in values
            for windows in _windows_of(chunk == value, matrix, size)
        ]
        if len(shares) == 1:
            value, windows, share_of = shares[0]
            share = share_of()
            np.copyto(out[part, *windows], np.uint8(value), where=share > 1.0 - share)
        elif shares:
            label_shares = ((value, share_of(), windows) for value, windows, share_of in shares)
            out[part] = largest_share(label_shares, (len(chunk), *size))
    return out


def _windows_of(mask: np.ndarray, input_from_output: Tensor, size: tuple[int, int]) -> list[PixelWindow]:
    """Return rows and columns of the output that show a mask; empty for an empty mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if not len(rows):
        return []
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return [reachable_window(box, input_from_output.reshape(-1, 3, 3), mask.shape[1:], size)]


def largest_share(
    shares: Iterable[tuple[int, np.ndarray] | tuple[int, np.ndarray, PixelWindow]], shape: tuple[int, ...]
) -> np.ndarray:
    """Return for each pixel the value with the largest share.

    Args:
        shares: values with their shares in [0, 1], either of the given shape, or of a window of it and the
            window's rows and columns; outside the window the share is 0. What is missing to a sum of 1 is the
            share of background, value 0.
        shape: shape of the result.

    Returns:
        uint8 of the given shape.
    """
    out = np.zeros(shape, dtype=np.uint8)
    largest, background = np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)
    for value, share, *windows in shares:
        window = (..., *windows[0]) if windows else ...
        background[window] -= share
        np.copyto(out[window], value, where=share > largest[window])
        np.maximum(largest[window], share, out=largest[window])
    out[background >= largest] = 0
    return out


def warped(
    array: np.ndarray,
    input_from_output: Tensor,
    size: tuple[int, int],
    fill: float,
    mode: Mode,
    window: PixelWindow | None = None,
) -> np.ndarray:
    """Resample slices ``(z, y, x)`` to ``(z, h, w)`` float32, through one matrix or one for each.

    Args:
        array: the slices.
        input_from_output: ``(3, 3)``, scales and shifts only, or ``(z, 3, 3)``.
        size: ``(h, w)``.
        fill: value outside the input.
        mode: interpolation.
        window: rows and columns of the result that are wanted; None: all.
    """
    source = _as_tensor(array)
    if input_from_output.ndim == 2:
        all_pixels = warp_axis_aligned(source[:, None], input_from_output, size, fill=fill, mode=mode)[
            :, 0
        ].numpy()
        return all_pixels if window is None else all_pixels[:, *window]
    if bool((input_from_output == input_from_output[:1]).all()):
        if mode == "bicubic" and window is None:
            return warp_stack(source, input_from_output[0], size, fill=fill).numpy()
        # As channels of one image, slices share the coordinates of their samples, which saves time.
        matrix = input_from_output[:1]
        return warp(source[None], matrix, size, fill=fill, mode=mode, window=window)[0].numpy()
    resampled = warp(source[:, None], input_from_output, size, fill=fill, mode=mode, window=window)
    return resampled[:, 0].numpy()


def _as_tensor(array: np.ndarray) -> Tensor:
    """Convert an array to a contiguous tensor; types that are rare in scans become float32."""
    usual = array.dtype in (np.bool_, np.uint8, np.int16, np.float32)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=None if usual else np.float32))


def warped_volume(
    array: np.ndarray, input_from_output: Tensor, size: tuple[int, int, int], fill: float
) -> np.ndarray:
    """Resample a volume linearly.

    Args:
        array: ``(z, y, x)``.
        input_from_output: ``(4, 4)``, normalized coordinates.
        size: ``(z, y, x)`` of the result.
        fill: value outside the input.

    Returns:
        float32 of the given size.
    """
    source = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    out = scratch.zeros(size, np.float32)
    for part, values in warp_slabs(source, input_from_output, size, fill=fill, voxels=CHUNK):
        out[part] = values.numpy()
    return out


def chunks(shape: tuple[int, ...], size: tuple[int, int], voxels: int = CHUNK) -> list[slice]:
    """Split the slices of a volume into parts that are resampled together, to bound the memory.

    Args:
        shape: ``(z, y, x)`` of the volume.
        size: ``(h, w)`` of the result.
        voxels: largest number of voxels of a part, both in the volume and in the result.
    """
    return slice_chunks((shape[0], 1, max(shape[1] * shape[2], size[0] * size[1])), voxels)
