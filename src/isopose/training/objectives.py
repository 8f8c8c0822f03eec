"""The stages' objectives: the loss of a batch, and the validation scores.

An objective is a module whose ``forward(batch, noise)`` returns the loss and whose ``judge(slices, batches)``
returns validation scores by name, the deciding one first. :mod:`isopose.training.loop` trains any of them.
With several ranks each judges its share of the batches, and all return the scores over all batches.
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
from isopose.labels import IGNORED, Labels, mirrored_classes
from isopose.models.pipeline import Networks, channels_from_crop
from isopose.models.restore import most_probable, restore, restore_slices
from isopose.models.roll import views_at_angle
from isopose.ranks import gathered
from isopose.training.crop_augmentation import displacements, each_changed, seeds_of
from isopose.training.losses import (
    crop_loss,
    deep_supervision_loss,
    one_hot,
    pose_loss,
    roll_loss,
)
from isopose.training.targets import crop_targets, homogenizing
from isopose.training.turning import estimate_of, judged_turns, summed_up

#: Unit of the setting ``unet.pose_jitter``, which is the strength: the jitter at strength 1 by the number of
#: dimensions, in radians, log scales and shifts in half sides of the homogenized frame. Pitch and yaw of
#: patients vary less than the roll.
POSE_JITTER = {2: (0.17, 0.1, 0.1, 0.1, 0.1), 3: (0.17, 0.09, 0.09, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)}


def noise_size(dims: int) -> int:
    """Return the number of random values per sample: pose, crop, mirroring, seed of the augmentation."""
    return POSE_SIZES[dims] + (2 * dims - 1) + 2


class PoseObjective(nn.Module):
    """Train STN1: maximize the agreement of the homogenized outline with the reference's (Eq. 1)."""

    def __init__(
        self, networks: Networks, by_hand: Tensor | None = None, truth: Mapping[str, float] | None = None
    ) -> None:
        """Use the STN1 of the networks.

        Args:
            networks: whose STN1 is trained.
            by_hand: poses ``(N, 5)`` set by hand for training rows, NaN for others.
            truth: case id to the true roll relative to the reference, radians, if known.
        """
        super().__init__()
        self.pose = networks.pose
        self.air = networks.air
        self.by_hand = by_hand
        self.truth = dict(truth or {})

    def forward(self, batch: SliceBatch, noise: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss of a batch; poses set by hand add the distance of their matrices."""
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
        """Return the agreement with the reference's outline, that of the initial pose alone, and roll errors.

        The agreement (Eq. 1) chooses the weights. It hardly depends on the roll, so the slope of the
        estimated angle on applied rotations and its distances from the moments' and the true angle are
        reported as well.
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
    """Fine-tune the shipped roll network on a user's own slices, without labels.

    The pooled estimate of a scan is the target of each of its slices, and every slice is shown rotated by a
    known angle. The network thus adapts to the appearance of these scanners and patients, not to another
    upright direction. The concentration (confidence) is taken from the shipped network's output for the same
    view: trained on slices that agree with their own mean, it would grow without limit.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        assert networks.pose.roll is not None, "fine-tuning needs the roll network"
        self.roll = networks.pose.roll
        self.roll_input = networks.pose.roll_input
        # The shipped weights, also in a resumed run. In a tuple, so that it is not registered as a submodule.
        self.shipped = (copy.deepcopy(self.roll).eval().requires_grad_(False),)

    def train(self, mode: bool = True) -> "RollObjective":
        """Set the training mode, but keep batch norm's shipped statistics: small batches give poor ones."""
        super().train(mode)
        self.roll.eval()
        return self

    def forward(self, batch: SliceBatch, noise: Tensor) -> Tensor:
        """Return the loss of a batch; ``noise`` ``(N, 9)`` in [-1, 1) rotates the slices."""
        assert batch.pose is not None, "fine-tuning follows a first estimate"
        angle = math.pi * noise[:, 0]
        # Every other slice is nearly upright, as in the second iteration of the estimate.
        angle = torch.where(torch.arange(len(angle), device=angle.device) % 2 == 0, angle, 0.1 * angle)
        seen = views_at_angle(self.roll_input(batch.image, batch.mask), batch.pose[:, ANGLE] - angle)
        with torch.no_grad():
            sure = self.shipped[0](seen)[:, :2].norm(dim=1)
        return roll_loss(self.roll(seen)[:, :2], angle, sure)

    def judge(self, slices: Slices, batches: Iterable[SliceBatch]) -> dict[str, float]:  # noqa: ARG002
        """Return the mean cosine of a slice's estimate with its scan's first one, and the median angle."""
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
    """Train STN2: crop and matrix match those of the labels' box (Eq. 2), or of a crop set by hand.

    Slices and volumes without a label have no target and do not train the crop.
    """

    def __init__(self, networks: Networks, by_hand: Tensor | None = None) -> None:
        """Use the crop network of the networks.

        Args:
            networks: of slices or of volumes.
            by_hand: crops ``(N, 3, 3)`` set by hand for training rows, NaN for others.
        """
        super().__init__()
        self.crop = networks.crop
        self.by_hand = by_hand
        self.networks = (networks,)  # in a tuple, so that it is not registered as a submodule

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
        """Return homogenized images and masks, target crops, and which samples have a target."""
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
    """Train pose and crop with one network: Eq. 1 + Eq. 2, starting from the scan's initial poses.

    The crop's target is the labels' box in the predicted pose, which is detached there: Eq. 1 alone trains
    the pose, so that a wrong pose cannot compensate an error of the crop. Slices without a label train the
    pose only.
    """

    def __init__(self, networks: Networks, truth: Mapping[str, float] | None = None) -> None:
        """Take the joint network from a networks; ``truth`` as for :class:`PoseObjective`."""
        super().__init__()
        assert networks.joint is not None, "only with stn=joint"
        # None if the shipped network estimates the roll and this network only a small residual.
        self.estimate = estimate_of(networks)
        self.truth = dict(truth or {})
        # The only trained part; the other networks are not registered as submodules.
        self.joint = networks.joint
        self.joint_step = networks.joint_step
        self.agreement = networks.pose.agreement
        self.reference = networks.pose.reference_mask
        self.config = networks.config
        self.air = networks.air

    def forward(self, batch: SliceBatch, noise: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        pose, theta2, target, found = self._seen(batch)
        outline = warp(batch.mask, matrix_from_pose(pose), tuple(self.reference.shape[2:]))
        loss = pose_loss(outline, self.reference)
        size = (self.config.crop.size, self.config.crop.size)
        theta1, theta2, target = matrix_from_pose(pose.detach()[found]), theta2[found], target[found]
        # Resampled once from the frame, as the U-Net's input is.
        crop, target_crop = (
            warp(batch.image[found], compose(theta1, theta), size, fill=self.air)
            for theta in (theta2, target)
        )
        return loss + crop_loss(crop, target_crop, theta2, target, self.config.crop)

    def judge(self, slices: Slices, batches: Iterable[SliceBatch]) -> dict[str, float]:
        """Return the mean of agreement and overlap, each of them, the initial agreement, and roll errors.

        Roll errors are included if the network learns the roll.
        """
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
    """Train the U-Net: Eq. 3 with deep supervision, in the original pose (native) or in the crop (canonical).

    Args:
        networks: whose U-Net is trained, of slices or of volumes.
        labels: names of the classes, for the names of validation scores, and regions where the loss is of
            these; by default the classes' numbers.
    """

    def __init__(self, networks: Networks, labels: Labels | None = None) -> None:
        super().__init__()
        labels = labels or Labels({str(label): label for label in range(1, networks.classes)})
        self.names = labels.names
        #: Name and classes of what is scored, and of what the loss compares.
        self.judged = labels.judged()
        self.regions = tuple(self.judged.values()) if labels.regions else ()
        #: Whether there may be voxels that nobody labeled.
        self.partial = labels.ignore is not None or networks.config.data.undrawn == "ignore"
        self.unet = networks.unet
        self.config = networks.config
        self.augmented = networks.config.unet.augmentation == "homogenized"
        self.classes = networks.classes
        #: Class of the mirrored structure, class by class; without mirroring names may be any.
        self.partners = list(mirrored_classes(self.names) if self.config.mirrored else range(self.classes))
        self.networks = (networks,)  # in a tuple, so that it is not registered as a submodule

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the loss of a batch.

        A mirrored sample is sampled through the mirrored transform, and its left and right labels are
        exchanged.

        Args:
            batch: slices or volumes with known poses and crops.
            noise: ``(N, noise_size(dims))`` in [-1, 1); jitters pose and crop, selects mirrored samples, and
                seeds the augmentation.
        """
        theta, in_mirror = self._disturbed(batch, noise), self._in_mirror(noise)
        shift = self._shift(noise)
        native = self.config.unet.loss_space == "native"
        targets = []
        for labels, matrices, mirror, *moved in each_stack(batch.labels, theta, in_mirror, *shift):
            shown = one_hot(labels, self.classes)
            ignored = (labels == IGNORED)[:, None].float() if self.partial and not native else None
            if self.config.mirrored:
                chosen = mirror.reshape(-1, *[1] * (shown.ndim - 1))
                shown = torch.where(chosen, shown[:, self.partners], shown)
            size = self.config.unet_shape
            targets.append(shown if native else warped_target(shown, matrices, size, ignored, *moved))
        target, crop = torch.cat(targets), self._cut(batch, theta, *shift)
        if self.augmented:
            airs = self.networks[0].airs
            crop = each_changed(crop, seeds_of(noise[:, -1]), self.config.unet.intensity, airs)

        def level(logits: Tensor) -> tuple[Tensor, Tensor]:
            probabilities = logits.float().softmax(dim=1)
            if not native:
                return probabilities, _shrunk(target, logits.shape[2:])
            side = self.config.unet_size // logits.shape[-1]
            goal = _shrunk(target, [pixels // side for pixels in target.shape[2:]])
            # Means of neighbors would hide a checkered answer from the loss: docs/concepts/unet.md, "Loss".
            return restore(probabilities, theta, tuple(goal.shape[2:]), mode="nearest"), goal

        levels = map(level, self.unet(crop, deep=True))
        return deep_supervision_loss(levels, partial=self.partial, regions=self.regions)

    def judge(self, samples: Slices | Volumes, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean Dice over labels and patients in the frame, then each label's, if there is any.

        With regions it is that of the regions. What nobody labeled counts in neither map.
        """
        counts = [self._counts(batch) for batch in batches]
        both, predicted, truth = gathered(counts, dim=1).double().cpu().numpy()
        return dice_by_label(tuple(self.judged), samples.patients, both, predicted, truth)

    def _counts(self, batch: Batch) -> Tensor:
        """Return voxels of each label ``(3, N, labels)``: in both, in the prediction, in the reference."""
        theta = self._theta(batch)
        probabilities = self.unet(self._cut(batch, theta))[0].float().softmax(dim=1)
        if self.config.dims == 2:
            labels = batch.labels
            predicted = most_probable(restore(probabilities, theta, tuple(labels.shape[1:])))
            return _overlaps(predicted, labels, self.judged.values())
        counts = []
        for labels, answer, matrix in each_stack(batch.labels, probabilities, theta):
            _, depth, height, width = labels.shape
            parts = [
                _overlaps(most_probable(values[None]), labels[:, part], self.judged.values())
                for part, values in restore_slices(answer, matrix, (depth, height, width))
            ]
            counts.append(torch.stack(parts).sum(dim=0))
        return torch.cat(counts, dim=1)

    def _cut(self, batch: Batch, theta: Tensor, *shift: Tensor) -> Tensor:
        """Return the U-Net's input of a batch, in the memory layout that its convolutions want."""
        if batch.channel_pose is not None:
            theta = channels_from_crop(theta, batch.channel_pose)
        crop = torch.cat([self.networks[0].cut(*one) for one in each_stack(batch.image, theta, *shift)])
        return crop.contiguous(memory_format=torch.channels_last) if crop.ndim == 4 else crop

    def _theta(self, batch: Batch) -> Tensor:
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        return compose(homogenizing(self.networks[0], batch), batch.theta2)

    def _disturbed(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return ``input_from_crop`` with jitter like the errors of pose and crop on unseen patients.

        The jittered transform of a mirrored sample is mirrored (:func:`isopose.geometry.box.mirrored`).
        """
        assert batch.pose is not None, "the U-Net is trained after the pose"
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        crop, numbers = self.config.crop, POSE_SIZES[self.config.dims]
        residual = noise[:, :numbers] * (
            self.config.unet.pose_jitter * noise.new_tensor(POSE_JITTER[self.config.dims])
        )
        if self.config.pose.scales == 1:
            # With an isotropic pose the jitter is isotropic as well.
            residual = isotropic(residual)
        pose, theta2 = add_residual(batch.pose, residual), batch.theta2
        if crop.enabled:
            theta2 = jittered(theta2, noise[:, numbers:-2], shift=crop.jitter_shift, scale=crop.jitter_scale)
        theta = compose(self.networks[0].input_from_homogenized(pose, batch.stack_from_frame), theta2)
        return torch.where(self._in_mirror(noise)[:, None, None], mirrored(theta), theta)

    def _in_mirror(self, noise: Tensor) -> Tensor:
        """Return which samples ``(N,)`` are mirrored, each with the configured probability."""
        return noise[:, -2] < 2.0 * self.config.mirrored - 1.0

    def _shift(self, noise: Tensor) -> tuple[Tensor, ...]:
        """Return the displacements of the crops' pixels, in a tuple that is empty if none is deformed."""
        if not self.augmented:
            return ()
        shift = displacements(seeds_of(noise[:, -1]), self.config.unet.elastic, self.config.unet_shape)
        return () if shift is None else (shift.to(noise.device),)


def warped_target(
    labels: Tensor,
    input_from_crop: Tensor,
    size: tuple[int, ...],
    ignored: Tensor | None = None,
    displacement: Tensor | None = None,
) -> Tensor:
    """Return one-hot labels warped into the crop, background outside: the target in canonical space.

    Args:
        labels: ``(N, classes, ...)``.
        input_from_crop: ``(N, 3, 3)`` or ``(N, 4, 4)``.
        size: of the crop.
        ignored: ``(N, 1, ...)`` where nobody labeled and all classes are 0: background has no part of it.
        displacement: of the crop's pixels, see :func:`isopose.geometry.warp.warp`.
    """
    inside = warp(labels[:, 1:], input_from_crop, size, displacement=displacement)
    rest = 1.0 - inside.sum(dim=1, keepdim=True)
    if ignored is not None:
        rest = rest - warp(ignored, input_from_crop, size, displacement=displacement)
    return torch.cat([rest.clamp(min=0.0), inside], dim=1)


def _shrunk(target: Tensor, size: Sequence[int]) -> Tensor:
    """Return the means of a target over the larger pixels of a coarser level."""
    factors = [whole // part for whole, part in zip(target.shape[2:], size, strict=True)]
    return F.avg_pool2d(target, factors) if target.ndim == 4 else F.avg_pool3d(target, factors)


def _overlaps(predicted: Tensor, truth: Tensor, judged: Iterable[tuple[int, ...]]) -> Tensor:
    """Return pixels of each label ``(3, N, labels)`` of two class maps: in both, the first, the second.

    Args:
        predicted: ``(N, ...)``.
        truth: the same shape; where nobody labeled neither map counts.
        judged: the classes of each label or region.
    """
    counts, labeled = [], truth != IGNORED
    for classes in judged:
        a, b = (_any_of(one, classes) for one in (predicted, truth))
        a &= labeled
        counts.append(torch.stack([one.flatten(1).sum(dim=1) for one in (a & b, a, b)]))
    return torch.stack(counts, dim=2)


def _any_of(classes: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Return where a map has one of some classes, booleans."""
    found = classes == wanted[0]
    for index in wanted[1:]:
        found |= classes == index
    return found


def patient_dice(
    patients: Sequence[str], both: np.ndarray, predicted: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Return the Dice ``(patients, labels)`` over all slices of a patient; NaN if neither map has the label.

    Args:
        patients: of each slice.
        both: ``(slices, labels)`` pixels in both maps.
        predicted: ``(slices, labels)`` pixels in the prediction.
        truth: ``(slices, labels)`` pixels in the reference.
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
    """Return the mean Dice over labels, then each label's mean over patients; see :func:`patient_dice`."""
    dice = patient_dice(patients, both, predicted, truth)
    by_label = {
        f"dice {name}": float(np.nanmean(of_label))
        for name, of_label in zip(names, dice.T, strict=True)
        if not np.isnan(of_label).all()
    }
    return {"dice": float(np.mean(list(by_label.values()))), **by_label} if by_label else {}
