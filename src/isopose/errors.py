"""The two ways a run can end badly: what the user gave is wrong (exit 2), or we or the machine failed (1)."""

#: Characters of a message; what a user's file holds is quoted in it and may be of any length.
LONGEST = 1000


def printable(text: str) -> str:
    """Return a text with its control characters escaped, which a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class IsoposeError(Exception):
    """A run that cannot go on; the command line prints the message in one line and exits with 1.

    The message becomes one line of printable characters: a file's contents or name, quoted in it, may hold
    what a terminal would obey.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        shown = printable(" ".join(message.split()))
        if len(shown) > LONGEST:
            shown = f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 2 + 3 :]}"
        super().__init__(shown)


class InputError(IsoposeError):
    """Something the user gave is not usable; one clear line, exit code 2, no traceback.

    The message says which file or case, what was expected, what came, and what to do::

        raise InputError("case_0003: label grid 512 x 512 x 40 does not match the image's 512 x 512 x 41; "
                         "export both on the same grid")
    """

    exit_code = 2


class RunError(IsoposeError):
    """What concerns all scans, such as a full disk: it ends the run at once, raised amid one scan or not."""
