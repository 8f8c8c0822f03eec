import math

import numpy as np
import pytest

from bright import FOV, bright_model, dice, make_scene, stored_otherwise
from isopose.inference.predict import predict
from isopose.report.steps import chosen_slices, steps_of, write_steps

BOX = (0.0, -0.5, 0.75, 0.4)
ANGLE = math.radians(25)


@pytest.fixture(scope="module")
def model():
    return bright_model({"pose": {"learned": False}, "crop": {"learned": False}}, crop_start=BOX)


@pytest.fixture(scope="module")
def predicted(model):
    """Prediction of a rolled scan whose storage order differs from the order of display."""
    scene = make_scene(roll=ANGLE, slices=9, empty=(0, 8), field=(250.0, 225.0))
    scan = stored_otherwise(scene.volume, (2, 0, 1), (True, False, True))
    return scene, scan, predict(model, scan)


def test_slices_are_spread_over_those_that_show_a_label_head_first(predicted):
    _, _, prediction = predicted
    shape = prediction.prepared.shape
    classes = np.zeros(shape, np.uint8)
    classes[2:7, 5, 5] = 1
    assert chosen_slices(prediction, classes, None, 4).tolist() == [6, 5, 3, 2]
    assert chosen_slices(prediction, classes, None, 2).tolist() == [5, 3]
    # The truth decides where it is known; too few labeled slices: all that show the body.
    truth = np.zeros_like(classes)
    truth[5:7, 3, 3] = 2
    assert chosen_slices(prediction, classes, truth, 2).tolist() == [6, 5]
    assert chosen_slices(prediction, np.zeros_like(classes), None, 3).tolist() == [6, 4, 2]
    # Never a slice without a body.
    assert chosen_slices(prediction, classes, None, 20).tolist() == [7, 6, 5, 4, 3, 2, 1]


def test_each_image_shows_its_slice_upright(model, predicted):
    scene, scan, prediction = predicted
    truth = stored_otherwise(scene.volume.with_array(scene.truth), (2, 0, 1), (True, False, True))
    rows = steps_of(model, scan, prediction, truth=truth, rows=2)
    assert [row.heading for row in rows] == ["slice 6", "slice 2"]
    for row, z in zip(rows, (6, 2), strict=True):
        np.testing.assert_array_equal(row.native, scene.volume.array[z])
        assert row.native_spacing_yx == pytest.approx((2.9, 2.1))
        assert dice(row.native_classes > 0, scene.truth[z] > 0) > 0.9
        np.testing.assert_array_equal(row.native_truth, np.array([0, 1, 0, 0, 0, 0, 0, 2])[scene.truth[z]])
        # The roll is undone: the body lies on the reference, the mass in front and on the left of the frame.
        body = row.homogenized > model.pipeline.air + 0.5
        assert dice(body, row.reference_mask) > 0.95
        bright = np.argwhere(row.homogenized > 1.5).mean(axis=0)
        expected = make_scene(spacing=(FOV / 128, FOV / 128, 6.0), field=(FOV, FOV), slices=1)
        assert np.abs(bright - np.argwhere(expected.truth[0] > 0).mean(axis=0)).max() < 1.5
        # The crop is what the box cuts from the homogenized frame, its own prediction lies on its mass.
        assert row.crop_classes.shape == row.cropped.shape
        assert dice(row.crop_classes > 0, row.cropped > 0.67) > 0.97
        assert row.warnings == ()
        assert row.lines[0] == f"roll {math.degrees(prediction.scan_pose.pose[z, 0]):+.1f}°"
        assert row.lines[3:] == ("pose: moments", "crop: 0.45 of the frame")


def test_outlines_are_where_frame_and_crop_lie(model, predicted):
    scene, scan, prediction = predicted
    row = steps_of(model, scan, prediction, rows=1)[0]
    # Corners in the order of drawing, in pixel centers of the homogenized frame of 128.
    low, high = [(np.array(corner) + 1) / 2 * 128 - 0.5 for corner in ((-0.075, -0.5), (0.825, 0.4))]
    square = [[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]
    np.testing.assert_allclose(row.crop_outline, square, atol=1e-3)
    # In mm the frame is a square around the body's middle, turned by the roll and scaled by the pose.
    mm = row.frame_outline * (2.1, 2.9)
    middle = mm.mean(axis=0) + scene.volume.origin[:2]
    np.testing.assert_allclose(middle, scene.middle, atol=1.5)
    along = mm[1] - mm[0]
    assert math.degrees(math.atan2(along[1], along[0])) == pytest.approx(25, abs=2)
    assert np.linalg.norm(along) == pytest.approx(FOV, rel=0.04)
    assert abs(along @ (mm[3] - mm[0])) < 1e-2 * FOV**2


def test_warnings_are_drawn_in_the_image():
    model = bright_model(
        {
            "pose": {"learned": False},
            "crop": {"learned": False},
            "predict": {"min_pose_dice": 1.0},
        },
        crop_start=(-0.45, -0.45, 0.45, 0.45),
        blind=lambda image: image[:, 0, 0, 0] < -1.5,
    )
    scene = make_scene(slices=1)
    row = steps_of(model, scene.volume, predict(model, scene.volume))[0]
    assert row.warnings == ("low agreement", "cut off by the crop")


def test_the_image_is_written(model, predicted, tmp_path):
    _, scan, prediction = predicted
    write_steps(model, scan, prediction, tmp_path / "steps" / "a.png")
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "steps" / "a.png").convert("RGB"))
    # The labels' colors of the paper, kidney green and tumor yellow, are in it.
    green = (picture[..., 1] > 150) & (picture[..., 0] < 120)
    assert green.sum() > 200
    assert picture.shape[1] > picture.shape[0] / 2


def test_the_crop_shows_the_mirror_averaged_prediction(predicted):
    _, scan, prediction = predicted
    changes = {"pose": {"learned": False}, "crop": {"learned": False}, "predict": {"mirror": True}}
    averaging = bright_model(changes, crop_start=BOX)
    seen = []
    averaging.pipeline.unet.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    row = steps_of(averaging, scan, prediction, rows=1)[0]
    np.testing.assert_array_equal(seen[0][0, 0], row.cropped)
    np.testing.assert_array_equal(seen[1][0, 0], row.cropped[:, ::-1])
    assert dice(row.crop_classes > 0, row.cropped > 0.67) > 0.97
