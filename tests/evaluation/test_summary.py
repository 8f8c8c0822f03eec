import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.errors import InputError
from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import Scores
from isopose.evaluation.summary import age_strata, by_patient, compare, size_strata, summarize


def scan(case, dice, patient=None, hd95=None, age=None, size=None, truth_ml=10.0, prediction_ml=10.0):
    scores = Scores(dice, dice, hd95, prediction_ml, truth_ml)
    return CaseScores(case, patient or case, {"kidney": scores}, age, size)


MISSED = {"dice": 0.0, "prediction_ml": 0.0}
EMPTY = {"dice": None, "prediction_ml": 0.0, "truth_ml": 0.0}
FALSE_ALARM = {"dice": 0.0, "truth_ml": 0.0}


def evaluation(*cases, **kwargs):
    return Evaluation(("kidney",), tuple(cases), **kwargs)


def test_scans_are_averaged_by_patient_before_the_cohort():
    cases = [scan("a1", 0.9, "a"), scan("a2", 0.7, "a"), scan("a3", 0.8, "a"), scan("b", 0.4)]
    statistic = summarize(cases, "kidney").statistics["dice"]
    assert statistic.mean == pytest.approx((0.8 + 0.4) / 2)  # by scan it would be 0.7
    assert statistic.sd == pytest.approx(np.std([0.8, 0.4], ddof=1))
    assert (statistic.patients, statistic.worst, statistic.worst_case) == (2, 0.4, "b")


def test_empty_and_missed_scans_and_false_alarms_are_counted():
    cases = [
        scan("good", 0.9, hd95=2.0),
        scan("fair", 0.8, hd95=4.0),
        scan("missed", **MISSED),
        scan("invented", **FALSE_ALARM),
        scan("empty", **EMPTY),
    ]
    summary = summarize(cases, "kidney")
    assert (summary.scans, summary.patients) == (5, 5)
    assert (summary.missed, summary.false_alarms, summary.empty) == (1, 1, 1)
    assert summary.statistics["dice"].mean == pytest.approx(1.7 / 4)
    assert (summary.statistics["dice"].patients, summary.statistics["dice"].without_value) == (4, 0)
    assert (summary.statistics["hd95_mm"].mean, summary.statistics["hd95_mm"].patients) == (3.0, 2)
    assert summary.statistics["hd95_mm"].without_value == 2
    assert summary.statistics["hd95_mm"].worst is None
    assert (
        summary.statistics["hd95_mm"].worst_case == "missed"
    )  # of two without a value, the one that loses more tissue


def test_only_empty_scans_give_no_value_and_no_worst():
    summary = summarize([scan("x", **EMPTY)], "kidney")
    assert summary.empty == 1
    for statistic in summary.statistics.values():
        assert (statistic.patients, statistic.mean, statistic.worst_case) == (0, None, None)
        assert statistic.without_value == 0


def test_worst_is_the_largest_distance_and_the_smallest_overlap():
    summary = summarize([scan("near", 0.5, hd95=1.0), scan("far", 0.9, hd95=30.0)], "kidney")
    assert (summary.statistics["dice"].worst_case, summary.statistics["hd95_mm"].worst_case) == (
        "near",
        "far",
    )


def test_age_strata_hold_their_first_year_and_keep_the_unknown():
    ages = [0.0, 1.99, 2.0, 5.9, 6.0, 11.0, 12.0, 17.9, 18.0, 70.0, None]
    strata = age_strata([scan(f"c{i}", 0.5, age=age) for i, age in enumerate(ages)])
    assert {name: [c.case for c in members] for name, members in strata.items()} == {
        "0 to 2 years": ["c0", "c1"],
        "2 to 6 years": ["c2", "c3"],
        "6 to 12 years": ["c4", "c5"],
        "12 to 18 years": ["c6", "c7"],
        "adult": ["c8", "c9"],
        "age unknown": ["c10"],
    }
    assert age_strata([scan("a", 0.5)]) == {}


