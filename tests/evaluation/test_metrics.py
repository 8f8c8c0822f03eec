import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from monai.metrics import compute_surface_dice
from scipy import ndimage

from isopose.errors import InputError
from isopose.evaluation.metrics import Scores, score


def box(shape, *bounds):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*bound) for bound in bounds)] = True
    return mask


def hd95_by_distance_transform(prediction, truth, spacing):
    """HD95 by dense distance transforms of boundary voxels, independent of MONAI's implementation."""

    def boundary(mask):
        padded = np.pad(mask, 1)
        return padded & ~ndimage.binary_erosion(padded)

    edges = boundary(prediction), boundary(truth)
    distances = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return max(np.percentile(distances[1][edges[0]], 95), np.percentile(distances[0][edges[1]], 95))


def ball(shape, center, radius, spacing):
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) < radius**2


def test_identical_masks_score_perfectly_and_volumes_are_in_ml():
    mask = box((12, 14, 16), (2, 7), (3, 9), (4, 11))
    scores = score(mask, mask, (2.0, 0.5, 0.4))
    assert scores == Scores(1.0, 1.0, 0.0, pytest.approx(0.084), pytest.approx(0.084))  # 5*6*7 * 0.4 mm3
    assert scores.outcome == "scored"


@pytest.mark.parametrize(("axis", "distance"), [(0, 6.0), (1, 1.6), (2, 1.0)])
def test_a_shift_along_each_axis_is_measured_in_that_axis_millimeters(axis, distance):
    spacing = (3.0, 0.8, 0.5)
    truth = box((24, 24, 24), (6, 16), (6, 16), (6, 16))
    scores = score(np.roll(truth, 2, axis), truth, spacing)
    assert scores.dice == pytest.approx(0.8)
    # The two faces across the shift, a fifth of each mask's boundary or more, lie exactly that far away.
    assert scores.hd95_mm == pytest.approx(distance)


def test_surface_dice_counts_area_within_the_tolerance_and_no_more():
    # Plates 40 x 40 x 10 mm, one grown by 3 mm on top: all agree but the top faces and a 3 mm strip of sides.
    truth = box((20, 44, 44), (4, 14), (2, 42), (2, 42))
    grown = box((20, 44, 44), (4, 17), (2, 42), (2, 42))
    surfaces = [2 * 1600 + 4 * 40 * height for height in (10, 13)]
    # Off: the grown top, its sides' last 1 mm, and the plate's top but for its rim of 2 mm.
    expected = 1 - (1600 + 160 * 1 + 36 * 36) / sum(surfaces)
    at_two = score(grown, truth, (1, 1, 1), tolerance_mm=2.0)
    assert at_two.surface_dice == pytest.approx(expected, abs=0.015)
    assert score(grown, truth, (1, 1, 1), tolerance_mm=2.99).surface_dice < 0.75
    assert score(grown, truth, (1, 1, 1), tolerance_mm=3.0).surface_dice == 1.0
    # The same voxels with thicker slices: the shift is now 6 mm.
    assert score(grown, truth, (2, 1, 1), tolerance_mm=3.0).surface_dice < 0.8
    assert score(grown, truth, (2, 1, 1), tolerance_mm=6.0).surface_dice == 1.0


def test_surface_dice_weighs_by_area_and_not_by_voxel():
    # 30 mm wide and deep, 50 mm high in slices of 5 mm: a voxel's side face is five times its top face.
    truth = box((16, 40, 40), (3, 13), (5, 35), (5, 35))
    shifted = np.roll(truth, 5, axis=2)
    outer, inner = 30 * 50, 26 * 46  # faces across the shift; of the inner one, the rim lies near other faces
    others = 2 * 3 * 50 + 2 * 3 * 30  # 5 mm of the other faces stick out, 2 of them near enough
    expected = 1 - (outer + inner + others) / (4 * 30 * 50 + 2 * 30 * 30)
    assert score(shifted, truth, (5, 1, 1), tolerance_mm=2.0).surface_dice == pytest.approx(
        expected, abs=0.02
    )
    unweighted = compute_surface_dice(
        *(torch.from_numpy(mask)[None, None] for mask in (shifted, truth)),
        [2.0],
        include_background=True,
        spacing=(5.0, 1.0, 1.0),
    )
    assert abs(float(unweighted) - expected) > 0.05  # so the assertion above does tell the two apart


def test_balls_agree_with_dense_distance_transforms():
    spacing = (2.5, 0.7, 0.9)
    shape = (24, 70, 60)
    truth = ball(shape, (28, 24, 26), 14, spacing)
    prediction = ball(shape, (31, 22, 27), 13, spacing)
    scores = score(prediction, truth, spacing)
    assert scores.hd95_mm == pytest.approx(hd95_by_distance_transform(prediction, truth, spacing), abs=1e-4)
    assert scores.truth_ml == pytest.approx(4 / 3 * np.pi * 14**3 / 1000, rel=0.02)


def test_far_speck_moves_hd95_only_beyond_five_percent():
    truth = box((30, 30, 60), (5, 25), (5, 25), (5, 25))
    speck = truth | box((30, 30, 60), (10, 12), (10, 12), (50, 52))
    assert score(speck, truth, (1, 1, 1)).hd95_mm == 0.0
    blob = truth | box((30, 30, 60), (5, 15), (5, 15), (48, 58))
    assert score(blob, truth, (1, 1, 1)).hd95_mm > 20.0


