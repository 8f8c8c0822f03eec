"""``isopose fit``: from a dataset to a model folder, stage after stage."""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything

from isopose.config import Config
from isopose.data.fingerprint import Fingerprint
from isopose.data.slices import Slices
from isopose.data.store import Store
from isopose.data.volumes import Volumes
from isopose.devices import choose_device, choose_precision
from isopose.errors import InputError
from isopose.files import hash_of, only_writer, output_folder, read_json, write_json, write_text
from isopose.io.datasets import Case, Dataset
from isopose.labels import Labels, mirrored_classes
from isopose.models.card import CARD, model_card
from isopose.models.folder import Model, load_model, save_model
from isopose.models.pipeline import Pipeline
from isopose.models.shipped import load_shipped
from isopose.models.volume import VolumePipeline, pipeline_for
from isopose.progress import Reporter, Silent
from isopose.ranks import launched, strategy_for
from isopose.training.augmentation import Augmentation
from isopose.training.by_hand import (
    Corrections,
    cases_by_hand,
    crops_by_hand,
    poses_by_hand,
    where_set,
)
from isopose.training.checkpoint import Progress
from isopose.training.loop import NOISE, Stage, train_stage
from isopose.training.precision import precision_plugin
from isopose.training.preprocessing import preprocess, split
from isopose.training.stages import (
    CropObjective,
    JointObjective,
    PoseObjective,
    RollObjective,
    SegmentationObjective,
)
from isopose.training.targets import Reference, check_reference, choose_reference
from isopose.training.transfer import check_source
from isopose.training.transforms import box_of_all, poses_of, transforms_of, turned
from isopose.training.volumes import (
    NOISE3D,
    VolumeCropObjective,
    VolumeSegmentationObjective,
    reach_of,
    turned_volumes,
    volume_box_of_all,
    volume_crops_of,
    volume_poses_of,
)


@dataclass(frozen=True)
class Run:
    """What the stages of one run share."""

    config: Config
    labels: Labels
    fabric: Fabric
    work: Path
    reporter: Reporter


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
) -> Model:
    """Train pose, crop (or both as one) and U-Net one after the other and write the model.

    Args:
        dataset: cases with labels; those of split ``test`` are never looked at.
        folder: the model's; ``folder/work`` keeps store, checkpoints and curves.
        config: all settings.
        source: a model to begin from (transfer learning), of which ``train.parts`` learn on. Its reference,
            normalisation and frame stay.
        resume: go on with what ``folder`` holds.
        store: folder for preprocessed slices, which runs may share; else ``folder/work/store``.
        corrections: poses and crops set by hand, by the hash of a scan: what the training cases among them
            are trained towards. Validation cases are seen as a prediction will see its own.
        workers: processes for preprocessing; 0 does it here.
        reporter: where progress goes.

    Raises:
        InputError: the dataset or a setting does not allow it, or the folder holds another run.
    """
    seed_everything(config.train.seed, verbose=False)
    fabric = _fabric(config)
    reporter = reporter if reporter and fabric.is_global_zero else Silent()
    training, validation = split(dataset, config.train)
    # What is named wrongly is told before the folder is marked as this run's, for the next try differs.
    check_reference(config.pose, [case.id for case in training])
    _oversampling(config.train.oversample, dataset.labels)
    _check_mirroring(config, dataset.labels)
    check_source(source, config, dataset.labels)
    if corrections and config.dims == 3:
        raise InputError("--corrections: poses set by hand are those of slices, expected dims=2, got dims=3")
    _check_batches(config, fabric.world_size)
    run = Run(config, dataset.labels, fabric, folder / "work", reporter)
    # The others find what the first has made, and go on with it; the first holds the folder for all.
    with ExitStack() as held:
        with fabric.rank_zero_first():
            follows = not fabric.is_global_zero
            if not follows:
                _check_claim(folder, resume)
                output_folder(folder)
                held.enter_context(only_writer(folder))
            _claim(
                folder, dataset, config, training, validation, resume or follows, source, corrections or {}
            )
            if (resume or follows) and (folder / "model.json").exists():
                reporter.say(f"{folder} is finished already")
                return load_model(folder)
            given = source.fingerprint if source else None
            stored, fingerprint = preprocess(
                store or run.work / "store",
                (training, validation),
                dataset.labels,
                config.data,
                given=given,
                workers=workers,
                reporter=reporter,
            )
            _claim_data(folder, stored)
        return _fit(
            run, folder, dataset, stored, fingerprint, training, validation, source, corrections or {}
        )


