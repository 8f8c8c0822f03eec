"""DICOM series as volumes, by where each slice says it lies; never by file name or instance number."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from isopose import scratch
from isopose.errors import InputError
from isopose.geometry.volume import SHEAR_TOLERANCE, Volume
from isopose.io.dicom_frames import Frame, frames_of, read_header
from isopose.io.header import Header, all_finite, on_file
from isopose.io.quiet import itk_name, quiet_itk, quiet_pydicom

#: Slice distances may differ by 1 % of their median; positions are often rounded to 0.01 mm, so that two
#: neighbours may differ by 0.02 mm without meaning anything.
UNEVEN_SHARE, UNEVEN_MM = 0.01, 0.02
#: Direction cosines of one series may differ by this much (rounding in the header).
_TURN = 1e-4
#: Of voxels, from the narrowest on.
_TYPES = (np.int16, np.int32, np.float32)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content."""
    return path.is_file() and read_header(path) is not None


def read_series(path: Path, series: str | None = None) -> Volume:
    """Read one DICOM series, rescaled to its stored unit (HU in CT).

    Slices are ordered by their position along the slice normal. Scout views are left out.

    Args:
        path: a folder (its own files; its subfolders where it has no DICOM images itself), a ``DICOMDIR``
            (the files that it lists), or one file, which stands for the whole series that it belongs to in
            its folder.
        series: series number or series instance UID, where a folder holds several.

    Returns:
        Array ``(z, y, x)``: rows and columns as stored, z along the right-handed slice normal; int16 where
        the values fit, else int32 or float32. LPS in mm.

    Raises:
        InputError: no series or several; slices missing, doubled, unevenly spaced, or of differing size,
            pixel size or orientation; gantry tilt; CT without rescaling; colour; pixels that cannot be
            decoded. No message holds anything that names the patient.
    """
    frames = ordered_frames(path, series)
    matrix = _matrix(path, frames)
    shape = (len(frames), *frames[0].size)
    Header(shape, matrix, np.dtype(np.int16)).checked(path)
    array = _joined(_pixels(frames), shape)
    if not all_finite(array):
        raise InputError(f"{path}: holds values that are not finite (NaN or infinity); export it again")
    return on_file(path, array, matrix)


def peek_series(path: Path, series: str | None = None) -> Header:
    """Grid of a DICOM series from the headers alone; the type is what CT values fit into, int16.

    Raises:
        InputError: as :func:`read_series`, except for what only the pixels can show.
    """
    frames = ordered_frames(path, series)
    matrix = _matrix(path, frames)
    return Header((len(frames), *frames[0].size), matrix, np.dtype(np.int16)).checked(path)


def ordered_frames(path: Path, series: str | None = None) -> list[Frame]:
    """The slices of the series that :func:`read_series` reads, in the order in which it stacks them.

    Raises:
        InputError: no series or several, or frames of several kinds.
    """
    return _ordered(path, _chosen(path, series))


