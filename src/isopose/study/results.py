"""The results of a study's runs: by patient, with their spread, and relative to the baseline."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from isopose.errors import InputError
from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.summary import MIN_PAIRS, by_patient, wilcoxon
from isopose.files import read_json
from isopose.study.arms import ARMS, BASELINE, BY_NAME, SOURCE, Arm
from isopose.study.statistics import bootstrap_mean, detectable, holm

#: Seed and fold of a run.
SeedAndFold = tuple[int, int]
#: Wall-clock seconds, or CPU seconds of all cores.
Clock = Literal["seconds", "cpu_seconds"]
CLOCKS: tuple[Clock, ...] = ("seconds", "cpu_seconds")
#: Scores that are compared by patient; distances are not, because a missed structure has none.
PAIRED_SCORES = ("dice", "surface_dice")
#: Number of epochs over which validation Dice is averaged before it is compared with a goal.
AVERAGED_EPOCHS = 3


@dataclass(frozen=True)
class StudyRun:
    """One finished run.

    Args:
        folder: folder of its files, relative to the study's.
        seed: training seed.
        fold: fold of the patients.
        history: one row per epoch, see ``training/checkpoint.py``.
        measures: memory by stage and seconds by predicted scan.
        size: parameters and multiply-adds.
        evaluation: scores of the test patients.
        shown: place (best, median, worst) to the case whose steps are drawn.
        made: device, processor, threads, precision and versions, as far as the run recorded them.
        stn: ``lengths`` of STN1 and STN2 (:class:`isopose.study.lengths.Length`), and the roll errors of STN1
            as ``turning`` (:class:`isopose.models.info.RollCheck`); empty if the run's version recorded none.
        sides: by label the cases whose side is ``known``, and those predicted on the ``wrong`` one
            (:func:`isopose.study.sides.count_sides`); empty if the run's version recorded none.
    """

    folder: str
    seed: int
    fold: int
    history: tuple[Mapping[str, Any], ...]
    measures: Mapping[str, Any]
    size: Mapping[str, float]
    evaluation: Evaluation
    shown: Mapping[str, str]
    made: Mapping[str, str] = field(default_factory=dict)
    stn: Mapping[str, Any] = field(default_factory=dict)
    sides: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    def seconds(self, key: str = "seconds") -> dict[str, float]:
        """Return the training seconds by stage: wall clock, or with ``cpu_seconds`` of all cores."""
        out: dict[str, float] = {}
        for row in self.history:
            out[row["stage"]] = out.get(row["stage"], 0.0) + row[key]
        return out

    def memory_mb(self, stage: str = "unet") -> float | None:
        """Return the peak memory of a stage in MB, without the memory that was in use before it."""
        values = self.measures["memory"].get(stage)
        return None if values is None else values["peak_mb"] - values["before_mb"]

    def curve(self, key: str, clock: Clock = "seconds") -> list[tuple[float, float]]:
        """Return training seconds so far and a validation score at the end of each of the U-Net's epochs.

        The time of validation is not counted. Its CPU seconds were not measured; they are subtracted in
        proportion to its wall-clock time.
        """
        passed, points = 0.0, []
        for row in self.history:
            passed += row[clock] * (1.0 - row["validation_seconds"] / row["seconds"])
            if row["stage"] == "unet" and key in row:
                points.append((passed, float(row[key])))
        return points


@dataclass(frozen=True)
class ArmResult:
    """All runs of an arm in a preset."""

    arm: Arm
    runs: tuple[StudyRun, ...]

    @property
    def cases(self) -> list[CaseScores]:
        """Scores of all scans in all runs, not yet averaged by patient."""
        return [case for run in self.runs for case in run.evaluation.cases]

    @property
    def places(self) -> frozenset[SeedAndFold]:
        """Seed and fold of each run."""
        return frozenset((run.seed, run.fold) for run in self.runs)

    def only(self, places: Collection[SeedAndFold]) -> "ArmResult":
        """Return the arm's runs of these seeds and folds."""
        return replace(self, runs=tuple(run for run in self.runs if (run.seed, run.fold) in places))

    @property
    def targets(self) -> tuple[str, ...]:
        """What was scored."""
        return self.runs[0].evaluation.targets

    def by_patient(self, target: str, metric: str = "dice") -> dict[str, float]:
        """Return each patient's mean over scans and seeds."""
        return by_patient(self.cases, target, metric)

    def mean(self, values: Sequence[float | None]) -> float | None:
        """Return the mean of the known values; None if none is known."""
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, the mean of the runs."""
        return float(np.mean([sum(run.seconds().values()) for run in self.runs]))

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of training on all cores, the mean of the runs."""
        return float(np.mean([sum(run.seconds("cpu_seconds").values()) for run in self.runs]))

    @property
    def volumes_a_minute(self) -> float | None:
        """Volumes predicted per minute, with reading and writing, from the median time of a scan."""
        times = [value["seconds"] for run in self.runs for value in run.measures["predict"].values()]
        return 60.0 / float(np.median(times)) if times else None


