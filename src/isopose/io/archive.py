"""ZIP archives of a DICOM series, unpacked for as long as they are read."""

import contextlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from isopose.errors import InputError

#: Bytes that one archive may unpack to; a series of 10,000 slices of 512 x 512 takes 5 GB.
LARGEST = 16 * 2**30
_CHUNK = 1 << 20


def is_archive(path: Path) -> bool:
    """Whether a file's name is a ZIP archive's."""
    return path.name.lower().endswith(".zip")


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with what is in an archive; it is removed again afterwards.

    Members are written below the folder whatever their names say, links as plain files, and no more of them
    than their sizes in the archive's directory, which are summed up before.

    Raises:
        InputError: no archive, damaged, encrypted, too large. What is raised within the block names the
            archive in place of the folder.
    """
    with tempfile.TemporaryDirectory(prefix="isopose-") as place:
        folder = Path(place)
        try:
            with zipfile.ZipFile(path) as archive:
                _unpack(path, archive, folder)
        except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{path}: cannot be unpacked ({error}); pack or copy it again") from None
        try:
            yield folder
        except InputError as error:
            raise InputError(str(error).replace(place, str(path))) from None


def _unpack(path: Path, archive: zipfile.ZipFile, folder: Path) -> None:
    members = [member for member in archive.infolist() if not member.is_dir()]
    total = sum(member.file_size for member in members)
    free = shutil.disk_usage(folder).free
    if total > min(LARGEST, free):
        told = f"{total / 2**30:.1f} GB, more than " + (
            f"the {free / 2**30:.1f} GB that are free in {folder.parent}"
            if free < LARGEST
            else f"the {LARGEST / 2**30:.0f} GB that are taken from one"
        )
        raise InputError(f"{path}: unpacks to {told}; unpack it yourself and give the folder")
    for number, member in enumerate(members):
        # Names are kept only for their order: two may differ by what this system cannot tell apart.
        target = folder / f"{number:06d}{Path(member.filename).suffix[:8]}"
        with archive.open(member) as source, open(target, "wb") as file:
            left = member.file_size
            while part := source.read(min(_CHUNK, left + 1)):
                left -= len(part)
                if left < 0:
                    raise zipfile.BadZipFile("a member is larger than the archive says")
                file.write(part)