def _chosen(path: Path, series: str | None) -> list[Frame]:
    """The frames of the one series that is meant."""
    own: list[Frame] = []
    if path.is_file() and not is_dicomdir(path):
        own = frames_of(path)
        if not own:
            raise InputError(
                f"{path}: expected a DICOM image with position, orientation and pixel size; found none"
            )
        if len(own) > 1:
            return own
        folder, series = path.parent, None
    else:
        folder = path
    found = [frame for file in _files(folder) for frame in frames_of(file)]
    if own:
        return [frame for frame in found if frame.series == own[0].series and not frame.localizer] or own
    scans = [frame for frame in found if not frame.localizer]
    if not scans:
        raise InputError(
            f"{path}: no DICOM image series here, expected files with position, orientation and pixel size"
            + (f" (scout views left out: {len(found)})" if found else "")
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
    return next(iter(groups.values()))


def is_dicomdir(path: Path) -> bool:
    """Whether a file is the directory of a DICOM medium, by its name."""
    return path.name.upper() == "DICOMDIR" and path.is_file()


def listed_files(path: Path) -> list[Path]:
    """The image files that a ``DICOMDIR`` lists; pydicom's own reader leaves out those that are missing."""
    try:
        with quiet_pydicom():
            records = pydicom.dcmread(path).DirectoryRecordSequence
            places = [
                [str(part) for part in np.atleast_1d(record.ReferencedFileID)]
                for record in records
                if record.DirectoryRecordType == "IMAGE"
            ]
    except Exception:  # whatever a damaged element leads to
        raise InputError(f"{path}: a damaged DICOMDIR; give the folder of the series instead") from None
    if any(part in ("", ".", "..") or re.search(r"[/\\:]", part) for place in places for part in place):
        raise InputError(f"{path}: lists files that are not below it; give the folder of the series instead")
    files = [path.parent.joinpath(*place) for place in places]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{path}: lists {len(files)} files, {len(missing)} of which are not there, e.g. "
            f"{missing[0].name}; copy the whole medium"
        )
    return files


def _files(folder: Path) -> list[Path]:
    """Files of a folder that may be images, else those of its subfolders; what a ``DICOMDIR`` lists."""
    if is_dicomdir(folder):
        return listed_files(folder)
    for pattern in ("*", "**/*"):
        files = sorted(p for p in folder.glob(pattern) if p.is_file() and not p.name.startswith("."))
        files = [p for p in files if p.name.upper() != "DICOMDIR"]
        if any(is_dicom(p) for p in files):
            return files
    return []


def _listing(groups: Iterable[list[Frame]]) -> str:
    ordered = sorted(groups, key=lambda g: (len(g[0].number), g[0].number))
    return ", ".join(
        f"series {g[0].number or 'without number'} ({g[0].modality}, {len(g)} images)" for g in ordered
    )


def _ordered(path: Path, frames: list[Frame]) -> list[Frame]:
    """Frames of one kind, by position along the normal.

    Raises:
        InputError: they differ in size, pixel size or orientation, or cannot be HU.
    """
    first = frames[0]
    where = f"{path}: series {first.number}" if first.number else f"{path}: the series"
    for what, values in (
        ("image size", {f"{f.size[1]} x {f.size[0]}" for f in frames}),
        ("modality", {f.modality for f in frames}),
    ):
        if len(values) > 1:
            raise InputError(
                f"{where} mixes images of differing {what} ({', '.join(sorted(values))}); separate them"
            )
    if max(np.abs(np.subtract(f.spacing, first.spacing)).max() for f in frames) > 1e-3 * min(first.spacing):
        raise InputError(f"{where} mixes images of differing pixel size; separate them")
    if max(np.abs(f.axes - first.axes).max() for f in frames) > _TURN:
        raise InputError(f"{where} mixes images of differing orientation; separate them")
    if not all(f.grey for f in frames):
        raise InputError(f"{where} holds colour or inverted images, expected grey values (MONOCHROME2)")
    if first.modality == "CT" and any(f.rescale is None or f.rescale[0] == 0 for f in frames):
        raise InputError(
            f"{where} has CT images without rescale slope and intercept, so their values are not HU; "
            "export the original series"
        )
    return sorted(frames, key=lambda f: float(f.position @ first.normal))


