"""``isopose predict``: predict scans in files, and write a label map and a record for each."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isopose.errors import InputError, printable
from isopose.files import only_writer, output_folder, write_json
from isopose.geometry.volume import Volume
from isopose.inference.ensemble import Ensemble, ensemble_of
from isopose.inference.predict import Prediction, predict
from isopose.inference.record import prediction_record, provenance
from isopose.io.channels import check_count, hash_of_channels, hash_with_series, read_channels
from isopose.io.images import write_image
from isopose.io.masks import read_mask
from isopose.io.results.formats import FORMATS, NIFTI, check_formats, open_dicom, result_files, write_results
from isopose.io.scans import Scan
from isopose.io.sources import hash_of_source
from isopose.isolation import failure_of, named
from isopose.labels import Labels
from isopose.models.folder import Model, for_prediction
from isopose.outputs import (
    Outcome,
    damaged,
    earlier_record,
    listed,
    made_from,
    remove_empty,
    replacing_results,
)
from isopose.progress import Reporter
from isopose.scan.correction import Correction

if TYPE_CHECKING:
    from isopose.io.results.source import Source

#: Characters that some systems do not allow in file names, and the sign that encodes them.
_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*%]')
#: Folders in the output: class probabilities; pictures of the steps.
PROBABILITIES, STEPS = "probabilities", "steps"
#: Writes further results of a prediction, from the scan, the prediction and its record.
WriteMore = Callable[[Volume, Prediction, dict[str, Any]], None]
#: Draws the steps of a prediction of a scan into a file: :func:`isopose.report.steps.write_steps`.
DrawSteps = Callable[[Model, Volume, Prediction, Path], None]


def record_name(name: str) -> str:
    """Return the name of a scan's record, which is written after its results."""
    return f"{name}.json"


def predict_scans(
    model: Model | Ensemble,
    scans: Sequence[Scan],
    output: Path,
    *,
    probabilities: bool,
    reporter: Reporter,
    steps: DrawSteps | None = None,
    formats: Sequence[str] = (NIFTI,),
    corrections: Mapping[str, Correction] | None = None,
) -> list[Outcome[dict[str, Any]]]:
    """Predict scans one after the other with a model or an ensemble.

    A scan that raises any exception is reported, and the others continue.

    Writes ``NAME.nii.gz``, or the files of other formats (``io/results/formats.py``), and ``NAME.json``
    (hashes of the inputs, pose and crop of each slice, volumes, warnings), with ``probabilities`` also
    ``probabilities/NAME_CLASS.nii.gz`` for each class and with ``steps``, which draws them,
    ``steps/NAME.png``. A scan is skipped if its results are complete and from the same isopose, model, input
    and correction.

    ``corrections`` are poses and crops set by hand, by the hash of the scan.

    Raises:
        InputError: a result would overwrite its scan, or a scan does not support a format.
        RunError: the output is full or cannot be written to.
    """
    for scan in scans:
        check_formats(scan.path, formats)
        files = result_files(output, scan.name, formats).values()
        # Unlike Path.resolve, this does not raise for a link that leads to itself.
        if set(map(os.path.realpath, scan.paths)) & set(map(os.path.realpath, files)):
            raise InputError(f"{scan.path}: would be overwritten by its result; choose another output folder")
    ensemble = ensemble_of(model)
    if steps is not None:
        check_steps(ensemble.lead)
    if corrections and any(member.config.dims == 3 for member in ensemble.members):
        raise InputError(
            "a pose set by hand is one of slices: expected a model with dims=2, got dims=3; leave the "
            "corrections out"
        )
    output_folder(output)
    with only_writer(output):
        ensemble = ensemble.map_members(for_prediction)
        outcomes = []
        try:
            for number, scan in enumerate(scans, start=1):
                reporter.say(f"[{number}/{len(scans)}] {printable(scan.name)}")
                outcomes.append(
                    predict_scan(
                        ensemble,
                        scan,
                        output,
                        formats,
                        probabilities,
                        steps,
                        reporter,
                        corrections=corrections,
                    )
                )
        finally:
            remove_empty([output / PROBABILITIES, output / STEPS])
        if corrections:
            corrected = sum("correction_sha256" in (outcome.record or {}) for outcome in outcomes)
            reporter.say(f"{corrected} of {len(scans)} scans have a correction, and were predicted with it")
        return outcomes


def check_steps(model: Model) -> None:
    """Raise an InputError if a model has no steps of single slices to draw."""
    if model.config.dims == 3:
        raise InputError(
            "--steps draws single slices: expected a model with dims=2, got dims=3; leave --steps out"
        )


