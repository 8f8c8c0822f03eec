"""The plane in which the slices of a scan lie: recognizing it, and bringing a body's mask to it.

Slices are processed in the plane in which they were acquired. The body is found in the axial view of the
volume, whatever its plane, since only an axial section of a trunk is closed.
"""

from collections.abc import Iterator

import numpy as np

from isopose.choices import Plane
from isopose.errors import InputError
from isopose.geometry.volume import Volume, axes_of

#: Voxels longer than this multiple of both other sides, and than this many mm, are those of thick slices.
THICK_RATIO, THICK_MM = 1.8, 1.5
#: Fraction of the body's rows that reach both edges of the slices, above which its width is not known.
MAX_CUT_ROWS = 0.5
#: Thickness along the stack, as a fraction of the body's greatest, from which a pixel belongs to the outline.
#: Arms and the edges of a rolled trunk are in the silhouette, but not in the outline.
MIN_THICKNESS = 0.5
#: Width of that outline as a fraction of the body's width, if the body's axial section is an ellipse.
OUTLINE_WIDTH = 0.87
#: Directions in the patient in which the columns and the rows of a slice are counted, by its plane.
DIRECTIONS: dict[Plane, tuple[str, str]] = {
    "axial": ("across", "front to back"),
    "coronal": ("across", "head to foot"),
    "sagittal": ("front to back", "head to foot"),
}
#: Name of a body's extent in each direction.
EXTENT_NAMES = {"across": "width", "front to back": "depth", "head to foot": "height"}
#: Names of the two edges of a slice, by the direction of its columns.
_EDGE_NAMES = {"across": "left and right", "front to back": "front and back"}


def plane_of(volume: Volume) -> Plane | None:
    """Return the plane of a scan's thick slices; None where its voxels are nearly cubes.

    Args:
        volume: any orientation.
    """
    x, y, z = (float(side) for side in volume.reoriented().spacing)
    sides: list[tuple[float, Plane]] = sorted([(x, "sagittal"), (y, "coronal"), (z, "axial")])
    thick, plane = sides[2]
    return plane if thick >= THICK_RATIO * sides[1][0] and thick >= THICK_MM else None


def check_plane(volume: Volume, expected: Plane) -> None:
    """Refuse a scan whose slices lie in another plane; voxels that are nearly cubes are taken in any.

    Args:
        volume: any orientation.
        expected: as the setting or the model has it.

    Raises:
        InputError: thick slices of another plane.
    """
    actual = plane_of(volume)
    if actual not in (None, expected):
        size = " x ".join(f"{side:.2f}" for side in volume.reoriented().spacing)
        raise InputError(
            f"{actual} slices (voxels of {size} mm left-right, front-back, head-foot), expected {expected} "
            f"ones; set --plane {actual} (fit: --set data.plane={actual}), or use a model of {actual} slices"
        )


def mask_in_plane(mask: np.ndarray, volume: Volume, plane: Plane) -> np.ndarray:
    """Reorient a mask from the axial view of a scan to the view of another plane.

    Args:
        mask: ``(z, y, x)`` of ``volume.reoriented()``.
        volume: the scan as stored.
        plane: of the result.

    Returns:
        Of the shape of ``volume.reoriented(plane)``.
    """
    if plane == "axial":
        return mask
    stored = volume.reorientation().undo(mask)
    return np.ascontiguousarray(volume.reorientation(plane).apply(stored))


def pose_outline(body: np.ndarray, plane: Plane) -> np.ndarray:
    """Return the outline from which the pose of each slice is taken.

    For axial slices it is the body's section in each slice. In coronal and sagittal slices that section
    depends on the slice's position: the first and the last show little more than skin. There all slices get
    the same outline: the pixels at which the body's thickness along the stack is at least
    :data:`MIN_THICKNESS` of its maximum.

    Args:
        body: ``(z, y, x)`` booleans, in the view of the plane.
        plane: of the slices.

    Returns:
        The same shape; slices without a body are empty.
    """
    if plane == "axial":
        return body
    thickness, has_body = body.sum(axis=0), np.asarray(body.any(axis=(1, 2)))
    thick: np.ndarray = thickness >= MIN_THICKNESS * thickness.max()
    return thick[None] & has_body[:, None, None]


def outline_warnings(body: np.ndarray, plane: Plane) -> Iterator[str]:
    """Yield a warning where the edges of the slices cut the body's width, from which its size is taken.

    Args:
        body: ``(z, y, x)`` booleans, in the view of the plane.
        plane: of the slices.
    """
    if plane == "axial":
        return
    silhouette = np.asarray(body.any(axis=0))
    rows = silhouette.any(axis=1)
    reaches_both_edges = silhouette[:, :2].any(axis=1) & silhouette[:, -2:].any(axis=1)
    if reaches_both_edges.sum() > MAX_CUT_ROWS * rows.sum():
        edges = _EDGE_NAMES[DIRECTIONS[plane][0]]
        yield (
            f"the body reaches the edges of the slices, {edges}: its size is taken from the field of "
            "view; look at the homogenized scan"
        )


def position_mm(world_from_index: np.ndarray, plane: Plane) -> float:
    """Return the position in mm of a stack's first slice along the axis of its slices.

    Args:
        world_from_index: ``(4, 4)`` of the volume in the view of the plane, in LPS mm.
        plane: plane of the slices; positions grow to the head in axial, to the back in coronal and to the
            right in sagittal slices.
    """
    return float(axes_of(plane)[:, 2] @ world_from_index[:3, 3])
