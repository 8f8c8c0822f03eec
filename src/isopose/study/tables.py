"""The tables of a study: the paper's three, differences, scores, failures and cost."""

import math
from collections.abc import Mapping, Sequence

from isopose.evaluation.metrics import METRICS
from isopose.evaluation.summary import summarize
from isopose.report.tables import NO_VALUE, Cell, Column, Table
from isopose.study.arms import Published
from isopose.study.protocol import ALPHA, GOALS, PAPER_STRUCTURES, Goal
from isopose.study.results import CLOCKS, ArmResult, Difference
from isopose.study.statistics import COVERAGE, POWER

#: Arms whose U-Net sees whole slices as scanned.
WHOLE_SLICE_ARMS = ("plain", "augmented")
DETECTABLE_NOTE = (
    f"detectable: the smallest mean difference that a two-sided test at 5 % finds with {POWER:.0%} power in "
    "these patients and seeds; smaller differences may exist and be missed"
)
#: Note below every table with values of the paper, and the notes of single tables.
PAPER_NOTE = (
    "Paper: La Barbera et al., ISBI 2021: CT of 80 children with renal tumors, 512 x 512 pixels a slice, one "
    "GPU. The dataset and the machine differ: compare the ranking of the arms, not the values."
)
PAPER_NOTES = {
    1: "The paper's Table 1 uses a 3D nnU-Net; this study uses a 2D U-Net.",
    2: "With 128 x 128 pixels and a batch size of 32 the paper reports, for kidney and tumor: nnUNet "
    "83.66 (7.88) and 69.52 (24.61) in 1 h 35 min, with data augmentation 88.99 (3.71) and 74.18 (22.07) "
    "in 2 h 15 min, STN pose-size 86.75 (6.47) and 77.31 (27.36) in 1 h 45 min.",
    3: "The paper's memory is the GPU memory allocated for the nnU-Net.",
}
CAPTIONS = {
    1: "Table 1: transfer learning from other patients",
    2: "Table 2: normalization of pose and size against augmentation",
    3: "Table 3: the crop and the input size of the U-Net",
}


def single_labels(results: Mapping[str, ArmResult]) -> tuple[str, ...]:
    """Return the single labels in their order, without unions."""
    return tuple(t for t in next(iter(results.values())).targets if "+" not in t)


def in_table(result: ArmResult, number: int) -> bool:
    """Return whether an arm is in one of the paper's tables; Table 3 also has :data:`WHOLE_SLICE_ARMS`."""
    return result.arm.table == number or (number == 3 and result.arm.name in WHOLE_SLICE_ARMS)