def test_size_strata_are_thirds():
    sizes = [100.0, 350.0, 210.0, 120.0, 220.0, 300.0, None]
    strata = size_strata([scan(f"c{i}", 0.5, size=size) for i, size in enumerate(sizes)])
    assert [[c.case for c in members] for members in strata.values()] == [
        ["c0", "c3"],
        ["c2", "c4"],
        ["c1", "c5"],
        ["c6"],
    ]
    assert size_strata([scan("a", 0.5, size=1.0), scan("b", 0.5, size=2.0)]) == {}


@settings(deadline=None)
@given(
    sizes=st.lists(st.none() | st.floats(50, 500), min_size=3, max_size=20),
    ages=st.lists(st.none() | st.floats(0, 100), min_size=20, max_size=20),
)
def test_every_scan_is_in_exactly_one_stratum(sizes, ages):
    cases = [scan(f"c{i}", 0.5, size=s, age=ages[i]) for i, s in enumerate(sizes)]
    for strata in (age_strata(cases), size_strata(cases)):
        if strata:
            members = [case.case for group in strata.values() for case in group]
            assert sorted(members) == sorted(case.case for case in cases)


def test_compare_pairs_cases_and_knows_which_direction_is_better():
    a = evaluation(*(scan(f"c{i}", 0.5 + i / 100, hd95=10.0) for i in range(8)), scan("only_a", 0.1))
    b = evaluation(
        *(scan(f"c{i}", 0.6 + i / 50, hd95=8.0 + i) for i in reversed(range(8))), scan("only_b", 1.0)
    )
    comparison = compare(a, b)
    dice, _, hd95 = comparison.differences
    assert dice.mean_difference == pytest.approx(0.1 + 0.035)
    assert (dice.mean_a, dice.mean_b) == (pytest.approx(0.535), pytest.approx(0.67))
    assert (dice.patients, dice.better, dice.worse) == (8, 8, 0)
    assert dice.p_value == pytest.approx(2 / 2**8)  # exact: all eight signs agree
    assert (hd95.better, hd95.worse) == (2, 5)  # 8 and 9 mm beat 10; 11 to 15 do not; one tie
    assert (comparison.only_a, comparison.only_b) == (("only_a",), ("only_b",))


def test_compare_averages_by_patient_over_the_same_scans():
    a = evaluation(scan("a1", 0.2, "a", hd95=5.0), scan("a2", 0.4, "a", hd95=7.0), scan("b", 0.5, hd95=1.0))
    b = evaluation(
        scan("a1", 0.6, "x", hd95=9.0), scan("a2", patient="x", **MISSED), scan("b", 0.5, hd95=1.0)
    )
    dice, _, hd95 = compare(a, b).differences
    assert (dice.mean_a, dice.mean_b) == (pytest.approx(0.4), pytest.approx(0.4))
    # a2 has no distance in b, so it counts on neither side, and is named.
    assert (hd95.mean_a, hd95.mean_b, hd95.patients, hd95.unpaired) == (3.0, 5.0, 2, 1)
    assert dice.p_value is None


def test_comparing_an_evaluation_with_itself_gives_no_difference():
    a = evaluation(*(scan(f"c{i}", 0.5, hd95=2.0) for i in range(7)))
    for difference in compare(a, a).differences:
        assert (difference.mean_difference, difference.p_value, difference.better) == (0.0, 1.0, 0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (evaluation(scan("c", 0.5), tolerance_mm=1.0), "2 mm with 1 mm"),
        (evaluation(scan("d", 0.5)), "no scan or no target in common"),
        (evaluation(scan("c", 0.5, truth_ml=11.0)), "c: kidney measures 10 ml .* 11 ml"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        compare(evaluation(scan("c", 0.5)), other)


def test_means_by_patient_leave_out_patients_without_a_value():
    cases = [scan("a", 0.5), scan("b1", patient="b", **EMPTY), scan("b2", 0.7, "b"), scan("c", **EMPTY)]
    assert by_patient(cases, "kidney", "dice") == {"a": 0.5, "b": 0.7}
