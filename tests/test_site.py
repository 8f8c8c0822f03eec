"""The documentation's site builds without a warning, and holds what only the build adds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed (extra: dev)")
    folder = tmp_path_factory.mktemp("site")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "WARNING" not in process.stderr
    # Every page is in the navigation.
    assert "not included in the" not in process.stderr
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_commands_and_public_classes_have_their_reference(site: Path) -> None:
    commands = text_of(site / "reference" / "cli" / "index.html")
    assert "isopose homogenize" in commands
    assert "--track" in commands
    assert "study-run" not in commands
    python = text_of(site / "reference" / "python" / "index.html")
    assert "inverse_transform" in python
    assert (
        "A trained model, or several as one, that segments images in memory, as isopose predict does files."
        in python
    )


def test_examples_of_files_are_code_with_a_name_and_links_lead_nowhere_else(site: Path) -> None:
    formats = (site / "formats" / "index.html").read_text(encoding="utf-8")
    assert '<span class="filename">model.json</span>' in formats
    assert "```" not in text_of(site / "formats" / "index.html")
    for page in site.rglob("*.html"):
        links = re.findall(r'href="([^"]*)"', page.read_text(encoding="utf-8"))
        assert not [link for link in links if "src/isopose/" in link]


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', text)
        assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))], page
