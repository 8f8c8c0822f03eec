"""Fixtures of all tests: the command line in this process, real scans, a model that needs no training."""

import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isopose.cli import main

REAL = Path(__file__).parents[2] / "shared" / "data" / "real-ct"


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Enable logging again after a test of code that disables it for its whole process."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """Folder of the real scans."""
    if not REAL.is_dir():
        pytest.skip(f"no real scans: {REAL} is absent")
    return REAL


@pytest.fixture(scope="session")
def make_model():
    """Function that builds a model: above 145 HU is kidney (1), above 325 HU tumor (7)."""
    from bright import bright_model

    return bright_model


@pytest.fixture
def isopose(monkeypatch, capfd):
    """Function that runs the command line in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(sys, "argv", ["isopose", *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as stop:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capfd.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run
