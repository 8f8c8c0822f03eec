import math
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from patients import estimator, patient
from scipy.ndimage import binary_erosion

from bright import bright_model, dice, make_scene, stored_otherwise, world_center
from isopose.config import HomogenizeConfig
from isopose.data.body import body_mask
from isopose.data.resample import warped_labels
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.geometry.warp import invert
from isopose.homogenize.estimator import estimator_from_model, open_estimator
from isopose.homogenize.scan import box_of, homogenize_scan, solid_box_of
from isopose.homogenize.transform import Transform
from isopose.homogenize.warping import AIR_HU, restored_labels, restored_share
from isopose.models.info import ReferenceInfo

STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))
each_way = pytest.mark.parametrize("per", ["volume", "smooth", "slice"])


def scan_of(one, per="volume", size=256):
    return homogenize_scan(estimator(per, size), one.volume, one.volume.with_array(one.classes))


def back(scan, count=3):
    """Restore the labels of a homogenized scan to the scan's own grid."""
    t = scan.transform
    restored = warped_labels(scan.labels.array, invert(t.slice_from_grid), t.slice_shape, range(1, count))
    return t.reorientation.undo(restored)


@each_way
@pytest.mark.parametrize("degrees", [0, 30, -75, 180])
def test_a_rotated_patient_becomes_equal_to_the_upright_one(per, degrees) -> None:
    straight, turned = scan_of(patient(), per), scan_of(patient(1, degrees), per)
    off = (np.degrees(turned.poses.roll) - degrees + 180) % 360 - 180
    assert abs(off) < 4
    # One patient, so one homogenized anatomy: organs meet however the patient lay.
    for value in (1, 2):
        assert dice(straight.labels.array == value, turned.labels.array == value) > 0.9
    # The kidneys lie at the back, the tumor on its own side; x grows to the left, y to the back.
    assert world_center(turned.labels, turned.labels.array == 1)[1] > 0
    assert world_center(turned.labels, turned.labels.array == 2)[0] * patient().left > 10
    warned = any("rotated by" in warning for warning in turned.warnings)
    assert warned is (abs(degrees) > 60)


@each_way
@pytest.mark.parametrize("number", range(4))
def test_labels_are_restored(per, number) -> None:
    one = patient(number, 25.0)
    restored = back(scan_of(one, per, 384))
    for value in (1, 2):
        assert dice(restored == value, one.classes == value) > 0.995


def test_bodies_of_all_ages_have_one_size() -> None:
    for number in range(4):
        scan = scan_of(patient(number), "smooth")
        assert scan.image.spacing[:2] == pytest.approx(estimator().pixel_mm)
        body = scan.image.array > -250
        # The reference fills 0.92 of the frame from side to side.
        middle = body[:, :, 64:192].any(axis=1).all(axis=1)
        assert middle.all()
        assert (scan.poses.agreement > 0.95).all()


def test_the_frame_of_the_reference_is_that_of_a_child_of_two_years() -> None:
    assert estimator(size=384).pixel_mm == pytest.approx(0.474, abs=0.001)
    assert estimator(size=384).side_mm * 0.92 == pytest.approx(167.5, abs=1.0)


def test_the_grid_is_axis_aligned_centered_and_keeps_the_number_of_slices() -> None:
    one = patient()
    scan = scan_of(one)
    assert scan.image.array.dtype == np.int16
    assert scan.image.array.shape == scan.labels.array.shape == (6, 256, 256)
    assert scan.image.same_grid(scan.labels, 0.0)
    np.testing.assert_allclose(scan.image.direction, np.eye(3))
    middle = scan.image.world_from_index @ [127.5, 127.5, 0, 1]
    np.testing.assert_allclose(
        middle, [0.0, 0.0, one.volume.origin[2] * scan.transform.grid.z_scale, 1.0], atol=1e-9
    )


