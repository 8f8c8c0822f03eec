"""The tables of a study: the paper's three, differences, scores, cost and strata."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from isopose.evaluation.evaluate import CaseScores
from isopose.evaluation.metrics import METRICS
from isopose.evaluation.summary import FEWEST_PAIRS, age_strata, size_strata, summarize
from isopose.report.tables import NO_VALUE, Cell, Column, Table
from isopose.study.arms import Published
from isopose.study.results import (
    COVERAGE,
    ArmResult,
    Clock,
    Difference,
    Place,
    against,
    differences,
    goals,
    scans_of,
    times_to,
)

#: Of structures by their volume.
THIRDS = ("small", "middle", "large")
#: Arms whose U-Net sees the slice as it lies.
WHOLE = ("plain", "augmented")
CLOCKS: tuple[Clock, ...] = ("seconds", "cpu_seconds")
#: Names by which labels are the paper's two.
PAPERS = {"kidney": "kidney", "tumor": "tumor", "tumour": "tumor"}
#: Below every table that has the paper's values in it, and below each what is its own.
PAPER_NOTE = (
    "Paper: La Barbera et al., ISBI 2021: 80 children with renal tumors, slices of 512 x 512 pixels, one "
    "GPU. Another dataset, another machine: to be compared in order, not in height."
)
PAPER_NOTES = {
    1: "The paper's Table 1 is of a 3D nnU-Net; here the U-Net is of slices.",
    2: "At 128 x 128 pixels and 32 slices a batch the paper has, for kidney and tumor: nnUNet 83.66 (7.88) "
    "and 69.52 (24.61) in 1 h 35 min, with data augmentation 88.99 (3.71) and 74.18 (22.07) in 2 h 15 min, "
    "STN pose-size 86.75 (6.47) and 77.31 (27.36) in 1 h 45 min.",
    3: "The paper's memory is what its GPU allocated for the nnU-Net.",
}
CAPTIONS = {
    1: "Table 1: from other patients to these",
    2: "Table 2: pose and size against augmentation",
    3: "Table 3: the crop and the size of the U-Net's input",
}


def labels_of(results: Mapping[str, ArmResult]) -> tuple[str, ...]:
    """Single labels, in their order, without unions."""
    return tuple(t for t in next(iter(results.values())).targets if "+" not in t)


def in_table(result: ArmResult, number: int) -> bool:
    """Whether an arm is in one of the paper's tables; Table 3 begins with the two without pose and crop."""
    return result.arm.table == number or (number == 3 and result.arm.name in WHOLE)


def paper_table(
    preset: str,
    number: int,
    results: Sequence[ArmResult],
    labels: Sequence[str],
    notes: Sequence[str] = (),
) -> Table:
    """Return one of the paper's tables: ours, then the paper's row."""
    papers = [label for label in labels if label in PAPERS]
    columns = (
        Column("Architecture", text=True),
        Column("Arm", text=True),
        Column("Runs"),
        Column("Training time", text=True),
        Column("CPU seconds"),
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
                result.arm.name,
                len(result.runs),
                _format_time(result.seconds) if result.runs[0].history else "none",
                result.cpu_seconds if result.runs[0].history else None,
                *((_name_input(result), memory) if number == 3 else ()),
                *(_format_spread(result, label) for label in labels),
                _format_time(3600.0 * published.hours) if published and published.hours else NO_VALUE,
                *((published.memory_gb if published else None,) if number == 3 else ()),
                *(_format_published(published, label) for label in papers),
            )
        )
    return Table(
        f"{CAPTIONS[number]} ({preset} preset)",
        columns,
        tuple(rows),
        notes=(*notes, PAPER_NOTE, PAPER_NOTES[number]),
    )


def _name_input(result: ArmResult) -> str:
    return "whole slice" if result.arm.name in WHOLE else result.arm.name.removeprefix("crop-")


def _format_spread(result: ArmResult, target: str) -> str:
    """Mean (sd) in per cent over patients."""
    statistic = summarize(result.cases, target).statistics["dice"]
    if statistic.mean is None:
        return NO_VALUE
    return f"{100 * statistic.mean:.2f}" + (
        f" ({100 * statistic.sd:.2f})" if statistic.sd is not None else ""
    )


def _format_published(published: Published | None, label: str) -> str:
    if published is None:
        return NO_VALUE
    mean, sd = getattr(published, PAPERS[label])
    return f"{mean:.2f} ({sd:.2f})"


