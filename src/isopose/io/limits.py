"""The maximum size of a scan, so that a damaged or hostile file cannot exhaust the machine."""

import os

from isopose.errors import InputError

#: Default limit of a scan in memory and of an unpacked archive in gigabytes; :data:`VARIABLE` overrides it. A
#: series of 10,000 slices of 512 x 512 takes 5.
DEFAULT_GB = 16.0
VARIABLE = "ISOPOSE_MAX_GB"


def largest_bytes() -> int:
    """Return the limit in bytes, from the environment variable if it is set.

    Raises:
        InputError: the variable is not a number.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        gigabytes = float(text) if text else DEFAULT_GB
        if not 0 < gigabytes < 1e6:
            raise ValueError
    except ValueError:
        raise InputError(f"{VARIABLE}: expected gigabytes, e.g. {DEFAULT_GB:g}, got {text!r}") from None
    return int(gigabytes * 2**30)
