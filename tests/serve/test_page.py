"""The page in a real browser, from a dropped scan to a corrected pose."""

import json
import re
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bright import bright_model, make_scene
from io_helpers import write_series
from isopose.geometry.volume import Volume
from isopose.io.images import write_image
from isopose.models.folder import save_model

pytestmark = pytest.mark.long

AUDIT = (Path(__file__).parent / "audit.js").read_text()
GREEN, YELLOW = (61, 220, 132), (255, 210, 63)


@pytest.fixture
def opened(serve, model_folder, tmp_path, page):
    """The page of a server that has no scan."""
    served = serve("serve", model_folder, "--folder", tmp_path / "kept", "--device", "cpu")
    page.goto(served.address)
    return served


def colored(picture, colors=(GREEN, YELLOW)):
    """Count the pixels that have the hue of a label on any gray."""
    mask = np.zeros(picture.shape[:2], bool)
    for color in colors:
        # Half label, half gray: what the channels differ by is half of what the label's do.
        expected = (np.array(color) - color[0]) / 2
        mask |= np.abs(picture - picture[..., :1] - expected).max(axis=-1) < 12
    return int(mask.sum())


def drawn(page):
    page.wait_for_selector("body[data-drawn]", state="attached")


def test_a_scan_is_segmented_and_its_pose_corrected(opened, page, scan, pixels):
    page.set_input_files("#file", scan)
    drawn(page)
    assert page.inner_text(".job .name") == "Scan 1"
    assert "Doe" not in page.content()
    assert page.inner_text("#volumes").split()[:3] == ["Structure", "ml", "kidney"]

    # NiiVue shows the labels, and nothing of them where they are let fade.
    page.wait_for_timeout(300)
    colored_pixels = colored(pixels(page, "#volume"))
    assert colored_pixels > 1000
    page.fill("#opacity", "0")
    page.wait_for_timeout(300)
    assert colored(pixels(page, "#volume")) < colored_pixels / 10
    page.fill("#opacity", "50")

    # The keyboard goes through the slices.
    before = page.inner_text("#where")
    assert before.endswith(" HU") or " HU · " in before
    page.focus("#volume")
    page.keyboard.press("PageUp")
    page.wait_for_timeout(200)
    assert before.startswith("slice 6 ")
    assert page.inner_text("#where").startswith("slice 7 ")

    # Step by step, through another slice with the arrow keys.
    page.click("#tab-steps")
    page.wait_for_selector("#steps[data-slice='6']")
    first = {
        name: pixels(page, f".step-{name} canvas")
        for name in ("native", "homogenized", "crop", "predicted", "restored")
    }
    assert colored(first["restored"]) > 500
    assert colored(first["predicted"]) > 500
    assert colored(first["crop"]) == 0
    page.focus("#slice")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("#steps[data-slice='11']")
    assert page.inner_text("#sliceno") == "11 of 11"

    # Drag the outline to the patient's left; the numbers follow.
    page.click("#tab-hand")
    page.wait_for_timeout(500)
    volumes, shift_before = page.inner_text("#volumes"), float(page.input_value("#tx"))
    box = page.locator("#posecanvas").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], middle, steps=4)
    page.mouse.up()
    # 0.3 of a slice of 119 pixels of 2.1 mm.
    assert float(page.input_value("#tx")) - shift_before == pytest.approx(0.3 * 119 * 2.1, abs=2.0)
    page.fill("#roll", "20")
    page.click("text=Predict again")
    page.wait_for_selector(".job .state:has-text('set by hand')")
    page.wait_for_selector("#pose dd:has-text('hand')")
    assert page.inner_text("#volumes") != volumes
    assert "+20.0°" in page.inner_text("#pose")
    assert "set by hand in 12 of 12 slices" in page.inner_text("#warnings")
    page.click("#asfound")
    page.wait_for_selector("#pose dd:has-text('learned'), #pose dd:has-text('moments')")
    assert page.inner_text("#volumes") == volumes


