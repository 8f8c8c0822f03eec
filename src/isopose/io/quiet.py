"""Keeping what libraries say from the user's terminal, and hearing what matters in it."""

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

#: Bytes of a scan's name: results add a label's name, an ending and a prefix while they are written.
LONGEST_NAME = 200
_ONE_AT_A_TIME = threading.RLock()
#: In messages of ITK, GDCM, MetaIO and NrrdIO: places in their code, and their names.
_OF_ITK = re.compile(rb"\.[cht](?:xx|pp)?, line \d+|gdcm|itk|nrrd|openjpeg", re.IGNORECASE)


def check_name(path: Path) -> None:
    """Refuse a name that no result can be named after, before any work is done.

    Raises:
        InputError: it is not UTF-8, has control characters, or leaves no room for the names of results.
    """
    itk_name(path)
    if not path.name.isprintable():
        raise InputError(f"{path}: its name has control characters; rename it")
    if len(path.name.encode()) > LONGEST_NAME:
        raise InputError(f"{path}: its name has over {LONGEST_NAME} bytes; rename it")


def itk_name(path: Path) -> str:
    """A path as SimpleITK takes it, which ends the process where a name is not UTF-8.

    Raises:
        InputError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: its name is not UTF-8; rename it") from None
    return str(path)


@contextmanager
def quiet_itk() -> Iterator[list[str]]:
    """Silence ITK inside the block; what matters of it is told by our own one-line errors.

    ITK's warnings are switched off by its own switch. MetaIO writes to the process's standard error past that
    switch, so the descriptor is set aside for the block, in one thread at a time.

    Yields:
        A list that holds the caught lines once the block is over: MetaIO reports a damaged compressed file
        there and nowhere else. When the block succeeds they are passed on, for they come from elsewhere (a
        progress bar), unless one of them is of ITK or a library in it, which may quote what is in a file.
    """
    heard: list[str] = []
    with _ONE_AT_A_TIME:
        shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            with _standard_error_aside(heard):
                yield heard
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def complained(heard: list[str]) -> bool:
    """Whether MetaIO reported damage although the reading seemed to succeed."""
    return any("Uncompress failed" in line or "MetaImage:" in line or "MetaObject:" in line for line in heard)


class _Quiet:
    """Warnings and loggers set to silence by the first block that asks for it, and back after the last.

    Both are settings of the whole process: blocks in several threads that each set them back to what they
    found would leave a user's own settings changed for good.
    """

    def __init__(self, loggers: tuple[str, ...]) -> None:
        self._loggers = loggers
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._undo.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                for name in self._loggers:
                    # Loggers of single modules below it have no level of their own.
                    logger = logging.getLogger(name)
                    self._undo.callback(logger.setLevel, logger.level)
                    logger.setLevel(logging.CRITICAL + 1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()


_PYDICOM = _Quiet(("pydicom", "highdicom"))


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom and highdicom inside the block; their messages quote values, which may be a patient's.

    What the caller has set for warnings and logging holds again afterwards.
    """
    with _PYDICOM:
        yield


@contextmanager
def _standard_error_aside(heard: list[str]) -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # a process without standard error has nothing to keep quiet
        yield
        return
    try:
        with tempfile.TemporaryFile() as caught:
            sys.stderr.flush()
            os.dup2(caught.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
                caught.seek(0)
                text = caught.read()
                heard.extend(text.decode(errors="replace").splitlines())
            if not (complained(heard) or _OF_ITK.search(text)):
                os.write(2, text)
    finally:
        os.close(kept)
