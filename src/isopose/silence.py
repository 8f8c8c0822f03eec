"""Processes of isopose's own, in which no library says anything."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Read by Python and by PyTorch's C++ part when they start.
_SILENT = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def silence() -> None:
    """Keep every library's warnings and log messages from the terminal and from logs, in this whole process.

    For processes that are isopose's own: the command line, its workers, those of the server and of a cluster.
    What the user has to know is said in lines of our own. Processes that are started from this one are silent
    from their first import on.
    """
    warnings.simplefilter("ignore")
    # Filters are set anew by some libraries when they are loaded.
    warnings.showwarning = _say_nothing
    logging.disable(logging.CRITICAL)
    os.environ.update(_SILENT)


@contextmanager
def silent() -> Iterator[None]:
    """:func:`silence` inside the block, for a command line that is called from within another program."""
    level, before = logging.root.manager.disable, {name: os.environ.get(name) for name in _SILENT}
    with warnings.catch_warnings():
        silence()
        try:
            yield
        finally:
            logging.disable(level)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _say_nothing(*_: object, **__: object) -> None:
    """In place of what prints warnings."""
