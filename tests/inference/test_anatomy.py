"""Prediction with the shipped roll network: patients at any angle, and warnings about doubtful poses."""

import math
from dataclasses import replace

import numpy as np
import pytest

from isopose.geometry.volume import Volume
from isopose.inference.predict import predict
from isopose.inference.record import prediction_record
from isopose.models.shipped import load_shipped
from isopose.phantom import render, sample_case
from isopose.phantom.pose import Pose
from isopose.phantom.scan import sample_scan


def phantom(degrees: float, seed: int = 5, index: int = 3) -> Volume:
    """A patient who lies turned by an angle against what the header says."""
    case = sample_case(seed, index, size=96, slices=8)
    pose = Pose("supine", True, math.radians(degrees), 0.0, 0.0, (0.0, 0.0, 0.0))
    rng = np.random.default_rng(1)
    scan = sample_scan(rng, case.anatomy, pose, 96, 8)
    image, _ = render(case.anatomy, pose, scan, rng)
    return Volume(image, scan.world_from_index)


@pytest.fixture(scope="module")
def models(make_model):
    def build(per: str):
        pose = {"start": "anatomy", "learned": False, "per": per}
        model = make_model({"pose": pose, "crop": {"enabled": False}})
        load_shipped(model.pipeline.pose.roll)
        return model

    return {per: build(per) for per in ("slice", "smooth", "volume")}


def warns_of(prediction, words: str) -> bool:
    return any(words in line for line in prediction.warnings)


@pytest.mark.parametrize("degrees", [0, 35, -80, 120, 180])
def test_the_roll_is_recovered_at_any_angle_and_a_wrong_header_reported(models, degrees):
    result = predict(models["smooth"], phantom(degrees))
    off = np.degrees(result.scan_pose.pose[:, 0]) - degrees
    assert np.abs((off + 180) % 360 - 180).max() < 5
    assert warns_of(result, "rotated by") == (abs(degrees) > 60)
    assert not warns_of(result, "mirror")
    record = prediction_record(models["smooth"], result, "0" * 64)
    assert (record["roll_degrees"] - degrees + 180) % 360 - 180 == pytest.approx(0, abs=5)
    assert {entry["pose_from"] for entry in record["slices"]} == {"anatomy"}
    assert all(0.0 <= entry["confidence"] <= 1.0 for entry in record["slices"])


@pytest.mark.parametrize("per", ["smooth", "volume"])
def test_one_bad_slice_does_not_change_the_pose_of_its_neighbors(models, per):
    volume = phantom(-12)
    corrupted = volume.array.copy()
    # Half of one slice is not in the file: cut off, as by a truncated field of view.
    corrupted[4, :, : corrupted.shape[2] // 2] = -1000
    alone = predict(models["slice"], volume.with_array(corrupted)).scan_pose.pose
    together = predict(models[per], volume.with_array(corrupted)).scan_pose.pose
    assert np.abs(np.diff(together[:, 1:], axis=0)).max() < 0.7 * np.abs(np.diff(alone[:, 1:], axis=0)).max()
    assert np.degrees(np.abs(np.diff(together[:, 0]))).max() < 3
    assert np.degrees(np.abs(together[:, 0] + math.radians(12))).max() < 4
    if per == "volume":
        assert (together == together[0]).all()


def test_a_mirrored_scan_is_reported_and_not_flipped(models):
    volume = phantom(0)
    mirrored = predict(models["smooth"], volume.with_array(volume.array[:, :, ::-1]))
    assert warns_of(mirrored, "looks like its own mirror image")
    assert not warns_of(predict(models["smooth"], volume), "mirror image")


def test_a_scan_without_anatomy_keeps_the_pose_of_its_header(models):
    """A disc of water: neither spine nor outline shows which side is up."""
    volume = phantom(0)
    y, x = np.indices(volume.array.shape[1:])
    middle = (volume.array.shape[1] - 1) / 2
    disc = np.hypot(x - middle, y - middle) < 30
    nothing = predict(models["smooth"], replace(volume, array=np.where(disc, 0, -1000)[None].repeat(8, 0)))
    assert warns_of(nothing, "no slice shows the roll")
    assert nothing.scan_pose.roll == 0.0
    assert not warns_of(predict(models["smooth"], volume), "roll of the patient")


@pytest.mark.parametrize("per", ["slice", "smooth", "volume"])
def test_roll_from_the_header_rotates_no_patient_and_gives_one_warning(make_model, per):
    model = make_model(
        {"pose": {"start": "header", "learned": False, "per": per}, "crop": {"enabled": False}}
    )
    turned = predict(model, phantom(40))
    assert not turned.scan_pose.pose[:, 0].any()
    assert warns_of(turned, "was not estimated: left as the file's header says")
    # Size and center are found all the same.
    assert np.abs(turned.scan_pose.pose[:, 1:]).max() > 0.01
