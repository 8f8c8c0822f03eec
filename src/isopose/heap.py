"""How the C library keeps what is freed, while networks train."""

import ctypes
import os
import sys

#: Of <malloc.h>: when freed memory goes back, from which size a block is a mapping of its own, and heaps.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
#: As large as glibc takes them.
_MOST_KEPT, _LARGEST_IN_HEAP = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for what comes next, in one heap; true where it does now.

    A network's step frees what the next one asks for again. By itself glibc gives it back to the system each
    time, which then has to clear every page anew: a tenth of a step. And each thread that reads ahead gets a
    heap of its own with holes of its own, which took more than the training itself. Measured in
    docs/measurements.md, "The heap".

    It holds for the whole process, so only commands that train call it, before they start threads,
    and not the library; one prediction would gain little by it. What a user has set in the environment
    stands. Other C libraries are left alone.
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if own or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGEST_IN_HEAP), (_TRIM_THRESHOLD, _MOST_KEPT))
    return all(bool(mallopt(name, value)) for name, value in settings)


def give_back_freed_memory() -> None:
    """Give what is freed back to the system, where glibc can: a process then holds what it uses."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
