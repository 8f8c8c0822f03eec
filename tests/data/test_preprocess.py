import tracemalloc
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from bodies import torso, volume_of_world
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.data.fingerprint import Fingerprint
from isopose.data.normalization import Channel, Intensity
from isopose.data.preprocess import labels_in_frame, prepare
from isopose.errors import InputError
from isopose.geometry.frame import Frame
from isopose.geometry.volume import Volume
from isopose.geometry.warp import normalized_from_pixel
from isopose.labels import Labels
from isopose.settings import DataConfig

INTENSITY = Intensity((0.5, 99.5), -80.0, 100.0, 300.0, 95.0, 75.0, -200.0, 900.0)
LABELS = Labels({"kidney": 1, "tumor": 7})


def fingerprint(fov_mm: float = 300.0) -> Fingerprint:
    one = (1.0, 1.0, 1.0)
    channels, body = (Channel("CT", INTENSITY),), (fov_mm, fov_mm)
    return Fingerprint(1, 1, one, one, one, 3.0, 3, 3, channels, body, body, fov_mm, ())


def frame_pixel(prepared, world: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the expected frame pixel ``(x, y)`` and slice of a point in world space, computed in float64."""
    index = np.linalg.inv(prepared.world_from_index) @ [*world, 1.0]
    millimeter = index[:2] * np.array(prepared.spacing[:2])
    f = prepared.frame
    pixel = (millimeter - f.center_mm + f.fov_mm / 2) / f.pixel_mm - 0.5
    return pixel, float(index[2])


def blob_center(image: np.ndarray, air: float) -> np.ndarray:
    weight = (image - air).astype(np.float64)
    z, y, x = np.indices(image.shape)
    return np.array([(weight * a).sum() / weight.sum() for a in (x, y, z)])


def blob_scan(axes, flips, spacing, angle) -> tuple[Volume, np.ndarray]:
    """Make a body as dark as clipped air with one bright blob on the patient's left in front."""
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    lps_spacing = np.array(spacing)
    size = np.ceil(np.array([170.0, 150.0, 60.0]) / lps_spacing).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = turn * lps_spacing
    matrix[:3, 3] = (-37.0, 12.5, 400.0)
    z, y, x = np.indices(size[::-1])
    points = np.stack([x, y, z], -1) * lps_spacing
    center = (size - 1) * lps_spacing / 2
    body = np.hypot((points[..., 0] - center[0]) / 70, (points[..., 1] - center[1]) / 60) <= 1
    at = center + np.array([31.3, -22.7, 0.0])
    bump = np.exp(-0.5 * ((points - at) / 6.0)[..., :2].__pow__(2).sum(-1)) * (
        np.abs(points[..., 2] - at[2]) < 25
    )
    array = np.where(body, -80.0 + 370.0 * bump, -1000.0).astype(np.float32)
    return volume_of_world(Volume(array, matrix), axes, flips), matrix[:3, :3] @ (at / lps_spacing) + matrix[
        :3, 3
    ]


STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))


@pytest.mark.parametrize(("axes", "flips"), STORAGES, ids=lambda v: "".join(str(int(i)) for i in v))
def test_left_stays_left_in_every_storage_order(axes, flips) -> None:
    scan, world = blob_scan(axes, flips, (1.7, 2.3, 6.0), 0.21)
    prepared = prepare(scan, fingerprint(190.0), DataConfig(size=96))
    expected, _ = frame_pixel(prepared, world)
    result = blob_center(prepared.image[2:-2], prepared.scale.air)
    assert np.abs(result[:2] - expected).max() < 0.05
    # Left of the patient is right of the frame, the front is above.
    assert result[0] > 48 + 8
    assert result[1] < 48 - 6


@settings(max_examples=15, deadline=None)
@given(
    x=st.floats(0.5, 4.0),
    y=st.floats(0.5, 4.0),
    angle=st.floats(-0.7, 0.7),
    size=st.sampled_from([64, 128, 256]),
)
def test_a_world_point_maps_to_its_frame_pixel(x: float, y: float, angle: float, size: int) -> None:
    scan, world = blob_scan((0, 1, 2), (False, True, False), (x, y, 15.0), angle)
    prepared = prepare(scan, fingerprint(200.0), DataConfig(size=size))
    expected, _ = frame_pixel(prepared, world)
    assert np.abs(blob_center(prepared.image[1:-1], prepared.scale.air)[:2] - expected).max() < 0.05
    # The matrix for samplers says the same as the millimeters.
    frame = normalized_from_pixel((size, size), dtype=torch.float64) @ torch.tensor([*expected, 1.0]).double()
    seen = prepared.slice_from_frame.double() @ frame
    index = torch.linalg.inv(normalized_from_pixel(prepared.shape[1:], dtype=torch.float64)) @ seen
    expected_pixel = (np.linalg.inv(prepared.world_from_index) @ [*world, 1.0])[:2]
    assert np.abs(index[:2].numpy() - expected_pixel).max() < 1e-3