def test_empty_masks_follow_the_written_rules():
    empty = np.zeros((6, 6, 6), dtype=bool)
    full = box((6, 6, 6), (1, 4), (1, 4), (1, 4))
    neither, missed, invented = (
        score(empty, empty, (1, 1, 1)),
        score(empty, full, (1, 1, 1)),
        score(full, empty, (1, 1, 1)),
    )
    assert neither == Scores(None, None, None, 0.0, 0.0)
    assert missed == Scores(0.0, 0.0, None, 0.0, 0.027)
    assert invented == Scores(0.0, 0.0, None, 0.027, 0.0)
    assert [s.outcome for s in (neither, missed, invented)] == ["empty", "missed", "false alarm"]


def test_disjoint_masks_score_zero_and_still_have_a_distance():
    a, b = box((8, 8, 40), (2, 5), (2, 5), (2, 5)), box((8, 8, 40), (2, 5), (2, 5), (32, 35))
    scores = score(a, b, (1, 1, 2))
    assert (scores.dice, scores.surface_dice, scores.outcome) == (0.0, 0.0, "scored")
    assert scores.hd95_mm == pytest.approx(60.0)


def test_a_mask_at_the_volume_border_has_a_surface_there():
    truth = box((10, 10, 10), (0, 10), (0, 10), (0, 10))
    shrunk = box((10, 10, 10), (0, 10), (0, 10), (0, 5))
    scores = score(shrunk, truth, (1, 1, 1))
    assert scores.hd95_mm == pytest.approx(5.0)
    inside = np.pad(truth, 6), np.pad(shrunk, 6)
    assert score(inside[1], inside[0], (1, 1, 1)) == scores


def test_single_voxels_and_single_slices_are_scored():
    a, b = box((1, 9, 9), (0, 1), (1, 2), (1, 2)), box((1, 9, 9), (0, 1), (1, 2), (4, 5))
    assert score(a, b, (5, 1, 1)).hd95_mm == pytest.approx(3.0)
    assert score(a, a, (5, 1, 1)).surface_dice == 1.0


@settings(deadline=None, max_examples=25)
@given(
    pair=npst.arrays(bool, (2, 5, 6, 7), elements=st.booleans()),
    spacing=st.tuples(*[st.sampled_from([0.4, 1.0, 2.5])] * 3),
    margin=st.integers(0, 4),
)
def test_metrics_are_symmetric_and_independent_of_padding_and_axis_order(pair, spacing, margin):
    prediction, truth = pair
    scores = score(prediction, truth, spacing)
    # Swapping changes nothing but the volumes; empty surroundings and another axis order change nothing.
    swapped = score(truth, prediction, spacing)
    for name in ("dice", "surface_dice", "hd95_mm"):
        assert getattr(swapped, name) == pytest.approx(getattr(scores, name))
    assert (swapped.prediction_ml, swapped.truth_ml) == (scores.truth_ml, scores.prediction_ml)
    padded = [np.pad(mask, margin) for mask in pair]
    assert score(*padded, spacing) == scores
    turned = score(
        prediction.transpose(2, 0, 1), truth.transpose(2, 0, 1), (spacing[2], spacing[0], spacing[1])
    )
    assert turned.hd95_mm == pytest.approx(scores.hd95_mm)
    assert turned.surface_dice == pytest.approx(scores.surface_dice)
    if scores.outcome == "scored":
        expected = 2 * np.sum(prediction & truth) / (prediction.sum() + truth.sum())
        assert scores.dice == pytest.approx(expected)
        assert scores.hd95_mm == pytest.approx(
            hd95_by_distance_transform(prediction, truth, spacing), abs=1e-4
        )
        assert 0 <= scores.surface_dice <= 1


def test_surface_dice_grows_with_the_tolerance():
    spacing = (2.5, 0.7, 0.9)
    truth, prediction = (
        ball((24, 70, 60), (28, 24, 26), 14, spacing),
        ball((24, 70, 60), (33, 21, 27), 12, spacing),
    )
    values = [
        score(prediction, truth, spacing, tolerance).surface_dice for tolerance in (0.0, 1.0, 2.0, 4.0, 30.0)
    ]
    assert values == sorted(values)
    assert values[0] < 0.2
    assert values[-1] == 1.0


@pytest.mark.parametrize(
    ("shape", "spacing", "tolerance", "message"),
    [
        ((4, 4, 5), (1, 1, 1), 2.0, "on one grid"),
        ((4, 4, 4), (1, 0, 1), 2.0, "positive voxel sizes"),
        ((4, 4, 4), (1, 1), 2.0, "three positive"),
        ((4, 4, 4), (1, np.nan, 1), 2.0, "positive voxel sizes"),
        ((4, 4, 4), (1, 1, 1), -1.0, "tolerance"),
    ],
)
def test_bad_input_gives_one_line(shape, spacing, tolerance, message):
    with pytest.raises(InputError, match=message) as error:
        score(np.ones((4, 4, 4), dtype=bool), np.ones(shape, dtype=bool), spacing, tolerance)
    assert "\n" not in str(error.value)
