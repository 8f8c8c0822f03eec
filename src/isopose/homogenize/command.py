"""Parse the placeholders of another program's command, and run it without a shell."""

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

#: Placeholders of a command: for one scan at a time, or for all scans at once.
SINGLE_PLACEHOLDERS = ("input", "output", "output_folder")
BATCH_PLACEHOLDERS = ("inputs", "outputs")
_PLACEHOLDER = re.compile("|".join(rf"\{{{name}\}}" for name in (*SINGLE_PLACEHOLDERS, *BATCH_PLACEHOLDERS)))
#: Seconds that a program has to exit after SIGTERM before it is killed.
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Command:
    """A program and its arguments, with placeholders where paths belong.

    Args:
        words: the program, then its arguments.
        batch: True to run it once for all scans, False to run it for each.
    """

    words: tuple[str, ...]
    batch: bool

    def filled(self, paths: Mapping[str, Path]) -> list[str]:
        """Return the words of the command with each placeholder replaced by its path.

        Raises:
            KeyError: a placeholder has no path.
        """
        return [_PLACEHOLDER.sub(lambda match: str(paths[match[0][1:-1]]), word) for word in self.words]


def read_command(words: Sequence[str], *, remote: bool = False) -> Command:
    """Check that a command's placeholders are valid and that its program exists.

    Args:
        words: the program, then its arguments.
        remote: True if the command runs on other machines, so that the program need not exist on this one.

    Raises:
        InputError: no words, no such program, missing placeholders, or placeholders of both kinds.
    """
    if not words:
        raise InputError("no command, expected one after --, e.g. -- segment {input} {output}")
    placeholders = {match[1:-1] for word in words for match in _PLACEHOLDER.findall(word)}
    ordered = [name for name in (*SINGLE_PLACEHOLDERS, *BATCH_PLACEHOLDERS) if name in placeholders]
    got = ", ".join(f"{{{name}}}" for name in ordered) or "none"
    single = "input" in placeholders and len(placeholders & {"output", "output_folder"}) == 1
    if placeholders & set(SINGLE_PLACEHOLDERS) and placeholders & set(BATCH_PLACEHOLDERS):
        raise InputError(
            f"the command has {got}: expected placeholders of one scan ({{input}} with {{output}} or "
            "{output_folder}) or of all ({inputs} with {outputs}), not of both"
        )
    if not single and placeholders != set(BATCH_PLACEHOLDERS):
        raise InputError(
            "the command must say where scans and results belong: expected {input} and {output} (a file) or "
            f"{{output_folder}}, or for all scans at once {{inputs}} and {{outputs}}, got {got}"
        )
    if not remote and shutil.which(words[0]) is None:
        raise InputError(
            f"{words[0]}: no such program, or it is not executable; give one path of scans, then options, "
            "then -- and the command"
        )
    return Command(tuple(words), not single)


def run_command(words: Sequence[str], log: Path) -> int:
    """Run a program without a shell; return its exit code, negative if a signal ended it.

    Its standard input is empty. If this process is interrupted, the program and all processes that it has
    started are ended first.

    Args:
        words: the program, then its arguments.
        log: file for its standard output and error; an existing file is replaced.

    Raises:
        InputError: the program cannot be run.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        try:
            # In its own session, so that it can be ended together with all processes that it starts.
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(f"{words[0]}: cannot be run ({error.strerror})") from None
        with _raise_on_sigterm():
            try:
                return process.wait()
            except BaseException as error:
                _terminate(process)
                if isinstance(error, _Terminated):
                    os._exit(1)
                raise


def exit_description(code: int) -> str:
    """Describe an exit code as the rest of a sentence that begins with "the command"."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class _Terminated(BaseException):
    """Raised in a worker process when it receives SIGTERM."""


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """In a worker process, raise an exception on SIGTERM within the block instead of exiting at once."""
    if parent_process() is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a program and, after a grace period, SIGKILL to it and all processes it has started."""
    try:
        _signal(process, "SIGTERM")
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    finally:
        # Its child processes may outlive it. A second interruption skips the grace period.
        _signal(process, "SIGKILL")
        process.wait()


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    """Send a signal to a program and all processes that it has started, unless they have ended."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, getattr(signal, name))
        else:  # Windows, where either signal means an immediate end
            process.kill()
