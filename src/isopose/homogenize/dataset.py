"""``isopose homogenize``: a dataset or scans in, an nnU-Net raw dataset in one pose and size out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from isopose.choices import AUTO
from isopose.config import HomogenizeConfig
from isopose.data.modality import modality_of, modality_warnings
from isopose.data.normalization import channel_number, pose_channel_of
from isopose.errors import InputError
from isopose.files import hash_of, only_writer, output_folder
from isopose.homogenize.case import CaseOutcome, HomogenizeSettings, make_case, remove_case
from isopose.homogenize.estimator import PoseEstimator, open_estimator
from isopose.homogenize.head import begin, check_claim, finish, head_of
from isopose.homogenize.process import process_cases
from isopose.homogenize.record import FORMAT
from isopose.homogenize.reference import ReferenceOutline, find_reference
from isopose.io.cases import (
    Case,
    Dataset,
    UnusableCase,
    dataset_of,
    is_usable_id,
    report_unusable,
    unusable_case,
)
from isopose.io.datasets import is_dataset, open_dataset
from isopose.io.scans import check_output_apart, find_scans
from isopose.labels import Labels
from isopose.models.folder import load_model
from isopose.outputs import sweep
from isopose.progress import Reporter
from isopose.settings import DataConfig
from isopose.version import __version__


def open_input(path: Path, labels: Mapping[str, int] | None = None, series: str | None = None) -> Dataset:
    """Open a dataset, or scans without labels as a dataset: a file, a folder of files, or of a DICOM series.

    Args:
        path: see :func:`isopose.io.datasets.open_dataset` and :func:`isopose.io.scans.find_scans`.
        labels: name to stored value; replaces the layout's own labels.
        series: number or instance UID, for DICOM that holds several series.

    Raises:
        InputError: neither a dataset nor scans, or ``series`` is set for an input that is not DICOM.
    """
    if is_dataset(path):
        refuse_series(path, series)
        return open_dataset(path, labels, allow_unusable=True)
    if labels:
        raise InputError(f"{path}: scans without labels; --label is for a dataset that has some")
    return scans_as_dataset(path, series)


def refuse_series(path: Path, series: str | None) -> None:
    """Raise an InputError if ``series`` is set, which a dataset does not support."""
    if series is not None:
        raise InputError(f"{path}: --series chooses a DICOM series, got a dataset; leave it out")


def scans_as_dataset(path: Path, series: str | None = None) -> Dataset:
    """Open scans without labels as a dataset of test cases.

    Args:
        path: see :func:`isopose.io.scans.find_scans`.
        series: number or instance UID, for DICOM that holds several series.

    Scans under whose name no results can be written, and scans of several channels, whose names only a
    dataset states, are listed as unusable.

    Raises:
        InputError: no scans.
    """
    usable, unusable = list[Case](), list[UnusableCase]()
    for scan in find_scans([path], series):
        problem = scan.problem
        if scan.further and problem is None:
            problem = (
                f"{scan.path}: has {len(scan.paths)} channels (_0000, _0001, ...); give a dataset whose "
                "dataset.json names them, or, if they are scans, rename them"
            )
        if problem is None:
            usable.append(Case(scan.name, scan.path, None, patient=scan.name, split="test"))
        else:
            unusable.append(unusable_case(scan.name, problem))
    # Not the folder's name, which may be a patient's.
    return dataset_of("scans", "scans", path, Labels({}), usable, unusable=unusable)


def homogenize(
    dataset: Dataset,
    output: Path,
    config: HomogenizeConfig,
    *,
    model: Path | None = None,
    series: str | None = None,
    workers: int = 0,
    reporter: Reporter,
) -> list[CaseOutcome]:
    """Bring every case to one pose and size; a failed case is reported, and the others continue.

    So is a case that no results can be named after.

    Writes an nnU-Net v2 raw dataset (``docs/formats.md``). Cases with labels that are not for testing go to
    ``imagesTr`` and ``labelsTr``, all others to ``imagesTs`` and, with labels, ``labelsTs``. Complete cases
    from the same isopose, scan, labels, model and settings are skipped.

    Args:
        dataset: see :func:`open_input`.
        output: a new folder, or that of an interrupted run.
        config: one pose for a scan or several, the size, and the reference.
        model: folder of the model whose pose networks are used; None: the shipped network.
        series: as given to :func:`open_input`.
        workers: number of processes; the result does not depend on it.
        reporter: receives progress.

    Returns:
        The outcomes of unusable cases, then those of the others in their order.

    Raises:
        InputError: no such model or reference, a folder that holds something else, or a folder within that of
            a DICOM series.
        RunError: the output is full or cannot be written to.
    """
    if dataset.layout == "scans":
        check_output_apart([dataset.root], output)
    unusable = report_unusable(dataset.unusable, reporter.say)
    if not dataset.cases:
        return unusable
    pose_channel = _find_pose_channel(config, dataset, model)
    config = config.model_copy(update={"pose_channel": pose_channel})
    report_modality(config, dataset, reporter)
    config = resolved_config(config, dataset, model)
    pose_cases = [replace(case, image=case.images[pose_channel]) for case in dataset.cases]
    reference = find_reference(config, model, pose_cases)
    estimator = open_estimator(model, config, reference)
    settings = homogenize_settings(dataset, output, config, model, reference, estimator, series)
    head = head_of(dataset, settings, estimator)
    check_claim(settings, dataset)
    output_folder(settings.root)
    with only_writer(settings.root):
        return _homogenize(dataset, settings, head, unusable, workers, reporter)


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
    model_channel = loaded.channels[pose_channel_of(loaded.config.data, loaded.channels)]
    if model_channel not in names:
        raise InputError(
            f"{dataset.root}: has the channels {', '.join(names)}, and the model finds poses in "
            f"{model_channel}; name the one that shows the same with --pose-channel"
        )
    return names.index(model_channel)


def resolved_config(config: HomogenizeConfig, dataset: Dataset, model: Path | None) -> HomogenizeConfig:
    """Return the configuration with modality and plane, where the user gave none.

    The plane is the model's, without a model axial. The modality is the dataset's. Scans and tables state
    none: with a model it stays ``auto``, which means the model's; without a model it is CT.
    """
    changes: dict[str, Any] = {}
    if config.plane is None:
        changes["plane"] = "axial" if model is None else load_model(model).config.data.plane
    if config.modality == AUTO and (model is None or dataset.layout not in ("scans", "manifest")):
        data = DataConfig(pose_channel=config.pose_channel or 0)
        changes["modality"] = modality_of(data, dataset.channels)
    return config.model_copy(update=changes)


def report_modality(config: HomogenizeConfig, dataset: Dataset, reporter: Reporter) -> None:
    """Report a modality that contradicts the dataset's description."""
    data = DataConfig(modality=config.modality, pose_channel=config.pose_channel or 0)
    for warning in modality_warnings(data, dataset, "--modality"):
        reporter.say(f"warning: {warning}")


