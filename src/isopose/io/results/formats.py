"""Output formats of ``isopose predict``: choose, check and write them."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from isopose.errors import InputError, IsoposeError
from isopose.files import hash_of, replacing
from isopose.geometry.volume import Volume
from isopose.io.endings import ending
from isopose.io.images import write_labels
from isopose.io.quiet import quiet_pydicom
from isopose.labels import Labels, class_colors

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from isopose.io.results.source import Source

#: Format to file extension; all but the first refer to a DICOM series.
FORMATS = {
    "nifti": ".nii.gz",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
    "dicom-sr": ".sr.dcm",
}
NIFTI = "nifti"


def choose_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct formats in the order of :data:`FORMATS`; a report includes its segmentation.

    Raises:
        InputError: an unknown format, or none.
    """
    wanted = set(names)
    unknown = sorted(wanted - set(FORMATS))
    if unknown or not wanted:
        got = ", ".join(map(repr, unknown)) or "none"
        raise InputError(f"--format: expected {', '.join(FORMATS)}, got {got}")
    if "dicom-sr" in wanted:
        wanted.add("dicom-seg")
    return tuple(name for name in FORMATS if name in wanted)


def check_formats(path: Path, formats: Sequence[str]) -> None:
    """Check that results of a scan can be written in these formats.

    Raises:
        InputError: a DICOM format for a scan that is not a DICOM series.
    """
    dicom = [name for name in formats if name != NIFTI]
    if dicom and ending(path):
        raise InputError(
            f"{path}: --format {dicom[0]} refers to the series that a scan came from, expected a DICOM "
            f"series, got {ending(path)}; give the series, or --format {NIFTI}"
        )


def result_files(output: Path, name: str, formats: Sequence[str]) -> dict[str, Path]:
    """Return the result files of a scan, by format."""
    return {form: output / f"{name}{FORMATS[form]}" for form in formats}


def open_dicom(path: Path, series: str | None, formats: Iterable[str], volume: Volume) -> "Source | None":
    """Return the data that DICOM results need from their series; None if no format is DICOM.

    It is called before prediction, so that no time is lost if the series cannot have DICOM results.

    Args:
        path: the scan.
        series: which one of several, see ``read_volume``.
        formats: of the results.
        volume: the scan as read, or labels on its grid.

    Raises:
        InputError: the series lacks elements that its results need.
    """
    if all(one == NIFTI for one in formats):
        return None
    # Imported here: slow to load, and needed for DICOM results only.
    from isopose.io.results.source import open_source

    return open_source(path, series, volume)


def write_results(
    files: Mapping[str, Path],
    predicted: Volume,
    labels: Labels,
    volumes_ml: Mapping[str, float],
    *,
    path: Path,
    series: str | None,
    made_from: list[str],
    source: "Source | None" = None,
) -> tuple[str, ...]:
    """Write a label map in each format; either all files are written or none.

    Args:
        files: see :func:`result_files`.
        predicted: stored values on the scan's grid.
        labels: their names.
        volumes_ml: volume of each label.
        path: the scan; for DICOM results a series.
        series: which one of several, see ``read_volume``.
        made_from: hashes of all inputs of the result.
        source: from :func:`open_dicom`, if already read.

    Returns:
        Warnings, one line each.

    Raises:
        InputError: the series lacks elements that its results need.
    """
    source = source or open_dicom(path, series, files, predicted)
    with ExitStack() as stack:
        if source is not None:
            for name, dicom_object in _objects(
                files, predicted, labels, volumes_ml, path, made_from, source
            ).items():
                temporary = stack.enter_context(replacing(files[name]))
                with quiet_pydicom():
                    dicom_object.save_as(temporary, enforce_file_format=True)
        if NIFTI in files:
            write_labels(predicted, files[NIFTI])
    return () if source is None else source.warnings


def _objects(
    formats: Collection[str],
    predicted: Volume,
    labels: Labels,
    volumes_ml: Mapping[str, float],
    path: Path,
    made_from: list[str],
    source: "Source",
) -> "dict[str, Dataset]":
    """Return the DICOM objects, by format."""
    from isopose.io.results.report import report
    from isopose.io.results.segmentation import segmentation
    from isopose.io.results.structures import structure_set

    classes, names = predicted.with_array(labels.to_classes(predicted.array)), labels.names
    # The voxels are hashed too: single voxels differ between devices, and two objects must not share a UID.
    voxels = hashlib.sha256(classes.array.tobytes()).hexdigest()
    colors, made_from = class_colors(names), [*made_from, hash_of(list(names)), voxels]
    objects: dict[str, Dataset] = {}
    try:
        with quiet_pydicom():
            if "dicom-seg" in formats:
                objects["dicom-seg"] = segmentation(source, classes, names, colors, made_from)
            if "rtstruct" in formats:
                objects["rtstruct"] = structure_set(source, classes, names, colors, made_from)
            if "dicom-sr" in formats:
                objects["dicom-sr"] = report(source, objects["dicom-seg"], names, volumes_ml, made_from)
    except (IsoposeError, MemoryError, OSError):
        raise
    except Exception as error:
        # The message is left out, since it may quote data copied from the series.
        raise InputError(
            f"{path}: DICOM results cannot be made from this series ({type(error).__name__}); write NIfTI"
        ) from None
    return objects
