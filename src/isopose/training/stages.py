"""The training stages of slices and volumes: which networks are trained, in which order, on which samples."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from isopose.config import Config
from isopose.data.samples import Slices, Volumes
from isopose.errors import InputError, counted
from isopose.labels import Labels, mirrored_classes
from isopose.models.info import RollCheck
from isopose.models.pipeline import Networks
from isopose.progress import Reporter
from isopose.training.augmentation import Augmentation
from isopose.training.checkpoint import StageProgress
from isopose.training.loop import Stage, train_stage
from isopose.training.manual_targets import Corrections, manual_crops, manual_poses, override
from isopose.training.objectives import (
    CropObjective,
    JointObjective,
    PoseObjective,
    RollObjective,
    noise_size,
)
from isopose.training.roll_check import check_roll, rotation_warning
from isopose.training.segmentation import SegmentationObjective
from isopose.training.transforms import (
    box_of_all,
    extent_of,
    poses_of,
    rotation_warnings,
    transforms_of,
    volume_crops_of,
    volume_poses_of,
)


@dataclass(frozen=True)
class StageContext:
    """State that the stages of one run share.

    Args:
        config: all settings.
        labels: of the dataset.
        fabric: device, precision, ranks.
        work: folder of checkpoints and curves.
        reporter: receives progress.
        truth: case id to the true roll against the reference, radians, where it is known (phantoms).
        trial: the run measures speed only; the networks are not evaluated.
    """

    config: Config
    labels: Labels
    fabric: Fabric
    work: Path
    reporter: Reporter
    truth: Mapping[str, float] = field(default_factory=dict)
    trial: bool = False


@dataclass(frozen=True)
class _SliceData:
    """Networks and samples of the stages of slices.

    Args:
        networks: to be trained.
        training: slices of the training patients.
        validation: slices of the validation patients, if there are any.
        manual: poses ``(N, 5)`` of the training slices that were set by hand, NaN for others.
    """

    networks: Networks
    training: Slices
    validation: Slices | None
    manual: Tensor

    @property
    def all(self) -> list[Slices]:
        """The slices of all patients."""
        return [self.training, self.validation] if self.validation else [self.training]


def slice_stages(
    context: StageContext,
    networks: Networks,
    train_slices: Slices,
    val_slices: Slices | None,
    corrections: Corrections,
) -> tuple[list[StageProgress], RollCheck | None]:
    """Train the networks of slices; afterwards they have the best weights.

    Returns:
        The progress of each stage, and the roll errors of STN1 if it was trained.
    """
    config, device = context.config, context.fabric.device
    reference = networks.pose.reference_mask.cpu()
    data = _SliceData(networks, train_slices, val_slices, manual_poses(train_slices, corrections, reference))
    stages: list[StageProgress] = []
    roll_check: RollCheck | None = None
    # If a model is fine-tuned in parts (train.parts), pose and crop are not trained.
    trains_stns = config.train.parts == "all"
    if trains_stns:
        stages, roll_check = _train_pose(context, data)
    _estimate_poses(context, data)
    # A patient's roll is an in-plane rotation in axial slices only.
    for slices in data.all if config.data.plane == "axial" else ():
        for line in rotation_warnings(slices):
            context.reporter.say(line)
    if networks.joint is not None and trains_stns:
        joint = JointObjective(networks, context.truth)
        stages.append(_train(context, "joint", joint, train_slices, val_slices, 3, "crop"))
        roll_check = _check_roll(context, data, "crop")
    if config.crop.enabled and not config.crop.learned and trains_stns:
        networks.crop.start.copy_(box_of_all(networks, train_slices, device))
    crops = manual_crops(train_slices, corrections, reference)
    if networks.crop.localization is not None and trains_stns:
        labeled = train_slices.labeled()
        val_labeled = val_slices.labeled() if val_slices else None
        labeled_crops = crops[torch.from_numpy(train_slices.presence.any(axis=1))]
        crop = CropObjective(networks, labeled_crops if labeled_crops.isfinite().any() else None)
        stages.append(_train(context, "crop", crop, labeled, val_labeled or None, 1))
    for slices in data.all:
        slices.pose, slices.theta2 = transforms_of(networks, slices, device)
    train_slices.pose = override(data.manual, train_slices.pose)
    # In the final poses, which a joint network has refined unless they were set by hand.
    crops = manual_crops(train_slices, corrections, reference)
    train_slices.theta2 = override(crops, train_slices.theta2)
    for slices in data.all:
        slices.all_channels = True
        slices.set_neighbors(config.unet)
    networks.unet = networks.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unet = SegmentationObjective(networks, context.labels)
    training, validation = train_slices.annotated(), val_slices.annotated() if val_slices else None
    augment = _augmentation(context, networks)
    stages.append(_train(context, "unet", unet, training, validation or None, 2, augment=augment))
    return stages, roll_check


def _train_pose(context: StageContext, data: _SliceData) -> tuple[list[StageProgress], RollCheck | None]:
    """Train STN1, then the roll network, where the model has them and they learn.

    Returns:
        The progress of each stage, and the roll errors of STN1 if it was trained.
    """
    pose = data.networks.pose
    stages: list[StageProgress] = []
    roll_check: RollCheck | None = None
    if pose.localization is not None:
        manual = data.manual if data.manual.isfinite().any() else None
        objective = PoseObjective(data.networks, manual, context.truth)
        stages.append(_train(context, "pose", objective, data.training, data.validation, 0))
        roll_check = _check_roll(context, data, "pose")
    if pose.roll is not None and context.config.pose.learned:
        _estimate_poses(context, data)
        stages.append(
            _train(context, "pose", RollObjective(data.networks), data.training, data.validation, 0)
        )
        context.reporter.say(
            "note: the confidence of a fine-tuned roll network is not calibrated again: on scans unlike "
            "these it may warn about correct poses (docs/measurements.md, 'What was tried')"
        )
    return stages, roll_check


def _estimate_poses(context: StageContext, data: _SliceData) -> None:
    """Estimate the poses of all slices; those of training slices that were set by hand replace estimates."""
    for slices in data.all:
        slices.pose = poses_of(data.networks, slices, context.fabric.device)
    data.training.pose = override(data.manual, data.training.pose)


def _check_roll(context: StageContext, data: _SliceData, section: str) -> RollCheck | None:
    """Measure and report the trained STN1's roll estimates; warn if it has not learned rotation."""
    if context.trial:
        return None
    patients = "validation" if data.validation else "training"
    slices = (data.validation or data.training).spread(context.config.train.validation_slices)
    roll_check = check_roll(data.networks, slices, context.fabric, context.truth, patients)
    if roll_check is not None:
        true_error = roll_check.degrees_from_truth
        context.reporter.say(
            f"STN1's roll on {roll_check.slices} slices of {patients} patients: "
            f"slope {roll_check.slope:.2f}, "
            + (f"{true_error:.1f} degrees from the true one (moments: {roll_check.moments_from_truth:.1f}), "
               if true_error is not None else "")
            + f"{roll_check.degrees_from_moments:.1f} degrees from the moments' at the median"
        )  # fmt: skip
        if not roll_check.learned:
            context.reporter.say(rotation_warning(roll_check, section))
    return roll_check