def difference_table(compared: Sequence[Difference], caption: str) -> Table:
    """Return an arm's scores minus another's, for each target and, where there are any, stratum."""
    strata = any(each.stratum for each in compared)
    unpaired = any(each.unpaired for each in compared)
    others = len({each.against for each in compared}) > 1
    columns = (
        Column("Arm", text=True),
        *((Column("Against", text=True),) * others),
        Column("Target", text=True),
        *((Column("Stratum", text=True),) * strata),
        Column("Patients"),
        Column("Difference (points)", text=True),
        Column(f"{COVERAGE:.0%} interval", text=True),
        Column("Median", text=True),
        Column("Better for"),
        *((Column("Value in one arm only"),) * unpaired),
        Column("p", 4),
        Column("p (Holm)", 4),
    )
    rows = tuple(
        (
            each.arm,
            *((each.against,) * others),
            each.target,
            *((each.stratum,) * strata),
            each.patients,
            _format_points(each.mean),
            f"{_format_points(each.low)} to {_format_points(each.high)}",
            _format_points(each.median),
            each.better,
            *((each.unpaired,) * unpaired),
            each.raw_p,
            each.p_value,
        )
        for each in compared
    )
    tests = sum(each.raw_p is not None for each in compared)
    note = f"p of Wilcoxon's signed-rank test, and corrected after Holm for the {tests} tests of this table"
    return Table(caption, columns, rows, notes=(note,))


def _format_points(value: float) -> str:
    """Hundredths with their sign; what rounds to nothing has none."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def score_table(results: Mapping[str, ArmResult]) -> Table:
    """Return every metric's mean, spread, median and worst."""
    columns = (
        Column("Arm", text=True),
        Column("Target", text=True),
        Column("Patients"),
        *(Column(f"{metric.title}: {what}", metric.digits)
          for metric in METRICS.values() for what in ("mean", "sd", "median", "worst")),
        Column("Missed"),
        Column("False alarms"),
    )  # fmt: skip
    rows = []
    for name, result in results.items():
        for target in result.targets:
            summary = summarize(result.cases, target)
            values: list[Cell] = []
            for statistic in summary.statistics.values():
                # No value on a structure that one side lacks is worse than any.
                worst = "no value" if statistic.worst_case and statistic.worst is None else statistic.worst
                values += [statistic.mean, statistic.sd, statistic.median, worst]
            alarms = summary.false_alarms
            rows.append((name, target, summary.statistics["dice"].patients, *values, summary.missed, alarms))
    return Table(
        "Scores over patients",
        columns,
        tuple(rows),
        notes=(
            "worst, missed and false alarms: of single scans in single runs; a patient's seeds are averaged "
            "elsewhere; a missed structure and a false alarm have no HD95 and are not in its mean, which so "
            "flatters arms with many of them",
        ),
    )


def cost_table(results: Mapping[str, ArmResult]) -> Table:
    """Training by stage, CPU, memory, size and prediction."""
    columns = (
        Column("Arm", text=True),
        Column("Runs"),
        Column("Training by stage (CPU seconds)", text=True),
        Column("CPU seconds by run", text=True),
        Column("Memory of the U-Net (MB)"),
        Column("Peak of the process (MB)"),
        Column("Parameters, all networks", text=True),
        Column("Multiply-adds of the U-Net, a slice (3D: a patch)", text=True),
        Column("Volumes predicted a minute", 1),
    )
    rows = []
    for name, result in results.items():
        stages = {
            stage: tuple(
                result.mean([run.seconds(clock).get(stage) for run in result.runs]) or 0.0 for clock in CLOCKS
            )
            for stage in result.runs[0].seconds()
        }
        peaks = [v["peak_mb"] for run in result.runs for v in run.measures["memory"].values()]
        size = result.runs[0].size
        rows.append(
            (
                name,
                len(result.runs),
                ", ".join(f"{s} {_format_time(wall)} ({cpu:.0f})" for s, (wall, cpu) in stages.items())
                or "none",
                ", ".join(f"{sum(run.seconds('cpu_seconds').values()):.0f}" for run in result.runs)
                if stages
                else None,
                result.mean([run.memory_mb() for run in result.runs]),
                max(peaks) if peaks else None,
                f"{size['parameters'] / 1e6:.2f} M",
                f"{size['unet_multiply_adds'] / 1e9:.2f} G",
                result.volumes_a_minute,
            )
        )
    note = "runs of an arm do the same work: where their CPU seconds differ, other work disturbed them"
    return Table("Cost", columns, tuple(rows), notes=(note,))