def _homogenize(
    dataset: Dataset,
    settings: HomogenizeSettings,
    head: dict[str, Any],
    unusable: Sequence[CaseOutcome],
    workers: int,
    reporter: Reporter,
) -> list[CaseOutcome]:
    begin(settings, head)
    report_warnings(settings, reporter)
    for outcome in unusable:
        # It may have results from a run in which no other case had its name.
        if is_usable_id(outcome.name):
            remove_case(settings, outcome.name)
    try:
        outcomes = process_cases(
            partial(make_case, settings=settings),
            dataset.cases,
            name=attrgetter("id"),
            title="homogenize",
            warnings_of=attrgetter("warnings"),
            discard=lambda case: remove_case(settings, case.id),
            workers=workers,
            reporter=reporter,
        )
    finally:
        # A stopped worker cannot remove the files that it was writing.
        sweep(settings.root)
    finish(dataset, settings, head, outcomes)
    return [*unusable, *outcomes]


def report_warnings(settings: HomogenizeSettings, reporter: Reporter) -> None:
    """Report the warnings about the reference."""
    for warning in settings.reference.warnings if settings.reference else ():
        reporter.say(f"warning: the reference: {warning}")


def homogenize_settings(
    dataset: Dataset,
    root: Path,
    config: HomogenizeConfig,
    model: Path | None,
    reference: ReferenceOutline | None,
    estimator: PoseEstimator,
    series: str | None = None,
) -> HomogenizeSettings:
    """Return the settings that all cases of a run share."""
    labels, channels = dataset.labels, dataset.channels
    pose_channel = channel_number(config.pose_channel or 0, channels, "--pose-channel")
    # Hashes depend on the reference and the channel themselves, not on how the user named them.
    config = config.model_copy(update={"reference": None, "pose_channel": pose_channel})
    inputs = [FORMAT, __version__, config.model_dump(mode="json"), estimator.sha256, labels.stored]
    if len(channels) > 1:
        inputs.append(list(channels))
    return HomogenizeSettings(
        Path(root), model, config, reference, labels, hash_of(inputs), series, channels, pose_channel
    )
