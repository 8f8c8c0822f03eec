"""Find all files of a scan and hash them."""

import re
from pathlib import Path

from isopose.errors import InputError
from isopose.files import entries_below, hash_of, sha256
from isopose.io.dicom import ordered_frames
from isopose.io.dicom_files import dicomdir_files, is_dicom, is_dicomdir
from isopose.io.endings import ending
from isopose.io.images import check_exists, missing_message
from isopose.io.itk_header import read_text_header
from isopose.io.quiet import check_name

#: Extensions of headers that may name other files.
_HEADERS = (".mhd", ".mha", ".nhdr", ".nrrd")
#: A file name pattern with one number, and a number.
_NUMBERED, _NUMBER = re.compile(r"[^%]*%0?\d{0,2}[diu][^%]*"), re.compile(r"\d{1,9}")
#: Maximum number of files of a pattern.
MAX_FILES = 100_000


def hash_of_source(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files of a scan.

    For a folder (a DICOM series) these are all files in it, for a ``DICOMDIR`` the files it lists, for one
    file of a series the files of the series, and for a MetaImage or NRRD header also its data files.

    Raises:
        InputError: the path does not exist, is neither a file nor a folder, or an empty file.
    """
    check_name(Path(path))
    path = check_exists(path)
    try:
        if path.is_dir():
            files = [file for file in entries_below(path) if file.is_file()]
            return hash_of([[file.relative_to(path).as_posix(), sha256(file)] for file in files])
        companions = companion_files(path)
        # One file of a series stands for the series; a copy of one of its files adds nothing.
        listed = [] if companions and not ending(path) and not is_dicomdir(path) else [path]
        files = sorted({*listed, *companions}, key=lambda file: (file.name, file))
        if len(files) == 1:
            return sha256(files[0])
        return hash_of([[file.name, sha256(file)] for file in files])
    except FileNotFoundError:
        raise InputError(missing_message(path)) from None


def companion_files(path: Path) -> list[Path]:
    """Return the existing files beside a file that belong to the same scan; none for a folder."""
    kind = ending(path)
    try:
        if kind in _HEADERS:
            return [
                file for file in map(path.parent.joinpath, _data_file_names(path, kind)) if _is_file(file)
            ]
        if kind or path.suffix.lower() == ".zip":
            return []
        if is_dicomdir(path):
            return dicomdir_files(path)
        if is_dicom(path):
            return [frame.path for frame in ordered_frames(path)]
    except InputError:
        # Reading the file raises the error that explains the problem.
        return []
    return []


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # an invalid name, or a folder without permission
        return False


def _data_file_names(path: Path, kind: str) -> list[str]:
    """Return the file names in a header: one, a list, or a pattern with its first and last number."""
    fields, rest = read_text_header(path, kind)
    value = fields.get("datafile") or fields.get("ElementDataFile", "")
    words = value.split()
    if words and words[0].upper() == "LIST":
        return [line.decode("utf-8", "surrogateescape").strip() for line in rest]
    if len(words) >= 3 and _NUMBERED.fullmatch(words[0]) and all(map(_NUMBER.fullmatch, words[1:4])):
        first, last, step = (*map(int, words[1:4]), 1)[:3]
        return [words[0] % number for number in range(first, last + 1, max(step, 1))[:MAX_FILES]]
    return [] if value.upper() in ("", "LOCAL") else [value]