def test_mr_has_its_own_windows_and_no_unit(serve, scan, tmp_path, page, pixels):
    """A dark scan is seen as well as a bright one, and another window shows more of it."""
    save_model(tmp_path / "model", bright_model({"data": {"size": 64, "modality": "mr"}}, real_unet=True))
    dark = make_scene(slices=12).volume
    write_image(dark.with_array((dark.array + 1024) * np.float32(1e-3)), tmp_path / "dark.nii.gz")
    served = serve("serve", tmp_path / "model", "--folder", tmp_path / "kept", "--device", "cpu")
    page.goto(served.address)
    page.set_input_files("#file", tmp_path / "dark.nii.gz")
    drawn(page)
    assert page.locator("#window option").all_inner_texts() == ["usual", "brighter", "darker", "all"]
    position = page.inner_text("#where")
    assert "HU" not in position
    value = float(position.split(" (mm) · ")[1].split(" · ")[0])
    assert 0.9 < value < 2.5
    page.click("#tab-steps")
    page.wait_for_selector("#steps[data-slice]")
    seen = {}
    for window in ("darker", "usual", "brighter"):
        page.select_option("#window", window)
        seen[window] = pixels(page, ".step-native canvas").mean()
    assert 10 < seen["darker"] < seen["usual"] < seen["brighter"] < 245


def test_corrected_slices_are_interpolated_on_the_page(opened, page, scan, tmp_path):
    """One slice is set by the button and another by editing; poses between them are interpolated."""
    page.set_input_files("#file", scan)
    drawn(page)
    page.click("#tab-hand")
    page.wait_for_timeout(500)
    page.check("#scope-keys")
    for z, roll in ((2, "-10"), (10, "30")):
        page.fill("#handslice", str(z))
        page.wait_for_selector(f"#handno:has-text('{z} of 11')")
        page.fill("#roll", roll)
        if z == 2:
            page.click("#setkey")
    page.check("#usecrop")
    page.focus("#cropcanvas")
    page.keyboard.press("ArrowRight")
    page.click("text=Predict again")
    page.wait_for_selector("#pose dd:has-text('hand')")
    (file,) = (tmp_path / "kept" / "corrections").iterdir()
    kept = json.loads(file.read_text())
    assert len(kept["poses"]) == 2
    assert len(kept["crops"]) == 2
    page.click("#tab-steps")
    # -10, and 5 degrees more a slice; the same below the first and above the last.
    for z, roll in ((0, "−10.0°"), (2, "−10.0°"), (6, "+10.0°"), (10, "+30.0°"), (11, "+30.0°")):
        page.fill("#slice", str(z))
        page.wait_for_selector(f"#steps[data-slice='{z}']")
        assert page.inner_text("#pose").split()[:4] == ["Slice", str(z), "Roll", roll]


def test_switching_scans_clears_the_previous_one(opened, page, scan, tmp_path):
    # The next one's voxels take a while.
    page.add_init_script(
        "const real = window.fetch; window.fetch = async (...given) => {"
        "  if (String(given[0]).includes('/2/scan')) await new Promise((done) => setTimeout(done, 2000));"
        "  return real(...given); };"
    )
    page.reload()
    page.set_input_files("#file", scan)
    drawn(page)
    write_image(make_scene(slices=5).volume, tmp_path / "next.nii.gz")
    page.set_input_files("#file", tmp_path / "next.nii.gz")
    page.wait_for_selector(".job[data-number='2'] .state:has-text('done')")
    page.click(".job[data-number='2'] .name")
    page.wait_for_selector("#title:has-text('Scan 2')")
    assert page.evaluate("getComputedStyle(document.getElementById('volume')).visibility") == "hidden"
    page.wait_for_selector("body[data-drawn^='2']", state="attached")
    assert page.evaluate("getComputedStyle(document.getElementById('volume')).visibility") == "visible"


