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

from isopose.data.samples import Batch, SliceBatch, Slices, Volumes, each_stack
from isopose.geometry.box import box_overlap, jittered, mirrored
from isopose.geometry.pose import ANGLE, POSE_SIZES, add_residual, isotropic, matrix_from_pose
from isopose.geometry.warp import compose, warp
from isopose.labels import mirrored_classes
from isopose.models.pipeline import Networks
from isopose.models.restore import most_probable, restore, restore_slices
from isopose.models.roll import views_at_angle
from isopose.ranks import gathered
from isopose.training.losses import (
    crop_loss,
    deep_supervision_loss,
    one_hot,
    pose_loss,
    roll_loss,
)
from isopose.training.targets import crop_targets, homogenizing
from isopose.training.turning import estimate_of, judged_turns, summed_up

#: Pose jitter at strength 1, by the number of dimensions: radians, log scales, shifts in half sides of the
#: homogenized frame. Pitch and yaw of patients vary less than the roll.
POSE_JITTER = {2: (0.17, 0.1, 0.1, 0.1, 0.1), 3: (0.17, 0.09, 0.09, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)}


def noise_size(dims: int) -> int:
    """Return how many numbers disturb a sample: of the pose, of the crop's sizes and center, of mirroring."""
    return POSE_SIZES[dims] + (2 * dims - 1) + 1


