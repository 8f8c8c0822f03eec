"""Scores as tables, and tables as CSV, Markdown and (through ``html``) HTML."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import METRICS
from isopose.evaluation.summary import (
    Comparison,
    Statistic,
    Summary,
    age_strata,
    badness,
    size_strata,
    summarize,
)
from isopose.files import write_json, write_text

#: Shown for a missing value, since an empty cell would look like an omission.
NO_VALUE = "–"
#: The metric that decides what is worst.
_PRIMARY_METRIC = next(iter(METRICS))

Cell = str | int | float | None
#: Note on scores if some scans are only partly labeled.
LABELED_IN_PART = (
    "A partly labeled scan is scored only where it is labeled; it has no surface Dice and no HD95."
)


@dataclass(frozen=True)
class Column:
    """A table's column.

    Args:
        name: heading, with the unit.
        digits: decimals of its numbers.
        text: whether it holds words, which are set left; numbers are set right.
    """

    name: str
    digits: int = 0
    text: bool = False

    def show(self, value: Cell) -> str:
        """Return the cell as it is read."""
        if value is None:
            return NO_VALUE
        return value if isinstance(value, str) else f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """A captioned table; the first cell of each row is the row's heading.

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.caption}: a row has {len(row)} cells, not {len(self.columns)}")


def to_latex(table: Table) -> str:
    r"""Return the table as a LaTeX ``table`` with ``booktabs`` rules, a caption and notes."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_escape(cell) for cell in cells) + r" \\"

    form = "".join("l" if column.text else "r" for column in table.columns)
    rows = [
        line([column.show(cell) for column, cell in zip(table.columns, row, strict=True)])
        for row in table.rows
    ]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escape(table.caption)}}}",
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            line([column.name for column in table.columns]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par {_escape(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def _escape(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    escapes: dict[str, str | int | None] = {sign: rf"\{sign}" for sign in "&%$#_{}"}
    escapes |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return text.translate(str.maketrans(escapes))


def to_markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown, its caption in bold above and its notes below."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"

    rule = [":--" if column.text else "--:" for column in table.columns]
    lines = [f"**{table.caption}**", "", line([column.name for column in table.columns]), line(rule)]
    for row in table.rows:
        lines.append(line([column.show(cell) for column, cell in zip(table.columns, row, strict=True)]))
    for note in table.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def spread(statistic: Statistic, metric: str) -> str:
    """Return ``mean (sd)``, without the sd below two patients."""
    digits = METRICS[metric].digits
    if statistic.mean is None:
        return NO_VALUE
    sd = f" ({statistic.sd:.{digits}f})" if statistic.sd is not None else ""
    return f"{statistic.mean:.{digits}f}{sd}"


def _format_worst(statistic: Statistic, metric: str) -> str:
    if statistic.worst_case is None:
        return NO_VALUE
    value = "no value" if statistic.worst is None else f"{statistic.worst:.{METRICS[metric].digits}f}"
    return f"{value} ({statistic.worst_case})"


def overall_table(evaluation: Evaluation) -> Table:
    """Return one row per target and metric: mean (sd), median and worst over all patients."""
    columns = (
        Column("Target", text=True),
        Column("Score", text=True),
        Column("Patients"),
        Column("Mean (sd)"),
        Column("Median"),
        Column("Worst scan"),
        Column("Scans without value"),
    )
    rows: list[tuple[Cell, ...]] = []
    for target in evaluation.targets:
        for metric, statistic in summarize(evaluation.cases, target).statistics.items():
            rows.append(
                (
                    target,
                    METRICS[metric].title,
                    statistic.patients,
                    spread(statistic, metric),
                    Column("", METRICS[metric].digits).show(statistic.median),
                    _format_worst(statistic, metric),
                    statistic.without_value,
                )
            )
    return Table("All patients", columns, tuple(rows), notes=(rules(evaluation),))


def counts_table(evaluation: Evaluation) -> Table:
    """Return one row per target: patients, scans, and how many were missed, false alarms or empty."""
    names = ("Patients", "Scans", "Missed", "False alarms", "Empty")
    summaries = [summarize(evaluation.cases, target) for target in evaluation.targets]
    rows = tuple((s.target, s.patients, s.scans, s.missed, s.false_alarms, s.empty) for s in summaries)
    columns = (Column("Target", text=True), *(Column(name) for name in names))
    return Table("Outcomes", columns, rows)


def strata_tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Return tables per age and per body size, if known: one row per stratum and target."""
    groups = {"Age": age_strata(evaluation.cases), "Body size": size_strata(evaluation.cases)}
    first, *others = (Column(f"{metric.title}, mean (sd)") for metric in METRICS.values())
    columns = (
        Column("Group", text=True),
        Column("Target", text=True),
        Column("Patients"),
        Column("Scans"),
        first,
        Column("Median", METRICS[_PRIMARY_METRIC].digits),
        Column("Worst scan"),
        *others,
        Column("Missed / false / empty"),
    )
    note = "HD95 is undefined for missed structures and false alarms; the last column counts them."
    return tuple(
        Table(
            f"By {name.lower()}",
            columns,
            tuple(
                _make_stratum_row(group, summarize(members, target))
                for group, members in strata.items()
                for target in evaluation.targets
            ),
            notes=(note,),
        )
        for name, strata in groups.items()
        if strata
    )


