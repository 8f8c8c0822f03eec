"""Scaling along z: the slice distance in the header is scaled by the factor in plane."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patients import estimator, patient

from bright import dice, make_scene, stored_otherwise, world_center
from isopose.config import HomogenizeConfig
from isopose.files import hash_of, write_json
from isopose.geometry.volume import Volume
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.estimator import shipped_estimator
from isopose.homogenize.record import read_record, record_path
from isopose.homogenize.restore import restore
from isopose.homogenize.scan import homogenize_scan
from isopose.homogenize.transform import Transform
from isopose.homogenize.warping import homogenized_labels, restored_labels, restored_share
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.progress import Silent

OLD = Path(__file__).parents[1] / "old" / "record.json"
flat_ways = pytest.mark.parametrize("per", ["volume", "smooth", "slice"])


def both(one, per="volume", size=128):
    """Homogenize a patient with and without scaling of the slice distance."""
    return [
        homogenize_scan(
            shipped_estimator(HomogenizeConfig(per=per, size=size, scale_z=scale_z)),
            one.volume,
            one.volume.with_array(one.classes),
        )
        for scale_z in (True, False)
    ]


@flat_ways
def test_z_spacing_is_scaled_by_the_factor_in_plane_without_resampling(per) -> None:
    one = patient(3, 20.0)
    scaled, flat = both(one, per)
    t = scaled.transform
    # By hand: homogenized mm of a mm of each slice, along its own x and y.
    per_slice = [
        [estimator(per, 128).side_mm / (t.frame.fov_mm * math.exp(log_scale)) for log_scale in pose[1:3]]
        for pose in t.poses
    ]
    factor = float(np.median([math.sqrt(x * y) for x, y in per_slice]))
    assert abs(math.log(factor)) > 0.1, "a patient of the reference's size would show nothing"
    assert scaled.image.spacing[2] == pytest.approx(one.volume.spacing[2] * factor, rel=1e-6)
    np.testing.assert_array_equal(scaled.image.array, flat.image.array)
    np.testing.assert_array_equal(scaled.labels.array, flat.labels.array)
    np.testing.assert_array_equal(
        restored_labels(scaled.labels, t).array, restored_labels(flat.labels, flat.transform).array
    )


@flat_ways
def test_without_z_scaling_the_spacing_is_kept(per) -> None:
    one = patient(3, 20.0)
    flat = both(one, per)[1]
    grid = flat.transform.grid
    expected = np.diag([grid.pixel_mm, grid.pixel_mm, one.volume.spacing[2], 1.0])
    expected[:3, 3] = (*[0.5 * (1 - grid.size) * grid.pixel_mm] * 2, one.volume.origin[2])
    assert grid.size == grid.usual
    np.testing.assert_array_equal(flat.image.world_from_index, expected)
    assert grid.z_scale == 1.0


@pytest.mark.parametrize(
    ("axes", "flips"), [((0, 1, 2), (False, False, True)), ((2, 0, 1), (True, False, False))]
)
def test_positions_survive_a_round_trip_with_z_scaling(axes, flips) -> None:
    """In every storage order, z positions are multiplied by one factor about one origin."""
    one = patient(3, 20.0, 96, 5)
    stored = stored_otherwise(one.volume, axes, flips)
    marked = np.zeros(one.volume.array.shape, np.uint8)
    for z in (1, 4):
        marked[z, 40:56, 40:56] = z
    labels = stored_otherwise(one.volume.with_array(marked), axes, flips)
    scan = homogenize_scan(estimator(), stored, labels)
    factor = scan.transform.grid.z_scale
    for z in (1, 4):
        scaled_z, actual_z = (world_center(seen, seen.array == z)[2] for seen in (scan.labels, labels))
        assert scaled_z == pytest.approx(factor * actual_z, abs=1e-6)
    back = restored_labels(scan.labels, scan.transform)
    assert back.same_grid(stored, 0.0)
    for z in (1, 4):
        assert dice(back.array == z, labels.array == z) > 0.98
        np.testing.assert_allclose(
            world_center(back, back.array == z), world_center(labels, labels.array == z), atol=0.3
        )


@settings(deadline=None, max_examples=10)
@given(z_scale=st.floats(0.2, 5.0), first_mm=st.floats(-2e3, 2e3), seed=st.integers(0, 99))
def test_restored_labels_do_not_depend_on_z_scaling(z_scale, first_mm, seed) -> None:
    old = read_record(OLD).transform
    grid = replace(old.grid, z_scale=z_scale, first_mm=first_mm)
    new = Transform.from_text(replace(old, grid=grid).to_text())
    assert new.grid == grid
    array = np.zeros(old.native.array.shape, np.uint8)
    rng = np.random.default_rng(seed)
    y, x = (int(rng.integers(4, side // 2)) for side in array.shape[1:])
    array[:, y : y + side_of(array, 1), x : x + side_of(array, 2)] = rng.integers(1, 4)
    before, after = (homogenized_labels(old.native.with_array(array), t) for t in (old, new))
    np.testing.assert_array_equal(before.array, after.array)
    assert after.spacing[2] == pytest.approx(before.spacing[2] * z_scale)
    assert after.origin[2] == pytest.approx(first_mm * z_scale)
    back = restored_labels(after, new)
    assert back.same_grid(old.native, 0.0)
    np.testing.assert_array_equal(back.array, restored_labels(before, old).array)
    share = after.with_array(after.array.astype(np.float32) / 4)
    np.testing.assert_array_equal(
        restored_share(share, new), restored_share(before.with_array(share.array), old)
    )


def side_of(array, axis):
    return max(2, array.shape[axis] // 4)


def test_records_without_z_scaling_are_restored(tmp_path) -> None:
    """Former records and descriptions have no entries for z scaling and reference."""
    one = patient(3, 20.0)
    source = one.volume.with_array(one.stored)
    write_image(one.volume, tmp_path / "in" / "a.nii.gz")
    folder = tmp_path / "out"
    homogenize(
        open_input(tmp_path / "in"), folder, HomogenizeConfig(size=128, scale_z=False), reporter=Silent()
    )
    path = record_path(folder, "a")
    values, head = (json.loads(file.read_text()) for file in (path, folder / "homogenize.json"))
    for what in (values, head):
        what["format"] = 2
    del values["reference"], values["sha256"], values["transform"]["grid"]["z_scale"], head["scale_z"]
    write_json(path, {**values, "sha256": hash_of(values)})
    write_json(folder / "homogenize.json", head)
    record = read_record(path)
    assert (record.format, record.reference, record.transform.grid.z_scale) == (2, None, 1.0)
    image = read_volume(folder / "imagesTs" / "a_0000.nii.gz")
    assert image.spacing[2] == pytest.approx(one.volume.spacing[2])
    write_labels(homogenized_labels(source, record.transform), tmp_path / "answers" / "a.nii.gz")
    [outcome] = restore(tmp_path / "answers", folder, tmp_path / "back", keep_values=True, reporter=Silent())
    assert outcome.problem is None
    back = read_labels(tmp_path / "back" / "a.nii.gz")
    assert back.same_grid(source)
    assert dice(back.array == 1, source.array == 1) > 0.99


def test_without_an_outline_size_is_kept_along_z_too() -> None:
    """A square of soft tissue up to the edges of the field of view."""
    scene = make_scene(slices=5)
    middle = scene.volume.array.shape[1] // 2
    cut = slice(middle - 16, middle + 16)
    array = np.ascontiguousarray(scene.volume.array[:, cut, cut])
    result = homogenize_scan(estimator(), Volume(array, scene.volume.world_from_index))
    assert any("no outline" in line for line in result.warnings), result.warnings
    assert result.transform.grid.z_scale == pytest.approx(1.0, abs=1e-5)


def test_tilted_scans_keep_their_length_without_z_scaling() -> None:
    one = patient(2, 20.0, slices=12, pitch=8.0, yaw=-5.0)
    scaled, flat = both(one, "tilted")
    assert scaled.image.spacing[2] / one.volume.spacing[2] == pytest.approx(
        math.sqrt(
            math.prod(
                estimator("tilted").side_mm / scaled.transform.frame.fov_mm / math.exp(log_scale)
                for log_scale in scaled.transform.tilted[3:5]
            )
        ),
        rel=1e-5,
    )
    assert flat.image.spacing[2] == pytest.approx(one.volume.spacing[2], rel=1e-6)
    assert {scan.transform.grid.z_scale for scan in (scaled, flat)} == {1.0}
    back = restored_labels(flat.labels, flat.transform)
    for value in (1, 2):
        assert dice(back.array == value, one.classes == value) > 0.97
