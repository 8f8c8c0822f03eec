"""Coronal and sagittal stacks of phantoms: thick slices, each the mean of a block of nearly cubic voxels."""

from dataclasses import dataclass, replace

import numpy as np

from isopose.choices import Plane
from isopose.geometry.volume import Volume
from isopose.phantom.mr import MrScan, rician
from isopose.phantom.render import KIDNEY, TUMOR
from isopose.phantom.scan import PhantomScan

#: Usual thickness of the slices, mm.
THICKNESS_MM = (3.0, 6.0)
#: Fewest voxels across a slice, so that it is thicker than its pixels.
MIN_SLICES = 2


@dataclass(frozen=True)
class ThickStack:
    """How the thick slices of one stack are made from the cubic voxels of a scan.

    Args:
        plane: of the slices.
        scan: the field of view of an axial scan, with voxels as long as its pixels.
        each: number of voxels across a slice.
        count: number of slices.
    """

    plane: Plane
    scan: PhantomScan
    each: int
    count: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(z, y, x)`` of the stack; x and y are those of a slice."""
        return self.count, self.scan.slices, self.scan.size

    @property
    def world_from_index(self) -> np.ndarray:
        """``(4, 4)`` from the stack's indices ``(x, y, z)`` to LPS mm."""
        cubes = np.broadcast_to(np.zeros((), np.uint8), (self.scan.slices, self.scan.size, self.scan.size))
        view = Volume(cubes, self.scan.world_from_index).reoriented(self.plane)
        into = np.diag([1.0, 1.0, float(self.each), 1.0])
        into[2, 3] = self._first + 0.5 * (self.each - 1)
        matrix: np.ndarray = view.world_from_index @ into
        return matrix

    @property
    def _first(self) -> int:
        return (self.scan.size - self.count * self.each) // 2

    def blocks(self, array: np.ndarray) -> np.ndarray:
        """Return the voxels of each slice, ``(count, each, y, x)``, of an array ``(z, y, x)`` of cubes."""
        view = Volume(array, self.scan.world_from_index).reoriented(self.plane).array
        used = view[self._first : self._first + self.count * self.each]
        return used.reshape(self.count, self.each, *used.shape[1:])

    def image(self, array: np.ndarray, mr: MrScan, rng: np.random.Generator) -> np.ndarray:
        """Return the stack of an image that was rendered without noise, with noise, as int16.

        Args:
            array: stored values ``(z, y, x)`` of the cubes.
            mr: noise and gain.
            rng: source of the noise.
        """
        seen = self.blocks(array).mean(axis=1) / mr.gain
        stored: np.ndarray = np.rint(mr.gain * rician(seen, mr.noise, rng)).clip(0, 32767).astype(np.int16)
        return stored

    def labels(self, array: np.ndarray) -> np.ndarray:
        """Return the labels of the stack, uint8: for each block of voxels the label that fills most of it.

        Kidney and tumor together must fill more than half of a block. If they fill exactly half, its first
        voxel decides, so that volumes are kept on average.
        """
        blocks = self.blocks(array)
        kidney, tumor = (blocks == KIDNEY).sum(axis=1), (blocks == TUMOR).sum(axis=1)
        twice = 2 * (kidney + tumor)
        found = (twice > self.each) | ((twice == self.each) & (blocks[:, 0] > 0))
        made: np.ndarray = np.where(found, np.where(tumor > kidney, TUMOR, KIDNEY), 0).astype(np.uint8)
        return made


def stack_of(scan: PhantomScan, plane: Plane, slices: int | None, rng: np.random.Generator) -> ThickStack:
    """Return a stack in another plane with the contents of an axial scan.

    Args:
        scan: the axial scan.
        plane: of the stack's slices.
        slices: their number; None: as many as a thickness of 3 to 6 mm needs.
        rng: source of the thickness.
    """
    range_mm = scan.slices * scan.thickness
    count = int(np.ceil(range_mm / scan.pixel))
    middle = scan.origin[2] + 0.5 * (scan.slices - 1) * scan.thickness
    origin = (scan.origin[0], scan.origin[1], middle - 0.5 * (count - 1) * scan.pixel)
    cubes = replace(scan, slices=count, thickness=scan.pixel, origin=origin)
    thickness = float(rng.uniform(*THICKNESS_MM))
    each = max(MIN_SLICES, round(thickness / scan.pixel) if slices is None else scan.size // slices)
    return ThickStack(plane, cubes, each, scan.size // each if slices is None else slices)
