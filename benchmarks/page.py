"""How long after its result a scan's first picture stands on the page of ``isopose serve``.

    python benchmarks/page.py MODEL [--slices 200] [--size 512] [--rounds 3]

In headless Chromium, which draws by software where there is no graphics card. The page is open while the scan
is predicted, as a user's is.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

BY_SOFTWARE = (
    *("--no-sandbox", "--ignore-gpu-blocklist"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


def measure(model: Path, scan: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        options = ["--folder", folder, "--port", "0", "--no-browser"]
        command = [sys.executable, "-m", "isopose", "serve", str(model), *options]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        address = server.stderr.readline().split()[3]
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=BY_SOFTWARE)
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 860})
            page.goto(address)
            page.set_input_files("#file", scan)
            while True:
                with urllib.request.urlopen(f"{address}api/jobs") as answer:
                    (job,) = json.loads(answer.read()) or [{"state": ""}]
                if job["state"] == "done":
                    break
                time.sleep(0.02)
            started = time.monotonic()
            page.wait_for_selector("body[data-drawn]", state="attached", timeout=120_000)
            return {"predicted_s": job["seconds"], "picture_after_s": time.monotonic() - started}
        finally:
            browser.close()
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shape = ["--slices", str(given.slices), "--size", str(given.size), "--test-fraction", "0"]
        command = [sys.executable, "-m", "isopose", "phantom", f"{folder}/one", "--cases", "1", *shape]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (scan,) = (Path(folder) / "one" / "imagesTr").iterdir()
        rounds = [measure(given.model, scan) for _ in range(given.rounds)]
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        print(f"{name:<18} {min(values):6.2f} {statistics.median(values):6.2f} {max(values):6.2f}")


if __name__ == "__main__":
    main()
