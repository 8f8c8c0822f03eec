"""Keeping the chatter of C++ libraries from the user's terminal."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import SimpleITK as sitk


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Silence ITK inside the block; what it would have said is told by our own one-line errors.

    ITK's warnings are switched off by its own switch. MetaIO writes to the process's standard error past that
    switch, so the descriptor is set aside for the block. When the block succeeds, what was caught is
    passed on, for it can only come from elsewhere (a progress bar in another thread).
    """
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with _standard_error_aside():
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def _standard_error_aside() -> Iterator[None]:
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
            os.write(2, caught.read())
    finally:
        os.close(kept)
