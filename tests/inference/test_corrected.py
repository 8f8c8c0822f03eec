"""Prediction with manually corrected poses and crops."""

import numpy as np
import pytest

from bright import bright_model, dice, make_scene
from isopose.data.preprocess import prepare
from isopose.errors import InputError
from isopose.inference.files import predict_scans
from isopose.inference.predict import predict
from isopose.io.images import read_labels, write_image
from isopose.io.scans import find_scans
from isopose.io.sources import hash_of_source
from isopose.progress import Silent
from isopose.scan.correction import Correction, SetCrop, SetPose, outline_of, write_correction

HASH = "0" * 64


@pytest.fixture(scope="module")
def model():
    return bright_model()


def corrected(model, volume, pose, crop=None, image=HASH):
    frame = prepare(volume, model.fingerprint, model.config.data).frame
    crops = () if crop is None else (SetCrop(0, *crop),)
    return Correction(
        image, frame, outline_of(model.pipeline.pose.reference_mask), (SetPose(0, pose),), crops
    )


def test_a_corrected_pose_is_used_exactly_and_recorded(model):
    scene = make_scene(roll=0.4)
    result = predict(model, scene.volume)
    pose = (-1.1, 0.3, 0.05, 0.3, -0.2)
    by_hand = predict(model, scene.volume, correction=corrected(model, scene.volume, pose))
    shown_in = by_hand.scan_pose.has_body
    np.testing.assert_allclose(by_hand.scan_pose.pose[shown_in], [pose] * int(shown_in.sum()), atol=1e-6)
    assert (by_hand.scan_pose.confidence[shown_in] == 1.0).all()
    assert "the pose was set by hand in 6 of 6 slices" in by_hand.warnings
    assert not any("by hand" in line for line in result.warnings)
    assert any("low agreement" in line for line in by_hand.warnings)


def test_correcting_a_bad_pose_recovers_the_mass(model):
    scene = make_scene()
    good = tuple(float(v) for v in predict(model, scene.volume).scan_pose.pose[2])
    away = (*good[:3], good[3] + 1.6, good[4])
    missed = predict(model, scene.volume, correction=corrected(model, scene.volume, away))
    mended = predict(model, scene.volume, correction=corrected(model, scene.volume, good))
    truth = scene.truth > 0
    assert dice(missed.labels.array > 0, truth) < 0.5
    assert dice(mended.labels.array > 0, truth) > 0.9


def test_a_corrected_crop_is_used_unchanged_and_reported_where_it_cuts(model):
    scene = make_scene()
    good = tuple(float(v) for v in predict(model, scene.volume).scan_pose.pose[2])
    small = predict(model, scene.volume, correction=corrected(model, scene.volume, good, (0.25, 0.35, -0.2)))
    np.testing.assert_allclose(
        small.scan_pose.theta2[2], [[0.25, 0, 0.35], [0, 0.25, -0.2], [0, 0, 1]], atol=1e-6
    )
    assert not small.scan_pose.widened.any()
    assert small.scan_pose.cut_off.any()
    assert any("may be cut off by the crop" in line for line in small.warnings)


def test_crops_are_returned_on_request(model):
    prediction = predict(model, make_scene().volume, crops=True)
    side = model.config.unet_size
    assert prediction.crops.shape == (6, side, side)
    assert set(np.unique(prediction.crops)) == {0, 1, 2}
    assert predict(model, make_scene().volume).crops is None


def test_adding_or_removing_a_correction_predicts_the_scan_again(model, tmp_path):
    scene = make_scene()
    write_image(scene.volume, tmp_path / "scan.nii.gz")
    (scan,) = find_scans([tmp_path / "scan.nii.gz"])
    pose = (0.0, 0.0, 0.0, 1.6, 0.0)
    correction = corrected(model, scene.volume, pose, image=hash_of_source(scan.path))

    def run(corrections=None):
        options = {"probabilities": False, "reporter": Silent()}
        (outcome,) = predict_scans(model, [scan], tmp_path / "out", corrections=corrections, **options)
        return outcome.record, read_labels(tmp_path / "out" / "scan.nii.gz").array

    first, before = run()
    second, during = run({correction.image_sha256: correction})
    third, after = run({HASH: corrected(model, scene.volume, pose)})
    assert "correction_sha256" not in first
    assert second["correction_sha256"] == correction.sha256
    assert {one["pose_from"] for one in second["slices"]} == {"hand"}
    assert not np.array_equal(before, during)
    np.testing.assert_array_equal(before, after)
    assert third == first


def test_predict_accepts_a_folder_of_corrections(isopose, model, tmp_path):
    from isopose.models.folder import save_model

    save_model(tmp_path / "model", bright_model({"data": {"size": 64}}, real_unet=True))
    scene = make_scene()
    write_image(scene.volume, tmp_path / "scan.nii.gz")
    pose = (0.3, 0.0, 0.0, 0.0, 0.0)
    write_correction(
        tmp_path / "set", corrected(model, scene.volume, pose, image=hash_of_source(tmp_path / "scan.nii.gz"))
    )
    arguments = ["predict", tmp_path / "model", tmp_path / "scan.nii.gz", "--output", tmp_path / "out"]
    code, _, message = isopose(*arguments, "--corrections", tmp_path / "set", "--device", "cpu")
    assert code == 0
    assert "1 of 1 scans have a correction" in message
    assert "the pose was set by hand in 6 of 6 slices" in message
    code, _, message = isopose(*arguments, "--corrections", tmp_path / "none")
    assert (code, message.count("\n")) == (2, 1)
    assert "expected a folder of corrections" in message


def test_a_model_of_volumes_refuses_corrections(tmp_path):
    model = bright_model({"dims": 3, "pose": {"per": "volume", "learned": False}})
    write_image(make_scene().volume, tmp_path / "scan.nii.gz")
    correction = Correction(
        HASH,
        prepare(make_scene().volume, model.fingerprint, model.config.data).frame,
        outline_of(model.pipeline.pose.reference_mask),
        (SetPose(0, (0.0,) * 5),),
    )
    with pytest.raises(InputError, match="expected a model with dims=2"):
        predict_scans(
            model,
            find_scans([tmp_path / "scan.nii.gz"]),
            tmp_path / "out",
            probabilities=False,
            reporter=Silent(),
            corrections={HASH: correction},
        )
