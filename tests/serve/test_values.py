"""What a page's 16-bit numbers stand for, and the windows in which a scan is shown."""

import numpy as np
import pytest

from isopose.serve.values import WINDOWS_HU, shown_values


def back(shown, array):
    return shown.slope * shown.stored(array).astype(float) + shown.intercept


@pytest.fixture
def mr():
    """A dark surround, a body that fills a twentieth of the picture, and a hot spot."""
    random = np.random.default_rng(0)
    array = np.abs(random.normal(0, 4, (6, 80, 80)))
    array[:, 30:48, 30:48] = random.normal(500, 100, (6, 18, 18)).clip(100, 900)
    array[3, 10, 10] = 4000
    return np.rint(array)


def test_ct_is_in_hounsfield_units_and_windows_that_people_know():
    array = np.array([-1024.0, 39.6, 3000.0, 50000.0], np.float32)
    shown = shown_values(array, "ct")
    assert back(shown, array).tolist() == [-1024, 40, 3000, 32767]
    assert (shown.unit, shown.windows, shown.usual) == ("HU", WINDOWS_HU, (-160, 240))


def test_whole_numbers_of_mr_are_kept(mr):
    for array in (mr.astype(np.int16), mr.astype(np.float32), (mr * 16).astype(np.uint16)):
        shown = shown_values(array, "mr")
        np.testing.assert_array_equal(back(shown, array), array)
        assert shown.unit == ""
    # Over half of what 16 bits hold: shifted, not scaled.
    assert shown_values(np.array([0, 65535], np.uint16), "mr").slope == 1


@pytest.mark.parametrize("gain", [1e-4, 0.37, 900.0])
def test_other_values_fill_the_16_bits_whatever_the_gain(mr, gain):
    array = (mr * gain).astype(np.float32) + np.float32(0.25 * gain)
    shown = shown_values(array, "mr")
    stored = shown.stored(array)
    assert (stored.min(), stored.max()) == (-32768, 32767)
    np.testing.assert_allclose(back(shown, array), array, atol=0.6 * shown.slope)
    low, high = (shown.slope * end + shown.intercept for end in shown.usual)
    assert (low / gain, high / gain) == pytest.approx((0.25, 740.0), abs=40)


def test_the_usual_window_of_mr_is_that_of_the_body(mr):
    shown = shown_values(mr, "mr")
    assert list(shown.windows) == ["usual", "brighter", "darker", "all"]
    low, high = shown.usual
    assert low == 0
    assert 650 < high < 850
    assert shown.windows["all"] == (0, 4000)
    assert shown.windows["brighter"] == (low, high / 2)
    assert shown.windows["darker"] == (low, 1.5 * high)


def test_where_nobody_says_it_air_tells_ct(mr):
    assert shown_values(np.array([-1000, 50], np.int16), None).unit == "HU"
    assert shown_values(mr, None).unit == ""


@pytest.mark.parametrize("value", [0.0, 7.5, 1e6])
def test_a_scan_of_one_value_has_windows_too(value):
    array = np.full((2, 3, 3), value, np.float32)
    shown = shown_values(array, "mr")
    assert np.ptp(shown.stored(array)) == 0
    assert all(high > low for low, high in shown.windows.values())