@each_way
def test_every_pixel_samples_the_position_that_the_transform_gives(per) -> None:
    """Sampling and blurring preserve a ramp, so its values give the sampled position of each pixel."""
    shape, spacing = (4, 110, 130), (2.3, 1.7, 5.0)
    z, y, x = np.indices(shape)
    mm_x, mm_y = x * spacing[0], y * spacing[1]
    body = ((mm_x - 160) / 110) ** 2 + ((mm_y - 90) / 75) ** 2 < 1
    ramp = 2.0 * mm_x - 1.5 * mm_y + 10.0 * z
    array = np.where(body, ramp, -1000.0).astype(np.float32)
    scan = homogenize_scan(estimator(per, 128), Volume(array, np.diag([*spacing, 1.0])))
    t = scan.transform
    inside = 0
    for k, pose in enumerate(t.poses):
        angle, log_x, log_y, shift_x, shift_y = pose
        # By hand, in float64: output pixel -> homogenized -> frame -> millimeters of the slice.
        line = ((np.arange(t.grid.size) + 0.5) / t.grid.size * 2 - 1) * t.grid.size / t.grid.usual
        u, v = np.meshgrid(line, line)
        u, v = math.exp(log_x) * u, math.exp(log_y) * v
        fx = math.cos(angle) * u - math.sin(angle) * v + shift_x
        fy = math.sin(angle) * u + math.cos(angle) * v + shift_y
        there_x = t.frame.center_mm[0] + fx * t.frame.fov_mm / 2
        there_y = t.frame.center_mm[1] + fy * t.frame.fov_mm / 2
        expected = 2.0 * there_x - 1.5 * there_y + 10.0 * k
        deep = ((there_x - 160) / 95) ** 2 + ((there_y - 90) / 60) ** 2 < 1
        # 2.5 HU are a millimeter; half a unit is rounding, and the cubic kernel bends a ramp a little.
        off = scan.image.array[k][deep] - expected[deep]
        assert np.abs(off).max() < 1.5
        assert abs(off.mean()) < 0.05
        inside += int(deep.sum())
    assert inside > 10_000


def test_it_is_sampled_once_and_from_the_native_slice(monkeypatch) -> None:
    from isopose.homogenize import warping as module

    seen = []
    warped = module.warped
    monkeypatch.setattr(module, "warped", lambda array, *a: seen.append(array.shape) or warped(array, *a))
    one = patient()
    scan_of(one)
    assert seen == [one.volume.array.shape]


@pytest.mark.parametrize(("axes", "flips"), STORAGES, ids=lambda v: "".join(str(int(i)) for i in v))
def test_every_storage_order_gives_the_same_scan_and_is_restored(axes, flips) -> None:
    one = patient(2, 20.0, 96, 3)
    expected = scan_of(one)
    stored = stored_otherwise(one.volume, axes, flips)
    classes = stored_otherwise(one.volume.with_array(one.classes), axes, flips)
    scan = homogenize_scan(estimator(), stored, classes)
    np.testing.assert_array_equal(scan.image.array, expected.image.array)
    np.testing.assert_array_equal(scan.labels.array, expected.labels.array)
    np.testing.assert_allclose(scan.image.world_from_index, expected.image.world_from_index, atol=1e-9)
    restored = back(scan)
    assert restored.shape == classes.array.shape
    for value in (1, 2):
        assert dice(restored == value, classes.array == value) > 0.99
    np.testing.assert_array_equal(scan.transform.native.world_from_index, stored.world_from_index)
    assert scan.transform.native.array.shape == stored.array.shape


def test_an_oblique_scan_is_axis_aligned_and_restored() -> None:
    one = patient(2, 0.0, 96, 3)
    a = math.radians(12)
    turn = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    matrix = one.volume.world_from_index.copy()
    matrix[:3, :3] = turn @ matrix[:3, :3]
    volume = Volume(one.volume.array, matrix)
    scan = homogenize_scan(estimator(), volume, volume.with_array(one.classes))
    np.testing.assert_allclose(scan.image.direction, np.eye(3))
    assert dice(back(scan) > 0, one.classes > 0) > 0.99
    np.testing.assert_array_equal(scan.transform.native.world_from_index, matrix)


