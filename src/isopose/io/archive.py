"""Unpack a ZIP archive of a DICOM series to a temporary folder while it is read."""

import contextlib
import errno
import lzma
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from isopose.errors import InputError
from isopose.files import entries_below
from isopose.io.dicom_files import has_dicom_extension, is_dicom, is_hidden
from isopose.io.endings import ending
from isopose.io.limits import VARIABLE, largest_bytes

_CHUNK = 1 << 20
#: Bit of a member's flags that marks its content as encrypted.
_ENCRYPTED_FLAG = 1
#: Maximum length of a path's component and of a whole path, in bytes of UTF-8; longer ones are replaced.
_MAX_PART_BYTES, _MAX_NAME_BYTES = 200, 800


def is_archive(path: Path) -> bool:
    """Return whether a path is a file whose name ends in ``.zip``."""
    return path.name.lower().endswith(".zip") and path.is_file()


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpack an archive into a temporary folder, which is removed at the end of the block.

    Every member is written below the folder, whatever its name is. Symbolic links are replaced by broken
    ones, so that no file outside the folder can be read. The sizes listed in the archive's directory are
    summed up before anything is written, and no member may exceed its listed size. Hidden members and files
    added by an operating system (``__MACOSX``, ``Thumbs.db``) are skipped, as in a folder.

    Yields:
        The folder.

    Raises:
        InputError: the file is not an archive, is damaged, encrypted or too large, or holds no DICOM. An
            InputError raised within the block is raised again with the archive's name in place of the
            folder's, and with the members' own names.
    """
    with tempfile.TemporaryDirectory(prefix="isopose-") as place:
        folder = Path(place)
        try:
            with zipfile.ZipFile(path) as archive:
                renamed = _unpack(path, archive, folder)
        except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError):
            # Messages of the library quote members, whose names may be a patient's.
            raise InputError(
                f"{path}: cannot be unpacked (damaged, or packed in an unsupported way); "
                "pack or copy it again"
            ) from None
        except OSError as error:
            # EINVAL: a member begins before the start of the file. Any other error concerns the temporary
            # folder.
            if error.errno != errno.EINVAL:
                raise
            raise InputError(
                f"{path}: cannot be unpacked (its directory is damaged); copy it again"
            ) from None
        try:
            _check_kind(folder)
            yield folder
        except InputError as error:
            text = str(error)
            for target, name in renamed.items():
                text = text.replace(target, name)
                text = text.replace(PurePosixPath(target).name, _parts(name)[-1])
            raise InputError(text.replace(f"{place}/", f"{path}: ").replace(place, str(path))) from None


def _unpack(path: Path, archive: zipfile.ZipFile, folder: Path) -> dict[str, str]:
    """Write the members below a folder.

    Returns:
        The original name of each file that had to be renamed, by its new path relative to the folder.
    """
    members = [member for member in archive.infolist() if _is_relevant(member.filename)]
    if any(member.flag_bits & _ENCRYPTED_FLAG for member in members):
        raise InputError(f"{path}: is encrypted; unpack it yourself and give the folder")
    total = sum(member.file_size for member in members)
    free = shutil.disk_usage(folder).free
    largest = largest_bytes()
    if total > min(largest, free):
        excess = f"{total / 2**30:.1f} GB, more than " + (
            f"the {free / 2**30:.1f} GB that are free in {folder.parent}"
            if free < largest
            else f"the limit of {largest / 2**30:g} GB ({VARIABLE} sets another one)"
        )
        raise InputError(f"{path}: unpacks to {excess}; unpack it yourself and give the folder")
    renamed = {}
    for number, member in enumerate(members):
        target = folder / member.filename
        # This file system may treat two different names as one, for example where only the case differs.
        if not _is_safe(member.filename) or os.path.lexists(target) or _below_file(target, folder):
            new_name = _safe_name(number, member.filename)
            renamed[new_name], target = member.filename, folder / new_name
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISLNK(member.external_attr >> 16):
            # A link to itself: reading the series reports it as a missing slice.
            target.symlink_to(target)
            continue
        with archive.open(member) as source, open(target, "wb") as file:
            bytes_left = member.file_size
            while part := source.read(min(_CHUNK, bytes_left + 1)):
                bytes_left -= len(part)
                if bytes_left < 0:
                    raise zipfile.BadZipFile("a member is larger than the archive says")
                file.write(part)
    return renamed


def _check_kind(folder: Path) -> None:
    """Raise an InputError if an archive without DICOM files holds a volume or another archive."""
    files = [file for file in entries_below(folder) if file.is_file()]
    if any(has_dicom_extension(file) or is_dicom(file) for file in files):
        return
    volumes, archives = [f for f in files if ending(f)], [f for f in files if is_archive(f)]
    if volumes or archives:
        example = (volumes or archives)[0].relative_to(folder).as_posix()
        raise InputError(
            f"{folder}: expected a DICOM series, found {'a volume' if volumes else 'another archive'} "
            f"({example}); unpack it and give that"
        )


def _parts(name: str) -> list[str]:
    """Return a member's folders and file name; both ``/`` and a backslash separate them."""
    return [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]


def _is_relevant(name: str) -> bool:
    """Return whether a member is a file that is neither hidden nor added by an operating system."""
    parts = _parts(name)
    return name[-1:] not in ("/", "\\") and bool(parts) and not is_hidden(PurePosixPath(*parts))


def _is_safe(name: str) -> bool:
    """Return whether a member's name is a safe relative file name on every system."""
    parts = name.split("/")
    return (
        not any(part in ("", ".", "..") or part.startswith("~") for part in parts)
        and not re.search(r'[\\:<>"|?*]', name)
        and name.isprintable()
        and max(len(part.encode()) for part in parts) <= _MAX_PART_BYTES
        and len(name.encode()) <= _MAX_NAME_BYTES
    )


def _below_file(target: Path, folder: Path) -> bool:
    """Return whether one of the target's parent folders is already a file."""
    return any(
        os.path.lexists(parent) and not parent.is_dir()
        for parent in target.parents
        if folder in parent.parents
    )


def _safe_name(number: int, name: str) -> str:
    """Return a safe relative path for a member whose name cannot be kept, at the same folder depth."""
    *folders, last = [re.sub(r"[^\w.()+ -]", "_", part) for part in _parts(name)]
    if len(last.encode()) > _MAX_PART_BYTES:
        last = f"member{PurePosixPath(last).suffix[:8]}"
    return "/".join([*(f"~{part[:40]}" for part in folders[:16]), f"~{number:06d}{last}"])
