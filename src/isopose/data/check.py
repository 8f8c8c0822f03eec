"""Check a dataset: find all its problems, each with its case, before hours are spent on training."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from operator import attrgetter
from typing import Literal

import numpy as np

from isopose.choices import Modality, Plane
from isopose.data.doubts import check_values, scan_warnings
from isopose.data.drawn import undrawn_warning
from isopose.data.modality import modality_of, modality_warnings
from isopose.data.normalization import pose_channel_of
from isopose.data.plane import check_plane, mask_in_plane, outline_warnings, plane_of
from isopose.data.preprocess import find_trunk
from isopose.data.splits import check_sides
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.cases import Case, Dataset
from isopose.io.channels import check_one_grid
from isopose.io.images import on_image_grid, read_labels, read_volume
from isopose.io.masks import read_mask
from isopose.io.sizes import check_extent
from isopose.isolation import Failed, failure_of
from isopose.labels import Labels, voxels_of
from isopose.parallel import attempts
from isopose.settings import DataConfig

#: Voxel sizes (x, y, z) that differ from the cohort's median by more than these factors are outliers; slices
#: of 0.5 to 5 mm are common.
_OUTLIER_FACTORS = (3.0, 3.0, 10.0)
#: Smallest number of slices of a case.
_MIN_SLICES = 3
#: Fewest cases for which a median voxel size is meaningful.
_MIN_CASES = 5


@dataclass(frozen=True)
class Problem:
    """An error or a warning about a case or the dataset.

    Args:
        case: case id, or the dataset's name if it concerns all of it.
        severity: an ``error`` prevents training or prediction; a ``warning`` should be checked.
        message: one line: what was expected, what was found, what to do.
    """

    case: str
    severity: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class _Report:
    """The problems of one case, and what is compared with other cases.

    Args:
        problems: errors and warnings of the case alone.
        digest: hash of the voxels; None if the image cannot be read.
        spacing: voxel size along ``(x, y, z)`` in mm; None if the image cannot be read.
        values: label values that occur in the case and that the dataset names.
        plane: plane of the thick slices; None where voxels are nearly cubes.
    """

    problems: tuple[Problem, ...]
    digest: str | None = None
    spacing: tuple[float, float, float] | None = None
    values: frozenset[int] = frozenset()
    plane: Plane | None = None


def check_dataset(
    dataset: Dataset,
    *,
    config: DataConfig | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    on_problem: Callable[[Problem], None] | None = None,
    planes: Counter[str] | None = None,
) -> list[Problem]:
    """Read every case of a dataset and return all problems, without stopping at the first.

    Args:
        dataset: what to check.
        config: settings of the scans, such as the modality, if the dataset does not state it; None: the
            defaults.
        workers: processes; 0 reads in this one. The result does not depend on it.
        progress: called with the numbers of cases done and of all cases.
        on_problem: called with each problem as soon as it is known, so that an interrupted check still
            reports.
        planes: counts the scans by the plane of their thick slices, or ``any`` where voxels are nearly cubes.

    Returns:
        Problems in the order of the cases, then those of the whole dataset. An exception raised for a case,
        or a worker process that dies, is a problem of that case.
    """
    problems: list[Problem] = []

    def note(new: Iterable[Problem]) -> None:
        for problem in new:
            problems.append(problem)
            if on_problem:
                on_problem(problem)

    note(Problem(one.name, "error", one.problem) for one in dataset.unusable)
    config = config or DataConfig()
    modality = modality_of(config, dataset.channels)
    note(Problem(dataset.name, "warning", line) for line in modality_warnings(config, dataset, "--modality"))
    inspect = partial(
        _inspect, labels=dataset.labels, config=config, modality=modality, channels=dataset.channels
    )
    results = attempts(inspect, dataset.cases, name=attrgetter("id"), workers=workers, progress=progress)
    reports = []
    for case, result in zip(dataset.cases, results, strict=True):
        if isinstance(result, Failed):
            why = result.why.removeprefix(f"{case.id}: ")
            result = _Report((Problem(case.id, "error", why),))
        reports.append(result)
        if planes is not None and result.spacing is not None:
            planes[result.plane or "any"] += 1
        note(result.problems)
    note(_compare_cases(dataset, reports))
    return problems


def _inspect(
    case: Case, labels: Labels, config: DataConfig, modality: Modality, channels: tuple[str, ...]
) -> _Report:
    """Check one case on its own, by the channel that shows its body."""
    problems: list[Problem] = []

    def note(severity: Literal["error", "warning"], message: str) -> None:
        problems.append(Problem(case.id, severity, message))

    if case.label is None and case.split != "test":
        note(
            "warning",
            "has no label, so it can be predicted but is not used for training; add a label or mark it as "
            "test",
        )
    image: Volume | None = None
    pose_channel = pose_channel_of(config, channels)
    digest: str | None = None
    spacing: tuple[float, float, float] | None = None
    plane: Plane | None = None
    try:
        image = read_volume(case.images[pose_channel], modality=modality)
        reoriented, plane = image.reoriented(), plane_of(image)
        errors = list(_image_errors(image, modality, config.plane))
        shape_warnings: Iterable[str] = ()
        body_mm = None
        if not errors:
            try:
                check_extent(reoriented)
                check_values(reoriented, modality, config.plane)
                change = image.reorientation()
                own_mask = None if case.mask is None else change.apply(read_mask(case.mask, image))
                body, body_mm = find_trunk(reoriented, config, modality, own_mask)
                shape_warnings = outline_warnings(mask_in_plane(body, image, config.plane), config.plane)
            except InputError as error:
                errors.append(f"image: {error}")
        for message in errors:
            note("error", message)
        for message in (*scan_warnings(reoriented, body_mm, modality, config.plane), *shape_warnings):
            if not any(message in error for error in errors):
                note("warning", f"image: {message}")
        digest, spacing = _digest(reoriented), tuple(reoriented.spacing.tolist())
    except Exception as error:
        note("error", f"image: {failure_of(error)}")
    for message in _other_channel_errors(case, channels, pose_channel, image):
        note("error", message)
    # The label is checked even if the image is unusable, so that the user learns of both at once.
    values: frozenset[int] = frozenset()
    try:
        values = _label_values(case, labels, image, note, config.plane)
    except Exception as error:
        note("error", f"label: {failure_of(error)}")
    return _Report(tuple(problems), digest, spacing, values, plane)


def _other_channel_errors(
    case: Case, channels: tuple[str, ...], pose_channel: int, image: Volume | None
) -> Iterable[str]:
    """Yield the errors of all channels except the one that shows the body.

    Args:
        case: the case to check.
        channels: names of all channels.
        pose_channel: index of the channel that shows the body.
        image: the image of that channel; None where it is unusable.
    """
    for number, (path, name) in enumerate(zip(case.images, channels, strict=True)):
        if number == pose_channel:
            continue
        try:
            volume = read_volume(path)
            if volume.array.min() == volume.array.max():
                yield f"channel {name}: every voxel is {volume.array.min()}, it is empty; export it again"
            if image is not None:
                check_one_grid([image, volume], [channels[pose_channel], name])
        except Exception as error:
            message = str(failure_of(error))
            yield message if message.startswith("channel ") else f"channel {name}: {message}"


def _image_errors(image: Volume, modality: Modality, plane: Plane) -> Iterable[str]:
    """Yield the errors of an image's plane, size and content."""
    if modality == "mr" or plane != "axial":
        try:
            check_plane(image, plane)
        except InputError as error:
            yield f"image: {error}"
            return
    stack = image.reoriented(plane)
    depth, height, width = stack.array.shape
    if depth < _MIN_SLICES:
        yield f"image: {depth} {plane} slices, expected at least {_MIN_SLICES}; leave the case out"
    if min(height, width) < 16:
        yield (
            f"image: {plane} slices of {width} x {height} pixels are too small for a body; leave the case out"
        )
    if stack.array.min() == stack.array.max():
        yield f"image: every voxel is {stack.array.min()}, the scan is empty; export it again"


