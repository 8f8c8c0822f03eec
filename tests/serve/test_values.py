"""Conversion of voxels to 16-bit values for the page, and default display windows."""

import numpy as np
import pytest

from isopose.serve.values import WINDOWS_HU, shown_values


def back(displayed, array):
    return displayed.slope * displayed.stored(array).astype(float) + displayed.intercept


@pytest.fixture
def mr():
    """A dark surround, a body that fills a twentieth of the picture, and a hot spot."""
    random = np.random.default_rng(0)
    array = np.abs(random.normal(0, 4, (6, 80, 80)))
    array[:, 30:48, 30:48] = random.normal(500, 100, (6, 18, 18)).clip(100, 900)
    array[3, 10, 10] = 4000
    return np.rint(array)


def test_ct_has_hounsfield_units_and_standard_windows():
    array = np.array([-1024.0, 39.6, 3000.0, 50000.0], np.float32)
    displayed = shown_values(array, "ct")
    assert back(displayed, array).tolist() == [-1024, 40, 3000, 32767]
    assert (displayed.unit, displayed.windows, displayed.usual) == ("HU", WINDOWS_HU, (-160, 240))


def test_integer_mr_values_are_kept(mr):
    for array in (mr.astype(np.int16), mr.astype(np.float32), (mr * 16).astype(np.uint16)):
        displayed = shown_values(array, "mr")
        np.testing.assert_array_equal(back(displayed, array), array)
        assert displayed.unit == ""
    # Over half of what 16 bits hold: shifted, not scaled.
    assert shown_values(np.array([0, 65535], np.uint16), "mr").slope == 1


@pytest.mark.parametrize("gain", [1e-4, 0.37, 900.0])
def test_other_mr_values_are_scaled_to_16_bits_for_any_gain(mr, gain):
    array = (mr * gain).astype(np.float32) + np.float32(0.25 * gain)
    displayed = shown_values(array, "mr")
    stored = displayed.stored(array)
    assert (stored.min(), stored.max()) == (-32768, 32767)
    np.testing.assert_allclose(back(displayed, array), array, atol=0.6 * displayed.slope)
    low, high = (displayed.slope * end + displayed.intercept for end in displayed.usual)
    assert (low / gain, high / gain) == pytest.approx((0.25, 740.0), abs=40)


def test_the_default_window_of_mr_covers_the_body(mr):
    displayed = shown_values(mr, "mr")
    assert list(displayed.windows) == ["usual", "brighter", "darker", "all"]
    low, high = displayed.usual
    assert low == 0
    assert 650 < high < 850
    assert displayed.windows["all"] == (0, 4000)
    assert displayed.windows["brighter"] == (low, high / 2)
    assert displayed.windows["darker"] == (low, 1.5 * high)


def test_without_a_modality_ct_is_recognized_by_air(mr):
    assert shown_values(np.array([-1000, 50], np.int16), None).unit == "HU"
    assert shown_values(mr, None).unit == ""


@pytest.mark.parametrize("value", [0.0, 7.5, 1e6])
def test_a_constant_scan_has_valid_windows(value):
    array = np.full((2, 3, 3), value, np.float32)
    displayed = shown_values(array, "mr")
    assert np.ptp(displayed.stored(array)) == 0
    assert all(high > low for low, high in displayed.windows.values())
