"""``isopose homogenize``: a dataset or scans in, an nnU-Net raw dataset in one pose and size out."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from isopose.choices import AUTO, Modality, Plane
from isopose.config import HomogenizeConfig
from isopose.data.modality import modality_of
from isopose.data.normalization import channel_number, pose_channel_of
from isopose.devices import one_thread
from isopose.errors import InputError
from isopose.files import composed, hash_of, only_writer, output_folder, write_json, write_text
from isopose.homogenize.estimator import PoseEstimator, open_estimator
from isopose.homogenize.record import (
    FOLDER,
    FORMAT,
    HEAD,
    CaseRecord,
    read_record,
    record_path,
    write_record,
)
from isopose.homogenize.reference import ReferenceOutline, find_reference
from isopose.homogenize.scan import homogenize_scan
from isopose.homogenize.warping import homogenized_image
from isopose.inference.files import check_apart, find_scans
from isopose.io.cases import CT, Case, Dataset, dataset_of
from isopose.io.channels import hash_of_channels, read_channels
from isopose.io.datasets import is_dataset, open_dataset
from isopose.io.images import read_labels, write_image, write_labels
from isopose.io.masks import read_mask
from isopose.io.sources import hash_of_source
from isopose.isolation import Failed, failure_of, named
from isopose.labels import Labels
from isopose.models.folder import load_model, versions
from isopose.outputs import Outcome, claim, damaged, remove, replacing_results, sweep
from isopose.parallel import attempts
from isopose.progress import Reporter
from isopose.settings import DataConfig
from isopose.version import __version__

ENDING = ".nii.gz"

CaseOutcome = Outcome[CaseRecord]


@dataclass(frozen=True)
class HomogenizeSettings:
    """What all cases share; small and picklable, as it goes to other processes.

    Args:
        root: folder of the homogenized dataset.
        model: folder of the model whose poses are taken; None for those of the shipped network.
        config: one pose for a scan or several, and the size; names no reference.
        reference: whose pose and size the scans get; None for that of the model.
        labels: of the source dataset.
        sha256: of all that decides a result besides its scan and label file.
        series: which DICOM series is meant where scans hold several, see ``read_volume``.
        channels: names of the scans' channels.
        pose_channel: number of the channel that shows body and pose.
    """

    root: Path
    model: Path | None
    config: HomogenizeConfig
    reference: ReferenceOutline | None
    labels: Labels
    sha256: str
    series: str | None = None
    channels: tuple[str, ...] = CT
    pose_channel: int = 0


def open_input(path: Path, labels: Mapping[str, int] | None = None) -> Dataset:
    """A dataset, or scans without labels as one: a file, a folder of files, a DICOM series' folder.

    Args:
        path: see :func:`isopose.io.datasets.open_dataset` and :func:`isopose.inference.files.find_scans`.
        labels: name to stored value, in place of what a dataset's layout says.

    Raises:
        InputError: neither.
    """
    if is_dataset(path):
        return open_dataset(path, labels)
    if labels:
        raise InputError(f"{path}: scans without labels; --label is for a dataset that has some")
    return scans_as_dataset(path)


def scans_as_dataset(path: Path, series: str | None = None) -> Dataset:
    """Scans without labels as a dataset of test cases.

    Args:
        path: see :func:`isopose.inference.files.find_scans`.
        series: number or instance UID, for DICOM that holds several series.

    Raises:
        InputError: no scans, or some of several channels, whose names only a dataset tells.
    """
    scans = find_scans([path], series)
    for scan in scans:
        if scan.further:
            raise InputError(
                f"{scan.path}: has {len(scan.paths)} channels (_0000, _0001, ...); give a dataset whose "
                "dataset.json names them, or, if they are scans, rename them"
            )
    cases = [Case(scan.name, scan.path, None, patient=scan.name, split="test") for scan in scans]
    # Not the folder's name, which may be a patient's.
    return dataset_of("scans", "scans", path, Labels({}), cases)


def homogenize(
    dataset: Dataset,
    output: Path,
    config: HomogenizeConfig,
    *,
    model: Path | None = None,
    workers: int = 0,
    reporter: Reporter,
) -> list[CaseOutcome]:
    """Bring every case to one pose and size; one that fails, whatever by, is reported and stops no other.

    Writes an nnU-Net v2 raw dataset (``docs/formats.md``). Cases with labels that are not for testing go to
    ``imagesTr`` and ``labelsTr``, all others to ``imagesTs`` and, with labels, ``labelsTs``. A case that is
    there whole, made by the same isopose from the same scan, labels, model and settings, is not made again.

    Args:
        dataset: see :func:`open_input`.
        output: a new folder, or one that this command was stopped in.
        config: one pose for a scan or several, the size, and the reference.
        model: a model's folder whose poses are taken; none: those of the shipped network.
        workers: processes; any number writes the same voxels.
        reporter: where progress goes.

    Returns:
        One for each case, in their order.

    Raises:
        InputError: no such model or reference, a folder that holds something else, or one in that of a DICOM
            series.
        RunError: the output is full or cannot be written to.
    """
    if dataset.layout == "scans":
        check_apart([dataset.root], output)
    pose_channel = _find_pose_channel(config, dataset, model)
    config = with_plane(config.model_copy(update={"pose_channel": pose_channel}), model)
    config = with_modality(config, dataset, model)
    modality: Modality = "mr" if config.modality == "mr" else "ct"
    shown = [replace(case, image=case.images[pose_channel]) for case in dataset.cases]
    reference = find_reference(config.reference, model, shown, modality, config.plane or "axial")
    estimator = open_estimator(model, config, reference)
    settings = settings_of(dataset, output, config, model, reference, estimator)
    head = head_of(dataset, settings, estimator)
    check_claim(settings, dataset)
    output_folder(settings.root)
    with only_writer(settings.root):
        return _homogenize(dataset, settings, head, workers, reporter)


def _find_pose_channel(config: HomogenizeConfig, dataset: Dataset, model: Path | None) -> int:
    """Return the number of the channel that shows body and pose.

    Raises:
        InputError: there is no such channel, or the model finds poses in one that the dataset lacks.
    """
    names = dataset.channels
    if config.pose_channel is not None:
        return channel_number(config.pose_channel, names, "--pose-channel")
    if model is None or len(names) == 1:
        return 0
    loaded = load_model(model)
    wanted = loaded.channels[pose_channel_of(loaded.config.data, loaded.channels)]
    if wanted not in names:
        raise InputError(
            f"{dataset.root}: has the channels {', '.join(names)}, and the model finds poses in {wanted}; "
            "name the one that shows the same with --pose-channel"
        )
    return names.index(wanted)


def with_modality(config: HomogenizeConfig, dataset: Dataset, model: Path | None) -> HomogenizeConfig:
    """Return the configuration with the modality that a dataset states, where none was given.

    Scans and tables state none: they are what the model is of, else CT.
    """
    if config.modality != AUTO or (dataset.layout in ("scans", "manifest") and model is not None):
        return config
    return config.model_copy(
        update={"modality": modality_of(DataConfig(pose_channel=config.pose_channel or 0), dataset.channels)}
    )


def with_plane(config: HomogenizeConfig, model: Path | None) -> HomogenizeConfig:
    """Return the configuration with the plane of the scans' slices, where none was given: the model's."""
    if config.plane is not None:
        return config
    plane: Plane = "axial" if model is None else load_model(model).config.data.plane
    return config.model_copy(update={"plane": plane})


def _homogenize(
    dataset: Dataset, settings: HomogenizeSettings, head: dict[str, Any], workers: int, reporter: Reporter
) -> list[CaseOutcome]:
    begin(settings, head)
    say_doubts(settings, reporter)
    started, made, outcomes = time.monotonic(), 0, []
    work = partial(make_case, settings=settings)
    total = len(dataset.cases)
    try:
        with reporter.counting("homogenize") as progress:
            found = attempts(work, dataset.cases, name=attrgetter("id"), workers=workers, progress=progress)
            for done, (case, result) in enumerate(zip(dataset.cases, found, strict=True), start=1):
                outcome = Outcome(case.id, None, result.why) if isinstance(result, Failed) else result
                if isinstance(result, Failed):
                    remove(_results(settings.root, case.id, len(settings.channels)))
                outcomes.append(outcome)
                made += outcome.made
                each = (time.monotonic() - started) / max(made, 1)
                reporter.say(f"[{done}/{total}] {outcome.name}{_reported(outcome, each * (total - done))}")
                for warning in outcome.record.warnings if outcome.record else ():
                    reporter.say(f"  warning: {warning}")
    finally:
        # A worker that is stopped cannot clear away what it was writing.
        sweep(settings.root)
    finish(dataset, settings, head, outcomes)
    return outcomes


def _reported(outcome: CaseOutcome, seconds_left: float) -> str:
    if outcome.problem is not None:
        return f"\n  error: {outcome.problem}"
    if not outcome.made:
        return "  is there already, made from the same scan and settings"
    return f"  about {seconds_left:.0f} s left" if seconds_left else ""


def say_doubts(settings: HomogenizeSettings, reporter: Reporter) -> None:
    """Report what is to be doubted of the reference."""
    for warning in settings.reference.warnings if settings.reference else ():
        reporter.say(f"warning: the reference: {warning}")


def settings_of(
    dataset: Dataset,
    root: Path,
    config: HomogenizeConfig,
    model: Path | None,
    reference: ReferenceOutline | None,
    estimator: PoseEstimator,
) -> HomogenizeSettings:
    """Return what all cases of a run share."""
    labels, channels = dataset.labels, dataset.channels
    pose_channel = channel_number(config.pose_channel or 0, channels, "--pose-channel")
    # Hashes are of what reference and channel are, not of how they were named.
    config = config.model_copy(update={"reference": None, "pose_channel": pose_channel})
    decides = [FORMAT, __version__, config.model_dump(mode="json"), estimator.sha256, labels.stored]
    if len(channels) > 1:
        decides.append(list(channels))
    return HomogenizeSettings(
        Path(root),
        model,
        config,
        reference,
        labels,
        hash_of(decides),
        channels=channels,
        pose_channel=pose_channel,
    )


def head_of(dataset: Dataset, settings: HomogenizeSettings, estimator: PoseEstimator) -> dict[str, Any]:
    """What ``homogenize.json`` says of all cases."""
    return {
        "format": FORMAT,
        "complete": False,
        "versions": versions(),
        "settings_sha256": settings.sha256,
        "modality": estimator.modality,
        "plane": estimator.data.plane,
        "per": settings.config.per,
        "crop": settings.config.crop,
        "scale_z": settings.config.scale_z,
        "poses_from": estimator.origin,
        "poses_sha256": estimator.sha256,
        "reference": {
            "kind": estimator.reference.kind,
            "sha256": estimator.reference.sha256,
            "case": estimator.reference.case,
            "size": estimator.size,
            "pixel_mm": estimator.pixel_mm,
            "side_mm": estimator.side_mm,
        },
        # nnU-Net wants consecutive values; restoring gives the dataset's own back.
        "labels": {
            name: {"value": value, "stored": dataset.labels.values[name]}
            for name, value in _written(dataset.labels).items()
        },
        "cases": [],
        "failed": [],
    }


def check_claim(settings: HomogenizeSettings, dataset: Dataset) -> None:
    """Make sure that the folder is ours: absent, empty, or begun with the same settings and cases."""
    begun = claim(
        settings.root,
        settings.root / HEAD,
        {"settings_sha256": settings.sha256},
        other="was homogenized by another isopose or with another model, settings or labels",
        strange="is not empty and holds no homogenized dataset",
    )
    if begun is None:
        return
    records = (path for path in (settings.root / FOLDER).glob("*.json") if not path.name.startswith("."))
    unknown = {composed(path.stem) for path in records} - {case.id for case in dataset.cases}
    if unknown:
        raise InputError(
            f"{settings.root}: holds case {min(unknown)!r}, which {dataset.root} does not have; "
            "choose another folder"
        )


def begin(settings: HomogenizeSettings, head: dict[str, Any]) -> None:
    """Mark the folder as this dataset's, before its cases are made."""
    sweep(settings.root)
    # Until all cases were tried this is not a dataset.
    (settings.root / "dataset.json").unlink(missing_ok=True)
    write_json(settings.root / HEAD, head)