def _fit(
    run: Run,
    folder: Path,
    dataset: Dataset,
    stored: Store,
    fingerprint: Fingerprint,
    training: tuple[Case, ...],
    validation: tuple[Case, ...],
    source: Model | None,
    corrections: Corrections,
) -> Model:
    config, fabric, reporter = run.config, run.fabric, run.reporter
    _warn_of_seen(source, stored, validation, reporter)
    cases = {case.record.id: case for case in stored.cases}
    train_slices = Slices([cases[case.id] for case in training])
    if not train_slices.presence.any():
        raise InputError(
            f"{dataset.root}: no training slice shows both a label and the body; are these the right label "
            "files?"
        )
    val_slices = Slices([cases[case.id] for case in validation]) if validation else None
    if corrections:
        by_hand = cases_by_hand(train_slices, corrections)
        reporter.say(f"{by_hand} of {len(training)} training cases have a pose or crop set by hand")

    air = train_slices.cases[0].record.air
    if source is None:
        reference = choose_reference(train_slices.cases, config.pose, air)
        reporter.say(
            f"reference: {reference.case}, slice {reference.slice}, chosen {reference.chosen} "
            f"(body {reference.area_cm2:.0f} cm², symmetry {reference.symmetry:.2f}, turned upright by "
            f"{math.degrees(reference.lean):+.1f} degrees)"
        )
        mask, of_reference = reference.mask, _of_reference(reference, stored)
    else:
        mask, of_reference = source.pipeline.pose.reference_mask, source.info["reference"]
    pipeline = pipeline_for(config, dataset.labels.classes, mask, air, fingerprint.intensity.top)
    if source is not None:
        pipeline.load_state_dict(source.pipeline.state_dict())
        pipeline.unet.freeze(config.train.parts)
    pipeline.to(run.fabric.device)

    # What no stage trains keeps its statistics: a batch norm in training mode would replace the shipped ones.
    pipeline.eval()
    if pipeline.pose.roll is not None and source is None:
        load_shipped(pipeline.pose.roll)
    if isinstance(pipeline, VolumePipeline):
        stages = _volume_stages(run, pipeline, train_slices, val_slices)
    else:
        stages = _slice_stages(run, pipeline, train_slices, val_slices, corrections)

    info = _info(stages, of_reference, stored, training, validation, source)
    if corrections:
        info["training"]["corrections_sha256"] = sorted(one.sha256 for one in corrections.values())
    if fabric.is_global_zero:
        save_model(folder, Model(pipeline, config, dataset.labels, fingerprint, info))
        write_text(folder / CARD, model_card(load_model(folder)))
    fabric.barrier()
    return load_model(folder)


def _slice_stages(
    run: Run, pipeline: Pipeline, train_slices: Slices, val_slices: Slices | None, corrections: Corrections
) -> list[Progress]:
    """Train the networks of slices; the pipeline then holds the best weights."""
    config = run.config
    reference = pipeline.pose.reference_mask.cpu()
    by_hand = poses_by_hand(train_slices, corrections, reference)

    def find_poses() -> None:
        for slices in filter(None, (train_slices, val_slices)):
            slices.pose = poses_of(pipeline, slices, run.fabric.device)
        train_slices.pose = where_set(by_hand, train_slices.pose)

    stages: list[Progress] = []
    # Of a model that is trained on in parts, pose and crop are not among them.
    learning = config.train.parts == "all"
    if pipeline.pose.localisation is not None and learning:
        pose = PoseObjective(pipeline, by_hand if by_hand.isfinite().any() else None)
        stages.append(_train(run, "pose", pose, train_slices, val_slices, 0))
    if pipeline.pose.roll is not None and config.pose.learned and learning:
        find_poses()
        stages.append(_train(run, "pose", RollObjective(pipeline), train_slices, val_slices, 0))
        run.reporter.say(
            "note: the confidence of a fine-tuned roll network is not calibrated anew: on scans unlike these "
            "it doubts poses that are right (docs/pose.md)"
        )
    find_poses()
    for slices in filter(None, (train_slices, val_slices)):
        for line in turned(slices):
            run.reporter.say(line)
    if pipeline.joint is not None and learning:
        stages.append(_train(run, "joint", JointObjective(pipeline), train_slices, val_slices, 3, "crop"))
    if config.crop.enabled and not config.crop.learned and learning:
        pipeline.crop.start.copy_(box_of_all(pipeline, train_slices, run.fabric.device))
    crops = crops_by_hand(train_slices, corrections, reference)
    if pipeline.crop.localisation is not None and learning:
        labelled = train_slices.labelled()
        judged = val_slices.labelled() if val_slices else None
        of_labelled = crops[torch.from_numpy(train_slices.presence.any(axis=1))]
        crop = CropObjective(pipeline, of_labelled if of_labelled.isfinite().any() else None)
        stages.append(_train(run, "crop", crop, labelled, judged or None, 1))
    for slices in filter(None, (train_slices, val_slices)):
        slices.pose, slices.theta2 = transforms_of(pipeline, slices, run.fabric.device)
    train_slices.pose = where_set(by_hand, train_slices.pose)
    # In the final poses, which a joint network has changed where none was set.
    crops = crops_by_hand(train_slices, corrections, reference)
    train_slices.theta2 = where_set(crops, train_slices.theta2)
    pipeline.unet = pipeline.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unet = SegmentationObjective(pipeline, run.labels.names)
    stages.append(
        _train(run, "unet", unet, train_slices, val_slices, 2, augment=_augmentation(run, pipeline))
    )
    return stages


