"""What a NRRD or MetaImage header must look like before ITK, which crashes on some others, may read it."""

import re
from pathlib import Path

from isopose.errors import InputError

#: Bytes that a header and a line of it may have; a segmentation with many segments has some thousands.
LONGEST_HEADER, LONGEST_LINE = 1 << 20, 4096
#: A line of NRRD after the first: a comment, ``field: value`` or ``key:=value``.
_NRRD = re.compile(rb"#.*|[^:=]+:=?.*")
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
    lines = []
    for number, line in enumerate(start.replace(b"\r\n", b"\n").split(b"\n")):
        if nrrd and not line:
            break
        fits = (
            line.startswith(b"NRRD") if nrrd and number == 0 else (_NRRD if nrrd else _META).fullmatch(line)
        )
        # The last line of a file may be empty.
        if (line and not fits) or _CONTROL.search(line) or len(line) > LONGEST_LINE:
            raise InputError(
                f"{path}: line {number + 1} of its header is not one of a {kind} file; "
                "copy or export it again"
            )
        lines.append(line)
        if not nrrd and line.startswith(b"ElementDataFile"):
            break
    else:
        if kind in (".nrrd", ".mha"):
            raise InputError(f"{path}: its header has no end; copy or export it again")
