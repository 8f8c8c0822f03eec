"""Which files a scan consists of, and the hash by which it is known again."""

import re
from pathlib import Path

from isopose.errors import InputError
from isopose.files import hash_of, sha256
from isopose.io.dicom import ordered_frames
from isopose.io.dicom_files import is_dicom, is_dicomdir, listed_files
from isopose.io.endings import ending
from isopose.io.images import missing
from isopose.io.itk_header import LONGEST_HEADER
from isopose.io.quiet import check_name

#: The field of a header that names the files of the voxels, and all that follows it; NRRD's header ends at an
#: empty line. Both formats may name others whatever a file's ending.
_META = re.compile(rb"^[ \t]*ElementDataFile *[=:] *([^\n]*)(.*)", re.MULTILINE | re.DOTALL)
_NRRD = re.compile(rb"^data ?file: *([^\n]*)(.*)", re.MULTILINE | re.DOTALL | re.IGNORECASE)
_DATA = {".mhd": _META, ".mha": _META, ".nhdr": _NRRD, ".nrrd": _NRRD}
#: A pattern of names with one number in it, and a number.
_NUMBERED, _WHOLE = re.compile(r"[^%]*%0?\d{0,2}[diu][^%]*"), re.compile(r"\d{1,9}")
#: Files of a pattern that are looked for.
MOST = 100_000


def hash_of_source(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files that a scan consists of.

    Those of a folder (a DICOM series) are all that lie in it; of a ``DICOMDIR`` those that it lists; of one
    file of a series those of the series; of a MetaImage or NRRD header those of its voxels, too.

    Raises:
        InputError: nothing is there, or neither a file nor a folder.
    """
    path = Path(path)
    check_name(path)
    if not path.exists():
        raise InputError(missing(path))
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return hash_of([[file.relative_to(path).as_posix(), sha256(file)] for file in files])
        if path.exists() and not path.is_file():  # a device has no end
            raise InputError(f"{path}: expected a file or a folder")
        beside = files_beside(path)
        # Of a series' file the series is the scan: a copy of one of its files adds nothing to it.
        own = [] if beside and not ending(path) and not is_dicomdir(path) else [path]
        files = sorted({*own, *beside}, key=lambda file: (file.name, file))
        if len(files) == 1:
            return sha256(files[0])
        return hash_of([[file.name, sha256(file)] for file in files])
    except FileNotFoundError:
        raise InputError(missing(path)) from None


def files_beside(path: Path) -> list[Path]:
    """The files beside a file that belong to the same scan, as far as they are there; none of a folder's."""
    kind = ending(path)
    if kind in _DATA:
        return [file for file in map(path.parent.joinpath, _named(path, _DATA[kind])) if _is_there(file)]
    if kind or path.suffix.lower() == ".zip":
        return []
    try:
        if is_dicomdir(path):
            return listed_files(path)
        if is_dicom(path):
            return [frame.path for frame in ordered_frames(path)]
    except InputError:
        # It is refused where it is read, in words that say why.
        return []
    return []


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that no disk takes, a folder that may not be looked into
        return False


def _named(path: Path, field: re.Pattern[bytes]) -> list[str]:
    """The names in a header: one, a list of them, or a pattern with its first and last number."""
    with open(path, "rb") as file:
        header = file.read(LONGEST_HEADER).replace(b"\r\n", b"\n")
    found = field.search(header.partition(b"\n\n")[0] if field is _NRRD else header)
    if found is None:
        return []
    value, rest = (part.decode("utf-8", "surrogateescape").strip() for part in found.groups())
    words = value.split()
    if words and words[0].upper() == "LIST":
        return [line.strip() for line in rest.split("\n") if line.strip()]
    if len(words) >= 3 and _NUMBERED.fullmatch(words[0]) and all(map(_WHOLE.fullmatch, words[1:4])):
        first, last, step = (*map(int, words[1:4]), 1)[:3]
        return [words[0] % number for number in range(first, last + 1, max(step, 1))[:MOST]]
    return [] if value.upper() == "LOCAL" else [value]
