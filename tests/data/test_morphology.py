"""Dilation and erosion of bit-packed masks, compared with SciPy on voxels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from isopose.data.morphology import dilated, eroded, grow_until_meeting, opened

CROSS = ndimage.generate_binary_structure(2, 1)[None]
SQUARE = np.ones((1, 3, 3), dtype=bool)

#: Around one, two and three words of 64 voxels too.
widths = st.one_of(st.integers(1, 9), st.sampled_from([62, 63, 64, 65, 66, 127, 128, 129, 192, 193]))
shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), widths)
densities = st.sampled_from([0.0, 0.02, 0.3, 0.8, 1.0])


def drawn(shape: tuple[int, int, int], density: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < density


def grown(mask: np.ndarray, step: int) -> np.ndarray:
    return ndimage.binary_dilation(mask, SQUARE if step % 2 else CROSS)


def stepped(mask: np.ndarray, steps: int, within: np.ndarray | None = None) -> np.ndarray:
    for step in range(steps):
        mask = grown(mask, step)
        if within is not None:
            mask &= within
    return mask


@settings(max_examples=150)
@given(shapes, densities, densities, st.integers(0, 9), st.integers(0, 12))
def test_dilation_agrees_with_scipy(shape, density, room, seed, steps):
    mask, within = drawn(shape, density, seed), drawn(shape, room, seed + 1)
    np.testing.assert_array_equal(dilated(mask, steps), stepped(mask, steps))
    result = dilated(mask, steps, within=within)
    np.testing.assert_array_equal(result, stepped(mask, steps, within))
    assert result.dtype == bool


@settings(max_examples=100)
@given(shapes, densities, st.integers(0, 9), st.integers(1, 6))
def test_erosion_keeps_voxels_at_the_border(shape, density, seed, steps):
    mask = drawn(shape, 0.7 + 0.3 * density, seed)
    less = mask
    for step in range(steps):
        less = ndimage.binary_erosion(less, SQUARE if step % 2 else CROSS, border_value=1)
    np.testing.assert_array_equal(eroded(mask, steps), less)
    np.testing.assert_array_equal(opened(mask, steps), stepped(less, steps + 1, mask))


@settings(max_examples=100)
@given(shapes, st.integers(0, 9), st.integers(1, 8))
def test_two_growing_regions_meet_half_way(shape, seed, steps):
    body = drawn(shape, 0.9, seed)
    core = drawn(shape, 0.05, seed + 1) & body
    kept = core & drawn(shape, 0.5, seed + 2)
    one, other = kept, core & ~kept
    for step in range(steps):
        one = grown(one, step) & body & ~other
        other = grown(other, step) & body & ~one
    np.testing.assert_array_equal(grow_until_meeting(kept, core, body, steps=steps), one)


@pytest.mark.parametrize("width", [64, 70, 128])
def test_inputs_are_not_changed(width):
    mask, within = drawn((2, 5, width), 0.3, 0), drawn((2, 5, width), 0.8, 1)
    before = mask.copy(), within.copy()
    dilated(mask, 3, within=within)
    eroded(mask, 2)
    grow_until_meeting(mask & within, mask, within, steps=3)
    np.testing.assert_array_equal(mask, before[0])
    np.testing.assert_array_equal(within, before[1])
