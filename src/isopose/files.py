"""Files that are either whole or absent: everything is written beside its place and moved into it."""

import errno
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from isopose.errors import InputError, RunError

#: Bytes of a text file that is read; an evaluation of 10,000 scans takes 20 MB.
LARGEST_TEXT = 512 << 20
#: By these a place takes nothing at all; any other is of one file, such as a name that is too long.
_NOT_WRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE),
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder and move it onto ``path`` when the block succeeds.

    The temporary name keeps the full suffix (``.nii.gz``), by which writers choose their format. When the
    block raises, the temporary file is removed and whatever was at ``path`` before stays as it was.

    Raises:
        RunError: the place is full or may not be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise RunError(f"{path}: {os.strerror(error.errno)}; nothing was left half-written") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def output_folder(path: Path) -> Path:
    """Make the folder that results go to, before any work is done for them.

    Raises:
        InputError: it is a file, lies below one, or cannot be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else ""
        raise InputError(
            f"{path}: cannot be used as a folder for results ({reason or error.strerror}); choose another"
        ) from None
    return path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON at once or not at all; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def only_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for as long as the block runs; no other process that asks may write to it meanwhile.

    The system lets go of it when a process ends, however that ends. Nothing is written. Where the system or a
    network's file system has no such locks, it is not held.

    Args:
        folder: that is there.
        wait: for the one that holds it, in place of giving up.

    Raises:
        InputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(
                f"{folder}: another isopose is writing to it; wait until it is done, or choose another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(place)


def composed(name: str) -> str:
    """A name as one writes it everywhere: macOS and archives made there store an accent as a sign of its own.

    Two names that look the same are the same then, and a file meets its label, its prediction and its record.
    """
    return unicodedata.normalize("NFC", name)


def as_stored(path: Path) -> Path:
    """A path as it lies on the disk, where its accents may be stored in another way; else the path itself."""
    path = Path(path)
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        below = found / part
        if not os.path.lexists(below):
            try:
                names = [entry for entry in found.iterdir() if composed(entry.name) == composed(part)]
            except OSError:
                names = []
            if len(names) != 1:
                return path
            below = names[0]
        found = below
    return found


def read_text(path: Path, expected: str) -> str:
    """Read a UTF-8 text file that a user may have touched, without the mark by which Windows begins one.

    Args:
        path: of a regular file: a device has no end.
        expected: what it should be, for the message.

    Raises:
        InputError: the file is missing, unreadable, too large or not text; the message names it, and the line
            that is not UTF-8.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        if path.stat().st_size > LARGEST_TEXT:
            raise OSError(f"larger than {LARGEST_TEXT >> 20} MB")
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected {expected}, but it cannot be read ({error})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
        raise InputError(
            f"{path}: expected {expected}, but line {line} is not UTF-8; save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that a user may have touched.

    Raises:
        InputError: the file is missing, unreadable or not JSON; the message names it.
    """
    try:
        return json.loads(read_text(path, "a JSON file"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON file, but it cannot be read ({error})") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """SHA-256 of a JSON-able value's canonical form (sorted keys), in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
