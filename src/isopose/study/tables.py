"""The tables of a study: the paper's three, differences, scores, cost and strata."""

import math
from collections.abc import Mapping, Sequence

from isopose.evaluation.evaluate import CaseScores
from isopose.evaluation.summary import METRICS, age_strata, size_strata, summarise
from isopose.evaluation.tables import METRIC_NAMES, NO_VALUE, Cell, Column, Table
from isopose.study.arms import Published
from isopose.study.results import (
    COVERAGE,
    ArmResult,
    Clock,
    Difference,
    Place,
    differences,
    goals,
    times_to,
)

CLOCKS: tuple[Clock, ...] = ("seconds", "cpu_seconds")
#: Names by which labels are the paper's two.
PAPERS = {"kidney": "kidney", "tumour": "tumour", "tumor": "tumour"}
CAPTIONS = {
    1: "Table 1: from other patients to these",
    2: "Table 2: pose and size against augmentation",
    3: "Table 3: the crop and the size of the U-Net's input",
}


def labels_of(results: Mapping[str, ArmResult]) -> tuple[str, ...]:
    """Single labels, in their order, without unions."""
    return tuple(t for t in next(iter(results.values())).targets if "+" not in t)


def paper_table(preset: str, number: int, results: Sequence[ArmResult], labels: Sequence[str]) -> Table:
    """One of the paper's tables: ours, then the paper's row."""
    papers = [label for label in labels if label in PAPERS]
    columns = (
        Column("Architecture", text=True),
        Column("Training time", text=True),
        *((Column("U-Net input", text=True), Column("Memory (MB)")) if number == 3 else ()),
        *(Column(f"Dice {label}", text=True) for label in labels),
        Column("Paper: training", text=True),
        *((Column("Paper: memory (GB)", 2),) if number == 3 else ()),
        *(Column(f"Paper: Dice {label}", text=True) for label in papers),
    )
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        published = result.arm.published
        memory = result.mean([run.memory_mb() for run in result.runs])
        rows.append(
            (
                result.arm.title,
                _clock(result.seconds) if result.runs[0].history else "none",
                *((_input(result), memory) if number == 3 else ()),
                *(_spread(result, label) for label in labels),
                _clock(3600.0 * published.hours) if published and published.hours else NO_VALUE,
                *((published.memory_gb if published else None,) if number == 3 else ()),
                *(_published(published, label) for label in papers),
            )
        )
    return Table(f"{CAPTIONS[number]} ({preset} preset)", columns, tuple(rows))


def _input(result: ArmResult) -> str:
    return result.arm.name.removeprefix("crop-")


def _spread(result: ArmResult, target: str) -> str:
    """Mean (sd) in per cent over patients."""
    statistic = summarise(result.cases, target).dice
    if statistic.mean is None:
        return NO_VALUE
    return f"{100 * statistic.mean:.2f}" + (
        f" ({100 * statistic.sd:.2f})" if statistic.sd is not None else ""
    )


def _published(published: Published | None, label: str) -> str:
    if published is None:
        return NO_VALUE
    mean, sd = getattr(published, PAPERS[label])
    return f"{mean:.2f} ({sd:.2f})"


def difference_table(compared: Sequence[Difference], caption: str) -> Table:
    """An arm's Dice minus the baseline's, for each target and, where there are any, stratum."""
    strata = any(each.stratum for each in compared)
    columns = (
        Column("Arm", text=True),
        Column("Target", text=True),
        *((Column("Stratum", text=True),) * strata),
        Column("Patients"),
        Column("Difference (points)", 1),
        Column(f"{COVERAGE:.0%} interval", text=True),
        Column("Better for"),
        Column("p (Holm)", 4),
    )
    rows = tuple(
        (
            each.arm,
            each.target,
            *((each.stratum,) * strata),
            each.patients,
            100 * each.mean,
            f"{100 * each.low:+.1f} to {100 * each.high:+.1f}",
            each.better,
            each.p_value,
        )
        for each in compared
    )
    return Table(caption, columns, rows)


def score_table(results: Mapping[str, ArmResult]) -> Table:
    """Every metric's mean, spread, median and worst."""
    columns = (
        Column("Arm", text=True),
        Column("Target", text=True),
        Column("Patients"),
        *(Column(f"{METRIC_NAMES[m]}: {what}", 1 if m == "hd95_mm" else 3)
          for m in METRICS for what in ("mean", "sd", "median", "worst")),
        Column("Missed"),
    )  # fmt: skip
    rows = []
    for name, result in results.items():
        for target in result.targets:
            summary = summarise(result.cases, target)
            values: list[Cell] = []
            for metric in METRICS:
                statistic = getattr(summary, metric)
                values += [statistic.mean, statistic.sd, statistic.median, statistic.worst]
            rows.append((name, target, summary.dice.patients, *values, summary.missed))
    return Table(
        "Scores over patients",
        columns,
        tuple(rows),
        notes=("worst and missed: of single scans in single runs; a patient's seeds are averaged elsewhere",),
    )


