"""Which sizes of voxels, scans and bodies a patient's CT can have; others come from a wrong unit."""

from collections.abc import Iterator

import numpy as np

from isopose.errors import InputError
from isopose.geometry.volume import Volume

#: Edges of a voxel, mm. No CT of a patient is finer than 0.05, and a voxel in meters has edges of 0.0003 to
#: 0.005. Slices of sparse series of the lung are 10 to 20 apart; voxels in micrometers have edges of 200 up.
EDGE_MM = (0.01, 100.0)
#: Longest side of what a scan shows, mm: twice as far as any table moves, and more than memory takes if wide.
LONGEST_MM = 5000.0
#: Widest slice that a scanner's bore takes, and longest scan of a table, mm.
WIDEST_MM, TABLE_MM = 1000.0, 2500.0
#: Slices further apart than this many mm leave gaps in which structures are lost.
APART_MM = 20.0
#: A trunk's larger in-plane side, mm: of a preterm newborn of 500 g about 60, of the heaviest adults 800.
BODY_MM = (60.0, 900.0)
#: What an edge may be multiplied by where its unit was mistaken; and an edge or a body that is usual, mm.
_UNITS = {"centimeters": 10.0, "inches": 25.4, "meters": 1000.0, "micrometers": 0.001}
_USUAL_EDGE_MM, _USUAL_BODY_MM = (0.2, 20.0), (100.0, 700.0)


def check_sizes(volume: Volume) -> Volume:
    """A volume, when its voxels can be a patient's; nothing is read of its array.

    Raises:
        InputError: an edge of a voxel outside :data:`EDGE_MM`.
    """
    edges = volume.spacing
    if edges.min() < EDGE_MM[0] or edges.max() > EDGE_MM[1]:
        raise InputError(
            f"voxel size {_by(edges)} mm is not plausible, expected {EDGE_MM[0]:g} to {EDGE_MM[1]:g} mm; the "
            f"header's unit is probably wrong{_guess(edges, _USUAL_EDGE_MM)}, export it again in mm"
        )
    return volume


def check_extent(upright: Volume) -> None:
    """Refuse a scan in which no patient can lie, before memory is taken for it.

    Args:
        upright: the scan, reoriented to the patient's axes.

    Raises:
        InputError: a side beyond :data:`LONGEST_MM`, or voxels as of :func:`check_sizes`.
    """
    check_sizes(upright)
    extent = extent_mm(upright)
    if extent.max() > LONGEST_MM:
        raise InputError(
            f"a field of view of {_by(extent)} mm is not plausible, expected at most {LONGEST_MM:g} mm; the "
            "header's unit or voxel size is probably wrong, export it again in mm"
        )


def extent_mm(volume: Volume) -> np.ndarray:
    """Sides ``(x, y, z)`` of what a volume shows."""
    return volume.spacing * volume.array.shape[::-1]


def size_doubts(upright: Volume, body_mm: tuple[float, float] | None = None) -> Iterator[str]:
    """One line for each size that no patient has, or no scanner takes; warnings, for a header may be right.

    Args:
        upright: the scan, reoriented to the patient's axes.
        body_mm: sides ``(x, y)`` of the body's in-plane box; none where no body was found.
    """
    width, depth, height = extent_mm(upright)
    if max(width, depth) > WIDEST_MM:
        yield f"slices of {width:.0f} x {depth:.0f} mm fit into no scanner; is the voxel size in mm?"
    if height > TABLE_MM:
        yield f"a scan of {height:.0f} mm is longer than any table; is the slices' distance in mm?"
    elif upright.spacing[2] > APART_MM and upright.array.shape[0] > 1:
        yield f"slices {upright.spacing[2]:.1f} mm apart leave gaps; is their distance in mm?"
    if body_mm is None:
        if max(width, depth) < BODY_MM[0]:
            yield (
                f"a field of view of {width:.0f} x {depth:.0f} mm shows no patient's trunk; "
                f"is the voxel size in mm{_guess((width, depth), _USUAL_BODY_MM)}?"
            )
    elif not BODY_MM[0] <= max(body_mm) <= BODY_MM[1]:
        yield (
            f"a body of {body_mm[0]:.0f} x {body_mm[1]:.0f} mm is not a patient's, expected a width of "
            f"{BODY_MM[0]:g} to {BODY_MM[1]:g} mm; is the voxel size in mm{_guess(body_mm, _USUAL_BODY_MM)}?"
        )


def _by(sides: np.ndarray) -> str:
    return " x ".join(f"{side:.3g}" if side < 1000 else f"{side:.0f}" for side in sides)


def _guess(sides: np.ndarray | tuple[float, ...], usual: tuple[float, float]) -> str:
    """The unit in which sides would be usual, in brackets, or nothing."""
    for unit, factor in _UNITS.items():
        if usual[0] <= min(sides) * factor and max(sides) * factor <= usual[1]:
            return f" ({unit}?)"
    return ""
