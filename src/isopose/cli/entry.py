"""The entry point of the ``isopose`` command."""

import os
import signal
import sys
from multiprocessing import active_children
from types import FrameType
from typing import NoReturn

from isopose.cli.commands import app
from isopose.errors import IsoposeError
from isopose.isolation import is_out_of_memory, line_of
from isopose.silence import silent

_OUT_OF_MEMORY = (
    "out of memory; lower the batch size (--set unet.optimizer.batch_size=4), let fit --memory choose, "
    "or lower data.size; predict: take --device cpu, or close other programs"
)


def main() -> NoReturn:
    """Run the command line; every expected failure becomes one line and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    # Workers forked from here (nnU-Net's) are ended by their own pool and report nothing.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        with silent():
            app()
    except IsoposeError as error:
        _fail(str(error), error.exit_code)
    except _Stopped:
        _fail("stopped; finished results are kept, the same command (fit: with --resume) continues", 130)
    except Exception as error:
        # No traceback: an exception's message may quote a patient's name.
        _fail(_OUT_OF_MEMORY if is_out_of_memory(error) else str(line_of(error)), 1)
    sys.exit(0)


class _Stopped(BaseException):
    """Raised by a signal. Not KeyboardInterrupt, for which typer exits silently."""


def _stop(_signum: int, _frame: FrameType | None) -> NoReturn:
    # Do not wait until workers finish their cases, which may take minutes; every file is complete or absent.
    for worker in active_children():
        worker.terminate()
    raise _Stopped


def _fail(message: str, code: int) -> NoReturn:
    # With several training processes (torchrun), each reports its own error.
    rank = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
    which = "" if rank == "0" else f"process {rank}: "
    print(f"isopose: {which}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
