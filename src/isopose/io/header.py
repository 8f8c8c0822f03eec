"""Check the grid in a file's header before its voxels are read, and the voxels afterward."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.limits import VARIABLE, largest_bytes
from isopose.io.sizes import check_sizes


def check_grid(
    path: Path, shape: tuple[int, int, int], world_from_index: np.ndarray, dtype: DTypeLike
) -> None:
    """Check that the grid of an image file is valid and not too large to read.

    Args:
        path: of the file, for messages.
        shape: array shape ``(z, y, x)``.
        world_from_index: ``(4, 4)``, maps ``(x, y, z, 1)`` indices to LPS millimeters.
        dtype: type of the voxels after reading, including rescaling.

    Raises:
        InputError: the grid is invalid or too large; the message names the file.
    """
    needed, limit = math.prod(shape) * np.dtype(dtype).itemsize, largest_bytes()
    if needed > limit:
        raise InputError(
            f"{path}: its header promises {needed / 2**30:.1f} GB of voxels, more than the "
            f"limit of {limit / 2**30:g} GB; if the size is right, set {VARIABLE}"
        )
    checked_volume(path, np.broadcast_to(np.uint8(0), shape), world_from_index)


def checked_volume(path: Path, array: np.ndarray, world_from_index: np.ndarray) -> Volume:
    """Return a volume; errors about its grid and values name the file.

    Raises:
        InputError: the grid is invalid, its voxel size is not plausible for a patient, or a value is not
            finite.
    """
    if not all_finite(array):
        raise InputError(
            f"{path}: holds values that are not finite (NaN or infinity); repair or export it again"
        )
    try:
        return check_sizes(Volume(array, world_from_index))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def all_finite(array: np.ndarray) -> bool:
    """Return whether no value is NaN or infinite, without allocating another array of that size."""
    # NaN and infinity persist in a sum, and a float64 sum of float32 values cannot overflow.
    with np.errstate(invalid="ignore"):
        return array.dtype.kind != "f" or bool(np.isfinite(array.sum(dtype=np.float64)))
