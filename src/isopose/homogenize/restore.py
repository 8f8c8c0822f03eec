"""``isopose restore``: restore another segmenter's results on homogenized scans to each scan's own grid."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from isopose import outputs
from isopose.data.resample import largest_share
from isopose.devices import one_thread
from isopose.errors import InputError
from isopose.files import composed, only_writer, output_folder, read_json, sha256, write_json
from isopose.geometry.volume import Volume
from isopose.homogenize.case import IMAGE_EXTENSION
from isopose.homogenize.process import process_cases
from isopose.homogenize.record import FOLDER, FORMAT, HEAD, READABLE_FORMATS, read_record, record_path
from isopose.homogenize.transform import Transform
from isopose.homogenize.warping import restored_labels, restored_share, values_in
from isopose.inference.files import PROBABILITIES, as_file
from isopose.io.endings import stem
from isopose.io.images import on_image_grid, read_labels, read_volume, write_image, write_labels
from isopose.io.scans import is_image
from isopose.isolation import failure_of, named
from isopose.outputs import Outcome
from isopose.progress import Reporter
from isopose.version import __version__

BACKGROUND = "background"
#: Prefix of a record's warnings about the predicted label map; the others are about the pose.
LABEL_WARNING_PREFIX = "label: "
#: Largest distance by which rounding may move a probability outside 0 to 1.
PROBABILITY_TOLERANCE = 1e-3

#: A record is the contents of ``CASE.json``.
Restored = Outcome[dict[str, Any]]


@dataclass(frozen=True)
class _Prediction:
    """The files of one case that are to be restored.

    Args:
        case: id.
        labels: the label map, if there is one.
        probabilities: name and probability map of each class.
    """

    case: str
    labels: Path | None
    probabilities: tuple[tuple[str, Path], ...]

    @property
    def paths(self) -> list[Path]:
        """All of its files."""
        labels = [] if self.labels is None else [self.labels]
        return [*labels, *(path for _, path in self.probabilities)]


@dataclass(frozen=True)
class _RestoreSettings:
    """Settings that all cases share.

    Args:
        homogenized: folder of the homogenized dataset.
        output: folder for the results.
        values: for each label its value in the homogenized dataset and that of the source dataset.
        keep_values: keep the predicted label values.
    """

    homogenized: Path
    output: Path
    values: dict[str, tuple[int, int]]
    keep_values: bool


def restore(
    predictions: Path,
    homogenized: Path,
    output: Path,
    *,
    keep_values: bool = False,
    workers: int = 0,
    reporter: Reporter,
) -> list[Restored]:
    """Restore predictions to the scans' own grids; a failed case is reported and does not stop the others.

    Label maps (``CASE.nii.gz`` or another readable extension): each value is interpolated linearly, and the
    label with the largest share is taken. Probabilities (``CASE_CLASS.nii.gz``, beside them or in a folder
    ``probabilities``) are interpolated linearly, the mass missing to 1 is background, and the label map is
    their argmax. Consecutive label values of a homogenized dataset become those of its source again.

    Writes ``CASE.nii.gz``, ``probabilities/CASE_CLASS.nii.gz`` and, last, ``CASE.json``. Cases whose results
    are complete and made from the same files are skipped.

    Args:
        predictions: a folder, or one file.
        homogenized: what :func:`~isopose.homogenize.dataset.homogenize` wrote.
        output: folder for the results.
        keep_values: keep the predicted label values.
        workers: number of processes.
        reporter: receives progress.

    Raises:
        InputError: no homogenized dataset, no prediction, or a result would replace another file.
        RunError: the output is full or cannot be written to.
    """
    settings = _RestoreSettings(
        Path(homogenized), Path(output), _read_label_values(Path(homogenized)), keep_values
    )
    predicted, unassigned = _find_predictions(Path(predictions), Path(homogenized))
    restored = [
        Restored(
            path.name, None, f"{path}: belongs to no case of {homogenized}; expected CASE{IMAGE_EXTENSION}"
        )
        for path in unassigned
    ]
    if not predicted and not unassigned:
        raise InputError(f"{predictions}: no label map or probabilities here, expected CASE{IMAGE_EXTENSION}")
    for prediction in predicted:
        _check_targets(prediction, settings)
    if not predicted:
        return restored
    output_folder(output)
    with only_writer(output):
        try:
            return restored + process_cases(
                partial(_restore, settings=settings),
                predicted,
                name=attrgetter("case"),
                title="restore",
                warnings_of=_label_warnings,
                discard=partial(_remove_half_written, settings=settings),
                workers=workers,
                reporter=reporter,
            )
        finally:
            outputs.remove_empty([settings.output / PROBABILITIES])


def _label_warnings(record: Mapping[str, Any]) -> list[str]:
    """Return the warnings in a record that are about the predicted label map."""
    return [line for line in record["warnings"] if line.startswith(LABEL_WARNING_PREFIX)]


def _read_label_values(homogenized: Path) -> dict[str, tuple[int, int]]:
    """Return for each label its value in the homogenized dataset and the value to write."""
    path = homogenized / HEAD
    if not path.is_file():
        raise InputError(
            f"{homogenized}: no {HEAD} in here; expected the folder that isopose homogenize wrote"
        )
    head = read_json(path)
    if not isinstance(head, dict) or head.get("format") not in READABLE_FORMATS:
        version = head.get("format") if isinstance(head, dict) else None
        raise InputError(f"{path}: expected format {FORMAT}, got {version}; homogenize the dataset again")
    try:
        values = {
            str(name): (int(entry["value"]), int(entry["stored"])) for name, entry in head["labels"].items()
        }
        if not all(0 <= value <= 255 for pair in values.values() for value in pair):
            raise ValueError
        return values
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError(f"{path}: its labels are damaged; homogenize the dataset again") from None


def _find_predictions(predictions: Path, homogenized: Path) -> tuple[list[_Prediction], list[Path]]:
    """Return predictions by case, and images that belong to no case.

    A file named exactly like a case is its label map. If its name begins with a case's id and an underscore,
    the rest is the name of a class; of several such cases the one with the longest id is taken.
    """
    if not predictions.exists():
        raise InputError(f"{predictions}: no such file or folder")
    folders = [predictions, predictions / PROBABILITIES]
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    case_names = (path.stem for path in (homogenized / FOLDER).glob("*.json") if path.name[0] != ".")
    cases = {composed(name): name for name in case_names}
    labels: dict[str, list[Path]] = {}
    classes: dict[str, dict[str, Path]] = {}
    unassigned = []
    for path in [predictions] if predictions.is_file() else filter(is_image, files):
        name = composed(stem(path))
        case = max((c for c in cases if name == c or name.startswith(f"{c}_")), key=len, default=None)
        if case is None:
            unassigned.append(path)
        elif name == case:
            labels.setdefault(cases[case], []).append(path)
        else:
            classes.setdefault(cases[case], {})[unquote(name[len(case) + 1 :])] = path
    for paths in labels.values():
        if len(paths) > 1:
            raise InputError(f"{paths[0]}: {paths[1].name} is of the same case; keep one of them")
    predicted = [
        _Prediction(case, next(iter(labels.get(case, ())), None), tuple(classes.get(case, {}).items()))
        for case in sorted({*labels, *classes})
    ]
    return predicted, unassigned


def _targets(prediction: _Prediction, settings: _RestoreSettings) -> list[Path]:
    """Return the paths of all files that may be written for a case, except its record."""
    names = (
        {*(name for name, _ in prediction.probabilities), BACKGROUND} if prediction.probabilities else set()
    )
    maps = [probability_path(settings.output, prediction.case, name) for name in sorted(names)]
    return [settings.output / f"{prediction.case}{IMAGE_EXTENSION}", *maps]


def _check_targets(prediction: _Prediction, settings: _RestoreSettings) -> None:
    """Raise an InputError if a result would replace a file that this command did not write."""
    targets = _targets(prediction, settings)
    sources = set(map(os.path.realpath, prediction.paths))
    written_before = _read_earlier(settings.output / f"{prediction.case}.json") is not None
    for path in targets:
        if os.path.realpath(path) in sources or (path.exists() and not written_before):
            raise InputError(f"{path}: would be overwritten by its result; choose another output folder")


def _remove_half_written(prediction: _Prediction, settings: _RestoreSettings) -> None:
    """Remove the files of a case that failed; if its record exists, it had not begun to write."""
    if (settings.output / f"{prediction.case}.json").exists():
        return
    for path in _targets(prediction, settings):
        outputs.remove([path])
        outputs.sweep(path.parent, path.name)


@one_thread()
def _restore(prediction: _Prediction, *, settings: _RestoreSettings) -> Restored:
    try:
        return Restored(prediction.case, _write_results(prediction, settings), None)
    except Exception as error:
        return Restored(prediction.case, None, named(str(failure_of(error)), prediction.case))


def _write_results(prediction: _Prediction, settings: _RestoreSettings) -> dict[str, Any]:
    """Write the results of one case, unless they are complete, and return its record."""
    transform_path = record_path(settings.homogenized, prediction.case)
    case_record = read_record(transform_path)
    provenance = {
        "isopose": __version__,
        "case": prediction.case,
        "transform_sha256": sha256(transform_path),
        "predictions": {path.name: sha256(path) for path in prediction.paths},
        "keep_values": settings.keep_values,
        "labels": {name: value for name, (_, value) in settings.values.items()},
    }
    manifest = settings.output / f"{prediction.case}.json"
    earlier = _read_earlier(manifest)
    if (
        earlier is not None
        and outputs.made_from(earlier, provenance)
        and not outputs.damaged(settings.output, earlier["files"])
    ):
        return earlier
    written: list[Path] = []
    warnings: list[str] = []
    stale = [settings.output / name for name in outputs.listed(earlier)]
    with outputs.replacing_results(manifest, written, stale):
        labels = None
        if prediction.probabilities:
            labels = _restore_probabilities(prediction, settings, case_record.transform, written)
        if labels is None and prediction.labels is not None:
            labels = _restore_label_map(prediction.labels, settings, case_record.transform, warnings)
        if labels is not None:
            written.insert(0, settings.output / f"{prediction.case}{IMAGE_EXTENSION}")
            write_labels(labels, written[0])
        record = {
            **provenance,
            "files": outputs.hashes(settings.output, written),
            # Including those about the pose: in a wrong pose a segmenter may exchange left and right.
            "warnings": [*case_record.warnings, *(f"{LABEL_WARNING_PREFIX}{line}" for line in warnings)],
        }
        write_json(manifest, record)
    return record


def _restore_label_map(
    path: Path, settings: _RestoreSettings, transform: Transform, warnings: list[str]
) -> Volume:
    """Return a label map on the scan's own grid; if values were rounded on reading, append a warning."""
    labels = read_labels(path, like=transform.homogenized, note=warnings.append)
    table = np.arange(256, dtype=np.uint8)
    if settings.values and not settings.keep_values:
        stored_values = dict(settings.values.values())
        unknown = [value for value in values_in(labels.array) if value not in stored_values]
        if unknown:
            raise InputError(
                f"{path}: label value {unknown[0]}, expected 0 or one of {sorted(stored_values)}, which "
                f"{HEAD} names; for other labels than the dataset's use --keep-values"
            )
        for value, stored in stored_values.items():
            table[value] = stored
    restored = restored_labels(labels, transform)
    return restored.with_array(table[restored.array])


