"""The transform between a scan's own grid and its homogenized grid, which can be saved as JSON."""

import json
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from isopose.choices import Plane
from isopose.errors import InputError
from isopose.geometry.frame import Frame
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.volume import Reorientation, Volume, axes_of
from isopose.geometry.warp import compose
from isopose.renamed import TRANSFORM, with_present_names
from isopose.strict import STRICT, first_problem

Extent = Annotated[int, Field(ge=1, le=1 << 20)]
Millimeters = Annotated[float, Field(gt=1e-6, le=1e6)]
Shape = tuple[Extent, Extent, Extent]
MatrixRow = tuple[float, float, float, float]
Matrix = tuple[MatrixRow, MatrixRow, MatrixRow, MatrixRow]
Factor = Annotated[float, Field(gt=1e-3, le=1e3)]
#: Radians, a logarithm of a scale, or a shift in half sides; larger values are damaged data.
PoseValue = Annotated[float, Field(ge=-10.0, le=10.0)]
SlicePose = tuple[PoseValue, PoseValue, PoseValue, PoseValue, PoseValue]
VolumePose = tuple[
    PoseValue, PoseValue, PoseValue, PoseValue, PoseValue, PoseValue, PoseValue, PoseValue, PoseValue
]


@dataclass(frozen=True)
class Grid:
    """Grid of homogenized slices: square pixels around the reference's center, which is at x = y = 0.

    The world is LPS: x grows to the patient's left, y to the back, z to the head. The index axes of axial
    slices lie along x, y and z; those of other planes as :func:`isopose.geometry.volume.axes_of` says.

    Args:
        usual: pixels along a side of the reference's frame.
        size: pixels along a side of this case's grid; more than ``usual`` if its body needs them.
        pixel_mm: side of a pixel in the reference's millimeters.
        slice_mm: distance of the scan's slices; of a tilted case in millimeters of the reference.
        first_mm: position of the first slice along the slices' axis, in the same millimeters as
            ``slice_mm``; the center of a tilted case is at 0.
        middle: ``(x, y)`` of this grid's center in the reference's frame, in half sides; not 0 for a crop.
        slices: number of slices of a tilted case; None: as many as the scan has.
        z_scale: homogenized mm per mm along the scan, a factor of ``slice_mm`` and ``first_mm``; 1 if z is
            not scaled, and for a tilted case.
        plane: of the slices.
    """

    usual: Extent
    size: Extent
    pixel_mm: Millimeters
    slice_mm: Millimeters
    first_mm: float
    middle: tuple[PoseValue, PoseValue] = (0.0, 0.0)
    slices: Extent | None = None
    z_scale: Factor = 1.0
    plane: Plane = "axial"
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    @property
    def world_from_index(self) -> np.ndarray:
        """``(4, 4)`` from ``(x, y, z)`` indices to LPS millimeters."""
        matrix = np.diag([self.pixel_mm, self.pixel_mm, self.slice_mm * self.z_scale, 1.0])
        first_pixel_mm = [0.5 * (c * self.usual - self.size + 1) * self.pixel_mm for c in self.middle]
        matrix[:3, 3] = (*first_pixel_mm, self.first_mm * self.z_scale)
        if self.plane != "axial":
            matrix[:3] = axes_of(self.plane) @ matrix[:3]
        return matrix

    @property
    def homogenized_from_grid(self) -> Tensor:
        """``(3, 3)`` from normalized coordinates of this grid to those of the reference's frame."""
        scale, (x, y) = self.size / self.usual, self.middle
        return torch.tensor([[scale, 0.0, x], [0.0, scale, y], [0.0, 0.0, 1.0]])

    @property
    def frame_from_grid(self) -> Tensor:
        """``(4, 4)`` of a tilted case: from normalized coordinates of this grid to the isotropic frame.

        The isotropic frame has units of half the side of the reference's frame along all three axes.
        """
        assert self.slices is not None, "of a tilted case"
        half = 0.5 * self.usual * self.pixel_mm
        matrix = torch.eye(4)
        plane = self.homogenized_from_grid
        matrix[:2, :2], matrix[:2, 3] = plane[:2, :2], plane[:2, 2]
        matrix[2, 2] = 0.5 * self.slices * self.slice_mm / half
        matrix[2, 3] = (self.first_mm + 0.5 * (self.slices - 1) * self.slice_mm) / half
        return matrix


