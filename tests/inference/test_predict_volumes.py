"""Whole volumes of known geometry through a stand-in U-Net that marks what is bright."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from bright import BODY, bright_model, dice, stored_otherwise, world_center
from isopose.geometry.pose import LOG_SCALES, PITCH, ROLL, SHIFTS, YAW
from isopose.geometry.volume import Volume
from isopose.inference.border import touches_border
from isopose.inference.predict import predict
from isopose.inference.predictors import crop_probabilities
from isopose.models.restore import restore_slices
from isopose.phantom.pose import Pose

#: Poses from moments, no crop: what is found follows from the geometry, not from weights.
VOLUMES: Mapping[str, Any] = {
    "dims": 3,
    "data": {"size": 96},
    "pose": {"learned": False, "per": "volume"},
    "crop": {"enabled": False, "depth": 16},
    "unet": {"depth": 64},
}


def tilted(
    roll: float = 0.0,
    pitch: float = 0.0,
    yaw: float = 0.0,
    scale: float = 1.0,
    center: tuple[float, float] = (0.0, 0.0),
    spacing: tuple[float, float, float] = (2.1, 2.9, 5.0),
    slices: int = 26,
) -> tuple[Volume, np.ndarray]:
    """Make a long elliptic body, tilted by degrees, with an L-shaped mass left in front and a tumor."""
    width, height = (round(250.0 / step) for step in spacing[:2])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (slices, height, width)), indexing="ij")[::-1], -1)
    middle = (np.array([width, height, slices]) - 1) / 2 * spacing + [*center, 0.0]
    rotation = Pose("supine", True, *np.radians([roll, pitch, yaw]), (0, 0, 0)).world_from_canonical[:3, :3]
    u, v, w = np.moveaxis((index * spacing - middle) @ rotation / scale, -1, 0)
    body = np.hypot(u / BODY[0], v / BODY[1]) <= 1
    trunk = (u > 20) & (u < 70) & (v > -10) & (v < 25) & (w > -10) & (w < 35)
    arm = (u > 20) & (u < 45) & (v > -45) & (v <= -10) & (w > -10) & (w < 35)
    core = np.sqrt((u - 36) ** 2 + (v - 8) ** 2 + (w - 18) ** 2) <= 13
    array = np.where(body, 40.0, -1000.0)
    array[trunk | arm] = 250.0
    array[core] = 400.0
    labels = np.where(trunk | arm, 1, 0)
    labels[core] = 7
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = (-37.5, 12.25, 400.0)
    return Volume(array.astype(np.int16), matrix), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    built = bright_model(VOLUMES)
    # The scans below are 130 mm deep in a frame of 230 mm.
    built.pipeline.reach.fill_(0.75)
    return built


def assert_finds(result, truth: np.ndarray, volume: Volume) -> None:
    assert set(np.unique(result.labels.array)) <= {0, 1, 7}
    assert dice(result.labels.array > 0, truth > 0) > 0.88
    assert dice(result.labels.array == 7, truth == 7) > 0.8
    for least in (1, 7):
        actual, expected = (world_center(volume, array >= least) for array in (result.labels.array, truth))
        assert np.linalg.norm(actual - expected) < 1.5


@pytest.mark.parametrize(
    ("roll", "pitch", "yaw", "scale"),
    [(0, 0, 0, 1), (15, 0, 0, 1), (0, 8, 0, 1), (0, 0, -8, 1), (-20, 6, 7, 0.7), (12, -7, 5, 0.55)],
)
def test_a_tilted_patient_is_straightened_and_labels_are_restored(roll, pitch, yaw, scale, model):
    volume, truth = tilted(roll, pitch, yaw, scale)
    result = predict(model, volume)
    angles = np.degrees(result.scan_pose.pose[0][[ROLL, PITCH, YAW]])
    np.testing.assert_allclose(angles, [roll, pitch, yaw], atol=1.5)
    np.testing.assert_allclose(np.exp(result.scan_pose.pose[0][LOG_SCALES]), scale, rtol=0.04)
    assert_finds(result, truth, volume)


def test_the_shift_is_where_the_body_axis_crosses_the_middle_slice(model):
    volume, truth = tilted(roll=10, pitch=5, yaw=-6, center=(9.0, -7.0))
    result = predict(model, volume)
    frame = result.prepared.frame
    middle = (np.array(volume.array.shape[:0:-1]) - 1) / 2 * [2.1, 2.9] + [9.0, -7.0]
    expected = (middle - frame.center_mm) / (frame.fov_mm / 2)
    np.testing.assert_allclose(result.scan_pose.pose[0][SHIFTS], [*expected, 0.0], atol=0.01)
    assert_finds(result, truth, volume)


def test_restored_to_within_half_a_voxel(model):
    """The center of a tumor in a pitched, rolled and scaled patient, in voxels of each axis."""
    volume, truth = tilted(12, -7, 5, 0.8)
    result = predict(model, volume).labels.array == 7
    for axis in range(3):
        a, b = (np.argwhere(mask)[:, axis].mean() for mask in (result, truth == 7))
        assert abs(a - b) < 0.5


@pytest.mark.parametrize(
    ("axes", "flips"),
    [
        ((0, 1, 2), (True, True, False)),
        ((2, 0, 1), (False, True, True)),
        ((1, 2, 0), (True, False, False)),
        ((0, 2, 1), (False, False, True)),
    ],
)
def test_every_storage_order_gives_the_same_labels_in_world_space(axes, flips, model):
    volume, _ = tilted(10, 4, -5)
    expected = predict(model, volume).labels
    result = predict(model, stored_otherwise(volume, axes, flips)).labels
    np.testing.assert_array_equal(result.array, stored_otherwise(expected, axes, flips).array)
    # LPS: the mass is on the patient's left (+x) and in front (-y), toward the head (+z).
    kidney = world_center(result, result.array > 0)
    body = world_center(volume, volume.array > -500)
    assert kidney[0] > body[0] + 25
    assert kidney[2] > body[2] + 5


def test_slices_without_a_body_are_background(model):
    volume, _ = tilted()
    array = volume.array.copy()
    array[:3], array[-2:] = -1000, -1000
    array[0, 40:44, 60:64] = 400
    result = predict(model, Volume(array, volume.world_from_index), probabilities=True)
    assert not result.labels.array[:3].any()
    assert (result.probabilities[0, :3] == 1).all()
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1.0, atol=1e-5)
    classes = result.probabilities.argmax(axis=0)
    np.testing.assert_array_equal(np.array([0, 1, 7])[classes], result.labels.array)


@pytest.mark.parametrize("slices", [1, 3])
def test_scans_of_few_slices(slices, model):
    """A single slice fades at both ends of the scan, so its labels are not compared."""
    volume, truth = tilted(slices=slices, spacing=(2.1, 2.9, 15.0))
    result = predict(model, volume)
    assert result.labels.same_grid(volume)
    np.testing.assert_allclose(result.scan_pose.pose[0][[ROLL, PITCH, YAW]], 0.0, atol=0.02)
    if slices > 1:
        assert dice(result.labels.array > 0, truth > 0) > 0.75


def cropping(box: tuple[float, ...], **changes: Any):
    crop = {"enabled": True, "learned": False, "depth": 16}
    model = bright_model({**VOLUMES, "crop": crop, **changes}, crop_start=box)
    model.pipeline.reach.fill_(0.75)
    return model


def test_a_crop_that_cuts_is_widened_and_reported():
    # The mass reaches to 70 of 115 mm at the left: x up to 0.61, in a crop that ends at 0.45.
    volume, truth = tilted()
    result = predict(cropping((-0.15, -0.4, -0.6, 0.45, 0.2, 0.6)), volume)
    assert result.scan_pose.widened[0]
    assert "the crop cut a structure and was widened" in result.warnings
    assert dice(result.labels.array > 0, truth > 0) > 0.88
    # Along z too: the mass reaches from -10 to 35 of 86 mm.
    result = predict(cropping((-0.15, -0.5, -0.5, 0.85, 0.5, 0.2)), volume)
    assert result.scan_pose.widened[0]
    assert dice(result.labels.array > 0, truth > 0) > 0.88


def test_a_crop_that_cuts_nothing_is_not_changed():
    volume, truth = tilted()
    box = (-0.1, -0.5, -0.4, 0.8, 0.4, 0.6)
    result = predict(cropping(box), volume)
    assert not result.scan_pose.widened[0]
    assert not result.scan_pose.cut_off[0]
    np.testing.assert_allclose(result.scan_pose.theta2[0].diagonal()[:3], [0.45, 0.45, 0.5], atol=1e-6)
    assert dice(result.labels.array > 0, truth > 0) > 0.9


def test_faces_of_the_crop_that_cut_labels():
    logits = torch.zeros(1, 2, 4, 6, 6)
    logits[:, 0] = 0.5
    logits[0, 1, 3, 2, 2] = 1.0
    inner = torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0]))[None]
    assert touches_border(logits, inner, 1).tolist() == [True]
    assert touches_border(logits, inner, 0).tolist() == [False]
    # The upper end of the volume itself cuts nothing.
    raised = inner.clone()
    raised[0, 2, 3] = 0.5
    assert touches_border(logits, raised, 1).tolist() == [False]
    assert touches_border(logits.flip(2), raised, 1).tolist() == [True]


def test_a_longer_scan_than_those_of_the_training_is_reported(model):
    volume, _ = tilted(slices=50)
    result = predict(model, volume)
    # 250 mm, of which 0.75 times 230 are seen.
    assert result.beyond_mm == pytest.approx(250 - 0.75 * 230, abs=3)
    assert any("mm longer than those the model was trained on" in line for line in result.warnings)


def test_an_identity_start_applies_no_pose_and_reports_low_agreement(model):
    volume, truth = tilted(roll=90)
    as_it_lies = bright_model({**VOLUMES, "pose": {**VOLUMES["pose"], "start": "identity"}})
    result = predict(as_it_lies, volume)
    assert result.scan_pose.pose[0].tolist() == [0.0] * 9
    assert result.warnings == ()
    assert dice(result.labels.array > 0, truth > 0) > 0.88
    low = bright_model({**VOLUMES, "predict": {"min_pose_dice": 0.999}})
    assert "low agreement: the outline does not match the reference" in predict(low, volume).warnings


def test_prediction_in_slabs_equals_the_whole_volume():
    random = torch.Generator().manual_seed(0)
    probabilities = torch.rand(1, 3, 8, 12, 12, generator=random).softmax(dim=1)
    a = math.radians(20)
    theta = torch.eye(4)[None]
    theta[0, 1:3, 1:3] = 0.7 * torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    theta[0, :3, 3] = torch.tensor([0.1, -0.05, 0.2])
    shape = (11, 14, 10)
    [(_, whole)] = restore_slices(probabilities, theta, shape)
    slabs = list(restore_slices(probabilities, theta, shape, chunk=3 * 140))
    assert [(part.start, part.stop) for part, _ in slabs] == [(0, 3), (3, 6), (6, 9), (9, 11)]
    assert torch.allclose(torch.cat([values for _, values in slabs], dim=1), whole, atol=1e-5)
    assert torch.allclose(whole.sum(dim=0), torch.ones(shape), atol=1e-5)


def test_predictions_are_averaged_with_those_of_the_mirrored_crop(model):
    """Segmentation by brightness is symmetric, so averaging keeps the labels and their side."""
    volume, _ = tilted(10, 4, -5)
    both = predict(bright_model({**VOLUMES, "predict": {"mirror": True}}), volume, probabilities=True)
    once = predict(bright_model(VOLUMES), volume, probabilities=True)
    np.testing.assert_allclose(both.probabilities, once.probabilities, atol=1e-4)
    crop = torch.rand(1, 1, 4, 8, 8)
    built = bright_model({**VOLUMES, "predict": {"mirror": True}})
    built.pipeline.unet.forward = lambda image, deep=False: [torch.cat([image, 0 * image, 0 * image], dim=1)]
    probabilities = crop_probabilities(built, crop, (False, True))
    assert torch.allclose(probabilities[:, 1], (1 / (crop.exp() + 2))[:, 0], atol=1e-5)
