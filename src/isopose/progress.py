"""Progress on stderr: a live display on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Console for everything but results.
console = Console(stderr=True, highlight=False, soft_wrap=True)


class StageReport(Protocol):
    """Receives the progress of one training stage."""

    def step(self) -> None:
        """Report that a batch is done."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Report that an epoch is done.

        Args:
            row: its row of the history.
        """


class Reporter(Protocol):
    """Receives messages and progress of long-running work."""

    def say(self, text: str) -> None:
        """Report one line."""

    @contextmanager
    def stage(self, name: str, epochs: int, iterations: int, done: int) -> Iterator[StageReport]:
        """Report a training stage; yields the receiver of its steps and epochs."""
        ...

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Report counted work; yields a function to call with (done, total)."""
        ...


class Silent:
    """A reporter that reports nothing, for tests and library use."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def step(self) -> None:
        """Do nothing."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    @contextmanager
    def stage(self, name: str, epochs: int, iterations: int, done: int) -> Iterator["Silent"]:  # noqa: ARG002
        """Do nothing."""
        yield self

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:  # noqa: ARG002
        """Do nothing."""
        yield lambda _done, _total: None


class Terminal:
    """A reporter that writes to stderr, with a live display if that is a terminal."""

    def say(self, text: str) -> None:
        """Print one line above any live display."""
        # A file's name may hold bytes that are no text.
        console.print(text.encode(errors="backslashreplace").decode(), markup=False)

    @contextmanager
    def stage(self, name: str, epochs: int, iterations: int, done: int) -> Iterator[StageReport]:
        """Show a bar over all epochs with the last epoch's numbers and the remaining time."""
        with _bar() as bar:
            task = bar.add_task(
                f"train {name}", total=epochs * iterations, completed=done * iterations, note=""
            )
            yield _TerminalStage(name, epochs, done, bar, task)

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar of finished cases."""
        with _bar() as bar:
            task = bar.add_task(what, total=None, note="")
            yield lambda done, total: bar.update(task, completed=done, total=total)
            if not console.is_terminal:
                self.say(f"{what}: done")


class _TerminalStage:
    def __init__(self, name: str, epochs: int, done: int, bar: Progress, task: Any) -> None:
        self.name, self.epochs, self.first, self.bar, self.task = name, epochs, done, bar, task
        self.started = time.monotonic()

    def step(self) -> None:
        self.bar.advance(self.task)

    def epoch(self, row: Mapping[str, Any]) -> None:
        hidden = ("stage", "epoch", "learning_rate")
        numbers = {k: v for k, v in row.items() if k not in hidden and not k.endswith("seconds")}
        note = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.bar.update(self.task, note=note)
        if not console.is_terminal:
            each = (time.monotonic() - self.started) / (row["epoch"] - self.first)
            left = each * (self.epochs - row["epoch"])
            line = f"train {self.name}  epoch {row['epoch']}/{self.epochs}  {note}  at most {left:.0f} s left"
            console.print(line, markup=False)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
