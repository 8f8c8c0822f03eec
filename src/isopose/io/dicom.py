"""Read DICOM series as volumes; slices are ordered by position, not by file name or instance number."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from isopose import scratch
from isopose.choices import Modality
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.dicom_copies import drop_copies
from isopose.io.dicom_files import dicomdir_files, files_in, is_dicomdir, linked_folders
from isopose.io.dicom_frames import MODALITIES, DicomFrame, NoFrame, frames_of, inspect_file
from isopose.io.dicom_pixels import pixels
from isopose.io.dicom_stack import lps_from_index_of, series_prefix, sorted_frames
from isopose.io.endings import ending
from isopose.io.header import check_grid, checked_volume

#: A file that is smaller than all slices, or larger, by at most this fraction may be a damaged slice.
_SIZE_TOLERANCE = 0.1
#: Possible voxel types, from the narrowest to the widest.
_TYPES = (np.int16, np.int32, np.float32)


def read_series(path: Path, series: str | None = None, modality: Modality | None = None) -> Volume:
    """Read one DICOM series, rescaled to its unit (HU in CT).

    Slices are ordered by their position along the slice normal. Scout views are left out. Of identical copies
    of a file only one is used. Padding pixels become air, -1000 HU (0 in other modalities), unless they are
    darker.

    Args:
        path: a folder (its own files and those of its subfolders), a ``DICOMDIR`` (the files that it lists),
            or one file, which stands for the whole series that it belongs to in its folder and those below.
        series: series number or series instance UID, where a folder holds several.
        modality: required modality of the series; None: any.

    Returns:
        Array ``(z, y, x)``: rows and columns as stored, z along the right-handed slice normal; int16 if the
            values fit, else int32 or float32. The affine is in LPS millimeters.

    Raises:
        InputError: no series or several, or one of another modality; missing, duplicate or unevenly spaced
            slices; slices of differing size, pixel size or orientation; gantry tilt; CT without rescaling
            to HU; color; pixels that cannot be decoded; other volumes beside the slices. Messages contain
            nothing that identifies the patient.
    """
    frames = ordered_frames(path, series)
    _check_modality(path, frames[0].modality, modality)
    matrix = lps_from_index_of(path, frames)
    shape = (len(frames), *frames[0].size)
    check_grid(path, shape, matrix, np.int16)
    return checked_volume(path, _stack(pixels(frames), shape), matrix)


def _check_modality(path: Path, actual: str, expected: Modality | None) -> None:
    """Refuse a series of another modality; a series with an unknown or missing modality is read."""
    if expected is None or actual not in MODALITIES or actual == expected.upper():
        return
    instead = "is it the right series?"
    if actual in ("CT", "MR"):
        instead = f"use a model of {actual}, or without a model --modality {actual.lower()}"
    raise InputError(f"{path}: a DICOM series of {actual}, expected {expected.upper()}; {instead}")


def ordered_frames(path: Path, series: str | None = None) -> list[DicomFrame]:
    """Return the frames of the series that :func:`read_series` reads, in stacking order.

    Raises:
        InputError: no series or several, or frames of several kinds.
    """
    return sorted_frames(path, drop_copies(path, _select_series(path, series)))


def holds_slices(folder: Path) -> bool:
    """Return True if a folder or one in it holds DICOM slices; the search ends at the first of them.

    Links to folders are not followed, since :func:`read_series` does not follow them either. A folder that
    is named as a volume (``scan.nii.gz``) is a scan of its own.
    """
    entries = (path for path in sorted(folder.iterdir()) if not path.is_symlink() and not ending(path))
    subfolders = (path for path in entries if path.is_dir())
    folders = [folder, *subfolders]
    files = (file for path in folders for file in files_in(path, below=False))
    try:
        return any(frames_of(file) for file in files if file.is_file() and not ending(file))
    except InputError:
        # A damaged slice counts as a slice; reading it raises the error that explains the damage.
        return True


def _select_series(path: Path, series: str | None) -> list[DicomFrame]:
    """Return the frames of the series that a path and a series number or UID select.

    Raises:
        InputError: no series, several, or one that is incomplete.
    """
    if path.is_file() and not is_dicomdir(path):
        return _series_of_file(path)
    frames_found, other_objects, unread = _inspect_folder(path)
    scans = [frame for frame in frames_found if not frame.localizer]
    if not scans:
        raise InputError(
            f"{path}: no DICOM image series here, expected files with position, orientation and pixel size"
            + _describe_others(other_objects, len(frames_found), sum(not file.is_file() for file in unread))
            + _volume_hint(path)
        )
    groups: dict[str, list[DicomFrame]] = {}
    for frame in scans:
        groups.setdefault(frame.series, []).append(frame)
    if series is not None:
        matching = {uid: g for uid, g in groups.items() if series in (uid, g[0].number)}
        if not matching:
            raise InputError(
                f"{path}: no series {series!r} here, expected one of {_list_series(groups.values())}"
            )
        groups = matching
    if len(groups) > 1:
        raise InputError(
            f"{path}: expected one image series, got {len(groups)}: {_list_series(groups.values())}; "
            "give one of its files instead of the folder, or choose one by its number (--series of "
            "homogenize, predict and wrap)"
        )
    frames = next(iter(groups.values()))
    _check_positions(path, frames, other_objects)
    if is_dicomdir(path):
        _check_unread(path, frames, unread)
    else:
        _check_complete(path, path, frames, unread)
    return frames


def _series_of_file(path: Path) -> list[DicomFrame]:
    """Return the frames of the series to which one file belongs, in its folder and those below it."""
    own_frames = inspect_file(path)
    if not isinstance(own_frames, list):
        description = "" if own_frames is None else _describe_others([own_frames])
        raise InputError(
            f"{path}: expected a DICOM image with position, orientation and pixel size; found "
            f"none{description}"
        )
    nearby_frames, other_objects, unread = _inspect_files(files_in(path.parent, below=True))
    frames = [
        frame for frame in nearby_frames if frame.series == own_frames[0].series and not frame.localizer
    ]
    if frames:
        _check_positions(path, frames, other_objects)
        _check_complete(path, path.parent, frames, unread)
    return frames or own_frames


def _inspect_folder(folder: Path) -> tuple[list[DicomFrame], list[NoFrame], list[Path]]:
    """Return the frames of all files in a folder and below it, or of those that a ``DICOMDIR`` lists.

    Raises:
        InputError: an empty folder, or other volumes lie beside the slices, so the choice is ambiguous.
    """
    if is_dicomdir(folder):
        return _inspect_files(dicomdir_files(folder))
    if not any(folder.iterdir()):
        raise InputError(f"{folder}: is empty, expected the files of a DICOM series, or volumes")
    files = files_in(folder, below=True)
    # Volumes in subfolders do not count: they are most often results.
    volumes = [file.name for file in files if file.parent == folder and ending(file)]
    frames, other_objects, unread = _inspect_files(files)
    if frames and volumes:
        raise InputError(
            f"{folder}: holds both DICOM slices and {volumes[0]}"
            + (f" and {len(volumes) - 1} more volumes" if volumes[1:] else "")
            + "; expected one scan: give one of the slices' files for their series, or the volume's file"
        )
    return frames, other_objects, unread


def _inspect_files(files: Iterable[Path]) -> tuple[list[DicomFrame], list[NoFrame], list[Path]]:
    """Return the frames of files, the DICOM files without frames, and the files that are not DICOM."""
    frames: list[DicomFrame] = []
    other_objects: list[NoFrame] = []
    unread: list[Path] = []
    for file in files:
        content = inspect_file(file) if file.is_file() else None
        if isinstance(content, NoFrame):
            other_objects.append(content)
        elif content:
            frames += content
        else:
            unread.append(file)
    return frames, other_objects, unread


def _check_positions(path: Path, frames: list[DicomFrame], other_objects: list[NoFrame]) -> None:
    """Raise an InputError if images of a series lack their position.

    Leaving them out would silently shorten the scan.
    """
    kinds = {frame.kind for frame in frames}
    unplaced = [o for o in other_objects if o.lacks and o.series == frames[0].series and o.kind in kinds]
    if unplaced:
        raise InputError(
            f"{series_prefix(path, frames[0])} has images that lack {unplaced[0].lacks} ({len(unplaced)} of "
            f"{len(frames) + len(unplaced)}, e.g. {unplaced[0].path.name}); export it again"
        )


def _possible_slices(frames: list[DicomFrame], unread: list[Path]) -> list[Path]:
    """Return the unread files that may be slices of a series.

    A candidate lies in a folder of the series; has the extension of the series' files, a number in its place,
    or none; and is about as large as a slice (:data:`_SIZE_TOLERANCE`), or is a broken link, pipe or device.
    An empty file is a candidate only if it has the same extension.
    """
    slices = {frame.path for frame in frames}
    folders, endings = {file.parent for file in slices}, {file.suffix.lower() for file in slices}
    sizes = [file.stat().st_size for file in slices]
    low, high = min(sizes) * (1 - _SIZE_TOLERANCE), max(sizes) * (1 + _SIZE_TOLERANCE)
    candidates = []
    for file in unread:
        same_ending = file.suffix.lower() in endings
        if file.parent in folders and (same_ending or file.suffix[1:].isdecimal() or not file.suffix):
            size = file.stat().st_size if file.is_file() else low
            if low <= size <= high or (same_ending and size == 0):
                candidates.append(file)
    return candidates


def _check_complete(path: Path, folder: Path, frames: list[DicomFrame], unread: list[Path]) -> None:
    """Raise an InputError if slices of the series may be among unread files, or lie in a linked folder."""
    _check_unread(path, frames, _possible_slices(frames, unread))
    known_files = {frame.path.resolve() for frame in frames}
    for link in linked_folders(folder):
        for file in files_in(link, below=False):
            if file.is_file() and file.resolve() not in known_files and _belongs_to(file, frames[0].series):
                raise InputError(
                    f"{series_prefix(path, frames[0])} has more images in {link.name}, a link to a folder, "
                    "which is not followed; put all files below one folder"
                )


def _belongs_to(file: Path, series: str) -> bool:
    try:
        return any(frame.series == series and not frame.localizer for frame in frames_of(file))
    except InputError:  # a damaged file, which need not be of this series
        return False


def _check_unread(path: Path, frames: list[DicomFrame], unread: list[Path]) -> None:
    """Raise an InputError if files that may be slices of the series are not DICOM.

    Leaving them out would silently shorten the scan.
    """
    where, broken = series_prefix(path, frames[0]), [file for file in unread if not file.is_file()]
    if broken:
        raise InputError(
            f"{where} has {len(frames)} images, but broken links, pipes or devices lie beside them "
            f"({len(broken)}, e.g. {broken[0].name}); fetch them (git annex get, dvc pull), or remove them"
        )
    if unread:
        raise InputError(
            f"{where} has {len(frames)} images, but files that look like further images by place and size "
            f"are not DICOM ({len(unread)}, e.g. {unread[0].name}); export the series again, or remove them"
        )


def _describe_others(other_objects: list[NoFrame], scouts: int = 0, broken: int = 0) -> str:
    """Describe what was found in place of slices, by kind and by missing field; empty if there is nothing.

    Args:
        other_objects: DICOM files without frames.
        scouts: number of scout views.
        broken: number of broken links, pipes and devices.
    """
    counts = Counter((other.kind, other.lacks) for other in other_objects)
    parts = [
        f"{count} {kind}" + (f", {'which lacks' if count == 1 else 'which lack'} {lacks}" if lacks else "")
        for (kind, lacks), count in sorted(counts.items())
    ]
    if scouts:
        parts.append(f"scout views left out: {scouts}")
    if broken:
        parts.append(f"broken links, pipes or devices: {broken}")
    return f" ({'; '.join(parts)})" if parts else ""


def _volume_hint(folder: Path) -> str:
    """Return the advice to give the folder of volumes that lie further below; empty if there are none."""
    files = files_in(folder, below=True) if folder.is_dir() else ()
    volume = next((file for file in files if ending(file)), None)
    return "" if volume is None else f"; for volumes give their own folder, e.g. {volume.parent}"


def _list_series(groups: Iterable[list[DicomFrame]]) -> str:
    ordered = sorted(groups, key=lambda g: (len(g[0].number), g[0].number))
    return ", ".join(
        f"series {g[0].number or 'without number'} ({g[0].modality}, {len(g)} images)" for g in ordered
    )


def _stack(slices: Iterator[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Stack slices into one array of the narrowest of int16, int32 and float32 that holds all values."""
    array = scratch.zeros(shape, _TYPES[0])
    type_index = 0
    for number, values in enumerate(slices):
        needed = _type_index(values)
        if needed > type_index:
            narrower, array, type_index = array, scratch.zeros(shape, _TYPES[needed]), needed
            array[:number] = narrower[:number]
        with np.errstate(over="ignore"):  # float32 overflow becomes infinite, which is refused later
            array[number] = values
    return array


def _type_index(values: np.ndarray) -> int:
    """Return the index in ``_TYPES`` of the narrowest type that holds all values."""
    if values.dtype.kind == "f":
        return 2
    low, high = int(values.min()), int(values.max())
    bits = max(high, -1 - low).bit_length()
    return 0 if bits < 16 else 1 if bits < 32 else 2
