import math
import weakref
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bright import (
    BODY,
    FOV,
    SIDED,
    Brightness,
    Scene,
    bright_model,
    dice,
    ellipse,
    make_scene,
    stored_otherwise,
    world_center,
)
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.inference.predict import predict
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.models.pose import POSE_SOURCES

STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))
LEARNED, MOMENTS, IDENTITY = (POSE_SOURCES.index(name) for name in ("learned", "moments", "identity"))
#: Poses from moments alone: what is found then follows from the geometry, not from weights.
PLAIN = {"pose": {"learned": False}, "crop": {"enabled": False}}


@pytest.fixture(scope="module")
def model():
    return bright_model(PLAIN)


@pytest.fixture(scope="module")
def supine():
    return make_scene()


@pytest.fixture(scope="module")
def expected(model, supine):
    return predict(model, supine.volume).labels


def assert_finds(labels: Volume, truth: np.ndarray, least: float = 0.9) -> None:
    assert set(np.unique(labels.array)) <= {0, 1, 7}
    assert dice(labels.array > 0, truth > 0) > least
    assert dice(labels.array == 7, truth == 7) > least - 0.1


def bend_pose(model, log_scale: float) -> None:
    """Make the learned pose's residual wrong on every slice."""
    model.pipeline.pose.localization.output.bias.copy_(torch.tensor([0.0, log_scale, log_scale, 0.0, 0.0]))


def test_the_mass_is_segmented_on_its_side(supine, expected) -> None:
    assert_finds(expected, supine.truth)
    center = world_center(expected, expected.array > 0)
    true_center = world_center(supine.volume, supine.truth > 0)
    assert np.linalg.norm(center - true_center) < 0.5
    # LPS: the patient's left is +x, the front -y.
    assert center[0] > supine.middle[0] + 30
    assert world_center(expected, expected.array == 7)[1] > center[1]


@pytest.mark.parametrize(("axes", "flips"), STORAGES, ids=lambda v: "".join(str(int(i)) for i in v))
def test_every_storage_order_gives_the_same_labels_in_world_space(
    axes, flips, model, supine, expected, tmp_path
) -> None:
    scan = stored_otherwise(supine.volume, axes, flips)
    result = predict(model, scan).labels
    np.testing.assert_array_equal(result.array, stored_otherwise(expected, axes, flips).array)
    np.testing.assert_array_equal(result.world_from_index, scan.world_from_index)
    assert (
        np.linalg.norm(world_center(result, result.array > 0) - world_center(supine.volume, supine.truth > 0))
        < 0.5
    )

    write_image(scan, tmp_path / "scan.nii.gz")
    write_labels(result, tmp_path / "labels.nii.gz")
    image, labels = read_volume(tmp_path / "scan.nii.gz"), read_labels(tmp_path / "labels.nii.gz")
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, result.array)
    for name in ("spacing", "origin", "direction"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(image, name))
        np.testing.assert_allclose(getattr(labels, name), getattr(scan, name), rtol=1e-6, atol=1e-4)


def test_memory_mapped_arrays_give_the_same_result(model, supine, tmp_path, monkeypatch) -> None:
    write_image(stored_otherwise(supine.volume, (2, 0, 1), (True, False, True)), tmp_path / "scan.nii.gz")
    whole = predict(model, read_volume(tmp_path / "scan.nii.gz"), probabilities=True)
    monkeypatch.setattr("isopose.scratch.MEMORY_MAP_BYTES", 1)
    read = read_volume(tmp_path / "scan.nii.gz")
    result = predict(model, read, probabilities=True)
    for array in (read.array, result.labels.array, result.probabilities, result.prepared.image):
        while isinstance(array.base, np.ndarray):
            array = array.base
        assert isinstance(array, np.memmap)
    np.testing.assert_array_equal(result.labels.array, whole.labels.array)
    np.testing.assert_array_equal(result.probabilities, whole.probabilities)
    write_labels(result.labels, tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz").array, whole.labels.array)


def test_an_oblique_scan_keeps_its_own_axes(model, supine, expected) -> None:
    a, b = math.radians(14), math.radians(-9)
    turn = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1.0]])
    turn = turn @ np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    matrix = supine.volume.world_from_index.copy()
    matrix[:3, :3] = turn @ matrix[:3, :3]
    for axes, flips in (((0, 1, 2), (False, False, False)), ((2, 0, 1), (True, False, True))):
        scan = stored_otherwise(Volume(supine.volume.array, matrix), axes, flips)
        result = predict(model, scan).labels
        np.testing.assert_array_equal(result.array, stored_otherwise(expected, axes, flips).array)
        np.testing.assert_array_equal(result.world_from_index, scan.world_from_index)