def test_values_are_clipped_and_z_scored_and_padding_is_air() -> None:
    scan = torso(200, slices=2, noise=0.0).volume
    array = scan.array.copy()
    array[:, 180:186, 200:206] = 3000.0
    prepared = prepare(scan.with_array(array), fingerprint(260.0), DataConfig(size=256))
    air = (-80.0 - 95.0) / 75.0
    assert prepared.scale.air == pytest.approx(air, abs=1e-6)
    assert prepared.image[0, 0, 0] == pytest.approx(air, abs=1e-5)
    inside = prepared.image[0, 128, 124:132]
    assert inside == pytest.approx((40.0 - 95.0) / 75.0, abs=1e-4)
    assert prepared.image.min() == pytest.approx(air, abs=1e-6)
    assert prepared.image.max() <= (300.0 - 95.0) / 75.0 + 1e-6
    assert prepared.image.max() > 1.0
    assert prepared.image.dtype == np.float32


def test_the_frame_is_centered_on_the_body_and_has_a_fixed_size_in_mm() -> None:
    for pixel in ((0.8, 0.8), (0.5, 1.6)):
        case = torso(200, slices=2, center=(23.0, -14.0), pixel=pixel, noise=0.0)
        prepared = prepare(case.volume, fingerprint(250.0), DataConfig(size=128))
        rows, columns = prepared.mask[0].any(axis=1).nonzero()[0], prepared.mask[0].any(axis=0).nonzero()[0]
        # 200 by 150 mm in a frame of 250 mm and 128 pixels; centered; nothing is stretched.
        assert np.ptp(columns) + 1 == pytest.approx(200 / 250 * 128, abs=2.5)
        assert np.ptp(rows) + 1 == pytest.approx(150 / 250 * 128, abs=2.5)
        assert columns.mean() == pytest.approx(63.5, abs=1)
        assert rows.mean() == pytest.approx(63.5, abs=1)
        assert not any("frame was made" in line for line in prepared.warnings)


def test_a_larger_body_enlarges_the_frame_with_a_warning() -> None:
    case = torso(320, slices=2)
    prepared = prepare(case.volume, fingerprint(250.0), DataConfig(size=128))
    assert prepared.frame.fov_mm == pytest.approx(1.04 * 320, rel=0.02)
    assert len(prepared.warnings) == 1
    assert "250 mm" in prepared.warnings[0]
    edge = np.concatenate([prepared.mask[:, [0, -1]].ravel(), prepared.mask[:, :, [0, -1]].ravel()])
    assert not edge.any()


def test_a_pixel_size_that_is_set_is_used() -> None:
    case = torso(150, slices=1)
    prepared = prepare(case.volume, fingerprint(170.0), DataConfig(size=128, pixel_mm=2.0))
    assert prepared.frame.pixel_mm == pytest.approx(2.0)
    assert prepared.mask[0].sum() * 4.0 == pytest.approx(np.pi / 4 * 150 * 0.75 * 150, rel=0.03)


def test_the_median_pixel_is_that_of_the_training_cases() -> None:
    """A frame of 200 mm and a median pixel of 0.7 x 2.8 (1.4 by area): 143 whole pixels, then resized."""
    case = torso(150, slices=1)
    made_for = replace(fingerprint(200.0), spacing_median=(0.7, 2.8, 5.0))
    for size in (64, 128):
        frame = prepare(case.volume, made_for, DataConfig(size=size, pixel_mm="median")).frame
        assert frame.fov_mm == pytest.approx(143 * 1.4)
        assert frame.size == size


def test_the_record_holds_the_stored_grid_and_z_is_not_resampled() -> None:
    scan, _ = blob_scan((2, 0, 1), (True, False, True), (1.7, 2.3, 6.0), 0.1)
    prepared = prepare(scan, fingerprint(190.0), DataConfig(size=64))
    assert prepared.native_shape == scan.array.shape
    assert np.array_equal(prepared.native_world_from_index, scan.world_from_index)
    assert prepared.shape == scan.reoriented().array.shape
    assert prepared.image.shape == (prepared.shape[0], 64, 64)
    assert np.array_equal(prepared.reorientation.undo(scan.reoriented().array), scan.array)


def two_discs(pixel: float, frame: Frame, radius: float, apart: float) -> tuple[float, float]:
    """For each class of two touching discs, return the area in the frame over the original area."""
    n = round(200 / pixel)
    y, x = np.indices((n, n)) * pixel
    kidney = np.hypot(x - 60, y - 90) <= radius
    tumor = np.hypot(x - 60 - apart * radius, y - 90) <= 0.8 * radius
    native = np.where(tumor, 2, kidney).astype(np.uint8)[None]
    classes = labels_in_frame(native, frame, (pixel, pixel, 5.0), 3)
    scale = frame.pixel_mm**2 / pixel**2
    return tuple((classes == index).sum() * scale / (native == index).sum() for index in (1, 2))


@settings(max_examples=20, deadline=None)
@given(pixel=st.floats(0.4, 1.0), apart=st.floats(1.0, 1.9), dx=st.floats(-2, 2), dy=st.floats(-2, 2))
def test_label_maps_keep_their_volume(pixel: float, apart: float, dx: float, dy: float) -> None:
    frame = Frame((100.0 + dx, 100.0 + dy), 190.0, 256)
    # On nearly equal grids whole rows of a border change side together, 2 % of a disc 40 pixels across.
    radius = 40.0 * max(pixel, frame.pixel_mm)
    assert two_discs(pixel, frame, radius, apart) == pytest.approx((1.0, 1.0), abs=0.02)