def _matrix(path: Path, frames: list[Frame]) -> np.ndarray:
    """``(4, 4)`` LPS from index of ordered frames, once they are known to be a regular stack.

    Raises:
        InputError: doubled, missing or unevenly spaced slices; gantry tilt.
    """
    first = frames[0]
    positions = np.stack([f.position for f in frames])
    along = positions @ first.normal
    steps = np.diff(along)
    matrix = np.eye(4)
    matrix[:3, 0] = first.axes[0] * first.spacing[0]
    matrix[:3, 1] = first.axes[1] * first.spacing[1]
    matrix[:3, 2] = first.normal * (first.thickness or 1.0)
    matrix[:3, 3] = first.position
    if len(frames) == 1:
        return matrix
    where = f"{path}: series {first.number}" if first.number else f"{path}: the series"
    doubled = np.flatnonzero(steps < UNEVEN_MM)
    if doubled.size:
        one, two = frames[doubled[0]], frames[doubled[0] + 1]
        raise InputError(
            f"{where} has several slices at one position, e.g. {one.path.name} and {two.path.name} "
            f"({doubled.size} too many); copies, phases or reconstructions must go into a folder each"
        )
    usual = float(np.median(steps))
    uneven = np.flatnonzero(np.abs(steps - usual) > max(UNEVEN_SHARE * usual, UNEVEN_MM))
    if uneven.size:
        at = uneven[0]
        missing = int(np.rint(steps / usual - 1)[uneven].clip(0).sum())
        told = f"slices are missing (about {missing})" if missing else "the slices are unevenly spaced"
        raise InputError(
            f"{where}: {told}, e.g. {steps[at]:.2f} mm between {along[at]:.2f} and {along[at + 1]:.2f} mm "
            f"where {usual:.2f} mm is usual; export the whole series, or resample it to even spacing"
        )
    line = (positions[-1] - positions[0]) / (len(frames) - 1)
    tilt = min(1.0, float(np.linalg.norm(np.cross(line, first.normal)) / np.linalg.norm(line)))
    if tilt > SHEAR_TOLERANCE:
        raise InputError(
            f"{where} was scanned with a tilted gantry ({np.degrees(np.arcsin(tilt)):.1f} degrees), so "
            "its slices do not stack at right angles; resample it to a rectangular grid first"
        )
    expected = positions[0] + np.arange(len(frames))[:, None] * line
    astray = np.linalg.norm(positions - expected, axis=1).max()
    if astray > max(0.5 * min(first.spacing), UNEVEN_MM, UNEVEN_SHARE * usual):
        raise InputError(
            f"{where}: slices are shifted against each other by up to {astray:.2f} mm; separate them"
        )
    matrix[:3, 2] = first.normal * (line @ first.normal)
    return matrix


def _pixels(frames: list[Frame]) -> Iterator[np.ndarray]:
    """Rescaled ``(y, x)`` slices, each as its file's values need it."""
    per_file = Counter(frame.path for frame in frames)
    opened: dict[Path, np.ndarray] = {}
    for frame in frames:
        stack = opened.get(frame.path)
        if stack is None:
            stack = _decoded(frame.path)
            if per_file[frame.path] > 1:
                opened[frame.path] = stack
        if stack.shape[1:] != frame.size or frame.index >= len(stack):
            raise InputError(f"{frame.path}: pixels do not match the header's size; copy or export it again")
        yield stack[frame.index]


def _decoded(path: Path) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(path))
    with quiet_itk():
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError:
            # ITK's own text is left out: it may quote the header.
            raise InputError(
                f"{path}: pixels cannot be decoded (truncated, or compressed in an unsupported way); copy it "
                "again, or decompress it with your DICOM toolkit"
            ) from None
    return array if array.ndim == 3 else array[None]


def _joined(slices: Iterator[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Slices as one array, of the narrowest of int16, int32 and float32 that holds all values."""
    array = scratch.zeros(shape, _TYPES[0])
    held = 0
    for number, values in enumerate(slices):
        needed = _needed(values)
        if needed > held:
            narrow, array, held = array, scratch.zeros(shape, _TYPES[needed]), needed
            array[:number] = narrow[:number]
        array[number] = values
    return array


def _needed(values: np.ndarray) -> int:
    """The first of the types that holds all values."""
    if values.dtype.kind == "f":
        return 2
    limits = np.iinfo(np.int16)
    return 0 if limits.min <= values.min() and values.max() <= limits.max else 1
