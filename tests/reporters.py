"""A reporter for tests that keeps what it is given."""

from collections.abc import Mapping
from typing import Any

from isopose.progress import Silent


class RecordingReporter(Silent):
    """Record messages and rows of the training history; show nothing.

    Attributes:
        lines: the messages, one line each, in the order in which they were reported.
        rows: the rows of all training stages, one for each epoch.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rows: list[Mapping[str, Any]] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