def _restore_probabilities(
    prediction: _Prediction, settings: _RestoreSettings, transform: Transform, written: list[Path]
) -> Volume | None:
    """Write probabilities on the scan's own grid; return the label map if all classes are known."""
    values = {
        name: value if settings.keep_values else stored for name, (value, stored) in settings.values.items()
    }
    classes = {name: path for name, path in prediction.probabilities if name != BACKGROUND}

    def write(name: str, probability: Volume) -> None:
        path = probability_path(settings.output, prediction.case, name)
        write_image(probability, path)
        written.append(path)

    probabilities = ((name, _read_probability(path, transform)) for name, path in classes.items())
    labels = restore_classes(probabilities, values, transform, write)
    return labels if set(classes) <= set(values) else None


def restore_classes(
    classes: Iterable[tuple[str, Volume]],
    values: Mapping[str, int],
    transform: Transform,
    write: Callable[[str, Volume], None],
) -> Volume:
    """Restore class probabilities to the scan's own grid; return their argmax as a label map.

    The mass missing to 1 is background; outside the homogenized grid this is all of it.

    Args:
        classes: name and probability on the homogenized grid of each class but the background, read one at a
            time.
        values: label value by class; classes without a value count as background.
        transform: of the scan.
        write: called with the name and the restored probability of each class, float32; background last.

    Raises:
        InputError: a class does not lie on the homogenized grid.
    """
    background = np.ones(transform.stack_shape, dtype=np.float32)

    def class_shares() -> Iterator[tuple[int, np.ndarray]]:
        nonlocal background
        for name, volume in classes:
            probability = restored_share(volume, transform)
            background -= probability
            write(name, transform.to_native(probability))
            yield values.get(name, 0), probability

    labels = largest_share(class_shares(), transform.stack_shape)
    write(BACKGROUND, transform.to_native(background.clip(min=0.0)))
    return transform.to_native(labels)


