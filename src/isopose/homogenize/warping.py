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
    array, target, matrix = _reoriented(volume, transform), transform.homogenized, transform.input_from_grid
    low, high, dtype = _output_range(array, modality)
    if transform.tilted is not None:
        resampled = warped_volume(array.clip(low, high), matrix, target.array.shape, low)
        return target.with_array(_clip_and_convert(resampled, low, high, dtype))
    size = (transform.grid.size, transform.grid.size)
    out = scratch.zeros(target.array.shape, dtype)
    # Floating-point bounds would convert integers to float64, twice the memory of the float32 used next.
    bounds = (int(low), int(high)) if array.dtype.kind in "iu" else (low, high)
    for part in chunks(array.shape, size):
        resampled = warped(array[part].clip(*bounds), matrix[part], size, low, "bicubic")
        # Cubic interpolation overshoots beside metal and skin: clip to the scan's own range.
        out[part] = _clip_and_convert(resampled, low, high, dtype)
    return target.with_array(out)


def _output_range(array: np.ndarray, modality: Modality) -> tuple[float, float, DTypeLike]:
    """Return the smallest and largest value of a homogenized scan, and its dtype."""
    low, high = float(array.min()), float(array.max())
    int16 = np.iinfo(np.int16)
    if modality == "ct":
        return max(float(AIR_HU), float(int(low))), min(float(int16.max), float(np.ceil(high))), np.int16
    fits_int16 = array.dtype.kind in "iu" and int16.min <= low and high <= int16.max
    return low, high, np.int16 if fits_int16 else np.float32


def _clip_and_convert(values: np.ndarray, low: float, high: float, dtype: DTypeLike) -> np.ndarray:
    """Clip values in place to bounds, and convert them to a dtype; rounded if it is int16."""
    values.clip(low, high, out=values)
    return (np.rint(values, out=values) if dtype == np.int16 else values).astype(dtype)


def homogenized_labels(labels: Volume, transform: Transform) -> Volume:
    """Resample labels to the homogenized grid, uint8.

    Each value is interpolated linearly, and the label with the largest share is taken.

    Raises:
        InputError: the labels are not on the transform's own grid.
    """
    array, target = _reoriented(labels, transform), transform.homogenized
    return target.with_array(_resampled_labels(array, transform.input_from_grid, target.array.shape))


def restored_labels(labels: Volume, transform: Transform) -> Volume:
    """Resample labels to the scan's own grid.

    Each value is interpolated linearly, and the label with the largest share is taken.

    Raises:
        InputError: the labels are not on the homogenized grid.
    """
    array = _homogenized(labels, transform)
    return transform.to_native(
        _resampled_labels(array, invert(transform.input_from_grid), transform.stack_shape)
    )


def restored_share(values: Volume, transform: Transform) -> np.ndarray:
    """Resample one class's probability to the reoriented scan: ``(z, h, w)`` float32, 0 outside.

    Raises:
        InputError: the values are not on the homogenized grid.
    """
    array, matrix = _homogenized(values, transform), invert(transform.input_from_grid)
    if transform.tilted is not None:
        return warped_volume(array, matrix, transform.stack_shape, 0.0)
    size = transform.slice_shape
    out = scratch.zeros(transform.stack_shape, np.float32)
    for part in chunks(array.shape, size):
        out[part] = warped(array[part], matrix[part], size, 0.0, "bilinear")
    return out


def _resampled_labels(
    labels: np.ndarray, input_from_output: Tensor, shape: tuple[int, int, int]
) -> np.ndarray:
    """Resample labels: each value is interpolated linearly, and the label with the largest share is taken.

    Args:
        labels: ``(z, y, x)`` uint8.
        input_from_output: ``(4, 4)``, or ``(z, 3, 3)`` of each slice, between normalized coordinates.
        shape: ``(z, y, x)`` of the result.
    """
    if input_from_output.ndim == 3:
        return warped_labels(labels, input_from_output, shape[1:], values_in(labels))
    shares = (
        (value, warped_volume(labels == value, input_from_output, shape, 0.0)) for value in values_in(labels)
    )
    return largest_share(shares, shape)


def values_in(labels: np.ndarray) -> list[int]:
    """Return the values other than 0 that occur in a uint8 map, in ascending order."""
    return [value for value in np.flatnonzero(voxels_of(labels)).tolist() if value]


def _reoriented(volume: Volume, transform: Transform) -> np.ndarray:
    """Return the array of a volume on the scan's own grid, reoriented to ``(z, h, w)``."""
    if not volume.same_grid(transform.native):
        raise InputError("the volume does not lie on the grid of the scan that was homogenized")
    return transform.reorientation.apply(volume.array)


def _homogenized(volume: Volume, transform: Transform) -> np.ndarray:
    """Return the array of a volume on the homogenized grid."""
    if not volume.same_grid(transform.homogenized):
        raise InputError("the volume does not lie on the homogenized grid that is to be restored")
    return volume.array
