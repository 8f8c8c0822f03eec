"""Choice among pose sources: the first with enough agreement, without the roll network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isopose.models.pose import POSE_SOURCES, PoseTransformer

LEARNED, MOMENTS, IDENTITY = (POSE_SOURCES.index(name) for name in ("learned", "moments", "identity"))
#: Recognizable poses: the angle names the source.
POSES = {LEARNED: 0.3, MOMENTS: 0.1, IDENTITY: 0.0}


def transformer(agreements, *, learned=True, start="moments"):
    """Make a stand-in whose agreements are given: one row for each source, one column for each slice."""

    def pose(source, count):
        value = torch.zeros(count, 5)
        value[:, 0] = POSES[source]
        return value

    def agreement(mask, given):
        source = next(s for s, angle in POSES.items() if abs(float(given[0, 0]) - angle) < 1e-6)
        return torch.tensor(agreements[source])

    return SimpleNamespace(
        config=SimpleNamespace(start=start),
        plane="axial",
        localization=object() if learned else None,
        roll=None,
        initial_pose=lambda image, mask: pose(MOMENTS if start == "moments" else IDENTITY, len(mask)),
        refine=lambda image, mask, start: pose(LEARNED, len(mask)),
        agreement=agreement,
    )


def chosen(agreements, least=0.8, **options):
    slices = torch.zeros(len(agreements[IDENTITY]), 1, 4, 4)
    return PoseTransformer.estimate(transformer(agreements, **options), slices, slices, least)


def test_each_slice_takes_the_first_source_with_enough_agreement():
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
        (
            {"learned": False},
            {MOMENTS: [0.9, 0.5, 0.2], IDENTITY: [0.95, 0.85, 0.3]},
            [MOMENTS, IDENTITY, IDENTITY],
        ),
        (
            {"start": "identity"},
            {LEARNED: [0.9, 0.5, 0.2], IDENTITY: [0.95, 0.85, 0.3]},
            [LEARNED, IDENTITY, IDENTITY],
        ),
        ({"learned": False, "start": "identity"}, {IDENTITY: [0.9, 0.1, 0.0]}, [IDENTITY] * 3),
    ],
    ids=["moments alone", "learned from the identity", "nothing"],
)
def test_only_sources_of_the_model_are_tried(options, agreements, expected):
    assert chosen(agreements, **options).source.tolist() == expected


@given(
    table=st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=8),
    least=st.floats(0, 1, width=32),
)
def test_the_rule_holds_for_any_agreement(table, least):
    sources = (LEARNED, MOMENTS, IDENTITY)
    result = chosen(dict(zip(sources, map(list, zip(*table, strict=True)), strict=True)), least)
    for row, source, agreement in zip(table, result.source.tolist(), result.agreement.tolist(), strict=True):
        enough = [s for s in range(3) if row[s] >= least]
        index = enough[0] if enough else row.index(max(row))
        assert source == sources[index]
        assert agreement == row[index]
