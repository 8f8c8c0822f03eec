import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import Scores
from isopose.evaluation.summary import compare
from isopose.report.html import (
    Picture,
    ReportSection,
    comparison_section,
    evaluation_sections,
    failures_section,
    limits_section,
    report_html,
    write_report,
)
from isopose.report.plots import score_against_age, score_dots, training_curves
from isopose.report.tables import Column, Table

SVG = "{http://www.w3.org/2000/svg}"
GOOD, FAIR = Scores(0.9, 0.95, 1.5, 10.0, 11.0), Scores(0.4, 0.5, 12.25, 5.0, 9.0)
MISSED, FALSE_ALARM = Scores(0.0, 0.0, None, 0.0, 3.0), Scores(0.0, 0.0, None, 2.0, 0.0)
EMPTY = Scores(None, None, None, 0.0, 0.0)


def cohort(ages=(1.0, 7.0, 15.0), scores=(GOOD, FAIR, MISSED), name="case_{}"):
    cases = tuple(
        CaseScores(name.format(i), name.format(i), {"kidney": s}, age)
        for i, (age, s) in enumerate(zip(ages, scores, strict=True))
    )
    return Evaluation(("kidney",), cases)


class Page(HTMLParser):
    """Tables as lists of rows of text, and every tag with its attributes; fails on tags left open."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.open, self.cell = [], [], [], None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page(*sections, title="T", lead="L", facts=None):
    return report_html(title=title, lead=lead, facts=facts or {}, sections=sections)


def png():
    stream = BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(stream, "PNG")
    return stream.getvalue()


def test_tables_show_every_cell_with_its_heading():
    table = Table("Caption", (Column("Case", text=True), Column("Dice", 3)), (("a", 0.5), ("b", None)))
    parsed = Page(page(ReportSection("S", tables=(table,))))
    assert parsed.tables == [[["Case", "Dice"], ["a", "0.500"], ["b", "–"]]]
    scopes = [attrs.get("scope") for attrs in parsed.named("th")]
    assert scopes == ["col", "col", "row", "row"]
    assert "<caption>Caption</caption>" in page(ReportSection("S", tables=(table,)))


def test_user_text_is_escaped():
    evil = "<script>alert(1)</script>\"'&"
    table = Table(evil, (Column(evil, text=True),), ((evil,),), sortable=True, notes=(evil,))
    section = ReportSection(
        evil, (evil,), (table,), (Picture(png(), evil, evil),), notices=(evil,), notes=(evil,)
    )
    text = page(section, title=evil, lead=(evil,), facts={evil: evil})
    parsed = Page(text)
    assert len(parsed.named("script")) == 1
    assert text.count("alert(1)") == text.count("&lt;script&gt;alert(1)&lt;/script&gt;")
    assert parsed.named("img")[0]["alt"] == evil
    for plot in (
        score_dots(cohort(name=evil + "{}")),
        training_curves([{"stage": evil, "epoch": 1, "loss": 1}]),
    ):
        assert ElementTree.fromstring(plot).findall(f".//{SVG}script") == []


def test_the_page_needs_no_network_and_embeds_images():
    plot = score_dots(cohort())
    text = page(ReportSection("S", pictures=(Picture(png(), "gray"), Picture(plot, "dots"))))
    sources = [attrs["src"] for attrs in Page(text).named("img")]
    for source, kind, data in zip(sources, ("image/png", "image/svg+xml"), (png(), plot), strict=True):
        assert source.startswith(f"data:{kind};base64,")
        assert base64.b64decode(source.split(",", 1)[1]) == data
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert "default-src 'none'" in Page(text).named("meta")[-1]["content"]


def test_page_has_one_title_an_outline_and_both_modes():
    sections = [ReportSection(f"Part {i}") for i in range(3)]
    parsed = Page(page(*sections))
    assert [len(parsed.named(tag)) for tag in ("h1", "h2", "main")] == [1, 3, 1]
    targets = [attrs["id"] for attrs in parsed.named("h2")]
    assert [attrs["href"] for attrs in parsed.named("a")] == [f"#{target}" for target in targets]
    assert [attrs["aria-labelledby"] for attrs in parsed.named("section")] == targets
    assert parsed.named("html") == [{"lang": "en"}]
    assert "prefers-color-scheme: dark" in page()


def luminance(color):
    full = color if len(color) == 6 else "".join(c * 2 for c in color)
    channels = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_contrast_is_aa_in_light_and_dark():
    modes = [
        dict(re.findall(r"--([a-z-]+): #([0-9a-f]{3,6})", block))
        for block in re.findall(r":root \{[^}]+", page())
    ]
    assert len(modes) == 2
    for mode in modes:
        for ink, ground in (
            ("ink", "page"),
            ("ink", "soft"),
            ("ink", "notice"),
            ("quiet", "page"),
            ("quiet", "soft"),
            ("accent", "page"),
        ):
            light, dark = sorted((luminance(mode[ink]), luminance(mode[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_evaluation_sections_hold_the_scores():
    sections = evaluation_sections(cohort())
    assert [section.title for section in sections] == [
        "Scores",
        "By age and body size",
        "Failures",
        "All scans",
    ]
    parsed = Page(page(*sections))
    overall = parsed.tables[0]
    assert overall[1] == ["kidney", "Dice", "3", "0.433 (0.451)", "0.400", "0.000 (case_2)", "0"]
    assert overall[3][-2:] == ["no value (case_2)", "1"]
    every = parsed.tables[-1]
    assert [row[0] for row in every] == ["Case", "case_2", "case_1", "case_0"]
    without_ages = evaluation_sections(cohort(ages=(None,) * 3))
    assert "By age and body size" not in [section.title for section in without_ages]


def test_failures_list_all_that_failed_and_nothing_else():
    evaluation = cohort(ages=(1.0,) * 5, scores=(GOOD, FAIR, MISSED, FALSE_ALARM, EMPTY))
    (table,) = failures_section(evaluation).tables
    assert [(row[0], row[2]) for row in table.rows] == [
        ("case_2", "missed"),
        ("case_3", "false alarm"),
        ("case_1", "poor overlap"),
    ]
    fine = failures_section(cohort(scores=(GOOD,) * 3))
    assert fine.tables == ()
    assert fine.text[0].endswith(": none.")


def test_comparison_and_limits_have_the_required_sentences():
    comparison = compare(cohort(scores=(replace(FAIR, truth_ml=11.0), FAIR, MISSED)), cohort())
    parsed = Page(page(comparison_section(comparison)))
    assert parsed.tables[0][1] == [
        "kidney", "Dice", "3", "0.267", "0.433", "+0.167 (0.289)", "1", "0", "–", "0",
    ]  # fmt: skip
    assert "not a medical device" in page(limits_section())
    assert "Results on phantoms" not in page(limits_section())
    assert "Results on phantoms" in page(limits_section(phantom=True))


def test_sort_keys_are_exact_and_empty_for_no_value():
    table = Table("T", (Column("A", 1), Column("B", 1)), ((0.123456, None),), sortable=True)
    cells = Page(page(ReportSection("S", tables=(table,)))).named("td")
    assert cells[0]["data-sort"] == ""
    head = [
        attrs for attrs in Page(page(ReportSection("S", tables=(table,)))).named("th") if "data-sort" in attrs
    ]
    assert head[0]["data-sort"] == "0.123456"


def test_the_report_is_written_atomically_and_reproducibly(tmp_path):
    for name in ("a", "b"):
        write_report(
            tmp_path / name / "report.html",
            title="T",
            lead="L",
            facts={"n": "3"},
            sections=evaluation_sections(cohort()),
        )
    first, second = ((tmp_path / name / "report.html").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith(b"<!doctype html>")


@pytest.mark.parametrize(("data", "alt"), [(b"GIF89a", "x"), (png(), " ")])
def test_images_need_a_known_type_and_an_alternative_text(data, alt):
    with pytest.raises(ValueError, match="picture in a report"):
        Picture(data, alt)


def shapes(svg, tag, kind):
    root = ElementTree.fromstring(svg)
    return [e.attrib for e in root.iter(SVG + tag) if kind in e.attrib.get("class", "").split()]


def test_dots_lie_at_their_scores_and_failures_are_squares():
    svg = score_dots(cohort(ages=(1.0,) * 4, scores=(GOOD, FAIR, MISSED, EMPTY)))
    good, fair = (float(e["cx"]) for e in shapes(svg, "circle", "mark"))
    (missed,) = shapes(svg, "rect", "bad")
    zero = float(missed["x"]) + 4
    assert (good - zero) / (fair - zero) == pytest.approx(0.9 / 0.4, rel=1e-3)
    assert "worst: case_2" in svg.decode()
    assert "in no scan" in score_dots(cohort(ages=(1.0,), scores=(EMPTY,))).decode()


def test_age_plot_is_linear_in_age_and_needs_ages():
    svg = score_against_age(cohort(ages=(0.0, 5.0, 20.0), scores=(GOOD, GOOD, FAIR)))
    dots = [(float(e["cx"]), float(e["cy"])) for e in shapes(svg, "circle", "mark")]
    assert (dots[2][0] - dots[0][0]) / (dots[1][0] - dots[0][0]) == pytest.approx(4.0, rel=1e-2)
    assert dots[2][1] > dots[0][1]  # the lower Dice lies lower on the page
    assert score_against_age(cohort(ages=(None,) * 3)) is None


def test_training_curves_have_a_line_per_stage_and_break_where_the_loss_did():
    history = [{"stage": "pose", "epoch": e, "loss": 1.0 / e} for e in range(1, 5)]
    history += [{"stage": "unet", "epoch": e, "loss": 2.0 - e / 9, "dice": e / 10} for e in range(1, 10)]
    history[6]["loss"] = float("nan")
    svg = training_curves(history)
    counts = [len(e["points"].split()) for e in shapes(svg, "polyline", "line")]
    assert counts == [4, 2, 6]
    loss = [tuple(map(float, p.split(","))) for p in shapes(svg, "polyline", "line")[-1]["points"].split()]
    assert [y for _, y in loss] == sorted(y for _, y in loss)
    titles = [e.text for e in ElementTree.fromstring(svg).iter(SVG + "text") if e.attrib["class"] == "title"]
    assert titles == ["pose: loss", "unet: loss"]
    with pytest.raises(ValueError, match="no finite"):
        training_curves([{"stage": "pose", "epoch": 1, "loss": float("nan")}])
