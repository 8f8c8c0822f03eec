"""Homogenize images and labels, and restore labels and probabilities, each by one resampling."""

import numpy as np
from numpy.typing import DTypeLike
from torch import Tensor

from isopose import scratch
from isopose.choices import Modality
from isopose.data.resample import chunks, largest_share, warped, warped_labels, warped_volume
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.geometry.warp import invert
from isopose.homogenize.transform import Transform
from isopose.labels import voxels_of

#: Darker values are padding; they become air, so that resampling creates no border at the scanned area.
AIR_HU = -1024


def homogenized_image(volume: Volume, transform: Transform, modality: Modality = "ct") -> Volume:
    """Resample a scan to its homogenized grid; outside the scan is its minimum, at least -1024 HU in CT.

    Args:
        volume: the scan.
        transform: of the scan.
        modality: CT becomes int16 HU; MR keeps its values, as int16 if they are whole and fit, else float32.

    Raises:
        InputError: the volume is not on the transform's own grid.
    """
    array = _reoriented(volume, transform)
    low, high, dtype = _range(array, modality)
    if transform.tilted is not None:
        target = transform.homogenized
        resampled = warped_volume(
            array.clip(low, high), transform.volume_from_grid, target.array.shape, float(low)
        )
        return target.with_array(_stored(resampled, low, high, dtype))
    matrix, size = transform.slice_from_grid, (transform.grid.size, transform.grid.size)
    out = scratch.zeros((len(array), *size), dtype)
    # Floating-point bounds would convert integers to float64, twice the memory of the float32 used next.
    bounds = (int(low), int(high)) if array.dtype.kind in "iu" else (low, high)
    for part in chunks(array.shape, size):
        source = array[part].clip(*bounds)
        resampled = warped(source, matrix[part], size, float(low), "bicubic")
        # Cubic interpolation overshoots beside metal and skin: clip to the scan's own range.
        out[part] = _stored(resampled, low, high, dtype)
    return Volume(out, transform.grid.world_from_index)


def _range(array: np.ndarray, modality: Modality) -> tuple[float, float, DTypeLike]:
    """Return the smallest and largest value of a homogenized scan, and its dtype."""
    low, high = float(array.min()), float(array.max())
    fits = np.iinfo(np.int16)
    if modality == "ct":
        return max(float(AIR_HU), float(int(low))), min(float(fits.max), float(np.ceil(high))), np.int16
    whole = array.dtype.kind in "iu" and fits.min <= low and high <= fits.max
    return low, high, np.int16 if whole else np.float32


def _stored(values: np.ndarray, low: float, high: float, dtype: DTypeLike) -> np.ndarray:
    """Clip values in place to bounds, and return them in the dtype in which they are stored."""
    values.clip(low, high, out=values)
    return (np.rint(values, out=values) if dtype == np.int16 else values).astype(dtype)


def homogenized_labels(labels: Volume, transform: Transform) -> Volume:
    """Resample labels to the homogenized grid, uint8.

    Each value is interpolated linearly, and the label with the largest share is taken.

    Raises:
        InputError: the labels are not on the transform's own grid.
    """
    array = _reoriented(labels, transform)
    if transform.tilted is not None:
        there = transform.homogenized
        return there.with_array(_largest(array, transform.volume_from_grid, there.array.shape))
    size = (transform.grid.size, transform.grid.size)
    brought = warped_labels(array, transform.slice_from_grid, size, values_in(array))
    return Volume(brought, transform.grid.world_from_index)


def restored_labels(labels: Volume, transform: Transform) -> Volume:
    """Resample labels to the scan's own grid.

    Each value is interpolated linearly, and the label with the largest share is taken.

    Raises:
        InputError: the labels are not on the homogenized grid.
    """
    array = _homogenized(labels, transform)
    if transform.tilted is not None:
        back = _largest(array, invert(transform.volume_from_grid), transform.stack_shape)
    else:
        matrix = invert(transform.slice_from_grid)
        back = warped_labels(array, matrix, transform.slice_shape, values_in(array))
    return transform.native.with_array(transform.reorientation.undo(back))


def restored_share(values: Volume, transform: Transform) -> np.ndarray:
    """Resample one class's probability to the reoriented scan: ``(z, h, w)`` float32, 0 outside.

    Raises:
        InputError: the values are not on the homogenized grid.
    """
    array = _homogenized(values, transform)
    if transform.tilted is not None:
        return warped_volume(array, invert(transform.volume_from_grid), transform.stack_shape, 0.0)
    matrix, size = invert(transform.slice_from_grid), transform.slice_shape
    out = scratch.zeros((len(array), *size), np.float32)
    for part in chunks(array.shape, size):
        out[part] = warped(array[part], matrix[part], size, 0.0, "bilinear")
    return out


def _largest(labels: np.ndarray, input_from_output: Tensor, shape: tuple[int, int, int]) -> np.ndarray:
    """Resample labels through a matrix ``(4, 4)``: linearly, with the largest share of each voxel."""
    shares = (
        (value, warped_volume(labels == value, input_from_output, shape, 0.0)) for value in values_in(labels)
    )
    return largest_share(shares, shape)


def values_in(labels: np.ndarray) -> list[int]:
    """Return the values other than 0 that occur in a uint8 map."""
    counts = voxels_of(labels)
    return [value for value in np.flatnonzero(counts).tolist() if value]


def _reoriented(volume: Volume, transform: Transform) -> np.ndarray:
    if not volume.same_grid(transform.native):
        raise InputError("the volume does not lie on the grid of the scan that was homogenized")
    return transform.reorientation.apply(volume.array)


def _homogenized(volume: Volume, transform: Transform) -> np.ndarray:
    if not volume.same_grid(transform.homogenized):
        raise InputError("the volume does not lie on the homogenized grid that is to be restored")
    return volume.array