def _make_stratum_row(group: str, summary: Summary) -> tuple[Cell, ...]:
    statistic = summary.statistics[_PRIMARY_METRIC]
    first, *others = (spread(values, metric) for metric, values in summary.statistics.items())
    return (
        group,
        summary.target,
        summary.patients,
        summary.scans,
        first,
        statistic.median,
        _format_worst(statistic, _PRIMARY_METRIC),
        *others,
        f"{summary.missed} / {summary.false_alarms} / {summary.empty}",
    )


#: Columns of one target's scores, with what each shows; the CSV has the same under plainer names.
_SCORE_COLUMNS: tuple[tuple[Column, str], ...] = (
    *((Column(metric.title, metric.digits), name) for name, metric in METRICS.items()),
    (Column("Predicted (ml)", 1), "prediction_ml"),
    (Column("Ground truth (ml)", 1), "truth_ml"),
    (Column("Outcome", text=True), "outcome"),
)


def case_table(evaluation: Evaluation, target: str) -> Table:
    """Return one row per scan, worst Dice first; columns that no scan fills are left out."""
    ordered = sorted(
        evaluation.cases, key=lambda case: badness(case.scores[target], _PRIMARY_METRIC), reverse=True
    )
    facts: list[tuple[Column, Callable[[CaseScores], Cell]]] = [
        (Column("Case", text=True), lambda case: case.case)
    ]
    if any(case.patient != case.case for case in ordered):
        column = Column("Same patient as", text=True)
        facts.append((column, lambda case: None if case.patient == case.case else case.patient))
    if any(case.age_years is not None for case in ordered):
        facts.append((Column("Age (years)", 1), lambda case: case.age_years))
    if any(case.body_size_mm is not None for case in ordered):
        facts.append((Column("Body size (mm)", 0), lambda case: case.body_size_mm))
    rows = tuple(
        (
            *(value(case) for _, value in facts),
            *(getattr(case.scores[target], name) for _, name in _SCORE_COLUMNS),
        )
        for case in ordered
    )
    columns = (*(column for column, _ in facts), *(column for column, _ in _SCORE_COLUMNS))
    return Table(f"All scans: {target}, worst first", columns, rows, sortable=True)


def comparison_table(comparison: Comparison, name_a: str, name_b: str) -> Table:
    """Return one row per target and metric, the same patients on both sides."""
    columns = (
        Column("Target", text=True),
        Column("Score", text=True),
        Column("Patients"),
        Column(name_a),
        Column(name_b),
        Column("Difference, mean (sd)"),
        Column("Better"),
        Column("Worse"),
        Column("Wilcoxon p"),
        Column("Unpaired"),
    )

    def format_value(value: float | None, digits: int, sign: str = "") -> str:
        return NO_VALUE if value is None else f"{value:{sign}.{digits}f}".replace("-", "−")

    rows: list[tuple[Cell, ...]] = []
    for d in comparison.differences:
        metric = METRICS[d.metric]
        sd = "" if d.sd_difference is None else f" ({format_value(d.sd_difference, metric.digits)})"
        rows.append(
            (
                d.target,
                metric.title,
                d.patients,
                format_value(d.mean_a, metric.digits),
                format_value(d.mean_b, metric.digits),
                format_value(d.mean_difference, metric.digits, "+") + sd,
                d.better,
                d.worse,
                _format_p(d.p_value),
                d.unpaired,
            )
        )
    notes = [
        f"Difference: {name_b} minus {name_a}, over the same patients. Better and worse are numbers of "
        "patients. p: two-sided Wilcoxon signed-rank test with at least six patients, not corrected for the "
        "number of tests. Unpaired: patients with a value in only one of the two, for example because a "
        "structure was missed in one."
    ]
    notes += [
        f"Only in {name}, left out: {', '.join(cases)}."
        for name, cases in ((name_a, comparison.only_a), (name_b, comparison.only_b))
        if cases
    ]
    return Table(f"{name_b} against {name_a}", columns, tuple(rows), notes=tuple(notes))