def paper_table(
    preset: str,
    number: int,
    results: Sequence[ArmResult],
    labels: Sequence[str],
    notes: Sequence[str] = (),
) -> Table:
    """Return one of the paper's tables: this study's results beside the paper's."""
    papers = [label for label in labels if label in PAPER_STRUCTURES]
    columns = (
        Column("Architecture", text=True),
        Column("Arm", text=True),
        Column("Runs"),
        Column("Training time", text=True),
        Column("CPU seconds"),
        *((Column("U-Net input", text=True), Column("Memory (MB)")) if number == 3 else ()),
        *(Column(f"Dice {label}: mean (sd); median; worst", text=True) for label in labels),
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
                format_time(result.seconds) if result.runs[0].history else "none",
                result.cpu_seconds if result.runs[0].history else None,
                *((_name_input(result), memory) if number == 3 else ()),
                *(_format_spread(result, label) for label in labels),
                format_time(3600.0 * published.hours) if published and published.hours else NO_VALUE,
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
    return "whole slice" if result.arm.name in WHOLE_SLICE_ARMS else result.arm.name.removeprefix("crop-")


def _format_spread(result: ArmResult, target: str) -> str:
    """Format mean (sd) and median over patients, and the worst scan, in percent."""
    found = summarize(result.cases, target).statistics["dice"]
    if found.mean is None or found.median is None or found.worst is None:
        return NO_VALUE
    spread = f" ({100 * found.sd:.2f})" if found.sd is not None else ""
    return f"{100 * found.mean:.2f}{spread}; {100 * found.median:.1f}; {100 * found.worst:.1f}"


def _format_published(published: Published | None, label: str) -> str:
    if published is None:
        return NO_VALUE
    mean, sd = getattr(published, PAPER_STRUCTURES[label])
    return f"{mean:.2f} ({sd:.2f})"


#: Columns of :func:`_difference_cells`.
_DIFFERENCE = (
    Column("Patients"),
    Column("Difference (points)", text=True),
    Column(f"{COVERAGE:.0%} interval", text=True),
    Column("Median", text=True),
    Column("Worst", text=True),
    Column("Detectable (points)", 1),
)


def _difference_cells(difference: Difference) -> tuple[Cell, ...]:
    """Return the cells of a difference: patients, mean, interval, median, worst, detectable difference."""
    return (
        difference.patients,
        _format_points(difference.mean),
        f"{_format_points(difference.low)} to {_format_points(difference.high)}",
        _format_points(difference.median),
        _format_points(difference.worst),
        None if difference.detectable is None else 100.0 * difference.detectable,
    )


def difference_table(compared: Sequence[Difference], caption: str) -> Table:
    """Return an arm's scores minus another's, for each target and, where there are any, stratum."""
    strata = any(each.stratum for each in compared)
    unpaired = any(each.unpaired for each in compared)
    several_baselines = len({each.against for each in compared}) > 1
    columns = (
        Column("Arm", text=True),
        *((Column("Against", text=True),) * several_baselines),
        Column("Target", text=True),
        *((Column("Stratum", text=True),) * strata),
        *_DIFFERENCE,
        Column("Patients with a higher score"),
        *((Column("Patients with a value in one arm only"),) * unpaired),
        Column("p", 4),
        Column("p (Holm)", 4),
    )
    rows = tuple(
        (
            each.arm,
            *((each.against,) * several_baselines),
            each.target,
            *((each.stratum,) * strata),
            *_difference_cells(each),
            each.better,
            *((each.unpaired,) * unpaired),
            each.raw_p,
            each.p_value,
        )
        for each in compared
    )
    tests = sum(each.raw_p is not None for each in compared)
    notes = (
        f"p: Wilcoxon signed-rank test; p (Holm): with Holm's correction for the {tests} tests of this table",
        DETECTABLE_NOTE,
    )
    return Table(caption, columns, rows, notes=notes)


def goal_table(goals: Sequence[tuple[Goal, Difference]]) -> Table:
    """Return a table of the protocol's goals, and whether each was reached."""
    columns = (
        Column("Arm", text=True),
        Column("Preset", text=True),
        Column("Against", text=True),
        Column("Target", text=True),
        Column("Goal (points)", text=True),
        *_DIFFERENCE,
        Column("p (Holm)", 4),
        Column("Reached", text=True),
    )
    rows = tuple(
        (
            goal.arm,
            goal.preset,
            goal.against,
            each.target,
            f"{goal.points:+.1f}, {goal.kind}",
            *_difference_cells(each),
            each.p_value,
            "yes" if goal.is_reached(each) else "no",
        )
        for goal, each in goals
    )
    notes = (
        "a gain is reached if the mean difference is at least the goal, its interval lies above 0, and p is "
        f"below {ALPHA:g}; no worse is reached if the interval lies above the goal",
        f"p: Wilcoxon signed-rank test with Holm's correction for all {len(GOALS)} goals, whether run or not",
        DETECTABLE_NOTE,
    )
    return Table("Primary comparisons", columns, rows, notes=notes)


def _format_points(value: float) -> str:
    """Format a difference in points with its sign; a value that rounds to zero has no sign."""
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
                # Without a value, because one of the two masks is empty: worse than any value.
                worst = "no value" if statistic.worst_case and statistic.worst is None else statistic.worst
                values += [statistic.mean, statistic.sd, statistic.median, worst]
            alarms = summary.false_alarms
            rows.append((name, target, summary.statistics["dice"].patients, *values, summary.missed, alarms))
    return Table(
        "Scores over patients",
        columns,
        tuple(rows),
        notes=(
            "worst, missed and false alarms are counted over the single scans of all runs; in the other "
            "columns each patient's seeds are averaged first; HD95 is undefined for a missed structure and "
            "for a false alarm, so its mean leaves them out and favors arms that have many",
        ),
    )


def failure_table(results: Mapping[str, ArmResult]) -> Table:
    """Return how often each arm failed a structure, over the scans of all its runs."""
    columns = (
        Column("Arm", text=True),
        Column("Target", text=True),
        Column("Scans of all runs"),
        Column("Missed"),
        Column("No voxel correct"),
        Column("False alarms"),
        Column("On the wrong side of the body", text=True),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, result in results.items():
        for target in (target for target in result.targets if "+" not in target):
            scores = [case.scores[target] for case in result.cases]
            sides = [run.sides[target] for run in result.runs if target in run.sides]
            known, wrong = (sum(len(one[key]) for one in sides) for key in ("known", "wrong"))
            outcomes = [one.outcome for one in scores]
            rows.append(
                (
                    name,
                    target,
                    len(scores),
                    outcomes.count("missed"),
                    sum(one.outcome == "scored" and one.dice == 0.0 for one in scores),
                    outcomes.count("false alarm"),
                    f"{wrong} of {known}" if known else "not known",
                )
            )
    note = (
        "missed: the structure was not predicted; no voxel correct: the prediction does not overlap the "
        "ground truth; on the wrong side of the body: most of the prediction lies on the other side than the "
        "ground truth, counted where the true pose is known and at least three quarters of the ground truth "
        "lie on one side"
    )
    return Table("Failures", columns, tuple(rows), notes=(note,))


def cost_table(results: Mapping[str, ArmResult]) -> Table:
    """Return a table of training time by stage, CPU seconds, memory, network size and prediction speed."""
    columns = (
        Column("Arm", text=True),
        Column("Runs"),
        Column("Training time by stage (CPU seconds)", text=True),
        Column("CPU seconds of each run", text=True),
        Column("Memory of the U-Net (MB)"),
        Column("Peak memory of the process (MB)"),
        Column("Parameters of all networks", text=True),
        Column("Multiply-adds of the U-Net per slice (3D: per patch)", text=True),
        Column("Scans predicted per minute", 1),
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
                ", ".join(f"{s} {format_time(wall)} ({cpu:.0f})" for s, (wall, cpu) in stages.items())
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
    note = (
        "all runs of an arm do the same work: if their CPU seconds differ, other processes used the machine"
    )
    return Table("Cost", columns, tuple(rows), notes=(note,))


def format_time(seconds: float) -> str:
    """Format a duration in hours and minutes, or below an hour in minutes and seconds."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = math.floor(seconds / 60 + 0.5)
    return f"{minutes // 60} h {minutes % 60:02d} min"