@each_way
def test_a_slice_without_a_body_takes_the_pose_of_its_neighbors(per) -> None:
    one = patient(3, 40.0)
    array, classes = one.volume.array.copy(), one.classes.copy()
    array[[0, 5]] = -1000
    classes[[0, 5]] = 0
    classes[5, 60:70, 60:70] = 1
    scan = homogenize_scan(estimator(per), one.volume.with_array(array), one.volume.with_array(classes))
    poses = np.array(scan.transform.poses)
    assert np.isfinite(poses).all()
    assert scan.poses.has_body.tolist() == [False, True, True, True, True, False]
    common = np.median(poses[scan.poses.has_body], axis=0)
    np.testing.assert_allclose(poses[[0, 5]], [common, common], atol=0.05)
    assert (scan.image.array[[0, 5]] < -990).all()
    # A label there is neither lost nor moved.
    assert dice(back(scan)[5] == 1, classes[5] == 1) > 0.98


def test_padding_is_the_air_value_of_the_scan() -> None:
    one = patient()
    for padding, air in ((-3024, AIR_HU), (-1000, -1000)):
        array = np.maximum(one.volume.array, -1000)
        array[:, :3] = array[:, -3:] = array[:, :, :3] = array[:, :, -3:] = padding
        image = homogenize_scan(estimator(), one.volume.with_array(array)).image.array
        assert image.min() == air
        assert image.max() <= array.max()


def test_a_much_larger_slice_enlarges_the_grid() -> None:
    small, large = make_scene(scale=0.6, slices=7), make_scene(scale=1.0, slices=2)
    array = np.concatenate([small.volume.array, large.volume.array])
    classes = np.concatenate([small.truth, large.truth]) > 0
    # At the very edge of the large body, out of the reference's frame.
    body = array[-1] > -250
    edge = body & ~binary_erosion(body, iterations=2)
    classes[-1] |= edge
    volume = Volume(array, small.volume.world_from_index)
    scan = homogenize_scan(estimator("volume"), volume, volume.with_array(classes.astype(np.uint8)))
    grid = scan.transform.grid
    assert grid.size > grid.usual == 256
    assert (grid.size - grid.usual) % 2 == 0
    assert scan.labels.array.shape[1:] == (grid.size, grid.size)
    assert scan.image.spacing[0] == pytest.approx(estimator().pixel_mm)
    middle = scan.image.world_from_index @ [(grid.size - 1) / 2, (grid.size - 1) / 2, 0, 1]
    np.testing.assert_allclose(middle[:2], 0.0, atol=1e-9)
    assert dice(back(scan, 2)[-1] == 1, classes[-1]) > 0.9
    assert homogenize_scan(estimator("smooth"), volume).transform.grid.size < grid.size


