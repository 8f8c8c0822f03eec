"""Arrays as large as a scan: small ones in memory, large ones memory-mapped to an unnamed temporary file.

The system can write a mapped array to disk and drop it from memory when other processes need memory, so a
scan of thousands of slices needs hardly more memory than one of hundreds.
"""

import math
import os
import tempfile

import numpy as np
from numpy.typing import DTypeLike

#: Size in bytes from which an array is memory-mapped.
MEMORY_MAP_BYTES = 64 << 20


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array of zeros.

    A large one is mapped to a file in the folder for temporary files (``TMPDIR``), which is deleted with the
    array or when the process ends, even by a crash. If the disk is full, the array is kept in memory.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size >= MEMORY_MAP_BYTES and hasattr(os, "posix_fallocate"):
        try:
            with tempfile.TemporaryFile() as file:
                # Without preallocation, writing to a sparse file on a full disk kills the process (SIGBUS).
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, dtype, "r+", shape=shape).view(np.ndarray)
        except OSError:
            # The disk is full, or its file system cannot preallocate: memory is the next best place.
            pass
    return np.zeros(shape, dtype)
