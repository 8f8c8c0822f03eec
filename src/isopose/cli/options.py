"""Options that several commands share, and what is read out of an option's text."""

import re
from pathlib import Path
from typing import Annotated

import typer

from isopose.errors import InputError

DatasetPath = Annotated[
    Path, typer.Argument(help="nnU-Net v2 raw, KiTS or Decathlon folder, or a CSV manifest")
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="NAME=VALUE, repeated: the labels, where the data do not say"),
]
Workers = Annotated[int, typer.Option(min=0, help="processes; 0 works in this one, with the same result")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="work on a Ray cluster: auto, HOST:PORT, or local for this machine's cores; inputs and outputs "
        "may then be URLs, e.g. s3://bucket/folder",
    ),
]
Host = Annotated[str, typer.Option(help="address to listen at; any but this machine's own needs a token")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")]
Token = Annotated[
    str | None,
    typer.Option(help="that a browser has to show; none: ISOPOSE_TOKEN, or one is made where needed"),
]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="open the page in one")]
Config = Annotated[Path | None, typer.Option(help="TOML or JSON file")]
Fold = Annotated[str | None, typer.Option(help="validation fold from 0, or all; as train.fold")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, a GPU by its number (cuda:1), mps")]
Precision = Annotated[
    str | None, typer.Option(help="of the U-Net, e.g. 32-true; none: the model's predict.precision")
]
Setting = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, repeated")]


def labels_of(given: list[str] | None, option: str = "--label") -> dict[str, int] | None:
    """Label values by name, of ``--label NAME=VALUE``."""
    if not given:
        return None
    labels: dict[str, int] = {}
    for item in given:
        name, _, value = item.partition("=")
        if not name or not value.isdecimal():
            raise InputError(f"{option} {item!r}: expected NAME=VALUE, e.g. kidney=1")
        if name in labels:
            raise InputError(f"{option} {item!r}: {name} is {labels[name]} already; give each name once")
        labels[name] = int(value)
    return labels


def local_path(given: str) -> Path:
    """Return a path on this machine."""
    if "://" in given:
        raise InputError(
            f"{given}: a URL; it is read and written by a Ray cluster (--ray local is this machine's)"
        )
    return Path(given)


def listed(given: str) -> list[str]:
    """Names with commas between them."""
    return [part.strip() for part in given.split(",") if part.strip()]


def whole(option: str, text: str) -> int:
    """Return a whole number, for ``option``."""
    if not text.isdecimal():
        raise InputError(f"{option}: expected whole numbers, e.g. 0,1, got {text!r}")
    return int(text)


def duration(text: str) -> float:
    """Seconds of ``6h``, ``90m`` or ``1h30m``."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?", text.replace(" ", ""))
    parts = zip(found.groups(), (3600.0, 60.0), strict=True) if found else ()
    seconds = sum(float(part) * unit for part, unit in parts if part)
    if seconds <= 0:
        raise InputError(f"--budget: expected hours and minutes, e.g. 6h or 90m, got {text!r}")
    return seconds
