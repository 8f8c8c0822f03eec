"""Validate NRRD and MetaImage headers before ITK reads them.

ITK crashes on some headers, returns uninitialized memory for others, and ignores some fields that change a
voxel's position or value. Headers that ITK would misread are refused here.
"""

import math
import re
from pathlib import Path

from isopose.errors import InputError

#: Maximum length in bytes of a header, and of a field's value in NRRD: ITK crashes on longer values.
#: Comments, contents and custom keys may be longer, as Slicer writes them.
MAX_HEADER_BYTES, MAX_VALUE_BYTES = 1 << 20, 500
#: Maximum length in bytes of a field's name in MetaImage: longer ones overflow a buffer in ITK.
MAX_NAME_BYTES = 200
#: The fields of NRRD (definition of the format, section 5); ITK crashes on some others.
NRRD_FIELDS = (
    *("dimension", "type", "block size", "encoding", "endian", "min", "max", "old min", "old max"),
    *("data file", "line skip", "byte skip", "number", "sample units", "space", "space dimension"),
    *("space units", "space origin", "space directions", "measurement frame", "sizes", "spacings"),
    *("thicknesses", "axis mins", "axis maxs", "centers", "centerings", "labels", "units", "kinds"),
)
#: A line of NRRD after the first: a comment, ``key:=value`` or ``field: value``. Some field names may also be
#: written as one word.
_NRRD = re.compile(
    rb"#.*|[^:]+:=.*|content: .*|(?P<name>"
    + "|".join(f.replace(" ", " ?") for f in NRRD_FIELDS).encode()
    + rb"): (?P<value>.{0,%d})" % MAX_VALUE_BYTES,
    re.IGNORECASE,
)
#: A line of MetaImage: a field of the format, or an entry of an ITK image's dictionary, such as a DICOM tag
#: whose text may switch character sets by an escape sequence.
_META = re.compile(rb"(?P<name>[^\x00-\x1f\x7f=:]{1,%d})[=:](?P<value>[^\x00]*)" % MAX_NAME_BYTES)
#: A further line of a text in that dictionary. ITK skips it together with the next field.
_CONTINUATION = re.compile(rb"[^\x00-\x08\x0a-\x1a\x1c-\x1f\x7f=:]{1,%d}" % MAX_NAME_BYTES)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
#: NRRD spaces with patient axes, which ITK converts to LPS; it silently treats any other space as LPS.
NRRD_SPACES = (
    *("LPS", "left-posterior-superior", "RAS", "right-anterior-superior"),
    *("LAS", "left-anterior-superior"),
)
#: A file name pattern with one number; for others ITK prints uninitialized memory or crashes.
_FILE_PATTERN = re.compile(r"[^%]*%0?\d{0,2}d[^%]*")
#: Fields that define the voxels of MetaImage; a duplicate is part of a text with several lines.
_VOXEL_FIELDS = (
    *("NDims", "DimSize", "ElementSpacing", "ElementSize", "ElementType", "ElementNumberOfChannels"),
    *("TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin", "HeaderSize"),
    *("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData", "CompressedDataSize"),
)
#: Fields of MetaImage that must not be skipped.
_DECISIVE_FIELDS = (
    *_VOXEL_FIELDS,
    *("ElementDataFile", "DistanceUnits", "AnatomicalOrientation"),
    *("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"),
)
_MM_UNITS = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres")