@dataclass(frozen=True)
class Transform:
    """Everything that is needed to resample a case to its homogenized grid and back.

    Args:
        shape: ``(z, y, x)`` of the scan as stored.
        world_from_index: ``(4, 4)`` of the scan as stored, LPS millimeters.
        axes: for x, y and z of the reoriented volume, the stored axis that it comes from.
        flips: whether each of them is flipped.
        frame: square in the plane of the reoriented slices, mm.
        grid: the homogenized grid.
        poses: theta1 of each reoriented slice (axial: from the feet): angle, two log scales, two shifts.
        tilted: the pose of the whole volume (``geometry/pose.py``) if it has pitch and yaw; ``poses`` are
            then the in-plane poses of the slices, which are not used for resampling.
    """

    shape: Shape
    world_from_index: Matrix
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    frame: Frame
    grid: Grid
    poses: tuple[SlicePose, ...]
    tilted: VolumePose | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def to_text(self) -> str:
        """Return the transform as JSON text, which :meth:`from_text` reads."""
        return TypeAdapter(Transform).dump_json(self).decode()

    @classmethod
    def from_text(cls, text: str) -> "Transform":
        """Read a transform from the text that :meth:`to_text` returns.

        Raises:
            InputError: the text is not a transform.
        """
        try:
            values = with_present_names(json.loads(text), TRANSFORM)
            return TypeAdapter(Transform).validate_json(json.dumps(values))
        except (ValueError, RecursionError) as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else error
            raise InputError(f"expected a transform as text: {problem}") from None

    @property
    def reorientation(self) -> Reorientation:
        """From the stored axes to the reoriented ones."""
        return Reorientation(self.axes, self.flips)

    @property
    def native(self) -> Volume:
        """The scan's own grid, as a volume of zeros that takes no memory."""
        return _empty(self.shape, np.array(self.world_from_index))

    def to_native(self, array: np.ndarray) -> Volume:
        """Return an array ``(z, y, x)`` of the reoriented scan as a volume on the scan's own grid."""
        return self.native.with_array(self.reorientation.undo(array))

    @property
    def homogenized(self) -> Volume:
        """Grid of the homogenized scan, as a volume of zeros that takes no memory."""
        slices = self.grid.slices or len(self.poses)
        return _empty((slices, self.grid.size, self.grid.size), self.grid.world_from_index)

    @property
    def stack_shape(self) -> tuple[int, int, int]:
        """``(z, h, w)`` of the reoriented volume."""
        z, y, x = (self.shape[2 - axis] for axis in reversed(self.axes))
        return z, y, x

    @property
    def slice_shape(self) -> tuple[int, int]:
        """``(h, w)`` of the reoriented slices."""
        return self.stack_shape[1:]

    @property
    def volume_from_frame(self) -> Tensor:
        """``(4, 4)`` of a tilted case: from the isotropic frame to the reoriented volume's coordinates."""
        assert self.tilted is not None, "of a tilted case"
        x, y, z = (float(side) for side in self.native.spacing[list(self.axes)])
        volume_from_frame = self.frame.volume_from_frame(self.stack_shape, (x, y, z))
        return compose(volume_from_frame, matrix_from_pose(torch.tensor(self.tilted)))

    @property
    def volume_from_grid(self) -> Tensor:
        """``(4, 4)`` of a tilted case: from normalized homogenized coordinates to the reoriented volume's."""
        return compose(self.volume_from_frame, self.grid.frame_from_grid)

    @property
    def slice_from_grid(self) -> Tensor:
        """``(z, 3, 3)`` float32 from normalized homogenized coordinates to those of the reoriented slices.

        It is slice_from_frame · theta1 · homogenized_from_grid. Samplers use it to homogenize, and its
        inverse to restore.
        """
        x, y, _ = (float(side) for side in self.native.spacing[list(self.axes)])
        slice_from_frame = self.frame.slice_from_frame(self.slice_shape, (x, y))
        theta1 = matrix_from_pose(torch.tensor(self.poses, dtype=torch.float32))
        return compose(slice_from_frame, theta1, self.grid.homogenized_from_grid)

    @property
    def input_from_grid(self) -> Tensor:
        """``volume_from_grid``, ``(4, 4)``, of a tilted case; else ``slice_from_grid``, ``(z, 3, 3)``."""
        return self.slice_from_grid if self.tilted is None else self.volume_from_grid


def _empty(shape: tuple[int, int, int], world_from_index: np.ndarray) -> Volume:
    return Volume(np.broadcast_to(np.zeros((), dtype=np.uint8), shape), world_from_index)
