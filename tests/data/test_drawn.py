"""Voxels that were not annotated, and the warning about regular gaps between labeled slices."""

import numpy as np
import pytest

from isopose.data.drawn import classes_of, interval_of, structures, undrawn_warning
from isopose.labels import IGNORED, Labels

KIDNEY = Labels.create({"kidney": 4, "ignore": 7})


def marked(*shown: int, slices: int = 14) -> np.ndarray:
    array = np.zeros((slices, 3, 3), np.uint8)
    array[list(shown), 1, 1] = 4
    return array


def test_the_ignore_value_is_not_a_structure() -> None:
    array = marked(2)
    array[3] = 7
    classes = classes_of(array, KIDNEY, "background")
    assert (classes[3] == IGNORED).all()
    assert classes[2, 1, 1] == 1
    assert np.argwhere(structures(classes)).tolist() == [[2, 1, 1]]
    assert not classes[[0, 1, 4]].any()


def test_in_a_scan_with_gaps_unlabeled_slices_are_unannotated() -> None:
    sparse = classes_of(marked(2, 8), KIDNEY, "ignore")
    assert sorted(set(np.flatnonzero((sparse != IGNORED).any(axis=(1, 2))))) == [2, 8]
    assert sparse[2].sum() == 1
    single = classes_of(marked(4), KIDNEY, "ignore")
    assert (single == IGNORED).all(axis=(1, 2)).tolist() == [z != 4 for z in range(14)]
    # From end to end: what lies beyond the first and last is background.
    whole = marked(3, 4, 5)
    np.testing.assert_array_equal(classes_of(whole, KIDNEY, "ignore"), KIDNEY.to_classes(whole))
    for array in (marked(), marked(2, 8)):
        np.testing.assert_array_equal(classes_of(array, KIDNEY, "background"), KIDNEY.to_classes(array))
    assert not classes_of(marked(), KIDNEY, "ignore").any()


@pytest.mark.parametrize(
    ("shown", "interval"),
    [
        ((0, 6, 12), 6),
        ((1, 3, 5, 7, 11, 13), 2),
        ((0, 3, 6, 12, 15, 18), 3),
        ((2, 3, 4), None),
        ((0, 6), None),
        ((), None),
        ((0, 4, 9), None),
        ((0, 2, 8, 12), None),
    ],
)
def test_the_distance_of_annotated_slices_is_detected(shown, interval) -> None:
    places = np.zeros(20, dtype=bool)
    places[list(shown)] = True
    assert interval_of(places) == interval


def test_the_warning_names_the_setting() -> None:
    array = marked(1, 7, 13)
    doubt = undrawn_warning(KIDNEY.to_classes(array))
    assert doubt is not None
    assert "one slice in 6" in doubt
    assert "data.undrawn=ignore" in doubt
    array[array.sum(axis=(1, 2)) == 0] = 7
    assert undrawn_warning(KIDNEY.to_classes(array)) is None
    assert undrawn_warning(KIDNEY.to_classes(marked(2, 3, 4))) is None