def read_text_header(path: Path, kind: str) -> tuple[dict[str, str], list[bytes]]:
    """Parse the text header of a NRRD or MetaImage file; ITK may crash on one that is not lines of text.

    Args:
        path: the file.
        kind: its extension: ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.

    Returns:
        The header's fields, those of NRRD in lower case and without blanks; and the lines that follow a list
            of data files.

    Raises:
        InputError: the header has no end or an invalid line. The message quotes no line, since it may contain
            a patient's name.
    """
    with open(path, "rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    nrrd = kind in (".nrrd", ".nhdr")
    fields: dict[str, str] = {}
    lines = start.replace(b"\r\n", b"\n").split(b"\n")
    data_files: list[bytes] = []
    skipped = False
    for number, line in enumerate(lines):
        if nrrd and not line:
            break
        match = None
        if nrrd and number == 0:
            match = re.match(rb"NRRD.*", line)
        elif line:
            match = (_NRRD if nrrd else _META).fullmatch(line)
        if not nrrd and number and line and not match and _CONTINUATION.fullmatch(line):
            skipped = True
            continue
        # The last line of a file may be empty.
        if (line and not match) or (_CONTROL.search(line) if nrrd or not match else b"\x00" in line):
            raise InputError(
                f"{path}: line {number + 1} of its header is not one of a {kind} file; "
                "copy or export it again"
            )
        groups = match.groupdict() if match else {}
        if groups.get("name"):
            name, value = (groups[n].decode("utf-8", "surrogateescape").strip() for n in ("name", "value"))
            name = name.lower().replace(" ", "") if nrrd else name
            if name in fields and name in _VOXEL_FIELDS:
                raise InputError(f"{path}: its header has the field {name} twice; copy or export it again")
            if not skipped:
                fields[name] = value
            elif name in _DECISIVE_FIELDS:
                raise InputError(
                    f"{path}: a text of several lines in its header hides the field {name} from ITK; "
                    "export it again without that text"
                )
            skipped = False
        if (nrrd and fields.get("datafile", "").startswith("LIST")) or "ElementDataFile" in fields:
            data_files = [line for line in lines[number + 1 :] if line.strip()]
            break
    else:
        if kind in (".nrrd", ".mha"):
            raise InputError(f"{path}: its header has no end; copy or export it again")
    return fields, data_files


def check_fields(path: Path, kind: str, fields: dict[str, str]) -> None:
    """Refuse fields of :func:`read_text_header` that ITK ignores.

    Raises:
        InputError: no patient orientation, a unit other than mm, or scaled values. Values that may identify a
            patient are not quoted.
    """
    if kind in (".nrrd", ".nhdr"):
        _check_nrrd(path, fields)
    else:
        _check_meta(path, fields)


def _check_nrrd(path: Path, fields: dict[str, str]) -> None:
    space = fields.get("space")
    if space is None:
        raise InputError(
            f"{path}: the header has no 'space', so left and right are unknown; export it again with one"
        )
    if space.lower() not in map(str.lower, NRRD_SPACES):
        raise InputError(
            f"{path}: the header's 'space' is not one of the patient's, so left and right are unknown; "
            f"expected {', '.join(NRRD_SPACES)}, export it again"
        )
    directions = fields.get("spacedirections", "")
    if len(re.findall(r"\([^()]*\)", directions)) != 3 or "nan" in directions.lower():
        raise InputError(
            f"{path}: expected 'space directions' of three axes, so that each voxel has a place; "
            "export it again"
        )
    units = [unit for name in ("spaceunits", "units") for unit in _quoted(fields.get(name, ""))]
    if any(unit.strip().lower() not in (*_MM_UNITS, "none", "???") for unit in units):
        raise InputError(
            f"{path}: expected millimeters, but the header's units are others; export it again in mm"
        )
    if {"oldmin", "oldmax"} & set(fields):
        raise InputError(
            f"{path}: its values were quantized ('old min', 'old max'), so they are not HU; "
            "export it again as int16"
        )


def _quoted(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text) if '"' in text else text.split()


def _check_meta(path: Path, fields: dict[str, str]) -> None:
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        raise InputError(f"{path}: the header has no 'ElementSpacing', the voxels' size; export it again")
    turned = {"TransformMatrix", "Rotation", "Orientation"} & set(fields)
    # ITK takes the axes from the matrix alone, and assumes RAI if there is none.
    if not turned and fields.get("AnatomicalOrientation", "RAI").upper() not in ("RAI", "???", ""):
        raise InputError(
            f"{path}: its 'AnatomicalOrientation' needs a 'TransformMatrix', which the header does not have, "
            "so left and right are unknown; export it again"
        )
    if fields.get("DistanceUnits", "mm").lower() not in (*_MM_UNITS, "?"):
        raise InputError(
            f"{path}: expected millimeters, but the header's DistanceUnits are others; export it again in mm"
        )
    for name, neutral in (("Slope", 1.0), ("Offset", 0.0)):
        text = fields.get(f"ElementToIntensityFunction{name}", str(neutral))
        if _number(text) != neutral:
            raise InputError(
                f"{path}: its values are scaled (ElementToIntensityFunction{name}), which readers of "
                "MetaImage ignore; export it again with the values themselves"
            )


def check_files(path: Path, fields: dict[str, str], rest: list[bytes]) -> None:
    """Refuse lists and patterns of data files with which ITK crashes or returns uninitialized voxels.

    Args:
        path: the file, for the message.
        fields: of its header, see :func:`read_text_header`.
        rest: the lines of a list of data files.

    Raises:
        InputError: not one file for each slice, or an invalid pattern of file names.
    """
    if "%" in (file := fields.get("datafile", "")) and not _FILE_PATTERN.fullmatch(file.split()[0]):
        raise InputError(f"{path}: the pattern of its 'data file' cannot be read; export it as one file")
    words = fields.get("ElementDataFile", "").split()
    if not words:
        return
    sizes = [_count(n) for n in fields.get("DimSize", "").split()]
    if words[0].upper() == "LIST":
        # Number of dimensions of each file; by default all but the last.
        dims_per_file = (_count(words[1]) if len(words) > 1 else 0) or len(sizes) - 1
        count = len(rest)
        expected = math.prod(sizes[dims_per_file:]) if 0 < dims_per_file <= len(sizes) else 0
    elif "%" in words[0]:
        numbers = [_count(n) for n in words[1:]]
        if not _FILE_PATTERN.fullmatch(words[0]) or len(numbers) != 3 or numbers[2] < 1:
            raise InputError(
                f"{path}: expected a pattern of file names with first, last and step in 'ElementDataFile', "
                "such as slice_%03d.raw 1 40 1; export it as one file"
            )
        first, last, step = numbers
        count, expected = (last - first) // step + 1, math.prod(sizes[len(sizes) - 1 :])
    else:
        return
    if count != expected:
        raise InputError(
            f"{path}: expected a file for each of {expected} slices, but the header lists {max(count, 0)}; "
            "export it as one file"
        )


def _count(text: str) -> int:
    """Return a count in a header; 0 if it is not a whole number."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