def test_the_box_spans_the_outer_corners() -> None:
    mask = np.zeros((2, 10, 20), bool)
    mask[0, 4:6, 8:15] = True
    identity = torch.eye(3).expand(2, 3, 3)
    assert box_of(mask, identity) == pytest.approx([-0.2, -0.2, 0.5, 0.2])
    quarter = torch.tensor([[0.0, -1.0, 0.7], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).expand(2, 3, 3)
    assert box_of(mask, quarter) == pytest.approx([0.5, -0.2, 0.9, 0.5])
    assert box_of(np.zeros_like(mask), identity) is None


def cropping(**changes):
    """Return estimators of a model with an off-center crop, with and without applying the crop."""
    model = bright_model(
        {"pose": {"learned": False}, "crop": {"learned": False}, **changes},
        crop_start=(-0.55, -0.3, 0.25, 0.5),
    )
    model = replace(model, info=replace(model.info, reference=ReferenceInfo(area_cm2=226.2)))
    return [estimator_from_model(model, HomogenizeConfig(size=128, crop=crop)) for crop in (True, False)]


def test_a_crop_has_the_pixels_of_the_whole_scan() -> None:
    scene = make_scene(roll=math.radians(20), scale=0.8)
    crop, whole = (homogenize_scan(one, scene.volume) for one in cropping())
    grid = crop.transform.grid
    # Of 128 pixels those from -0.55 to 0.25 and from -0.3 to 0.5, to the outside: 52 and 52.
    assert (grid.size, grid.usual) == (52, 128)
    x, y = (round((part + 1) * 64 - 26) for part in grid.middle)
    assert (x, y) == (28, 44)
    difference = crop.image.array - whole.image.array[:, y : y + 52, x : x + 52].astype(int)
    assert np.abs(difference).max() <= 1
    # Each pixel is where it was in the whole.
    np.testing.assert_allclose(
        crop.image.world_from_index @ [0, 0, 0, 1], whole.image.world_from_index @ [x, y, 0, 1]
    )
    assert crop.image.spacing == pytest.approx(whole.image.spacing)


def test_labels_of_a_crop_are_restored_and_the_rest_is_background() -> None:
    scene = make_scene(roll=math.radians(-35), scale=0.9)
    marked = scene.volume.with_array((scene.truth > 0).astype(np.uint8))
    crop, whole = (homogenize_scan(one, scene.volume, marked) for one in cropping())
    assert crop.transform.grid.size < whole.transform.grid.size
    assert dice(back(crop, 2) == 1, scene.truth > 0) > 0.95
    assert dice(back(crop, 2), back(whole, 2)) > 0.99


def test_a_crop_grows_to_contain_all_labels() -> None:
    scene = make_scene(scale=0.8)
    everything = scene.volume.with_array((scene.volume.array > -250).astype(np.uint8))
    crop, whole = (homogenize_scan(one, scene.volume, everything) for one in cropping())
    assert crop.labels.array.sum() == whole.labels.array.sum()
    assert homogenize_scan(cropping()[0], scene.volume).transform.grid.size < crop.transform.grid.size


def test_a_crop_needs_a_model_that_crops() -> None:
    model = bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})
    with pytest.raises(InputError, match=r"the model has no crop \(crop.enabled=false\)"):
        estimator_from_model(model, HomogenizeConfig(crop=True))
    volumes = bright_model(
        {"dims": 3, "pose": {"learned": False, "per": "volume"}, "crop": {"per": "volume"}}
    )
    with pytest.raises(InputError, match="the model crops volumes"):
        estimator_from_model(volumes, HomogenizeConfig(crop=True))
    with pytest.raises(InputError, match="name the model"):
        open_estimator(None, HomogenizeConfig(crop=True))


def tilted(number=2, degrees=20.0, pitch=8.0, yaw=-5.0):
    return patient(number, degrees, slices=30, pitch=pitch, yaw=yaw)


@pytest.mark.parametrize(
    ("number", "angles"),
    [
        (1, (0.0, 0.0, 0.0)),
        (1, (-30.0, -6.0, 6.0)),
        (2, (20.0, 8.0, 0.0)),
        (3, (20.0, 8.0, 0.0)),
        (3, (-30.0, -6.0, 6.0)),
    ],
)
def test_a_tilted_patient_is_straightened_and_restored(number, angles) -> None:
    one = tilted(number, *angles)
    scan = scan_of(one, "tilted")
    result = np.degrees(scan.transform.tilted[:3])
    np.testing.assert_allclose(result, angles, atol=2.0)
    assert scan.image.same_grid(scan.labels, 0.0)
    assert scan.image.same_grid(scan.transform.homogenized)
    # In plane as small as the others' pixels, along z as the patient has become.
    scale = scan.image.spacing[0] / (estimator("tilted").pixel_mm)
    assert scale == pytest.approx(1.0)
    assert scan.image.spacing[2] == pytest.approx(
        one.volume.spacing[2]
        * estimator("tilted").side_mm
        / scan.transform.frame.fov_mm
        / math.exp(scan.transform.tilted[5])
    )
    restored = restored_labels(scan.labels, scan.transform)
    assert restored.same_grid(one.volume)
    for value in (1, 2):
        assert dice(restored.array == value, one.classes == value) > 0.97
    # Nothing of the body is cut, nor made up: it becomes as much larger or smaller as its pose says.
    body = one.volume.with_array(body_mask(one.volume, -250.0).astype(np.uint8))
    homogenized_labels = homogenize_scan(estimator("tilted"), one.volume, body).labels
    grown = (
        homogenized_labels.array.sum()
        * np.prod(homogenized_labels.spacing)
        / (body.array.sum() * np.prod(body.spacing))
    )
    side = estimator("tilted").side_mm / scan.transform.frame.fov_mm
    assert grown == pytest.approx(side**3 / math.exp(sum(scan.transform.tilted[3:6])), rel=0.03)


