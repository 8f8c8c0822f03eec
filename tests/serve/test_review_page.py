"""The review of 500 cases in a real browser."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from test_page import AUDIT, colored

from bright import make_scene
from isopose.io.images import write_image, write_labels

pytestmark = pytest.mark.long

CASES = 500
LABELS = {"kidney": 1, "tumor": 7}
SLOW = """
const real = window.fetch;
window.fetch = async (...given) => {
  if (String(given[0]).endsWith("/decision")) await new Promise((done) => setTimeout(done, 600));
  return real(...given);
};
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort of small scans; later predictions miss more, and every fifth has a warning."""
    root = tmp_path_factory.mktemp("cohort")
    scene = make_scene(slices=6, spacing=(5.0, 5.0, 9.0))
    truth = scene.volume.with_array(scene.truth)
    marked = np.argwhere(scene.truth > 0)
    for number in range(CASES):
        name = f"case_{number:03d}"
        write_image(scene.volume, root / "imagesTs" / f"{name}_0000.nii.gz")
        write_labels(truth, root / "labelsTs" / f"{name}.nii.gz")
        predicted = scene.truth.copy()
        predicted[tuple(marked[: len(marked) * number // (CASES + 50)].T)] = 0
        write_labels(truth.with_array(predicted), root / "ours" / f"{name}.nii.gz")
        record = {
            "labels": LABELS,
            "volumes_ml": {"kidney": 10.0, "tumor": 1.0, "kidney+tumor": 11.0},
            "warnings": ["looks odd"] if number % 5 == 0 else [],
            "frame": {"center_mm": [0, 0], "fov_mm": 200.0 + number, "size": 64},
            "slices": [{"confidence": 0.9, "scale_x": 1.0, "scale_y": 1.0}],
        }
        (root / "ours" / f"{name}.json").write_text(json.dumps(record))
    return root


def test_cases_are_listed_worst_first_and_decided_by_keyboard(serve, cohort, tmp_path, page, pixels):
    options = ("--folder", tmp_path / "review", "--against", cohort / "labelsTs")
    for name, value in LABELS.items():
        options += ("--label", f"{name}={value}")
    served = serve("review", cohort / "ours", cohort / "labelsTs", *options)
    # Who decides is faster than the server that saves it.
    page.add_init_script(SLOW)
    page.goto(served.address)
    page.wait_for_selector("body[data-case='case_499']", state="attached")
    assert page.inner_text("#count") == "500 of 500 cases, 0 decided"
    assert page.locator("#rows tr").count() == CASES
    first = page.inner_text("#rows tr:first-child").split()
    assert first[0] == "case_499"
    assert page.locator("#scatter circle").count() == CASES

    # Prediction, ground truth and the other prediction, each with its score.
    captions = page.locator("#sides figcaption").all_inner_texts()
    assert captions[0] == "Scan"
    assert captions[1] == f"Prediction, Dice {first[1]}"
    assert captions[2:] == ["Ground truth", "Other prediction, Dice 1.000"]
    seen = [colored(pixels(page, f"#sides figure:nth-child({n}) canvas")) for n in (1, 2, 3, 4)]
    assert seen[0] == 0
    assert seen[1] < 0.7 * seen[2]
    assert seen[2] == seen[3] > 500
    # Pictures of the rows in sight alone are made.
    page.wait_for_selector("#rows tr:first-child img")
    thumbnails = len(list((tmp_path / "review" / "thumbnails").glob("*.png")))
    assert 0 < thumbnails < 120

    # By keyboard: reject with a comment, go on, accept, go back.
    page.keyboard.press("r")
    page.keyboard.type("kidney missed")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.wait_for_selector("body[data-case='case_498']", state="attached")
    page.keyboard.press("a")
    page.wait_for_selector("#accept[aria-pressed='true']")
    page.keyboard.press("k")
    page.wait_for_selector("body[data-case='case_499']", state="attached")
    assert page.input_value("#comment") == "kidney missed"
    page.wait_for_selector("#count:has-text('2 decided')")
    page.wait_for_timeout(3000)
    with open(tmp_path / "review" / "review.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["case_498", "accepted", ""],
            ["case_499", "rejected", "kidney missed"],
        ]

    # A dot leads to its case; filters and headings answer at once.
    page.locator("#scatter circle[aria-label^='case_123:']").dispatch_event("click")
    page.wait_for_selector("body[data-case='case_123']", state="attached")
    started = time.monotonic()
    page.select_option("#which", "warned")
    assert page.locator("#rows tr").count() == CASES / 5
    page.select_option("#which", "all")
    page.click("#heads th:nth-child(2) button")
    assert page.inner_text("#rows tr:first-child").split()[0] == "case_000"
    page.click("#heads th:nth-child(2) button")
    assert page.inner_text("#rows tr:first-child").split()[0] == "case_499"
    page.fill("#find", "case_25")
    assert page.locator("#rows tr").count() == 10
    # Five lists of up to 500 rows; loose, for the machine may be busy.
    assert time.monotonic() - started < 15
    page.reload()
    page.wait_for_selector("body[data-case='case_499']", state="attached")
    page.wait_for_selector("#count:has-text('2 decided')")

    page.click("#tab-volume")
    page.wait_for_timeout(1500)
    assert colored(pixels(page, "#volume")) > 100
    # The other prediction beside it; both move together. More is marked in it, as in the slices.
    page.select_option("#beside", "against")
    page.wait_for_selector("#othervolume[data-drawn='against']", state="attached")
    page.select_option("#planes", "axial")
    page.wait_for_timeout(500)
    both = [colored(pixels(page, name)) for name in ("#volume", "#othervolume")]
    assert 100 < both[0] < 0.7 * both[1]
    # The cross moves in both.
    page.select_option("#planes", "coronal")
    page.wait_for_timeout(300)
    before = [pixels(page, name) for name in ("#volume", "#othervolume")]
    page.focus("#volume")
    page.keyboard.press("PageUp")
    page.wait_for_timeout(300)
    after = [pixels(page, name) for name in ("#volume", "#othervolume")]
    for one, other in zip(before, after, strict=True):
        assert (one != other).any()
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_timeout(100)
        assert page.evaluate(AUDIT) == {"nameless": [], "pale": []}, theme


def test_switching_cases_never_shows_another_cases_images(serve, cohort, tmp_path, page):
    """While a case loads, the previous one is not shown; if two are selected, the later one is shown."""
    served = serve("review", cohort / "ours", "--images", cohort / "imagesTs", "--folder", tmp_path / "r")
    page.add_init_script(SLOW.replace('endsWith("/decision")', 'endsWith("/cases/1/view")'))
    page.goto(served.address)
    page.wait_for_selector("body[data-case='case_000']", state="attached")
    assert page.locator("#sides canvas").count() == 2
    page.click("#rows tr[data-number='1'] button")
    assert page.inner_text("#title") == "case_001"
    assert page.locator("#sides canvas").count() == 0
    page.click("#rows tr[data-number='2'] button")
    page.wait_for_selector("body[data-case='case_002']", state="attached")
    page.wait_for_timeout(1200)
    assert page.get_attribute("body", "data-case") == "case_002"
    assert page.inner_text("#title") == "case_002"


def test_markup_in_warnings_and_comments_is_escaped(serve, tmp_path, page):
    scene = make_scene(slices=3, spacing=(5.0, 5.0, 9.0))
    write_labels(scene.volume.with_array(scene.truth), tmp_path / "ours" / "case.nii.gz")
    evil = "<img src=x onerror=alert(1)>"
    record = {"labels": LABELS, "warnings": [evil], "volumes_ml": {}}
    (tmp_path / "ours" / "case.json").write_text(json.dumps(record))
    served = serve("review", tmp_path / "ours", "--folder", tmp_path / "review")
    page.goto(served.address)
    page.wait_for_selector("body[data-case='case']", state="attached")
    listed = page.locator("#warnings li").all_inner_texts()
    assert listed[0] == evil
    assert "give its folder with --images" in listed[1]
    assert page.locator("#warnings img").count() == 0


def test_a_damaged_scan_is_reported_and_other_cases_work(serve, cohort, tmp_path, page):
    for name in ("case_001", "case_002"):
        for folder, suffix in (("ours", ".nii.gz"), ("ours", ".json"), ("imagesTs", "_0000.nii.gz")):
            copy = tmp_path / folder / f"{name}{suffix}"
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes((cohort / folder / f"{name}{suffix}").read_bytes())
    Path(tmp_path / "imagesTs" / "case_001_0000.nii.gz").write_bytes(b"no scan")
    served = serve("review", tmp_path / "ours", "--images", tmp_path / "imagesTs", "--folder", tmp_path / "r")
    page.goto(served.address)
    page.wait_for_selector("#warnings li:has-text('case_001_0000.nii.gz')")
    page.keyboard.press("j")
    page.wait_for_selector("body[data-case='case_002']", state="attached")
    # The browser itself tells of what was answered with an error.
    assert all("422" in error for error in page.errors)
    page.errors.clear()


def test_invalid_reviews_are_reported_in_one_line(isopose, tmp_path):
    (tmp_path / "ours").mkdir()
    options = ("--folder", tmp_path / "review", "--port", 0, "--no-browser")
    for arguments, message in (
        ((tmp_path / "ours",), "expected a folder of predicted label maps"),
        ((tmp_path / "none",), "expected a folder of label maps, found none"),
        ((tmp_path / "ours", "--host", "0.0.0.0", "--token", "x"), "expected 16 characters"),
    ):
        code, _, err = isopose("review", *arguments, *options)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    assert not (tmp_path / "review").exists()
