"""DICOM series as volumes, by where each slice says it lies; never by file name or instance number."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from isopose import scratch
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.dicom_copies import without_copies
from isopose.io.dicom_files import files_in, is_dicomdir, listed_files
from isopose.io.dicom_files import is_dicom as is_dicom
from isopose.io.dicom_frames import Frame, NoFrame, frames_of, look_at
from isopose.io.dicom_pixels import pixels
from isopose.io.dicom_stack import in_order, matrix_of, named
from isopose.io.endings import ending
from isopose.io.header import Header, all_finite, on_file

#: Of voxels, from the narrowest on.
_TYPES = (np.int16, np.int32, np.float32)


def read_series(path: Path, series: str | None = None) -> Volume:
    """Read one DICOM series, rescaled to its stored unit (HU in CT).

    Slices are ordered by their position along the slice normal. Scout views are left out, and of copies of
    a file one is taken. Pixels that are declared to be padding become air, -1000 HU (0 in other modalities),
    unless they are darker already.

    Args:
        path: a folder (its own files and those of its subfolders), a ``DICOMDIR`` (the files that it lists),
            or one file, which stands for the whole series that it belongs to in its folder and those below.
        series: series number or series instance UID, where a folder holds several.

    Returns:
        Array ``(z, y, x)``: rows and columns as stored, z along the right-handed slice normal; int16 where
        the values fit, else int32 or float32. LPS in mm.

    Raises:
        InputError: no series or several; slices missing, doubled, unevenly spaced, or of differing size,
            pixel size or orientation; gantry tilt; CT without rescaling to HU; colour; pixels that cannot be
            decoded; volumes beside the slices. No message holds anything that names the patient.
    """
    frames = ordered_frames(path, series)
    matrix = matrix_of(path, frames)
    shape = (len(frames), *frames[0].size)
    Header(shape, matrix, np.dtype(np.int16)).checked(path)
    array = _joined(pixels(frames), shape)
    if not all_finite(array):
        raise InputError(f"{path}: holds values that are not finite (NaN or infinity); export it again")
    return on_file(path, array, matrix)


def peek_series(path: Path, series: str | None = None) -> Header:
    """Grid of a DICOM series from the headers alone; the type is what CT values fit into, int16.

    Raises:
        InputError: as :func:`read_series`, except for what only the pixels can show.
    """
    frames = ordered_frames(path, series)
    matrix = matrix_of(path, frames)
    return Header((len(frames), *frames[0].size), matrix, np.dtype(np.int16)).checked(path)


def ordered_frames(path: Path, series: str | None = None) -> list[Frame]:
    """The slices of the series that :func:`read_series` reads, in the order in which it stacks them.

    Raises:
        InputError: no series or several, or frames of several kinds.
    """
    return in_order(path, without_copies(path, _chosen(path, series)))


def holds_slices(folder: Path) -> bool:
    """Whether a folder or one in it holds DICOM slices; looks no further than to the first of them.

    Links to folders are not followed, since :func:`read_series` does not follow them either.
    """
    within = (below for below in sorted(folder.iterdir()) if below.is_dir() and not below.is_symlink())
    folders = [folder, *within]
    files = (file for place in folders for file in files_in(place, below=False))
    try:
        return any(frames_of(file) for file in files if not ending(file))
    except InputError:
        # A damaged slice is one; it is refused where it is read, in words that say why.
        return True


def _chosen(path: Path, series: str | None) -> list[Frame]:
    """The frames of the one series that is meant."""
    if path.is_file() and not is_dicomdir(path):
        return _series_of(path)
    found, others = _found(path)
    scans = [frame for frame in found if not frame.localizer]
    if not scans:
        raise InputError(
            f"{path}: no DICOM image series here, expected files with position, orientation and pixel size"
            + _instead(others, len(found))
        )
    groups: dict[str, list[Frame]] = {}
    for frame in scans:
        groups.setdefault(frame.series, []).append(frame)
    if series is not None:
        groups = {uid: g for uid, g in groups.items() if series in (uid, g[0].number)} or groups
        if not any(series in (uid, g[0].number) for uid, g in groups.items()):
            raise InputError(
                f"{path}: no series {series!r} here, expected one of {_listing(groups.values())}"
            )
    if len(groups) > 1:
        raise InputError(
            f"{path}: expected one image series, got {len(groups)}: {_listing(groups.values())}; "
            "choose one by its number (--series), or give one of its files instead of the folder"
        )
    frames = next(iter(groups.values()))
    _check_whole(path, frames, others)
    return frames


def _series_of(path: Path) -> list[Frame]:
    """The frames of the series to which one file belongs in its folder and those below it."""
    own = look_at(path)
    if not isinstance(own, list):
        found = "" if own is None else _instead([own], 0)
        raise InputError(
            f"{path}: expected a DICOM image with position, orientation and pixel size; found none{found}"
        )
    found_beside, others = _looked_at(files_in(path.parent, below=True))
    frames = [frame for frame in found_beside if frame.series == own[0].series and not frame.localizer]
    if frames:
        _check_whole(path, frames, others)
    return frames or own


def _found(folder: Path) -> tuple[list[Frame], list[NoFrame]]:
    """Frames of all files in a folder and below it, or of what a ``DICOMDIR`` lists.

    Raises:
        InputError: volumes lie beside them, so that it is not clear what is meant.
    """
    if is_dicomdir(folder):
        return _looked_at(listed_files(folder))
    files = files_in(folder, below=True)
    # Those in folders below are most often results.
    volumes = [file.name for file in files if file.parent == folder and ending(file)]
    frames, others = _looked_at(files)
    if frames and volumes:
        raise InputError(
            f"{folder}: holds both DICOM slices and {volumes[0]}"
            + (f" and {len(volumes) - 1} more volumes" if volumes[1:] else "")
            + "; expected one scan: give one of the slices' files for their series, or the volume's file"
        )
    return frames, others


def _looked_at(files: Iterable[Path]) -> tuple[list[Frame], list[NoFrame]]:
    frames: list[Frame] = []
    others: list[NoFrame] = []
    for file in files:
        found = look_at(file)
        if isinstance(found, NoFrame):
            others.append(found)
        elif found:
            frames += found
    return frames, others


def _check_whole(path: Path, frames: list[Frame], others: list[NoFrame]) -> None:
    """Raise an InputError where images of a series do not say where they lie; without them it is shorter."""
    kind = {frame.kind for frame in frames}
    lost = [o for o in others if o.lacks and o.series == frames[0].series and o.kind in kind]
    if lost:
        raise InputError(
            f"{named(path, frames[0])} has images that lack {lost[0].lacks} ({len(lost)} of "
            f"{len(frames) + len(lost)}, e.g. {lost[0].path.name}); export it again"
        )


def _instead(others: list[NoFrame], scouts: int) -> str:
    """What was found in place of slices, by kind and by what it lacks."""
    counts = Counter((other.kind, other.lacks) for other in others)
    parts = [
        f"{count} {kind}" + (f", {'which lacks' if count == 1 else 'which lack'} {lacks}" if lacks else "")
        for (kind, lacks), count in sorted(counts.items())
    ]
    if scouts:
        parts.append(f"scout views left out: {scouts}")
    return f" ({'; '.join(parts)})" if parts else ""


def _listing(groups: Iterable[list[Frame]]) -> str:
    ordered = sorted(groups, key=lambda g: (len(g[0].number), g[0].number))
    return ", ".join(
        f"series {g[0].number or 'without number'} ({g[0].modality}, {len(g)} images)" for g in ordered
    )


def _joined(slices: Iterator[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Slices as one array, of the narrowest of int16, int32 and float32 that holds all values."""
    array = scratch.zeros(shape, _TYPES[0])
    held = 0
    for number, values in enumerate(slices):
        needed = _needed(values)
        if needed > held:
            narrow, array, held = array, scratch.zeros(shape, _TYPES[needed]), needed
            array[:number] = narrow[:number]
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
            array[number] = values
    return array


def _needed(values: np.ndarray) -> int:
    """The first of the types that holds all values."""
    if values.dtype.kind == "f":
        return 2
    low, high = int(values.min()), int(values.max())
    bits = max(high, -1 - low).bit_length()
    return 0 if bits < 16 else 1 if bits < 32 else 2
