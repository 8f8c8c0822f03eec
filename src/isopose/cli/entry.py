"""``main``: every foreseen failure in one line and an exit code."""

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


def main() -> NoReturn:
    """Run the command line and turn every foreseen failure into one line and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    # A peer's worker, forked from here, is ended by its own pool and has nothing to tell.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        with silent():
            app()
    except IsoposeError as error:
        _fail(str(error), error.exit_code)
    except _Stopped:
        _fail("stopped; what was finished is kept, the same command (fit: with --resume) goes on", 130)
    except Exception as error:
        # No traceback: the message at its end may quote a patient's name.
        _fail(_OUT_OF_MEMORY if is_out_of_memory(error) else str(line_of(error)), 1)
    sys.exit(0)


_OUT_OF_MEMORY = (
    "out of memory; lower the batch size (--set unet.optimizer.batch_size=4), let fit --memory choose, "
    "or lower data.size; predict: take --device cpu, or close other programs"
)


class _Stopped(BaseException):
    """By a signal. Not KeyboardInterrupt, which typer turns into an exit without a word."""


def _stop(_signum: int, _frame: FrameType | None) -> NoReturn:
    # Workers would finish their case first, which may take minutes; files are whole or absent all the same.
    for worker in active_children():
        worker.terminate()
    raise _Stopped


def _fail(message: str, code: int) -> NoReturn:
    # Of several processes of a training (torchrun) each tells what it ended by.
    rank = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
    which = "" if rank == "0" else f"process {rank}: "
    print(f"isopose: {which}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
