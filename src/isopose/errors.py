"""The errors that end a run: bad input (exit code 2), or a failure of program or machine (1)."""

from collections.abc import Sequence

#: Maximum length of a message in characters; it may quote a user's file.
MAX_MESSAGE_LENGTH = 1000


def printable(text: str) -> str:
    """Return a text with its control characters escaped, which a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_names(names: Sequence[str], most: int) -> str:
    """Return names for a message: the first ones, at most so many, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, e.g. ``1 scan`` or ``2 scans``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class IsoposeError(Exception):
    """An error that ends a run; the command line prints its message as one line and exits with 1.

    The message is reduced to one line of printable characters: a file's contents or name, quoted in it, may
    contain control sequences for the terminal.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        shown = printable(" ".join(message.split()))
        if len(shown) > MAX_MESSAGE_LENGTH:
            shown = f"{shown[: MAX_MESSAGE_LENGTH // 2]} … {shown[-MAX_MESSAGE_LENGTH // 2 + 3 :]}"
        super().__init__(shown)


class InputError(IsoposeError):
    """An error in the user's input; one clear line, exit code 2, no traceback.

    The message says which file or case, what was expected, what was found, and what to do::

        raise InputError("case_0003: label grid 512 x 512 x 40 does not match the image's 512 x 512 x 41; "
                         "export both on the same grid")
    """

    exit_code = 2


class BusyError(InputError):
    """Another process is writing to the folder."""


class RunError(IsoposeError):
    """An error that concerns all scans, such as a full disk: it ends the whole run immediately."""
