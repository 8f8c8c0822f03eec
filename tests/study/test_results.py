"""Means by patient, differences with intervals and corrected p, and time to a score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import Scores
from isopose.study.arms import BY_NAME, FURTHER
from isopose.study.report import _note_machines, _note_uneven_runs
from isopose.study.results import (
    ArmResult,
    StudyRun,
    against,
    differences,
    goals,
    holm,
    interval,
    load_results,
    steady,
    times_to,
)
from isopose.study.tables import difference_table, score_table, strata_tables, time_table


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


def test_only_seeds_that_both_have_are_compared() -> None:
    """The second seed was kinder to all; the arm that has it is not better for that."""
    base = arm("augmented", run({"a": 0.5, "b": 0.6}), run({"a": 0.9, "b": 0.9}, seed=1))
    single = arm("pose", run({"a": 0.6, "b": 0.7}))
    [difference] = differences({"augmented": base, "pose": single}, TO_BASELINE)
    assert difference.mean == pytest.approx(0.1)
    other = arm("pose", run({"a": 0.6, "b": 0.7}, seed=2))
    assert differences({"augmented": base, "pose": other}, TO_BASELINE) == []


def test_a_patients_seeds_are_averaged_before_anything_else() -> None:
    result = arm("pose", run({"a": 0.6, "b": 0.8}), run({"a": 0.8, "b": 1.0}, seed=1))
    assert result.by_patient("kidney") == pytest.approx({"a": 0.7, "b": 0.9})
    base = arm("augmented", run({"a": 0.5, "b": 0.9}), run({"a": 0.7, "b": 0.9}, seed=1))
    [difference] = differences({"augmented": base, "pose": result}, TO_BASELINE)
    assert (difference.arm, difference.target, difference.patients) == ("pose", "kidney", 2)
    assert difference.mean == pytest.approx(0.05)
    assert difference.better == 1
    assert difference.p_value is None, "two patients are too few for a test"


def test_p_values_are_wilcoxons_corrected_over_all_rows() -> None:
    rng = np.random.default_rng(3)
    base = {p: float(v) for p, v in zip(PATIENTS, rng.uniform(0.5, 0.8, 8), strict=True)}
    better = {p: v + 0.1 + 0.01 * n for n, (p, v) in enumerate(base.items())}
    same = {p: v + (0.01 if n % 2 else -0.011) for n, (p, v) in enumerate(base.items())}
    results = {"augmented": arm("augmented", run(base)), "pose": arm("pose", run(better)),
               "plain": arm("plain", run(same))}  # fmt: skip
    found = {each.arm: each for each in differences(results, TO_BASELINE)}
    raw = stats.wilcoxon([better[p] - base[p] for p in PATIENTS]).pvalue
    assert found["pose"].p_value == pytest.approx(2 * raw)
    assert found["plain"].p_value == stats.wilcoxon([same[p] - base[p] for p in PATIENTS]).pvalue
    assert found["pose"].low < found["pose"].mean < found["pose"].high
    assert found["pose"].low > 0.1


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
    """An arm with one fold of two has other scans, and by these alone its thirds would lie elsewhere."""
    sizes = {p: 100.0 + 10 * n for n, p in enumerate(PATIENTS)}
    first, second = dict.fromkeys(PATIENTS[:3], 0.5), dict.fromkeys(PATIENTS[3:], 0.5)
    base = arm("augmented", run(first, sizes=sizes), run(second, fold=1, sizes=sizes))
    posed = arm("pose", run(dict.fromkeys(first, 0.7), sizes=sizes))
    dice, volumes = strata_tables({"augmented": base, "pose": posed}, "augmented")
    assert [c.name for c in dice.columns] == [
        "Arm", "Target", "small (to 123 mm)", "middle (123 to 147 mm)", "large (over 147 mm)",
    ]  # fmt: skip
    # 100, 110 and 120 mm: all small.
    assert {row[0]: row[2:] for row in dice.rows} == {
        "augmented": (0.5, 0.5, 0.5),
        "pose": (pytest.approx(0.7), None, None),
    }
    assert volumes.caption == "Dice by the structure's volume", "three patients are not compared"


def test_strata_of_enough_patients_are_compared() -> None:
    names = [f"q{n}" for n in range(21)]
    sizes = {q: 100.0 + n for n, q in enumerate(names)}
    base = arm("augmented", run(dict.fromkeys(names, 0.5), sizes=sizes))
    posed = arm("pose", run({q: 0.5 + 0.01 * n for n, q in enumerate(names)}, sizes=sizes))
    _, compared, _ = strata_tables({"augmented": base, "pose": posed}, "augmented")
    rows = [dict(zip([c.name for c in compared.columns], row, strict=True)) for row in compared.rows]
    assert [row["Patients"] for row in rows] == [7, 7, 7]
    assert [row["Difference (points)"] for row in rows] == ["+3.0", "+10.0", "+17.0"]
    assert [row["Median"] for row in rows] == ["+3.0", "+10.0", "+17.0"]
    assert rows[2]["p"] == stats.wilcoxon([0.01 * n for n in range(14, 21)]).pvalue
    assert rows[2]["p (Holm)"] == pytest.approx(3 * rows[2]["p"])
    assert "for the 3 tests" in compared.notes[0]


def test_dice_by_the_volume_of_the_structure() -> None:
    """What is small is hard: a mean over all sizes hides where arms differ."""
    truth_ml = [0.0, 2.0, 4.0, 20.0, 40.0, 80.0, 90.0]

    def of(name: str, dice: list[float]) -> ArmResult:
        cases = tuple(
            CaseScores(f"c{n}", f"c{n}", {"kidney": replace(scores(value), truth_ml=volume)})
            for n, (value, volume) in enumerate(zip(dice, truth_ml, strict=True))
        )
        return arm(name, replace(run({}), evaluation=Evaluation(("kidney",), cases)))

    results = {"augmented": of("augmented", [0.0, 0.1, 0.3, 0.8, 0.8, 0.9, 0.9]),
               "pose": of("pose", [0.0, 0.5, 0.7, 0.8, 0.8, 0.9, 0.9])}  # fmt: skip
    [table] = strata_tables(results, "augmented")
    assert [column.name for column in table.columns][2:] == ["small", "middle", "large"]
    assert [row[2:] for row in table.rows] == [pytest.approx((0.2, 0.8, 0.9)), pytest.approx((0.6, 0.8, 0.9))]
    assert "kidney 14.7 and 53.3 ml" in table.notes[0]


def test_a_miss_has_no_hd95_and_is_reported_so() -> None:
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
    assert against(results, "moments") == [("pose", "moments")]
    pairs = [("pose", "moments"), ("moments", "pose"), ("pose", "nnunet")]
    first, second = differences(results, pairs, metric="surface_dice")
    assert (first.arm, first.against, first.better) == ("pose", "moments", 1)
    assert (first.mean, second.mean) == (pytest.approx(0.1), pytest.approx(-0.1))
    table = difference_table([first, second], "both")
    assert [column.name for column in table.columns][:3] == ["Arm", "Against", "Target"]
    assert [row[:2] for row in table.rows] == [("pose", "moments"), ("moments", "pose")]
    assert set(sum(FURTHER, ())) <= set(BY_NAME)


def test_holm_against_its_definition() -> None:
    # Holm (1979): sorted p times the number that is left, never falling.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_interval_is_that_of_the_mean_and_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(0.2, 0.1, 60)
    low, high = interval(values)
    error = values.std(ddof=1) / np.sqrt(60)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.005)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.005)
    assert interval(values) == (low, high)


def test_time_to_a_score_counts_pose_and_crop_and_leaves_validation_out() -> None:
    values = [0.0, 0.3, 0.6, 0.6, 0.9]
    plain = arm("augmented", run({"a": 1.0}, history=history(values)))
    assert [round(s, 3) for _, s in steady(plain.runs[0].curve("dice kidney"))] == [0.0, 0.15, 0.3, 0.5, 0.7]
    assert goals(plain, "dice kidney") == {(0, 0): pytest.approx(0.7)}
    wanted = {(0, 0): 0.45, (1, 0): 0.45}
    assert times_to(plain, "dice kidney", wanted) == {(0, 0): pytest.approx(40.0)}
    posed = arm(
        "pose",
        run({"a": 1.0}, history=history(values, stn=7.0)),
        run({"a": 1.0}, seed=1, history=history([0.1] * 5)),
    )
    # One of the two runs never gets there.
    assert times_to(posed, "dice kidney", wanted) == {(0, 0): pytest.approx(47.0), (1, 0): None}
    # Twenty CPU seconds an epoch, of which validation has the part that it has of the clock's: two of twelve.
    in_cpu = times_to(posed, "dice kidney", {(0, 0): 0.45}, "cpu_seconds")
    assert in_cpu == {(0, 0): pytest.approx(7.0 + 4 * 20.0 * 10.0 / 12.0)}
    assert posed.seconds == pytest.approx(60.0 + 7.0 / 2)
    assert posed.cpu_seconds == pytest.approx(100.0 + 7.0 / 2)


def test_each_seed_is_held_to_its_own_validation_patients() -> None:
    """The second seed's patients were harder: its baseline ended lower, and it is that which counts."""
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


def test_memory_is_what_the_stage_added() -> None:
    assert run({"a": 1.0}).memory_mb() == 100.0
    assert run({"a": 1.0}).memory_mb("pose") is None


def test_an_empty_study_has_no_results(tmp_path: Path) -> None:
    assert load_results(tmp_path) == {}
