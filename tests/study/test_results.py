"""Means by patient, differences with intervals and corrected p, and time to a score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import Scores
from isopose.study.arms import BY_NAME, FURTHER_COMPARISONS
from isopose.study.figures import band_of
from isopose.study.pace import pace_table, time_table
from isopose.study.protocol import GOALS, curve_rise, primary, roll_strata
from isopose.study.report import _make_primary_section, _note_machines, _note_uneven_runs
from isopose.study.results import (
    ArmResult,
    StudyRun,
    differences,
    goals,
    load_results,
    pairs_with_baseline,
    smoothed,
    times_to,
)
from isopose.study.strata import group_tables
from isopose.study.tables import difference_table, failure_table, goal_table, score_table


def scores(dice: float) -> Scores:
    return Scores(
        dice=dice, surface_dice=dice, hd95_mm=10.0 * (1.0 - dice), truth_ml=10.0, prediction_ml=10.0,
    )  # fmt: skip


def history(values: list[float], *, seconds: float = 10.0, stn: float = 0.0) -> tuple[dict, ...]:
    rows = [
        {"stage": "unet", "epoch": n + 1, "loss": 1.0, "dice kidney": value, "seconds": seconds + 2.0,
         "cpu_seconds": 2 * seconds, "validation_seconds": 2.0}
        for n, value in enumerate(values)
    ]  # fmt: skip
    before = {
        "stage": "crop",
        "epoch": 1,
        "loss": 1.0,
        "seconds": stn,
        "cpu_seconds": stn,
        "validation_seconds": 0.0,
    }
    return tuple([before] * (stn > 0) + rows)


def run(dice: dict[str, float], *, seed: int = 0, **options) -> StudyRun:
    sizes = options.get("sizes", {})
    cases = tuple(
        CaseScores(name, name, {"kidney": scores(value)}, body_size_mm=sizes.get(name))
        for name, value in dice.items()
    )
    return StudyRun(
        made=options.get("made", {}),
        folder=f"runs/default/x/seed-{seed}-fold-0", seed=seed, fold=options.get("fold", 0),
        history=options.get("history", history([0.5, 0.6])),
        measures={"memory": {"unet": {"before_mb": 400.0, "peak_mb": 500.0}}, "predict": {}},
        size={}, evaluation=Evaluation(("kidney",), cases), shown={},
    )  # fmt: skip


def arm(name: str, *runs: StudyRun) -> ArmResult:
    return ArmResult(BY_NAME[name], runs)


TO_BASELINE = [(name, "augmented") for name in ("plain", "moments", "pose")]
PATIENTS = [f"p{n}" for n in range(8)]


def test_arms_are_compared_on_common_seeds() -> None:
    """All arms score higher with the second seed, so an arm that has it must not look better."""
    base = arm("augmented", run({"a": 0.5, "b": 0.6}), run({"a": 0.9, "b": 0.9}, seed=1))
    single = arm("pose", run({"a": 0.6, "b": 0.7}))
    [difference] = differences({"augmented": base, "pose": single}, TO_BASELINE)
    assert difference.mean == pytest.approx(0.1)
    one = {"augmented": arm("augmented", run({"a": 0.5})), "pose": arm("pose", run({"a": 0.7}))}
    assert differences(one, TO_BASELINE)[0].detectable is None, "of so few patients it would say nothing"
    other = arm("pose", run({"a": 0.6, "b": 0.7}, seed=2))
    assert differences({"augmented": base, "pose": other}, TO_BASELINE) == []


def test_seeds_of_a_patient_are_averaged_first() -> None:
    result = arm("pose", run({"a": 0.6, "b": 0.8}), run({"a": 0.8, "b": 1.0}, seed=1))
    assert result.by_patient("kidney") == pytest.approx({"a": 0.7, "b": 0.9})
    base = arm("augmented", run({"a": 0.5, "b": 0.9}), run({"a": 0.7, "b": 0.9}, seed=1))
    [difference] = differences({"augmented": base, "pose": result}, TO_BASELINE)
    assert (difference.arm, difference.target, difference.patients) == ("pose", "kidney", 2)
    assert difference.mean == pytest.approx(0.05)
    assert difference.better == 1
    assert difference.p_value is None, "two patients are too few for a test"


def test_p_values_are_wilcoxon_corrected_over_all_rows() -> None:
    rng = np.random.default_rng(3)
    base = {p: float(v) for p, v in zip(PATIENTS, rng.uniform(0.5, 0.8, 8), strict=True)}
    better = {p: v + 0.1 + 0.01 * n for n, (p, v) in enumerate(base.items())}
    same = {p: v + (0.01 if n % 2 else -0.011) for n, (p, v) in enumerate(base.items())}
    results = {"augmented": arm("augmented", run(base)), "pose": arm("pose", run(better)),
               "plain": arm("plain", run(same))}  # fmt: skip
    by_arm = {each.arm: each for each in differences(results, TO_BASELINE)}
    raw = stats.wilcoxon([better[p] - base[p] for p in PATIENTS]).pvalue
    assert by_arm["pose"].p_value == pytest.approx(2 * raw)
    assert by_arm["plain"].p_value == stats.wilcoxon([same[p] - base[p] for p in PATIENTS]).pvalue
    assert by_arm["pose"].low < by_arm["pose"].mean < by_arm["pose"].high
    assert by_arm["pose"].low > 0.1


def test_arms_are_compared_within_each_stratum_of_the_baselines_scans() -> None:
    base = dict.fromkeys(PATIENTS, 0.5)
    better = {p: 0.5 + 0.01 * n for n, p in enumerate(PATIENTS)}
    results = {"augmented": arm("augmented", run(base)), "pose": arm("pose", run(better))}

    def by_name(cases):
        return {
            name: [case for case in cases if (case.case < "p6") == (name == "most")]
            for name in ("most", "few")
        }

    most, few = differences(results, TO_BASELINE, by_name)
    assert (most.stratum, most.patients, most.better) == ("most", 6, 5)
    assert most.mean == pytest.approx(0.025)
    assert most.p_value == stats.wilcoxon([better[p] - 0.5 for p in PATIENTS[:6]]).pvalue
    assert (few.stratum, few.patients, few.better) == ("few", 2, 2)
    assert few.mean == pytest.approx(0.065)
    assert few.p_value is None, "two patients are too few for a test"


def test_strata_are_the_same_for_all_arms() -> None:
    """An arm with one of two folds has other scans, whose own thirds would differ."""
    sizes = {p: 100.0 + 10 * n for n, p in enumerate(PATIENTS)}
    first, second = dict.fromkeys(PATIENTS[:3], 0.5), dict.fromkeys(PATIENTS[3:], 0.5)
    base = arm("augmented", run(first, sizes=sizes), run(second, fold=1, sizes=sizes))
    posed = arm("pose", run(dict.fromkeys(first, 0.7), sizes=sizes))
    [dice] = group_tables({"augmented": base, "pose": posed}, "augmented", {})
    assert [c.name for c in dice.columns] == [
        "Arm", "Target", "small (to 123 mm)", "middle (123 to 147 mm)", "large (over 147 mm)",
    ]  # fmt: skip
    # 100, 110 and 120 mm: all small. Three patients are not compared.
    assert {row[0]: row[2:] for row in dice.rows} == {
        "augmented": ("0.500 (0.500, 0.500)",) * 3,
        "pose": ("0.700 (0.700, 0.700)", "–", "–"),
    }


def test_strata_of_enough_patients_are_compared() -> None:
    names = [f"q{n}" for n in range(21)]
    sizes = {q: 100.0 + n for n, q in enumerate(names)}
    base = arm("augmented", run(dict.fromkeys(names, 0.5), sizes=sizes))
    posed = arm("pose", run({q: 0.5 + 0.01 * n for n, q in enumerate(names)}, sizes=sizes))
    _, compared = group_tables({"augmented": base, "pose": posed}, "augmented", {})
    rows = [dict(zip([c.name for c in compared.columns], row, strict=True)) for row in compared.rows]
    assert [row["Patients"] for row in rows] == [7, 7, 7]
    assert [row["Difference (points)"] for row in rows] == ["+3.0", "+10.0", "+17.0"]
    assert [row["Median"] for row in rows] == ["+3.0", "+10.0", "+17.0"]
    assert [row["Worst"] for row in rows] == ["0.0", "+7.0", "+14.0"]
    assert rows[2]["p"] == stats.wilcoxon([0.01 * n for n in range(14, 21)]).pvalue
    assert rows[2]["p (Holm)"] == pytest.approx(3 * rows[2]["p"])
    assert "for the 3 tests" in compared.notes[0]


def of_volumes(name: str, dice: list[float], truth_ml: list[float]) -> ArmResult:
    cases = tuple(
        CaseScores(f"c{n}", f"c{n}", {"tumor": replace(scores(value), truth_ml=volume)})
        for n, (value, volume) in enumerate(zip(dice, truth_ml, strict=True))
    )
    return arm(name, replace(run({}), evaluation=Evaluation(("tumor",), cases)))


def test_dice_is_stratified_by_tumor_volume_and_roll() -> None:
    """Small tumors are hard, and a mean over all sizes hides where arms differ. The limits are fixed."""
    truth_ml = [0.0, 2.0, 4.0, 20.0, 40.0, 100.0, 200.0]
    results = {"augmented": of_volumes("augmented", [0.0, 0.1, 0.3, 0.8, 0.9, 0.9, 0.9], truth_ml),
               "pose": of_volumes("pose", [0.0, 0.5, 0.7, 0.8, 0.8, 0.9, 0.5], truth_ml)}  # fmt: skip
    [table] = group_tables(results, "augmented", {})
    assert [c.name for c in table.columns][2:] == ["below 20 ml", "20 to 100 ml", "100 ml and more"]
    assert [row[2:] for row in table.rows] == [
        ("0.200 (0.200, 0.100)", "0.850 (0.850, 0.800)", "0.900 (0.900, 0.900)"),
        ("0.600 (0.600, 0.500)", "0.800 (0.800, 0.800)", "0.700 (0.700, 0.500)"),
    ]
    assert "below 20 ml: 2 scans" in table.notes[0]
    # Turned to either side; one of whom no roll is known.
    rolls = {f"c{n}": np.radians(angle) for n, angle in enumerate([0.0, -9.0, 10.0, -24.0, 25.0, -179.0])}
    groups = roll_strata(rolls)(results["pose"].cases)
    assert {name: [case.case for case in cases] for name, cases in groups.items()} == {
        "below 10 degrees": ["c0", "c1"],
        "10 to 25 degrees": ["c2", "c3"],
        "25 degrees and more": ["c4", "c5"],
    }
    assert [t.caption for t in group_tables(results, "augmented", rolls)] == [
        "Dice by roll", "Dice by tumor volume",
    ]  # fmt: skip


def test_a_goal_needs_its_mean_interval_and_corrected_p_value() -> None:
    rng = np.random.default_rng(5)
    base = rng.uniform(0.5, 0.7, 40).tolist()
    volumes = [50.0] * 40

    def results_with(gain: np.ndarray) -> dict[str, dict[str, ArmResult]]:
        posed = of_volumes("pose", [a + float(b) for a, b in zip(base, gain, strict=True)], volumes)
        return {"paper": {"augmented": of_volumes("augmented", base, volumes), "pose": posed}}

    [(goal, result)] = primary(results_with(rng.normal(0.03, 0.01, 40)))
    assert (goal.preset, goal.arm, goal.structure, goal.points) == ("paper", "pose", "tumor", 1.6)
    assert result.p_value == pytest.approx(result.raw_p * len(GOALS)), "the goals not run count"
    assert goal.is_reached(result)
    # A gain that is sure and too small, and one that is large and unsure.
    assert not goal.is_reached(primary(results_with(rng.normal(0.01, 0.005, 40)))[0][1])
    assert not goal.is_reached(primary(results_with(rng.normal(0.03, 0.3, 40)))[0][1])
    no_worse = next(each for each in GOALS if each.kind == "no worse")
    assert no_worse.points == -0.9
    assert no_worse.is_reached(replace(result, low=-0.008))
    assert not no_worse.is_reached(replace(result, mean=0.05, low=-0.0095))
    assert not no_worse.is_reached(replace(result, p_value=None)), "too few patients"
    [section] = _make_primary_section(results_with(rng.normal(0.03, 0.01, 40)))
    assert "8 goals, of which 1 were run" in section.text[0]
    assert _make_primary_section({"paper": {}}) == []
    table = goal_table([(goal, result)])
    row = dict(zip([c.name for c in table.columns], table.rows[0], strict=True))
    assert (row["Goal (points)"], row["Reached"]) == ("+1.6, gain", "yes")
    assert row["Difference (points)"] == f"{100 * result.mean:+.1f}"


def test_failures_are_counted_over_all_runs() -> None:
    right, wrong = {"tumor": {"known": ["c0"], "wrong": []}}, {"tumor": {"known": ["c0"], "wrong": ["c0"]}}
    one = of_volumes("pose", [0.0, 0.8], [10.0, 10.0]).runs[0]
    missed = replace(scores(0.0), prediction_ml=0.0)
    case = CaseScores("c2", "c2", {"tumor": missed})
    other = replace(one, seed=1, evaluation=Evaluation(("tumor",), (case,)), sides=wrong)
    table = failure_table({"pose": arm("pose", replace(one, sides=right), other)})
    assert table.rows == (("pose", "tumor", 3, 1, 1, 0, "1 of 2"),)
    assert failure_table({"pose": arm("pose", one)}).rows[0][-1] == "not known"


def test_scores_at_equal_steps_equal_time_and_the_end() -> None:
    """The pose arm spends a fifth of its time on the STN, learns faster and was trained longer."""
    base = arm("augmented", run({"a": 1.0}, history=history([0.3] * 3 + [0.6] * 7)),
               run({"a": 1.0}, seed=1, history=history([0.5] * 10)))  # fmt: skip
    rising = [0.5] * 4 + [0.9] * 8 + [1.0] * 8
    posed = arm("pose", run({"a": 1.0}, history=history(rising, stn=50.0)))
    late = arm("crop-full", run({"a": 1.0}, history=history([0.5] * 10, stn=900.0)))
    table = pace_table({"augmented": base, "pose": posed, "crop-full": late}, ["kidney"], "augmented")
    rows = {row[0]: row[1:] for row in table.rows}
    # Ten epochs of 20 CPU seconds, a sixth of it validation: 167 s; the pose arm has had seven of its own.
    assert "167 CPU seconds" in table.notes[0]
    assert rows["augmented"][:3] == ("0.550 (0.500 to 0.600)",) * 3
    assert rows["pose"][:3] == ("0.900", "0.900", "1.000")
    assert rows["crop-full"][:3] == ("0.500", "none yet", "0.500")
    # Of twenty epochs a fifth is four; in the fifth before the mean of three is 0.933, 0.967, 1 and 1.
    assert rows["pose"][-2:] == (pytest.approx(2.5), "no")
    assert rows["augmented"][-2:] == (pytest.approx(0.0), "yes")
    # nnU-Net has no Dice of a label that no validation batch of an epoch shows.
    gaps = tuple(
        {key: value for key, value in row.items() if row["epoch"] > 2 or key != "dice kidney"}
        for row in history([0.0, 0.0, *[0.7] * 10])
    )
    peer = arm("nnunet", run({"a": 1.0}, history=gaps))
    table = pace_table({"augmented": base, "nnunet": peer}, ["kidney"], "augmented")
    assert table.rows[1][1:4] == ("0.700", "0.700", "0.700")
    assert "equal steps: after 10 epochs" in table.notes[0]
    assert curve_rise(history_curve([0.1 * n for n in range(10)])) == pytest.approx(0.2)
    assert curve_rise(history_curve([0.5] * 9)) is None


def history_curve(values: list[float]) -> list[tuple[float, float]]:
    return [(float(n), value) for n, value in enumerate(values)]


def test_the_band_covers_all_runs_and_its_line_is_their_mean() -> None:
    first, second = [(10.0, 0.2), (20.0, 0.4), (30.0, 0.6)], [(15.0, 0.5), (25.0, 0.5)]
    band = band_of([first, second])
    assert band is not None
    seconds, mean, low, high = band
    np.testing.assert_allclose(seconds, [15.0, 20.0, 25.0])
    np.testing.assert_allclose(mean, [0.4, 0.45, 0.5])
    np.testing.assert_allclose(low, [0.3, 0.4, 0.5])
    np.testing.assert_allclose(high, [0.5, 0.5, 0.5])
    assert band_of([[], []]) is None
    assert band_of([[(1.0, 0.1)], [(2.0, 0.1)]]) is None, "never trained at the same time"


def test_a_missed_structure_has_no_hd95() -> None:
    missed = Scores(dice=0.0, surface_dice=0.0, hd95_mm=None, truth_ml=10.0, prediction_ml=0.0)
    alarm = Scores(dice=0.0, surface_dice=0.0, hd95_mm=None, truth_ml=0.0, prediction_ml=1.0)
    empty = Scores(dice=None, surface_dice=None, hd95_mm=None, truth_ml=0.0, prediction_ml=0.0)

    def of(name: str, third: Scores) -> ArmResult:
        cases = (
            CaseScores("a", "a", {"kidney": scores(0.8)}),
            CaseScores("b", "b", {"kidney": missed}),
            CaseScores("c", "c", {"kidney": third}),
        )
        return arm(name, replace(run({}), evaluation=Evaluation(("kidney",), cases)))

    results = {"augmented": of("augmented", empty), "pose": of("pose", alarm)}
    table = score_table(results)
    rows = {row[0]: dict(zip([c.name for c in table.columns], row, strict=True)) for row in table.rows}
    assert rows["pose"]["HD95 (mm): mean"] == pytest.approx(2.0)
    assert rows["pose"]["HD95 (mm): worst"] == "no value"
    assert (rows["pose"]["Missed"], rows["pose"]["False alarms"]) == (1, 1)
    assert (rows["augmented"]["Missed"], rows["augmented"]["False alarms"]) == (1, 0)
    [difference] = differences(results, TO_BASELINE)
    assert (difference.patients, difference.unpaired) == (2, 1), "c's false alarm has nothing to compare with"


def test_runs_of_different_machines_and_folds_are_reported() -> None:
    one = {"device": "cpu", "processor": "A", "threads": "2", "isopose": "1", "torch": "2"}
    same = {
        "x": arm("pose", run({"a": 1.0}, made=one)),
        "y": arm("nnunet", run({"a": 1.0}, made=one | {"nnunetv2": "3"})),
    }
    assert _note_machines(same) == ()
    other = same | {"z": arm("plain", run({"a": 1.0}, made=one | {"processor": "B"}))}
    [note] = _note_machines(other)
    assert "cpu, A, 2 threads; isopose 1, torch 2 | cpu, B, 2 threads" in note
    assert "not recorded" in _note_machines({"x": arm("pose", run({"a": 1.0}))})[0]
    both = arm("augmented", run({"a": 1.0}), run({"b": 1.0}, fold=1))
    [note] = _note_uneven_runs({"augmented": both, "pose": arm("pose", run({"a": 1.0}))})
    assert "(seeds 0: pose; seed 0 folds 0 1: augmented)" in note
    assert _note_uneven_runs({"augmented": both, "pose": both}) == ()


def test_arms_are_compared_with_others_than_the_baseline_and_in_surface_dice() -> None:
    results = {
        "pose": arm("pose", run({"a": 0.8, "b": 0.6})),
        "moments": arm("moments", run({"a": 0.5, "b": 0.7})),
    }
    assert pairs_with_baseline(results, "moments") == [("pose", "moments")]
    pairs = [("pose", "moments"), ("moments", "pose"), ("pose", "nnunet")]
    first, second = differences(results, pairs, metric="surface_dice")
    assert (first.arm, first.against, first.better) == ("pose", "moments", 1)
    assert (first.mean, second.mean) == (pytest.approx(0.1), pytest.approx(-0.1))
    table = difference_table([first, second], "both")
    assert [column.name for column in table.columns][:3] == ["Arm", "Against", "Target"]
    assert [row[:2] for row in table.rows] == [("pose", "moments"), ("moments", "pose")]
    assert set(sum(FURTHER_COMPARISONS, ())) <= set(BY_NAME)


def test_time_to_a_score_counts_pose_and_crop_and_leaves_validation_out() -> None:
    values = [0.0, 0.3, 0.6, 0.6, 0.9]
    plain = arm("augmented", run({"a": 1.0}, history=history(values)))
    assert [round(s, 3) for _, s in smoothed(plain.runs[0].curve("dice kidney"))] == [
        0.0,
        0.15,
        0.3,
        0.5,
        0.7,
    ]
    assert goals(plain, "dice kidney") == {(0, 0): pytest.approx(0.7)}
    expected = {(0, 0): 0.45, (1, 0): 0.45}
    assert times_to(plain, "dice kidney", expected) == {(0, 0): pytest.approx(40.0)}
    posed = arm(
        "pose",
        run({"a": 1.0}, history=history(values, stn=7.0)),
        run({"a": 1.0}, seed=1, history=history([0.1] * 5)),
    )
    # One of the two runs never gets there.
    assert times_to(posed, "dice kidney", expected) == {(0, 0): pytest.approx(47.0), (1, 0): None}
    # Twenty CPU seconds an epoch, of which validation has the part that it has of the clock's: two of twelve.
    in_cpu = times_to(posed, "dice kidney", {(0, 0): 0.45}, "cpu_seconds")
    assert in_cpu == {(0, 0): pytest.approx(7.0 + 4 * 20.0 * 10.0 / 12.0)}
    assert posed.seconds == pytest.approx(60.0 + 7.0 / 2)
    assert posed.cpu_seconds == pytest.approx(100.0 + 7.0 / 2)


def test_arms_of_nnunet_are_compared_with_nnunet_including_homogenization_time() -> None:
    values = [0.3] * 5 + [0.6] * 5
    before = {
        "stage": "homogenize",
        "epoch": 1,
        "seconds": 12.0,
        "cpu_seconds": 12.0,
        "validation_seconds": 0.0,
    }
    faster = (before, *history([0.6] * 10))
    results = {"nnunet": arm("nnunet", run({"a": 1.0}, history=history(values))),
               "nnunet-homogenized": arm("nnunet-homogenized", run({"a": 1.0}, history=faster))}  # fmt: skip
    table = time_table(results, ["kidney"], "nnunet")
    # It holds 0.6 for three epochs after eight of them, and after one: 10 s each, and 12 of homogenizing.
    assert [row[:2] for row in table.rows] == [
        ("nnunet", "1:20 min (1.00)"), ("nnunet-homogenized", "0:22 min (0.28)"),
    ]  # fmt: skip
    assert "on homogenized slices" in table.notes[-1]
    assert not any("not by patient: not comparable" in note for note in table.notes)
    mixed = results | {"pose": arm("pose", run({"a": 1.0}))}
    assert any(
        "not by patient: not comparable" in note for note in time_table(mixed, ["kidney"], "nnunet").notes
    )


def test_each_seed_is_compared_on_its_own_validation_patients() -> None:
    """The patients of the second seed are harder: its baseline scores lower and sets the target score."""
    easy, hard = [0.3, 0.6, 0.9, 0.9, 0.9], [0.1, 0.2, 0.3, 0.3, 0.3]
    base = arm("augmented", run({"a": 1.0}, history=history(easy)),
               run({"a": 1.0}, seed=1, history=history(hard)))  # fmt: skip
    posed = arm("pose", run({"a": 1.0}, history=history([0.9] * 5, stn=5.0)),
                run({"a": 1.0}, seed=1, history=history([0.3] * 5)))  # fmt: skip
    alone = arm("plain", run({"a": 1.0}, seed=1, history=history([0.1, 0.3, 0.3, 0.3, 0.1])))
    other = arm("moments", run({"a": 1.0}, seed=2, history=history(easy)))
    results = {each.arm.name: each for each in (base, posed, alone, other)}
    assert goals(base, "dice kidney") == pytest.approx({(0, 0): 0.9, (1, 0): 0.3})
    table = time_table(results, ["kidney"], "augmented")
    cells = {row[0]: row[1:] for row in table.rows}
    # 50 s of 10 s an epoch in both of the baseline's; 15 and 10 s with the pose.
    assert cells["augmented"] == ("0:50 min (1.00)", "83 (1.00)")
    assert cells["pose"] == ("0:12 min (0.25)", "19 (0.23)")
    # Held to the baseline of its seed alone, in the first three epochs' mean not yet.
    assert cells["plain"] == ("0:40 min (0.80)", "67 (0.80)")
    assert cells["moments"] == ("–", "–"), "the baseline has no such seed"
    assert "kidney 0.900, 0.300" in table.notes[0]


def test_memory_is_the_increase_during_the_stage() -> None:
    assert run({"a": 1.0}).memory_mb() == 100.0
    assert run({"a": 1.0}).memory_mb("pose") is None


def test_an_empty_study_has_no_results(tmp_path: Path) -> None:
    assert load_results(tmp_path) == {}
