"""How large a scan may be, so that a damaged or hostile file cannot take the machine."""

import os

from isopose.errors import InputError

#: Gigabytes that a scan may take, or an archive may unpack to, unless :data:`VARIABLE` says otherwise. A
#: series of 10,000 slices of 512 x 512 takes 5.
LARGEST_GB = 16.0
VARIABLE = "ISOPOSE_MAX_GB"


def largest_bytes() -> int:
    """The limit, from the environment where it is set there.

    Raises:
        InputError: what is set there is no number.
    """
    given = os.environ.get(VARIABLE, "")
    try:
        gigabytes = float(given) if given else LARGEST_GB
        if not 0 < gigabytes < 1e6:
            raise ValueError
    except ValueError:
        raise InputError(f"{VARIABLE}: expected gigabytes, e.g. {LARGEST_GB:g}, got {given!r}") from None
    return int(gigabytes * 2**30)