@lru_cache(maxsize=1)
def _estimator(
    model: Path | None, config: HomogenizeConfig, reference: ReferenceOutline | None
) -> PoseEstimator:
    """Opened once in each process."""
    return open_estimator(model, config, reference)


@one_thread()
def make_case(
    case: Case, *, settings: HomogenizeSettings, reported: type[Exception] = Exception
) -> CaseOutcome:
    """Homogenize one case and write it, unless it is there already; why it cannot be done is not raised.

    Of what is raised only ``reported`` becomes the case's line; a cluster tries again what may pass.

    Raises:
        RunError: it concerns all cases.
    """
    try:
        return _make_case(case, settings)
    except reported as error:
        line = str(failure_of(error))
        remove(_results(settings.root, case.id, len(settings.channels)))
        return Outcome(case.id, None, named(line, str(case.image)))


def _make_case(case: Case, settings: HomogenizeSettings) -> CaseOutcome:
    root = settings.root
    part: Literal["Tr", "Ts"] = "Tr" if case.label is not None and case.split != "test" else "Ts"
    sources = {"image": hash_of_image(case, settings.series)}
    if case.label is not None:
        sources["label"] = hash_of_source(case.label)
    if case.mask is not None:
        sources["mask"] = hash_of_source(case.mask)
    known = _known(settings, case.id, part, sources)
    if known is not None and not damaged(root, known.files):
        return Outcome(case.id, known, None, made=False)
    record, *results = _results(root, case.id, len(settings.channels))
    with replacing_results(record, results, stale=results):
        estimator = _estimator(settings.model, settings.config, settings.reference)
        volumes = read_channels(case.images, settings.channels, settings.series, estimator.modality)
        volume = volumes[settings.pose_channel]
        body = None if case.mask is None else read_mask(case.mask, volume)
        classes, notes = None, list[str]()
        if case.label is not None:
            stored = read_labels(case.label, like=volume, note=notes.append)
            classes = stored.with_array(settings.labels.to_nnunet(stored.array))
        scan = homogenize_scan(estimator, volume, classes, settings.labels.classes, body)
        scan = replace(scan, warnings=(*scan.warnings, *(f"label: {note}" for note in notes)))
        label, *images = _paths(root, case.id, part, len(volumes))
        if scan.labels is not None:
            write_labels(scan.labels, label)
        for path, one, name in zip(images, volumes, settings.channels, strict=True):
            kind: Modality = "ct" if name.casefold() == "ct" else "mr"
            brought = scan.image if one is volume else homogenized_image(one, scan.transform, kind)
            write_image(brought, path)
        files = [*images, label] if scan.labels is not None else images
        made = write_record(root, case.id, part, scan, estimator.reference, settings.sha256, sources, files)
        return Outcome(case.id, made, None)