def test_small_labels_are_neither_grown_nor_shrunk_on_average() -> None:
    random = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        pixel, shift = random.uniform(0.5, 2.5), random.uniform(-2, 2, size=2)
        frame = Frame((100.0 + shift[0], 100.0 + shift[1]), 190.0, 96)
        ratios.append(two_discs(pixel, frame, 5.0 * max(pixel, frame.pixel_mm), 1.5))
    assert np.mean(ratios, axis=0) == pytest.approx((1.0, 1.0), abs=0.012)


def test_labels_stay_aligned_with_the_image() -> None:
    scan, _ = blob_scan((1, 2, 0), (False, True, True), (0.9, 1.1, 8.0), 0.3)
    lps = scan.reoriented()
    bright = lps.array > 40
    far = lps.array > 200
    stored = scan.reorientation().undo(np.where(far, 7, np.where(bright, 1, 0)).astype(np.uint8))
    prepared = prepare(scan, fingerprint(190.0), DataConfig(size=128), scan.with_array(stored), LABELS)
    assert prepared.labels is not None
    assert prepared.labels.dtype == np.uint8
    assert set(np.unique(prepared.labels).tolist()) == {0, 1, 2}
    limits = [(v - 95.0) / 75.0 for v in (40.0, 200.0)]
    for index, limit in zip((1, 2), limits, strict=True):
        seen, marked = prepared.image > limit, prepared.labels >= index
        assert 2 * (seen & marked).sum() / (seen.sum() + marked.sum()) > 0.95


def test_bad_input_is_reported_in_one_line() -> None:
    case = torso(150, slices=2)
    holes = case.volume.array.copy()
    holes[0, 3, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        prepare(case.volume.with_array(holes), fingerprint(), DataConfig())
    other = Volume(np.zeros((2, 5, 5), np.uint8), case.volume.world_from_index)
    with pytest.raises(InputError, match="5 x 5 x 2 at 1 x 1 x 5 mm does not match"):
        prepare(case.volume, fingerprint(), DataConfig(), other, LABELS)
    odd = case.volume.with_array(np.full(case.volume.array.shape, 3, np.uint8))
    with pytest.raises(InputError, match="unknown label value 3"):
        prepare(case.volume, fingerprint(), DataConfig(), odd, LABELS)


def test_labels_outside_the_frame_give_a_warning() -> None:
    case = torso(200, slices=1)
    marks = np.zeros(case.volume.array.shape, np.uint8)
    marks[:, 100:110, 2:6] = 1
    prepared = prepare(
        case.volume, fingerprint(210.0), DataConfig(size=64), case.volume.with_array(marks), LABELS
    )
    assert any("beyond the frame" in warning for warning in prepared.warnings)
    assert not prepared.labels.any()


def test_labels_in_slices_without_a_body_give_a_warning() -> None:
    case = torso(200, slices=3)
    array, marks = case.volume.array.copy(), np.zeros(case.volume.array.shape, np.uint8)
    array[2] = -1000
    marks[:, 100:110, 90:100] = 1
    scan, stored = case.volume.with_array(array), case.volume.with_array(marks)
    prepared = prepare(scan, fingerprint(), DataConfig(size=64), stored, LABELS)
    assert any("labels lie in 1 slices in which no body was found" in line for line in prepared.warnings)
    whole = prepare(case.volume, fingerprint(), DataConfig(size=64), stored, LABELS)
    assert not any("no body was found" in line for line in whole.warnings)


def test_values_unlike_ct_and_a_case_without_labels_give_warnings() -> None:
    case = torso(200, slices=3)
    marks = case.volume.with_array(np.zeros(case.volume.array.shape, np.uint8))
    # Above -10 everywhere, noise included.
    shifted = case.volume.with_array(case.volume.array + 1124)
    prepared = prepare(shifted, fingerprint(), DataConfig(size=64), marks, LABELS)
    assert any("HU offset (often -1024) seems to be missing" in line for line in prepared.warnings)
    assert any("no voxel is labeled" in line for line in prepared.warnings)
    sound = prepare(case.volume, fingerprint(), DataConfig(size=64)).warnings
    assert not any("HU offset" in line or "no voxel is labeled" in line for line in sound)


def test_memory_does_not_grow_with_the_number_of_slices_beyond_the_arrays_themselves() -> None:
    case = torso(200, slices=1, pixel=(0.8, 0.8))
    peaks = []
    for slices in (20, 60):
        tall = Volume(
            np.tile(case.volume.array, (slices, 1, 1)).astype(np.int16), case.volume.world_from_index
        )
        tracemalloc.start()
        prepare(tall, fingerprint(250.0), DataConfig(size=64))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    voxels = 40 * case.volume.array[0].size
    # The scan reordered, booleans and their like: no float copy of the whole scan.
    assert (peaks[1] - peaks[0]) / voxels < 12