Results = dict[str, dict[str, ArmResult]]
#: Scans to groups by name.
Strata = Callable[[Sequence[CaseScores]], Mapping[str, Sequence[CaseScores]]]


def load_results(output: Path) -> Results:
    """Return the finished runs of a study by preset and arm, in the order of the tables.

    Runs of the source are left out.

    Raises:
        InputError: an invalid result file.
    """
    runs_by_arm: dict[str, dict[str, list[StudyRun]]] = {}
    for path in sorted((output / "runs").glob("*/*/seed-*-fold-*/result.json")):
        preset, arm = path.parts[-4], path.parts[-3]
        if arm != SOURCE.name:
            runs_by_arm.setdefault(preset, {}).setdefault(arm, []).append(_read_run(output, path))
    return {
        preset: {arm.name: ArmResult(arm, tuple(by_arm[arm.name])) for arm in ARMS if arm.name in by_arm}
        for preset, by_arm in sorted(runs_by_arm.items())
    }


def load_sources(output: Path) -> dict[str, tuple[StudyRun, ...]]:
    """Return the finished trainings on the source dataset by preset; they have no scores."""
    found: dict[str, list[StudyRun]] = {}
    for path in sorted((output / "runs").glob(f"*/{SOURCE.name}/seed-*-fold-*/result.json")):
        found.setdefault(path.parts[-4], []).append(_read_run(output, path))
    return {preset: tuple(runs) for preset, runs in found.items()}


def _read_run(output: Path, path: Path) -> StudyRun:
    arm, values = path.parts[-3], read_json(path)
    evaluation = Evaluation((), ())
    if arm not in (*BY_NAME, SOURCE.name) or not isinstance(values, dict):
        raise _no_result(path)
    if arm != SOURCE.name:
        if "evaluation" not in values:
            raise _no_result(path)
        evaluation = Evaluation.from_json(values["evaluation"])
    seed, fold = (int(part) for part in path.parent.name.removeprefix("seed-").split("-fold-"))
    return StudyRun(
        folder=str(path.parent.relative_to(output)),
        seed=seed,
        fold=fold,
        history=tuple(values["history"]),
        measures=values["measures"],
        size=values["size"],
        evaluation=evaluation,
        shown=values.get("shown", {}),
        made=values.get("made", {}),
        stn=values.get("stn", {}),
        sides=values.get("sides", {}),
    )


def _no_result(path: Path) -> InputError:
    return InputError(f"{path}: expected the result of a study's run; remove its folder and run again")


def scans_of(results: Mapping[str, ArmResult]) -> list[CaseScores]:
    """Return each scan once, although it was scored in several runs; for facts other than its scores."""
    return list({case.case: case for result in results.values() for case in result.cases}.values())


def baseline_of(results: Mapping[str, ArmResult]) -> str:
    """Return the arm to compare with: :data:`BASELINE`, or the first arm if that was not run."""
    return BASELINE if BASELINE in results else next(iter(results))


@dataclass(frozen=True)
class Difference:
    """An arm's scores minus another's, patient by patient.

    Args:
        arm: name of the arm.
        against: name of the other arm, such as the baseline.
        target: the structure or union that was scored.
        stratum: group of the patients; empty for all patients.
        patients: number of patients with a value in both arms.
        mean, median, worst: of the differences; a few patients may decide the mean.
        low, high: bootstrap interval of the mean, over patients and seeds.
        detectable: mean difference that would have been found with 80 % power (two-sided, 5 %); None where
            there are too few patients for a test.
        better: number of patients for whom the arm's score is higher.
        unpaired: number of patients with a value in one of the two arms only, such as a false alarm.
        raw_p: p of the two-sided Wilcoxon signed-rank test; None below
            :data:`isopose.evaluation.summary.MIN_PAIRS` patients.
        p_value: p after Holm's correction for all comparisons of one call.
    """

    arm: str
    against: str
    target: str
    stratum: str
    patients: int
    mean: float
    median: float
    worst: float
    low: float
    high: float
    detectable: float | None
    better: int
    unpaired: int
    raw_p: float | None
    p_value: float | None


def pairs_with_baseline(results: Mapping[str, ArmResult], baseline: str) -> list[tuple[str, str]]:
    """Return pairs for :func:`differences`: every arm and the baseline."""
    return [(name, baseline) for name in results if name != baseline]


