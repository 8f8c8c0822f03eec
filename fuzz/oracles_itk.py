"""MetaImage and NRRD by plain parsers after the formats' descriptions; SimpleITK must find the same.

Only what ``unusual_itk.py`` writes is understood: one volume, one number a voxel.
"""

import re
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from planes import PLACES, Differs, MustBeRefused, Plane, from_reading, planes_of

#: The array ``(x, y, z)`` float64, its LPS affine, and why it must be refused, if it must.
Read = tuple[np.ndarray, np.ndarray, str]

_META = {
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NRRD = {
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    "float": "f4",
    "double": "f8",
}
#: LPS from the spaces whose axes are named.
_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}


def read_meta(path: Path) -> Read:
    """A ``.mha`` or ``.mhd`` file."""
    data = path.read_bytes()
    head, _, rest = data.partition(b"ElementDataFile")
    fields = {}
    for line in head.decode("latin-1").splitlines():
        key, _, value = line.partition("=")
        fields[key.strip()] = value.strip()
    target, _, body = rest.partition(b"\n")
    name = target.partition(b"=")[2].strip().decode()

    def numbers(*keys: str) -> list[float] | None:
        return next(([float(v) for v in fields[k].split()] for k in keys if k in fields), None)

    if name == "LIST":
        body = b"".join((path.parent / line).read_bytes() for line in body.decode().split())
    elif name != "LOCAL":
        body = (path.parent / name).read_bytes()
    size = [int(n) for n in numbers("DimSize") or []]
    order: Literal["<", ">"] = ">" if "true" in (fields.get(k, "").lower() for k in _MSB) else "<"
    kind = np.dtype(_META[fields["ElementType"]]).newbyteorder(order)
    skipped = int(fields.get("HeaderSize", 0))
    if fields.get("CompressedData", "").lower() == "true":
        body = zlib.decompress(body, wbits=47)
    elif skipped == -1:
        body = body[-int(np.prod(size)) * kind.itemsize :]
    elif skipped:
        body = body[skipped:]
    values = np.ndarray(size[:3], kind, body, order="F").astype(np.float64)
    spacing = np.array(numbers("ElementSpacing", "ElementSize") or [1.0] * 3)
    rows = numbers("TransformMatrix", "Rotation", "Orientation") or np.eye(len(size)).ravel()
    # Each row is where the next voxel along one axis lies.
    turn = np.array(rows).reshape(len(size), len(size)).T
    affine = np.eye(4)
    affine[:3, :3] = (turn * spacing)[:3, :3]
    affine[:3, 3] = (numbers("Offset", "Position", "Origin") or [0.0] * 3)[:3]
    return values, affine, ""


_MSB = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")


def read_nrrd(path: Path) -> Read:
    """A ``.nrrd`` or ``.nhdr`` file."""
    data = path.read_bytes().replace(b"\r\n", b"\n") if path.suffix == ".nhdr" else path.read_bytes()
    cut = re.search(rb"\r?\n\r?\n", data)
    head, body = (data[: cut.start()], data[cut.end() :]) if cut else (data, b"")
    fields = {}
    for line in head.decode("latin-1").splitlines()[1:]:
        if line.startswith("#") or ":=" in line:
            continue
        key, _, value = line.partition(":")
        fields[key.strip().lower().replace(" ", "")] = value.strip()
    if "datafile" in fields:
        body = (path.parent / fields["datafile"]).read_bytes()
    size = [int(n) for n in fields["sizes"].split()]
    kind = np.dtype(_NRRD[fields["type"].lower()])
    kind = kind.newbyteorder(">" if fields.get("endian") == "big" else "<")
    body = b"\n".join(body.split(b"\n")[int(fields.get("lineskip", 0)) :])
    encoding, skip = fields["encoding"].lower(), int(fields.get("byteskip", 0))
    if encoding in ("gz", "gzip"):
        body = zlib.decompress(body, wbits=47)
    if encoding in ("text", "txt", "ascii"):
        values = np.array(body.split(), dtype=np.float64).reshape(size, order="F")
    else:
        wanted = int(np.prod(size)) * kind.itemsize
        body = body[-wanted:] if skip < 0 else body[skip:]
        values = np.ndarray(size, kind, body, order="F").astype(np.float64)
    space = fields.get("space", "").lower()
    affine = np.eye(4)
    if space not in _SPACES:
        return values, affine, "left and right are unknown"
    vectors = re.findall(r"\(([^)]*)\)", fields["spacedirections"])
    columns = [[float(v) for v in vector.split(",")] for vector in vectors]
    affine[:3, :3] = np.array(columns).T
    if "spaceorigin" in fields:
        affine[:3, 3] = [float(v) for v in fields["spaceorigin"].strip("()").split(",")]
    return values, np.diag([*_SPACES[space], 1]) @ affine, ""


def itk_planes(path: Path, kinds: list[str]) -> list[Plane]:
    """Slices of a file of kinds that ``unusual_itk.py`` names."""
    values, affine, unknown = (read_nrrd if path.suffix.lower() in (".nrrd", ".nhdr") else read_meta)(path)
    if unknown:
        raise MustBeRefused(unknown)
    planes = planes_of(values, affine, float(np.abs(values).max()))
    if "no size of what is packed" in kinds:  # of which MetaIO makes noise, with no more than a complaint
        return planes
    kind = "NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO"
    image = sitk.ReadImage(str(path), imageIO=kind)
    if image.GetDimension() == 3:
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        matrix[:3, 3] = image.GetOrigin()
        found = from_reading(sitk.GetArrayFromImage(image), matrix, planes, PLACES)
        if found:
            raise Differs(f"the parser and SimpleITK do not agree: {found}")
    return planes
