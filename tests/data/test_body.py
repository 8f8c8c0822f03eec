import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bodies import Torso, dice, torso
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from isopose.data.body import body_mask, coarse, fine
from isopose.errors import InputError
from isopose.geometry.volume import Volume

THRESHOLD = -250.0


def check(case: Torso, mask: np.ndarray, least: float = 0.975) -> None:
    assert dice(mask, case.trunk) > least
    # Nothing of the trunk further inside than a couple of pixels is lost, lungs included.
    inside = ndimage.binary_erosion(case.trunk, np.ones((1, 7, 7)))
    assert (mask & inside).sum() == inside.sum()
    # What is too much lies in the wedge where arm or table touches the skin, and reaches nowhere.
    spacing = case.volume.spacing
    away = ndimage.distance_transform_edt(~case.trunk[0], sampling=spacing[1::-1])
    width = np.ptp(np.nonzero(case.trunk)[2]) * spacing[0]
    assert away[mask.any(axis=0)].max() <= max(7.0, 2.1 * max(spacing[:2]), 0.03 * width)
    assert (mask & case.arms).sum() <= 0.06 * max(1, case.arms.sum())


@pytest.mark.parametrize("width", [100, 160, 250, 380, 500], ids=lambda w: f"{w}mm")
@pytest.mark.parametrize("pixel", [(0.7, 0.7), (1.5, 1.5), (1.0, 3.0)], ids=str)
def test_trunk_of_any_size_without_arms_and_table(width: float, pixel: tuple[float, float]) -> None:
    case = torso(width, pixel=pixel, slices=2)
    check(case, body_mask(case.volume, THRESHOLD), 0.965 if max(pixel) > 2 else 0.975)


@settings(max_examples=15, deadline=None)
@given(
    width=st.floats(90, 500),
    ratio=st.floats(0.6, 1.0),
    x=st.floats(-0.1, 0.1),
    overlap=st.floats(0.0, 0.05),
    noise=st.floats(0, 60),
)
def test_trunk_of_any_shape_and_position(
    width: float, ratio: float, x: float, overlap: float, noise: float
) -> None:
    case = torso(width, depth=ratio * width, center=(x * width, 0.0), overlap=overlap, noise=noise, slices=1,
                 pixel=(width / 250, width / 250))  # fmt: skip
    check(case, body_mask(case.volume, THRESHOLD), 0.97)


def test_padding_and_clipped_values_change_nothing() -> None:
    case = torso(250, slices=2)
    expected = body_mask(case.volume, THRESHOLD)
    padded = case.volume.array.copy()
    y, x = np.indices(padded.shape[1:])
    half = padded.shape[1] / 2
    padded[:, np.hypot(x - half, y - half) > half] = -3024
    assert dice(body_mask(case.volume.with_array(padded), THRESHOLD), expected) > 0.999
    for low, high in ((-1000, 1000), (-300, 300), (-160, 240)):
        clipped = case.volume.with_array(case.volume.array.clip(low, high))
        assert dice(body_mask(clipped, THRESHOLD), expected) > 0.98, (low, high)


def test_integer_values_as_stored_in_dicom() -> None:
    case = torso(250, slices=1)
    whole = case.volume.with_array(case.volume.array.round().astype(np.int16))
    assert dice(body_mask(whole, THRESHOLD), body_mask(case.volume, THRESHOLD)) > 0.999


