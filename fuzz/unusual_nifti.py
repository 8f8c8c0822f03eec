"""NIfTI files with every field that can shift, turn or scale voxels as some tool writes it."""

import gzip
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np
from planes import PLACES, Note
from unusual_body import drawn_scan, maybe

_TYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "i2", "i2")
_NAN = float("nan")
#: Slope and intercept, and whether they are valid together.
_SCALES: tuple[tuple[float, float, bool], ...] = (
    *((0.0, 0.0, True), (1.0, 0.0, True), (0.0, 5.0, True), (_NAN, _NAN, True), (_NAN, 0.0, True)),
    *((1.0, -1024.0, True), (2.0, 0.0, True), (-1.0, 0.0, True), (0.5, -1000.5, True), (1.0, 0.25, True)),
    *((0.0, _NAN, True), (2.0, _NAN, False), (1.0, float("inf"), False), (float("inf"), 3.0, False)),
)


def unusual_nifti(folder: Path, draw: Random) -> None:
    """One ``.nii`` or ``.nii.gz`` with its :class:`Note`."""
    kinds: list[str] = []
    valid = True
    turns = draw.choice(("axial", "swapped", "swapped", "leaned", "oblique"))
    if turns != "axial":
        kinds.append(turns)
    scan = drawn_scan(draw, turns)
    version, order = draw.choice((1, 1, 2)), draw.choice("<<>")
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=order)
    kinds += ["NIfTI-2"] * (version == 2) + ["big endian"] * (order == ">")
    tolerance = max(PLACES, 3e-7 * float(np.abs(scan.affine).max()) * 40)
    stored = _stored(header, scan.hu.transpose(2, 1, 0), kinds, draw)
    # Values that are no HU as they are stored are HU where no other scaling is drawn.
    header["scl_slope"], header["scl_inter"] = (1.0, -1024.0) if stored.dtype.kind == "u" else (1.0, 0.0)
    if stored.dtype.itemsize == 1:
        header["scl_slope"] = 16.0
    hu = maybe(draw, 0.5)
    if not hu:
        slope, inter, sound = draw.choice(_SCALES)
        header["scl_slope"], header["scl_inter"] = slope, inter
        kinds.append(f"slope {slope:g}, intercept {inter:g}")
        valid &= sound
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    header.set_data_shape(stored.shape)
    valid &= _places(header, affine, kinds, draw)
    valid &= _units(header, kinds, draw)
    _others(header, kinds, draw)
    valid &= not {"not one volume", "not a number among the voxels"} & set(kinds)
    content, sound = _file(header, stored, kinds, draw)
    name = draw.choice(("scan.nii.gz", "scan.nii", "scan.NII.GZ", "s c\u00e4n.nii", "packed.nii"))
    if name.lower().endswith(".gz") or name == "packed.nii":
        content = gzip.compress(content, 1, mtime=0)
    kinds += ["gzip under .nii"] * (name == "packed.nii")
    (folder / name).write_bytes(content)
    note = Note(name, kinds or ["plain"], valid=valid and sound, tolerance=tolerance, hu=hu)
    note.write(folder)


