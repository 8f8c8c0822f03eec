"""Drop duplicate DICOM files, so that each image is used once."""

import filecmp
from operator import attrgetter
from pathlib import Path

import numpy as np

from isopose.errors import InputError
from isopose.io.dicom_frames import DicomFrame
from isopose.io.dicom_pixels import pixels

#: Fields of the header, besides position and orientation, that copies have in common.
_header_fields = attrgetter("size", "spacing", "modality", "gray", "unusable")


def drop_copies(path: Path, frames: list[DicomFrame]) -> list[DicomFrame]:
    """Drop copies of files; of each image, the file with the shortest path is kept.

    Two files are copies if they have the same SOP instance UID (or both none), the same positions, and either
    the same bytes or the same geometry and rescaled values. Some anonymizers write one UID into all files, so
    files at different positions are different slices whatever their UIDs.

    Raises:
        InputError: files that are one SOP instance at one position differ.
    """
    files: dict[Path, list[DicomFrame]] = {}
    for frame in frames:
        files.setdefault(frame.path, []).append(frame)
    first_file: dict[tuple[str, bytes], Path] = {}
    dropped: set[Path] = set()
    for file in sorted(files, key=lambda file: (len(str(file)), file)):
        own_frames = files[file]
        uid = own_frames[0].uid
        key = (uid, np.stack([frame.position for frame in own_frames]).tobytes())
        other = first_file.setdefault(key, file)
        if other == file:
            continue
        if _are_copies(files[other], own_frames):
            dropped.add(file)
        elif uid:
            raise InputError(
                f"{path}: {_relative_name(path, other)} and {_relative_name(path, file)} have one SOP "
                "instance UID and one position, but differ in their pixels or grids; remove the wrong one, "
                "or export the series again"
            )
    return [frame for frame in frames if frame.path not in dropped]


def _are_copies(one: list[DicomFrame], two: list[DicomFrame]) -> bool:
    if filecmp.cmp(one[0].path, two[0].path, shallow=False):
        return True
    if len(one) != len(two) or not all(map(_same_header, one, two)):
        return False
    return all(map(np.array_equal, pixels(one), pixels(two)))


def _same_header(one: DicomFrame, two: DicomFrame) -> bool:
    same_place = np.array_equal(one.position, two.position) and np.array_equal(one.axes, two.axes)
    return same_place and _header_fields(one) == _header_fields(two)


def _relative_name(path: Path, file: Path) -> str:
    return file.relative_to(path).as_posix() if path in file.parents else file.name
