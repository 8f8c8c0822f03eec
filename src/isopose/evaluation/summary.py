"""Summarize a cohort's scores: means by patient, strata of age and size, paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from isopose.errors import InputError
from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import METRICS, Scores

#: Name, first year and the year before which each stratum ends.
AGE_STRATA: tuple[tuple[str, float, float], ...] = (
    ("0 to 2 years", 0.0, 2.0),
    ("2 to 6 years", 2.0, 6.0),
    ("6 to 12 years", 6.0, 12.0),
    ("12 to 18 years", 12.0, 18.0),
    ("adult", 18.0, np.inf),
)

#: Fewest pairs for a Wilcoxon test: with five, p cannot fall below 0.06.
MIN_PAIRS = 6


@dataclass(frozen=True)
class Statistic:
    """One metric over a group of patients.

    Args:
        patients: number of patients with a value, each counted once by the mean of their scans.
        mean: mean over patients; ``None`` without any.
        sd: standard deviation over patients (n - 1); ``None`` below two.
        median: median over patients.
        worst: the worst scan's value; ``None`` if that scan has no value because a mask is empty on one side,
            which is worse than any distance.
        worst_case: that scan's id; ``None`` if no scan counts.
        without_value: scans with a structure on one side only, or partly labeled, and hence no value of this
            metric.
    """

    patients: int
    mean: float | None
    sd: float | None
    median: float | None
    worst: float | None
    worst_case: str | None
    without_value: int


@dataclass(frozen=True)
class Summary:
    """One target over a group of scans.

    Args:
        target: name of the structure or union.
        scans: number of scans.
        patients: number of patients.
        missed: scans in which the structure is there and nothing was predicted.
        false_alarms: scans in which it is not there and something was predicted.
        empty: scans in which it is neither present nor predicted; they are left out of all means.
        statistics: by metric, in the order of :data:`isopose.evaluation.metrics.METRICS`.
    """

    target: str
    scans: int
    patients: int
    missed: int
    false_alarms: int
    empty: int
    statistics: Mapping[str, Statistic]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; each metric is a key."""
        values = asdict(self)
        statistics = values.pop("statistics")
        return values | statistics


def summarize(cases: Sequence[CaseScores], target: str) -> Summary:
    """Summarize one target: average scans within each patient, then over patients."""
    outcomes = [case.scores[target].outcome for case in cases]
    return Summary(
        target,
        scans=len(cases),
        patients=len({case.patient for case in cases}),
        missed=outcomes.count("missed"),
        false_alarms=outcomes.count("false alarm"),
        empty=outcomes.count("empty"),
        statistics={metric: _statistic(cases, target, metric) for metric in METRICS},
    )


def by_patient(cases: Sequence[CaseScores], target: str, metric: str) -> dict[str, float]:
    """Return patient to the mean over their scans with a value; patients without any are left out."""
    values: dict[str, list[float]] = {}
    for case in cases:
        value = getattr(case.scores[target], metric)
        if value is not None:
            values.setdefault(case.patient, []).append(value)
    return {patient: float(np.mean(scans)) for patient, scans in values.items()}


def badness(scores: Scores, metric: str) -> tuple[float, float]:
    """Return a sort key that grows with a scan's error.

    A scan without value ranks worst if only one of its masks is empty, and last if both are or if it was
    partly labeled, so that the value is not known.
    """
    value = getattr(scores, metric)
    if scores.outcome == "empty" or (value is None and not _is_infinite(scores, metric)):
        return -np.inf, 0.0
    badness_of_value = np.inf if value is None else value if METRICS[metric].lower_is_better else -value
    # Among equals, such as several missed structures, the larger one is the worse miss.
    return badness_of_value, scores.truth_ml


def _is_infinite(scores: Scores, metric: str) -> bool:
    """Return whether a value is missing since one mask is empty, not since surfaces are not known."""
    return metric == "hd95_mm" and scores.outcome != "scored" and scores.surface_dice is not None


def _mean(values: np.ndarray) -> float | None:
    """Return the mean; None without values."""
    return float(values.mean()) if len(values) else None