class PoseObjective(nn.Module):
    """STN1: the homogenized outline agrees with the reference's (Eq. 1)."""

    def __init__(
        self, networks: Networks, by_hand: Tensor | None = None, truth: Mapping[str, float] | None = None
    ) -> None:
        """Take STN1 from a networks.

        Args:
            networks: whose STN1 is trained.
            by_hand: poses ``(N, 5)`` of the training rows that were set, NaN where none was.
            truth: case id to the true roll against the reference, radians, where it is known.
        """
        super().__init__()
        self.pose = networks.pose
        self.air = networks.air
        self.by_hand = by_hand
        self.truth = dict(truth or {})

    def forward(self, batch: SliceBatch, noise: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of a batch; where a pose was set by hand, also its matrix' distance from that."""
        theta = matrix_from_pose(self.pose(batch.image, batch.mask))
        reference = self.pose.reference_mask
        loss = pose_loss(warp(batch.mask, theta, tuple(reference.shape[2:])), reference)
        if self.by_hand is None:
            return loss
        by_hand = self.by_hand[batch.rows.cpu()].to(theta.device)
        known = by_hand.isfinite().all(dim=1)
        away = (theta[known] - matrix_from_pose(by_hand[known])).abs().sum(dim=(1, 2))
        return loss + away.sum() / len(known)

    def judge(self, slices: Slices, batches: Iterable[SliceBatch]) -> dict[str, float]:
        """Mean agreement with the reference's outline, learned and of the start alone; how the roll is seen.

        The agreement chooses the weights (Eq. 1); what it hides stands beside it: how far the estimated angle
        follows turns, and how far it is from the moments' and from the true one.
        """
        learned, start, turns = [], [], []
        for batch in batches:
            turns.append(
                judged_turns(self.pose, self.pose.reference_mask, self.air, self.truth, slices, batch)
            )
            before = self.pose.initial_pose(batch.image, batch.mask)
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

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        assert networks.pose.roll is not None, "fine-tuning needs the roll network"
        self.roll = networks.pose.roll
        self.roll_input = networks.pose.roll_input
        # As it was shipped, also in a resumed run; used, and no part of this module.
        self.shipped = (copy.deepcopy(self.roll).eval().requires_grad_(False),)

    def train(self, mode: bool = True) -> "RollObjective":
        """As usual, but with the shipped statistics: those of small batches of turned slices are poor."""
        super().train(mode)
        self.roll.eval()
        return self

    def forward(self, batch: SliceBatch, noise: Tensor) -> Tensor:
        """The loss of a batch; ``noise`` ``(N, 9)`` in [-1, 1) turns the slices."""
        assert batch.pose is not None, "fine-tuning follows a first estimate"
        angle = math.pi * noise[:, 0]
        # Every other slice nearly upright, as after a first look.
        angle = torch.where(torch.arange(len(angle), device=angle.device) % 2 == 0, angle, 0.1 * angle)
        seen = views_at_angle(self.roll_input(batch.image, batch.mask), batch.pose[:, ANGLE] - angle)
        with torch.no_grad():
            sure = self.shipped[0](seen)[:, :2].norm(dim=1)
        return roll_loss(self.roll(seen)[:, :2], angle, sure)

    def judge(self, slices: Slices, batches: Iterable[SliceBatch]) -> dict[str, float]:  # noqa: ARG002
        """Mean cosine of what a slice says alone and what its scan said at first, and the median angle."""
        errors = []
        for batch in batches:
            assert batch.pose is not None, "fine-tuning follows a first estimate"
            errors.append(
                self.roll.estimate(self.roll_input(batch.image, batch.mask)).angle - batch.pose[:, ANGLE]
            )
        cosine = gathered(errors).cos()
        return {
            "roll cosine": float(cosine.mean()),
            "roll degrees": math.degrees(float(cosine.clamp(-1.0, 1.0).acos().median())),
        }


class CropObjective(nn.Module):
    """STN2: the crop and its matrix agree with those of the labels' box (Eq. 2), or of one set by hand.

    Slices and volumes without a label have no target and do not train the crop.
    """

    def __init__(self, networks: Networks, by_hand: Tensor | None = None) -> None:
        """Take the networks whose crop is trained, and crops that were set by hand.

        Args:
            networks: of slices or of volumes.
            by_hand: crops ``(N, 3, 3)`` of the training rows, NaN where none was set.
        """
        super().__init__()
        self.crop = networks.crop
        self.by_hand = by_hand
        self.networks = (networks,)  # used, and no part of this module

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:  # noqa: ARG002 - one signature for all stages
        """Return the loss of a batch."""
        image, mask, target, found = self._seen(batch)
        if self.by_hand is not None:
            by_hand = self.by_hand[batch.rows.cpu()].to(target.device)
            target = torch.where(by_hand.isfinite(), by_hand, target)
        theta2 = self.crop(image, mask)[found]
        crop, target_crop = (
            warp(image[found], theta, tuple(image.shape[2:]), fill=self.networks[0].air)
            for theta in (theta2, target[found])
        )
        return crop_loss(crop, target_crop, theta2, target[found], self.crop.config)

    def judge(self, samples: Slices | Volumes, batches: Iterable[Batch]) -> dict[str, float]:  # noqa: ARG002
        """Return the mean overlap (intersection over union) of predicted and target boxes, if any."""
        values = []
        for batch in batches:
            image, mask, target, found = self._seen(batch)
            values.append(box_overlap(self.crop(image, mask)[found], target[found]))
        overlap = gathered(values)
        return {"box overlap": float(overlap.mean())} if len(overlap) else {}

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Homogenized images and masks, target crops, and which samples have a target."""
        (networks,) = self.networks
        matrix = homogenizing(networks, batch)
        masks = (one for one, *_ in each_stack(batch.mask))
        seen = [
            networks.homogenized(image, mask, theta, self.crop.config.size)
            for (image, theta), mask in zip(each_stack(batch.image, matrix), masks, strict=True)
        ]
        image, mask = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return image, mask, *crop_targets(batch.labels, matrix, self.crop.config)


class JointObjective(nn.Module):
    """Pose and crop from one look: Eq. 1 + Eq. 2, from poses that the start gave the scan.

    The crop's target is the labels' box in the pose just predicted. That pose is taken as given there, so
    that Eq. 1 alone decides the pose and no error of the crop is made up for by a wrong pose; what the two
    share is the network. Slices without a label train the pose only.
    """

    def __init__(self, networks: Networks, truth: Mapping[str, float] | None = None) -> None:
        """Take the joint network from a networks; ``truth`` as for :class:`PoseObjective`."""
        super().__init__()
        assert networks.joint is not None, "only with stn=joint"
        # None where the shipped network sees the roll, of which this one regresses a small rest.
        self.estimate = estimate_of(networks)
        self.truth = dict(truth or {})
        # The one part that learns; the rest of the pipeline is used, and no part of this module.
        self.joint = networks.joint
        self.joint_step = networks.joint_step
        self.agreement = networks.pose.agreement
        self.reference = networks.pose.reference_mask
        self.config = networks.config
        self.air = networks.air

    def forward(self, batch: SliceBatch, noise: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of a batch."""
        pose, theta2, target, found = self._seen(batch)
        outline = warp(batch.mask, matrix_from_pose(pose), tuple(self.reference.shape[2:]))
        loss = pose_loss(outline, self.reference)
        size = (self.config.crop.size, self.config.crop.size)
        theta1, theta2, target = matrix_from_pose(pose.detach()[found]), theta2[found], target[found]
        # Straight from the frame, as the U-Net's input is.
        crop, target_crop = (
            warp(batch.image[found], compose(theta1, theta), size, fill=self.air)
            for theta in (theta2, target)
        )
        return loss + crop_loss(crop, target_crop, theta2, target, self.config.crop)

    def judge(self, slices: Slices, batches: Iterable[SliceBatch]) -> dict[str, float]:
        """The mean of agreement and overlap, each, the start's agreement alone, and the roll if it learns."""
        learned, start, overlap, turns = [], [], [], []
        for batch in batches:
            if self.estimate is not None:
                turns.append(judged_turns(self.estimate, self.reference, self.air, self.truth, slices, batch))
            assert batch.pose is not None, "the joint network starts from a first estimate"
            pose, theta2, target, found = self._seen(batch)
            learned.append(self.agreement(batch.mask, pose))
            start.append(self.agreement(batch.mask, batch.pose))
            overlap.append(box_overlap(theta2[found], target[found]))
        parts = {"mask dice": float(gathered(learned).mean())}
        squares = gathered(overlap)
        if len(squares):
            parts["box overlap"] = float(squares.mean())
        alone = {f"{self.config.pose.start} alone": float(gathered(start).mean())}
        roll = summed_up(turns) if turns else {}
        return {"pose and crop": sum(parts.values()) / len(parts), **parts, **alone, **roll}

    def _seen(self, batch: SliceBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert batch.pose is not None, "the joint network starts from a first estimate"
        pose, theta2 = self.joint_step(batch.image, batch.mask, batch.pose)
        return pose, theta2, *crop_targets(batch.labels, matrix_from_pose(pose.detach()), self.config.crop)


class SegmentationObjective(nn.Module):
    """U-Net: Eq. 3 with deep supervision, in the original pose (native) or in the crop (canonical).

    Args:
        networks: whose U-Net is trained, of slices or of volumes.
        names: of the classes from 1, by which validation scores are reported; else their numbers.
    """

    def __init__(self, networks: Networks, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = tuple(names) or tuple(str(label) for label in range(1, networks.classes))
        self.unet = networks.unet
        self.config = networks.config
        self.classes = networks.classes
        #: Class of the mirrored structure, class by class; without mirroring names may be any.
        self.partners = list(mirrored_classes(self.names) if self.config.unet.mirror else range(self.classes))
        self.networks = (networks,)  # used, and no part of this module

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the loss of a batch.

        A mirrored sample is seen through the mirrored transform, and what its labels name left is right
        there. The loss is that of the flipped crop and the flipped target with paired classes exchanged.

        Args:
            batch: slices or volumes whose poses and crops are known.
            noise: ``(N, noise_size(dims))`` in [-1, 1), disturbs pose and crop and mirrors samples.
        """
        theta, in_mirror = self._disturbed(batch, noise), self._in_mirror(noise)
        native = self.config.unet.loss_space == "native"
        targets = []
        for labels, matrices, mirror in each_stack(batch.labels, theta, in_mirror):
            shown = one_hot(labels, self.classes)
            if self.config.unet.mirror:
                chosen = mirror.reshape(-1, *[1] * (shown.ndim - 1))
                shown = torch.where(chosen, shown[:, self.partners], shown)
            targets.append(shown if native else warped_target(shown, matrices, self.config.unet_shape))
        target = torch.cat(targets)

        def level(logits: Tensor) -> tuple[Tensor, Tensor]:
            probabilities = logits.float().softmax(dim=1)
            if not native:
                return probabilities, _shrunk(target, logits.shape[2:])
            side = self.config.unet_size // logits.shape[-1]
            goal = _shrunk(target, [pixels // side for pixels in target.shape[2:]])
            # Means of neighbors would hide a checkered answer from the loss: docs/pipeline.md, "U-Net".
            return restore(probabilities, theta, tuple(goal.shape[2:]), mode="nearest"), goal

        return deep_supervision_loss(map(level, self.unet(self._cut(batch, theta), deep=True)))

    def judge(self, samples: Slices | Volumes, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean Dice over labels and patients in the frame, then each label's, if there is any."""
        counts = [self._counts(batch) for batch in batches]
        both, predicted, truth = gathered(counts, dim=1).double().cpu().numpy()
        return dice_by_label(self.names, samples.patients, both, predicted, truth)

    def _counts(self, batch: Batch) -> Tensor:
        """Voxels of each label ``(3, N, labels)``: in both, in the prediction, in the reference."""
        theta = self._theta(batch)
        probabilities = self.unet(self._cut(batch, theta))[0].float().softmax(dim=1)
        if self.config.dims == 2:
            labels = batch.labels
            predicted = most_probable(restore(probabilities, theta, tuple(labels.shape[1:])))
            return _overlaps(predicted, labels, self.classes)
        counts = []
        for labels, answer, matrix in each_stack(batch.labels, probabilities, theta):
            _, depth, height, width = labels.shape
            parts = [
                _overlaps(most_probable(values[None]), labels[:, part], self.classes)
                for part, values in restore_slices(answer, matrix, (depth, height, width))
            ]
            counts.append(torch.stack(parts).sum(dim=0))
        return torch.cat(counts, dim=1)

    def _cut(self, batch: Batch, theta: Tensor) -> Tensor:
        """The U-Net's input of a batch, in the memory layout that its convolutions want."""
        crop = torch.cat([self.networks[0].cut(*one) for one in each_stack(batch.image, theta)])
        return crop.contiguous(memory_format=torch.channels_last) if crop.ndim == 4 else crop

    def _theta(self, batch: Batch) -> Tensor:
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        return compose(homogenizing(self.networks[0], batch), batch.theta2)

    def _disturbed(self, batch: Batch, noise: Tensor) -> Tensor:
        """Input from crop, with the small errors that pose and crop will have on unseen patients.

        Where a sample is mirrored, the transform disturbed in this way is mirrored
        (:func:`isopose.geometry.box.mirrored`).
        """
        assert batch.pose is not None, "the U-Net is trained after the pose"
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        crop, numbers = self.config.crop, POSE_SIZES[self.config.dims]
        residual = noise[:, :numbers] * (
            self.config.unet.pose_jitter * noise.new_tensor(POSE_JITTER[self.config.dims])
        )
        if self.config.pose.scales == 1:
            # No pose will ever stretch one axis more than the other there.
            residual = isotropic(residual)
        pose, theta2 = add_residual(batch.pose, residual), batch.theta2
        if crop.enabled:
            theta2 = jittered(theta2, noise[:, numbers:-1], shift=crop.jitter_shift, scale=crop.jitter_scale)
        theta = compose(self.networks[0].input_from_homogenized(pose, batch.stack_from_frame), theta2)
        return torch.where(self._in_mirror(noise)[:, None, None], mirrored(theta), theta)

    def _in_mirror(self, noise: Tensor) -> Tensor:
        """Which samples ``(N,)`` are shown mirrored, each with the configured probability."""
        return noise[:, -1] < 2.0 * self.config.unet.mirror - 1.0


def warped_target(labels: Tensor, input_from_crop: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return one-hot labels warped once into the crop, background elsewhere: the canonical space's target."""
    inside = warp(labels[:, 1:], input_from_crop, size)
    return torch.cat([(1.0 - inside.sum(dim=1, keepdim=True)).clamp(min=0.0), inside], dim=1)


def _shrunk(target: Tensor, size: Sequence[int]) -> Tensor:
    """Means of a target over the larger pixels of a coarser level."""
    factors = [whole // part for whole, part in zip(target.shape[2:], size, strict=True)]
    return F.avg_pool2d(target, factors) if target.ndim == 4 else F.avg_pool3d(target, factors)


def _overlaps(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Pixels of each label ``(3, N, labels)`` of two class maps: in both, in the first, in the second."""
    counts = []
    for index in range(1, classes):
        a, b = predicted == index, truth == index
        counts.append(torch.stack([one.flatten(1).sum(dim=1) for one in (a & b, a, b)]))
    return torch.stack(counts, dim=2)


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