def _label_values(
    case: Case,
    labels: Labels,
    image: Volume | None,
    note: Callable[[Literal["error", "warning"], str], None],
    plane: Plane,
) -> frozenset[int]:
    """Check the case's labels, and return the known values that occur in them."""
    if case.label is None:
        return frozenset()
    label_map = read_labels(case.label, note=lambda line: note("warning", f"label: {line}"))
    counts = voxels_of(label_map.array)
    present = {int(v) for v in np.flatnonzero(counts)} - {0}
    known_values = set(labels.values.values())
    ignored = present & {labels.ignore}
    present -= ignored
    if present - known_values:
        unknown = ", ".join(f"{v} ({counts[v]} voxels)" for v in sorted(present - known_values))
        note(
            "error",
            f"label: unknown value {unknown}, expected 0 or one of {sorted(known_values)}; name it or "
            "remove it",
        )
    if not present:
        filling = "background or ignored" if ignored else "background"
        note("error", f"label: every voxel is {filling}; mark the case as test, or leave it out")
    elif counts[0] == 0 and not ignored:
        note("warning", "label: no voxel is background; is it the image?")
    if not present - known_values:
        warning = undrawn_warning(labels.to_classes(label_map.reoriented(plane).array))
        if warning is not None:
            note("warning", f"label: {warning}")
    if image is not None:
        try:
            on_image_grid(case.label, label_map, image)
        except InputError as error:
            note("error", f"label: {error}")
    return frozenset(present & known_values)


