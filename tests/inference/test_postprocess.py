"""Postprocessing removes a false component and keeps a true second kidney in any pose."""

import math

import numpy as np
import pytest

from isopose.geometry.frame import Frame
from isopose.inference.postprocess import Midline, Rule, clean_up, rules_from_json
from isopose.labels import Labels

LABELS = Labels.create({"kidney": 1, "tumor": 7})
SPACING = (2.0, 3.0, 5.0)
SHAPE = (6, 60, 90)
VOXEL_ML = 0.03
#: Around the middle of the scan, (89, 88.5) mm.
FRAME = Frame((89.0, 88.5), 180.0, 64)


def blob(center: tuple[int, int, int], half: tuple[int, int, int] = (1, 3, 4)) -> np.ndarray:
    index = np.stack(np.indices(SHAPE), axis=-1)
    return (np.abs(index - center) <= half).all(axis=-1)


def turned(x_mm: float, y_mm: float, degrees: float) -> tuple[int, int]:
    """Return ``(y, x)`` in a rotated patient of a point in mm from the center of the upright patient."""
    angle = math.radians(degrees)
    x = x_mm * math.cos(angle) - y_mm * math.sin(angle)
    y = x_mm * math.sin(angle) + y_mm * math.cos(angle)
    return round((FRAME.center_mm[1] + y) / SPACING[1]), round((FRAME.center_mm[0] + x) / SPACING[0])


def midline(degrees: float = 0.0, sure: bool = True) -> Midline | None:
    pose = np.zeros((SHAPE[0], 5), np.float32)
    pose[:, 0] = math.radians(degrees)
    return Midline.of(FRAME, SHAPE, SPACING, pose, np.full(SHAPE[0], sure))


def test_the_largest_part_is_kept_and_other_labels_are_left_alone() -> None:
    values = np.zeros(SHAPE, np.uint8)
    true, false = blob((3, 20, 20)), blob((3, 40, 70), (0, 1, 1))
    values[true | false] = 1
    values[1, 50:52, 10:12] = 7
    removed = clean_up(values, [Rule("kidney", "largest")], LABELS, SPACING, None)
    assert np.array_equal(values == 1, true)
    assert np.count_nonzero(values == 7) == 4
    assert removed == {"kidney": pytest.approx(9 * VOXEL_ML)}


def test_components_above_a_volume_are_kept() -> None:
    values = np.zeros(SHAPE, np.uint8)
    large, small, speck = blob((3, 20, 20)), blob((3, 40, 70), (1, 1, 1)), blob((0, 5, 5), (0, 0, 0))
    values[large | small | speck] = 7
    # The small part has exactly that volume: 27 voxels.
    removed = clean_up(values, [Rule("tumor", "volume", 27 * VOXEL_ML)], LABELS, SPACING, None)
    assert np.array_equal(values == 7, large | small)
    assert removed == {"tumor": pytest.approx(VOXEL_ML)}


@pytest.mark.parametrize("degrees", [0.0, 35.0, 90.0, -120.0, 180.0])
def test_the_second_kidney_of_a_rotated_body_is_kept(degrees: float) -> None:
    values = np.zeros(SHAPE, np.uint8)
    left, right = (blob((3, *turned(x, 15.0, degrees))) for x in (45.0, -45.0))
    # On the left too, in front: what a spleen may be taken for.
    false = blob((3, *turned(45.0, -30.0, degrees)), (1, 2, 2))
    assert not (left & false).any()
    values[left | right | false] = 1
    removed = clean_up(values, [Rule("kidney", "largest on each side")], LABELS, SPACING, midline(degrees))
    assert np.array_equal(values == 1, left | right)
    assert removed == {"kidney": pytest.approx(np.count_nonzero(false) * VOXEL_ML)}


def test_the_midline_follows_the_body() -> None:
    pose = np.zeros((SHAPE[0], 5), np.float32)
    # By a quarter of the frame's side to +x, so that all parts lie to the right of the body's midline.
    pose[:, 3] = 0.8
    values = np.zeros(SHAPE, np.uint8)
    one, other = blob((3, *turned(45.0, 0.0, 0.0))), blob((3, *turned(-45.0, 0.0, 0.0)), (1, 2, 2))
    values[one | other] = 1
    shifted = Midline.of(FRAME, SHAPE, SPACING, pose, np.ones(SHAPE[0], bool))
    clean_up(values, [Rule("kidney", "largest on each side")], LABELS, SPACING, shifted)
    assert np.array_equal(values == 1, one)


def test_in_a_volume_the_pose_is_one_for_all_slices() -> None:
    pose = np.zeros((1, 9), np.float32)
    pose[0, 0] = math.radians(90.0)
    whole = Midline.of(FRAME, SHAPE, SPACING, pose, np.array([True]))
    by_slices = midline(90.0)
    centers = np.random.default_rng(0).uniform(0, SHAPE, (50, 3))
    assert np.array_equal(whole.left(centers), by_slices.left(centers))
    assert 0 < whole.left(centers).sum() < 50


def test_side_rules_need_a_confident_pose() -> None:
    values = np.zeros(SHAPE, np.uint8)
    values[blob((3, 20, 20)) | blob((3, 40, 20))] = 1
    before = values.copy()
    assert midline(sure=False) is None
    removed = clean_up(values, [Rule("kidney", "largest on each side")], LABELS, SPACING, None)
    assert np.array_equal(values, before)
    assert removed == {"kidney": 0.0}


def test_rules_for_an_absent_label_change_nothing() -> None:
    values = np.zeros(SHAPE, np.uint8)
    rules = [Rule("kidney", "largest on each side"), Rule("tumor", "volume", 1.0)]
    assert clean_up(values, rules, LABELS, SPACING, midline()) == {"kidney": 0.0, "tumor": 0.0}


def test_json_round_trip_keeps_the_rules() -> None:
    rules = (Rule("kidney", "largest on each side"), Rule("tumor", "volume", 0.3))
    assert rules_from_json([rule.to_json() for rule in rules]) == rules
    for damaged in ([{"label": "kidney"}], [{"label": "kidney", "keep": "all"}], {"keep": 1}, None):
        with pytest.raises(ValueError):
            rules_from_json(damaged)
