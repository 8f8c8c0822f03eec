"""MetaImage and NRRD files as ITK, Slicer, Plastimatch and scripts write them."""

import gzip
import zlib
from pathlib import Path
from random import Random

import numpy as np
from planes import Note
from unusual_body import Scan, drawn_scan, maybe

#: What ITK leaves of a DICOM header and a NIfTI header in a MetaImage's dictionary.
_DICTIONARY = (
    "0008|0020 = 20200101",
    "0010|0010 = Secret^Name",
    "0010|0020 = SECRET-ID",
    "0028|1052 = -1024",
    "ITK_InputFilterName = NiftiImageIO",
    "ITK_original_direction = 1 0 0 0 1 0 0 0 1",
    "ITK_original_spacing = 1 1 1",
    "aux_file = ",
    "bitpix = 16",
    "descrip = Secret",
    "dim[0] = 3",
    "qto_xyz = 1 2 3 ",
    "sform_code_name = NIFTI_XFORM_SCANNER_ANAT",
    "srow_x = -3 0 0 150",
    "Comment = written by Secret",
    "Name = Secret",
    "ITK_zmin = -0",
    "AcquisitionDate = none",
    "Modality = MET_MOD_CT",
    "ObjectSubType = ",
)
_META = {"i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}
_NRRD = {
    "i2": ("short", "int16", "signed short int", "int16_t", "short int"),
    "u2": ("ushort", "uint16", "unsigned short", "uint16_t"),
    "i4": ("int", "int32", "signed int"),
    "f4": ("float",),
    "f8": ("double",),
}


def unusual_itk(folder: Path, draw: Random) -> None:
    """One MetaImage or NRRD, in one file or several, with its :class:`Note`."""
    turns = draw.choice(("axial", "swapped", "leaned", "oblique"))
    kinds = [turns] if turns != "axial" else []
    scan = drawn_scan(draw, turns)
    code = draw.choice(("i2", "i2", "i2", "u2", "i4", "f4", "f8"))
    kinds += [np.dtype(code).name] * (code != "i2")
    msb = maybe(draw, 0.25)
    kinds += ["most significant byte first"] * msb
    hu = scan.hu + 1024 if code == "u2" else scan.hu + (0.1 if code[0] == "f" else 0)
    data = hu.astype((">" if msb else "<") + code).tobytes()
    name, valid = (_meta if maybe(draw, 0.5) else _nrrd)(folder, scan, code, msb, data, kinds, draw)
    Note(scan=name, kinds=kinds or ["plain"], valid=valid, hu=code != "u2").write(folder)


def _words(values: np.ndarray) -> str:
    return " ".join(f"{v:.17g}" for v in np.asarray(values).ravel())


def _meta(
    folder: Path, scan: Scan, code: str, msb: bool, data: bytes, kinds: list[str], draw: Random
) -> tuple[str, bool]:
    valid = True
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True"]
    lines.append(f"{draw.choice(('BinaryDataByteOrderMSB', 'ElementByteOrderMSB'))} = {msb}")
    if maybe(draw, 0.5):
        chosen = draw.sample(_DICTIONARY, draw.randint(1, len(_DICTIONARY)))
        lines += [line for line in _DICTIONARY if line in chosen]
        kinds.append("metadata dictionary")
        if any("|" in line or "[" in line for line in chosen):
            kinds.append("keys that are no words")
    packed = maybe(draw, 0.4)
    if packed:
        data = zlib.compress(data, 1)
        lines.append("CompressedData = True")
        if maybe(draw, 0.7):
            lines.append(f"CompressedDataSize = {len(data)}")
        else:
            kinds.append("no size of what is packed")
            valid = False
    elif maybe(draw, 0.5):
        lines.append("CompressedData = False")
    turned = draw.choice(("TransformMatrix", "TransformMatrix", "Rotation", "Orientation"))
    lines.append(f"{turned} = {_words(scan.turn.T)}")
    placed = draw.choice(("Offset", "Offset", "Position", "Origin"))
    lines.append(f"{placed} = {_words(scan.origin)}")
    if (turned, placed) != ("TransformMatrix", "Offset"):
        kinds.append(f"{turned}, {placed}")
    lines.append("CenterOfRotation = " + draw.choice(("0 0 0", "10 20 30")))
    lines.append("AnatomicalOrientation = " + draw.choice(("RAI", "LPS", "???", "ASL")))
    size = draw.choice(("ElementSpacing", "ElementSpacing", "ElementSize", "both"))
    if size in ("ElementSpacing", "both"):
        lines.append(f"ElementSpacing = {_words(scan.spacing)}")
    if size in ("ElementSize", "both"):
        lines.append(f"ElementSize = {_words(scan.spacing * (1 if size == 'ElementSize' else 0.5))}")
        kinds.append("ElementSize" if size == "ElementSize" else "ElementSize beside ElementSpacing")
    lines.append("DimSize = " + " ".join(map(str, scan.hu.shape[::-1])))
    if maybe(draw, 0.2):
        lines.append("ElementNumberOfChannels = 1")
    local = maybe(draw, 0.6)
    if not local and not packed and maybe(draw, 0.3):
        data = bytes(77) + data
        lines.append("HeaderSize = " + draw.choice(("-1", "77")))
        kinds.append("voxels after a header")
    lines.append(f"ElementType = {_META[code]}")
    end = "\r\n" if maybe(draw, 0.1) and not local else "\n"
    kinds += ["lines of Windows"] * (end != "\n")
    if local:
        name = draw.choice(("scan.mha", "scan.MHA", "sc\u00e4n 1.mha"))
        (folder / name).write_bytes("\n".join([*lines, "ElementDataFile = LOCAL\n"]).encode() + data)
        return name, valid
    target = draw.choice(("scan.raw", "voxels.zraw", "LIST")) if not packed else "scan.zraw"
    if target == "LIST" and not any(line.startswith("HeaderSize") for line in lines):
        kinds.append("a file a slice")
        part = len(data) // len(scan.hu)
        names = [f"slice{k}.raw" for k in range(len(scan.hu))]
        for k, name in enumerate(names):
            (folder / name).write_bytes(data[k * part : (k + 1) * part])
        lines += ["ElementDataFile = LIST", *names]
        valid = False
    else:
        target = "scan.raw" if target == "LIST" else target
        (folder / target).write_bytes(data)
        lines.append(f"ElementDataFile = {target}")
    (folder / "scan.mhd").write_bytes((end.join(lines) + end).encode())
    return "scan.mhd", valid


def _nrrd(
    folder: Path, scan: Scan, code: str, msb: bool, data: bytes, kinds: list[str], draw: Random
) -> tuple[str, bool]:
    valid = True
    space = draw.choice(
        ("left-posterior-superior",) * 3
        + ("right-anterior-superior", "left-anterior-superior", "LPS", "RAS", "LAS")
        + ("scanner-xyz", "3D-right-handed", "3D-left-handed", "")
    )
    kinds.append(f"space {space or 'of no name'}")
    valid &= not space.startswith(("3D", "scanner")) and space != ""
    sign = {"right-anterior-superior": (-1, -1, 1), "left-anterior-superior": (1, -1, 1)}
    sign |= {"RAS": (-1, -1, 1), "LAS": (1, -1, 1)}
    affine = np.diag([*sign.get(space, (1, 1, 1)), 1.0]) @ scan.affine
    lines = [draw.choice(("NRRD0004", "NRRD0005"))]
    if maybe(draw, 0.4):
        lines.append(
            "# Complete NRRD file format specification at: http://teem.sourceforge.net/nrrd/format.html"
        )
    lines += [f"type: {draw.choice(_NRRD[code])}", "dimension: 3"]
    lines.append(f"space: {space}" if space else "space dimension: 3")
    lines.append("sizes: " + " ".join(map(str, scan.hu.shape[::-1])))
    lines.append("space directions: " + " ".join(_vector(affine[:3, axis]) for axis in range(3)))
    lines.append("space origin: " + _vector(affine[:3, 3]))
    if maybe(draw, 0.5):
        lines.append("kinds: domain domain domain")
    if maybe(draw, 0.3):
        lines.append(
            draw.choice(('space units: "mm" "mm" "mm"', "centerings: cell cell cell", "content: Secret"))
        )
    if maybe(draw, 0.2):
        lines.append("measurement frame: (1,0,0) (0,1,0) (0,0,1)")
    encoding = draw.choice(("raw", "gzip", "gz", "text", "ascii", "raw"))
    if encoding in ("text", "ascii"):
        values = np.frombuffer(data, (">" if msb else "<") + code)
        data = (" ".join(f"{v!r}" for v in values.tolist()) + "\n").encode()
        kinds.append("voxels as text")
    elif encoding in ("gzip", "gz"):
        data = gzip.compress(data, 1, mtime=0)
    lines.append(f"encoding: {encoding}")
    if encoding not in ("text", "ascii") or maybe(draw, 0.5):
        lines.append(f"endian: {'big' if msb else 'little'}")
    draw_order = lines[1:]
    if maybe(draw, 0.15):
        # Fields may stand in any order, but for what needs the dimension.
        fixed, rest = draw_order[:5], draw_order[5:]
        draw.shuffle(rest)
        lines = [lines[0], *fixed, *rest]
    if maybe(draw, 0.3):
        lines += ["DICOM_0010_0010:=Secret^Name", "MultiVolume.x:=1,2,3", "0010|0020:=SECRET"]
        kinds.append("keys and values")
    if maybe(draw, 0.6):
        (folder / "scan.nrrd").write_bytes("\n".join([*lines, "", ""]).encode() + data)
        return "scan.nrrd", valid
    target = {"gzip": "scan.raw.gz", "gz": "scan.raw.gz", "raw": "scan.raw"}.get(encoding, "scan.txt")
    if encoding == "raw" and maybe(draw, 0.4):
        data = bytes(77) + data
        lines.append("byte skip: " + draw.choice(("77", "-1")))
        kinds.append("voxels after a header")
    lines.append(draw.choice(("data file", "datafile")) + f": {target}")
    (folder / target).write_bytes(data)
    end = "\r\n" if maybe(draw, 0.1) else "\n"
    kinds += ["lines of Windows"] * (end != "\n")
    (folder / "scan.nhdr").write_bytes((end.join(lines) + end).encode())
    return "scan.nhdr", valid


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(f"{v:.17g}" for v in values) + ")"