def hash_of_image(case: Case, series: str | None) -> str:
    """Return the hash of a scan's files, and of the choice among the series that they hold."""
    files = hash_of_channels(case.images)
    return files if series is None else hash_of([files, series])


def _known(settings: HomogenizeSettings, case: str, part: str, sources: dict[str, str]) -> CaseRecord | None:
    """Return a case's record if it was made by the same isopose from the same files and settings."""
    try:
        record = read_record(record_path(settings.root, case))
    except InputError:
        return None
    wanted = (__version__, case, part, sources, settings.sha256)
    found = (record.isopose, record.case, record.part, record.sources, record.settings_sha256)
    return record if found == wanted else None


def _paths(root: Path, case: str, part: str, channels: int) -> list[Path]:
    """Return the paths of a case's label map and of its images."""
    images = [root / f"images{part}" / f"{case}_{number:04d}{ENDING}" for number in range(channels)]
    return [root / f"labels{part}" / f"{case}{ENDING}", *images]


def image_path(root: Path, case: str, channel: int = 0) -> Path:
    """Return where a channel of the homogenized image of a scan without labels lies."""
    return _paths(root, case, "Ts", channel + 1)[-1]


def _results(root: Path, case: str, channels: int) -> list[Path]:
    """Return the paths of all that may have been made of a case, its record first."""
    both = (path for part in ("Tr", "Ts") for path in _paths(root, case, part, channels))
    return [record_path(root, case), *both]


