"""The two ways a run can end badly: what the user gave is wrong (exit 2), or we failed (exit 1)."""


class IsoposeError(Exception):
    """A run that cannot go on; the command line prints the message in one line and exits with 1."""

    exit_code = 1


class InputError(IsoposeError):
    """Something the user gave is not usable; one clear line, exit code 2, no traceback.

    The message says which file or case, what was expected, what came, and what to do::

        raise InputError("case_0003: label grid 512 x 512 x 40 does not match the image's 512 x 512 x 41; "
                         "export both on the same grid")
    """

    exit_code = 2
