"""Check that the sizes of voxels, scans and bodies are plausible; others come from a wrong unit."""

from collections.abc import Iterator

import numpy as np

from isopose.errors import InputError
from isopose.geometry.volume import Volume

#: Plausible voxel sizes in mm. No CT of a patient is finer than 0.05; a voxel size given in meters is 0.0003
#: to 0.005. Slices of sparse lung series are 10 to 20 mm apart; voxel sizes in micrometers are 200 and more.
VOXEL_MM = (0.01, 100.0)
#: Maximum side of a scan in mm: twice the range of any table.
MAX_SIDE_MM = 5000.0
#: Maximum width of a slice (the scanner's bore) and length of a scan (the table), in mm.
MAX_WIDTH_MM, MAX_LENGTH_MM = 1000.0, 2500.0
#: Slice distance in mm above which structures may be missed.
MAX_GAP_MM = 20.0
#: Range of a trunk's larger in-plane side in mm: about 60 for a preterm newborn of 500 g, 800 for the
#: heaviest adults.
BODY_MM = (60.0, 900.0)
#: Factors to millimeters of units that are often mistaken, and usual ranges of a voxel's and a body's size in
#: mm.
_UNITS = {"centimeters": 10.0, "inches": 25.4, "meters": 1000.0, "micrometers": 0.001}
_USUAL_VOXEL_MM, _USUAL_BODY_MM = (0.2, 20.0), (100.0, 700.0)


def check_sizes(volume: Volume) -> Volume:
    """Return a volume unchanged if its voxel size is plausible; its array is not read.

    Raises:
        InputError: a voxel size outside :data:`VOXEL_MM`.
    """
    spacing = volume.spacing
    if spacing.min() < VOXEL_MM[0] or spacing.max() > VOXEL_MM[1]:
        raise InputError(
            f"voxel size {_format_sides(spacing)} mm is not plausible, expected {VOXEL_MM[0]:g} to "
            f"{VOXEL_MM[1]:g} mm; the header's unit is probably "
            f"wrong{_guess_unit(spacing, _USUAL_VOXEL_MM)}, export it again in mm"
        )
    return volume


def check_extent(volume: Volume) -> None:
    """Refuse a scan with implausible extent, before memory is allocated for it.

    Args:
        volume: the scan, reoriented to the patient's axes.

    Raises:
        InputError: a side longer than :data:`MAX_SIDE_MM`, or a voxel size that :func:`check_sizes` refuses.
    """
    check_sizes(volume)
    extent = extent_mm(volume)
    if extent.max() > MAX_SIDE_MM:
        raise InputError(
            f"a field of view of {_format_sides(extent)} mm is not plausible, expected at most "
            f"{MAX_SIDE_MM:g} mm; the header's unit or voxel size is probably wrong, export it again in mm"
        )


def extent_mm(volume: Volume) -> np.ndarray:
    """Return the sides ``(x, y, z)`` of a volume in mm."""
    return volume.spacing * volume.array.shape[::-1]


def size_warnings(volume: Volume, body_mm: tuple[float, float] | None = None) -> Iterator[str]:
    """Yield a warning for each implausible size; these are no errors, since the header may be right.

    Args:
        volume: the scan, reoriented to the patient's axes.
        body_mm: sides ``(x, y)`` of the body's in-plane box in mm; None if no body was found.
    """
    width, depth, height = extent_mm(volume)
    if max(width, depth) > MAX_WIDTH_MM:
        yield f"slices of {width:.0f} x {depth:.0f} mm fit into no scanner; is the voxel size in mm?"
    if height > MAX_LENGTH_MM:
        yield f"a scan of {height:.0f} mm is longer than any table; is the slices' distance in mm?"
    elif volume.spacing[2] > MAX_GAP_MM and volume.array.shape[0] > 1:
        yield f"slices {volume.spacing[2]:.1f} mm apart leave gaps; is their distance in mm?"
    if body_mm is None:
        if max(width, depth) < BODY_MM[0]:
            yield (
                f"a field of view of {width:.0f} x {depth:.0f} mm shows no patient's trunk; "
                f"is the voxel size in mm{_guess_unit((width, depth), _USUAL_BODY_MM)}?"
            )
    elif not BODY_MM[0] <= max(body_mm) <= BODY_MM[1]:
        yield (
            f"a body of {body_mm[0]:.0f} x {body_mm[1]:.0f} mm is not a patient's, expected a width of "
            f"{BODY_MM[0]:g} to {BODY_MM[1]:g} mm; is the voxel size in "
            f"mm{_guess_unit(body_mm, _USUAL_BODY_MM)}?"
        )


def _format_sides(sides: np.ndarray) -> str:
    return " x ".join(f"{side:.3g}" if side < 1000 else f"{side:.0f}" for side in sides)


def _guess_unit(sides: np.ndarray | tuple[float, ...], usual: tuple[float, float]) -> str:
    """Return the likely unit of the sides in parentheses, or an empty text."""
    for unit, factor in _UNITS.items():
        if usual[0] <= min(sides) * factor and max(sides) * factor <= usual[1]:
            return f" ({unit}?)"
    return ""
