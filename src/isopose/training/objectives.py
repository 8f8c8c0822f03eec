"""The objectives of STN1 and STN2: the loss of a batch, and the validation scores.

An objective is a module whose ``forward(batch, noise)`` returns the loss and whose ``validate(slices,
batches)`` returns validation scores by name, the deciding one first. :mod:`isopose.training.loop` trains any
of them. With several ranks each evaluates its share of the batches; all return the scores over all batches.
The U-Net's objective is in :mod:`isopose.training.segmentation`.
"""

import copy
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from isopose.data.samples import Batch, SliceBatch, Slices, Volumes, each_stack
from isopose.geometry.box import box_overlap
from isopose.geometry.pose import ANGLE, POSE_SIZES, matrix_from_pose
from isopose.geometry.warp import compose, warp
from isopose.models.pipeline import Networks
from isopose.models.roll import views_at_angle
from isopose.ranks import gathered
from isopose.training.losses import crop_loss, pose_loss, roll_loss
from isopose.training.roll_check import estimate_of, rotation_errors, summarize
from isopose.training.targets import crop_targets, homogenizing_matrix


def noise_size(dims: int) -> int:
    """Return the number of random values per sample: pose, crop, mirroring, seed of the augmentation."""
    return POSE_SIZES[dims] + (2 * dims - 1) + 2


