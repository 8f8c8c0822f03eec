"""Silence libraries, and detect the errors that they report as text only."""

import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import SimpleITK as sitk

from isopose.errors import InputError

#: Maximum length of a scan's name in bytes; names of results add a label, an extension and, while they are
#: written, a prefix.
MAX_NAME_BYTES = 200
_STDERR_LOCK = threading.RLock()
#: Source locations and names in messages of ITK, GDCM, MetaIO and NrrdIO.
_ITK_MESSAGE = re.compile(rb"\.[cht](?:xx|pp)?, line \d+|gdcm|itk|nrrd|openjpeg", re.IGNORECASE)


def check_name(path: Path) -> None:
    """Refuse a name that no result can be named after, before any work is done.

    Raises:
        InputError: it is not UTF-8, has control characters, or leaves no room for the names of results.
    """
    itk_name(path)
    if not path.name.isprintable():
        raise InputError(f"{path}: its name has control characters; rename it")
    if len(path.name.encode()) > MAX_NAME_BYTES:
        raise InputError(f"{path}: its name has over {MAX_NAME_BYTES} bytes; rename it")


def itk_name(path: Path) -> str:
    """Return a path as text for SimpleITK, which crashes on names that are not UTF-8.

    Raises:
        InputError: the name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: its name is not UTF-8; rename it") from None
    return str(path)


@contextmanager
def quiet_itk() -> Iterator[list[str]]:
    """Silence ITK inside the block.

    ITK's warnings are switched off by its own switch. MetaIO ignores that switch and writes to the process's
    standard error, so the descriptor is redirected during the block, in one thread at a time.

    Yields:
        A list that is filled with the captured lines at the end of the block: MetaIO reports a damaged
            compressed file only there. The captured text is then written to standard error, since it may come
            from elsewhere (a progress bar), unless it comes from ITK or its libraries, which may quote the
            file's contents.
    """
    lines: list[str] = []
    with _STDERR_LOCK:
        was_displayed = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            with _captured_stderr(lines):
                yield lines
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(was_displayed)


def reports_damage(lines: list[str]) -> bool:
    """Return whether MetaIO reported damage although reading seemed to succeed."""
    return any("Uncompress failed" in line or "MetaImage:" in line or "MetaObject:" in line for line in lines)


class _Quiet:
    """Silence warnings and two libraries' loggers from the first block entered to the last one left.

    Both are settings of the whole process. If blocks in several threads each restored the state they found,
    they could leave the user's settings changed permanently.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._undo.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                for name in ("pydicom", "highdicom"):
                    # Loggers of the library's modules inherit this level.
                    logger = logging.getLogger(name)
                    self._undo.callback(logger.setLevel, logger.level)
                    logger.setLevel(logging.CRITICAL + 1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()


_PYDICOM = _Quiet()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom and highdicom inside the block; their messages may quote a patient's data.

    The caller's settings for warnings and logging are restored afterwards.
    """
    with _PYDICOM:
        yield


@contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    try:
        original = os.dup(2)
    except OSError:  # the process has no standard error
        yield
        return
    try:
        with tempfile.TemporaryFile() as captured:
            sys.stderr.flush()
            os.dup2(captured.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(original, 2)
                captured.seek(0)
                text = captured.read()
                lines.extend(text.decode(errors="replace").splitlines())
            if not (reports_damage(lines) or _ITK_MESSAGE.search(text)):
                os.write(2, text)
    finally:
        os.close(original)
