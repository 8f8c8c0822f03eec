"""Warnings for scans that do not look like CT or MR of a trunk in the expected plane."""

import math
from collections.abc import Iterator

import numpy as np

from isopose.choices import Modality, Plane
from isopose.data.plane import THICK_MM, THICK_RATIO, check_plane, plane_of
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.sizes import size_warnings

#: A scan without a voxel below this has no fat and no air: its values are not HU.
_AIRLESS_HU = -10
#: Fat and air are below this in HU. Without the offset air is near 0, and its noise above this.
_FAT_HU = -50
#: Least part of the voxels besides padding that fat and air fill; every trunk has far more.
_MIN_FAT_SHARE = 1e-3
#: Soft tissue is below this, and above it if 1000 or 1024 were not subtracted.
_SOFT_TISSUE_HU = 500
#: Bone, contrast and metal are at most this part of the voxels besides padding.
_MAX_BRIGHT_SHARE = 0.05
#: Number of voxels from which these parts are taken.
_SAMPLED_VOXELS = 1 << 20
#: A scan whose values span less than this was windowed or normalized.
_NARROW_HU = 300
#: Above bone and most metal; scanners clip at 3071 or, with the extended scale, near 31743.
_HIGHEST_HU = 32000
#: Beyond this no calibration, however wrong, is CT.
_IMPOSSIBLE_HU = 1e6
#: MR may have negative values after interpolation, down to this fraction of the highest value.
_MAX_NEGATIVE_SHARE = 0.2
#: Angle in degrees between the scan's and the patient's axes from which a scan gets a warning.
_OBLIQUE_DEGREES = 20.0


def check_values(volume: Volume, modality: Modality = "ct", plane: Plane = "axial") -> None:
    """Refuse values that cannot be Hounsfield units and would distort every statistic.

    MR has no unit. Thick slices of another plane are refused, because they would be processed in the expected
    one; in CT expected to be axial they get a warning instead (:func:`scan_warnings`).

    Args:
        volume: the scan, reoriented to the patient's axes.
        modality: of the scan.
        plane: in which the slices are expected.

    Raises:
        InputError: CT with a value beyond :data:`_IMPOSSIBLE_HU` on either side; slices of another plane.
    """
    if modality == "mr" or plane != "axial":
        check_plane(volume, plane)
    if modality == "mr":
        return
    low, high = float(volume.array.min()), float(volume.array.max())
    if max(-low, high) > _IMPOSSIBLE_HU:
        raise InputError(
            f"values from {low:g} to {high:g} are not HU, expected -1024 to about 32000; export the scan "
            "again with its rescale slope applied once"
        )


def scan_warnings(
    volume: Volume,
    body_mm: tuple[float, float] | None = None,
    modality: Modality = "ct",
    plane: Plane = "axial",
) -> Iterator[str]:
    """Yield a warning for each unusual property of the values, the grid or the size of a CT or MR scan.

    None of them proves an error, so the scan is not refused.

    Args:
        volume: the scan, reoriented to the patient's axes.
        body_mm: sides ``(x, y)`` of the body's box in the axial plane, mm; None where no body was found.
        modality: of the scan.
        plane: in which the slices are expected.
    """
    low, high = float(volume.array.min()), float(volume.array.max())
    if modality == "mr":
        if low < 0 and -low > _MAX_NEGATIVE_SHARE * high:
            yield f"values from {low:g} to {high:g}, but MR has none below 0; is it CT, or a computed map?"
    elif low < high:
        if high - low < _NARROW_HU:
            yield (
                f"values from {low:g} to {high:g} span too little for CT in HU; use the "
                "original scan, neither windowed nor normalized"
            )
        elif low > _AIRLESS_HU:
            yield (
                f"no value below {low:g}, but fat and air in CT are below; the HU offset (often "
                "-1024) seems to be missing, or this is not CT"
            )
        elif high > _HIGHEST_HU:
            yield f"values up to {high:g} are not plausible HU; is the rescale slope missing?"
        elif _offset_is_missing(_sample(volume.array), low):
            yield (
                f"hardly any value is below {_FAT_HU} except {low:g}, which is probably padding, and many "
                f"are above {_SOFT_TISSUE_HU}; the HU offset (often -1024) may be missing, or it is not CT"
            )
    x, y, z = volume.spacing
    thick = max(x, y) > THICK_RATIO * min(x, y) or (max(x, y) > THICK_RATIO * z and max(x, y) > THICK_MM)
    # MR of another plane is refused.
    if plane == "axial" and thick and not (modality == "mr" and plane_of(volume) not in (None, plane)):
        yield (
            f"voxels of {x:.2f} x {y:.2f} x {z:.2f} mm (left-right, front-back, head-foot) are not "
            "those of axial slices; use the axial series, or resample the scan"
        )
    yield from size_warnings(volume, body_mm)
    angle = float(np.degrees(np.arccos(np.clip(np.abs(np.diag(volume.direction)), 0, 1)).max()))
    if angle > _OBLIQUE_DEGREES:
        yield f"its axes are {angle:.0f} degrees off the patient's axes; expected them to be nearly parallel"


def _offset_is_missing(values: np.ndarray, low: float) -> bool:
    """Return True if the values of CT are not HU although padding below air makes their range look so.

    Args:
        values: of voxels all over the scan.
        low: the lowest value of the scan, which may be padding.
    """
    unpadded = values[values > low]
    if low >= _FAT_HU or not len(unpadded):
        return False
    few_are_fat = np.mean(unpadded < _FAT_HU) < _MIN_FAT_SHARE
    return bool(few_are_fat and np.mean(unpadded > _SOFT_TISSUE_HU) > _MAX_BRIGHT_SHARE)


def _sample(array: np.ndarray) -> np.ndarray:
    """Return values on a regular grid in all slices, so that no large scan is copied."""
    step = math.ceil(math.sqrt(array.size / _SAMPLED_VOXELS))
    return array[:, ::step, ::step]
