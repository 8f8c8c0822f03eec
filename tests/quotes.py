"""Parsing of Markdown, shared by the checks of quotes (``quotes_*.py``)."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from scripts import ROOT

SOURCE = ROOT / "src" / "isopose"
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
#: What looks like a setting, or like a file of ours, and is a part of a model's weights, or of a bundle.
OTHERS = {"pose.reference_mask", "docs/README.md"}


def prose(text: str) -> str:
    """Return the text of a page without code blocks."""
    return FENCE.sub("", text)


def lines_of_code(text: str) -> Iterator[str]:
    """Return the commands in shell blocks, with continued lines joined, and all that sentences quote."""
    for language, block in FENCE.findall(text):
        if language in ("", "console", "bash", "sh"):
            yield from block.replace("\\\n", " ").splitlines()
    yield from INLINE.findall(prose(text))


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"))