def higher_left(labels: Volume) -> float:
    """Return the height of the left kidney above the right in mm."""
    x = labels.world_from_index[0, 0] * np.arange(labels.array.shape[2]) + labels.world_from_index[0, 3]
    left, right = (world_center(labels, (labels.array == 1) & side)[2] for side in (x > 0, x < 0))
    return left - right


def test_organs_of_a_tilted_patient_lie_as_in_a_straight_one() -> None:
    """Eight degrees of yaw raise one kidney well above the other; straightening undoes that."""
    own = higher_left(scan_of(tilted(2, 0.0, 0.0, 0.0), "volume").labels)
    turned = tilted(2, 0.0, 0.0, 8.0)
    assert abs(higher_left(scan_of(turned, "volume").labels) - own) > 10
    righted = scan_of(turned, "tilted").labels
    assert higher_left(righted) == pytest.approx(own, abs=2.0)


@pytest.mark.parametrize("storage", STORAGES[::7])
def test_a_tilted_scan_is_restored_in_every_storage_order(storage) -> None:
    one = tilted()
    volume = stored_otherwise(one.volume, *storage)
    classes = stored_otherwise(one.volume.with_array(one.classes), *storage)
    scan = homogenize_scan(estimator("tilted"), volume, classes)
    kept = Transform.from_text(scan.transform.to_text())
    assert kept == scan.transform
    restored = restored_labels(scan.labels, kept)
    assert restored.same_grid(volume)
    assert dice(restored.array == 2, classes.array == 2) > 0.98
    share = restored_share(scan.labels.with_array((scan.labels.array == 2).astype(np.float32)), kept)
    back_share = kept.reorientation.undo(share)
    assert share.min() >= 0.0
    assert share.max() <= 1.0 + 1e-6
    assert dice(back_share > 0.5, classes.array == 2) > 0.98


def test_the_box_of_a_volume_spans_the_outer_corners() -> None:
    mask = np.zeros((4, 10, 20), bool)
    mask[1, 4:6, 8:15] = True
    assert solid_box_of(mask, torch.eye(4)) == pytest.approx([-0.2, -0.2, -0.5, 0.5, 0.2, 0.0])
    upwards = torch.eye(4)[[0, 2, 1, 3]]
    assert solid_box_of(mask, upwards) == pytest.approx([-0.2, -0.5, -0.2, 0.5, 0.0, 0.2])
    assert solid_box_of(np.zeros_like(mask), torch.eye(4)) is None


def test_the_tilt_of_a_short_scan_gives_a_warning() -> None:
    words = "too short to estimate pitch and yaw"
    assert not any(words in warning for warning in scan_of(tilted(), "tilted").warnings)
    whole = tilted().volume
    low = Volume(whole.array[12:17], whole.world_from_index)
    assert any(words in warning for warning in homogenize_scan(estimator("tilted"), low).warnings)
    assert not any(words in warning for warning in homogenize_scan(estimator("volume"), low).warnings)


