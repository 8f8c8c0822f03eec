"""A report as one HTML file that needs no network: tables, pictures and what they mean."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from isopose.evaluation.evaluate import Evaluation
from isopose.evaluation.metrics import Scores
from isopose.evaluation.summary import Comparison, badness
from isopose.files import write_text
from isopose.report.plots import score_against_age, score_dots
from isopose.report.tables import (
    Cell,
    Column,
    Table,
    case_table,
    comparison_table,
    counts_table,
    left_out,
    overall_table,
    strata_tables,
)
from isopose.version import __version__

#: Scans below this Dice are listed as failures.
FAILURE_DICE = 0.5

#: Limits stated in every report.
LIMITS = (
    "isopose is research software and not a medical device. Nothing here may guide a diagnosis or treatment.",
    "Scores apply only to scans like those that were scored: validate on your own scans.",
)

#: Further limits stated in reports on synthetic patients.
PHANTOM_LIMITS = (
    "The patients are phantoms: synthetic images, drawn from published data on growth and organs. Results on "
    "phantoms show that the method works in principle, not that it works on patients.",
)


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG that is stored within the report.

    Args:
        data: the file's bytes.
        alt: alternative text.
        caption: text below the picture.

    Raises:
        ValueError: neither PNG nor SVG, or no alternative text.
    """

    data: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a picture in a report needs a text that describes it")
        _ = self.kind

    @property
    def kind(self) -> str:
        """MIME type."""
        if self.data.startswith(b"\x89PNG\r\n\x1a\n"):
            return "image/png"
        if self.data.lstrip().startswith((b"<svg", b"<?xml")):
            return "image/svg+xml"
        raise ValueError("a picture in a report has to be PNG or SVG")

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class ReportSection:
    """A part of a report.

    Args:
        title: heading.
        text: paragraphs before the tables.
        tables: tables.
        pictures: pictures after the tables.
        notices: warnings that are set off, before the tables.
        notes: small print at the end.
    """

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def write_report(
    path: Path,
    *,
    title: str,
    lead: str | Sequence[str],
    facts: Mapping[str, str],
    sections: Sequence[ReportSection],
) -> None:
    """Write a report; every text is escaped, so that a case's name cannot become markup."""
    write_text(Path(path), report_html(title=title, lead=lead, facts=facts, sections=sections))


def report_html(
    *, title: str, lead: str | Sequence[str], facts: Mapping[str, str], sections: Sequence[ReportSection]
) -> str:
    """Return the page of :func:`write_report` as text; the same input gives the same text."""
    environment = Environment(
        loader=PackageLoader("isopose.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    paragraphs = (lead,) if isinstance(lead, str) else tuple(lead)
    template = environment.get_template("report.html.jinja")
    return template.render(title=title, lead=paragraphs, facts=dict(facts), sections=tuple(sections))


def write_evaluation_report(path: Path, evaluation: Evaluation) -> None:
    """Write the report on an evaluation alone; the same evaluation gives the same bytes."""
    patients = {case.patient for case in evaluation.cases}
    write_report(
        path,
        title="Scores",
        lead="Agreement of predicted labels with the ground truth, in 3D on each scan's own grid.",
        facts={
            "Scans": str(len(evaluation.cases)),
            "Patients": str(len(patients)),
            "Targets": ", ".join(evaluation.targets),
            "Tolerance of the surface Dice": f"{evaluation.tolerance_mm:g} mm",
            "isopose": __version__,
        },
        sections=(*evaluation_sections(evaluation), limits_section()),
    )


def evaluation_sections(evaluation: Evaluation) -> tuple[ReportSection, ...]:
    """Return the sections of an evaluation: all patients, by age and size, failures, every scan."""
    dots = Picture(
        score_dots(evaluation),
        f"Dice of each of {len(evaluation.cases)} scans per target; the values are in the tables below.",
        "Each dot is a scan. The box shows the quartiles, the line in it the median. A square is a missed "
        "structure or a false alarm.",
    )
    scores = ReportSection(
        "Scores",
        tables=(overall_table(evaluation), counts_table(evaluation)),
        pictures=(dots,),
        notices=left_out(evaluation),
    )
    strata = strata_tables(evaluation)
    plot = score_against_age(evaluation)
    by_group = ReportSection(
        "By age and body size",
        tables=strata,
        pictures=(
            (Picture(plot, "Dice of each scan over age, one panel per target; values as in the table."),)
            if plot
            else ()
        ),
    )
    every = ReportSection(
        "All scans",
        text=("Worst first. Click a column heading to sort.",),
        tables=tuple(case_table(evaluation, target) for target in evaluation.targets),
    )
    return (scores, *((by_group,) if strata else ()), failures_section(evaluation), every)


def failures_section(evaluation: Evaluation) -> ReportSection:
    """Return structures that were missed, false alarms, or below :data:`FAILURE_DICE`; worst first."""

    def failed(scores: Scores) -> bool:
        return scores.dice is not None and (scores.dice < FAILURE_DICE or scores.outcome == "false alarm")

    failures = [
        (case, target)
        for case in evaluation.cases
        for target in evaluation.targets
        if failed(case.scores[target])
    ]
    failures.sort(key=lambda entry: badness(entry[0].scores[entry[1]], "dice"), reverse=True)
    rows: list[tuple[Cell, ...]] = []
    for case, target in failures:
        scores = case.scores[target]
        outcome = scores.outcome if scores.outcome != "scored" else "poor overlap"
        rows.append(
            (case.case, target, outcome, scores.dice, scores.hd95_mm, scores.prediction_ml, scores.truth_ml)
        )
    columns = (
        Column("Case", text=True),
        Column("Target", text=True),
        Column("Outcome", text=True),
        Column("Dice", 3),
        Column("HD95 (mm)", 1),
        Column("Predicted (ml)", 1),
        Column("Ground truth (ml)", 1),
    )
    kinds = f"Missed structures, false alarms, and structures with a Dice below {FAILURE_DICE:g}"
    if not rows:
        return ReportSection("Failures", text=(f"{kinds}: none.",))
    return ReportSection(
        "Failures",
        text=(f"{kinds}.",),
        tables=(Table("Failures, worst first", columns, tuple(rows), sortable=True),),
    )


def comparison_section(comparison: Comparison) -> ReportSection:
    """Return the comparison of an evaluation without homogenization and one with it.

    See :func:`isopose.evaluation.summary.compare`.
    """
    table = comparison_table(comparison, "without", "with")
    return ReportSection("With and without homogenization", tables=(table,))


def limits_section(*, phantom: bool = False, more: tuple[str, ...] = ()) -> ReportSection:
    """Return the limits of the report; with ``phantom`` also those of synthetic patients."""
    return ReportSection("Limits", text=(*LIMITS, *(PHANTOM_LIMITS if phantom else ()), *more))
