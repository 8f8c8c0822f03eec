"""Reporters that keep what they are given."""

from isopose.progress import Silent


class Listening(Silent):
    """A reporter that keeps its messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