@pytest.mark.parametrize("degrees", [-50, -20, 10, 35, 180, 165])
def test_labels_follow_a_rolled_patient(degrees, model) -> None:
    turned = make_scene(roll=math.radians(degrees), field=(250.0, 230.0))
    result = predict(model, turned.volume)
    assert_finds(result.labels, turned.truth)
    center = world_center(result.labels, result.labels.array > 0)
    assert np.linalg.norm(center - world_center(turned.volume, turned.truth > 0)) < 1.0
    if abs(degrees) == 180:
        # Prone in the header's own frame: the mass lies at the right of the world, and stays there.
        assert center[0] < turned.middle[0] - 30
    # An outline is the same after half a turn, so the angle is known up to that.
    angles = np.degrees(result.scan_pose.pose[:, 0])
    assert np.abs((angles - degrees + 90) % 180 - 90).max() < 3
    assert (result.scan_pose.source == MOMENTS).all()


@settings(max_examples=12, deadline=None)
@given(
    roll=st.floats(-0.7, 0.7),
    scale=st.floats(0.45, 1.0),
    x=st.floats(-12, 12),
    y=st.floats(-12, 12),
    sx=st.floats(1.2, 2.6),
    sy=st.floats(1.2, 2.6),
)
def test_patients_of_any_size_position_and_spacing(model, roll, scale, x, y, sx, sy) -> None:
    any_scene = make_scene(
        roll=roll, scale=scale, center=(x, y), spacing=(sx, sy, 3.0), slices=2, field=(250.0, 235.0)
    )
    result = predict(model, any_scene.volume)
    assert dice(result.labels.array > 0, any_scene.truth > 0) > 0.88
    radius = np.exp(result.scan_pose.pose[:, 1:3]).mean()
    assert radius == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize("slices", [1, 2])
def test_scans_of_few_slices(slices, model) -> None:
    few = make_scene(slices=slices)
    result = predict(model, few.volume)
    assert result.labels.array.shape[0] == slices
    assert_finds(result.labels, few.truth)


def test_a_body_cut_by_the_field_of_view(model) -> None:
    cut = make_scene(center=(55.0, 10.0))
    assert cut.volume.array[:, :, -1].max() > 0, "the body should reach the image's edge"
    result = predict(model, cut.volume)
    assert_finds(result.labels, cut.truth)


def test_a_body_larger_than_the_frame_gets_a_larger_one_and_a_warning() -> None:
    model = bright_model(PLAIN, fov_mm=150.0)
    large = make_scene()
    result = predict(model, large.volume)
    assert result.prepared.frame.fov_mm > 2 * BODY[0]
    assert any("frame was made" in warning for warning in result.warnings)
    assert_finds(result.labels, large.truth)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop": {"learned": False, "per": "slice"}},
        {"crop": {"learned": False, "per": "volume"}},
        {"pose": {"learned": False, "start": "identity"}, "crop": {"enabled": False}},
        {"pose": {"learned": False, "scales": 1}},
        {"pose": {"start": "identity"}, "unet": {"input": "half"}},
        {"predict": {"batch_size": 5}},
        {"data": {"size": 192}, "unet": {"input": "half"}},
    ],
    ids=str,
)
def test_every_pipeline_configuration_segments_the_mass(changes) -> None:
    box = (0.0, -0.5, 0.75, 0.4) if changes.get("crop", {}).get("learned") is False else None
    model = bright_model(changes, crop_start=box)
    scene = make_scene(roll=math.radians(7))
    result = predict(model, scene.volume)
    assert_finds(result.labels, scene.truth, 0.88)
    scale = result.scan_pose.theta2[:, 0, 0]
    np.testing.assert_allclose(scale, 0.45 if box else 1.0, atol=1e-5)
    assert not result.scan_pose.widened.any()
    assert result.warnings == ()
    if model.config.pose.start == "moments":
        assert np.abs(np.degrees(result.scan_pose.pose[:, 0]) - 7).max() < 2
    else:
        assert (result.scan_pose.pose == 0).all()


