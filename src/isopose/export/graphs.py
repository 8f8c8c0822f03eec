"""The computation graphs of an exported model, from frames in Hounsfield units to labels in the frames.

There are two graphs each for models of slices and of volumes. The first takes a whole scan and returns theta1
· theta2 of each slice or of the scan; the second crops, segments and restores with it.
"""

import numpy as np
import torch
from torch import Tensor, nn

from isopose.data.normalization import Intensity, Scale
from isopose.geometry.warp import compose
from isopose.models.folder import Model
from isopose.models.pipeline import frame_from_crop
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.models.restore import restore
from isopose.scan.poses import FIRST, initial_roll, scan_poses, scan_transforms
from isopose.scan.volume import volume_pose


class Normalize(nn.Module):
    """Normalize tensors as :meth:`isopose.data.normalization.Scale.normalize` does arrays."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, hu: Tensor) -> Tensor:
        """Clip and z-score HU values of any shape."""
        return (hu.clamp(self.scale.low, self.scale.high) - self.scale.mean) / max(self.scale.sd, 1e-8)


class _Graph(nn.Module):
    """The parts of a model that all graphs use."""

    values: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        scale = model.fingerprint.channels[0].scale
        assert isinstance(scale, Intensity), "refused before: a graph knows one scale for all scans"
        self.normalize = Normalize(scale)
        self.pipeline = model.pipeline
        self.config = model.config
        classes = np.arange(model.labels.classes)
        self.register_buffer("values", torch.from_numpy(model.labels.to_values(classes)))


class PoseGraph(_Graph):
    """STN1 and STN2 of all slices of a scan."""

    def forward(self, hu: Tensor, mask: Tensor, z_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Return theta1 · theta2 ``(Z, 3, 3)`` and the confidence of the poses ``(Z,)``.

        Args:
            hu: ``(Z, 1, S, S)`` float32 frames, feet to head, of slices that show a body.
            mask: ``(Z, 1, S, S)`` float32, foreground.
            z_mm: ``(Z,)`` positions along the scan.
        """
        image = self.normalize(hu)
        slices = _slice_poses(self.pipeline.pose, image, mask, self.config.predict.min_pose_dice)
        initial, confidence, _ = scan_poses(self.pipeline.pose, slices, z_mm)
        transforms = self.pipeline.transforms(image, mask, initial)
        pose, theta2 = scan_transforms(self.config, initial, transforms, z_mm)
        return frame_from_crop(pose, theta2), confidence


class SegmentGraph(_Graph):
    """Crop, segment with the U-Net, and restore to the frame."""

    def forward(self, hu: Tensor, frame_from_crop: Tensor) -> tuple[Tensor, Tensor]:
        """Return label values ``(N, S, S)`` uint8 and probabilities ``(N, classes, S, S)`` in the frame.

        Args:
            hu: ``(N, 1, S, S)`` float32 frames.
            frame_from_crop: ``(N, 3, 3)``, from :class:`PoseGraph`.
        """
        crop = self.pipeline.cut(self.normalize(hu), frame_from_crop)
        size = (hu.shape[2], hu.shape[3])
        probabilities = restore(self.pipeline.probabilities(crop), frame_from_crop, size)
        return self.values[probabilities.argmax(dim=1)], probabilities


class VolumePoseGraph(_Graph):
    """STN1 and STN2 of a scan as a whole."""

    def forward(self, hu: Tensor, mask: Tensor, shown: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        """Return theta1 · theta2 ``(1, 4, 4)``, ``stack_from_crop``, and the confidence ``(1,)``.

        Args:
            hu: ``(Z, 1, S, S)`` float32 frames of all slices, feet to head.
            mask: ``(Z, 1, S, S)`` float32, foreground.
            shown: ``(K,)`` int64, indices of the slices with a body, in order.
            apart: ``(1,)`` distance between neighboring slices, in sides of the frame.
        """
        pipeline = self.pipeline
        image = self.normalize(hu)
        count = image.shape[0]
        # The same as stack_from_frame in geometry/frame.py and places in scan/volume.py.
        one = torch.ones_like(apart)
        stack_from_frame = torch.diag(torch.cat([one, one, one / (count * apart), one]))
        z = 2.0 * apart * (shown + 0.5 - 0.5 * count)
        slices = _slice_poses(pipeline.pose, image[shown], mask[shown], self.config.predict.min_pose_dice)
        pose, confidence, _ = volume_pose(pipeline.pose, slices, z)
        stack_from_homogenized = pipeline.input_from_homogenized(pose[None], stack_from_frame)
        stack, body = (values.transpose(0, 1)[None] for values in (image, mask))
        theta2 = pipeline.theta2(stack, body, stack_from_homogenized)
        return compose(stack_from_homogenized, theta2), confidence[None]


class VolumeSegmentGraph(_Graph):
    """Crop, segment with the U-Net, and restore to the stack of frames."""

    def forward(self, hu: Tensor, shown: Tensor, stack_from_crop: Tensor) -> tuple[Tensor, Tensor]:
        """Return label values ``(Z, S, S)`` uint8 and probabilities ``(Z, classes, S, S)`` in the frames.

        Args:
            hu: ``(Z, 1, S, S)`` float32 frames, as for :class:`VolumePoseGraph`.
            shown: ``(K,)`` int64, indices of the slices with a body; all others become background.
            stack_from_crop: ``(1, 4, 4)``, from :class:`VolumePoseGraph`.
        """
        stack = self.normalize(hu).transpose(0, 1)[None]
        crop = self.pipeline.probabilities(self.pipeline.cut(stack, stack_from_crop))
        probabilities = restore(crop, stack_from_crop, (hu.shape[0], hu.shape[2], hu.shape[3]))
        body = torch.zeros(hu.shape[0], device=hu.device).scatter(0, shown, 1.0)[:, None, None, None]
        background = torch.eye(self.pipeline.classes, 1, device=hu.device)[None, :, :, None]
        slices = body * probabilities[0].transpose(0, 1) + (1.0 - body) * background
        return self.values[slices.argmax(dim=1)], slices


def _slice_poses(
    transformer: PoseTransformer, image: Tensor, mask: Tensor, min_agreement: float
) -> SlicePoses:
    """Estimate the poses of all slices at once; see :func:`isopose.scan.poses.slice_poses`."""
    initial = None
    if transformer.roll is not None and transformer.config.per != "slice":
        few = (torch.arange(FIRST, device=image.device) * 2 + 1) * image.shape[0] // (2 * FIRST)
        initial = initial_roll(transformer, image[few], mask[few])
    return transformer.estimate(image, mask, min_agreement, initial)
