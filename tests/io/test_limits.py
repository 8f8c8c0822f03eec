import gzip
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from isopose.errors import InputError
from isopose.io.images import read_volume
from isopose.io.limits import DEFAULT_GB, largest_bytes


def test_the_environment_sets_the_limit(monkeypatch):
    monkeypatch.delenv("ISOPOSE_MAX_GB", raising=False)
    assert largest_bytes() == int(DEFAULT_GB * 2**30)
    monkeypatch.setenv("ISOPOSE_MAX_GB", "0.5")
    assert largest_bytes() == 2**29


@pytest.mark.parametrize("given", ["much", "-1", "0", "nan", "1e99"])
def test_an_invalid_limit_is_reported(monkeypatch, given):
    monkeypatch.setenv("ISOPOSE_MAX_GB", given)
    with pytest.raises(InputError, match="ISOPOSE_MAX_GB: expected gigabytes"):
        largest_bytes()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.nrrd"])
def test_a_scan_larger_than_the_limit_is_refused_by_its_header(tmp_path, monkeypatch, name):
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 30, 30), np.int16)), path)
    assert read_volume(path).array.shape == (4, 30, 30)
    monkeypatch.setenv("ISOPOSE_MAX_GB", "5e-6")
    with pytest.raises(InputError, match=r"promises .* set ISOPOSE_MAX_GB"):
        read_volume(path)


def test_bytes_after_the_voxels_are_not_decompressed(tmp_path, monkeypatch):
    """The file unpacks to a thousand times its size; only its first bytes are voxels."""
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 30, 30), np.int16)), path)
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(path.read_bytes() + bytes(64 << 20)))
    monkeypatch.setenv("ISOPOSE_MAX_GB", "0.01")
    read = []
    real = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, n: read.append(n) or real(self, n))
    with pytest.raises(InputError, match="more follows its voxels"):
        read_volume(bomb)
    assert sum(read) < 16 << 20


def test_voxels_that_begin_far_in_the_file_are_refused_at_once(tmp_path):
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 30, 30), np.int16)), path)
    data = bytearray(path.read_bytes())
    data[108:112] = struct.pack("<f", 1e12)
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(InputError, match="truncated or corrupt"):
        read_volume(packed)