def test_slices_without_a_body_are_background(model) -> None:
    gap = make_scene(slices=7, empty=(0, 1, 6))
    result = predict(model, gap.volume, probabilities=True)
    np.testing.assert_array_equal(result.scan_pose.source, [-1, -1, *[MOMENTS] * 4, -1])
    assert np.isnan(result.scan_pose.pose[[0, 1, 6]]).all()
    assert not result.labels.array[[0, 1, 6]].any()
    assert result.labels.array[2:6].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(result.probabilities[0, [0, 1, 6]], 1.0)


@pytest.mark.parametrize("box", [None, (0.0, -0.5, 0.75, 0.4)], ids=["whole", "crop"])
def test_labels_are_the_argmax_of_the_probabilities(box, tmp_path) -> None:
    model = bright_model({"pose": {"learned": False}, "crop": {"learned": False}}, crop_start=box)
    scan = stored_otherwise(make_scene(roll=0.2, slices=3).volume, (1, 2, 0), (True, False, False))
    result = predict(model, scan, probabilities=True)
    values = result.probabilities
    assert values.shape == (3, *scan.array.shape)
    assert values.dtype == np.float32
    assert values.min() >= 0.0
    np.testing.assert_allclose(values.sum(axis=0), 1.0, atol=1e-5)
    np.testing.assert_array_equal(np.array([0, 1, 7])[values.argmax(axis=0)], result.labels.array)
    # Not only zeros and ones: what is kept was interpolated.
    assert ((values[1] > 0.2) & (values[1] < 0.8)).any()
    np.testing.assert_array_equal(predict(model, scan).labels.array, result.labels.array)


def test_no_body_is_an_input_error(model) -> None:
    air = Volume(np.full((3, 40, 40), -1000, np.int16), np.diag([3.0, 3.0, 5.0, 1.0]))
    with pytest.raises(InputError, match="no body found"):
        predict(model, air)