def predict_scan(
    model: Model | Ensemble,
    scan: Scan,
    output: Path,
    formats: Sequence[str],
    probabilities: bool,
    steps: DrawSteps | None,
    reporter: Reporter,
    *,
    corrections: Mapping[str, Correction] | None = None,
    write_more: WriteMore | None = None,
    reported: type[Exception] = Exception,
) -> Outcome[dict[str, Any]]:
    """Predict one scan as :func:`predict_scans` does, with a model made for prediction; errors are reported.

    ``write_more`` is called with the scan, its prediction and the record, before the record is written.

    Raises:
        RunError: an error that concerns all scans. Exceptions that are not of type ``reported`` are raised
            too.
    """
    ensemble = ensemble_of(model)
    try:
        if scan.problem is not None:
            raise InputError(scan.problem)
        check_count(len(scan.paths), ensemble.channels)
        files_hash = hash_of_channels(scan.paths)
        input_hash = hash_with_series(files_hash, scan.series)
        correction = (corrections or {}).get(input_hash)
        # A mask that is missing is an error here: without it a result that was made without mask would count.
        mask = None if scan.mask is None else hash_of_source(scan.mask)
        files = result_files(output, scan.name, formats)
        picture = output / STEPS / f"{scan.name}.png"
        classes = ("background", *ensemble.labels.names) if probabilities else ()
        maps = [output / PROBABILITIES / f"{scan.name}_{as_file(name)}.nii.gz" for name in classes]
        new_files = _relative_names(output, [*files.values(), *([picture] if steps else []), *maps])
        record = earlier_record(output / record_name(scan.name))
        old_files = listed(record)
        up_to_date = made_from(record, provenance(ensemble, input_hash, correction, mask))
        # A file that the record does not list may be of another model.
        if record and up_to_date and new_files <= old_files and damaged(output, new_files) is None:
            reporter.say("  is there already, made from the same scan and model")
        else:
            volumes = read_channels(scan.paths, ensemble.channels, scan.series, ensemble.lead.modality)
            volume = volumes[0]
            body = None if scan.mask is None else read_mask(scan.mask, volume)
            source = open_dicom(scan.path, scan.series, formats, volume)
            with reporter.counting(f"predict {printable(scan.name)}") as progress:
                prediction = predict(
                    ensemble,
                    volumes,
                    probabilities=probabilities,
                    crops=write_more is not None,
                    correction=correction,
                    body=body,
                    progress=progress,
                )
                record = prediction_record(ensemble, prediction, input_hash, correction, mask)
            record["warnings"] += _training_warnings(ensemble, files_hash)
            with _replacing(output, scan.name, record, new_files, old_files, keep=up_to_date):
                record["warnings"] += _write(files, maps, scan, ensemble.labels, prediction, record, source)
                if steps is not None:
                    steps(ensemble.lead, volumes[prediction.prepared.pose_channel], prediction, picture)
                if write_more is not None:
                    write_more(volume, prediction, record)
    except reported as error:
        problem = named(str(failure_of(error)), printable(str(scan.path)))
        reporter.say(f"  error: {problem}")
        return Outcome(scan.name, None, problem)
    for warning in record["warnings"]:
        reporter.say(f"  warning: {warning}")
    return Outcome(scan.name, record, None)


def _training_warnings(ensemble: Ensemble, files_hash: str) -> list[str]:
    """Return a warning for each use of a scan in training; a validation patient decides when it stops.

    Args:
        ensemble: the models.
        files_hash: of the scan's files, without the series, which training does not choose.
    """
    trainings = [member.info.training for member in ensemble.members]
    counts = {
        "train": sum(files_hash in training.images_sha256 for training in trainings),
        "validate": sum(files_hash in training.validation_images_sha256 for training in trainings),
    }
    lines = []
    for use, count in counts.items():
        if count:
            models = "the model" if len(trainings) == 1 else f"{count} of the {len(trainings)} models"
            lines.append(f"this scan was used to {use} {models}: its result is not an independent test")
    return lines


@contextmanager
def _replacing(
    output: Path, name: str, record: dict[str, Any], new_files: set[str], old_files: set[str], *, keep: bool
) -> Iterator[None]:
    """Replace a scan's results by those written within the block, and write the record that lists them last.

    Args:
        output: folder of the results.
        name: of the scan.
        record: how the new results are made.
        new_files: relative paths of the files that the block writes.
        old_files: relative paths that the earlier record lists.
        keep: keep earlier results of other kinds, which were made from the same scan and model. Otherwise
            they are removed, since they would not belong to the new record.
    """
    other_files = (old_files & _relative_names(output, _every_result(output, name))) - new_files
    kept = {file for file in other_files if keep and (output / file).exists()}
    record["files"] = sorted(new_files | kept)
    record_path, paths = output / record_name(name), [output / file for file in record["files"]]
    with replacing_results(record_path, paths, stale=[output / file for file in other_files - kept]):
        yield
        write_json(record_path, record)


def _write(
    files: Mapping[str, Path],
    maps: Sequence[Path],
    scan: Scan,
    labels: Labels,
    prediction: Prediction,
    record: Mapping[str, Any],
    source: "Source | None",
) -> tuple[str, ...]:
    """Write the label map in each format and the map of each class's probability; return warnings."""
    hashes = ("isopose", "model_sha256", "config_sha256", "input_sha256", "correction_sha256", "mask_sha256")
    warnings = write_results(
        files,
        prediction.labels,
        labels,
        record["volumes_ml"],
        path=scan.path,
        series=scan.series,
        made_from=[record[key] for key in hashes if key in record],
        source=source,
    )
    if prediction.probabilities is not None:
        for path, values in zip(maps, prediction.probabilities, strict=True):
            write_image(prediction.labels.with_array(values), path)
    return warnings


def _relative_names(output: Path, paths: Iterable[Path]) -> set[str]:
    """Return paths relative to the output folder, as a record lists them."""
    return {path.relative_to(output).as_posix() for path in paths}


def _every_result(output: Path, name: str) -> list[Path]:
    """Return all files that predictions of a scan may have written, except the record."""
    maps = (output / PROBABILITIES).glob(f"{glob.escape(name)}_*.nii.gz")
    return [*result_files(output, name, tuple(FORMATS)).values(), output / STEPS / f"{name}.png", *maps]


def as_file(label: str) -> str:
    """Return a label's name for a file name, with separators and unsafe characters percent-encoded."""
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", label)
