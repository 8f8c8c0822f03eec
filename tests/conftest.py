"""Models without training: the U-Net is replaced by one that marks what is bright, so that truth is known."""

import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isopose.cli import main

REAL = Path(__file__).parents[2] / "shared" / "data" / "real-ct"


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Let log messages be heard again after code that silences its own process."""
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
    """Build a model that marks what is brighter than 145 HU as kidney (1), than 325 HU as tumor (7)."""
    from bright import bright_model

    return bright_model


@pytest.fixture
def isopose(monkeypatch, capfd):
    """Run the command line in this process; gives code, stdout and stderr as a shell would see them."""

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
