"""What an exported model computes: everything between frames in Hounsfield units and labels in them.

Two graphs each, for models of slices and of volumes. The first sees a whole scan and gives theta1 · theta2,
of each slice or of the scan; the second cuts, segments and restores by it.
"""

import numpy as np
import torch
from torch import Tensor, nn

from isopose.data.fingerprint import Scale
from isopose.geometry.warp import compose
from isopose.models.folder import Model
from isopose.models.pipeline import frame_from_crop
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.models.restore import restore
from isopose.scan.poses import FIRST, scan_poses, scan_transforms
from isopose.scan.volume import volume_pose


class Normalize(nn.Module):
    """:meth:`isopose.data.fingerprint.Scale.normalize` of tensors."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, hu: Tensor) -> Tensor:
        """Of any shape."""
        return (hu.clamp(self.scale.low, self.scale.high) - self.scale.mean) / max(self.scale.sd, 1e-8)


class _Graph(nn.Module):
    """What all graphs hold of a model."""

    values: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.normalize = Normalize(model.fingerprint.intensity)
        self.pipeline = model.pipeline
        self.config = model.config
        classes = np.arange(model.labels.classes)
        self.register_buffer("values", torch.from_numpy(model.labels.to_values(classes)))


class PoseGraph(_Graph):
    """STN1 and STN2 of all slices of a scan.

    Args:
        model: of slices.
    """

    def forward(self, hu: Tensor, mask: Tensor, z_mm: Tensor) -> tuple[Tensor, Tensor]:
        """theta1 · theta2 ``(Z, 3, 3)`` and how sure the poses are ``(Z,)``.

        Args:
            hu: ``(Z, 1, S, S)`` float32 frames, feet to head, of slices that show a body.
            mask: ``(Z, 1, S, S)`` float32, foreground.
            z_mm: ``(Z,)`` places along the scan.
        """
        image = self.normalize(hu)
        slices = _each(self.pipeline.pose, image, mask, self.config.predict.min_pose_dice)
        start, confidence = scan_poses(self.pipeline.pose, slices, z_mm)
        transforms = self.pipeline.transforms(image, mask, start)
        pose, theta2 = scan_transforms(self.config, start, transforms, z_mm)
        return frame_from_crop(pose, theta2), confidence


class SegmentGraph(_Graph):
    """The cut, the U-Net and the way back to the frame.

    Args:
        model: of slices.
    """

    def forward(self, hu: Tensor, frame_from_crop: Tensor) -> tuple[Tensor, Tensor]:
        """Label values ``(N, S, S)`` uint8 and probabilities ``(N, classes, S, S)``, both in the frame.

        Args:
            hu: ``(N, 1, S, S)`` float32 frames.
            frame_from_crop: ``(N, 3, 3)`` of them, by :class:`PoseGraph`.
        """
        crop = self.pipeline.cut(self.normalize(hu), frame_from_crop)
        size = (hu.shape[2], hu.shape[3])
        probabilities = restore(self.pipeline.probabilities(crop), frame_from_crop, size)
        return self.values[probabilities.argmax(dim=1)], probabilities


class VolumePoseGraph(_Graph):
    """STN1 and STN2 of a scan as a whole.

    Args:
        model: of volumes.
    """

    def forward(self, hu: Tensor, mask: Tensor, shown: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        """theta1 · theta2 ``(1, 4, 4)``, a stack's normalized coordinates from the crop's; ``(1,)`` how sure.

        Args:
            hu: ``(Z, 1, S, S)`` float32 frames of all slices, feet to head.
            mask: ``(Z, 1, S, S)`` float32, foreground.
            shown: ``(K,)`` int64, which slices show a body, in order.
            apart: ``(1,)`` distance of neighboring slices in sides of the frame.
        """
        pipeline = self.pipeline
        image = self.normalize(hu)
        count = image.shape[0]
        # As geometry/frame.py: stack_from_frame, and scan/volume.py: places.
        one = torch.ones_like(apart)
        stack_from_frame = torch.diag(torch.cat([one, one, one / (count * apart), one]))
        z = 2.0 * apart * (shown + 0.5 - 0.5 * count)
        slices = _each(pipeline.pose, image[shown], mask[shown], self.config.predict.min_pose_dice)
        pose, confidence = volume_pose(pipeline.pose, slices, z)
        stack_from_homogenized = pipeline.input_from_homogenized(pose[None], stack_from_frame)
        stack, body = (values.transpose(0, 1)[None] for values in (image, mask))
        theta2 = pipeline.theta2(stack, body, stack_from_homogenized)
        return compose(stack_from_homogenized, theta2), confidence[None]


class VolumeSegmentGraph(_Graph):
    """The cut, the U-Net and the way back to the stack of frames.

    Args:
        model: of volumes.
    """

    def forward(self, hu: Tensor, shown: Tensor, stack_from_crop: Tensor) -> tuple[Tensor, Tensor]:
        """Label values ``(Z, S, S)`` uint8 and probabilities ``(Z, classes, S, S)``, both in the frames.

        Args:
            hu: ``(Z, 1, S, S)`` float32 frames, those that :class:`VolumePoseGraph` saw.
            shown: ``(K,)`` likewise; all other slices are background.
            stack_from_crop: ``(1, 4, 4)``, by it.
        """
        stack = self.normalize(hu).transpose(0, 1)[None]
        crop = self.pipeline.probabilities(self.pipeline.cut(stack, stack_from_crop))
        probabilities = restore(crop, stack_from_crop, (hu.shape[0], hu.shape[2], hu.shape[3]))
        body = torch.zeros(hu.shape[0], device=hu.device).scatter(0, shown, 1.0)[:, None, None, None]
        background = torch.eye(self.pipeline.classes, 1, device=hu.device)[None, :, :, None]
        slices = body * probabilities[0].transpose(0, 1) + (1.0 - body) * background
        return self.values[slices.argmax(dim=1)], slices


def _each(transformer: PoseTransformer, image: Tensor, mask: Tensor, least: float) -> SlicePoses:
    """:func:`isopose.scan.poses.slice_poses` of slices that are all there."""
    start = None
    if transformer.roll is not None and transformer.config.per != "slice":
        few = (torch.arange(FIRST, device=image.device) * 2 + 1) * image.shape[0] // (2 * FIRST)
        start = transformer.roll_of_scan(image[few], mask[few])
    return transformer.estimate(image, mask, least, start)