def _digest(volume: Volume) -> str:
    """Return a hash of the voxels that does not depend on file format, storage order or dtype."""
    digest = sha256(str(volume.array.shape).encode())
    for plane in volume.array:
        digest.update(np.ascontiguousarray(plane, dtype=np.float32).tobytes())
    return digest.hexdigest()


def _compare_cases(dataset: Dataset, reports: list[_Report]) -> Iterable[Problem]:
    """Yield the problems that only a comparison of cases shows."""
    yield from _duplicate_cases(dataset, reports)
    spacings = [r.spacing for r in reports if r.spacing is not None]
    if len(spacings) >= _MIN_CASES:
        median_spacing = np.median(spacings, axis=0)
        for case, report in zip(dataset.cases, reports, strict=True):
            if report.spacing is None:
                continue
            ratio = np.array(report.spacing) / median_spacing
            if (np.maximum(ratio, 1 / ratio) > _OUTLIER_FACTORS).any():
                actual, median = (" x ".join(f"{s:.2f}" for s in v) for v in (report.spacing, median_spacing))
                message = (
                    f"image: voxels of {actual} mm, where {median} mm is the median; is the voxel size right?"
                )
                yield Problem(case.id, "warning", message)
    labeled = [r for r, c in zip(reports, dataset.cases, strict=True) if c.label is not None]
    values_present = frozenset().union(*(r.values for r in labeled))
    for name, value in dataset.labels.values.items():
        if value not in values_present and values_present:
            message = (
                f"label {name!r} ({value}) occurs in no case, so it cannot be learned or scored; remove it"
            )
            yield Problem(dataset.name, "warning", message)
    if not labeled:
        yield Problem(
            dataset.name, "warning", "no case has a label; the dataset can be predicted, not trained on"
        )
    unscored = sum(c.split == "test" and c.label is None for c in dataset.cases)
    if unscored:
        message = f"{unscored} test cases have no label; they can be predicted, not scored"
        yield Problem(dataset.name, "warning", message)
    try:
        check_sides(dataset)
    except InputError as error:
        yield Problem(dataset.name, "error", str(error))


def _duplicate_cases(dataset: Dataset, reports: list[_Report]) -> Iterable[Problem]:
    """Yield the cases whose image equals that of an earlier case, voxel for voxel."""
    cases_by_digest: dict[str, list[Case]] = defaultdict(list)
    for case, report in zip(dataset.cases, reports, strict=True):
        if report.digest is not None:
            cases_by_digest[report.digest].append(case)
    for first, *others in cases_by_digest.values():
        for other in others:
            if other.patient == first.patient:
                message = f"image: the same as that of case {first.id!r}; remove one"
                yield Problem(other.id, "warning", message)
            else:
                message = (
                    f"image: the same as that of case {first.id!r}, of another patient, so that training "
                    "would leak into validation; remove one, or give both one patient"
                )
                yield Problem(other.id, "error", message)