def test_labels_do_not_depend_on_the_batch() -> None:
    scene = make_scene(slices=7, roll=0.15)
    results = []
    for size in (1, 3, 16):
        calls = []
        result = predict(
            bright_model({"predict": {"batch_size": size}}),
            scene.volume,
            progress=lambda done, total, calls=calls: calls.append((done, total)),
        )
        results.append(result.labels.array)
        assert calls == [(min(n + size, 7), 7) for n in range(0, 7, size)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_memory_of_a_batch_is_freed_before_the_next_but_one() -> None:
    model = bright_model({**PLAIN, "predict": {"batch_size": 2}})
    alive: list[weakref.ref] = []
    counts, sizes = [], []
    network = model.pipeline.unet

    def watch(module, inputs, output) -> None:
        counts.append(sum(ref() is not None for ref in alive))
        sizes.append(len(inputs[0]))
        alive.extend((weakref.ref(inputs[0]), weakref.ref(output[0])))

    network.register_forward_hook(watch)
    predict(model, make_scene(slices=12).volume)
    assert sizes == [2] * 6
    # Of earlier batches nothing is kept: not their crops, and not their logits.
    assert max(counts) == 0


def test_a_normal_scan_gives_no_warning() -> None:
    scene = make_scene(roll=math.radians(-8))
    result = predict(bright_model(), scene.volume)
    assert result.warnings == ()
    assert (result.scan_pose.source == LEARNED).all()
    assert result.scan_pose.agreement.min() > 0.95


def test_a_bad_learned_pose_falls_back_to_moments() -> None:
    model = bright_model()
    bend_pose(model, 0.6)
    scene = make_scene(roll=math.radians(12))
    result = predict(model, scene.volume)
    assert (result.scan_pose.source == MOMENTS).all()
    assert result.warnings == ("pose fell back to moments in 6 of 6 slices",)
    assert_finds(result.labels, scene.truth)


def test_a_bad_learned_pose_falls_back_to_the_identity_where_no_moments_are_used() -> None:
    model = bright_model({"pose": {"start": "identity"}})
    bend_pose(model, 0.6)
    scene = make_scene()
    result = predict(model, scene.volume)
    assert (result.scan_pose.source == IDENTITY).all()
    assert (result.scan_pose.pose == 0).all()
    assert result.warnings == ("pose fell back to identity in 6 of 6 slices",)
    assert_finds(result.labels, scene.truth)


@pytest.mark.parametrize("per", ["slice", "smooth", "volume"])
def test_the_joint_network_gives_pose_and_crop(per) -> None:
    """With fixed outputs (a step from the moments and a box), the pose has the step and the crop the box."""
    model = bright_model({"stn": "joint", "pose": {"per": per}, "crop": {"per": "volume"}})
    step = (0.02, 0.03, -0.02, 0.01, 0.02)
    model.pipeline.joint.output.bias.copy_(torch.tensor([*step, 0.15, 0.2, -0.1, -0.05]))
    scene = make_scene(roll=math.radians(12), scale=0.9)
    result = predict(model, scene.volume)
    assert (result.scan_pose.source == LEARNED).all()
    assert result.warnings == ()
    alone = predict(bright_model({"pose": {"learned": False, "per": per}}), scene.volume).scan_pose.pose
    np.testing.assert_allclose(result.scan_pose.pose[:, :3], alone[:, :3] + step[:3], atol=1e-3)
    # Five eighths by three quarters of the frame, so a square of seven eighths around the box's middle.
    np.testing.assert_allclose(result.scan_pose.theta2[:, 0, 0], 0.875, atol=2e-3)
    np.testing.assert_allclose(result.scan_pose.theta2[:, :2, 2], [[0.025, 0.075]] * 6, atol=3e-3)
    agreement = model.pipeline.pose.agreement(
        torch.from_numpy(result.prepared.mask[:, None]).float(), torch.from_numpy(result.scan_pose.pose)
    )
    np.testing.assert_allclose(result.scan_pose.agreement, agreement, atol=1e-5)
    np.testing.assert_array_equal(result.scan_pose.confidence, result.scan_pose.agreement)
    assert_finds(result.labels, scene.truth)


def test_a_bad_joint_step_falls_back_to_its_start() -> None:
    model = bright_model({"stn": "joint"})
    model.pipeline.joint.output.bias.copy_(torch.tensor([0.0, 0.6, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    scene = make_scene(roll=math.radians(12))
    result = predict(model, scene.volume)
    assert (result.scan_pose.source == MOMENTS).all()
    assert result.warnings == ("pose fell back to moments in 6 of 6 slices",)
    assert_finds(result.labels, scene.truth)


def test_an_outline_unlike_the_reference_has_low_agreement_and_is_predicted() -> None:
    # A ring that no pose of a filled body agrees with.
    ring = ellipse(64, (0.9, 0.9)) - ellipse(64, (0.8, 0.8))
    model = bright_model(PLAIN, reference=ring)
    scene = make_scene()
    result = predict(model, scene.volume)
    assert "low agreement in 6 of 6 slices: the outline does not match the reference" in result.warnings
    assert result.scan_pose.agreement.max() < 0.8
    assert dice(result.labels.array > 0, scene.truth > 0) > 0.85
    without = bright_model({"pose": {"learned": False, "start": "identity"}}, reference=ring)
    assert predict(without, scene.volume).warnings == (), "a pose that is not estimated cannot be doubted"


@pytest.mark.parametrize("per", ["slice", "volume"])
def test_a_crop_that_cuts_the_mass_is_widened(per) -> None:
    changes = {"pose": {"learned": False}, "crop": {"learned": False, "per": per}}
    # The mass reaches from 20 to 70 mm left of the middle, the crop ends at 52 mm.
    box = (-0.45, -0.45, 0.45, 0.45)
    assert 51 < box[2] * FOV / 2 < 52
    model = bright_model(changes, crop_start=box)
    scene = make_scene()
    result = predict(model, scene.volume)
    assert result.scan_pose.widened.all()
    assert not result.scan_pose.cut_off.any()
    # 0.45 times 1.1 to the fourth is the first to hold the mass: the network is shown no larger a view.
    assert result.scan_pose.theta2[:, 0, 0] == pytest.approx(np.full(6, 0.45 * 1.1**4), rel=1e-5)
    assert result.warnings == ("the crop cut a structure and was widened in 6 of 6 slices",)
    assert_finds(result.labels, scene.truth)


def test_a_crop_is_widened_at_most_to_the_whole_frame() -> None:
    changes = {"pose": {"learned": False}, "crop": {"learned": False}}
    model = bright_model(changes, crop_start=(-0.6, -0.45, 0.3, 0.45))
    # All within the frame is marked, so that every crop but the whole frame cuts.
    model.pipeline.unet.levels = [-100.0, 100.0]  # type: ignore[assignment]
    result = predict(model, make_scene().volume)
    np.testing.assert_array_equal(result.scan_pose.theta2, np.eye(3)[None].repeat(6, 0))
    assert result.scan_pose.widened.all()


def test_a_mass_that_a_wider_crop_does_not_show_is_reported_as_cut() -> None:
    changes = {"pose": {"learned": False}, "crop": {"learned": False}}
    model = bright_model(
        changes,
        crop_start=(-0.45, -0.45, 0.45, 0.45),
        # Blind to everything in a picture with air in its corner, as a wider crop has.
        blind=lambda image: image[:, 0, 0, 0] < -1.5,
    )
    scene = make_scene()
    result = predict(model, scene.volume)
    assert result.scan_pose.cut_off.all()
    assert not result.scan_pose.widened.any()
    assert result.warnings == ("a structure may be cut off by the crop in 6 of 6 slices",)
    actual = result.labels.array > 0
    # What lies within the crop is kept, and nothing beyond its edge is made up.
    x = np.arange(actual.shape[2]) * 2.1 + scene.volume.origin[0] - scene.middle[0]
    inside = (x < 48)[None, None]
    assert dice(actual & inside, (scene.truth > 0) & inside) > 0.9
    assert not (actual & (x > 57)[None, None]).any()


@pytest.mark.parametrize("name", ["dicom-series", "abdomen.nii.gz"])
def test_a_real_scan_gets_labels_on_its_exact_grid(name, real_ct, tmp_path) -> None:
    import SimpleITK as sitk

    scan = read_volume(real_ct / name)
    model = bright_model({"data": {"size": 64}, "unet": {"input": "full"}}, fov_mm=420.0)
    result = predict(model, scan)
    write_labels(result.labels, tmp_path / "labels.nii.gz")
    labels = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    if name.endswith(".gz"):
        image = sitk.ReadImage(str(real_ct / name))
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(real_ct / name)))
        image = reader.Execute()
    assert labels.GetSize() == image.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(labels, get)(), getattr(image, get)(), rtol=1e-5, atol=1e-4)
    # What is marked is bright, and lies in the body: bone and vessels.
    marked = sitk.GetArrayFromImage(image)[sitk.GetArrayFromImage(labels) > 0]
    assert marked.size > 100
    assert np.median(marked) > 120


def test_values_unlike_hounsfield_units_give_a_warning(model, supine) -> None:
    volume = supine.volume
    # Noise, for air that is all one value is distinguished from HU by itself and refused.
    noise = np.random.default_rng(0).integers(0, 40, volume.array.shape)
    for array, words in (
        (volume.array + 1024 + noise, "the HU offset (often -1024) seems to be missing"),
        ((volume.array + noise).astype(np.float32) / 1000.0, "neither windowed nor normalized"),
    ):
        warnings = predict(model, volume.with_array(array)).warnings
        assert words in warnings[0], warnings
    meters = Volume(volume.array, volume.world_from_index @ np.diag([10.0, 10.0, 10.0, 1.0]))
    assert "fit into no scanner" in predict(model, meters).warnings[0]


def test_labels_outside_the_body_are_reported(model) -> None:
    """A bright rod beside the patient is marked, by a network that marks what is bright."""
    scene = make_scene(field=(330.0, 205.0), center=(-40.0, 0.0))
    assert not any("outside the body" in line for line in predict(model, scene.volume).warnings)
    array = scene.volume.array.copy()
    array[:, 10:18, 101:112] = 250
    result = predict(model, scene.volume.with_array(array))
    rod = result.labels.array[:, 10:18, 101:112]
    assert rod.any(), "the rod must be in view for the test to mean anything"
    share = (rod > 0).sum() / (result.labels.array > 0).sum()
    warning = next(line for line in result.warnings if "outside the body" in line)
    assert float(warning.split()[0]) == pytest.approx(100.0 * share, abs=3.0)


#: Poses from moments alone, answers averaged with those of the mirrored crop.
AVERAGED = {**PLAIN, "predict": {"mirror": True}}


def in_a_mirror(scan: Scene) -> Scene:
    """Mirror the contents about the middle of the grid, which stays the same."""
    array, truth = scan.volume.array[:, :, ::-1].copy(), scan.truth[:, :, ::-1].copy()
    return Scene(scan.volume.with_array(array), truth, scan.middle)


@settings(max_examples=12, deadline=None)
@given(
    roll=st.floats(-0.6, 0.6),
    scale=st.floats(0.6, 1.0),
    x=st.floats(-10, 10),
    other=st.booleans(),
    averaged=st.booleans(),
)
def test_mirror_averaging_keeps_left_and_right(roll, scale, x, other, averaged) -> None:
    """A mass on the left or right gets that side's label, with and without averaging."""
    scene = make_scene(roll=roll, scale=scale, center=(x, 4.0), slices=2, field=(250.0, 235.0))
    scene = in_a_mirror(scene) if other else scene
    result = predict(bright_model(AVERAGED if averaged else PLAIN, sided=True), scene.volume).labels
    name, value = ("right kidney", 9) if other else ("left kidney", 2)
    assert set(np.unique(result.array)) == {0, SIDED.values["tumor"], value}, name
    assert SIDED.values[name] == value
    assert dice(result.array == value, scene.truth == 1) > 0.85
    assert dice(result.array == 5, scene.truth == 7) > 0.75
    center = world_center(result, result.array > 0)
    assert np.linalg.norm(center - world_center(scene.volume, scene.truth > 0)) < 1.0


@pytest.mark.parametrize("half", ["left", "right"])
def test_mirror_averaging_flips_the_mirrored_prediction_back(half) -> None:
    """A network that sees only one half of its input sees the mass either plain or mirrored."""
    scene = make_scene(slices=2)
    whole = predict(bright_model(PLAIN, sided=True), scene.volume, probabilities=True).probabilities
    plain = predict(
        bright_model(PLAIN, sided=True, half=half), scene.volume, probabilities=True
    ).probabilities
    mean = predict(
        bright_model(AVERAGED, sided=True, half=half), scene.volume, probabilities=True
    ).probabilities
    inside = (scene.truth > 0) & (whole[0] < 0.01)
    assert plain[0][inside].mean() == pytest.approx(1.0 if half == "left" else 0.0, abs=0.01)
    # Half of the certainty, under the names of the whole answer: class 1 is the left kidney, 3 the right.
    np.testing.assert_allclose(mean[1:], 0.5 * whole[1:], atol=1e-4)
    assert mean[1].sum() > 10 * mean[3].sum()


@pytest.mark.parametrize("crop", [False, True])
def test_mirror_averaging_makes_predictions_symmetric(crop) -> None:
    """The network is not symmetric; without averaging, a mirrored patient has another prediction."""
    scene = make_scene(slices=2, spacing=(2.0, 2.0, 6.0))
    box = (-0.3, -0.45, 0.7, 0.55)
    answers = {}
    for averaged in (True, False):
        settings = {"predict": {"mirror": averaged, "crop_border": 0}, "pose": {"learned": False}}
        for name, volume in (("plain", scene.volume), ("other", in_a_mirror(scene).volume)):
            # The crop of the mirrored patient lies on the other side.
            start = box if name == "plain" else (-box[2], box[1], -box[0], box[3])
            model = bright_model(
                {**settings, "crop": {"enabled": crop, "learned": False}},
                crop_start=start, real_unet=True, sided=True,
            )  # fmt: skip
            torch.nn.init.normal_(model.pipeline.unet.outputs["0"][0].weight, std=0.3)
            answers[averaged, name] = predict(model, volume, probabilities=True).probabilities
    swapped = [0, 3, 2, 1]
    for averaged in (True, False):
        turned_back = answers[averaged, "other"][swapped][..., ::-1]
        off = np.abs(turned_back - answers[averaged, "plain"]).max()
        assert off < 0.02 if averaged else off > 0.2, off


@pytest.mark.parametrize("per", ["slice", "volume"])
def test_mirror_averaging_widens_crops_as_far(per) -> None:
    """The mass crosses one edge of the crop, and in the mirrored crop the opposite edge."""
    changes = {"pose": {"learned": False}, "crop": {"learned": False, "per": per}}
    scene = make_scene(slices=3)
    for other, box in ((False, (-0.35, -0.45, 0.45, 0.35)), (True, (-0.45, -0.45, 0.35, 0.35))):
        lies = in_a_mirror(scene) if other else scene
        results = [
            predict(
                bright_model({**changes, "predict": {"mirror": averaged}}, crop_start=box, sided=True),
                lies.volume,
            )
            for averaged in (False, True)
        ]
        assert results[1].scan_pose.widened.all()
        np.testing.assert_allclose(results[0].scan_pose.theta2, results[1].scan_pose.theta2)
        for result in results:
            assert dice(result.labels.array == (9 if other else 2), lies.truth == 1) > 0.85


def test_mirror_averaging_runs_the_network_twice() -> None:
    scene = make_scene(slices=4)
    network_inputs = []
    for changes in (PLAIN, AVERAGED):
        model = bright_model(changes)
        sizes = []
        model.pipeline.unet.register_forward_hook(lambda _, inputs, __, sizes=sizes: sizes.append(inputs[0]))
        predict(model, scene.volume)
        network_inputs.append(sizes)
    assert [len(pictures) for pictures in network_inputs] == [1, 2]
    assert torch.equal(network_inputs[1][0], network_inputs[0][0])
    assert torch.equal(network_inputs[1][1], network_inputs[0][0].flip(3))


def test_a_prediction_that_is_not_a_number_is_refused() -> None:
    """The argmax of NaN is class 0, so without a check the result would silently be background."""
    model = bright_model(PLAIN)

    class Broken(Brightness):
        def forward(self, image, *, deep=False):
            return [logits * float("nan") for logits in super().forward(image, deep=deep)]

    model.pipeline.unet = Broken()
    with pytest.raises(FloatingPointError, match="the U-Net's output is not finite"):
        predict(model, make_scene().volume)
