"""Pictures of the page in a real browser, of phantoms: ``python docs/make_screenshots.py DEMO_FOLDER``."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
BY_SOFTWARE = (
    *("--no-sandbox", "--ignore-gpu-blocklist"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


def main(demo: str) -> None:
    """Each view of one scan that the demo's model is given, and the review of its cohort."""
    root = Path(demo)
    scan = sorted((root / "cohort" / "imagesTs").iterdir())[3]
    cohort = (root / "with" / "predictions", root / "cohort" / "labelsTs")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=BY_SOFTWARE)
        page = browser.new_page(viewport={"width": 1360, "height": 800})
        with served("serve", root / "with" / "model") as address:
            page.goto(address)
            page.set_input_files("#file", scan)
            page.wait_for_selector("body[data-drawn]", state="attached", timeout=120_000)
            take(page, "page-scan")
            page.click("#tab-steps")
            take(page, "page-steps")
            page.emulate_media(color_scheme="dark")
            page.click("#tab-hand")
            take(page, "page-hand")
        page.emulate_media(color_scheme="light")
        with served("review", *cohort, "--against", root / "without" / "predictions") as address:
            page.goto(address)
            page.wait_for_selector("body[data-case]", state="attached")
            take(page, "page-review")
            page.click("#tab-volume")
            page.select_option("#beside", "against")
            page.wait_for_selector("#othervolume[data-drawn='against']", state="attached")
            take(page, "page-beside")
        browser.close()


@contextmanager
def served(*arguments: object) -> Iterator[str]:
    """A server for as long as the block runs; its address."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--folder", folder, "--port", "0", "--no-browser"]
        command = [sys.executable, "-m", "isopose", *map(str, arguments), *options]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        line = ""
        while not line.startswith("isopose is at"):
            line = server.stderr.readline()
        try:
            yield line.split()[3]
        finally:
            server.terminate()
            server.wait()


def take(page: Page, name: str) -> None:
    """A picture of the page as it is, once it has settled."""
    page.wait_for_timeout(1000)
    page.screenshot(path=PICTURES / f"{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
