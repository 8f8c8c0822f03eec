import pytest

from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import Scores
from isopose.evaluation.summary import compare
from isopose.report.tables import (
    Column,
    Table,
    case_table,
    comparison_table,
    counts_table,
    csv_text,
    markdown,
    overall_table,
    strata_tables,
    to_markdown,
)


def cohort(shift=0.0):
    good, fair = Scores(0.9, 0.95, 1.5, 10.0, 11.0), Scores(0.6 + shift, 0.5, 12.25, 5.0, 9.0)
    missed, empty = Scores(0.0, 0.0, None, 0.0, 3.0), Scores(None, None, None, 0.0, 0.0)
    return Evaluation(
        ("kidney", "tumor"),
        (
            CaseScores("case_1", "case_1", {"kidney": good, "tumor": missed}, 1.0, 150.0),
            CaseScores("case_2", "case_1", {"kidney": fair, "tumor": empty}, 7.0, 200.0),
            CaseScores("case_3", "case_3", {"kidney": good, "tumor": good}, None, 250.0),
        ),
        missing=("case_4",),
        unlabeled=("case_9",),
        provenance={"isopose": "1.2.3", "inputs_sha256": "abc"},
    )


def rows(table):
    return [tuple(c.show(cell) for c, cell in zip(table.columns, row, strict=True)) for row in table.rows]


def test_overall_table_shows_mean_sd_median_worst_and_what_has_no_value():
    assert rows(overall_table(cohort())) == [
        ("kidney", "Dice", "2", "0.825 (0.106)", "0.825", "0.600 (case_2)", "0"),
        ("kidney", "Surface Dice", "2", "0.837 (0.159)", "0.837", "0.500 (case_2)", "0"),
        ("kidney", "HD95 (mm)", "2", "4.2 (3.8)", "4.2", "12.2 (case_2)", "0"),
        ("tumor", "Dice", "2", "0.450 (0.636)", "0.450", "0.000 (case_1)", "0"),
        ("tumor", "Surface Dice", "2", "0.475 (0.672)", "0.475", "0.000 (case_1)", "0"),
        ("tumor", "HD95 (mm)", "1", "1.5", "1.5", "no value (case_1)", "1"),
    ]


def test_counts_of_scans_and_patients():
    assert rows(counts_table(cohort())) == [
        ("kidney", "2", "3", "0", "0", "0"),
        ("tumor", "2", "3", "1", "0", "1"),
    ]


def test_strata_put_each_scan_in_its_own_age():
    ages, sizes = strata_tables(cohort())
    groups = [(row[0], row[1], row[3], row[4]) for row in rows(ages)]
    assert groups == [
        ("0 to 2 years", "kidney", "1", "0.900"),
        ("0 to 2 years", "tumor", "1", "0.000"),
        ("6 to 12 years", "kidney", "1", "0.600"),
        ("6 to 12 years", "tumor", "1", "–"),
        ("age unknown", "kidney", "1", "0.900"),
        ("age unknown", "tumor", "1", "0.900"),
    ]
    assert [row[0] for row in rows(sizes)][::2] == [
        "small (to 183 mm)",
        "middle (183 to 217 mm)",
        "large (over 217 mm)",
    ]


def test_case_table_is_worst_first_and_empty_last():
    table = case_table(cohort(), "tumor")
    assert [column.name for column in table.columns][:4] == [
        "Case",
        "Same patient as",
        "Age (years)",
        "Body size (mm)",
    ]
    assert rows(table) == [
        ("case_1", "–", "1.0", "150", "0.000", "0.000", "–", "0.0", "3.0", "missed"),
        ("case_3", "–", "–", "250", "0.900", "0.950", "1.5", "10.0", "11.0", "scored"),
        ("case_2", "case_1", "7.0", "200", "–", "–", "–", "0.0", "0.0", "empty"),
    ]


def test_comparison_table_has_sign_and_direction():
    table = comparison_table(compare(cohort(), cohort(shift=0.2)), "without", "with")
    assert rows(table)[0] == (
        "kidney", "Dice", "2", "0.825", "0.875", "+0.050 (0.071)", "1", "0", "–", "0",
    )  # fmt: skip


def test_the_markdown_page_lists_omitted_cases_and_sources():
    page = markdown(cohort())
    assert page.startswith("# Scores\n")
    assert "Without a prediction, left out of all means (1): case_4." in page
    assert "Predictions without a label, not scored (1): case_9." in page
    assert "`abc`" in page
    assert "| kidney | Dice | 2 | 0.825 (0.106) | 0.825 | 0.600 (case_2) | 0 |" in page


def test_markdown_cells_cannot_break_the_table():
    table = Table("T", (Column("A", text=True), Column("B", 1)), (("a|b\nc", 1.25),))
    assert to_markdown(table).splitlines()[2:] == ["| A | B |", "| :-- | --: |", r"| a\|b c | 1.2 |"]


def test_csv_keeps_full_precision_and_leaves_no_value_empty():
    lines = csv_text(cohort(shift=0.1 / 3)).splitlines()
    assert lines[0].split(",")[:6] == ["case", "patient", "age_years", "body_size_mm", "target", "dice"]
    assert lines[2] == "case_1,case_1,1.0,150.0,tumor,0.0,0.0,,0.0,3.0,missed"
    assert float(lines[3].split(",")[5]) == 0.6 + 0.1 / 3
    assert len(lines) == 7


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells, not 1"):
        Table("T", (Column("A"),), ((1, 2),))


@pytest.mark.parametrize(
    ("value", "shown"), [(1, "1.00"), (0.125, "0.12"), (None, "–"), ("x", "x"), (0.0, "0.00")]
)
def test_all_numbers_of_a_column_have_the_same_format(value, shown):
    assert Column("c", 2).show(value) == shown