def _augmentation(run: Run, pipeline: Pipeline) -> Augmentation | None:
    """What the U-Net's slices go through while it trains, in place of homogenisation."""
    if run.config.unet.augmentation == "off":
        return None
    # nnU-Net mirrors whatever the labels are; here no left kidney becomes a right one.
    try:
        mirror = mirrored_classes(run.labels.names) == tuple(range(run.labels.classes))
    except InputError:
        mirror = False
    if not mirror:
        run.reporter.say("note: the labels have sides, so the augmentation does not mirror")
    return Augmentation(pipeline.air, mirror=mirror)


def _volume_stages(
    run: Run, pipeline: VolumePipeline, train_slices: Slices, val_slices: Slices | None
) -> list[Progress]:
    """Likewise for whole volumes, whose pose needs no training."""
    crop, device = run.config.crop, run.fabric.device
    training = Volumes(train_slices.cases)
    validation = Volumes(val_slices.cases) if val_slices else None
    stages: list[Progress] = []
    learning = run.config.train.parts == "all"
    for volumes in filter(None, (training, validation)):
        volumes.pose = volume_poses_of(pipeline, volumes, device)
        for line in turned_volumes(volumes):
            run.reporter.say(line)
    if learning:
        pipeline.reach.fill_(reach_of(training))
    if crop.enabled and not crop.learned and learning:
        pipeline.crop.start.copy_(volume_box_of_all(pipeline, training, device))
    if pipeline.crop.localisation is not None and learning:
        judged = validation.labelled() if validation else None
        objective = VolumeCropObjective(pipeline)
        stages.append(_train(run, "crop", objective, training.labelled(), judged or None, 1))
    for volumes in filter(None, (training, validation)):
        volumes.theta2 = volume_crops_of(pipeline, volumes, device)
    unet = VolumeSegmentationObjective(pipeline, run.labels.names)
    stages.append(_train(run, "unet", unet, training, validation, 2))
    return stages


def _check_batches(config: Config, processes: int) -> None:
    """Refuse batches that cannot be shared out evenly, before anything is trained."""
    if processes == 1:
        return
    for name in ("unet", "pose", "crop"):
        optimiser = getattr(config, name).optimiser
        if optimiser.batch_size % (optimiser.parts * processes):
            raise InputError(
                f"{name}.optimiser.batch_size: expected a multiple of {optimiser.parts * processes} "
                f"({name}.optimiser.parts times processes), got {optimiser.batch_size}"
            )


def _check_claim(folder: Path, resume: bool) -> None:
    """Refuse to begin where something is."""
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: not empty; add --resume to go on with it, or name another folder")


def _claim(
    folder: Path,
    dataset: Dataset,
    config: Config,
    training: tuple[Case, ...],
    validation: tuple[Case, ...],
    resume: bool,
    source: Model | None,
    corrections: Corrections,
) -> None:
    """Mark a folder as this run's, so that another run or other settings never mix with it."""
    run = {
        "config": hash_of(config.model_dump(mode="json")),
        "labels": hash_of(dict(dataset.labels.values)),
        "cases": hash_of([[case.id for case in part] for part in (training, validation)]),
        "model to begin from": source.weights_sha256 if source else "",
        "corrections": hash_of(sorted(one.sha256 for one in corrections.values())),
    }
    marker = folder / "work" / "run.json"
    if not resume:
        write_json(marker, run)
    elif marker.exists():
        other = [name for name, value in read_json(marker).items() if value != run.get(name)]
        if other:
            raise InputError(
                f"{folder}: was started with another {' and '.join(other)}; give the same again "
                "to resume, or name another folder"
            )
    else:
        if folder.exists() and any(entry.name != "work" for entry in folder.iterdir()):
            raise InputError(f"{folder}: holds something that no isopose fit began here; name another folder")
        write_json(marker, run)


def _claim_data(folder: Path, stored: Store) -> None:
    """Refuse to go on with other images or labels under the same names: the stages would be of two minds."""
    marker = folder / "work" / "data.json"
    sources = {"sources": hash_of([[case.record.id, case.record.sources] for case in stored.cases])}
    if marker.exists() and read_json(marker) != sources:
        raise InputError(
            f"{folder}: was started with other images or labels; bring them back to resume, "
            "or name another folder"
        )
    write_json(marker, sources)


