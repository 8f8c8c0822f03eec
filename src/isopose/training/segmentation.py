"""The U-Net's objective: its loss in the crop or on the native grid, and Dice by patient.

See :mod:`isopose.training.objectives` for what an objective is.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isopose.data.samples import Batch, Slices, Volumes, each_stack
from isopose.geometry.box import jittered, mirrored
from isopose.geometry.pose import POSE_SIZES, add_residual, isotropic
from isopose.geometry.warp import compose, warp
from isopose.labels import IGNORED, Labels, mirrored_classes
from isopose.models.pipeline import Networks, channels_from_crop
from isopose.models.restore import most_probable, restore, restore_slices
from isopose.ranks import gathered
from isopose.training.crop_augmentation import displacements, each_changed, seeds_of
from isopose.training.losses import deep_supervision_loss, one_hot
from isopose.training.targets import homogenizing_matrix

#: Unit of the setting ``unet.pose_jitter``, which is the strength: the jitter at strength 1 by the number of
#: dimensions, in radians, log scales and shifts in half sides of the homogenized frame. Pitch and yaw of
#: patients vary less than the roll.
POSE_JITTER = {2: (0.17, 0.1, 0.1, 0.1, 0.1), 3: (0.17, 0.09, 0.09, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)}


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
        #: Names of the labels or regions that are scored and compared by the loss, and their classes.
        self.scored = labels.loss_targets()
        self.regions = tuple(self.scored.values()) if labels.regions else ()
        #: Whether there may be voxels that were not annotated.
        self.partial = labels.ignore is not None or networks.config.data.undrawn == "ignore"
        self.unet = networks.unet
        self.config = networks.config
        self.augmented = networks.config.unet.augmentation == "homogenized"
        self.classes = networks.classes
        #: For each class the class of its mirror image; only with mirroring must names of sides be in pairs.
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
        theta, mirrored_samples = self._jittered(batch, noise), self._draw_mirrored(noise)
        displacements = self._draw_displacements(noise)
        native = self.config.unet.loss_space == "native"
        targets = []
        for labels, matrices, is_mirrored, *displacement in each_stack(
            batch.labels, theta, mirrored_samples, *displacements
        ):
            one_hot_labels = one_hot(labels, self.classes)
            ignored = (labels == IGNORED)[:, None].float() if self.partial and not native else None
            if self.config.mirrored:
                is_mirrored_nd = is_mirrored.reshape(-1, *[1] * (one_hot_labels.ndim - 1))
                one_hot_labels = torch.where(is_mirrored_nd, one_hot_labels[:, self.partners], one_hot_labels)
            if not native:
                size = self.config.unet_shape
                one_hot_labels = warped_target(one_hot_labels, matrices, size, ignored, *displacement)
            targets.append(one_hot_labels)
        target, crop = torch.cat(targets), self._crop_input(batch, theta, *displacements)
        if self.augmented:
            airs = self.networks[0].airs
            crop = each_changed(crop, seeds_of(noise[:, -1]), self.config.unet.intensity, airs)

        def level(logits: Tensor) -> tuple[Tensor, Tensor]:
            probabilities = logits.float().softmax(dim=1)
            if not native:
                return probabilities, _downsampled(target, logits.shape[2:])
            stride = self.config.unet_size // logits.shape[-1]
            level_target = _downsampled(target, [pixels // stride for pixels in target.shape[2:]])
            # Interpolation would hide a checkered prediction from the loss: docs/concepts/unet.md, "Loss".
            return restore(probabilities, theta, tuple(level_target.shape[2:]), mode="nearest"), level_target

        levels = map(level, self.unet(crop, deep=True))
        return deep_supervision_loss(levels, partial=self.partial, regions=self.regions)

    def validate(self, samples: Slices | Volumes, batches: Iterable[Batch]) -> dict[str, float]:
        """Compute the validation scores: Dice in the frame.

        Voxels that were not annotated count in neither map.

        Args:
            samples: the slices or volumes from which the batches are read.
            batches: this rank's share of the batches.

        Returns:
            ``dice``, the mean over labels and patients, then ``dice NAME`` of each label, or of each region
                where the labels have regions; empty if no label is present.
        """
        counts = [self._counts(batch) for batch in batches]
        both, predicted, truth = gathered(counts, dim=1).double().cpu().numpy()
        return dice_by_label(tuple(self.scored), samples.patients, both, predicted, truth)

    def _counts(self, batch: Batch) -> Tensor:
        """Return voxels of each label ``(3, N, labels)``: in both, in the prediction, in the ground truth."""
        theta = self._theta(batch)
        probabilities = self.unet(self._crop_input(batch, theta))[0].float().softmax(dim=1)
        if self.config.dims == 2:
            labels = batch.labels
            predicted = most_probable(restore(probabilities, theta, tuple(labels.shape[1:])))
            return _overlaps(predicted, labels, self.scored.values())
        counts = []
        for labels, volume_probabilities, matrix in each_stack(batch.labels, probabilities, theta):
            _, depth, height, width = labels.shape
            parts = [
                _overlaps(most_probable(values[None]), labels[:, part], self.scored.values())
                for part, values in restore_slices(volume_probabilities, matrix, (depth, height, width))
            ]
            counts.append(torch.stack(parts).sum(dim=0))
        return torch.cat(counts, dim=1)

    def _crop_input(self, batch: Batch, theta: Tensor, *displacement: Tensor) -> Tensor:
        """Return the U-Net's input of a batch, in the memory layout that its convolutions want."""
        if batch.channel_pose is not None:
            theta = channels_from_crop(theta, batch.channel_pose)
        stacks = each_stack(batch.image, theta, *displacement)
        crop = torch.cat([self.networks[0].cut(*stack) for stack in stacks])
        return crop.contiguous(memory_format=torch.channels_last) if crop.ndim == 4 else crop

    def _theta(self, batch: Batch) -> Tensor:
        assert batch.theta2 is not None, "the U-Net is trained after the crop"
        return compose(homogenizing_matrix(self.networks[0], batch), batch.theta2)

    def _jittered(self, batch: Batch, noise: Tensor) -> Tensor:
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
        return torch.where(self._draw_mirrored(noise)[:, None, None], mirrored(theta), theta)

    def _draw_mirrored(self, noise: Tensor) -> Tensor:
        """Return which samples ``(N,)`` are mirrored, each with the configured probability."""
        return noise[:, -2] < 2.0 * self.config.mirrored - 1.0

    def _draw_displacements(self, noise: Tensor) -> tuple[Tensor, ...]:
        """Return the displacements of the crops' pixels, in a tuple that is empty if none is deformed."""
        if not self.augmented:
            return ()
        drawn = displacements(seeds_of(noise[:, -1]), self.config.unet.elastic, self.config.unet_shape)
        return () if drawn is None else (drawn.to(noise.device),)


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
        ignored: ``(N, 1, ...)`` where voxels were not annotated: all classes are 0 there, background
            included.
        displacement: of the crop's pixels, see :func:`isopose.geometry.warp.warp`.
    """
    inside = warp(labels[:, 1:], input_from_crop, size, displacement=displacement)
    background = 1.0 - inside.sum(dim=1, keepdim=True)
    if ignored is not None:
        background = background - warp(ignored, input_from_crop, size, displacement=displacement)
    return torch.cat([background.clamp(min=0.0), inside], dim=1)


def _downsampled(target: Tensor, size: Sequence[int]) -> Tensor:
    """Return the means of a target over the larger pixels of a coarser level."""
    factors = [whole // part for whole, part in zip(target.shape[2:], size, strict=True)]
    return F.avg_pool2d(target, factors) if target.ndim == 4 else F.avg_pool3d(target, factors)


def _overlaps(predicted: Tensor, truth: Tensor, scored: Iterable[tuple[int, ...]]) -> Tensor:
    """Return pixels of each label ``(3, N, labels)`` of two class maps: in both, the first, the second.

    Args:
        predicted: ``(N, ...)``.
        truth: the same shape; voxels that were not annotated count in neither map.
        scored: for each label or region its classes.
    """
    counts, labeled = [], truth != IGNORED
    for classes in scored:
        a, b = (_is_any_of(class_map, classes) for class_map in (predicted, truth))
        a &= labeled
        counts.append(torch.stack([class_map.flatten(1).sum(dim=1) for class_map in (a & b, a, b)]))
    return torch.stack(counts, dim=2)


def _is_any_of(classes: Tensor, members: tuple[int, ...]) -> Tensor:
    """Return booleans of the same shape: True where the class is one of ``members``, which is not empty."""
    is_member = classes == members[0]
    for index in members[1:]:
        is_member |= classes == index
    return is_member


def patient_dice(
    patients: Sequence[str], both: np.ndarray, predicted: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Return the Dice ``(patients, labels)`` over all slices of a patient; NaN if neither map has the label.

    Args:
        patients: of each slice.
        both: ``(slices, labels)`` pixels in both maps.
        predicted: ``(slices, labels)`` pixels in the prediction.
        truth: ``(slices, labels)`` pixels in the ground truth.
    """
    rows = []
    for patient in sorted(set(patients)):
        selected = np.array(patients) == patient
        with np.errstate(invalid="ignore"):
            rows.append(2.0 * both[selected].sum(0) / (predicted[selected].sum(0) + truth[selected].sum(0)))
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
