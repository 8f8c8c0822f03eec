"""The square in which all slices of a case are seen: a center and a field of view in millimeters."""

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
        """``(3, 3)`` float32 from normalized frame to normalized slice coordinates; undoes the anisotropy.

        Args:
            shape: ``(h, w)`` of the slice.
            spacing: ``(x, y)`` of the slice in mm.
        """
        h, w = shape
        extent = (w * spacing[0], h * spacing[1])
        # Voxel center 0 lies half a pixel inside the image's outer edge, where normalized -1 is.
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
        """``(4, 4)`` float32 from the isotropic frame of a volume to a stored stack's normalized coordinates.

        The isotropic frame has units of half the square's side along all three axes, with its origin in the
        square's center and in the middle of the stack. Along x and y both are the same.

        Args:
            slices: of the stack, all of them.
            distance: between the middles of neighboring slices, mm.
        """
        return torch.diag(torch.tensor([1.0, 1.0, self.fov_mm / (slices * distance), 1.0]))

    def volume_from_frame(self, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Tensor:
        """``(4, 4)`` float32 from the isotropic frame to normalized coordinates of the reoriented volume.

        Args:
            shape: ``(z, y, x)`` of the volume.
            spacing: ``(x, y, z)`` in mm.
        """
        matrix = self.stack_from_frame(shape[0], spacing[2])
        plane = self.slice_from_frame((shape[1], shape[2]), (spacing[0], spacing[1]))
        matrix[:2, :2], matrix[:2, 3] = plane[:2, :2], plane[:2, 2]
        return matrix
