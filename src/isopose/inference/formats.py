"""The formats in which ``isopose predict`` writes labels, and the files of one scan."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from isopose.errors import InputError
from isopose.files import hash_of, replacing
from isopose.geometry.volume import Volume
from isopose.io.images import ending, write_labels
from isopose.labels import Labels, class_colours

#: Format to the ending of its files; all but the first refer to a DICOM series.
FORMATS = {
    "nifti": ".nii.gz",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
    "dicom-sr": ".sr.dcm",
}
NIFTI = "nifti"


def choose_formats(given: Iterable[str]) -> tuple[str, ...]:
    """Formats in the order of :data:`FORMATS`, each once; a report has its segmentation written beside it.

    Raises:
        InputError: an unknown one, or none.
    """
    wanted = set(given)
    unknown = sorted(wanted - set(FORMATS))
    if unknown or not wanted:
        told = ", ".join(map(repr, unknown)) or "none"
        raise InputError(f"--format: expected {', '.join(FORMATS)}, got {told}")
    if "dicom-sr" in wanted:
        wanted.add("dicom-seg")
    return tuple(name for name in FORMATS if name in wanted)


def check_source(path: Path, formats: Sequence[str]) -> None:
    """Check that a scan can be written in these formats.

    Raises:
        InputError: a DICOM object of a scan that is no DICOM series.
    """
    dicom = [name for name in formats if name != NIFTI]
    if dicom and ending(path):
        raise InputError(
            f"{path}: --format {dicom[0]} refers to the series that a scan came from, expected a DICOM "
            f"series, got {ending(path)}; give the series, or --format {NIFTI}"
        )


def result_files(output: Path, name: str, formats: Sequence[str]) -> dict[str, Path]:
    """Where the results of a scan are written, by format."""
    return {one: output / f"{name}{FORMATS[one]}" for one in formats}


def write_results(
    files: Mapping[str, Path],
    predicted: Volume,
    labels: Labels,
    volumes_ml: Mapping[str, float],
    *,
    path: Path,
    series: str | None,
    made_from: list[str],
) -> tuple[str, ...]:
    """Write a label map in each format, every file at once or not at all.

    Args:
        files: see :func:`result_files`.
        predicted: stored values on the scan's grid.
        labels: their names.
        volumes_ml: of each label.
        path: the scan, for DICOM objects a series.
        series: which of several, see ``read_volume``.
        made_from: hashes of all that decides the result.

    Returns:
        Warnings, one line each.

    Raises:
        InputError: the series does not say what its results would have to name.
    """
    dicom = {one: file for one, file in files.items() if one != NIFTI}
    if NIFTI in files:
        write_labels(predicted, files[NIFTI])
    if not dicom:
        return ()
    # Slow to load, and only for these.
    from isopose.io.dicom_results.report import report
    from isopose.io.dicom_results.segmentation import segmentation
    from isopose.io.dicom_results.source import open_source
    from isopose.io.dicom_results.structures import structures

    source = open_source(path, series, predicted)
    classes, names = labels.to_classes(predicted.array), labels.names
    # Of the voxels too: on other devices single ones differ, and two objects may not share an identifier.
    voxels = hashlib.sha256(classes.tobytes()).hexdigest()
    colours, made_from = class_colours(names), [*made_from, hash_of(list(names)), voxels]
    objects = {}
    if "dicom-seg" in dicom:
        objects["dicom-seg"] = segmentation(source, classes, names, colours, made_from)
    if "rtstruct" in dicom:
        objects["rtstruct"] = structures(
            source, classes, predicted.world_from_index, names, colours, made_from
        )
    if "dicom-sr" in dicom:
        objects["dicom-sr"] = report(source, objects["dicom-seg"], names, volumes_ml, made_from)
    for one, file in dicom.items():
        with replacing(file) as temporary:
            objects[one].save_as(temporary, enforce_file_format=True)
    return source.warnings