def _format_p(p: float | None) -> str:
    if p is None:
        return NO_VALUE
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def rules(evaluation: Evaluation) -> str:
    """Return a text on how to read the scores."""
    return (
        "Scores are computed in 3D on each scan's own grid. The scans of a patient are averaged first. "
        f"Surface Dice has a tolerance of {evaluation.tolerance_mm:g} mm; HD95 is the larger of the two "
        "directed 95th percentiles. A missed structure and a false alarm have Dice 0, surface Dice 0 and no "
        "HD95. A scan in which the structure is neither present nor predicted (empty) is left out of all "
        "means."
    ) + (f" {LABELED_IN_PART}" if _is_any_labeled_in_part(evaluation) else "")


def _is_any_labeled_in_part(evaluation: Evaluation) -> bool:
    scores = (scores for case in evaluation.cases for scores in case.scores.values())
    return any(score.surface_dice is None for score in scores if score.outcome != "empty")


def left_out(evaluation: Evaluation) -> tuple[str, ...]:
    """Return sentences about scans that were not scored."""
    sentences = []
    if evaluation.missing:
        sentences.append(
            f"Without a prediction, left out of all means ({len(evaluation.missing)}): "
            f"{', '.join(evaluation.missing)}."
        )
    if evaluation.failed:
        names = ", ".join(evaluation.failed)
        sentences.append(f"Could not be scored, left out of all means ({len(evaluation.failed)}): {names}.")
    if evaluation.unlabeled:
        names = ", ".join(evaluation.unlabeled)
        sentences.append(f"Predictions without a label, not scored ({len(evaluation.unlabeled)}): {names}.")
    return tuple(sentences)


def markdown(evaluation: Evaluation) -> str:
    """Return all tables of an evaluation as one Markdown page."""
    tables = [overall_table(evaluation), counts_table(evaluation), *strata_tables(evaluation)]
    tables += [case_table(evaluation, target) for target in evaluation.targets]
    version = evaluation.provenance.get("isopose", "unknown version")
    inputs = evaluation.provenance.get("inputs_sha256", "unknown")
    source = f"Made by isopose {version}; SHA-256 over the hashes of all inputs: `{inputs}`.\n"
    parts = ["# Scores\n", *(f"{sentence}\n" for sentence in left_out(evaluation))]
    return "\n".join([*parts, *(to_markdown(table) for table in tables), source])


def csv_text(evaluation: Evaluation) -> str:
    """Return one row per scan and target, full precision, empty cells where no value exists."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [name for _, name in _SCORE_COLUMNS]
    writer.writerow(["case", "patient", "age_years", "body_size_mm", "target", *names])
    for case in evaluation.cases:
        for target in evaluation.targets:
            values = [getattr(case.scores[target], name) for name in names]
            writer.writerow([case.case, case.patient, case.age_years, case.body_size_mm, target, *values])
    return stream.getvalue()


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write ``scores.csv``, ``scores.json`` and ``scores.md``; the same evaluation gives the same bytes."""
    folder = Path(folder)
    write_text(folder / "scores.csv", csv_text(evaluation))
    write_json(folder / "scores.json", evaluation.to_json() | {"summary": _summarize_strata(evaluation)})
    write_text(folder / "scores.md", markdown(evaluation))


def _summarize_strata(evaluation: Evaluation) -> dict[str, object]:
    groups = {"all": {"all": evaluation.cases}, "age": age_strata(evaluation.cases)}
    groups["body_size"] = size_strata(evaluation.cases)
    return {
        kind: {
            name: {target: summarize(members, target).to_json() for target in evaluation.targets}
            for name, members in strata.items()
        }
        for kind, strata in groups.items()
    }
