"""Settings of glibc's allocator that make training faster and smaller."""

import ctypes
import os
import sys

#: Parameters of mallopt (<malloc.h>): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
#: The largest values that glibc accepts for the first two.
_MAX_TRIM_THRESHOLD, _MAX_MMAP_THRESHOLD = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory instead of returning it to the system, in a single arena.

    A training step allocates the same memory that the previous step freed. By default glibc returns large
    blocks to the system, which must then zero every page again: a tenth of a step's time. It also gives each
    reading thread its own arena, whose fragmentation took more memory than the training. Measured in
    docs/measurements.md, "The heap".

    The setting holds for the whole process, so only the commands that train make it, before they start
    threads; the library and a single prediction do not. Settings in the user's environment take precedence.

    Returns:
        True if the setting was made; False with other C libraries or with a user's own settings.
    """
    set_by_user = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if set_by_user or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_ARENA_MAX, 1),
        (_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD),
        (_TRIM_THRESHOLD, _MAX_TRIM_THRESHOLD),
    )
    return all(bool(mallopt(name, value)) for name, value in settings)


def give_back_freed_memory() -> None:
    """Return freed memory to the system, where glibc can (``malloc_trim``)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