class PoseObjective(nn.Module):
    """Train STN1: maximize the agreement of the homogenized outline with the reference's (Eq. 1)."""

    def __init__(
        self, networks: Networks, manual: Tensor | None = None, truth: Mapping[str, float] | None = None
    ) -> None:
        """Use the STN1 of the networks.

        Args:
            networks: whose STN1 is trained.
            manual: poses ``(N, 5)`` set by hand for training rows, NaN for others.
            truth: case id to the true roll relative to the reference, radians, if known.
        """
        super().__init__()
        self.pose = networks.pose
        self.air = networks.air
        self.manual = manual
        self.truth = dict(truth or {})

    def forward(self, batch: SliceBatch, noise: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss of a batch; poses set by hand add the distance of their matrices."""
        theta = matrix_from_pose(self.pose(batch.image, batch.mask))
        reference = self.pose.reference_mask
        loss = pose_loss(warp(batch.mask, theta, tuple(reference.shape[2:])), reference)
        if self.manual is None:
            return loss
        manual = self.manual[batch.rows.cpu()].to(theta.device)
        is_set = manual.isfinite().all(dim=1)
        distances = (theta[is_set] - matrix_from_pose(manual[is_set])).abs().sum(dim=(1, 2))
        return loss + distances.sum() / len(is_set)

    def validate(self, slices: Slices, batches: Iterable[SliceBatch]) -> dict[str, float]:
        """Return the agreement with the reference's outline, that of the initial pose alone, and roll errors.

        The agreement (Eq. 1) chooses the weights. It hardly depends on the roll, so the slope of the
        estimated angle on applied rotations and its distances from the moments' and the true angle are
        reported as well.
        """
        refined_dice, initial_dice, roll_errors = [], [], []
        for batch in batches:
            roll_errors.append(
                rotation_errors(self.pose, self.pose.reference_mask, self.air, self.truth, slices, batch)
            )
            initial = self.pose.initial_pose(batch.image, batch.mask)
            refined = self.pose.refine(batch.image, batch.mask, initial)
            refined_dice.append(self.pose.agreement(batch.mask, refined))
            initial_dice.append(self.pose.agreement(batch.mask, initial))
        return {
            "mask dice": float(gathered(refined_dice).mean()),
            f"{self.pose.config.start} alone": float(gathered(initial_dice).mean()),
            **summarize(roll_errors),
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
        views = views_at_angle(self.roll_input(batch.image, batch.mask), batch.pose[:, ANGLE] - angle)
        with torch.no_grad():
            concentration = self.shipped[0](views)[:, :2].norm(dim=1)
        return roll_loss(self.roll(views)[:, :2], angle, concentration)

    def validate(self, slices: Slices, batches: Iterable[SliceBatch]) -> dict[str, float]:  # noqa: ARG002
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

    def __init__(self, networks: Networks, manual: Tensor | None = None) -> None:
        """Use the crop network of the networks.

        Args:
            networks: of slices or of volumes.
            manual: crops ``(N, 3, 3)`` set by hand for training rows, NaN for others.
        """
        super().__init__()
        self.crop = networks.crop
        self.manual = manual
        self.networks = (networks,)  # in a tuple, so that it is not registered as a submodule

    def forward(self, batch: Batch, noise: Tensor) -> Tensor:  # noqa: ARG002 - one signature for all stages
        """Return the loss of a batch."""
        image, mask, target, has_box = self._homogenized_inputs(batch)
        if self.manual is not None:
            manual = self.manual[batch.rows.cpu()].to(target.device)
            target = torch.where(manual.isfinite(), manual, target)
        theta2 = self.crop(image, mask)[has_box]
        crop, target_crop = (
            warp(image[has_box], theta, tuple(image.shape[2:]), fill=self.networks[0].air)
            for theta in (theta2, target[has_box])
        )
        return crop_loss(crop, target_crop, theta2, target[has_box], self.crop.config)

    def validate(self, samples: Slices | Volumes, batches: Iterable[Batch]) -> dict[str, float]:  # noqa: ARG002
        """Return the mean overlap (intersection over union) of predicted and target boxes, if any."""
        overlaps = []
        for batch in batches:
            image, mask, target, has_box = self._homogenized_inputs(batch)
            overlaps.append(box_overlap(self.crop(image, mask)[has_box], target[has_box]))
        overlap = gathered(overlaps)
        return {"box overlap": float(overlap.mean())} if len(overlap) else {}

    def _homogenized_inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return homogenized images and masks, target crops, and which samples have a target."""
        (networks,) = self.networks
        matrix = homogenizing_matrix(networks, batch)
        masks = (mask for mask, *_ in each_stack(batch.mask))
        homogenized = [
            networks.homogenized(image, mask, theta, self.crop.config.size)
            for (image, theta), mask in zip(each_stack(batch.image, matrix), masks, strict=True)
        ]
        image, mask = (torch.cat(parts) for parts in zip(*homogenized, strict=True))
        return image, mask, *crop_targets(batch.labels, matrix, self.crop.config)


class JointObjective(nn.Module):
    """Train pose and crop with one network: Eq. 1 + Eq. 2, starting from the scan's initial poses.

    The crop's target is the labels' box in the predicted pose, which is detached there: Eq. 1 alone trains
    the pose, so that a wrong pose cannot compensate an error of the crop. Slices without a label train the
    pose only.
    """

    def __init__(self, networks: Networks, truth: Mapping[str, float] | None = None) -> None:
        """Use the joint network of the networks; ``truth`` as for :class:`PoseObjective`."""
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
        pose, theta2, target, has_box = self._pose_and_crop(batch)
        outline = warp(batch.mask, matrix_from_pose(pose), tuple(self.reference.shape[2:]))
        loss = pose_loss(outline, self.reference)
        size = (self.config.crop.size, self.config.crop.size)
        theta1, theta2, target = matrix_from_pose(pose.detach()[has_box]), theta2[has_box], target[has_box]
        # Resampled once from the frame, as the U-Net's input is.
        crop, target_crop = (
            warp(batch.image[has_box], compose(theta1, theta), size, fill=self.air)
            for theta in (theta2, target)
        )
        return loss + crop_loss(crop, target_crop, theta2, target, self.config.crop)

    def validate(self, slices: Slices, batches: Iterable[SliceBatch]) -> dict[str, float]:
        """Return the mean of agreement and overlap, each of them, the initial agreement, and roll errors.

        Roll errors are included if the network learns the roll.
        """
        refined_dice, initial_dice, overlap, roll_errors = [], [], [], []
        for batch in batches:
            if self.estimate is not None:
                roll_errors.append(
                    rotation_errors(self.estimate, self.reference, self.air, self.truth, slices, batch)
                )
            assert batch.pose is not None, "the joint network starts from a first estimate"
            pose, theta2, target, has_box = self._pose_and_crop(batch)
            refined_dice.append(self.agreement(batch.mask, pose))
            initial_dice.append(self.agreement(batch.mask, batch.pose))
            overlap.append(box_overlap(theta2[has_box], target[has_box]))
        scores = {"mask dice": float(gathered(refined_dice).mean())}
        overlaps = gathered(overlap)
        if len(overlaps):
            scores["box overlap"] = float(overlaps.mean())
        initial_score = {f"{self.config.pose.start} alone": float(gathered(initial_dice).mean())}
        roll_scores = summarize(roll_errors) if roll_errors else {}
        return {"pose and crop": sum(scores.values()) / len(scores), **scores, **initial_score, **roll_scores}

    def _pose_and_crop(self, batch: SliceBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert batch.pose is not None, "the joint network starts from a first estimate"
        pose, theta2 = self.joint_step(batch.image, batch.mask, batch.pose)
        return pose, theta2, *crop_targets(batch.labels, matrix_from_pose(pose.detach()), self.config.crop)