def differences(
    results: Mapping[str, ArmResult],
    pairs: Iterable[tuple[str, str]],
    strata: Strata | None = None,
    metric: str = "dice",
) -> list[Difference]:
    """Compare pairs of arms for every target; p is corrected over all comparisons together.

    Only runs whose seed and fold both arms have are compared, so that a lucky seed does not count.

    Args:
        results: results of the arms by name.
        pairs: an arm and the arm whose scores are subtracted; pairs whose arms were not run are left out.
        metric: a score of which higher is better, and which a missed structure has.
        strata: how scans are grouped, such as :func:`isopose.evaluation.summary.size_strata`; arms are then
            compared within each group.
    """
    scans_once = scans_of(results)
    groups = strata(scans_once) if strata else {"": scans_once}
    run = [(name, other) for name, other in pairs if name in results and other in results]
    rows: list[tuple[tuple[str, str], str, str, int, np.ndarray]] = []
    for stratum, members in groups.items():
        scans = {case.case for case in members}
        for pair in run:
            for target in results[pair[0]].targets:
                values, unpaired = _subtract(results[pair[0]], results[pair[1]], target, metric, scans)
                if len(values):
                    rows.append((pair, target, stratum, unpaired, values))
    raw = [wilcoxon(np.nanmean(values, axis=1)) for *_, values in rows]
    corrected = iter(holm([p for p in raw if p is not None]))
    return [
        _summarize(*row, p, None if p is None else next(corrected)) for row, p in zip(rows, raw, strict=True)
    ]


def _subtract(
    ours: ArmResult, theirs: ArmResult, target: str, metric: str, scans: Collection[str]
) -> tuple[np.ndarray, int]:
    """Return differences ``(patients, seeds)``, NaN without a value in both arms, and unpaired patients.

    A patient who has a value in one arm only, in all seeds, is unpaired.
    """
    shared = ours.places & theirs.places
    seeds = sorted({seed for seed, _ in shared})
    by_arm = []
    for result in (ours, theirs):
        of_seeds = []
        for seed in seeds:
            runs = result.only([place for place in shared if place[0] == seed])
            cases = [case for case in runs.cases if case.case in scans]
            of_seeds.append(by_patient(cases, target, metric))
        by_arm.append(of_seeds)
    patients_by_arm = [{patient for one in of_seeds for patient in one} for of_seeds in by_arm]
    patients = sorted(patients_by_arm[0] & patients_by_arm[1])
    table = np.full((len(patients), len(seeds)), np.nan)
    for column, (mine, its) in enumerate(zip(*by_arm, strict=True)):
        for row, patient in enumerate(patients):
            table[row, column] = mine.get(patient, np.nan) - its.get(patient, np.nan)
    is_complete = np.isfinite(table).any(axis=1)
    return table[is_complete], len(patients_by_arm[0] ^ patients_by_arm[1]) + int(
        np.count_nonzero(~is_complete)
    )


def _summarize(
    pair: tuple[str, str], target: str, stratum: str, unpaired: int, table: np.ndarray,
    raw: float | None, corrected: float | None,
) -> Difference:  # fmt: skip
    values, interval = np.nanmean(table, axis=1), bootstrap_mean(table)
    return Difference(
        arm=pair[0],
        against=pair[1],
        target=target,
        stratum=stratum,
        patients=len(values),
        mean=float(values.mean()),
        median=float(np.median(values)),
        worst=float(values.min()),
        low=interval.low,
        high=interval.high,
        detectable=detectable(interval.error) if len(values) >= MIN_PAIRS else None,
        better=int((values > 0).sum()),
        unpaired=unpaired,
        raw_p=raw,
        p_value=corrected,
    )


def smoothed(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return each point with the mean of the last :data:`AVERAGED_EPOCHS` scores."""
    scores = [score for _, score in curve]
    return [
        (seconds, float(np.mean(scores[max(0, n + 1 - AVERAGED_EPOCHS) : n + 1])))
        for n, (seconds, _) in enumerate(curve)
    ]


def goals(result: ArmResult, key: str) -> dict[SeedAndFold, float]:
    """Return the validation score at which each run of an arm ends, by seed and fold."""
    curves = {(run.seed, run.fold): smoothed(run.curve(key)) for run in result.runs}
    return {place: curve[-1][1] for place, curve in curves.items() if curve}


def times_to(
    result: ArmResult, key: str, wanted: Mapping[SeedAndFold, float], clock: Clock = "seconds"
) -> dict[SeedAndFold, float | None]:
    """Return the training seconds until each run reaches the score that is wanted for its seed and fold.

    Scores of other seeds and folds are not comparable, because they have other validation patients.

    Returns:
        Seconds by seed and fold, for those with a wanted score; ``None`` if the run never reaches it.
    """
    out: dict[SeedAndFold, float | None] = {}
    for run in result.runs:
        place = (run.seed, run.fold)
        if place in wanted:
            points = smoothed(run.curve(key, clock))
            out[place] = next((seconds for seconds, score in points if score >= wanted[place]), None)
    return out