def _channel_names(dataset: Dataset, head: dict[str, Any]) -> dict[str, str]:
    """Return the channels' names for ``dataset.json``; a single one is named by its modality."""
    names = dataset.channels
    if len(names) == 1 and modality_of(DataConfig(), names) != head["modality"]:
        names = (head["modality"].upper(),)
    return {str(number): name for number, name in enumerate(names)}


def finish(
    dataset: Dataset, settings: HomogenizeSettings, head: dict[str, Any], outcomes: Sequence[CaseOutcome]
) -> None:
    """Describe what is there: to nnU-Net, and to whoever restores."""
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    failed = [outcome.name for outcome in outcomes if outcome.record is None]
    if records:
        ids = {record.case for record in records}
        text = _patients([case for case in dataset.cases if case.id in ids])
        if text:
            write_text(settings.root / "patients.csv", text)
        described = {
            "name": f"{dataset.name} in one pose and size",
            "description": f"homogenized by isopose {__version__}; see {HEAD}",
            "channel_names": _channel_names(dataset, head),
            **dataset.labels.for_nnunet(),
            "numTraining": sum(record.part == "Tr" for record in records),
            "file_ending": ENDING,
        }
        write_json(settings.root / "dataset.json", described)
    cases = [record.case for record in records]
    write_json(settings.root / HEAD, {**head, "complete": True, "cases": cases, "failed": failed})


def _written(labels: Labels) -> dict[str, int]:
    """Consecutive values, in the order of the stored ones."""
    return {name: value for value, name in enumerate(labels.names, start=1)}


def _patients(cases: Sequence[Case]) -> str:
    """``patients.csv`` with numbers in place of the patients' own names; empty where it would say nothing."""
    if all(case.patient == case.id and case.age_years is None for case in cases):
        return ""
    numbers = {patient: number for number, patient in enumerate(sorted({case.patient for case in cases}))}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "age_years"])
    for case in cases:
        age = "" if case.age_years is None else case.age_years
        writer.writerow([case.id, f"patient_{numbers[case.patient]:03d}", age])
    return text.getvalue()
