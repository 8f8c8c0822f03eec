"""The three networks for whole volumes: x_stack = stack_from_frame · theta1 · reach · theta2 · x_crop.

The homogenized volume is seen in normalized coordinates: -1 to 1 in plane as in 2D, and along z as far as the
training scans reached (``reach``, in half sides of the frame). One resampling in, one out, as for slices.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from isopose.config import Config
from isopose.geometry.overlap import soft_dice
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import compose, invert, warp, whole_from_slab
from isopose.models.pipeline import HomogenizedSlices, Pipeline, restore

#: Voxels that are restored at a time (48 MB of sampling grid), so that memory does not grow with the scan.
CHUNK = 4_000_000


class VolumePipeline(Pipeline):
    """Pose, crop and segmentation of volumes; theta1 and theta2 are ``(4, 4)``.

    Where the pipeline of slices takes a pose, this one takes it as ``stack_from_homogenized``, for only the
    matrix knows the spacing of a scan's slices.

    Args:
        given: see :class:`Pipeline`; of a configuration with ``dims=3``.
    """

    reach: Tensor

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.register_buffer("reach", torch.ones(()))

    def stack_from_homogenized(self, pose: Tensor, stack_from_frame: Tensor) -> Tensor:
        """``(N, 4, 4)`` from the homogenized volume to a stack, of poses ``(N, 9)``.

        Args:
            pose: of the scans.
            stack_from_frame: ``(N, 4, 4)`` or ``(4, 4)``, which undoes the spacing: of the stored stack, or
                of the scan's own grid (``geometry/frame.py``).
        """
        one = torch.ones_like(self.reach)
        return compose(
            stack_from_frame, matrix_from_pose(pose), torch.diag(torch.stack([one, one, self.reach, one]))
        )

    def homogenize_scan(self, image: Tensor, mask: Tensor, pose: Tensor, size: int) -> HomogenizedSlices:
        """Stacks ``(N, 1, Z, S, S)`` warped by ``stack_from_homogenized`` ``(N, 4, 4)``, as STN2 sees them.

        ``size`` is that in plane, ``crop.depth`` that along z.
        """
        shape = (self.config.crop.depth, size, size)
        return HomogenizedSlices(
            pose, warp(image, pose, shape, fill=self.air), warp(mask.to(image.dtype), pose, shape)
        )

    def cut(self, image: Tensor, frame_from_crop: Tensor) -> Tensor:
        """The U-Net's input ``(N, 1, D, M, M)``, straight from the stack by one resampling."""
        return warp(image, frame_from_crop, crop_shape(self.config), fill=self.air)

    def agreement(self, mask: Tensor, stack_from_homogenized: Tensor) -> Tensor:
        """Eq. 1 of each homogenized slice that shows a body with the reference's outline, the mean ``()``.

        Args:
            mask: ``(1, 1, Z, S, S)`` of one scan.
            stack_from_homogenized: ``(1, 4, 4)``.
        """
        reference = self.pose.reference_mask
        side = reference.shape[-1]
        shape = (self.config.crop.depth, side, side)
        slices = warp(mask, stack_from_homogenized, shape)[0, 0]
        area = slices.flatten(1).sum(dim=1)
        shown = slices[area > 0.5 * area.max()]
        return soft_dice(shown, reference[0]).mean()


def crop_shape(config: Config) -> tuple[int, int, int]:
    """``(d, h, w)`` of the U-Net's input."""
    return config.unet.depth, config.unet_size, config.unet_size


def pipeline_for(config: Config, *given: Any, **named: Any) -> Pipeline:
    """The pipeline of slices or of volumes, as the configuration says; the rest see :class:`Pipeline`."""
    return (VolumePipeline if config.dims == 3 else Pipeline)(config, *given, **named)


def restore_slices(
    probabilities: Tensor, volume_from_crop: Tensor, shape: tuple[int, int, int], *, chunk: int = CHUNK
) -> Iterator[tuple[slice, Tensor]]:
    """Bring a crop's probabilities onto a scan's own grid, some slices at a time.

    Args:
        probabilities: ``(1, classes, D, M, M)``.
        volume_from_crop: ``(1, 4, 4)`` to normalized coordinates of the scan's grid.
        shape: ``(z, y, x)`` of that grid.
        chunk: voxels at a time.

    Yields:
        Which slices, and their probabilities ``(classes, n, y, x)``, which sum to 1.
    """
    slices, height, width = shape
    step = max(1, chunk // (height * width))
    for first in range(0, slices, step):
        last = min(first + step, slices)
        volume_from_slab = whole_from_slab(first, last, slices).to(probabilities.device)
        slab_from_crop = compose(invert(volume_from_slab), volume_from_crop)
        yield slice(first, last), restore(probabilities, slab_from_crop, (last - first, height, width))[0]
