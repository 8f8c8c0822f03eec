"""Recognize DICOM files by their content, and select the relevant files of a folder."""

import gzip
import re
import struct
import zlib
from pathlib import Path, PurePath

import numpy as np
import pydicom
from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import STANDARD_VR

from isopose.errors import InputError
from isopose.files import entries_below
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
#: The group of a data set's first element without a preamble: file meta information, or identification.
_USUAL_GROUPS = (0x0002, 0x0008)
#: Other groups that may come first, where elements are out of order. Too many files begin with these bytes to
#: report one that cannot be read as damaged DICOM.
_OTHER_GROUPS = (0x0000, 0x0010, 0x0018, 0x0020, 0x0028)
#: The longest first element, in bytes, that a data set without a preamble can have.
_MAX_FIRST_LENGTH = 1 << 12
_PREFIX_BYTES = 132
#: Files that operating systems add to folders, and the folder that macOS adds to archives.
_SYSTEM_FILES, _SYSTEM_FOLDER = {"thumbs.db", "ehthumbs.db", "desktop.ini"}, "__MACOSX"


def is_dicom(path: Path) -> bool:
    """Return True if a file's content is DICOM, with or without a preamble, or gzip-compressed DICOM."""
    return path.is_file() and (read_header(path) is not None or is_gzipped_dicom(path))


def is_gzipped_dicom(path: Path) -> bool:
    """Return True if a file is gzip-compressed DICOM, which is recognized but not supported."""
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return False
    try:
        with gzip.open(path) as packed:
            return _begins_as_dicom(packed.read(_PREFIX_BYTES))
    except (OSError, EOFError, zlib.error):
        return False


def read_header(path: Path) -> Dataset | None:
    """Return the technical fields of a DICOM file; None if it is not DICOM or too damaged to read.

    A file without a preamble is read as well if it begins as a DICOM data set (implicit or explicit value
    representations, either byte order) or its name ends in ``.dcm`` or ``.ima``.
    """
    try:
        if not has_dicom_extension(path) and not begins_as_dicom(path, (*_USUAL_GROUPS, *_OTHER_GROUPS)):
            return None
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            is_known = "Modality" in header or sop_class_of(header)
    except Exception:  # pydicom raises many types of error for damaged elements
        return None
    return header if is_known else None


def sop_class_of(header: Dataset) -> str:
    """Return the SOP class UID of a file; empty if it has none."""
    return str(file_meta_of(header).get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or "")


def file_meta_of(header: Dataset) -> Dataset:
    """Return the file meta information of a file; empty if it has none."""
    return getattr(header, "file_meta", None) or Dataset()


def has_dicom_extension(path: Path) -> bool:
    """Return whether a file's extension is a DICOM one."""
    return path.suffix.lower() in (".dcm", ".ima")


def begins_as_dicom(path: Path, groups: tuple[int, ...] = _USUAL_GROUPS) -> bool:
    """Return whether a file has the preamble, or starts with an element of a DICOM data set."""
    with open(path, "rb") as file:
        return _begins_as_dicom(file.read(_PREFIX_BYTES), groups)


def _begins_as_dicom(start: bytes, groups: tuple[int, ...] = _USUAL_GROUPS) -> bool:
    """Return whether bytes have the preamble, or start with a standard element that can be the first."""
    if start[128:] == b"DICM":
        return True
    if len(start) < 8:
        return False
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", start[:4])
        if group not in groups or not (element == 0 or dictionary_has_tag(Tag(group, element))):
            continue
        if start[4:6].decode("latin-1") in STANDARD_VR:
            return True
        # Implicit value representation exists in little endian only.
        (length,) = struct.unpack("<I", start[4:8])
        if order == "<" and length % 2 == 0 and length <= _MAX_FIRST_LENGTH:
            return True
    return False


def is_hidden(name: PurePath) -> bool:
    """Return whether a relative path is hidden, in a hidden folder, or added by an operating system."""
    parts = name.parts
    return (
        any(part.startswith(".") or part == _SYSTEM_FOLDER for part in parts)
        or parts[-1].lower() in _SYSTEM_FILES
    )


def is_dicomdir(path: Path) -> bool:
    """Return whether a file is the directory of a DICOM medium, judged by its name."""
    return path.name.upper() == "DICOMDIR" and path.is_file()


def dicomdir_files(path: Path) -> list[Path]:
    """Return the image files listed in a ``DICOMDIR``.

    pydicom's own reader silently leaves out missing files.

    Raises:
        InputError: the directory is damaged, or lists files that are missing or not below its folder.
    """
    try:
        with quiet_pydicom():
            records = pydicom.dcmread(path).DirectoryRecordSequence
            file_ids = [
                [str(part) for part in np.atleast_1d(record.ReferencedFileID)]
                for record in records
                if record.DirectoryRecordType == "IMAGE"
            ]
    except Exception:  # pydicom raises many types of error for damaged elements
        raise InputError(f"{path}: a damaged DICOMDIR; give the folder of the series instead") from None
    if any(part in ("", ".", "..") or re.search(r"[/\\:]", part) for file_id in file_ids for part in file_id):
        raise InputError(f"{path}: lists files that are not below it; give the folder of the series instead")
    files = [path.parent.joinpath(*file_id) for file_id in file_ids]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{path}: lists {len(files)} files, {len(missing)} of which are not there, e.g. "
            f"{missing[0].name}; copy the whole medium"
        )
    return files


def files_in(folder: Path, *, below: bool) -> list[Path]:
    """Return the files of a folder that may be images, sorted by name.

    Hidden files, files added by operating systems and ``DICOMDIR`` are left out. Broken links, pipes and
    devices are included; ``Path.is_file`` tells them from files.

    Args:
        folder: where to look.
        below: also look in subfolders.
    """
    return [
        path
        for path in (entries_below(folder) if below else sorted(folder.iterdir()))
        if not is_hidden(path.relative_to(folder)) and not path.is_dir() and path.name.upper() != "DICOMDIR"
    ]


def linked_folders(folder: Path) -> list[Path]:
    """Return the links to folders in a folder and below it, sorted by name; hidden ones are left out."""
    links = (path for path in entries_below(folder) if path.is_symlink() and path.is_dir())
    return [link for link in links if not is_hidden(link.relative_to(folder))]
