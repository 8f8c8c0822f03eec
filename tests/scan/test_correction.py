"""Poses and crops set by hand."""

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


def test_a_correction_comes_back_from_its_file(tmp_path):
    made = correction([SetPose(3, (0.1, 0.2, 0.3, 0.4, 0.5))], [SetCrop(3, 0.5, 0.25, -0.25)])
    path = write_correction(tmp_path, made)
    assert read_corrections(tmp_path) == {HASH: made}
    other = replace(made, crops=())
    assert write_correction(tmp_path, other) == path
    assert read_corrections(tmp_path) == {HASH: other}
    assert made.sha256 != other.sha256


def test_between_the_slices_that_were_set_it_changes_evenly_and_beyond_them_not():
    made = correction([SetPose(2, (0.0, 0.0, 0.0, 0.0, 0.0)), SetPose(6, (0.4, 0.8, -0.4, 0.2, -0.2))])
    poses = made.poses_at(np.array([0, 2, 3, 6, 9]), FRAME, REFERENCE)
    expected = torch.tensor([0.4, 0.8, -0.4, 0.2, -0.2])
    torch.testing.assert_close(poses, torch.tensor([0.0, 0.0, 0.25, 1.0, 1.0])[:, None] * expected)


def test_a_turn_goes_the_short_way():
    made = correction([SetPose(0, (3.0, 0, 0, 0, 0)), SetPose(2, (-3.0, 0, 0, 0, 0))])
    angle = float(made.poses_at(np.array([1]), FRAME, REFERENCE)[0, 0])
    assert math.cos(angle - math.pi) == pytest.approx(1.0, abs=1e-6)


@given(
    st.lists(st.floats(-1, 1), min_size=5, max_size=5),
    st.floats(150, 600),
    st.tuples(st.floats(-50, 250), st.floats(-50, 250)),
)
def test_in_another_frame_a_pose_is_the_same_in_millimeters(pose, fov, center):
    other = Frame(center, fov, 96)
    moved = correction([SetPose(0, tuple(pose))]).poses_at(np.array([0]), other, REFERENCE)
    points = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [0.3, 0.7, 1]]).T

    def mm(frame, numbers):
        found = (matrix_from_pose(numbers.double())[0] @ points.double())[:2]
        return torch.tensor(frame.center_mm, dtype=torch.double)[:, None] + frame.fov_mm / 2 * found

    torch.testing.assert_close(mm(other, moved), mm(FRAME, torch.tensor([pose])), atol=0.01, rtol=1e-4)


def test_for_another_reference_the_body_still_fills_its_outline():
    other = ellipse(0.55, 0.5, (0.1, -0.05))
    body = ellipse(0.45, 0.3, (0.2, 0.1))
    onto = pose_at_angle(moments(body), torch.zeros(1), moments(REFERENCE))[0]
    made = correction([SetPose(0, tuple(float(v) for v in onto))])
    moved = made.poses_at(np.array([0]), FRAME, other)
    seen = warp(body, matrix_from_pose(moved), (128, 128)) >= 0.5
    both = float((seen & (other >= 0.5)).sum())
    assert 2 * both / float(seen.sum() + other.sum()) > 0.98


def test_a_crop_stays_where_it_is_in_the_scan_for_another_reference():
    other = ellipse(0.55, 0.5, (0.1, -0.05))
    made = correction([SetPose(0, (0.3, 0.1, 0.1, 0.05, 0.0))], [SetCrop(0, 0.5, 0.2, 0.1)])
    slices = np.array([0])
    here = made.poses_at(slices, FRAME, REFERENCE)
    there = made.poses_at(slices, FRAME, other)
    center = torch.tensor([0.0, 0.0, 1.0])
    in_scan = [
        matrix_from_pose(pose)[0] @ made.crops_at(slices, pose, mask)[0] @ center
        for pose, mask in ((here, REFERENCE), (there, other))
    ]
    torch.testing.assert_close(*in_scan, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        made.crops_at(slices, here, REFERENCE)[0], torch.tensor([[0.5, 0, 0.2], [0, 0.5, 0.1], [0, 0, 1]])
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
def test_what_is_no_correction_is_refused_in_one_line(tmp_path, change, message):
    value = correction([SetPose(3, (0.1, 0.2, 0.3, 0.4, 0.5))]).to_json()
    (tmp_path / "one.json").write_text(json.dumps({**value, **change}))
    with pytest.raises(InputError, match=rf"one\.json: expected a correction.*{message}"):
        read_corrections(tmp_path)


def test_a_folder_without_any_or_with_two_of_a_scan_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no correction"):
        read_corrections(tmp_path)
    with pytest.raises(InputError, match="expected a folder of corrections"):
        read_corrections(tmp_path / "none")
    path = write_correction(tmp_path, correction([SetPose(3, (0.1, 0.2, 0.3, 0.4, 0.5))]))
    (tmp_path / "second.json").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="a second correction of the same scan"):
        read_corrections(tmp_path)


def test_the_outline_of_a_reference_is_its_center_and_spread():
    found = outline_of(ellipse(0.8, 0.6, (0.1, -0.2)))
    assert isinstance(found, OutlineMoments)
    assert found.center == pytest.approx((0.1, -0.2), abs=0.01)
    assert found.spread == pytest.approx((0.4, 0.3), abs=0.01)  # half a semi-axis
    with pytest.raises(InputError, match="the pose: expected a correction"):
        correction_from_json([1], "the pose")
