"""Pictures of the page in a real browser, of a phantom: ``python docs/make_screenshots.py MODEL SCAN``."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
BY_SOFTWARE = (
    *("--no-sandbox", "--ignore-gpu-blocklist"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


def main(model: str, scan: str) -> None:
    """Serve the model, drop the scan, and take a picture of each view."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["serve", model, "--folder", folder, "--port", "0", "--no-browser"]
        server = subprocess.Popen(
            [sys.executable, "-m", "isopose", *command], stderr=subprocess.PIPE, text=True
        )
        assert server.stderr is not None
        address = server.stderr.readline().split()[3]
        try:
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=BY_SOFTWARE)
                page = browser.new_page(viewport={"width": 1360, "height": 800})
                page.goto(address)
                page.set_input_files("#file", scan)
                page.wait_for_selector("body[data-drawn]", state="attached", timeout=120_000)
                take(page, "page-scan")
                page.click("#tab-steps")
                take(page, "page-steps")
                page.emulate_media(color_scheme="dark")
                page.click("#tab-hand")
                take(page, "page-hand")
                browser.close()
        finally:
            server.terminate()


def take(page: Page, name: str) -> None:
    """A picture of the page as it is, once it has settled."""
    page.wait_for_timeout(1000)
    page.screenshot(path=PICTURES / f"{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
