"""Which files are DICOM, by their content, and which files of a folder are meant."""

import gzip
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np
import pydicom
from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import STANDARD_VR

from isopose.errors import InputError
from isopose.io.quiet import quiet_pydicom

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
#: A data set without a preamble begins with the file's own group or with the identifying one.
_FIRST_GROUPS = (0x0002, 0x0008)
#: No element that such a data set begins with is longer.
_LONGEST_FIRST = 1 << 12
_PREFIX = 132
#: Files that operating systems lay beside others, and the folder in which macOS packs them.
_SYSTEM_FILES, _SYSTEM_FOLDER = {"thumbs.db", "ehthumbs.db", "desktop.ini"}, "__MACOSX"


def is_dicom(path: Path) -> bool:
    """Return True if a file is DICOM by its content: with or without a preamble, or packed by gzip."""
    return path.is_file() and (read_header(path) is not None or is_packed(path))


def is_packed(path: Path) -> bool:
    """Return True if a file is DICOM packed by gzip, which is recognized but not read."""
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return False
    try:
        with gzip.open(path) as packed:
            return _begins_as_dicom(packed.read(_PREFIX))
    except (OSError, EOFError, zlib.error):
        return False


def read_header(path: Path) -> Dataset | None:
    """The technical fields of a DICOM file, or None where it is not one or too damaged to say.

    Files without the preamble are read as well where they begin as a DICOM data set does (implicit or
    explicit value representations, either byte order), or end in ``.dcm`` or ``.ima``.
    """
    try:
        force = is_named(path) or begins_as_dicom(path)
        if not force:
            return None
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            known = "Modality" in header or stored_class(header)
    except Exception:  # pydicom raises whatever a damaged element leads to
        return None
    return header if known else None


def stored_class(header: Dataset) -> str:
    """UID of what kind of object a file holds, empty where it does not say."""
    meta = getattr(header, "file_meta", None)
    of_file = "" if meta is None else str(meta.get("MediaStorageSOPClassUID") or "")
    return of_file or str(header.get("SOPClassUID") or "")


def is_named(path: Path) -> bool:
    """Whether a file's ending says that it is DICOM."""
    return path.suffix.lower() in (".dcm", ".ima")


def begins_as_dicom(path: Path) -> bool:
    """Whether a file has the preamble, or the first element of a DICOM data set without one."""
    with open(path, "rb") as file:
        return _begins_as_dicom(file.read(_PREFIX))


def _begins_as_dicom(start: bytes) -> bool:
    return start[128:] == b"DICM" or _first_element(start)


def _first_element(start: bytes) -> bool:
    """Whether bytes begin with an element of the standard's that a data set can begin with."""
    if len(start) < 8:
        return False
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", start[:4])
        if group not in _FIRST_GROUPS or not (element == 0 or dictionary_has_tag(Tag(group, element))):
            continue
        if start[4:6].decode("latin-1") in STANDARD_VR:
            return True
        # Without explicit value representations there is only one byte order.
        (length,) = struct.unpack("<I", start[4:8])
        if order == "<" and length % 2 == 0 and length <= _LONGEST_FIRST:
            return True
    return False


def is_hidden(name: PurePath) -> bool:
    """Whether a relative name is hidden, in a hidden folder, or of a file that an operating system adds."""
    parts = name.parts
    return (
        any(part.startswith(".") or part == _SYSTEM_FOLDER for part in parts)
        or parts[-1].lower() in _SYSTEM_FILES
    )


def is_dicomdir(path: Path) -> bool:
    """Whether a file is the directory of a DICOM medium, by its name."""
    return path.name.upper() == "DICOMDIR" and path.is_file()


def listed_files(path: Path) -> list[Path]:
    """The image files that a ``DICOMDIR`` lists; pydicom's own reader leaves out those that are missing.

    Raises:
        InputError: it is damaged, or lists files that are missing or not below it.
    """
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


def files_in(folder: Path, *, below: bool) -> list[Path]:
    """Files of a folder that may be images, in the order of their names.

    Hidden files, what operating systems add and the directory of a medium are left out.

    Args:
        folder: where to look.
        below: also in its subfolders.
    """
    return list(_shown(folder, folder.rglob("*") if below else folder.iterdir()))


def _shown(folder: Path, paths: Iterable[Path]) -> Iterable[Path]:
    for path in sorted(paths):
        hidden = is_hidden(path.relative_to(folder))
        if not hidden and path.is_file() and path.name.upper() != "DICOMDIR":
            yield path
