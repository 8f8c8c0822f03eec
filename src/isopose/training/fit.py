"""``isopose fit``: from a dataset to a model folder, stage after stage."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lightning_fabric import seed_everything

from isopose.config import Config
from isopose.data.fingerprint import Fingerprint
from isopose.data.modality import with_poses_of
from isopose.data.normalization import normalizations_of, pose_channel_of
from isopose.data.samples import Slices
from isopose.data.splits import measured_cases, split
from isopose.data.store import Store, StoredCase
from isopose.errors import InputError
from isopose.files import only_writer, output_folder, write_text
from isopose.io.datasets import Case, Dataset
from isopose.io.truth import true_rolls
from isopose.models.card import CARD, model_card
from isopose.models.folder import Model, airs_of, load_model, save_model
from isopose.models.info import ModelInfo
from isopose.models.pipeline import Networks
from isopose.models.shipped import load_shipped
from isopose.progress import Reporter, Silent
from isopose.training.claim import check_batches, check_folder, claim_data, claim_folder
from isopose.training.fabric import fabric_for
from isopose.training.info import reference_info, stages_info, training_info, warn_of_leakage
from isopose.training.manual_targets import Corrections, count_corrected
from isopose.training.mirroring import check_mirroring, decide_mirroring
from isopose.training.preprocessing import preprocess
from isopose.training.stages import StageContext, oversampling, slice_stages, volume_stages
from isopose.training.targets import Reference, check_reference, choose_reference
from isopose.training.transfer import check_source


def fit(
    dataset: Dataset,
    folder: Path,
    config: Config,
    *,
    source: Model | None = None,
    resume: bool = False,
    store: Path | None = None,
    corrections: Corrections | None = None,
    workers: int = 0,
    reporter: Reporter | None = None,
    trial: bool = False,
) -> Model:
    """Train pose, crop (or both jointly) and U-Net one after the other, and write the model.

    Args:
        dataset: cases with labels; those of split ``test`` are not used.
        folder: of the model; ``folder/work`` holds store, checkpoints and curves.
        config: all settings.
        source: model to fine-tune in its ``train.parts``; its reference, normalization and frame are kept.
        resume: continue the training in ``folder``.
        store: folder for preprocessed slices, which runs may share; default ``folder/work/store``.
        corrections: poses and crops set by hand, by a scan's hash; targets in training, not in validation.
        workers: number of processes for preprocessing; 0 uses this process.
        reporter: receives progress.
        trial: train a few batches to measure their speed, without judging the networks.

    Raises:
        InputError: the dataset or a setting is not valid, or the folder holds another run.
        BusyError: another process trains in the folder.
    """
    seed_everything(config.train.seed, verbose=False)
    fabric = fabric_for(config)
    reporter = reporter if reporter and fabric.is_global_zero else Silent()
    corrections = corrections or {}
    config = with_poses_of(config, dataset.channels)
    training, validation = split(dataset, config.train)
    # Before the folder is claimed, since a command with corrected settings counts as another run.
    prepared = measured_cases(training, validation, config.train)
    check_fit(config, dataset, prepared[0], source, corrections, fabric.world_size)
    context = StageContext(config, dataset.labels, fabric, folder / "work", reporter, trial=trial)
    # The other ranks use the first one's preprocessed cases; the first rank locks the folder for all.
    with ExitStack() as stack:
        with fabric.rank_zero_first():
            if fabric.is_global_zero:
                check_folder(folder, resume)
                stack.enter_context(only_writer(output_folder(folder)))
            resume = resume or not fabric.is_global_zero
            claim_folder(folder, dataset, config, training, validation, resume, source, corrections)
            if resume and (folder / "model.json").exists():
                reporter.say(f"{folder} is finished already")
                return load_model(folder)
            stored, fingerprint = preprocess(
                store or context.work / "store",
                prepared,
                dataset.labels,
                config.data,
                channels=dataset.channels,
                fingerprint=source.fingerprint if source else None,
                workers=workers,
                reporter=reporter,
            )
            claim_data(folder, stored)
        return _train(
            context, folder, dataset, stored, fingerprint, training, validation, source, corrections
        )


def check_fit(
    config: Config,
    dataset: Dataset,
    reference_candidates: Sequence[Case],
    source: Model | None,
    corrections: Corrections,
    processes: int,
) -> None:
    """Raise an InputError where settings do not fit the dataset, the model to fine-tune or each other.

    Args:
        config: all settings.
        dataset: to train on.
        reference_candidates: cases among which the reference is chosen.
        source: model to fine-tune.
        corrections: poses and crops set by hand.
        processes: number of processes that train together.
    """
    labels = dataset.labels
    check_reference(config.pose, [case.id for case in reference_candidates])
    pose_channel_of(config.data, dataset.channels)
    normalizations_of(config.data, dataset.channels)
    oversampling(config.train.oversample, labels)
    check_mirroring(config, labels)
    check_source(source, config, dataset)
    if corrections and config.dims == 3:
        raise InputError("--corrections: poses set by hand are those of slices, expected dims=2, got dims=3")
    check_batches(config, processes)


def _train(
    context: StageContext,
    folder: Path,
    dataset: Dataset,
    stored: Store,
    fingerprint: Fingerprint,
    training: tuple[Case, ...],
    validation: tuple[Case, ...],
    source: Model | None,
    corrections: Corrections,
) -> Model:
    """Train all stages on preprocessed cases, write the model, and return it as it is read back."""
    fabric, reporter = context.fabric, context.reporter
    warn_of_leakage(source, stored, validation, reporter)
    cases = {case.record.id: case for case in stored.cases}
    train_slices = Slices([cases[case.id] for case in training])
    if not train_slices.presence.any():
        raise InputError(
            f"{dataset.root}: no training slice shows both a label and the body; are these the right label "
            "files?"
        )
    val_slices = Slices([cases[case.id] for case in validation]) if validation else None
    if corrections:
        corrected = count_corrected(train_slices, corrections)
        reporter.say(f"{corrected} of {len(training)} training cases have a pose or crop set by hand")

    config = decide_mirroring(context.config, dataset.labels, train_slices, reporter)
    context = replace(context, config=config)
    scale = fingerprint.pose_scale(config.data)
    if source is None:
        candidates = measured_cases(training, validation, config.train)[0]
        reference = _choose_reference(context, [cases[case.id] for case in candidates], scale.air)
        mask, reference_facts = reference.mask, reference_info(reference, stored)
        if config.data.plane == "axial":
            context = replace(context, truth=_angles_to_reference(true_rolls(dataset.root), reference))
    else:
        mask, reference_facts = source.pipeline.pose.reference_mask, source.info.reference
    networks = Networks(config, dataset.labels.classes, mask, scale.air, scale.top, airs_of(fingerprint))
    if source is not None:
        networks.load_state_dict(source.pipeline.state_dict())
        networks.unet.freeze(config.train.parts)
    networks.to(context.fabric.device)

    # Networks that no stage trains keep their statistics: a batch norm in training mode would replace them.
    networks.eval()
    if networks.pose.roll is not None and source is None:
        load_shipped(networks.pose.roll, config.pose.contrast)
    if config.dims == 3:
        stages, roll_check = volume_stages(context, networks, train_slices, val_slices), None
    else:
        stages, roll_check = slice_stages(context, networks, train_slices, val_slices, corrections)

    info = ModelInfo(
        training_info(stored, training, validation, source, corrections),
        reference_facts,
        stages_info(stages),
        roll_check,
        tuple(row for stage in stages for row in stage.history),
    )
    if fabric.is_global_zero:
        save_model(folder, Model(networks, config, dataset.labels, fingerprint, info))
        write_text(folder / CARD, model_card(load_model(folder)))
    fabric.barrier()
    return load_model(folder)


def _choose_reference(context: StageContext, cases: Sequence[StoredCase], air: float) -> Reference:
    """Choose the reference patient among prepared cases, and report it."""
    plane = context.config.data.plane
    reference = choose_reference(cases, context.config.pose, air, plane)
    pose = f"symmetry {reference.symmetry:.2f}, turned upright by {math.degrees(reference.lean):+.1f} degrees"
    context.reporter.say(
        f"reference: {reference.case}, slice {reference.slice}, chosen {reference.chosen} "
        f"(body {reference.area_cm2:.0f} cm², {pose if plane == 'axial' else f'{plane}, as it lies'})"
    )
    return reference


def _angles_to_reference(rolls: Mapping[str, float], reference: Reference) -> dict[str, float]:
    """Return each case's true roll relative to the homogenized reference, radians, by case id.

    Args:
        rolls: true roll of each case relative to upright, radians, by case id.
        reference: the reference; it was turned upright by its estimated ``lean``, which may differ from its
            true roll.

    Returns:
        Angles by case id; empty if the reference's true roll is not known.
    """
    if reference.case not in rolls:
        return {}
    own = rolls[reference.case] - reference.lean
    return {case: roll - own for case, roll in rolls.items()}
