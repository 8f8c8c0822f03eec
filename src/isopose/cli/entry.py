"""``main``: every foreseen failure in one line and an exit code."""

import errno
import os
import signal
import sys
from multiprocessing import active_children
from types import FrameType
from typing import NoReturn

from isopose.cli.commands import app
from isopose.errors import IsoposeError
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
    except FloatingPointError as error:
        _fail(f"{error}: the model's weights are damaged; copy its folder again, or train again", 2)
    except MemoryError:
        _fail(_OUT_OF_MEMORY, 1)
    except RuntimeError as error:
        # PyTorch and ITK have no common kind of error for it.
        if not any(sign in str(error) for sign in _NO_MEMORY):
            raise
        _fail(_OUT_OF_MEMORY, 1)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        _fail(f"{error.filename or 'output'}: {error.strerror}; nothing was left half-written", 1)
    sys.exit(0)


_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad allocation")
_OUT_OF_MEMORY = (
    "out of memory; lower the batch size (--set unet.optimiser.batch_size=4), let fit --memory choose, "
    "or lower data.size; predict: take --device cpu, or close other programs"
)

#: What the place that is written to, and not the program, is the reason of.
_NOT_WRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
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
