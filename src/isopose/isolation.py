"""Convert an exception of one scan into a one-line error, so that the other scans are still done."""

import errno
import os
import traceback
from dataclasses import dataclass

from isopose.errors import InputError, IsoposeError, RunError

#: Errors that would hit every following scan as well.
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: Parts of messages that mean a lack of memory; PyTorch and ITK have no common exception for it.
_OUT_OF_MEMORY_TEXTS = (
    *("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad allocation"),
    *("ALLOC_FAILED", "unable to allocate"),
)
#: Modules that call other code; a failure is never located in them.
_DISPATCHING_MODULES = (__name__, "isopose.parallel", "isopose.cluster.pool")


@dataclass(frozen=True)
class Failed:
    """Takes the place of an item's result that could not be computed.

    Args:
        why: the reason in one line.
        internal: the program or the machine is to blame, not the input.
    """

    why: str
    internal: bool = False

    def error(self) -> IsoposeError:
        """Return the exception for callers that need the item."""
        return IsoposeError(self.why) if self.internal else InputError(self.why)


def line_of(error: Exception) -> IsoposeError:
    """Return a one-line error for an exception.

    The message of another library is never quoted, since it may contain a patient's name or a date. It is
    replaced by the exception's class and the place in this package where it was raised.

    Returns:
        ``error`` itself if it is an error of this package; a :class:`~isopose.errors.RunError` if no other
            scan could be done either; else another error of this package.
    """
    if isinstance(error, IsoposeError):
        return error
    if is_out_of_memory(error):
        return IsoposeError(
            "out of memory: too large for the memory of this machine; close other programs, use fewer "
            "--workers, or --device cpu"
        )
    location = _innermost_line(error)
    if isinstance(error, OSError) and error.errno is not None:
        why, file = os.strerror(error.errno), _unusable_path(error)
        if error.errno in _DISK_ERRNOS:
            return RunError(f"{file or 'output'}: {why}; nothing was left half-written")
        return IsoposeError(f"{why} ({file or 'disk'}); check the file, its folder and the disk")
    if isinstance(error, ImportError) and error.name:
        return IsoposeError(f"{error.name} cannot be loaded{location}; install isopose and its extras again")
    if isinstance(error, FloatingPointError):
        return IsoposeError(
            f"values that are not numbers{location}; is it a scan as the model was trained on, CT in "
            "Hounsfield units? If all scans fail in this way, the model is damaged: copy it again, or train "
            "again"
        )
    return IsoposeError(f"failed unexpectedly by {type(error).__name__}{location}; please report it")


def failure_of(error: Exception) -> IsoposeError:
    """Return the one-line error of a single scan, see :func:`line_of`.

    Raises:
        RunError: the exception concerns the whole run.
    """
    failure = line_of(error)
    if isinstance(failure, RunError):
        raise failure from None
    return failure


def named(text: str, name: str) -> str:
    """Return a message that begins with its subject; unchanged if it names the subject already."""
    return text if name in text else f"{name}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception was caused by a lack of memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if not isinstance(error, RuntimeError):
        return False
    try:
        text = str(error)
    # An exception of another library whose text cannot be read.
    except Exception:
        return False
    return any(sign in text for sign in _OUT_OF_MEMORY_TEXTS)


def _innermost_line(error: Exception) -> str:
    """Return the innermost line of this package that an exception passed through."""
    frames = (
        (frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)
    )
    locations = [
        f" at {module}:{line}"
        for module, line in frames
        if str(module).startswith("isopose.") and module not in _DISPATCHING_MODULES
    ]
    return locations[-1] if locations else ""


def _unusable_path(error: OSError) -> str:
    """Return the path that the operating system could not use."""
    name = error.filename
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""
