"""ZIP archives of a DICOM series, unpacked for as long as they are read."""

import contextlib
import errno
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from isopose.errors import InputError
from isopose.io.limits import VARIABLE, largest_bytes

_CHUNK = 1 << 20


def is_archive(path: Path) -> bool:
    """Whether it is a file whose name is a ZIP archive's."""
    return path.name.lower().endswith(".zip") and path.is_file()


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
        except OSError as error:
            # Of a member that begins before the file does; any other is of the place that it is unpacked to.
            if error.errno != errno.EINVAL:
                raise
            raise InputError(
                f"{path}: cannot be unpacked (its directory is damaged); copy it again"
            ) from None
        try:
            yield folder
        except InputError as error:
            raise InputError(str(error).replace(place, str(path))) from None


def _unpack(path: Path, archive: zipfile.ZipFile, folder: Path) -> None:
    members = [member for member in archive.infolist() if not member.is_dir()]
    total = sum(member.file_size for member in members)
    free = shutil.disk_usage(folder).free
    largest = largest_bytes()
    if total > min(largest, free):
        told = f"{total / 2**30:.1f} GB, more than " + (
            f"the {free / 2**30:.1f} GB that are free in {folder.parent}"
            if free < largest
            else f"the {largest / 2**30:g} GB that are taken from one ({VARIABLE} sets another limit)"
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
