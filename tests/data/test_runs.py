"""Masks as run lengths, compared with dense masks and SciPy's components."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from isopose.data.runs import Runs, map_masks, merge, slice_chunks

IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)

shapes = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))
#: From all but empty to all but full.
densities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


def drawn(shape: tuple[int, int, int], density: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < density


def runs_of(mask: np.ndarray, voxels: int = 30) -> Runs:
    return Runs.of((mask[part] for part in slice_chunks(mask.shape, voxels)), mask.shape)


@given(shapes, densities, st.integers(0, 99), st.integers(1, 200))
def test_round_trip_through_runs_keeps_the_mask(shape, density, seed, voxels):
    mask = drawn(shape, density, seed)
    runs = runs_of(mask, voxels)
    np.testing.assert_array_equal(runs.mask(slice(None)), mask)
    for part in slice_chunks(shape, voxels):
        np.testing.assert_array_equal(runs.mask(part), mask[part])
    np.testing.assert_array_equal(runs.areas, mask.sum(axis=(1, 2)))
    assert runs.lengths.sum() == mask.sum()
    # As few as can be: no run begins where another ends.
    padded = np.pad(mask, ((0, 0), (0, 0), (1, 0)))
    assert len(runs.starts) == (padded[:, :, 1:] & ~padded[:, :, :-1]).sum()


@settings(max_examples=200)
@given(shapes, densities, st.integers(0, 99), st.booleans())
def test_components_are_those_of_scipy(shape, density, seed, in_plane):
    mask = drawn(shape, density, seed)
    runs = runs_of(mask)
    expected, count = ndimage.label(mask, IN_PLANE if in_plane else None)
    numbers = runs.components(in_plane=in_plane)
    assert len(np.unique(numbers)) == count
    # Numbered in the same order too, so that of two as large the same one is the largest.
    for number in range(count):
        result = runs.only(numbers == number).mask(slice(None))
        np.testing.assert_array_equal(result, expected == number + 1)


@settings(max_examples=200)
@given(shapes, densities, st.integers(0, 99), st.booleans(), st.integers(1, 40))
def test_components_found_in_parts_are_the_same(shape, density, seed, in_plane, together):
    runs = runs_of(drawn(shape, density, seed))
    whole = runs.components(in_plane=in_plane)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isopose.data.runs.RUNS_PER_GRAPH", together)
        np.testing.assert_array_equal(runs.components(in_plane=in_plane), whole)


def test_voxels_beyond_32_bits_are_counted():
    mask = drawn((2, 5, 6), 0.5)
    runs = runs_of(mask)
    assert runs.starts.dtype == np.int32
    # A stack of which nobody could hold the mask.
    huge, box = (70_000, 200, 200), (slice(65_000, 65_002), slice(10, 15), slice(20, 26))
    placed = runs.placed(box, huge)
    assert placed.starts.dtype == np.int64
    expected = np.zeros((4, 200, 200), dtype=bool)
    expected[1:3, 10:15, 20:26] = mask
    np.testing.assert_array_equal(placed.mask(slice(64_999, 65_003)), expected)
    np.testing.assert_array_equal(placed.components(), runs.components())
    np.testing.assert_array_equal(placed.cropped(box).mask(slice(None)), mask)


@given(shapes, densities, st.integers(0, 99))
def test_points_are_the_marked_pixels_of_a_slice(shape, density, seed):
    mask = drawn(shape, density, seed)
    runs = runs_of(mask)
    for z in range(shape[0]):
        part = slice(*np.searchsorted(runs.slices, (z, z + 1)))
        np.testing.assert_array_equal(runs.points(part), np.argwhere(mask[z]))


@given(shapes, st.integers(0, 99))
def test_the_box_has_a_margin_of_one_voxel(shape, seed):
    whole = np.zeros(tuple(side + 4 for side in shape), dtype=bool)
    inner = tuple(slice(2, 2 + side) for side in shape)
    whole[inner] = drawn(shape, 0.3, seed)
    whole[2, 2, 2] = True
    runs = runs_of(whole)
    box = runs.box()
    result = ndimage.find_objects(whole.astype(int))[0]
    assert [(s.start, s.stop) for s in box] == [(s.start - 1, s.stop + 1) for s in result]
    cropped = runs.cropped(box)
    np.testing.assert_array_equal(cropped.mask(slice(None)), whole[box])
    np.testing.assert_array_equal(cropped.placed(box, whole.shape).mask(slice(None)), whole)


def test_the_box_is_clipped_to_the_mask():
    mask = np.ones((2, 3, 4), dtype=bool)
    assert runs_of(mask).box() == (slice(0, 2), slice(0, 3), slice(0, 4))


@pytest.mark.parametrize("voxels", [1, 50, 1000])
def test_mapping_a_function_does_not_depend_on_the_parts(voxels):
    one, other = drawn((6, 5, 7), 0.5, 1), drawn((6, 5, 7), 0.5, 2)
    result = map_masks(lambda a, b: a & ~b, runs_of(one), runs_of(other), voxels=voxels)
    np.testing.assert_array_equal(result.mask(slice(None)), one & ~other)


def test_masks_without_a_common_slice_are_merged():
    mask = drawn((6, 5, 7), 0.5)
    runs = runs_of(mask)
    even = runs.slices % 2 == 0
    together = merge(runs.only(~even), runs.only(even))
    np.testing.assert_array_equal(together.starts, runs.starts)
    np.testing.assert_array_equal(together.stops, runs.stops)