def test_body_cut_by_the_field_of_view_is_filled_up_to_the_border() -> None:
    case = torso(300, fov=260, arms=False, table=False, slices=2)
    mask = body_mask(case.volume, THRESHOLD)
    assert dice(mask, case.trunk) > 0.99
    assert mask[:, mask.shape[1] // 2, 0].all()
    # Cut through a lung, the lung is still inside.
    half = Volume(np.ascontiguousarray(case.volume.array[:, :, 60:]), case.volume.world_from_index)
    assert dice(body_mask(half, THRESHOLD), case.trunk[:, :, 60:]) > 0.99


def test_gaps_between_back_and_table_are_not_filled() -> None:
    case = torso(300, arms=False, slices=1)
    # A box of table around the lower half of the body closes the air beside it.
    array = case.volume.array.copy()
    rows, columns = np.nonzero(case.trunk[0])
    middle, low = int(rows.mean()), rows.max() + 1
    left, right = columns.min(), columns.max()
    array[:, middle : low + 4, left - 4 : left] = 100
    array[:, middle : low + 4, right : right + 4] = 100
    array[:, low : low + 4, left:right] = 100
    mask = body_mask(case.volume.with_array(array), THRESHOLD)
    assert dice(mask, case.trunk) > 0.98
    assert not mask[0, low - 10, left + 5]
    assert not mask[0, low - 10, right - 5]


@pytest.mark.parametrize("wall", [5, 6, 8])
def test_gas_under_a_thin_belly_wall_is_inside(wall: int) -> None:
    case = torso(150, slices=2, pixel=(0.7, 0.7), arms=False)
    array = case.volume.array.copy()
    depth = ndimage.distance_transform_edt(case.trunk[0], sampling=0.7)
    rows, columns = np.indices(depth.shape)
    middle = depth.shape[1] // 2
    # A broad pocket right under the front, flat below as gas over fluid is.
    gas = (depth > wall) & (rows < depth.shape[0] // 2 - 50) & (np.abs(columns - middle) < 40)
    assert gas.sum() > 500
    array[:, gas] = -990
    check(case, body_mask(case.volume.with_array(array), THRESHOLD))


def belly_of_gas(slices: int, gassy: tuple[int, ...]) -> Torso:
    """Make an abdomen with gas under nearly the whole front, far outside the convex hull of the rest."""
    case = torso(150, slices=slices, pixel=(0.7, 0.7), arms=False)
    array = case.volume.array.copy()
    depth = ndimage.distance_transform_edt(case.trunk[0], sampling=0.7)
    gas = (depth > 4.5) & (np.indices(depth.shape)[0] < depth.shape[0] // 2 - 38)
    array[case.trunk] = 40
    for z in gassy:
        array[z, gas] = -990
    return Torso(case.volume.with_array(array), case.trunk, case.arms, case.table)


@pytest.mark.parametrize("gassy", [(2,), (0, 1), (3, 4)])
def test_gas_along_the_whole_front_is_inside_by_the_neighboring_slices(
    gassy: tuple[int, ...],
) -> None:
    case = belly_of_gas(5, gassy)
    check(case, body_mask(case.volume, THRESHOLD))


def test_air_above_a_table_is_outside_in_any_number_of_slices() -> None:
    case = torso(300, arms=False, slices=6)
    array = case.volume.array.copy()
    rows, columns = np.nonzero(case.trunk[0])
    middle, low, left, right = int(rows.mean()), rows.max() + 1, columns.min(), columns.max()
    # The box narrows from slice to slice until it is the trunk's own skin: nothing creeps along it.
    for z in range(6):
        array[z, middle : low + 4, left - 4 + 6 * z : left + 6 * z] = 100
        array[z, middle : low + 4, right - 6 * z : right + 4 - 6 * z] = 100
        array[z, low : low + 4, left + 6 * z : right - 6 * z] = 100
    check(case, body_mask(case.volume.with_array(array), THRESHOLD), 0.97)


def test_blanket_pillow_and_a_fallen_wire_are_left_out() -> None:
    case = torso(250, slices=3, arms=False)
    array = case.volume.array.copy()
    rows, columns = np.nonzero(case.trunk[0])
    array[:, rows.min() - 30 : rows.min(), columns.min() : columns.max()] = -700
    array[:, rows.min() - 34 : rows.min() - 30, columns.min() : columns.max()] = -50
    array[:, rows.min() - 2 : rows.min(), 10:-10] = 300
    mask = body_mask(case.volume.with_array(array), THRESHOLD)
    assert dice(mask, case.trunk) > 0.98


def test_both_thighs_are_in_the_mask() -> None:
    one = torso(150, slices=4, arms=False, table=False, fov=170)
    array = np.concatenate([one.volume.array, one.volume.array], axis=2)
    array[:2, 60:110, 120:220] = 40.0
    expected = array > -900
    mask = body_mask(Volume(array, one.volume.world_from_index), THRESHOLD)
    assert dice(mask[2:], expected[2:]) > 0.97


def test_slices_outside_the_body_stay_empty() -> None:
    case = torso(200, slices=5)
    array = case.volume.array.copy()
    array[[0, 4]] = -1000
    mask = body_mask(case.volume.with_array(array), THRESHOLD)
    assert mask.any(axis=(1, 2)).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("value", "message"), [(-1000.0, "no body found above -250 HU"), (0.0, "lowest of all values is 0")]
)
def test_a_scan_without_a_body_is_reported_in_one_line(value: float, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        body_mask(Volume(np.full((2, 40, 40), value)), THRESHOLD)
    assert "\n" not in str(error.value)


def test_a_table_alone_is_not_a_body() -> None:
    array = np.full((2, 200, 200), -1000.0)
    array[:, 150:153, 20:180] = 100
    with pytest.raises(InputError, match="only thin structures"):
        body_mask(Volume(array), THRESHOLD)


def turned(array: np.ndarray, degrees: float, shift: tuple[float, float], fill: float) -> np.ndarray:
    t = np.deg2rad(degrees)
    matrix = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    center = (np.array(array.shape[1:]) - 1) / 2
    offset = center - matrix @ (center + shift)
    out = [ndimage.affine_transform(s.astype(float), matrix, offset, order=1, cval=fill) for s in array]
    return np.stack(out)


@pytest.mark.parametrize("name", ["dicom", "abdomen"])
def test_mask_follows_real_bodies_that_turn_and_move(real_scans: dict[str, Volume], name: str) -> None:
    scan = real_scans[name]
    array = scan.array[:: len(scan.array) // 3]
    margin = array.shape[1] // 6
    array = np.pad(array.astype(float), ((0, 0), (margin,) * 2, (margin,) * 2), constant_values=-1024)
    base = body_mask(Volume(array, scan.world_from_index), THRESHOLD)
    for degrees, shift in ((30, (0, 0)), (-30, (4, 3)), (90, (0, 0)), (180, (0, 0)), (0, (7.3, -11.2))):
        mask = body_mask(Volume(turned(array, degrees, shift, -1024.0), scan.world_from_index), THRESHOLD)
        assert dice(mask, turned(base, degrees, shift, 0.0) > 0.5) > 0.985, (degrees, shift)


def test_real_arms_and_table_are_left_out(real_scans: dict[str, Volume]) -> None:
    scan = real_scans["dicom"]
    mask = body_mask(scan, THRESHOLD)
    columns, rows = mask.any(axis=(0, 1)).nonzero()[0], mask.any(axis=(0, 2)).nonzero()[0]
    # Read off the pictures: the arms end at column 65 and begin at 437, the table at 422; the skin is at 162.
    assert 65 <= columns.min() <= 80
    assert 425 <= columns.max() <= 436
    assert 158 <= rows.min() <= 175
    assert 410 <= rows.max() <= 422
    dense = scan.array > 0
    # All of the trunk's soft tissue in one component is inside: no bite is taken out of it.
    box = np.zeros_like(mask)
    box[:, 180:400, 90:405] = True
    assert (dense & box & ~mask).sum() < 0.001 * (dense & box).sum()


def test_an_adult_scan_stays_within_time_and_memory_limits(real_scans: dict[str, Volume]) -> None:
    scan = real_scans["dicom"]
    tall = Volume(np.tile(scan.array, (5, 1, 1)), scan.world_from_index)
    start = time.perf_counter()
    mask = body_mask(tall, THRESHOLD)
    # 0.8 s on one core when measured; the bound leaves room for a machine that is busy.
    assert time.perf_counter() - start < 8
    assert dice(mask[:20], mask[80:]) > 0.99


@pytest.mark.parametrize("shape", [(40, 64), (31, 50), (9, 7)])
@pytest.mark.parametrize("size", [(20, 32), (17, 23), (33, 40)])
def test_pooling_and_upsampling_of_a_part_agree_with_pytorch(shape, size) -> None:
    array = np.random.default_rng(4).integers(-1024, 3000, (3, *shape)).astype(np.int16)
    averages = F.adaptive_avg_pool2d(torch.from_numpy(array).float()[:, None], size)[:, 0].numpy()
    rows, columns = slice(2, 15), slice(5, 20)
    np.testing.assert_allclose(coarse(array, size), averages, rtol=0, atol=1e-3)
    np.testing.assert_allclose(
        coarse(array[:, ::-1], size, rows, columns), coarse(array[:, ::-1], size)[:, rows, columns]
    )

    level = ndimage.gaussian_filter(averages - averages.mean(), (0, 2, 2))
    level = np.where(np.abs(level) < 1.0, 2.0, level).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(level)[:, None], size=shape, mode="bilinear")[:, 0].numpy() > 0
    np.testing.assert_array_equal(fine(lambda part: level[part], (3, *shape), size), expected)
    level[:, :3], level[:, 14:], level[:, :, :6], level[:, :, 19:] = -1.0, -1.0, -1.0, -1.0
    expected = F.interpolate(torch.from_numpy(level)[:, None], size=shape, mode="bilinear")[:, 0].numpy() > 0
    result = fine(lambda part: level[part, rows, columns], (3, *shape), size, rows, columns)
    np.testing.assert_array_equal(result, expected)