def test_tilted_is_refused_with_settings_for_slices() -> None:
    joint = bright_model({"stn": "joint", "pose": {"per": "smooth"}})
    with pytest.raises(InputError, match="supports neither --crop nor a model with stn=joint"):
        estimator_from_model(joint, HomogenizeConfig(per="tilted"))
    plain = bright_model({"pose": {"learned": False}})
    with pytest.raises(InputError, match="supports neither --crop"):
        estimator_from_model(plain, HomogenizeConfig(per="tilted", crop=True))


def test_a_mirrored_scan_is_reported() -> None:
    one = patient(2, 0.0)
    mirrored = one.volume.with_array(np.ascontiguousarray(one.volume.array[:, :, ::-1]))
    logit = [homogenize_scan(estimator(), v).poses.mirrored.mean() for v in (one.volume, mirrored)]
    assert logit[1] > logit[0] + 1.0


def test_no_body_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no body found"):
        homogenize_scan(estimator(), make_scene(slices=1, empty=(0,)).volume)
    broken = patient().volume.array.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        homogenize_scan(estimator(), patient().volume.with_array(broken))


# With a model


def test_pose_and_reference_of_a_model_are_used() -> None:
    model = bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})
    area = math.pi * 100.0 * 72.0 / 100.0  # of the reference, cm²
    model = replace(model, info=replace(model.info, reference=ReferenceInfo(area_cm2=area)))
    ours = estimator_from_model(model, HomogenizeConfig(per="volume", size=128))
    # The reference's body lies in a frame of 230 mm.
    assert ours.side_mm == pytest.approx(230.0, rel=0.01)
    assert ours.origin == "model"
    assert (ours.per, model.pipeline.pose.config.per) == ("volume", "slice")
    assert ours.transformer is model.pipeline.pose
    scene = make_scene(roll=math.radians(20), scale=0.8)
    scan = homogenize_scan(ours, scene.volume, scene.volume.with_array((scene.truth > 0).astype(np.uint8)))
    assert math.degrees(scan.poses.roll) == pytest.approx(20, abs=2)
    upright = make_scene(spacing=(230 / 128, 230 / 128, 6.0), field=(230.0, 230.0))
    assert dice(scan.labels.array == 1, upright.truth > 0) > 0.93
    assert dice(back(scan, 2) == 1, scene.truth > 0) > 0.95


@each_way
def test_the_step_of_a_joint_model_is_used(per) -> None:
    joint = bright_model({"stn": "joint", "pose": {"per": "smooth"}})
    step = (0.02, 0.03, -0.02, 0.01, 0.02)
    joint.pipeline.joint.output.bias.copy_(torch.tensor([*step, 0.15, 0.2, -0.1, -0.05]))
    alone = bright_model({"pose": {"learned": False}})
    scene = make_scene(roll=math.radians(12), scale=0.9)
    info = replace(alone.info, reference=ReferenceInfo(area_cm2=226.2))
    start, followed = (
        homogenize_scan(
            estimator_from_model(replace(model, info=info), HomogenizeConfig(per=per, size=64)), scene.volume
        )
        for model in (alone, joint)
    )
    np.testing.assert_allclose(followed.poses.pose[:, :3], start.poses.pose[:, :3] + step[:3], atol=1e-3)
    assert followed.warnings == ()
    assert (joint.config.pose.per, joint.pipeline.config.pose.per) == ("smooth", "smooth")


def test_a_model_without_poses_is_refused() -> None:
    model = bright_model({"pose": {"start": "identity", "learned": False}, "crop": {"enabled": False}})
    with pytest.raises(InputError, match="does not estimate poses"):
        estimator_from_model(model, HomogenizeConfig())
    with pytest.raises(InputError, match="how large its reference is"):
        estimator_from_model(bright_model(), HomogenizeConfig())


def test_settings_that_change_a_case_change_the_hash() -> None:
    hashes = {estimator(per).sha256 for per in ("volume", "smooth", "slice")}
    assert len(hashes) == 3
