"""Convert images of other libraries to volumes and back.

An image is one of

- a path of anything that ``isopose predict`` reads,
- a ``SimpleITK.Image`` of three dimensions,
- a MONAI ``MetaTensor`` ``(1, x, y, z)`` or ``(x, y, z)`` with an affine in RAS,
- a pair of array and affine in nibabel's convention: a NumPy array or PyTorch tensor ``(x, y, z)``, and a
  matrix ``(4, 4)`` from indices to RAS millimeters,
- a :class:`~isopose.geometry.volume.Volume`: ``(z, y, x)``, LPS.

An array without an affine is refused, because its left and right are unknown.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.images import read_volume, sitk_lps_from_index, to_sitk
from isopose.io.nifti_place import LPS_FROM_RAS

#: A tensor must be a MONAI MetaTensor, which has an affine; any other is refused.
Image: TypeAlias = (
    Path | str | sitk.Image | Tensor | Volume | tuple[np.ndarray, np.ndarray] | tuple[Tensor, Tensor]
)


def as_volume(image: Image) -> Volume:
    """Convert an image to a volume.

    Raises:
        InputError: the file cannot be read, or the image is not three-dimensional, has no affine or is of
            another type.
    """
    if isinstance(image, Volume):
        return image
    if isinstance(image, Path | str):
        return read_volume(Path(image))
    if isinstance(image, sitk.Image):
        return _from_sitk(image)
    if isinstance(image, Tensor) and hasattr(image, "as_tensor"):
        values = image.as_tensor()
        values = values[0] if values.ndim == 4 and values.shape[0] == 1 else values
        return _from_pair(values, image.affine)  # type: ignore[attr-defined]
    if isinstance(image, tuple) and len(image) == 2:
        return _from_pair(*image)
    raise InputError(
        "expected an image with its position in the patient (a path, a SimpleITK image, a MetaTensor, or a "
        f"pair of array (x, y, z) and RAS affine), got {type(image).__name__}"
    )


def as_volumes(image: Image | Sequence[Image]) -> list[Volume]:
    """Convert the channels of a scan to volumes.

    Args:
        image: an image; or a list of images, one for each channel; or a MetaTensor ``(channels, x, y, z)``.

    Raises:
        InputError: one of the errors of :func:`as_volume`.
    """
    if isinstance(image, list):
        return [as_volume(channel) for channel in image]
    if isinstance(image, Tensor) and hasattr(image, "as_tensor") and image.ndim == 4:
        return [_from_pair(values, image.affine) for values in image.as_tensor()]  # type: ignore[attr-defined]
    return [as_volume(image)]  # type: ignore[arg-type]  # neither a list nor of several channels


def as_labels(image: Image) -> Volume:
    """Convert an image of whole numbers from 0 to 255 to a uint8 volume.

    Raises:
        InputError: other values, or one of the errors of :func:`as_volume`.
    """
    volume = as_volume(image)
    if not are_labels(volume.array):
        raise InputError("expected labels as whole numbers from 0 to 255")
    return volume.with_array(volume.array.astype(np.uint8))


def are_labels(array: np.ndarray) -> bool:
    """Return True if all values are whole numbers from 0 to 255."""
    return bool(array.min() >= 0 and array.max() <= 255 and np.array_equal(array, np.rint(array)))


def like(image: Image) -> Callable[[Volume], Any]:
    """Return a function that converts a volume to an image's type; for a path, to a SimpleITK image."""
    if isinstance(image, Volume):
        return lambda volume: volume
    if isinstance(image, Tensor):
        channel, device = image.ndim == 4, image.device
        return lambda volume: _to_meta(volume, channel, device)
    if isinstance(image, tuple):
        if isinstance(image[0], Tensor):
            device = image[0].device
            return lambda volume: tuple(torch.from_numpy(array).to(device) for array in _to_pair(volume))
        return _to_pair
    return to_sitk


def _from_sitk(image: sitk.Image) -> Volume:
    """Convert a SimpleITK image to a volume."""
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"expected an image of three dimensions and one number per voxel, got {image.GetDimension()} and "
            f"{image.GetNumberOfComponentsPerPixel()}"
        )
    return Volume(sitk.GetArrayFromImage(image), sitk_lps_from_index(image))


def _from_pair(values: Any, affine: Any) -> Volume:
    """Convert an array ``(x, y, z)`` and its RAS affine ``(4, 4)`` to a volume."""
    if isinstance(values, Tensor) and values.dtype == torch.bfloat16:
        values = values.float()  # NumPy has no bfloat16
    array, matrix = (
        np.asarray(x.numpy(force=True) if isinstance(x, Tensor) else x) for x in (values, affine)
    )
    if array.ndim != 3 or matrix.shape != (4, 4):
        raise InputError(
            f"expected an array (x, y, z) and an affine (4, 4), got shapes {array.shape} and {matrix.shape}"
        )
    return Volume(array.transpose(2, 1, 0), LPS_FROM_RAS @ matrix.astype(np.float64))


def _to_pair(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Convert a volume to an array ``(x, y, z)`` and its RAS affine."""
    return np.ascontiguousarray(volume.array.transpose(2, 1, 0)), LPS_FROM_RAS @ volume.world_from_index


def _to_meta(volume: Volume, channel: bool, device: torch.device) -> Tensor:
    """Convert a volume to a MetaTensor, with or without a channel axis."""
    from monai.data.meta_tensor import MetaTensor

    array, affine = _to_pair(volume)
    values = torch.from_numpy(array[None] if channel else array).to(device)
    return MetaTensor(values, affine=torch.from_numpy(affine))
