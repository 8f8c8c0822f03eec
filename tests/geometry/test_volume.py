from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from isopose.errors import InputError
from isopose.geometry.volume import Reorientation, Volume, axes_of

ALL = [
    Reorientation(axes, flips)
    for axes in permutations(range(3))
    for flips in product((False, True), repeat=3)
]
angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.2, 8)] * 3)
shapes = st.tuples(*[st.integers(1, 5)] * 3)


def matrix_of(angle, spacing, origin=(0, 0, 0), mirrored=False):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angle, degrees=True).as_matrix() * spacing
    if mirrored:
        matrix[:3, 1] *= -1
    matrix[:3, 3] = origin
    return matrix


def numbered(shape):
    return np.arange(np.prod(shape)).reshape(shape)


def place(volume, value):
    k, j, i = np.argwhere(volume.array == value)[0]
    return (volume.world_from_index @ [i, j, k, 1])[:3]


@given(angles, spacings, st.tuples(*[st.floats(-900, 900)] * 3), st.booleans())
def test_origin_spacing_and_direction_make_the_matrix(angle, spacing, origin, mirrored):
    matrix = matrix_of(angle, spacing, origin, mirrored)
    volume = Volume(np.zeros((2, 3, 4)), matrix)
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-12)
    np.testing.assert_array_equal(volume.origin, origin)
    np.testing.assert_allclose(volume.direction.T @ volume.direction, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(volume.direction * volume.spacing, matrix[:3, :3], atol=1e-12)


@settings(deadline=None)
@given(shapes, angles, spacings, st.booleans())
def test_reorientation_moves_no_voxel(shape, angle, spacing, mirrored):
    volume = Volume(numbered(shape), matrix_of(angle, spacing, (5, -7, 11), mirrored))
    upright = volume.reoriented()
    assert np.array_equal(np.sort(upright.array.ravel()), np.sort(volume.array.ravel()))
    for value in {0, volume.array.size // 2, volume.array.size - 1}:
        np.testing.assert_allclose(place(upright, value), place(volume, value), atol=1e-9)
    np.testing.assert_array_equal(volume.reorientation().undo(upright.array), volume.array)


@given(angles, st.booleans())
def test_reoriented_axes_are_the_best_of_all_48(angle, mirrored):
    volume = Volume(numbered((2, 3, 4)), matrix_of(angle, (1, 1, 1), mirrored=mirrored))
    got = np.trace(volume.reoriented().direction)
    best = max(np.trace((volume.world_from_index @ r.stored_from_new((2, 3, 4)))[:3, :3]) for r in ALL)
    assert got == pytest.approx(best, abs=1e-9)
    assert (np.diag(volume.reoriented().direction) >= 0).all()


@pytest.mark.parametrize("change", ALL)
def test_apply_and_undo_are_inverse_and_say_where_voxels_went(change):
    array = numbered((2, 3, 4))
    moved = change.apply(array)
    np.testing.assert_array_equal(change.undo(moved), array)
    np.testing.assert_array_equal(change.apply(change.undo(array)), array)
    stored_from_new = change.stored_from_new(array.shape)
    for k, j, i in np.ndindex(moved.shape):
        x, y, z, _ = (stored_from_new @ [i, j, k, 1]).astype(int)
        assert array[z, y, x] == moved[k, j, i]


@pytest.mark.parametrize("change", ALL)
def test_reorientation_keeps_leading_axes(change):
    array = numbered((2, 2, 3, 4))
    moved = change.apply(array)
    for channel in range(2):
        np.testing.assert_array_equal(moved[channel], change.apply(array[channel]))
    np.testing.assert_array_equal(change.undo(moved), array)


def test_the_storage_order_of_kits19_by_hand():
    """KiTS19: the stored x axis runs to the feet, y to the back, z to the right."""
    matrix = np.array([[0, 0, -0.5, 9.0], [0, 0.5, 0, 8], [-3, 0, 0, 7], [0, 0, 0, 1]])
    array = np.zeros((5, 4, 3))
    array[4, 0, 0] = 1  # furthest right, front, top
    upright = Volume(array, matrix).reoriented()
    assert upright.array.shape == (3, 4, 5)
    assert upright.array[2, 0, 0] == 1
    np.testing.assert_array_equal(upright.spacing, [0.5, 0.5, 3])
    np.testing.assert_array_equal(upright.direction, np.eye(3))


PLANES = {
    # In words: where x, y and z of the slices grow to, as (axis of LPS, sign).
    "axial": ((0, 1), (1, 1), (2, 1)),
    "coronal": ((0, 1), (2, -1), (1, 1)),
    "sagittal": ((1, 1), (2, -1), (0, -1)),
}


@pytest.mark.parametrize("plane", PLANES)
@given(st.sampled_from(ALL), st.tuples(*[st.floats(-20, 20)] * 3), spacings)
def test_every_storage_becomes_the_slices_of_a_plane(plane, change, tilt, spacing):
    """Whatever the storage, no voxel moves in the patient, so that left stays left."""
    shape = (2, 3, 4)
    upright = np.eye(4)
    upright[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() * spacing
    volume = Volume(numbered(shape), upright @ change.stored_from_new(shape))
    slices = volume.reoriented(plane)
    for new, (axis, sign) in enumerate(PLANES[plane]):
        assert slices.direction[axis, new] * sign > 0.8
        assert axes_of(plane)[axis, new] == sign
    assert np.linalg.det(slices.direction) > 0.99, "a mirrored view swaps sides"
    for value in (0, 7, volume.array.size - 1):
        np.testing.assert_allclose(place(slices, value), place(volume, value), atol=1e-9)
    np.testing.assert_array_equal(volume.reorientation(plane).undo(slices.array), volume.array)
    assert slices.reoriented("axial").same_grid(volume.reoriented())
    assert (slices.reoriented().array == volume.reoriented().array).all()


def test_reorienting_twice_changes_nothing():
    upright = Volume(numbered((2, 3, 4)), matrix_of((100, 50, -70), (1, 2, 3))).reoriented()
    assert upright.reorientation() == Reorientation((0, 1, 2), (False, False, False))
    assert np.array_equal(upright.reoriented().array, upright.array)


def test_comparison_of_grids():
    volume = Volume(numbered((3, 4, 5)), matrix_of((10, 20, 30), (1, 2, 3)))
    moved = volume.world_from_index.copy()
    moved[:3, 3] += (0.3, 0.4, 0)
    other = Volume(volume.array, moved)
    assert volume.grid_distance(other) == pytest.approx(0.5)
    assert not volume.same_grid(other)
    assert volume.same_grid(other, 0.51)
    stretched = volume.world_from_index.copy()
    stretched[:3, 0] *= 1.01
    assert volume.grid_distance(Volume(volume.array, stretched)) == pytest.approx(0.04)  # 4 steps of 0.01
    assert not volume.same_grid(Volume(numbered((3, 4, 6)), volume.world_from_index))
    assert volume.same_grid(volume.with_array(np.ones((3, 4, 5))))
    with pytest.raises(InputError, match="shape"):
        volume.with_array(np.ones((3, 4, 6)))


def test_the_matrix_is_a_read_only_copy():
    matrix = np.eye(4)
    volume = Volume(np.zeros((1, 1, 1)), matrix)
    matrix[0, 3] = 99
    assert volume.origin[0] == 0
    volume.origin[0] = 99
    assert volume.origin[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        volume.world_from_index[0, 3] = 1


def sheared(amount):
    matrix = np.eye(4)
    matrix[0, 1] = amount
    return matrix


@pytest.mark.parametrize(
    ("shape", "matrix", "word"),
    [
        ((3, 4), np.eye(4), "three non-empty"),
        ((3, 0, 4), np.eye(4), "three non-empty"),
        ((1, 3, 4, 5), np.eye(4), "three non-empty"),
        ((3, 4, 5), np.eye(3), "4 x 4"),
        ((3, 4, 5), np.full((4, 4), np.nan), "finite"),
        ((3, 4, 5), np.zeros((4, 4)), "not plausible"),
        ((3, 4, 5), np.diag([1, 1, 1e6, 1]), "not plausible"),
        ((3, 4, 5), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "right angles"),
        ((3, 4, 5), sheared(0.002), "right angles"),
    ],
)
def test_invalid_volumes_cannot_exist(shape, matrix, word):
    with pytest.raises(InputError, match=word) as error:
        Volume(np.zeros(shape), matrix)
    assert "\n" not in str(error.value)


def test_rounding_in_a_header_is_not_taken_for_shear():
    assert Volume(np.zeros((1, 1, 1)), sheared(0.0005)).spacing[0] == 1


def test_an_impossible_voxel_size_is_quoted_in_plain_numbers():
    with pytest.raises(InputError, match=r"voxel size 0 x 0\.5 x 2e\+04 mm is not plausible"):
        Volume(np.zeros((2, 2, 2)), np.diag([0, 0.5, 2e4, 1]))


@pytest.mark.parametrize("dtype", [np.complex64, object, "U4", "M8[s]"])
def test_values_that_are_not_real_numbers(dtype):
    # Of complex MR the imaginary part would be dropped; None and NaN in objects would pass as finite.
    with pytest.raises(InputError, match="expected one real number per voxel, got values of type"):
        Volume(np.zeros((2, 3, 4)).astype(dtype))