def test_left_and_right_on_the_page_follow_radiological_convention(opened, page, tmp_path, pixels):
    """A body with a bright mass on the patient's left: on the right of every picture."""
    write_image(make_scene(slices=12).volume, tmp_path / "sided.nii.gz")
    page.set_input_files("#file", tmp_path / "sided.nii.gz")
    drawn(page)
    page.select_option("#planes", "axial")
    page.wait_for_timeout(400)
    page.fill("#opacity", "0")
    page.wait_for_timeout(400)
    in_niivue = pixels(page, "#volume").max(axis=2)
    page.click("#tab-steps")
    page.wait_for_selector("#steps[data-slice]")
    in_steps = pixels(page, ".step-restored canvas").max(axis=2)
    for picture in (in_niivue, in_steps):
        # Between the letters at the edges, brighter than the body and on no crosshair, which has its color.
        columns = np.nonzero((picture[20:-20, 20:-20] > 235).sum(axis=0))[0] + 20
        assert len(columns) > 10
        assert np.median(columns) > picture.shape[1] / 2


def test_a_real_series_is_segmented_and_downloaded(opened, page, real_ct, tmp_path, pixels):
    shutil.make_archive(str(tmp_path / "series"), "zip", real_ct / "dicom-series")
    page.set_input_files("#file", tmp_path / "series.zip")
    drawn(page)
    page.wait_for_timeout(300)
    assert colored(pixels(page, "#volume")) > 300
    page.click("#tab-steps")
    page.wait_for_selector("#steps[data-slice='10']")
    before = pixels(page, ".step-native canvas")
    page.hover("#steps")
    page.mouse.wheel(0, -100)
    page.wait_for_selector("#steps[data-slice='11']")
    assert (pixels(page, ".step-native canvas") != before).any()
    links = page.locator("#downloads a").all_inner_texts()
    assert links == ["NIfTI", "DICOM SEG", "RTSTRUCT", "DICOM SR", "Report", "Record"]
    with page.expect_download() as download:
        page.click("#downloads a:has-text('DICOM SEG')")
    assert download.value.suggested_filename == "scan-1.seg.dcm"
    assert Path(download.value.path()).read_bytes()[128:132] == b"DICM"


def test_several_scans_with_one_unreadable_survive_a_restart(serve, model_folder, tmp_path, page, scan):
    served = serve("serve", model_folder, "--folder", tmp_path / "kept", "--device", "cpu")
    bad = tmp_path / "bad.nii"
    bad.write_bytes(b"no scan" * 100)
    page.goto(served.address)
    page.set_input_files("#file", [scan, bad, scan])
    page.wait_for_selector(".job:nth-child(1) .name:has-text('Scan 3')")
    served.stop(signal.SIGKILL)
    # Requests that meet no server are reported in the console by the browser itself.
    page.goto("about:blank")
    page.errors.clear()
    again = serve("serve", model_folder, "--folder", tmp_path / "kept", "--device", "cpu")
    page.goto(again.address)
    page.wait_for_selector(".job:nth-child(1) .state:has-text('done in')")
    page.wait_for_selector(".job:nth-child(3) .state:has-text('done in')")
    assert "upload.nii" not in page.inner_text("#jobs")
    assert page.locator(".job:nth-child(2) .state.bad").count() == 1
    page.check("#names")
    page.wait_for_selector(".job .name:has-text('Doe_Jane.nii.gz')")
    page.click(".job:nth-child(2) .delete")
    page.click("dialog button.danger")
    page.wait_for_selector(".job:nth-child(3)", state="detached")
    assert page.locator(".job").count() == 2


