"""Fixtures of the page's tests: a fast model, running servers, and a browser."""

import shutil
import signal

import numpy as np
import pytest
from served import Served

from bright import bright_model, make_scene
from isopose.io.images import write_image
from isopose.models.folder import save_model

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model with an untrained U-Net, whose predictions are reproducible and not empty."""
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model(folder, bright_model({"data": {"size": 64}}, real_unet=True))
    return folder


@pytest.fixture(scope="session")
def scan(tmp_path_factory):
    """A NIfTI scan of 12 slices whose file name is a patient's name."""
    path = tmp_path_factory.mktemp("scan") / "Doe_Jane.nii.gz"
    write_image(make_scene(slices=12).volume, path)
    return path


@pytest.fixture
def serve():
    """Function that starts servers, which are stopped at the end of the test."""
    running = []

    def start(*arguments):
        running.append(Served(*arguments))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)


@pytest.fixture
def page():
    """A page of a real browser; errors in its console fail the test."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: the page was not tried in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
                "--ignore-gpu-blocklist",
            ],
        )
        page = browser.new_page(viewport={"width": 1440, "height": 860})
        page.set_default_timeout(60_000)
        errors = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.errors = errors
        yield page
        browser.close()
    assert errors == []


@pytest.fixture
def pixels():
    """Function that returns the pixels of a canvas, ``(h, w, 3)``."""
    import io

    from PIL import Image

    def look(page, selector):
        png = page.locator(selector).screenshot()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    return look
