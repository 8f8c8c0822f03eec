"""Large arrays are memory-mapped to a temporary file that is removed with them."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from isopose import scratch


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put every array of a page or more into a file; the folder of these files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "MEMORY_MAP_BYTES", 4096)
    return tmp_path


def mapped() -> list[str]:
    """Return the deleted files that this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "(deleted)" in line]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.float32, np.dtype(">i2")])
def test_a_scratch_array_behaves_like_any_array(kind) -> None:
    shape = (3, 50, 70)
    values = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    array = scratch.zeros(shape, kind)
    assert type(array) is np.ndarray
    assert array.dtype == np.dtype(kind)
    assert array.flags.writeable
    assert array.flags.c_contiguous
    assert not array.any()
    array[...] = values
    assert np.array_equal(array, values)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_large_arrays_use_an_unnamed_file(files: Path) -> None:
    before = len(mapped())
    small, large = scratch.zeros((4095,), np.uint8), scratch.zeros((2, 4096), np.uint8)
    assert list(files.iterdir()) == []
    assert len(mapped()) == before + 1
    view = large[1]
    view[:] = 7
    del large
    assert len(mapped()) == before + 1
    assert (view == 7).all()
    del view
    assert len(mapped()) == before
    assert not small.any()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call on this system")
def test_a_full_disk_falls_back_to_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(mapped())
    array = scratch.zeros((3, 4096), np.int16)
    assert len(mapped()) == before
    array[1] = 5
    assert array.sum() == 5 * 4096
