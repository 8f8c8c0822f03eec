"""Values that lie within the range of CT but are not HU."""

import numpy as np
import pytest

from isopose.data.doubts import scan_warnings
from isopose.geometry.volume import Volume

Y, X = np.mgrid[-1:1:96j, -1:1:96j]
#: Within a scanner's round field of view; trunk with its fat; muscle; bone.
SCANNED, TRUNK, MUSCLE, BONE = (np.hypot(X, Y) < width for width in (1.0, 0.67, 0.59, 0.1))


def trunk_in_hu(padding=None):
    """A trunk of bone, muscle and fat in noisy air, padded outside the round field of view."""
    hu = np.select([BONE, MUSCLE, TRUNK], [700.0, 45.0, -100.0], -1000.0)
    scan = np.stack([hu] * 4) + np.random.default_rng(0).normal(0, 12, (4, 96, 96))
    scan = scan.clip(-1024, None)
    if padding is not None:
        scan[:, ~SCANNED] = padding
    return scan


def warnings_about(values):
    return list(scan_warnings(Volume(values, np.diag([4.0, 4.0, 5.0, 1.0])), (260.0, 260.0)))


@pytest.mark.parametrize("padding", [None, -1024, -2000, -3024, -32768, 0, 3071])
def test_hounsfield_units_are_not_doubted_however_they_are_padded(padding):
    assert warnings_about(trunk_in_hu(padding)) == []


@pytest.mark.parametrize("window", [(-1000, 1000), (-160, 240), (-200, 300), (-250, 250)])
def test_a_window_is_not_doubted(window):
    assert warnings_about(trunk_in_hu(-2000).clip(*window)) == []


def test_padding_around_tissue_without_fat_is_not_doubted():
    assert warnings_about(np.where(TRUNK, trunk_in_hu().clip(0, 90), -1000.0)) == []


def test_padding_does_not_hide_a_missing_offset():
    # Stored values of GE: 1024 too high, and -2000 where nothing was measured. Air then counts as body.
    stored = np.where(SCANNED, trunk_in_hu() + 1024, -2000)
    (line,) = warnings_about(stored)
    assert line.startswith("hardly any value is below -50 except -2000, which is probably padding")
    assert "HU offset (often -1024) may be missing" in line
    assert "HU offset" in warnings_about(trunk_in_hu().clip(-1000, None) + 1024)[0]


def test_large_scans_are_sampled_everywhere():
    large = np.repeat(np.repeat(trunk_in_hu(-2000), 12, axis=1), 12, axis=2).astype(np.int16)
    assert warnings_about(large) == ["slices of 4608 x 4608 mm fit into no scanner; is the voxel size in mm?"]
    large[:, np.repeat(np.repeat(SCANNED, 12, axis=0), 12, axis=1)] += 1024
    assert any(line.startswith("hardly any value") for line in warnings_about(large))
