"""Write one case of a homogenized dataset: its images, label map and record."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from isopose.config import HomogenizeConfig
from isopose.data.modality import modality_of
from isopose.devices import one_thread
from isopose.errors import InputError
from isopose.homogenize.estimator import PoseEstimator, open_estimator
from isopose.homogenize.record import CaseRecord, read_record, record_path, write_record
from isopose.homogenize.reference import ReferenceOutline
from isopose.homogenize.scan import homogenize_scan
from isopose.homogenize.warping import homogenized_image
from isopose.io.cases import CT, Case
from isopose.io.channels import hash_of_channels, read_channels
from isopose.io.images import read_labels, write_image, write_labels
from isopose.io.masks import read_mask
from isopose.io.sources import hash_of_source
from isopose.isolation import failure_of, named
from isopose.labels import Labels
from isopose.outputs import Outcome, damaged, remove, replacing_results
from isopose.settings import DataConfig
from isopose.version import __version__

IMAGE_EXTENSION = ".nii.gz"

CaseOutcome = Outcome[CaseRecord]


@dataclass(frozen=True)
class HomogenizeSettings:
    """Settings that all cases share; small and picklable, as they are sent to other processes.

    Args:
        root: folder of the homogenized dataset.
        model: folder of the model whose pose networks are used; None: the shipped network.
        config: one pose for a scan or several, and the size; names no reference.
        reference: to whose pose and size the scans are brought; None: that of the model.
        labels: of the source dataset.
        sha256: hash of everything that determines a result, except its scan and label file.
        series: DICOM series to read from scans that hold several, see ``read_volume``.
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


@lru_cache(maxsize=1)
def _estimator(
    model: Path | None, config: HomogenizeConfig, reference: ReferenceOutline | None
) -> PoseEstimator:
    """Return the pose estimator, opened once in each process."""
    return open_estimator(model, config, reference)


@one_thread()
def make_case(
    case: Case, *, settings: HomogenizeSettings, reported: type[Exception] = Exception
) -> CaseOutcome:
    """Homogenize one case and write it, unless it exists already; a failure is returned, not raised.

    Only exceptions of the types ``reported`` are returned as the case's problem; on a cluster, others are
    raised and the case is tried again.

    Raises:
        RunError: it concerns all cases.
    """
    try:
        return _make_case(case, settings)
    except reported as error:
        problem = named(str(failure_of(error)), str(case.image))
        remove_case(settings, case.id)
        return Outcome(case.id, None, problem)


def _make_case(case: Case, settings: HomogenizeSettings) -> CaseOutcome:
    """Homogenize one case as :func:`make_case` does; any failure is raised."""
    root = settings.root
    part: Literal["Tr", "Ts"] = "Tr" if case.label is not None and case.split != "test" else "Ts"
    sources = {"image": hash_of_channels(case.images, settings.series)}
    if case.label is not None:
        sources["label"] = hash_of_source(case.label)
    if case.mask is not None:
        sources["mask"] = hash_of_source(case.mask)
    earlier = _earlier_record(settings, case.id, part, sources)
    if earlier is not None and not damaged(root, earlier.files):
        return Outcome(case.id, earlier, None, made=False)
    path, *results = _results(root, case.id, len(settings.channels))
    with replacing_results(path, results, stale=results):
        estimator = _estimator(settings.model, settings.config, settings.reference)
        volumes = read_channels(case.images, settings.channels, settings.series, estimator.modality)
        volume = volumes[settings.pose_channel]
        body = None if case.mask is None else read_mask(case.mask, volume)
        classes, label_warnings = None, list[str]()
        if case.label is not None:
            stored = read_labels(case.label, like=volume, note=label_warnings.append)
            classes = stored.with_array(settings.labels.to_nnunet(stored.array))
        scan = homogenize_scan(estimator, volume, classes, settings.labels.classes, body)
        scan = replace(scan, warnings=(*scan.warnings, *(f"label: {line}" for line in label_warnings)))
        label_path, *files = _paths(root, case.id, part, len(volumes))
        for image_file, channel, name in zip(files, volumes, settings.channels, strict=True):
            if channel is volume:
                image = scan.image
            else:
                image = homogenized_image(channel, scan.transform, modality_of(DataConfig(), [name]))
            write_image(image, image_file)
        if scan.labels is not None:
            write_labels(scan.labels, label_path)
            files.append(label_path)
        record = write_record(root, case.id, part, scan, estimator.reference, settings.sha256, sources, files)
        return Outcome(case.id, record, None)


def _earlier_record(
    settings: HomogenizeSettings, case: str, part: str, sources: dict[str, str]
) -> CaseRecord | None:
    """Return a case's record if it was made by the same isopose from the same files and settings."""
    try:
        record = read_record(record_path(settings.root, case))
    except InputError:
        return None
    recorded = (record.isopose, record.case, record.part, record.sources, record.settings_sha256)
    return record if recorded == (__version__, case, part, sources, settings.sha256) else None


def _paths(root: Path, case: str, part: str, channels: int) -> list[Path]:
    """Return the paths of a case's label map and of its images."""
    images = [root / f"images{part}" / f"{case}_{number:04d}{IMAGE_EXTENSION}" for number in range(channels)]
    return [root / f"labels{part}" / f"{case}{IMAGE_EXTENSION}", *images]


def image_path(root: Path, case: str, channel: int = 0) -> Path:
    """Return the path of a channel of the homogenized image of a scan without labels."""
    return _paths(root, case, "Ts", channel + 1)[-1]


def _results(root: Path, case: str, channels: int) -> list[Path]:
    """Return the paths of all files that may exist for a case, its record first."""
    return [record_path(root, case), *_paths(root, case, "Tr", channels), *_paths(root, case, "Ts", channels)]


def remove_case(settings: HomogenizeSettings, case: str) -> None:
    """Remove all files that may exist for a case, its record first."""
    remove(_results(settings.root, case, len(settings.channels)))
