"""What mkdocs does beside rendering: the command line's page, and links that lead out of the pages."""

import re
import subprocess
import sys
from typing import Any

from mkdocs.structure.files import File, Files

#: Commands that one process of ours starts another with.
INNER = "study-run"


def on_files(files: Files, config: Any) -> Files:
    """Add the reference of the command line, as it is when the site is built."""
    command = [sys.executable, "-m", "typer", "isopose.cli", "utils", "docs", "--name", "isopose"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = re.sub(rf"^## `isopose {INNER}`\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(rf"^\* `{INNER}`.*\n", "", text, flags=re.MULTILINE)
    text = text.replace("# `isopose`", "# Command line", 1)
    files.append(File.generated(config, "reference/cli.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Examples of files get their name as a title; links to files that are no pages become their text."""
    titled = re.sub(r"^```(\w+) (\S+)$", r'```\1 title="\2"', markdown, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?:src|tests|benchmarks|examples)/[^)]*\)", r"\1", titled)