def test_the_page_asks_for_a_series_number_until_it_is_valid(opened, page, tmp_path):
    raw = (make_scene(slices=6).volume.array.astype(int) + 1024).clip(0).astype(np.uint16)
    for number, name in ((3, "first"), (12, "second")):
        fields = {"series": f"1.2.{number}", "SeriesNumber": number, "PixelSpacing": [2.9, 2.1]}
        write_series(tmp_path / name, raw, step=(0.0, 0.0, 6.0), **fields)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as packed:
        for file in (*(tmp_path / "first").iterdir(), *(tmp_path / "second").iterdir()):
            packed.write(file, f"{file.parent.name}/{file.name}")
    page.set_input_files("#file", tmp_path / "two.zip")
    for number in ("5", "12"):
        field = page.locator(".job form input")
        field.wait_for()
        assert "series 12" in page.inner_text(".job .state.bad")
        field.fill(number)
        field.press("Enter")
        page.wait_for_timeout(700)
    drawn(page)
    assert "DICOM SEG" in page.inner_text("#downloads")


def test_the_page_refuses_unsupported_files(opened, page, tmp_path):
    shutil.copy(__file__, tmp_path / "notes.txt")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#sending:has-text('expected a file that ends in')")
    assert page.locator(".job").count() == 0


def test_every_control_has_a_name_and_enough_contrast(opened, page, scan):
    """WCAG AA: a name for each control, 4.5 : 1 for each text, in light and in dark."""
    page.set_input_files("#file", scan)
    drawn(page)
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        for tab in ("scan", "steps", "hand"):
            page.click(f"#tab-{tab}")
            page.wait_for_timeout(150)
            result = page.evaluate(AUDIT)
            assert result == {"nameless": [], "pale": []}, (theme, tab)


@pytest.mark.parametrize(
    ("plane", "columns", "slices", "keys"),
    [
        ("coronal", (1, 0, 0), (0, 1, 0), ("ArrowUp", "ArrowDown")),
        ("sagittal", (0, 1, 0), (-1, 0, 0), ("ArrowLeft", "ArrowRight")),
    ],
)
def test_the_crosshair_counts_the_slices_of_the_models_plane(
    serve, tmp_path, page, plane, columns, slices, keys
):
    """Each slice has a value of its own; one key moves to the slice before, the other to the one after."""
    model = bright_model({"data": {"size": 64, "plane": plane}, "pose": {"start": "header"}}, real_unet=True)
    save_model(tmp_path / "model", model)
    volume = make_scene(slices=12).volume
    array = volume.array + 7.0 * np.arange(12)[:, None, None]
    matrix = np.eye(4)
    # Columns of a matrix from (x, y, z) indices: along the rows, down the columns, through the slices.
    matrix[:3, :3] = np.stack([columns, (0, 0, -1), slices], 1) * volume.spacing
    write_image(Volume(array.astype(np.float32), matrix), tmp_path / "stack.nii.gz")
    served = serve("serve", tmp_path / "model", "--folder", tmp_path / "kept", "--device", "cpu")
    page.goto(served.address)
    page.set_input_files("#file", tmp_path / "stack.nii.gz")
    drawn(page)

    def shown():
        """Return number and value of the displayed slice, and its position in mm relative to the first."""
        number, position, value = page.inner_text("#where").split(" · ")[:3]
        mm = {
            word: float(length)
            for length, word in re.findall(r"(\d+) (left|right|front|back|up|down)", position)
        }
        along = (
            mm.get("back", -mm.get("front", 0.0))
            if plane == "coronal"
            else mm.get("right", -mm.get("left", 0.0))
        )
        return int(number.removeprefix("slice ")), (float(value.split()[0]) - 40) / 7, along / 6

    middle = shown()
    assert middle == pytest.approx((middle[0],) * 3, abs=0.1)
    page.focus("#volume")
    page.keyboard.press(keys[0])
    assert shown() == pytest.approx((middle[0] - 1,) * 3, abs=0.1)
    for _ in range(2):
        page.keyboard.press(keys[1])
    assert shown() == pytest.approx((middle[0] + 1,) * 3, abs=0.1)
