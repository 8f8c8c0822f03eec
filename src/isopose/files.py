"""Read and write files; a written file is complete or absent (temporary file, then rename)."""

import errno
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from isopose.errors import BusyError, InputError, RunError

#: Maximum size of a text file in bytes; an evaluation of 10,000 scans takes 20 MB.
MAX_TEXT_BYTES = 512 << 20
#: Errors of a folder that cannot be written at all; others concern a single file, such as a name that is too
#: long.
_NOT_WRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE),
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder and rename it to ``path`` if the block succeeds.

    The temporary name keeps the full extension (``.nii.gz``), by which writers choose their format. If the
    block raises, the temporary file is removed and an existing file at ``path`` stays unchanged.

    Raises:
        RunError: the disk is full or not writable.
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
    """Create the folder of the results, before any work is done.

    Raises:
        InputError: it is a file, lies below one, or cannot be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = "a file has that name" if isinstance(error, FileExistsError | NotADirectoryError) else ""
        raise InputError(
            f"{path}: cannot be used as a folder for results ({reason or error.strerror}); choose another"
        ) from None
    return path


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; on failure an existing file stays unchanged."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; on failure an existing file stays unchanged.

    NaN and infinity are refused, since JSON has neither.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def only_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder during the block, so that no other isopose process writes to it.

    The operating system releases the lock when the process ends, however it ends. No file is written. There
    is no lock on systems and network file systems that do not support it.

    Args:
        folder: an existing folder.
        wait: wait for the lock instead of raising.

    Raises:
        BusyError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(
                f"{folder}: another isopose process is writing to it; wait until it is done, or choose "
                "another folder"
            ) from None
        except OSError:
            # A file system without locks, such as some network mounts; work without a lock.
            pass
        yield
    finally:
        os.close(descriptor)


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC).

    macOS and archives made there store accents as separate characters. In composed form names that look equal
    are equal, and a file matches its label, its prediction and its record.
    """
    return unicodedata.normalize("NFC", name)


def as_stored(path: Path) -> Path:
    """Return a path as stored on the disk, where accents may be decomposed; else the path unchanged."""
    path = Path(path)
    if str(path).isascii() or os.path.lexists(path):
        return path
    stored_path = Path(path.anchor)
    for part in path.parts[len(stored_path.parts) :]:
        below = stored_path / part
        if not os.path.lexists(below):
            try:
                names = [entry for entry in stored_path.iterdir() if composed(entry.name) == composed(part)]
            except OSError:
                names = []
            if len(names) != 1:
                return path
            below = names[0]
        stored_path = below
    return stored_path


def entries_below(folder: Path) -> list[Path]:
    """Return everything in a folder and its subfolders, sorted; links to folders are not followed.

    Raises:
        InputError: a folder cannot be read, or was removed while it was read.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{folder}: changed while it was read; run again when it is complete") from None
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None

    walk = os.walk(folder, onerror=refuse)
    return sorted(Path(parent, name) for parent, folders, files in walk for name in (*folders, *files))


def read_text(path: Path, expected: str) -> str:
    """Read a UTF-8 text file that a user may have edited; a byte-order mark is removed.

    Args:
        path: of a regular file (a device has no end).
        expected: description of the expected content, for the message.

    Raises:
        InputError: the file is missing, unreadable, too large or not text; the message names the file and the
            line that is not UTF-8.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise OSError(f"larger than {MAX_TEXT_BYTES >> 20} MB")
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
    """Read a JSON file that a user may have edited.

    Raises:
        InputError: the file is missing, unreadable or not JSON; the message names it.
    """
    try:
        return json.loads(read_text(path, "a JSON file"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON file, but it cannot be read ({error})") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value's canonical form (sorted keys), in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
