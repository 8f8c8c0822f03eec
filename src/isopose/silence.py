"""Silence the messages of all libraries in isopose's own processes."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Environment variables that Python and PyTorch's C++ part read when they start.
_ENVIRONMENT = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def silence() -> None:
    """Hide all libraries' warnings and log messages in this process and in processes started from it.

    It is meant for isopose's own processes: the command line, its workers, those of the server and of a
    cluster. They print their own messages about what the user has to know.
    """
    warnings.simplefilter("ignore")
    # Some libraries reset the filters on import.
    warnings.showwarning = lambda *_, **__: None
    logging.disable(logging.CRITICAL)
    os.environ.update(_ENVIRONMENT)


@contextmanager
def silent() -> Iterator[None]:
    """Apply :func:`silence` inside the block, for a command line called from another program."""
    level = logging.root.manager.disable
    before = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    with warnings.catch_warnings():
        silence()
        try:
            yield
        finally:
            logging.disable(level)
            for name in _ENVIRONMENT:
                os.environ.pop(name, None)
            os.environ.update(before)
