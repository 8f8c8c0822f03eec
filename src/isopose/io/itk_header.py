"""What a NRRD or MetaImage header must look like before ITK, which crashes on some others, may read it."""

import re
from pathlib import Path

from isopose.errors import InputError

#: Bytes that a header may have, and a field's value in NRRD: ITK crashes on long ones that it cannot use.
#: Comments, contents and keys of one's own may be longer, as Slicer writes them.
LONGEST_HEADER, LONGEST_VALUE = 1 << 20, 500
#: The fields of NRRD (definition of the format, section 5), of which ITK crashes on others.
FIELDS = (
    *("dimension", "type", "block size", "encoding", "endian", "min", "max", "old min", "old max"),
    *("data file", "line skip", "byte skip", "number", "sample units", "space", "space dimension"),
    *("space units", "space origin", "space directions", "measurement frame", "sizes", "spacings"),
    *("thicknesses", "axis mins", "axis maxs", "centers", "centerings", "labels", "units", "kinds"),
)
#: A line of NRRD after the first: a comment, ``key:=value`` or ``field: value``, of which some fields are
#: also written as one word.
_NRRD = re.compile(
    rb"#.*|[^:]+:=.*|content: .*|(?:"
    + "|".join(f.replace(" ", " ?") for f in FIELDS).encode()
    + rb"): .{0,%d}" % LONGEST_VALUE,
    re.IGNORECASE,
)
#: A line of MetaImage.
_META = re.compile(rb"\w+ *=.*")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def check_text_header(path: Path, kind: str) -> None:
    """Refuse a header that is not lines of text.

    Args:
        path: of a file.
        kind: its ending: ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.

    Raises:
        InputError: it has no end, or a line that no such header has.
    """
    with open(path, "rb") as file:
        start = file.read(LONGEST_HEADER)
    nrrd = kind in (".nrrd", ".nhdr")
    for number, line in enumerate(start.replace(b"\r\n", b"\n").split(b"\n")):
        if nrrd and not line:
            break
        fits = (
            line.startswith(b"NRRD") if nrrd and number == 0 else (_NRRD if nrrd else _META).fullmatch(line)
        )
        # The last line of a file may be empty.
        if (line and not fits) or _CONTROL.search(line):
            raise InputError(
                f"{path}: line {number + 1} of its header is not one of a {kind} file; "
                "copy or export it again"
            )
        if not nrrd and line.startswith(b"ElementDataFile"):
            break
    else:
        if kind in (".nrrd", ".mha"):
            raise InputError(f"{path}: its header has no end; copy or export it again")
