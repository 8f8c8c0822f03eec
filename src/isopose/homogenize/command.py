"""Another program's command: the placeholders of its inputs and outputs, and running it without a shell."""

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType

from isopose.errors import InputError

#: What the words of a command may hold: of one scan at a time, or of all at once.
ONE = ("input", "output", "output_folder")
ALL = ("inputs", "outputs")
_PLACEHOLDER = re.compile("|".join(rf"\{{{name}\}}" for name in (*ONE, *ALL)))
#: Seconds that a program has to end by itself when it is stopped.
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Command:
    """A program and its arguments, with placeholders where paths belong.

    Args:
        words: the program, then its arguments.
        together: run once for all scans, not for each.
    """

    words: tuple[str, ...]
    together: bool

    def filled(self, paths: Mapping[str, Path]) -> list[str]:
        """Return the words with each placeholder replaced by the path of that name.

        Raises:
            KeyError: a placeholder has no path.
        """
        return [_PLACEHOLDER.sub(lambda found: str(paths[found[0][1:-1]]), word) for word in self.words]


def read_command(words: Sequence[str], *, elsewhere: bool = False) -> Command:
    """Check a command's placeholders and that its program is there.

    Args:
        words: the program, then its arguments.
        elsewhere: it is run on other machines, so that the program need not be on this one.

    Raises:
        InputError: no words, no such program, or placeholders that are missing or of both kinds.
    """
    if not words:
        raise InputError("no command, expected one after --, e.g. -- segment {input} {output}")
    found = {part[1:-1] for word in words for part in _PLACEHOLDER.findall(word)}
    got = ", ".join(f"{{{name}}}" for name in (*ONE, *ALL) if name in found) or "none"
    single = "input" in found and len(found & {"output", "output_folder"}) == 1
    if found & set(ONE) and found & set(ALL):
        raise InputError(
            f"the command has {got}: expected placeholders of one scan ({{input}} with {{output}} or "
            "{output_folder}) or of all ({inputs} with {outputs}), not of both"
        )
    if not single and found != set(ALL):
        raise InputError(
            "the command must say where scans and results belong: expected {input} and {output} (a file) or "
            f"{{output_folder}}, or for all scans at once {{inputs}} and {{outputs}}, got {got}"
        )
    if not elsewhere and shutil.which(words[0]) is None:
        raise InputError(
            f"{words[0]}: no such program, or it may not be run; give one path of scans, then options, then "
            "-- and the command"
        )
    return Command(tuple(words), not single)


def run_command(words: Sequence[str], log: Path) -> int:
    """Run a program without a shell; return its exit code, negative where a signal ended it.

    It reads nothing. When this process is interrupted, the program and all that it has started is ended
    first.

    Args:
        words: the program, then its arguments.
        log: file for all that it prints, replaced if it is there.

    Raises:
        InputError: the program cannot be run.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        try:
            # In a session of its own, so that it can be ended with all the processes that it starts.
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(f"{words[0]}: cannot be run ({error.strerror})") from None
        with _listening():
            try:
                return process.wait()
            except BaseException as error:
                _end(process)
                if isinstance(error, _Terminated):
                    os._exit(1)
                raise


def how_it_ended(code: int) -> str:
    """Return the rest of a sentence about a command by its exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class _Terminated(BaseException):
    """Raised in a worker process that is asked to end (SIGTERM)."""


@contextmanager
def _listening() -> Iterator[None]:
    """Let SIGTERM raise within the block in a worker process, which it would otherwise end at once."""
    if parent_process() is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a program to end, and end it and what it has started after a while."""
    try:
        _signal(process, "SIGTERM")
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    finally:
        # Its own processes may outlive it; and a second interruption does not wait.
        _signal(process, "SIGKILL")
        process.wait()


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, getattr(signal, name))
        else:  # Windows, where both end it at once
            process.kill()