def cost_table(results: Mapping[str, ArmResult]) -> Table:
    """Training by stage, CPU, memory, size and prediction."""
    columns = (
        Column("Arm", text=True),
        Column("Runs"),
        Column("Training by stage", text=True),
        Column("CPU seconds"),
        Column("Memory of the U-Net (MB)"),
        Column("Peak of the process (MB)"),
        Column("Parameters", text=True),
        Column("Multiply-adds a slice", text=True),
        Column("Volumes predicted a minute", 1),
    )
    rows = []
    for name, result in results.items():
        stages = {
            stage: result.mean([run.seconds().get(stage) for run in result.runs])
            for stage in result.runs[0].seconds()
        }
        peaks = [v["peak_mb"] for run in result.runs for v in run.measures["memory"].values()]
        size = result.runs[0].size
        rows.append(
            (
                name,
                len(result.runs),
                ", ".join(f"{stage} {_clock(value or 0.0)}" for stage, value in stages.items()) or "none",
                result.cpu_seconds if stages else None,
                result.mean([run.memory_mb() for run in result.runs]),
                max(peaks) if peaks else None,
                f"{size['parameters'] / 1e6:.2f} M",
                f"{size['unet_multiply_adds'] / 1e9:.2f} G",
                result.volumes_a_minute,
            )
        )
    return Table("Cost", columns, tuple(rows))


def time_table(results: Mapping[str, ArmResult], labels: Sequence[str], baseline: str) -> Table:
    """Time until an arm's runs hold the validation Dice at which the baseline's of the same seed and fold end.

    In brackets the part of the baseline's own time, of the runs that get there.
    """
    columns = (
        Column("Arm", text=True),
        *(Column(f"{label}{of}", text=True) for of in ("", ", CPU s") for label in labels),
    )
    wanted = {label: goals(results[baseline], f"dice {label}") for label in labels}
    rows = []
    for name, result in results.items():
        if not result.runs[0].history:
            continue
        cells = []
        for clock in CLOCKS:
            for label in labels:
                key = f"dice {label}"
                cells.append(
                    _reached(
                        times_to(result, key, wanted[label], clock),
                        times_to(results[baseline], key, wanted[label], clock),
                        clock,
                    )
                )
        rows.append((name, *cells))
    peers = any(result.arm.peer for result in results.values())
    told = "; ".join(
        f"{label} " + ", ".join(f"{score:.3f}" for _, score in sorted(of_label.items()))
        for label, of_label in wanted.items()
        if of_label
    )
    return Table(
        f"Training until the validation Dice at which {baseline} ends",
        columns,
        tuple(rows),
        notes=(
            f"the mean of three epochs' validation Dice is to reach that at which {baseline} of the same seed "
            f"and fold ends, run by run: {told}; pose and crop included, validation not; in brackets the part "
            f"of {baseline}'s time",
            *(("nnU-Net's is over all slices at once and not by patient: not comparable in height",) * peers),
        ),
    )


def _reached(
    times: Mapping[Place, float | None], of_baseline: Mapping[Place, float | None], clock: Clock
) -> str:
    """Mean time of the runs that get there, its part of the baseline's, and how many get there."""
    pairs = [(seconds, of_baseline.get(place)) for place, seconds in times.items() if seconds is not None]
    if not pairs:
        return "not reached" if times else NO_VALUE
    seconds = sum(mine for mine, _ in pairs) / len(pairs)
    theirs = sum(its or 0.0 for _, its in pairs) / len(pairs)
    part = f" ({seconds / theirs:.2f})" if theirs > 0 else ""
    some = "" if len(pairs) == len(times) else f", {len(pairs)} of {len(times)} runs"
    return (_clock(seconds) if clock == "seconds" else f"{seconds:.0f}") + part + some


def strata_tables(results: Mapping[str, ArmResult], baseline: str) -> list[Table]:
    """Dice by age and by size: means, then differences from the baseline patient by patient."""
    tables = []
    for what, split in (("age", age_strata), ("body size", size_strata)):
        groups = {name: split(result.cases) for name, result in results.items()}
        names = list(dict.fromkeys(stratum for of_arm in groups.values() for stratum in of_arm))
        if len(names) < 2:
            continue
        columns = (Column("Arm", text=True), Column("Target", text=True), *(Column(n, 3) for n in names))
        rows = tuple(
            (name, target, *(_mean_dice(groups[name].get(stratum, ()), target) for stratum in names))
            for name, result in results.items()
            for target in result.targets
        )
        tables.append(Table(f"Dice by {what}", columns, rows))
        if len(results) > 1:
            compared = differences(results, baseline, split)
            tables.append(difference_table(compared, f"Differences from {baseline} by patient and {what}"))
    return tables


def _mean_dice(cases: Sequence[CaseScores], target: str) -> float | None:
    return summarise(cases, target).dice.mean if cases else None


def _clock(seconds: float) -> str:
    """Hours and minutes; below an hour minutes and seconds."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = math.floor(seconds / 60 + 0.5)
    return f"{minutes // 60} h {minutes % 60:02d} min"
