"""Options that several commands share, and parsers of option values."""

import re
from pathlib import Path
from typing import Annotated

import typer

from isopose.choices import HOMOGENIZED_SIZE
from isopose.errors import InputError

DatasetPath = Annotated[
    Path, typer.Argument(help="nnU-Net v2 raw, KiTS or Decathlon folder, or a CSV manifest")
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="NAME=VALUE, repeated: the labels, if the dataset does not define them"),
]
Workers = Annotated[int, typer.Option(min=0, help="number of processes; 0 uses this one; results are equal")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="nifti (the default), dicom-seg, rtstruct or dicom-sr; repeated"),
]
Series = Annotated[
    str | None, typer.Option(help="series number or instance UID, if a DICOM input holds several")
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        help="reference to whose pose and size the scans are brought: child (2 years, the default) or "
        "adult, a case of the dataset, the path of a scan or of a model's folder; with --model the default "
        "is the model's"
    ),
]
ScaleZ = Annotated[
    bool | None,
    typer.Option(
        "--scale-z/--no-scale-z",
        help="scale the distance of the slices by the in-plane factor, in the header only (default: yes)",
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        help="folder of your own body masks, one file per scan with its name (default: automatic masks)"
    ),
]
MasksAnywhere = Annotated[
    str | None,
    typer.Option(
        help="folder of your own body masks, one file per scan with the scan's name; with --ray also a URL "
        "(default: automatic masks)"
    ),
]
HomogenizedSize = Annotated[
    int | None,
    typer.Option(
        "--size", help=f"pixels along a side of the reference's frame (default: {HOMOGENIZED_SIZE})"
    ),
]
PoseChannel = Annotated[
    str | None,
    typer.Option(help="number or name of the channel that shows body and pose (default: the first)"),
]
ModalityOption = Annotated[
    str | None,
    typer.Option(
        "--modality", help="ct or mr, if the dataset does not state it (default: as stated, else ct)"
    ),
]
PlaneOption = Annotated[
    str | None,
    typer.Option(
        "--plane",
        help="plane in which the slices were acquired: axial, coronal or sagittal (default: the model's, "
        "without a model axial)",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster: auto, HOST:PORT, or local for this machine's cores; inputs and outputs "
        "may then be URLs, e.g. s3://bucket/folder",
    ),
]
Host = Annotated[str, typer.Option(help="address to listen on; other than loopback needs a token")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any free port")]
Token = Annotated[
    str | None,
    typer.Option(help="access token (default: ISOPOSE_TOKEN, or a new one if needed)"),
]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="open the page in a browser")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML or JSON file")]
Fold = Annotated[
    str | None,
    typer.Option(help="validation fold (from 0), or all: one model of all patients, as train.fold"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 (a GPU by number), mps")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="precision of the U-Net, e.g. 32-true (default: predict.precision)")
]
Setting = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, repeated")]


def parse_labels(items: list[str] | None, option: str = "--label") -> dict[str, int] | None:
    """Parse ``--label NAME=VALUE``, repeated.

    Returns:
        Value by name; None if the option was not used.

    Raises:
        InputError: another format, or a name that occurs twice.
    """
    if not items:
        return None
    labels: dict[str, int] = {}
    for item in items:
        name, _, value = item.partition("=")
        if not name or not value.isdecimal():
            raise InputError(f"{option} {item!r}: expected NAME=VALUE, e.g. kidney=1")
        if name in labels:
            raise InputError(f"{option} {item!r}: {name} is {labels[name]} already; give each name once")
        labels[name] = int(value)
    return labels


def local_path(text: str) -> Path:
    """Return a path on this machine.

    Raises:
        InputError: it is a URL.
    """
    if "://" in text:
        raise InputError(
            f"{text}: a URL; it is read and written by a Ray cluster (--ray local is this machine's)"
        )
    return Path(text)


def comma_separated(text: str) -> list[str]:
    """Split a comma-separated list; empty entries are dropped."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_whole(option: str, text: str) -> int:
    """Parse a whole number; ``option`` is named in the InputError for any other text."""
    if not text.isdecimal():
        raise InputError(f"{option}: expected whole numbers, e.g. 0,1, got {text!r}")
    return int(text)


def parse_duration(text: str) -> float:
    """Parse ``--budget``: return the seconds of ``6h``, ``90m`` or ``1h30m``.

    Raises:
        InputError: another format, or no time.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?", text.replace(" ", ""))
    parts = zip(match.groups(), (3600.0, 60.0), strict=True) if match else ()
    seconds = sum(float(part) * unit for part, unit in parts if part)
    if seconds <= 0:
        raise InputError(f"--budget: expected hours and minutes, e.g. 6h or 90m, got {text!r}")
    return seconds