def _sd(values: np.ndarray) -> float | None:
    """Return the standard deviation (n - 1); None with fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _statistic(cases: Sequence[CaseScores], target: str, metric: str) -> Statistic:
    values = np.array(list(by_patient(cases, target, metric).values()))
    counted = [case for case in cases if case.scores[target].outcome != "empty"]
    ranked = [
        case
        for case in counted
        if np.isfinite(badness(case.scores[target], metric)[0]) or _is_infinite(case.scores[target], metric)
    ]
    worst = max(ranked, key=lambda case: badness(case.scores[target], metric), default=None)
    return Statistic(
        patients=len(values),
        mean=_mean(values),
        sd=_sd(values),
        median=float(np.median(values)) if len(values) else None,
        worst=getattr(worst.scores[target], metric) if worst else None,
        worst_case=worst.case if worst else None,
        without_value=sum(getattr(case.scores[target], metric) is None for case in counted),
    )


def age_strata(cases: Sequence[CaseScores]) -> dict[str, tuple[CaseScores, ...]]:
    """Return scans by age at the scan, youngest first; empty if no age is known.

    A stratum includes its lower limit and excludes its upper one. Scans of unknown age form a stratum of
    their own.
    """
    if all(case.age_years is None for case in cases):
        return {}
    groups = {
        name: tuple(c for c in cases if c.age_years is not None and first <= c.age_years < last)
        for name, first, last in AGE_STRATA
    }
    groups["age unknown"] = tuple(case for case in cases if case.age_years is None)
    return {name: members for name, members in groups.items() if members}


def size_strata(cases: Sequence[CaseScores]) -> dict[str, tuple[CaseScores, ...]]:
    """Return scans by body size in thirds of the cohort, smallest first; empty below three known sizes."""
    sizes = np.array([case.body_size_mm for case in cases if case.body_size_mm is not None])
    if len(sizes) < 3:
        return {}
    low, high = np.quantile(sizes, [1 / 3, 2 / 3])
    middle = f"middle ({low:.0f} to {high:.0f} mm)"
    names = (f"small (to {low:.0f} mm)", middle, f"large (over {high:.0f} mm)")
    groups: dict[str, list[CaseScores]] = {name: [] for name in (*names, "size unknown")}
    for case in cases:
        size = case.body_size_mm
        name = "size unknown" if size is None else names[int(size > low) + int(size > high)]
        groups[name].append(case)
    return {name: tuple(members) for name, members in groups.items() if members}


@dataclass(frozen=True)
class PairedDifference:
    """One metric of one target in two evaluations of the same patients.

    Args:
        target: name of the structure or union.
        metric: which score.
        patients: patients with a value in both.
        mean_a: mean over these in the first evaluation.
        mean_b: mean over these in the second.
        mean_difference: mean of second minus first; ``None`` without pairs.
        sd_difference: its standard deviation (n - 1).
        better: patients for whom the second is better.
        worse: patients for whom it is worse.
        p_value: two-sided Wilcoxon signed-rank test; ``None`` below :data:`MIN_PAIRS` patients.
        unpaired: patients with a value in one of the two only, such as a structure missed once.
    """

    target: str
    metric: str
    patients: int
    mean_a: float | None
    mean_b: float | None
    mean_difference: float | None
    sd_difference: float | None
    better: int
    worse: int
    p_value: float | None
    unpaired: int


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same labels, patient by patient.

    Args:
        differences: one entry per shared target and metric.
        only_a: scans that only the first evaluation scored, left out.
        only_b: scans that only the second evaluation scored, left out.
    """

    differences: tuple[PairedDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations of the same scans, e.g. without and with homogenization.

    Raises:
        InputError: no scan or target in common, different tolerances, or different ground-truth labels.
    """
    if a.tolerance_mm != b.tolerance_mm:
        raise InputError(
            f"cannot compare surface Dice at {a.tolerance_mm:g} mm with {b.tolerance_mm:g} mm; evaluate again"
        )
    cases_a, cases_b = ({case.case: case for case in evaluation.cases} for evaluation in (a, b))
    shared = [case for case in cases_a if case in cases_b]
    targets = [target for target in a.targets if target in b.targets]
    if not shared or not targets:
        raise InputError("cannot compare the evaluations: they have no scan or no target in common")
    for case in shared:
        for target in targets:
            volumes = (cases_a[case].scores[target].truth_ml, cases_b[case].scores[target].truth_ml)
            if not np.isclose(*volumes, rtol=1e-6):
                raise InputError(
                    f"{case}: {target} measures {volumes[0]:.4g} ml in one evaluation's labels and "
                    f"{volumes[1]:.4g} ml in the other's; evaluate both against the same labels"
                )
    differences = [
        _paired([cases_a[case] for case in shared], [cases_b[case] for case in shared], target, metric)
        for target in targets
        for metric in METRICS
    ]
    return Comparison(
        tuple(differences),
        only_a=tuple(case for case in cases_a if case not in cases_b),
        only_b=tuple(case for case in cases_b if case not in cases_a),
    )


def _paired(a: Sequence[CaseScores], b: Sequence[CaseScores], target: str, metric: str) -> PairedDifference:
    def known(case: CaseScores) -> bool:
        return getattr(case.scores[target], metric) is not None

    pairs = list(zip(a, b, strict=True))
    # Pair scans first, so that both means of a patient cover the same scans.
    complete = [(x, y) for x, y in pairs if known(x) and known(y)]
    one_sided = {x.patient for x, y in pairs if known(x) != known(y)}
    values_a = by_patient([x for x, _ in complete], target, metric)
    values_b = by_patient([replace(y, patient=x.patient) for x, y in complete], target, metric)
    first, second = np.array(list(values_a.values())), np.array(list(values_b.values()))
    difference = second - first
    gain = -difference if METRICS[metric].lower_is_better else difference
    return PairedDifference(
        target,
        metric,
        patients=len(first),
        mean_a=_mean(first),
        mean_b=_mean(second),
        mean_difference=_mean(difference),
        sd_difference=_sd(difference),
        better=int((gain > 0).sum()),
        worse=int((gain < 0).sum()),
        p_value=wilcoxon(difference),
        unpaired=len(one_sided),
    )


def wilcoxon(difference: np.ndarray) -> float | None:
    """Return the two-sided p-value of the signed-rank test; 1 if nothing differs."""
    if len(difference) < MIN_PAIRS:
        return None
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference).pvalue)
