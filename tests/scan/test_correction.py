"""Manual corrections of poses and crops."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isopose.errors import InputError
from isopose.geometry.frame import Frame
from isopose.geometry.moments import moments, pose_at_angle
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import warp
from isopose.scan.correction import (
    Correction,
    OutlineMoments,
    SetCrop,
    SetPose,
    correction_from_json,
    outline_of,
    read_corrections,
    write_correction,
)

HASH = "ab" * 32
FRAME = Frame((100.0, 80.0), 300.0, 128)


def ellipse(x, y, center=(0.0, 0.0), size=128):
    at = (2.0 * torch.arange(size) + 1.0) / size - 1.0
    return (((at[None, :] - center[0]) / x) ** 2 + ((at[:, None] - center[1]) / y) ** 2 <= 1).float()[
        None, None
    ]


REFERENCE = ellipse(0.8, 0.6)


def correction(poses=(), crops=(), frame=FRAME):
    return Correction(HASH, frame, outline_of(REFERENCE), tuple(poses), tuple(crops))


def test_a_correction_is_read_back_from_its_file(tmp_path):
    edited = correction([SetPose(3, (0.1, 0.2, 0.3, 0.4, 0.5))], [SetCrop(3, 0.5, 0.25, -0.25)])
    path = write_correction(tmp_path, edited)
    assert read_corrections(tmp_path) == {HASH: edited}
    other = replace(edited, crops=())
    assert write_correction(tmp_path, other) == path
    assert read_corrections(tmp_path) == {HASH: other}
    assert edited.sha256 != other.sha256


def test_corrections_are_interpolated_between_slices_and_constant_beyond():
    edited = correction([SetPose(2, (0.0, 0.0, 0.0, 0.0, 0.0)), SetPose(6, (0.4, 0.8, -0.4, 0.2, -0.2))])
    poses = edited.poses_at(np.array([0, 2, 3, 6, 9]), FRAME, REFERENCE)
    expected = torch.tensor([0.4, 0.8, -0.4, 0.2, -0.2])
    torch.testing.assert_close(poses, torch.tensor([0.0, 0.0, 0.25, 1.0, 1.0])[:, None] * expected)


def test_angles_are_interpolated_along_the_shorter_arc():
    edited = correction([SetPose(0, (3.0, 0, 0, 0, 0)), SetPose(2, (-3.0, 0, 0, 0, 0))])
    angle = float(edited.poses_at(np.array([1]), FRAME, REFERENCE)[0, 0])
    assert math.cos(angle - math.pi) == pytest.approx(1.0, abs=1e-6)


@given(
    st.lists(st.floats(-1, 1), min_size=5, max_size=5),
    st.floats(150, 600),
    st.tuples(st.floats(-50, 250), st.floats(-50, 250)),
)
def test_a_corrected_pose_is_the_same_in_millimeters_in_another_frame(pose, fov, center):
    other = Frame(center, fov, 96)
    moved = correction([SetPose(0, tuple(pose))]).poses_at(np.array([0]), other, REFERENCE)
    points = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [0.3, 0.7, 1]]).T

    def mm(frame, numbers):
        result = (matrix_from_pose(numbers.double())[0] @ points.double())[:2]
        return torch.tensor(frame.center_mm, dtype=torch.double)[:, None] + frame.fov_mm / 2 * result

    torch.testing.assert_close(mm(other, moved), mm(FRAME, torch.tensor([pose])), atol=0.01, rtol=1e-4)


def test_a_corrected_pose_fits_the_outline_of_another_reference():
    other = ellipse(0.55, 0.5, (0.1, -0.05))
    body = ellipse(0.45, 0.3, (0.2, 0.1))
    onto = pose_at_angle(moments(body), torch.zeros(1), moments(REFERENCE))[0]
    edited = correction([SetPose(0, tuple(float(v) for v in onto))])
    moved = edited.poses_at(np.array([0]), FRAME, other)
    seen = warp(body, matrix_from_pose(moved), (128, 128)) >= 0.5
    both = float((seen & (other >= 0.5)).sum())
    assert 2 * both / float(seen.sum() + other.sum()) > 0.98


def test_a_corrected_crop_keeps_its_position_for_another_reference():
    other = ellipse(0.55, 0.5, (0.1, -0.05))
    edited = correction([SetPose(0, (0.3, 0.1, 0.1, 0.05, 0.0))], [SetCrop(0, 0.5, 0.2, 0.1)])
    slices = np.array([0])
    expected = edited.poses_at(slices, FRAME, REFERENCE)
    actual = edited.poses_at(slices, FRAME, other)
    center = torch.tensor([0.0, 0.0, 1.0])
    in_scan = [
        matrix_from_pose(pose)[0] @ edited.crops_at(slices, pose, mask)[0] @ center
        for pose, mask in ((expected, REFERENCE), (actual, other))
    ]
    torch.testing.assert_close(*in_scan, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        edited.crops_at(slices, expected, REFERENCE)[0],
        torch.tensor([[0.5, 0, 0.2], [0, 0.5, 0.1], [0, 0, 1]]),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": []}, "expected a pose or a crop"),
        ({"poses": [{"slice": 1, "pose": [0, 0, 0, 0]}]}, r"poses\.0\.pose"),
        ({"poses": [{"slice": -1, "pose": [0, 0, 0, 0, 0]}]}, r"poses\.0\.slice"),
        ({"poses": [{"slice": 1, "pose": [0, 99, 0, 0, 0]}]}, "below 10"),
        ({"poses": [{"slice": 1, "pose": ["0", 0, 0, 0, 0]}]}, r"poses\.0\.pose\.0"),
        ({"poses": [{"slice": s, "pose": [0] * 5} for s in (4, 4)]}, "ascending order, each once"),
        ({"crops": [{"slice": 1, "scale": 0.1, "x": 0, "y": 0}]}, r"crops\.0\.scale"),
        ({"crops": [{"slice": 1, "scale": 0.5, "x": 1.5, "y": 0}]}, r"crops\.0\.x"),
        ({"image_sha256": "../../etc"}, "image_sha256"),
        ({"format": "isopose-correction/9"}, "format"),
        ({"frame": {"center_mm": [0, 0], "fov_mm": 0, "size": 1}}, "a frame with a side"),
        ({"reference": {"center": [0, 0], "spread": [0, 1]}}, r"reference\.spread"),
        ({"name": "Jane"}, "name"),
    ],
)
def test_invalid_corrections_are_refused_in_one_line(tmp_path, change, message):
    value = correction([SetPose(3, (0.1, 0.2, 0.3, 0.4, 0.5))]).to_json()
    (tmp_path / "one.json").write_text(json.dumps({**value, **change}))
    with pytest.raises(InputError, match=rf"one\.json: expected a correction.*{message}"):
        read_corrections(tmp_path)


def test_a_folder_with_no_or_duplicate_corrections_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no correction"):
        read_corrections(tmp_path)
    with pytest.raises(InputError, match="expected a folder of corrections"):
        read_corrections(tmp_path / "none")
    path = write_correction(tmp_path, correction([SetPose(3, (0.1, 0.2, 0.3, 0.4, 0.5))]))
    (tmp_path / "second.json").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="a second correction of the same scan"):
        read_corrections(tmp_path)


def test_the_outline_of_a_reference_is_its_center_and_spread():
    result = outline_of(ellipse(0.8, 0.6, (0.1, -0.2)))
    assert isinstance(result, OutlineMoments)
    assert result.center == pytest.approx((0.1, -0.2), abs=0.01)
    assert result.spread == pytest.approx((0.4, 0.3), abs=0.01)  # half a semi-axis
    with pytest.raises(InputError, match="the pose: expected a correction"):
        correction_from_json([1], "the pose")
