"""Neighboring slices as context: adjacent, at a distance, and replaced by the nearest at ends and gaps."""

import numpy as np
import pytest

from isopose.data.neighbors import neighbors_of
from isopose.settings import UNetConfig


def slices_beside(visible: list[int], spacing_mm: float = 1.0, **settings: float) -> list[list[int]]:
    """Return for each slice with a body the indices of its context slices."""
    index = np.array(visible)
    return index[neighbors_of(index, spacing_mm, UNetConfig(**settings))].tolist()


def test_without_context_a_slice_has_no_neighbors() -> None:
    assert slices_beside([2, 3, 7]) == [[2], [3], [7]]


def test_neighbors_run_from_feet_to_head_and_repeat_the_end_slices() -> None:
    assert slices_beside([0, 1, 2, 3], context=1) == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert slices_beside([4, 5, 6], context=2)[1] == [4, 4, 5, 6, 6]
    assert slices_beside([9], context=2) == [[9, 9, 9, 9, 9]]


def test_a_neighbor_without_a_body_is_replaced_by_the_nearest_slice() -> None:
    assert slices_beside([2, 3, 6, 7], context=1) == [[2, 2, 3], [2, 3, 3], [6, 6, 7], [6, 7, 7]]
    assert slices_beside([0, 2, 4], context=1) == [[0, 0, 0], [2, 2, 2], [4, 4, 4]], "halfway: the nearer one"


@pytest.mark.parametrize(
    ("spacing", "apart", "expected"),
    [
        (1.0, 3.0, [2, 5, 8]),
        (2.0, 3.0, [4, 5, 6]),
        (3.0, 7.0, [3, 5, 7]),
        (5.0, 2.0, [5, 5, 5]),
        # Halfway, whatever the last digits of 3 / 1.2 and 1.2 are.
        (1.2, 3.0, [3, 5, 7]),
        (0.7, 100.0, [0, 5, 9]),
    ],
)
def test_a_distance_in_millimeters_is_rounded_to_the_nearest_slice(spacing, apart, expected) -> None:
    assert slices_beside(list(range(10)), spacing, context=1, context_mm=apart)[5] == expected