def _stored(header: Any, hu: np.ndarray, kinds: list[str], draw: Random) -> np.ndarray:
    """HU as some type holds them."""
    code = draw.choice(_TYPES)
    kind = np.dtype(code)
    values = hu
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        values = hu + 1024 if kind.kind == "u" else hu
        values = (values // 16 if kind.itemsize == 1 else values).clip(limits.min, limits.max)
    else:
        values = hu + 0.1
        if maybe(draw, 0.05):
            values[0, 0, 0] = _NAN
            kinds.append("not a number among the voxels")
    if code != "i2":
        kinds.append(kind.name)
    header.set_data_dtype(kind)
    return values.astype(kind.newbyteorder(header.endianness))


def _places(header: Any, affine: np.ndarray, kinds: list[str], draw: Random) -> bool:
    """The sform, the qform, both, or neither; returns whether they are valid together."""
    act = draw.choice(
        ("both", "sform", "sform", "qform", "qform", "differ", "contradict", "sheared", "neither")
    )
    codes = [draw.randint(1, 4), draw.randint(1, 4)]
    if act != "both":
        kinds.append({"sform": "sform only", "qform": "qform only"}.get(act, f"forms: {act}"))
    sform = affine.copy()
    size = np.linalg.norm(affine[:3, :3], axis=0)
    if act == "differ":
        sform[:3, 3] += np.array([draw.uniform(-0.2, 0.2) for _ in range(3)]) * size.min()
    elif act == "contradict":
        sform[:3, 3] += draw.choice((20.0, -35.0, 200.0))
    elif act == "sheared":
        sform[:3, 0] += draw.choice((7e-4, 1.5e-3, 2.5e-3)) * size[0] * affine[:3, 1] / size[1]
    header.set_qform(affine, 0 if act in ("sform", "neither") else codes[0])
    header.set_sform(sform, 0 if act in ("qform", "neither") else codes[1])
    if act == "sform" and maybe(draw, 0.7):
        form = draw.choice(("ones", "zeros", "negative", "nan", "other quaternion"))
        if form == "other quaternion":
            header["quatern_b"], header["quatern_c"], header["qoffset_x"] = 0.5, 0.5, 1e6
        else:
            header["pixdim"][1:4] = {
                "ones": 1.0, "zeros": 0.0, "negative": -1.0 * size, "nan": _NAN
            }[form]  # fmt: skip
        kinds.append(f"unused pixdim: {form}")
    if act == "qform":
        if header["pixdim"][0] > 0 and maybe(draw, 0.4):
            header["pixdim"][0] = draw.choice((0.0, 0.0, 1.0, 2.0))
            kinds.append(f"qfac {header['pixdim'][0]:g}")
        if maybe(draw, 0.2):
            header["srow_x"], header["srow_y"] = _NAN, 7.0
            kinds.append("unused sform")
        if maybe(draw, 0.2):
            # Three decimals, of which some tools make a norm a little above 1.
            for name in ("quatern_b", "quatern_c", "quatern_d"):
                header[name] = np.round(header[name], 6)
            kinds.append("quaternion of six decimals")
    if act == "qform" and maybe(draw, 0.1):
        header["pixdim"][1:4] *= -1  # absolute values count
        kinds.append("negative pixdim")
        return False
    return act not in ("contradict", "neither", "sheared")


def _units(header: Any, kinds: list[str], draw: Random) -> bool:
    """Millimeters, nothing said, meters or micrometers (with numbers to match or not), and times beside."""
    unit = draw.choice((2, 2, 2, 2, 0, 1, 3, 5)) if maybe(draw, 0.6) else 2
    factor = {1: 1e-3, 3: 1e3}.get(unit, 1.0)
    if factor != 1.0 and maybe(draw, 0.5):
        header["pixdim"][1:4] *= factor
        for name in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
            header[name] *= factor
        kinds.append("numbers in the unit")
    time = draw.choice((0, 0, 8, 16, 24, 32))
    header["xyzt_units"] = unit + time
    if unit != 2:
        kinds.append(f"unit {unit}")
    if time:
        kinds.append(f"unit of time {time}")
    return unit in (0, 2)


def _others(header: Any, kinds: list[str], draw: Random) -> None:
    """Fields that must change nothing, and dimensions of one."""
    if maybe(draw, 0.3):
        header["descrip"], header["aux_file"] = b"Secret \xff\xfe", b"SECRET\x01"
        header["intent_code"], header["intent_name"] = draw.choice((0, 2, 1002, 2003)), b"x"
        header["cal_max"], header["cal_min"], header["toffset"] = draw.choice((-1.0, _NAN)), 5.0, 1e30
        header["slice_code"], header["slice_end"], header["slice_duration"] = 77, -5, _NAN
        header["dim_info"] = 255
        kinds.append("odd fields without meaning")
    act = draw.random()
    if act < 0.15:
        rank = draw.choice((4, 5, 7))
        header["dim"][0] = rank
        header["dim"][4:] = 1
        kinds.append(f"{rank} dimensions")
        if act < 0.03:
            header["dim"][4] = 2
            kinds.append("not one volume")
    elif act < 0.3:
        header["dim"][4:] = draw.choice((0, -1, 9))
        kinds.append("odd unused dimensions")


def _file(header: Any, stored: np.ndarray, kinds: list[str], draw: Random) -> tuple[bytes, bool]:
    """Header, extensions and voxels; the place of the voxels; whether it is valid."""
    start = header.single_vox_offset
    header["magic"] = header.single_magic
    act = draw.choice(("plain", "plain", "extension", "gap", "zero", "in the header", "fraction"))
    between = bytes(4)
    if act == "extension":
        size = draw.choice((16, 32, 4096))
        code = np.array([size, draw.choice((0, 2, 4, 6, 44))], header.endianness + "i4").tobytes()
        between = b"\1\0\0\0" + code + b"Secret~~"[: size - 8] * ((size - 8) // 8)
    elif act == "gap":
        between = bytes(4 + draw.choice((1, 8, 16, 1000)))
    stated = start - 4 + len(between)
    kinds += [f"voxels: {act}"] * (act != "plain")
    if act == "zero":
        stated = 0
    elif act == "in the header":
        stated = draw.choice((1, 16, start - 4, -16))
    header["vox_offset"] = stated
    if act == "fraction" and header.single_magic == b"n+1":
        header["vox_offset"] = stated + 0.5
    content = header.binaryblock + between + stored.tobytes(order="F")
    if maybe(draw, 0.1):
        content += bytes(100)
        kinds.append("bytes after the voxels")
    return content, act not in ("zero", "in the header", "fraction")
