"""What one scan raises becomes its one line, so that the others are done; what concerns all ends the run."""

import errno
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from isopose.errors import InputError, IsoposeError, RunError

#: Wherever it comes from, the next scan would find no room either.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: PyTorch and ITK have no common kind of error for a lack of memory.
_NO_MEMORY = (
    *("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad allocation"),
    *("ALLOC_FAILED", "unable to allocate"),
)
#: They call whatever work they are given, and are never the place at which it failed.
_CARRIERS = (__name__, "isopose.parallel", "isopose.cluster.pool")


@dataclass(frozen=True)
class Failed:
    """Stands in the place of an item's result that could not be made.

    Args:
        why: one line.
        ours: not what was given is to blame, but the program or the machine.
    """

    why: str
    ours: bool = False

    def error(self) -> IsoposeError:
        """What a run raises that cannot do without the item."""
        return IsoposeError(self.why) if self.ours else InputError(self.why)


def line_of(error: Exception) -> IsoposeError:
    """Say in one line what an exception means for people.

    The message of another library is never quoted, for it may hold a patient's name or a date: its class and
    the place in this package at which it was raised take its place.

    Args:
        error: any; where it was caught its traceback is still there.

    Returns:
        An error of this package: ``error`` itself where it is one, a :class:`~isopose.errors.RunError` where
        no other scan could be done either.
    """
    if isinstance(error, IsoposeError):
        return error
    if is_out_of_memory(error):
        return IsoposeError(
            "out of memory: too large for the memory of this machine; close other programs, use fewer "
            "--workers, or --device cpu"
        )
    where = _place(error)
    if isinstance(error, OSError) and error.errno is not None:
        why, file = os.strerror(error.errno), _file(error)
        if error.errno in _NO_ROOM:
            return RunError(f"{file or 'output'}: {why}; nothing was left half-written")
        return IsoposeError(f"{why} ({file or 'disk'}); check the file, its folder and the disk")
    if isinstance(error, ImportError) and error.name:
        return IsoposeError(f"{error.name} cannot be loaded{where}; install isopose and its extras again")
    if isinstance(error, FloatingPointError):
        return IsoposeError(
            f"values that are no numbers{where}; is it CT in Hounsfield units? Where every scan ends so, the "
            "model is damaged: copy it again, or train again"
        )
    return IsoposeError(f"failed unexpectedly by {type(error).__name__}{where}; please report it")


def failure_of(error: Exception) -> IsoposeError:
    """Say what became of one scan by an exception, see :func:`line_of`.

    Raises:
        RunError: it concerns the whole run.
    """
    told = line_of(error)
    if isinstance(told, RunError):
        raise told from None
    return told


def named(text: str, name: str) -> str:
    """Return a line with what it is about before it, unless it says so itself."""
    return text if name in text else f"{name}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory was lacking."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if not isinstance(error, RuntimeError):
        return False
    try:
        text = str(error)
    # Of another library, and unable to say what it is.
    except Exception:
        return False
    return any(sign in text for sign in _NO_MEMORY)


@contextmanager
def all_or_none(paths: Sequence[Path]) -> Iterator[None]:
    """Remove files when the block raises, whatever it raises: results of a scan that failed are absent.

    Args:
        paths: files that the block writes; ones that are added while it runs count as well.
    """
    try:
        yield
    except BaseException:
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def _place(error: Exception) -> str:
    """Return the innermost line of this package that an exception passed through."""
    frames = (
        (frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)
    )
    places = [
        f" at {module}:{line}"
        for module, line in frames
        if str(module).startswith("isopose.") and module not in _CARRIERS
    ]
    return places[-1] if places else ""


def _file(error: OSError) -> str:
    """Return the path that the system could not use."""
    name = error.filename
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""
