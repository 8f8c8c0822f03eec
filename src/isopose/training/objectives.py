"""The stages as objectives: what each computes from a batch, and how it is judged.

An objective is a module whose ``forward(batch, noise)`` is the loss and whose ``judge(slices, batches)``
returns numbers for validation, the score first; :mod:`isopose.training.loop` trains any of them the same way.
On several ranks each judges a part of the batches, and all return the same numbers, of all.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isopose.data.slices import Batch, Slices
from isopose.geometry.box import jittered, mirrored
from isopose.geometry.pose import ANGLE, add_residual, isotropic, matrix_from_pose
from isopose.geometry.warp import compose, warp
from isopose.labels import mirrored_classes
from isopose.models.pipeline import Pipeline, frame_from_crop, most_probable, restore
from isopose.models.roll import view
from isopose.ranks import gathered
from isopose.training.losses import (
    crop_loss,
    level_weight,
    one_hot,
    pose_loss,
    roll_loss,
    segmentation_loss,
)
from isopose.training.targets import crop_targets
from isopose.training.turning import estimate_of, judged_turns, summed_up

#: Pose jitter at strength 1: radians, log scale, shift in half sides of the homogenized frame.
POSE_JITTER = (0.17, 0.1, 0.1, 0.1, 0.1)


class PoseObjective(nn.Module):
    """STN1: the homogenized outline agrees with the reference's (Eq. 1)."""

    def __init__(
        self, pipeline: Pipeline, by_hand: Tensor | None = None, truth: Mapping[str, float] | None = None
    ) -> None:
        """Take STN1 from a pipeline.

        Args:
            pipeline: whose STN1 is trained.
            by_hand: poses ``(N, 5)`` of the training rows that were set, NaN where none was.
            truth: case id to the true roll against the reference, radians, where it is known.
        """
        super().__init__()
        self.pose = pipeline.pose
        self.air = pipeline.air
        self.by_hand = by_hand
        self.truth = dict(truth or {})

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:  # noqa: ARG002 - one signature for all stages
        """The loss of a batch; where a pose was set by hand, also its matrix' distance from that."""
        theta = matrix_from_pose(self.pose(batch.image, batch.mask))
        reference = self.pose.reference_mask
        loss = pose_loss(warp(batch.mask, theta, _side(reference)), reference)
        if self.by_hand is None:
            return loss
        by_hand = self.by_hand[batch.rows.cpu()].to(theta.device)
        known = by_hand.isfinite().all(dim=1)
        away = (theta[known] - matrix_from_pose(by_hand[known])).abs().sum(dim=(1, 2))
        return loss + away.sum() / len(known)

    def judge(self, slices: Slices, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean agreement with the reference's outline, learned and of the start alone; how the roll is seen.

        The agreement chooses the weights (Eq. 1); what it hides stands beside it: how far the estimated angle
        follows turns, and how far it is from the moments' and from the true one.
        """
        learned, start, turns = [], [], []
        for batch in batches:
            turns.append(
                judged_turns(self.pose, self.pose.reference_mask, self.air, self.truth, slices, batch)
            )
            before = self.pose.start(batch.image, batch.mask)
            after = self.pose.refine(batch.image, batch.mask, before)
            learned.append(self.pose.agreement(batch.mask, after))
            start.append(self.pose.agreement(batch.mask, before))
        return {
            "mask dice": float(gathered(learned).mean()),
            f"{self.pose.config.start} alone": float(gathered(start).mean()),
            **summed_up(turns),
        }


class RollObjective(nn.Module):
    """Fine-tuning of the shipped roll network on a user's own slices, without any label.

    What the slices of a scan say together is taken as the truth for each; every slice is shown turned from it
    by a known angle. So the network learns how these scanners and patients look, not another upright. How
    sure it is stays what the shipped network says of the same view: slices that agree with their own mean
    would make it surer and surer, and its confidence worthless.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        assert pipeline.pose.roll is not None, "fine-tuning needs the roll network"
        self.roll = pipeline.pose.roll
        self.shown = pipeline.pose.shown
        # As it was shipped, also in a resumed run; used, and no part of this module.
        self.shipped = (copy.deepcopy(self.roll).eval().requires_grad_(False),)

    def train(self, mode: bool = True) -> "RollObjective":
        """As usual, but with the shipped statistics: those of small batches of turned slices are poor."""
        super().train(mode)
        self.roll.eval()
        return self

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:
        """The loss of a batch; ``noise`` ``(N, 9)`` in [-1, 1) turns the slices."""
        assert batch.pose is not None, "fine-tuning follows a first estimate"
        angle = math.pi * noise[:, 0]
        # Every other slice nearly upright, as after a first look.
        angle = torch.where(torch.arange(len(angle), device=angle.device) % 2 == 0, angle, 0.1 * angle)
        seen = view(self.shown(batch.image, batch.mask), batch.pose[:, ANGLE] - angle)
        with torch.no_grad():
            sure = self.shipped[0](seen)[:, :2].norm(dim=1)
        return roll_loss(self.roll(seen)[:, :2], angle, sure)

    def judge(self, slices: Slices, batches: Iterable[Batch]) -> dict[str, float]:  # noqa: ARG002
        """Mean cosine of what a slice says alone and what its scan said at first, and the median angle."""
        errors = []
        for batch in batches:
            assert batch.pose is not None, "fine-tuning follows a first estimate"
            errors.append(self.roll.roll(self.shown(batch.image, batch.mask)).angle - batch.pose[:, ANGLE])
        cosine = gathered(errors).cos()
        return {
            "roll cosine": float(cosine.mean()),
            "roll degrees": math.degrees(float(cosine.clamp(-1.0, 1.0).acos().median())),
        }


class CropObjective(nn.Module):
    """STN2: the crop and its matrix agree with those of the labels' box (Eq. 2), or of one set by hand.

    Slices without a label have no target and do not train the crop.
    """

    def __init__(self, pipeline: Pipeline, by_hand: Tensor | None = None) -> None:
        """``by_hand``: crops ``(N, 3, 3)`` of the training rows that were set, NaN where none was."""
        super().__init__()
        self.crop = pipeline.crop
        self.by_hand = by_hand
        self.config = pipeline.config.crop
        self.classes = pipeline.classes
        self.air = pipeline.air

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:  # noqa: ARG002 - one signature for all stages
        """The loss of a batch."""
        image, mask, target, found = self._seen(batch)
        if self.by_hand is not None:
            by_hand = self.by_hand[batch.rows.cpu()].to(target.device)
            target = torch.where(by_hand.isfinite(), by_hand, target)
        theta2 = self.crop(image, mask)[found]
        crop, target_crop = (
            warp(image[found], theta, _side(image), fill=self.air) for theta in (theta2, target[found])
        )
        return crop_loss(crop, target_crop, theta2, target[found], self.config)

    def judge(self, slices: Slices, batches: Iterable[Batch]) -> dict[str, float]:  # noqa: ARG002
        """Mean overlap (intersection over union) of predicted and target squares; nothing without any."""
        values = []
        for batch in batches:
            image, mask, target, found = self._seen(batch)
            values.append(square_overlap(self.crop(image, mask)[found], target[found]))
        overlap = gathered(values)
        return {"box overlap": float(overlap.mean())} if len(overlap) else {}

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert batch.pose is not None, "the crop is trained after the pose"
        theta1 = matrix_from_pose(batch.pose)
        size = (self.config.size, self.config.size)
        image = warp(batch.image, theta1, size, fill=self.air)
        mask = warp(batch.mask, theta1, size)
        target, found = crop_targets(batch, batch.pose, self.config.size, self.config.margin, self.classes)
        return image, mask, target, found


class JointObjective(nn.Module):
    """Pose and crop from one look: Eq. 1 + Eq. 2, from poses that the start gave the scan.

    The crop's target is the labels' box in the pose just predicted. That pose is taken as given there, so
    that Eq. 1 alone decides the pose and no error of the crop is made up for by a wrong pose; what the two
    share is the network. Slices without a label train the pose only.
    """

    def __init__(self, pipeline: Pipeline, truth: Mapping[str, float] | None = None) -> None:
        """Take the joint network from a pipeline; ``truth`` as for :class:`PoseObjective`."""
        super().__init__()
        assert pipeline.joint is not None, "only with stn=joint"
        # None where the shipped network sees the roll, of which this one regresses a small rest.
        self.estimate = estimate_of(pipeline)
        self.truth = dict(truth or {})
        # The one part that learns; the rest of the pipeline is used, and no part of this module.
        self.joint = pipeline.joint
        self.look = pipeline.look
        self.agreement = pipeline.pose.agreement
        self.reference = pipeline.pose.reference_mask
        self.config = pipeline.config
        self.classes = pipeline.classes
        self.air = pipeline.air

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:  # noqa: ARG002 - one signature for all stages
        """The loss of a batch."""
        pose, theta2, target, found = self._seen(batch)
        outline = warp(batch.mask, matrix_from_pose(pose), _side(self.reference))
        loss = pose_loss(outline, self.reference)
        size = (self.config.crop.size, self.config.crop.size)
        theta1, theta2, target = matrix_from_pose(pose.detach()[found]), theta2[found], target[found]
        # Straight from the frame, as the U-Net's input is.
        crop, target_crop = (
            warp(batch.image[found], compose(theta1, theta), size, fill=self.air)
            for theta in (theta2, target)
        )
        return loss + crop_loss(crop, target_crop, theta2, target, self.config.crop)

    def judge(self, slices: Slices, batches: Iterable[Batch]) -> dict[str, float]:
        """The mean of agreement and overlap, each, the start's agreement alone, and the roll if it learns."""
        learned, start, overlap, turns = [], [], [], []
        for batch in batches:
            if self.estimate is not None:
                turns.append(judged_turns(self.estimate, self.reference, self.air, self.truth, slices, batch))
            assert batch.pose is not None, "the joint network starts from a first estimate"
            pose, theta2, target, found = self._seen(batch)
            learned.append(self.agreement(batch.mask, pose))
            start.append(self.agreement(batch.mask, batch.pose))
            overlap.append(square_overlap(theta2[found], target[found]))
        parts = {"mask dice": float(gathered(learned).mean())}
        squares = gathered(overlap)
        if len(squares):
            parts["box overlap"] = float(squares.mean())
        alone = {f"{self.config.pose.start} alone": float(gathered(start).mean())}
        roll = summed_up(turns) if turns else {}
        return {"pose and crop": sum(parts.values()) / len(parts), **parts, **alone, **roll}

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert batch.pose is not None, "the joint network starts from a first estimate"
        pose, theta2 = self.look(batch.image, batch.mask, batch.pose)
        crop = self.config.crop
        target, found = crop_targets(batch, pose.detach(), crop.size, crop.margin, self.classes)
        return pose, theta2, target, found


class SegmentationObjective(nn.Module):
    """U-Net: Eq. 3 with deep supervision, in the original pose (native) or in the crop (canonical).

    Args:
        pipeline: whose U-Net is trained.
        names: of the classes from 1, under which validation scores are told; else their numbers.
    """

    def __init__(self, pipeline: Pipeline, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = tuple(names) or tuple(str(label) for label in range(1, pipeline.classes))
        self.unet = pipeline.unet
        self.config = pipeline.config
        self.classes = pipeline.classes
        self.air = pipeline.air
        #: Class of the mirrored structure, class by class; without mirroring names may be any.
        self.partners = list(mirrored_classes(self.names) if self.config.unet.mirror else range(self.classes))

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:
        """The loss of a batch; ``noise`` ``(N, 9)`` in [-1, 1) disturbs pose and crop and mirrors slices.

        A mirrored slice is seen through the mirrored transform, and what its labels name left is right there:
        so the loss is that of the flipped crop and the flipped target with paired classes swapped.
        """
        size = (self.config.unet_size, self.config.unet_size)
        theta = self._disturbed(batch, noise)
        crop = warp(batch.image, theta, size, fill=self.air).contiguous(memory_format=torch.channels_last)
        outputs = self.unet(crop, deep=True)
        labels = one_hot(batch.labels, self.classes)
        if self.config.unet.mirror:
            in_mirror = self._in_mirror(noise)[:, None, None, None]
            labels = torch.where(in_mirror, labels[:, self.partners], labels)
        native = self.config.unet.loss_space == "native"
        target = labels if native else warped_target(labels, theta, size)
        loss = torch.zeros((), device=crop.device)
        for level, logits in enumerate(outputs):
            probabilities = logits.float().softmax(dim=1)
            goal = F.avg_pool2d(target, 2**level)
            if native:
                # Means of neighbors would hide a chequered answer from the loss: docs/pipeline.md, "U-Net".
                probabilities = restore(probabilities, theta, _side(goal), mode="nearest")
            loss = loss + level_weight(level) * segmentation_loss(probabilities, goal)
        return loss

    def judge(self, slices: Slices, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean Dice over labels and patients in the frame, then each label's; nothing where none is."""
        counts: list[Tensor] = []
        for batch in batches:
            theta = self._theta(batch)
            size = (self.config.unet_size, self.config.unet_size)
            crop = warp(batch.image, theta, size, fill=self.air).contiguous(memory_format=torch.channels_last)
            probabilities = self.unet(crop)[0].float().softmax(dim=1)
            restored = restore(probabilities, theta, (batch.labels.shape[1], batch.labels.shape[2]))
            classes = most_probable(restored)
            predicted, truth = one_hot(classes, self.classes), one_hot(batch.labels, self.classes)
            counts.append(
                torch.stack([(predicted * truth).sum((2, 3)), predicted.sum((2, 3)), truth.sum((2, 3))])
            )
        both, predicted_sum, truth_sum = gathered(counts, dim=1)[:, :, 1:].cpu().numpy()
        return dice_by_label(self.names, slices.patients, both, predicted_sum, truth_sum)

    def _theta(self, batch: Batch) -> Tensor:
        assert batch.pose is not None, "the U-Net is trained after the pose"
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        return frame_from_crop(batch.pose, batch.theta2)

    def _disturbed(self, batch: Batch, noise: Tensor) -> Tensor:
        """theta1 · theta2 with the small errors that pose and crop will have on patients not seen.

        Where a slice is mirrored, of the transform so disturbed (:func:`isopose.geometry.box.mirrored`).
        """
        assert batch.pose is not None, "the U-Net is trained after the pose"
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        crop = self.config.crop
        spread = self.config.unet.pose_jitter * noise.new_tensor(POSE_JITTER)
        residual = noise[:, :5] * spread
        if self.config.pose.scales == 1:
            # No pose will ever stretch one axis more than the other there.
            residual = isotropic(residual)
        pose, theta2 = add_residual(batch.pose, residual), batch.theta2
        if crop.enabled:
            theta2 = jittered(theta2, noise[:, 5:8], shift=crop.jitter_shift, scale=crop.jitter_scale)
        theta = frame_from_crop(pose, theta2)
        return torch.where(self._in_mirror(noise)[:, None, None], mirrored(theta), theta)

    def _in_mirror(self, noise: Tensor) -> Tensor:
        """Which slices ``(N,)`` are shown mirrored, each with the configured probability."""
        return noise[:, 8] < 2.0 * self.config.unet.mirror - 1.0


def warped_target(labels: Tensor, frame_from_crop: Tensor, size: tuple[int, int]) -> Tensor:
    """One-hot labels warped once into the crop: the canonical space's soft target, background elsewhere."""
    inside = warp(labels[:, 1:], frame_from_crop, size)
    return torch.cat([(1.0 - inside.sum(dim=1, keepdim=True)).clamp(min=0.0), inside], dim=1)


def patient_dice(
    patients: Sequence[str], both: np.ndarray, predicted: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Dice ``(patients, labels)`` over all slices of a patient together; NaN where neither has the label.

    Args:
        patients: of each slice.
        both: ``(slices, labels)`` pixels in both, likewise ``predicted`` and ``truth``.
        predicted: pixels in the prediction.
        truth: pixels in the reference.
    """
    rows = []
    for patient in sorted(set(patients)):
        mine = np.array(patients) == patient
        with np.errstate(invalid="ignore"):
            rows.append(2.0 * both[mine].sum(0) / (predicted[mine].sum(0) + truth[mine].sum(0)))
    return np.stack(rows)


def dice_by_label(
    names: Sequence[str], patients: Sequence[str], both: np.ndarray, predicted: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """Mean of all labels' Dice, then each label's over the patients; see :func:`patient_dice`."""
    dice = patient_dice(patients, both, predicted, truth)
    by_label = {
        f"dice {name}": float(np.nanmean(of_label))
        for name, of_label in zip(names, dice.T, strict=True)
        if not np.isnan(of_label).all()
    }
    return {"dice": float(np.mean(list(by_label.values()))), **by_label} if by_label else {}


def square_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union ``(N,)`` of the squares of two theta2 ``(N, 3, 3)``."""
    low = torch.maximum(a[:, :2, 2] - a[:, 0, 0, None], b[:, :2, 2] - b[:, 0, 0, None])
    high = torch.minimum(a[:, :2, 2] + a[:, 0, 0, None], b[:, :2, 2] + b[:, 0, 0, None])
    common = (high - low).clamp(min=0.0).prod(dim=1)
    return common / (4.0 * a[:, 0, 0].square() + 4.0 * b[:, 0, 0].square() - common)


def _side(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]
