"""Regular stacks from positions and orientations as headers round them; irregular ones are refused."""

import numpy as np
import pytest

from io_helpers import dicom_slice, enhanced, raw_slices, rotation, save
from isopose.errors import InputError
from isopose.io.images import read_volume


def series(folder, heights, orientation=None):
    """Write a series at z positions in mm (numbers or text); ``orientation(i)`` is that of slice ``i``."""
    raw = raw_slices(len(heights))
    for i, (pixels, height) in enumerate(zip(raw, heights, strict=True)):
        data = dicom_slice(pixels, (-10, 20, 0))
        data.ImagePositionPatient = [-10, 20, height]
        if orientation is not None:
            data.ImageOrientationPatient = orientation(i)
        save(data, folder / f"{(i * 7) % 101:03d}.dcm")
    return raw.astype(int) - 1024


def refused(path, word):
    with pytest.raises(InputError, match=word):
        read_volume(path)


@pytest.mark.parametrize("count", [3, 4, 20])
@pytest.mark.parametrize("spacing", [0.3, 0.4, 0.5, 0.625, 0.75, 1.25, 3.33, 6.25])
def test_positions_rounded_to_a_tenth_are_fitted(tmp_path, spacing, count):
    true = -100 + spacing * np.arange(count)
    values = series(tmp_path, [f"{height:.1f}" for height in true])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_allclose(volume.spacing[2], spacing, atol=0.1 / (count - 1) + 1e-9)
    # No slice lies further from where it is than its position was rounded, the fit's own error included.
    expected = volume.origin[2] + volume.spacing[2] * np.arange(count)
    assert np.abs(expected - true).max() <= 0.1
    np.testing.assert_allclose(volume.origin[:2], (-10, 20), atol=1e-9)


def test_the_fit_is_more_accurate_than_the_end_positions(tmp_path):
    true = 6.25 * np.arange(61)
    series(tmp_path, [f"{height:.1f}" for height in true])
    assert read_volume(tmp_path).spacing[2] == pytest.approx(6.25, abs=2e-4)


@pytest.mark.parametrize("spacing", [0.5, 0.625, 1.0, 5.0])
def test_jittered_positions_are_fitted(tmp_path, spacing):
    true = -300 + spacing * np.arange(30)
    jitter = np.random.default_rng(0).uniform(-0.03, 0.03, 30)
    values = series(tmp_path, (true + jitter).round(4).tolist())
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, values)
    expected = volume.origin[2] + volume.spacing[2] * np.arange(30)
    assert np.abs(expected - true).max() <= 0.03


def test_exact_positions_are_not_changed(tmp_path):
    series(tmp_path, (-300 + 0.625 * np.arange(20)).tolist())
    expected = np.diag([0.75, 0.5, 0.625, 1.0])
    expected[:3, 3] = (-10, 20, -300)
    np.testing.assert_array_equal(read_volume(tmp_path).world_from_index, expected)


@pytest.mark.parametrize("at", [1, 9, 18])
@pytest.mark.parametrize("spacing", [0.3, 0.4, 0.625, 1.25, 3.33, 6.25])
def test_a_missing_slice_among_rounded_positions_is_refused(tmp_path, spacing, at):
    heights = [f"{-100 + spacing * i:.1f}" for i in range(20) if i != at]
    series(tmp_path, heights)
    refused(tmp_path, r"slices are missing \(about 1\)")


@pytest.mark.parametrize(
    "steps",
    [
        [5, 5, 6, 5, 5],
        [5, 5, 5.3, 5, 5],
        [0.625, 0.625, 0.8, 0.625, 0.625],
        [1, 1, 1, 1.2, 1, 1],
        [2.5, 2.5, 2.5, 5, 5, 5, 2.5],
    ],
)
def test_uneven_slices_are_refused(tmp_path, steps):
    series(tmp_path, np.concatenate([[0], np.cumsum(steps)]).tolist())
    refused(tmp_path, r"unevenly spaced|slices are missing")


def test_slices_that_nearly_coincide_are_refused(tmp_path):
    heights = [0, 2, 4, 4.03, 6, 8]
    series(tmp_path, heights)
    refused(tmp_path, "several slices at one position")


def test_rounded_positions_of_oblique_slices_are_fitted(tmp_path):
    turn = rotation([12, -7, 25])
    raw = raw_slices(12)
    for i, pixels in enumerate(raw):
        path = np.round(np.array([-10, 20, -300]) + 1.25 * i * turn[:, 2], 1)
        data = dicom_slice(pixels, path, orientation=[*turn[:, 0], *turn[:, 1]])
        save(data, tmp_path / f"{i}.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024)
    true = np.array([-10, 20, -300]) + 1.25 * np.arange(12)[:, None] * turn[:, 2]
    expected = volume.origin + np.arange(12)[:, None] * volume.world_from_index[:3, 2]
    assert np.linalg.norm(expected - true, axis=1).max() < 0.1


@pytest.mark.parametrize("jitter", [1e-6, 1e-4, 1e-3])
def test_jittered_orientations_are_averaged(tmp_path, jitter):
    heights = (-300 + 2.0 * np.arange(20)).tolist()
    values = series(tmp_path, heights, lambda i: [1, (-1) ** i * jitter, 0, 0, 1, (-1) ** i * -jitter])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, values)
    # The mean is upright, and the axes are at right angles.
    np.testing.assert_allclose(volume.direction, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(volume.origin, (-10, 20, -300), atol=1e-9)
    np.testing.assert_allclose(volume.spacing, (0.75, 0.5, 2), atol=1e-6)


def test_the_mean_of_random_orientations_is_a_rotation(tmp_path):
    draw = np.random.default_rng(0)
    turns = [rotation(np.degrees(draw.normal(0, 3e-4, 3))) for _ in range(20)]
    axes = [turn[:, :2].T.ravel().round(6).tolist() for turn in turns]
    series(tmp_path, (2.0 * np.arange(20)).tolist(), axes.__getitem__)
    direction = read_volume(tmp_path).direction
    np.testing.assert_allclose(direction, np.eye(3), atol=3e-4)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("turn", [5e-3, 0.02, 0.5])
def test_orientations_that_differ_are_refused(tmp_path, turn):
    heights = (2.0 * np.arange(20)).tolist()
    for name, turned in (("one", lambda i: i == 7), ("half", lambda i: i % 2 == 0)):
        series(
            tmp_path / name,
            heights,
            lambda i, turned=turned: (
                [np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0]
                if turned(i)
                else [1, 0, 0, 0, 1, 0]
            ),
        )
        refused(tmp_path / name, "differing orientation")


@pytest.mark.parametrize("kind", ["stacks", "times"])
def test_frames_of_several_stacks_or_times_are_refused(tmp_path, kind):
    raw = raw_slices(6)
    data = enhanced(raw, range(6))
    for i, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        height = -300 + 2.0 * (i % 3) if kind == "times" else -300 + 2.0 * (i % 3) + 500 * (i // 3)
        group.PlanePositionSequence[0].ImagePositionPatient = [-10, 20, height]
    save(data, tmp_path / "a.dcm")
    words = "frames 1 and 4 of a.dcm" if kind == "times" else "slices are missing"
    refused(tmp_path, words)