def time_table(results: Mapping[str, ArmResult], labels: Sequence[str], baseline: str) -> Table:
    """Time until runs hold the validation Dice at which the baseline's of the same seed and fold ends.

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
                    _format_times(
                        times_to(result, key, wanted[label], clock),
                        times_to(results[baseline], key, wanted[label], clock),
                        clock,
                    )
                )
        rows.append((name, *cells))
    peers = any(result.arm.peer for result in results.values())
    shown = "; ".join(
        f"{label} " + ", ".join(f"{score:.3f}" for _, score in sorted(of_label.items()))
        for label, of_label in wanted.items()
        if of_label
    )
    return Table(
        f"Training until the validation Dice at which {baseline} ends",
        columns,
        tuple(rows),
        notes=(
            f"the mean of three epochs' validation Dice is to reach that at which {baseline} of the same "
            f"seed and fold ends ({shown}); pose and crop included, validation not; in brackets the part of "
            f"{baseline}'s own time",
            *(("nnU-Net's is over all slices at once and not by patient: not comparable in height",) * peers),
        ),
    )


def _format_times(
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
    return (_format_time(seconds) if clock == "seconds" else f"{seconds:.0f}") + part + some


def strata_tables(results: Mapping[str, ArmResult], baseline: str) -> list[Table]:
    """Dice by age and by size: means, then differences from the baseline patient by patient."""
    tables = []
    for what, split in (("age", age_strata), ("body size", size_strata)):
        # Once for all arms: by its own runs' scans each would have other limits.
        groups = {name: {case.case for case in cases} for name, cases in split(scans_of(results)).items()}
        names = list(groups)
        if len(names) < 2:
            continue
        columns = (Column("Arm", text=True), Column("Target", text=True), *(Column(n, 3) for n in names))
        rows = tuple(
            (name, target, *(_average_dice(result.cases, ids, target) for ids in groups.values()))
            for name, result in results.items()
            for target in result.targets
        )
        tables.append(Table(f"Dice by {what}", columns, rows))
        compared = differences(results, against(results, baseline), split)
        # Of fewer neither a test nor an interval says anything; study-results.json has them all.
        enough = [each for each in compared if each.patients >= FEWEST_PAIRS]
        if enough:
            tables.append(difference_table(enough, f"Differences from {baseline} by patient and {what}"))
    volumes = _make_volume_table(results)
    return [*tables, volumes] if volumes else tables


def _make_volume_table(results: Mapping[str, ArmResult]) -> Table | None:
    """Dice by the volume of the structure itself, in thirds of the scans that have it."""
    scans = scans_of(results)
    columns = (Column("Arm", text=True), Column("Target", text=True), *(Column(n, 3) for n in THIRDS))
    rows: list[tuple[Cell, ...]] = []
    limits = []
    for target in next(iter(results.values())).targets:
        volumes = {case.case: case.scores[target].truth_ml for case in scans}
        there = [volume for volume in volumes.values() if volume > 0]
        if len(there) < len(THIRDS):
            continue
        low, high = np.quantile(there, [1 / 3, 2 / 3])
        limits.append(f"{target} {low:.3g} and {high:.3g} ml")
        groups = [
            {case for case, volume in volumes.items() if first < volume <= last}
            for first, last in ((0.0, low), (low, high), (high, np.inf))
        ]
        rows += [
            (name, target, *(_average_dice(result.cases, ids, target) for ids in groups))
            for name, result in results.items()
        ]
    if not rows:
        return None
    note = f"limits by the reference: {'; '.join(limits)}; scans without the structure are left out"
    return Table("Dice by the structure's volume", columns, tuple(rows), notes=(note,))


def _average_dice(cases: Sequence[CaseScores], ids: Collection[str], target: str) -> float | None:
    return summarize([case for case in cases if case.case in ids], target).statistics["dice"].mean


def _format_time(seconds: float) -> str:
    """Hours and minutes; below an hour minutes and seconds."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = math.floor(seconds / 60 + 0.5)
    return f"{minutes // 60} h {minutes % 60:02d} min"
