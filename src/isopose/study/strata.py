"""Dice in predefined groups of patients: by age, body size, roll and tumor volume."""

from collections.abc import Collection, Mapping, Sequence

from isopose.evaluation.evaluate import CaseScores
from isopose.evaluation.summary import MIN_PAIRS, age_strata, size_strata, summarize
from isopose.report.tables import NO_VALUE, Column, Table
from isopose.study.protocol import roll_strata, volume_strata
from isopose.study.results import ArmResult, Strata, differences, pairs_with_baseline, scans_of
from isopose.study.tables import difference_table


def strata_of(rolls: Mapping[str, float]) -> dict[str, Strata]:
    """Return the functions that group scans, by what they group by.

    Args:
        rolls: true angle in radians by case, of phantoms; empty where it is unknown.
    """
    return {
        "age": age_strata,
        "body size": size_strata,
        "roll": roll_strata(rolls),
        "tumor volume": volume_strata,
    }


def group_tables(results: Mapping[str, ArmResult], baseline: str, rolls: Mapping[str, float]) -> list[Table]:
    """Return tables of Dice by group: mean, median and worst, then paired differences from the baseline.

    Args:
        results: results of the arms by name.
        baseline: the arm whose scores are subtracted from the others'.
        rolls: see :func:`strata_of`.
    """
    tables = []
    for stratum, split in strata_of(rolls).items():
        # The limits are computed once, from the scans of all arms, so that all arms have the same groups.
        groups = {name: {case.case for case in cases} for name, cases in split(scans_of(results)).items()}
        names = list(groups)
        if len(names) < 2:
            continue
        columns = (
            Column("Arm", text=True),
            Column("Target", text=True),
            *(Column(n, text=True) for n in names),
        )
        rows = tuple(
            (name, target, *(_format_dice(result.cases, ids, target) for ids in groups.values()))
            for name, result in results.items()
            for target in result.targets
        )
        sizes = "; ".join(f"{name}: {len(ids)} scans" for name, ids in groups.items())
        note = f"mean over patients (median, worst scan); {sizes}"
        tables.append(Table(f"Dice by {stratum}", columns, rows, notes=(note,)))
        compared = differences(results, pairs_with_baseline(results, baseline), split)
        # With fewer patients, test and interval are not meaningful; study-results.json has all groups.
        enough = [each for each in compared if each.patients >= MIN_PAIRS]
        if enough:
            tables.append(difference_table(enough, f"Differences from {baseline} by patient and {stratum}"))
    return tables


def _format_dice(cases: Sequence[CaseScores], ids: Collection[str], target: str) -> str:
    found = summarize([case for case in cases if case.case in ids], target).statistics["dice"]
    if found.mean is None or found.median is None or found.worst is None:
        return NO_VALUE
    return f"{found.mean:.3f} ({found.median:.3f}, {found.worst:.3f})"
