"""The frame: a square in the plane of the slices, laid around the body, that all slices of a case share."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """A square in the plane of the slices of a reoriented volume.

    In-plane millimeters are ``(x, y) = index * spacing`` of the reoriented volume, at voxel centers.

    Args:
        center_mm: ``(x, y)`` of the square's center.
        fov_mm: length of its side.
        size: pixels along its side.
    """

    center_mm: tuple[float, float]
    fov_mm: float
    size: int

    @property
    def pixel_mm(self) -> float:
        """Side of a pixel in mm."""
        return self.fov_mm / self.size

    def slice_from_frame(self, shape: tuple[int, int], spacing: tuple[float, float]) -> Tensor:
        """Return the ``(3, 3)`` float32 matrix from normalized frame to normalized slice coordinates.

        It accounts for pixels that are not square.

        Args:
            shape: ``(h, w)`` of the slice.
            spacing: ``(x, y)`` of the slice in mm.
        """
        h, w = shape
        extent = (w * spacing[0], h * spacing[1])
        # The center of voxel 0 lies half a pixel inside the image's outer edge, which is -1 in normalized
        # coordinates.
        shift = [2.0 * (self.center_mm[a] + spacing[a] / 2.0) / extent[a] - 1.0 for a in (0, 1)]
        return torch.tensor(
            [
                [self.fov_mm / extent[0], 0.0, shift[0]],
                [0.0, self.fov_mm / extent[1], shift[1]],
                [0.0, 0.0, 1.0],
            ],
            dtype=torch.float32,
        )

    def stack_from_frame(self, slices: int, distance: float) -> Tensor:
        """Return the ``(4, 4)`` float32 matrix from a volume's isotropic frame to a stored stack.

        The isotropic frame has units of half the square's side along all three axes; its origin is the
        square's center, in the middle of the stack. The stack has normalized coordinates; along x and y both
        are the same.

        Args:
            slices: number of slices of the stack.
            distance: between the centers of neighboring slices, mm.
        """
        return torch.diag(torch.tensor([1.0, 1.0, self.fov_mm / (slices * distance), 1.0]))

    def volume_from_frame(self, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Tensor:
        """Return the ``(4, 4)`` float32 matrix from the isotropic frame to the reoriented volume.

        The volume has normalized coordinates, see :meth:`stack_from_frame`.

        Args:
            shape: ``(z, y, x)`` of the volume.
            spacing: ``(x, y, z)`` in mm.
        """
        matrix = self.stack_from_frame(shape[0], spacing[2])
        plane = self.slice_from_frame((shape[1], shape[2]), (spacing[0], spacing[1]))
        matrix[:2, :2], matrix[:2, 3] = plane[:2, :2], plane[:2, 2]
        return matrix
