"""A volume: an array and its place in the patient.

Convention: arrays are ``(z, y, x)``; points and indices are ``(x, y, z)``; the world is LPS in millimeters
(x grows to the patient's left, y to the back, z to the head); an index names a voxel's center.
"""

from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from isopose.choices import Plane
from isopose.errors import InputError

#: Rows and columns of an image.
PixelWindow = tuple[slice, slice]
#: Largest deviation from orthogonality (cosine) that counts as rounding in a header.
SHEAR_TOLERANCE = 1e-3
#: Axes of an array ``(..., z, y, x)`` that belong to the index axes x, y and z.
_ARRAY_AXES = (-1, -2, -3)
#: Where index axes x, y and z of a stack of slices point, as columns of LPS. Each is right-handed, so that no
#: view is a mirror image.
_AXES: dict[Plane, np.ndarray] = {
    "axial": np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]]),
}


def axes_of(plane: Plane) -> np.ndarray:
    """Return the ``(3, 3)`` unit vectors in LPS, as columns, to which a stack's index axes point.

    In axial slices x points to the patient's left, y to the back and z to the head. In coronal slices x
    points to the left, y to the feet and z to the back. In sagittal slices x points to the back, y to the
    feet and z to the right.
    """
    return _AXES[plane].astype(np.float64)


def is_sheared(matrix: np.ndarray) -> bool:
    """Return True if the axes of a ``(4, 4)`` index-to-world matrix are not orthogonal, up to rounding."""
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE)


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D array and its index-to-world matrix; it cannot exist in an invalid state.

    Args:
        array: ``(z, y, x)``, any real dtype.
        world_from_index: ``(4, 4)`` float64, maps ``(x, y, z, 1)`` indices to LPS millimeters.

    Raises:
        InputError: values that are not real numbers, not three non-empty dimensions, a non-finite, singular
            or sheared matrix.
    """

    array: np.ndarray
    world_from_index: np.ndarray = field(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        matrix = np.array(self.world_from_index, dtype=np.float64)
        # NumPy would drop imaginary parts, and NaN in an array of objects would pass every check of values.
        if self.array.dtype.kind not in "biuf":
            raise InputError(f"expected one real number per voxel, got values of type {self.array.dtype}")
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise InputError(f"expected a volume of three non-empty dimensions, got shape {self.array.shape}")
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise InputError("expected a finite 4 x 4 index-to-world matrix; the file's header is damaged")
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        if (lengths < 1e-6).any() or (lengths > 1e4).any():
            size = " x ".join(f"{length:.3g}" for length in lengths)
            raise InputError(f"voxel size {size} mm is not plausible; the file's header is damaged")
        if is_sheared(matrix):
            raise InputError(
                "the voxel axes are not at right angles (gantry tilt or a sheared matrix); "
                "resample the scan to a rectangular grid first"
            )
        matrix[3] = (0.0, 0.0, 0.0, 1.0)
        matrix.setflags(write=False)
        object.__setattr__(self, "world_from_index", matrix)

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size along ``(x, y, z)`` of the index, in mm."""
        return np.linalg.norm(self.world_from_index[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in milliliters."""
        return float(np.prod(self.spacing)) / 1000.0

    @property
    def direction(self) -> np.ndarray:
        """``(3, 3)`` unit vectors of the index axes in LPS, as columns."""
        return self.world_from_index[:3, :3] / self.spacing

    @property
    def origin(self) -> np.ndarray:
        """LPS position of the center of voxel (0, 0, 0), in mm."""
        return self.world_from_index[:3, 3].copy()

    def with_array(self, array: np.ndarray) -> "Volume":
        """Return a volume with other values on the same grid.

        Raises:
            InputError: the array has another shape.
        """
        if array.shape != self.array.shape:
            raise InputError(f"expected an array of shape {self.array.shape}, got {array.shape}")
        return Volume(array, self.world_from_index)

    def same_grid(self, other: "Volume", tolerance_mm: float = 0.01) -> bool:
        """Return True if shapes are equal and corresponding voxel centers lie within the tolerance (mm)."""
        return self.array.shape == other.array.shape and self.grid_distance(other) <= tolerance_mm

    def grid_distance(self, other: "Volume") -> float:
        """Return the largest distance in mm between corners of this grid in this and the other world."""
        size = np.array(self.array.shape[::-1]) - 1
        corners = np.array([[x, y, z, 1] for x in (0, size[0]) for y in (0, size[1]) for z in (0, size[2])])
        difference = corners @ (self.world_from_index - other.world_from_index).T
        return float(np.linalg.norm(difference[:, :3], axis=1).max())

    def reorientation(self, plane: Plane = "axial") -> "Reorientation":
        """Return the axis permutation and flips that bring the index axes nearest to those of a plane.

        Args:
            plane: whose slices lie along z, see :func:`axes_of`; of ``axial`` the axes are L, P and S.
        """
        along = axes_of(plane).T @ self.direction
        magnitude = np.abs(along)
        # The best of the six permutations, not axis by axis: near 45 degrees two may want the same place.
        axes = max(permutations(range(3)), key=lambda p: sum(magnitude[new, p[new]] for new in range(3)))
        flips = tuple(bool(along[new, axes[new]] < 0) for new in range(3))
        return Reorientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def reoriented(self, plane: Plane = "axial") -> "Volume":
        """Return the volume with index axes nearest to those of a plane, as a view; nothing is resampled.

        In the ``array[k, j, i]`` of ``axial`` i grows to the patient's left, j to the back and k to the head,
        up to the obliqueness that remains in ``direction``. The world matrix stays true in every plane.

        Args:
            plane: whose slices lie along z, see :func:`axes_of`.
        """
        change = self.reorientation(plane)
        stored_from_new = change.stored_from_new(self.array.shape)
        return Volume(change.apply(self.array), self.world_from_index @ stored_from_new)


@dataclass(frozen=True)
class Reorientation:
    """A permutation and flips of index axes: new axis ``n`` is stored axis ``axes[n]``, flipped or not.

    Axes are in ``(x, y, z)`` order. Both directions are exact and return views, without a copy in memory.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return a stored ``(..., z, y, x)`` array in the new axes, as a view."""
        return np.flip(np.moveaxis(array, self._stored, _ARRAY_AXES), self._flipped)

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Return an array ``(..., z, y, x)`` in the new axes in the stored order, as a view."""
        return np.moveaxis(np.flip(array, self._flipped), _ARRAY_AXES, self._stored)

    @property
    def _stored(self) -> tuple[int, ...]:
        return tuple(_ARRAY_AXES[axis] for axis in self.axes)

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(_ARRAY_AXES[axis] for axis in range(3) if self.flips[axis])

    def stored_from_new(self, stored_shape: tuple[int, ...]) -> np.ndarray:
        """Return the ``(4, 4)`` matrix from new to stored indices ``(x, y, z)``.

        Args:
            stored_shape: ``(z, y, x)``.
        """
        size = stored_shape[::-1]
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for new, stored in enumerate(self.axes):
            matrix[stored, new] = -1.0 if self.flips[new] else 1.0
            matrix[stored, 3] = size[stored] - 1.0 if self.flips[new] else 0.0
        return matrix