def _read_probability(path: Path, transform: Transform) -> Volume:
    """Read one class's probability, which must lie on the homogenized grid."""
    probability = on_image_grid(path, read_volume(path), transform.homogenized)
    check_probabilities(probability, str(path))
    return probability


def check_probabilities(volume: Volume, name: str) -> None:
    """Check that all values are probabilities, up to rounding.

    Args:
        volume: probability of one class.
        name: of its file or class, for the message.

    Raises:
        InputError: a value is outside 0 to 1, or NaN.
    """
    low, high = float(volume.array.min()), float(volume.array.max())
    # Written so that NaN is refused.
    if not (low >= -PROBABILITY_TOLERANCE and high <= 1.0 + PROBABILITY_TOLERANCE):
        raise InputError(f"{name}: expected probabilities from 0 to 1, got values from {low:g} to {high:g}")


def probability_path(output: Path, case: str, name: str) -> Path:
    """Return the path of a class's probability in an output folder."""
    return output / PROBABILITIES / f"{case}_{as_file(name)}{IMAGE_EXTENSION}"


def _read_earlier(path: Path) -> dict[str, Any] | None:
    """Return the record that an earlier run of this command wrote for a case, or None."""
    record = outputs.earlier_record(path) or {}
    is_restored = "transform_sha256" in record and isinstance(record.get("files"), dict)
    return record if is_restored else None
