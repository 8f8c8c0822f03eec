from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isopose.inference.confidence import POSE_SOURCES, choose_pose, touches_border

LEARNED, MOMENTS, IDENTITY = range(3)
#: Recognisable poses: the angle names the source.
POSES = {LEARNED: 0.3, MOMENTS: 0.1, IDENTITY: 0.0}


def transformer(agreements, *, learned=True, start="moments"):
    """A stand-in with given agreements, one row for each source, one column for each slice."""

    def pose(source, count):
        value = torch.zeros(count, 5)
        value[:, 0] = POSES[source]
        return value

    def agreement(mask, given):
        source = next(s for s, angle in POSES.items() if abs(float(given[0, 0]) - angle) < 1e-6)
        return torch.tensor(agreements[source])

    return SimpleNamespace(
        config=SimpleNamespace(start=start),
        localisation=object() if learned else None,
        start=lambda mask: pose(MOMENTS if start == "moments" else IDENTITY, len(mask)),
        refine=lambda image, mask, start: pose(LEARNED, len(mask)),
        agreement=agreement,
    )


def chosen(agreements, least=0.8, **options):
    slices = torch.zeros(len(agreements[IDENTITY]), 1, 4, 4)
    return choose_pose(transformer(agreements, **options), slices, slices, least)


def test_the_first_that_is_good_enough_is_taken_slice_by_slice():
    result = chosen(
        {
            LEARNED: [0.81, 0.80, 0.79, 0.10, 0.10],
            MOMENTS: [0.99, 0.99, 0.80, 0.79, 0.30],
            IDENTITY: [0.99, 0.99, 0.99, 0.95, 0.20],
        }
    )
    # Good enough goes before better; where nothing is good enough, the best is taken.
    assert result.source.tolist() == [LEARNED, LEARNED, MOMENTS, IDENTITY, MOMENTS]
    np.testing.assert_allclose(result.agreement, [0.81, 0.80, 0.80, 0.95, 0.30])
    np.testing.assert_allclose(result.pose[:, 0], [POSES[s] for s in result.source.tolist()])


@pytest.mark.parametrize(
    ("options", "agreements", "expected"),
    [
        ({"learned": False}, {MOMENTS: [0.9, 0.5, 0.2], IDENTITY: [0.95, 0.85, 0.3]}, [1, 2, 2]),
        ({"start": "identity"}, {LEARNED: [0.9, 0.5, 0.2], IDENTITY: [0.95, 0.85, 0.3]}, [0, 2, 2]),
        ({"learned": False, "start": "identity"}, {IDENTITY: [0.9, 0.1, 0.0]}, [2, 2, 2]),
    ],
    ids=["moments alone", "learned from the identity", "nothing"],
)
def test_only_what_the_model_has_is_tried(options, agreements, expected):
    assert chosen(agreements, **options).source.tolist() == expected


@given(
    table=st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=8),
    least=st.floats(0, 1, width=32),
)
def test_the_rule_holds_for_any_agreement(table, least):
    result = chosen(dict(enumerate(map(list, zip(*table, strict=True)))), least)
    for row, source, agreement in zip(table, result.source.tolist(), result.agreement.tolist(), strict=True):
        enough = [s for s in range(len(POSE_SOURCES)) if row[s] >= least]
        assert source == (enough[0] if enough else row.index(max(row)))
        assert agreement == row[source]


def crop(scale, x, y):
    return torch.tensor([[[scale, 0.0, x], [0.0, scale, y], [0.0, 0.0, 1.0]]])


def marks(row, column, size=8):
    """One pixel of class 2, all else background."""
    values = torch.zeros(1, 3, size, size)
    values[:, 0] = 1.0
    values[0, :, row, column] = torch.tensor([0.1, 0.2, 0.7])
    return values


INSIDE = crop(0.5, 0.0, 0.0)
#: Crops that end at the frame's own edge on one side: left, right, front (top), back (bottom).
AT_EDGE = {
    "left": crop(0.5, -0.5, 0.0),
    "right": crop(0.5, 0.5, 0.0),
    "front": crop(0.5, 0.0, -0.5),
    "back": crop(0.5, 0.0, 0.5),
}
PIXEL = {"left": (4, 0), "right": (4, 7), "front": (0, 4), "back": (7, 4)}


@pytest.mark.parametrize("side", PIXEL)
def test_a_label_at_the_crops_edge_is_cut_unless_the_frame_ends_there(side):
    assert touches_border(marks(*PIXEL[side]), INSIDE, 1).tolist() == [True]
    for edge, theta2 in AT_EDGE.items():
        assert touches_border(marks(*PIXEL[side]), theta2, 1).tolist() == [edge != side]
    assert touches_border(marks(*PIXEL[side]), torch.eye(3)[None], 1).tolist() == [False]


@pytest.mark.parametrize("side", PIXEL)
def test_the_border_is_as_wide_as_said(side):
    row, column = (min(max(p, 1), 6) for p in PIXEL[side])
    assert touches_border(marks(row, column), INSIDE, 1).tolist() == [False]
    assert touches_border(marks(row, column), INSIDE, 2).tolist() == [True]
    assert touches_border(marks(*PIXEL[side]), INSIDE, 0).tolist() == [False]


def test_each_crop_is_judged_by_itself_and_background_is_no_label():
    empty = torch.zeros(1, 3, 8, 8)
    empty[:, 0] = 1.0
    batch = torch.cat([marks(0, 3), marks(3, 3), empty, marks(3, 7)])
    theta2 = torch.cat([INSIDE, INSIDE, INSIDE, AT_EDGE["right"]])
    assert touches_border(batch, theta2, 1).tolist() == [True, False, False, False]
