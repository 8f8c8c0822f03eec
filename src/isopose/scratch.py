"""Arrays as large as a scan: in memory while they are small, else in a file without a name.

What lies in such a file takes memory only while there is some to spare: the system writes it to the disk and
drops it when others ask, so that a scan of thousands of slices needs hardly more memory than one of hundreds.
"""

import math
import os
import tempfile

import numpy as np
from numpy.typing import DTypeLike

#: Bytes from which an array lies in a file.
LARGE = 64 << 20


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of zeros.

    A large one lies in a file in the folder for temporary files (``TMPDIR``), which is gone with the array,
    or with the process, however that ends. Where the disk has no room for it, it lies in memory after all.

    Args:
        shape: of the array.
        dtype: of its values.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size >= LARGE and hasattr(os, "posix_fallocate"):
        try:
            with tempfile.TemporaryFile() as file:
                # A file with holes would end the process by a signal when the disk is full.
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, dtype, "r+", shape=shape).view(np.ndarray)
        except OSError:
            pass
    return np.zeros(shape, dtype)