def _warn_of_seen(
    source: Model | None, stored: Store, validation: tuple[Case, ...], reporter: Reporter
) -> None:
    """Say where the patients that decide when to stop are among those of the model to begin from."""
    known = set(source.info["training"]["images_sha256"]) if source else set()
    names = {case.id for case in validation}
    both = [c for c in stored.cases if c.record.id in names and c.record.sources["image"] in known]
    if both:
        reporter.say(
            f"warning: {len(both)} of {len(validation)} validation cases trained the model that this one "
            "begins from: their scores flatter, and training may stop too late"
        )


def _fabric(config: Config) -> Fabric:
    device = choose_device(config.train.device).type
    precision = choose_precision(config.train.precision, device)
    here, machines = launched()
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=machines,
        strategy=strategy_for(device),
        plugins=precision_plugin(precision, device),
    )
    fabric.launch()
    return fabric


def _train(
    run: Run,
    name: str,
    objective: Any,
    training: Slices | Volumes,
    validation: Slices | Volumes | None,
    number: int,
    section: str = "",
    augment: Augmentation | None = None,
) -> Progress:
    started = time.monotonic()
    if isinstance(validation, Slices):
        validation = validation.spread(run.config.train.validation_slices)
    stage = Stage(
        name=name,
        objective=objective,
        config=getattr(run.config, section or name).optimiser,
        training=training,
        validation=validation,
        least=_oversampling(run.config.train.oversample, run.labels),
        seed=(run.config.train.seed, number),
        section=section,
        noise=NOISE3D if run.config.dims == 3 else NOISE,
        augment=augment,
    )
    progress = train_stage(stage, run.fabric, run.work, run.reporter)
    best = f", best {progress.best:.4f} in epoch {progress.best_epoch}" if progress.best is not None else ""
    run.reporter.say(f"{name}: {progress.epoch} epochs{best}, {time.monotonic() - started:.0f} s")
    return progress


def _oversampling(configured: Mapping[str, float] | None, labels: Labels) -> dict[int, float]:
    """Label column to the least part of slices that show it (the paper: a third kidney, a third tumour)."""
    if configured is None:
        return dict.fromkeys(range(min(2, len(labels.names))), 1.0 / 3.0)
    unknown = sorted(set(configured) - set(labels.names))
    if unknown:
        raise InputError(
            f"train.oversample: no label {unknown[0]!r}; expected some of {', '.join(labels.names)}"
        )
    return {labels.names.index(name): fraction for name, fraction in configured.items()}


def _check_mirroring(config: Config, labels: Labels) -> None:
    """Refuse to mirror what has a side and no partner, before anything is trained."""
    for setting, off, wanted in (
        ("unet.mirror", "unet.mirror=0", config.unet.mirror > 0),
        ("predict.mirror", "predict.mirror=false", config.predict.mirror),
    ):
        if not wanted:
            continue
        try:
            mirrored_classes(labels.names)
        except InputError as error:
            raise InputError(f"{setting}: {error}; set {off}") from None


def _of_reference(reference: Reference, store: Store) -> dict[str, Any]:
    """What is kept of the reference: numbers and a hash, no case's name."""
    (record,) = [case.record for case in store.cases if case.record.id == reference.case]
    return {
        "image_sha256": record.sources["image"],
        "slice": reference.slice,
        "chosen": reference.chosen,
        "area_cm2": reference.area_cm2,
        "symmetry": reference.symmetry,
        "lean": reference.lean,
    }


def _info(
    stages: list[Progress],
    reference: dict[str, Any],
    store: Store,
    training: tuple[Case, ...],
    validation: tuple[Case, ...],
    source: Model | None,
) -> dict[str, Any]:
    """What is kept with the model: numbers and hashes, no case's name."""
    by_id = {case.record.id: case.record for case in store.cases}
    # What the model to begin from has seen, this one has seen as well.
    before = source.info["training"] if source else {}

    def hashes(cases: tuple[Case, ...], key: str) -> list[str]:
        return [*(by_id[case.id].sources["image"] for case in cases), *before.get(key, ())]

    return {
        "reference": reference,
        "training": {
            "cases": len(training),
            "patients": len({case.patient for case in training}),
            "validation_cases": len(validation),
            "images_sha256": hashes(training, "images_sha256"),
            "validation_images_sha256": hashes(validation, "validation_images_sha256"),
            "from_weights_sha256": source.weights_sha256 if source else None,
        },
        "stages": {
            stage.history[0]["stage"]: {
                "epochs": stage.epoch,
                "best_epoch": stage.best_epoch,
                "best": stage.best,
            }
            for stage in stages
        },
        "history": [row for stage in stages for row in stage.history],
    }