def _augmentation(context: StageContext, networks: Networks) -> Augmentation | None:
    """Return the augmentation of the U-Net's slices that replaces homogenization, if configured."""
    if context.config.unet.augmentation != "nnunet":
        return None
    # nnU-Net mirrors regardless of the labels; here a left kidney must not become a right one.
    try:
        mirror = mirrored_classes(context.labels.names) == tuple(range(context.labels.classes))
    except InputError:
        mirror = False
    if not mirror:
        context.reporter.say("note: the labels have sides, so the augmentation does not mirror")
    return Augmentation(*networks.airs, mirror=mirror)


def volume_stages(
    context: StageContext, networks: Networks, train_slices: Slices, val_slices: Slices | None
) -> list[StageProgress]:
    """Train the crop and the U-Net on whole volumes, and return the progress of each stage."""
    crop, device = context.config.crop, context.fabric.device
    training = Volumes(train_slices.cases)
    validation = Volumes(val_slices.cases) if val_slices else None
    stages: list[StageProgress] = []
    trains_stns = context.config.train.parts == "all"
    for volumes in filter(None, (training, validation)):
        volumes.pose = volume_poses_of(networks, volumes, device)
        for line in rotation_warnings(volumes):
            context.reporter.say(line)
    if trains_stns:
        networks.reach.fill_(extent_of(training))
    if crop.enabled and not crop.learned and trains_stns:
        networks.crop.start.copy_(box_of_all(networks, training, device))
    if networks.crop.localization is not None and trains_stns:
        labeled = validation.labeled() if validation else None
        objective = CropObjective(networks)
        stages.append(_train(context, "crop", objective, training.labeled(), labeled or None, 1))
    for volumes in filter(None, (training, validation)):
        volumes.theta2 = volume_crops_of(networks, volumes, device)
        volumes.all_channels = True
    unet = SegmentationObjective(networks, context.labels)
    annotated = validation.annotated() if validation else None
    stages.append(_train(context, "unet", unet, training.annotated(), annotated or None, 2))
    return stages


def _train(
    context: StageContext,
    name: str,
    objective: Any,
    training: Slices | Volumes,
    validation: Slices | Volumes | None,
    number: int,
    section: str = "",
    augment: Augmentation | None = None,
) -> StageProgress:
    started = time.monotonic()
    if isinstance(validation, Slices):
        validation = validation.spread(context.config.train.validation_slices)
    stage = Stage(
        name=name,
        objective=objective,
        config=getattr(context.config, section or name).optimizer,
        training=training,
        validation=validation,
        least=oversampling(context.config.train.oversample, context.labels),
        seed=(context.config.train.seed, number),
        section=section,
        noise=noise_size(context.config.dims),
        augment=augment,
    )
    progress = train_stage(stage, context.fabric, context.work, context.reporter)
    best = f", best {progress.best:.4f} in epoch {progress.best_epoch}" if progress.best is not None else ""
    epochs = counted(progress.epoch, "epoch")
    context.reporter.say(f"{name}: {epochs}{best}, {time.monotonic() - started:.0f} s")
    return progress


def oversampling(configured: Mapping[str, float] | None, labels: Labels) -> dict[int, float]:
    """Return the minimum fraction of training slices that show a label, by the label's column.

    Args:
        configured: ``train.oversample``, fractions by label name; None: as in the paper, one third for each
            of the first two labels.
        labels: of the dataset.

    Raises:
        InputError: a name is not a label of the dataset.
    """
    if configured is None:
        return dict.fromkeys(range(min(2, len(labels.names))), 1.0 / 3.0)
    unknown = sorted(set(configured) - set(labels.names))
    if unknown:
        raise InputError(
            f"train.oversample: no label {unknown[0]!r}; expected some of {', '.join(labels.names)}"
        )
    return {labels.names.index(name): fraction for name, fraction in configured.items()}
