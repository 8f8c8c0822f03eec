"""The computation graphs of an exported model, from frames in the scan's values to labels in the frames.

There are two graphs each for models of slices and of volumes. The first takes a whole scan and returns theta1
· theta2 of each slice or of the scan; the second crops, segments and restores with it.
"""

import numpy as np
import torch
from torch import Tensor, nn

from isopose.data.normalization import Intensity, Scaling
from isopose.geometry.warp import compose
from isopose.models.folder import Model
from isopose.models.pipeline import frame_from_crop
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.models.restore import restore
from isopose.scan.poses import INITIAL_SLICES, initial_roll, scan_poses, scan_transforms
from isopose.scan.volume import volume_pose


class Normalize(nn.Module):
    """Normalize tensors as :mod:`isopose.data.normalization` does arrays.

    Args:
        scaling: of the model's channel: one scale for all scans, or a scale of each scan.
    """

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.scaling = scaling

    def forward(self, values: Tensor, scale: Tensor | None = None) -> Tensor:
        """Clip and z-score values of any shape.

        Args:
            values: as scanned.
            scale: ``(4,)`` low, high, mean and sd of the scan, where each scan has its own.
        """
        if isinstance(self.scaling, Intensity):
            fixed = self.scaling
            return (values.clamp(fixed.low, fixed.high) - fixed.mean) / max(fixed.sd, 1e-8)
        assert scale is not None, "an input of the graphs where each scan has its own"
        low, high, mean, sd = scale.unbind()
        normalized = (values.clamp(low, high) - mean) / sd.clamp(min=1e-8)
        return normalized.clamp(self.scaling.air, self.scaling.top)


class _Graph(nn.Module):
    """Networks, normalization and label values that all graphs use.

    Attributes:
        values: ``(classes,)`` uint8, the stored label value of each class.
    """

    values: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.normalize = Normalize(model.fingerprint.channels[0].scale)
        self.pipeline = model.pipeline
        self.config = model.config
        classes = np.arange(model.labels.classes)
        self.register_buffer("values", torch.from_numpy(model.labels.to_values(classes)))


class PoseGraph(_Graph):
    """STN1 and STN2 of all slices of a scan."""

    def forward(
        self, values: Tensor, mask: Tensor, z_mm: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return theta1 · theta2 ``(Z, 3, 3)`` and the confidence of the poses ``(Z,)``.

        Args:
            values: ``(Z, 1, S, S)`` float32 frames, feet to head, of slices that show a body.
            mask: ``(Z, 1, S, S)`` float32, foreground.
            z_mm: ``(Z,)`` positions along the scan.
            scale: ``(4,)``, see :class:`Normalize`.
        """
        image = self.normalize(values, scale)
        slices = _slice_poses(self.pipeline.pose, image, mask, self.config.predict.min_pose_dice)
        initial, confidence, _ = scan_poses(self.pipeline.pose, slices, z_mm)
        transforms = self.pipeline.transforms(image, mask, initial)
        pose, theta2 = scan_transforms(self.config, initial, transforms, z_mm)
        return frame_from_crop(pose, theta2), confidence


class SegmentGraph(_Graph):
    """Crop, segment with the U-Net, and restore to the frame."""

    def forward(
        self, values: Tensor, frame_from_crop: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return label values ``(N, S, S)`` uint8 and probabilities ``(N, classes, S, S)`` in the frame.

        Args:
            values: ``(N, 1, S, S)`` float32 frames.
            frame_from_crop: ``(N, 3, 3)``, from :class:`PoseGraph`.
            scale: ``(4,)``, see :class:`Normalize`.
        """
        crop = self.pipeline.cut(self.normalize(values, scale), frame_from_crop)
        size = (values.shape[2], values.shape[3])
        probabilities = restore(self.pipeline.probabilities(crop), frame_from_crop, size)
        return self.values[probabilities.argmax(dim=1)], probabilities


class VolumePoseGraph(_Graph):
    """STN1 and STN2 of a scan as a whole."""

    def forward(
        self, values: Tensor, mask: Tensor, shown: Tensor, apart: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return theta1 · theta2 ``(1, 4, 4)``, ``stack_from_crop``, and the confidence ``(1,)``.

        Args:
            values: ``(Z, 1, S, S)`` float32 frames of all slices, feet to head.
            mask: ``(Z, 1, S, S)`` float32, foreground.
            shown: ``(K,)`` int64, indices of the slices with a body, in order.
            apart: ``(1,)`` distance between neighboring slices, in sides of the frame.
            scale: ``(4,)``, see :class:`Normalize`.
        """
        pipeline = self.pipeline
        image = self.normalize(values, scale)
        count = image.shape[0]
        # As Frame.stack_from_frame and scan.volume.slice_positions, for a dynamic number of slices.
        one = torch.ones_like(apart)
        stack_from_frame = torch.diag(torch.cat([one, one, one / (count * apart), one]))
        z = 2.0 * apart * (shown + 0.5 - 0.5 * count)
        slices = _slice_poses(pipeline.pose, image[shown], mask[shown], self.config.predict.min_pose_dice)
        pose, confidence, _ = volume_pose(pipeline.pose, slices, z)
        stack_from_homogenized = pipeline.input_from_homogenized(pose[None], stack_from_frame)
        stack, body = (slices.transpose(0, 1)[None] for slices in (image, mask))
        theta2 = pipeline.theta2(stack, body, stack_from_homogenized)
        return compose(stack_from_homogenized, theta2), confidence[None]


class VolumeSegmentGraph(_Graph):
    """Crop, segment with the U-Net, and restore to the stack of frames."""

    def forward(
        self, values: Tensor, shown: Tensor, stack_from_crop: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return label values ``(Z, S, S)`` uint8 and probabilities ``(Z, classes, S, S)`` in the frames.

        Args:
            values: ``(Z, 1, S, S)`` float32 frames, as for :class:`VolumePoseGraph`.
            shown: ``(K,)`` int64, indices of the slices with a body; all others become background.
            stack_from_crop: ``(1, 4, 4)``, from :class:`VolumePoseGraph`.
            scale: ``(4,)``, see :class:`Normalize`.
        """
        stack = self.normalize(values, scale).transpose(0, 1)[None]
        crop = self.pipeline.probabilities(self.pipeline.cut(stack, stack_from_crop))
        probabilities = restore(crop, stack_from_crop, (values.shape[0], values.shape[2], values.shape[3]))
        body = torch.zeros(values.shape[0], device=values.device).scatter(0, shown, 1.0)[:, None, None, None]
        background = torch.eye(self.pipeline.classes, 1, device=values.device)[None, :, :, None]
        slices = body * probabilities[0].transpose(0, 1) + (1.0 - body) * background
        return self.values[slices.argmax(dim=1)], slices


def _slice_poses(
    transformer: PoseTransformer, image: Tensor, mask: Tensor, min_agreement: float
) -> SlicePoses:
    """Estimate the poses of all slices at once; see :func:`isopose.scan.poses.slice_poses`."""
    initial = None
    if transformer.roll is not None and transformer.config.per != "slice":
        odd = torch.arange(INITIAL_SLICES, device=image.device) * 2 + 1
        sampled = odd * image.shape[0] // (2 * INITIAL_SLICES)
        initial = initial_roll(transformer, image[sampled], mask[sampled])
    return transformer.estimate(image, mask, min_agreement, initial)
