"""Training on whole volumes: targets, objectives and transforms, the counterparts of those for slices."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isopose.data.slices import Slices
from isopose.data.volumes import VolumeBatch, Volumes
from isopose.geometry.box import box_from_matrix, box_of_mask, jittered, matrix_from_box, mirrored
from isopose.geometry.pose import LOG_SCALES, POSE_SIZES, ROLL, add_residual
from isopose.geometry.warp import compose, warp
from isopose.labels import mirrored_classes
from isopose.models.pipeline import most_probable
from isopose.models.volume import VolumePipeline, crop_shape, restore_slices
from isopose.ranks import gathered
from isopose.scan.poses import TURNED
from isopose.scan.volume import places, volume_pose
from isopose.training.losses import crop_loss, level_weight, segmentation_loss
from isopose.training.objectives import dice_by_label
from isopose.training.transforms import slices_of_scan

#: Pose jitter at strength 1: roll, pitch, yaw in radians, log scales, shifts in half sides of the frame.
#: Pitch and yaw of patients vary less than the roll.
POSE3D_JITTER = (0.17, 0.09, 0.09, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
#: Numbers by which a volume is disturbed: those of the pose, five of the crop, one of mirroring.
NOISE3D = POSE_SIZES[3] + 5 + 1


class VolumeCropObjective(nn.Module):
    """STN2 of volumes: the crop and its matrix agree with those of the labels' box (Eq. 2)."""

    def __init__(self, pipeline: VolumePipeline) -> None:
        super().__init__()
        self.crop = pipeline.crop
        self.pipeline = (pipeline,)  # used, and no part of this module

    def forward(self, batch: VolumeBatch, noise: Tensor) -> Tensor:  # noqa: ARG002 - one signature for all
        """The loss of a batch."""
        image, mask, target, found = self._seen(batch)
        theta2 = self.crop(image, mask)[found]
        size = tuple(image.shape[2:])
        crop, target_crop = (
            warp(image[found], theta, size, fill=self.pipeline[0].air) for theta in (theta2, target[found])
        )
        return crop_loss(crop, target_crop, theta2, target[found], self.crop.config)

    def judge(self, volumes: Volumes, batches: Iterable[VolumeBatch]) -> dict[str, float]:  # noqa: ARG002
        """Mean overlap (intersection over union) of predicted and target boxes; nothing without any."""
        values = []
        for batch in batches:
            image, mask, target, found = self._seen(batch)
            values.append(box_overlap(self.crop(image, mask)[found], target[found]))
        overlap = gathered(values)
        return {"box overlap": float(overlap.mean())} if len(overlap) else {}

    def _seen(self, batch: VolumeBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (pipeline,) = self.pipeline
        matrix = homogenizing(pipeline, batch)
        size = self.crop.config.size
        seen = [
            pipeline.homogenize_scan(image, mask, one[None], size)
            for image, mask, one in zip(batch.image, batch.mask, matrix, strict=True)
        ]
        target, found = volume_crop_targets(pipeline, batch)
        return torch.cat([s.image for s in seen]), torch.cat([s.mask for s in seen]), target, found


class VolumeSegmentationObjective(nn.Module):
    """U-Net of volumes: Eq. 3 with deep supervision, in the crop.

    Args:
        pipeline: whose U-Net is trained.
        names: of the classes from 1, under which validation scores are told.
    """

    def __init__(self, pipeline: VolumePipeline, names: Sequence[str]) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.names = tuple(names)
        self.mirror = pipeline.config.unet.mirror
        #: Class of the mirrored structure, class by class; without mirroring names may be any.
        self.partners = list(mirrored_classes(self.names) if self.mirror else range(pipeline.classes))
        self.pipeline = (pipeline,)  # used, and no part of this module

    def forward(self, batch: VolumeBatch, noise: Tensor) -> Tensor:
        """The loss of a batch; ``noise`` ``(N, 15)`` in [-1, 1) disturbs pose and crop and mirrors volumes.

        As in :class:`isopose.training.objectives.SegmentationObjective`, a mirrored volume's paired classes
        are swapped.
        """
        (pipeline,) = self.pipeline
        size = crop_shape(pipeline.config)
        theta = self._disturbed(batch, noise)
        crop = torch.cat([pipeline.cut(i, t[None]) for i, t in zip(batch.image, theta, strict=True)])
        targets = []
        for labels, one, mirror in zip(batch.labels, theta, self._in_mirror(noise), strict=True):
            order = self.partners[1:] if mirror else range(1, pipeline.classes)
            # Not by one_hot, whose integers would take many times a large scan's memory.
            shown = torch.stack([labels == index for index in order], dim=1).float()
            inside = warp(shown, one[None], size)
            targets.append(torch.cat([(1.0 - inside.sum(dim=1, keepdim=True)).clamp(min=0.0), inside], dim=1))
        target = torch.cat(targets)
        loss = torch.zeros((), device=crop.device)
        for level, logits in enumerate(self.unet(crop, deep=True)):
            probabilities = logits.float().softmax(dim=1)
            shrunk = [whole // part for whole, part in zip(size, logits.shape[2:], strict=True)]
            goal = F.avg_pool3d(target, shrunk)
            loss = loss + level_weight(level) * segmentation_loss(probabilities, goal)
        return loss

    def judge(self, volumes: Volumes, batches: Iterable[VolumeBatch]) -> dict[str, float]:
        """Mean Dice over labels and patients in the frame, then each label's; nothing where none is."""
        counts = [
            self._counts(image, labels, theta[None])[:, None]
            for batch in batches
            for image, labels, theta in zip(batch.image, batch.labels, self._theta(batch), strict=True)
        ]
        both, predicted, truth = gathered(counts, dim=1).double().cpu().numpy()
        return dice_by_label(self.names, volumes.patients, both, predicted, truth)

    def _counts(self, image: Tensor, labels: Tensor, theta: Tensor) -> Tensor:
        """Voxels of each label ``(3, labels)``: in both, in the prediction, in the reference."""
        (pipeline,) = self.pipeline
        probabilities = pipeline.probabilities(pipeline.cut(image, theta))
        depth, height, width = labels.shape[1:]
        total = torch.zeros(3, len(self.names), dtype=torch.int64, device=labels.device)
        for part, values in restore_slices(probabilities, theta, (depth, height, width)):
            predicted = most_probable(values[None])[0]
            for index in range(1, pipeline.classes):
                a, b = predicted == index, labels[0, part] == index
                total[:, index - 1] += torch.stack([(a & b).sum(), a.sum(), b.sum()])
        return total

    def _theta(self, batch: VolumeBatch) -> Tensor:
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        return compose(homogenizing(self.pipeline[0], batch), batch.theta2)

    def _disturbed(self, batch: VolumeBatch, noise: Tensor) -> Tensor:
        """stack from crop with the small errors that pose and crop will have on patients not seen."""
        assert batch.pose is not None, "the U-Net is trained after the pose"
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        (pipeline,) = self.pipeline
        crop = pipeline.config.crop
        residual = noise[:, : POSE_SIZES[3]] * (
            pipeline.config.unet.pose_jitter * noise.new_tensor(POSE3D_JITTER)
        )
        if pipeline.config.pose.scales == 1:
            # No pose will ever stretch one axis more than another there.
            residual[:, LOG_SCALES] = residual[:, LOG_SCALES].mean(dim=1, keepdim=True)
        pose, theta2 = add_residual(batch.pose, residual), batch.theta2
        if crop.enabled:
            shift, scale = crop.jitter_shift, crop.jitter_scale
            theta2 = jittered(theta2, noise[:, POSE_SIZES[3] : -1], shift=shift, scale=scale)
        theta = compose(pipeline.stack_from_homogenized(pose, batch.stack_from_frame), theta2)
        return torch.where(self._in_mirror(noise)[:, None, None], mirrored(theta), theta)

    def _in_mirror(self, noise: Tensor) -> Tensor:
        """Which volumes ``(N,)`` are shown mirrored, each with the configured probability."""
        return noise[:, -1] < 2.0 * self.mirror - 1.0


def homogenizing(pipeline: VolumePipeline, batch: VolumeBatch) -> Tensor:
    """``stack_from_homogenized`` ``(N, 4, 4)`` of a batch whose poses are known."""
    assert batch.pose is not None, "the crop is found after the pose"
    return pipeline.stack_from_homogenized(batch.pose, batch.stack_from_frame)


def volume_crop_targets(pipeline: VolumePipeline, batch: VolumeBatch) -> tuple[Tensor, Tensor]:
    """Target theta2 ``(N, 4, 4)`` of the boxes around the labels, and ``(N,)`` which volumes have labels."""
    config = pipeline.config.crop
    marked = [
        _marked(pipeline, labels, one)
        for labels, one in zip(batch.labels, homogenizing(pipeline, batch), strict=True)
    ]
    box, found = box_of_mask(torch.cat(marked), margin=config.margin)
    return matrix_from_box(box), found


def _marked(pipeline: VolumePipeline, labels: Tensor, matrix: Tensor) -> Tensor:
    """Where any label lies in the homogenized volume, ``(1, D, S, S)``; thin ones count too."""
    config = pipeline.config.crop
    inside = (labels[:, None] > 0).float()
    return warp(inside, matrix[None], (config.depth, config.size, config.size))[:, 0] > 0.25


def box_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union ``(N,)`` of the boxes of two theta2 ``(N, 4, 4)``."""
    one, other = box_from_matrix(a), box_from_matrix(b)
    low, high = torch.maximum(one[:, :3], other[:, :3]), torch.minimum(one[:, 3:], other[:, 3:])
    common = (high - low).clamp(min=0.0).prod(dim=1)
    total = sum((box[:, 3:] - box[:, :3]).prod(dim=1) for box in (one, other))
    return common / (total - common)


@torch.no_grad()
def volume_poses_of(pipeline: VolumePipeline, volumes: Volumes, device: torch.device) -> Tensor:
    """theta1 of every volume as poses ``(N, 9)``, as prediction finds them."""
    least = pipeline.config.predict.min_pose_dice
    poses = []
    for case, stack_from_frame in zip(volumes.cases, volumes.stack_from_frame, strict=True):
        slices = Slices([case])
        single = slices_of_scan(pipeline.pose, slices, np.arange(len(slices)), least, device)
        z = places(slices.rows[:, 1], case.record.shape[0], stack_from_frame)
        poses.append(volume_pose(pipeline.pose, single, z.to(device)).pose)
    return torch.stack(poses).cpu()


def reach_of(volumes: Volumes) -> float:
    """How far the furthest of posed scans reaches along z in the homogenized frame, in half sides."""
    assert volumes.pose is not None, "the reach is known after the poses"
    # stack_from_frame has the reciprocal of a stack's half depth.
    half = 1.0 / volumes.stack_from_frame[:, 2, 2]
    return float((half / volumes.pose[:, LOG_SCALES][:, 2].exp()).max())


@torch.no_grad()
def volume_crops_of(pipeline: VolumePipeline, volumes: Volumes, device: torch.device) -> Tensor:
    """theta2 of every volume ``(N, 4, 4)``."""
    crops = []
    for batch in (each.to(device) for each in volumes.in_order(1)):
        matrix = homogenizing(pipeline, batch)
        crops.append(pipeline.theta2(batch.image[0], batch.mask[0], matrix))
    return torch.cat(crops).cpu()


@torch.no_grad()
def volume_box_of_all(pipeline: VolumePipeline, volumes: Volumes, device: torch.device) -> Tensor:
    """One box ``(6,)`` that holds every training label in the homogenized volume, where none is learned."""
    union: Tensor | None = None
    for batch in (each.to(device) for each in volumes.in_order(1)):
        marked = _marked(pipeline, batch.labels[0], homogenizing(pipeline, batch)[0])
        union = marked if union is None else union | marked
    assert union is not None, "there are training volumes"
    box: Tensor = box_of_mask(union, margin=pipeline.config.crop.margin)[0][0]
    return box


def turned_volumes(volumes: Volumes) -> list[str]:
    """A line for each case that lies turned against its header, so that people look at it."""
    assert volumes.pose is not None, "turned cases are told after poses are estimated"
    return [
        f"{case.record.id}: lies turned by {math.degrees(roll):+.0f} degrees against its header; turned back"
        for case, roll in zip(volumes.cases, volumes.pose[:, ROLL].tolist(), strict=True)
        if abs(roll) > TURNED
    ]
