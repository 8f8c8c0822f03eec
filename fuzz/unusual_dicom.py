"""DICOM series as scanners, archives and exporters write them: valid or nearly so, and never plain.

Each series draws one way of each kind: how pixels become HU, what is padding, how places are written, how
files begin and are packed, what the patient's and study's elements hold, and what lies beside the slices.
"""

import io
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import pydicom
from PIL import Image
from planes import PLACES, Note
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)
from unusual_body import Scan, drawn_scan, maybe
from unusual_elements import odd_elements
from unusual_enhanced import as_enhanced
from unusual_places import ONE_FILE, lay_beside, pack

_TEXTS = (1, "1", "1.0", "+1", "1e0", "1.00000000000", " 1 ")
#: Slices of one series that do not lie together.
_APART = "slices in several folders"
#: Other beginnings of files than the standard's.
_PARTS = ("some without preamble", "preamble without meta header", "meta header without preamble")
SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}


@dataclass
class Series:
    """A series in the making: one data set a slice, and what has been done to it."""

    scan: Scan
    slices: list[Dataset]
    kinds: list[str] = field(default_factory=list)
    valid: bool = True
    tolerance: float = PLACES
    gdcm: bool = True


def unusual_dicom(folder: Path, draw: Random) -> None:
    """One series, as a folder, an archive or a file, with its :class:`Note`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _written(folder, draw)


def _written(folder: Path, draw: Random) -> None:
    turns = draw.choice(("axial",) * 6 + ("swapped", "leaned", "oblique"))
    made = _plain(drawn_scan(draw, turns), draw)
    if turns != "axial":
        made.kinds.append(turns)
        made.tolerance = 3e-3 if turns != "swapped" else PLACES
    _places(made, draw)
    _pixels(made, draw)
    if maybe(draw, 0.5):
        odd_elements(made.slices, made.kinds, draw)
        # Another quantity than HU may be refused.
        made.valid &= {str(d.get("RescaleType", "HU")) for d in made.slices} <= {"HU", ""}
    scan = folder / "scan"
    shutil.rmtree(scan, ignore_errors=True)
    scan.mkdir()
    if maybe(draw, 0.2):
        made.slices = as_enhanced(made.slices, made.kinds, draw)
        made.gdcm = False
    if maybe(draw, 0.05):
        # As some anonymizers leave them.
        for d in made.slices:
            d.SOPInstanceUID = made.slices[0].SOPInstanceUID
        made.kinds.append("one instance UID for all")
    contents = _files(made, draw)
    names = _names(made, len(contents), draw)
    for name, content in zip(names, contents, strict=True):
        (scan / name).parent.mkdir(parents=True, exist_ok=True)
        (scan / name).write_bytes(content)
    valid = lay_beside(scan, made.kinds, draw) if maybe(draw, 0.3) else True
    given, gdcm = pack(folder, made.kinds, draw)
    Note(
        scan=given,
        kinds=made.kinds or ["plain"],
        # A file stands for what lies in its folder and below, not above.
        valid=made.valid and valid and not {_APART, ONE_FILE} <= set(made.kinds),
        tolerance=made.tolerance,
        gdcm=made.gdcm and gdcm,
        hu="MR without rescaling" not in made.kinds,
    ).write(folder)


def _plain(scan: Scan, draw: Random) -> Series:
    """As a scanner writes it, in signed or unsigned numbers of 12 to 16 bits."""
    stem = str(draw.randrange(2**40))
    study, series, frame = (generate_uid(entropy_srcs=[stem, name]) for name in "abc")
    slices = []
    for k in range(len(scan.hu)):
        d = Dataset()
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[stem, str(k)])
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
        d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "Secret^Name", "SECRET-ID", "", ""
        d.StudyDate, d.StudyTime, d.StudyID, d.AccessionNumber = "20200101", "100000", "1", ""
        d.Modality, d.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.SeriesNumber, d.InstanceNumber, d.ReferringPhysicianName = 3, k + 1, ""
        d.Rows, d.Columns = scan.hu.shape[1:]
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.ImagePositionPatient = [_ds(v) for v in scan.origin + k * scan.spacing[2] * _normal(scan)]
        d.ImageOrientationPatient = [_ds(v) for v in scan.turn[:, :2].T.ravel()]
        d.PixelSpacing = [_ds(scan.spacing[1]), _ds(scan.spacing[0])]
        d.SliceThickness = _ds(scan.spacing[2])
        slices.append(d)
    if maybe(draw, 0.3):
        slices.reverse()
    return Series(scan, slices)


def _normal(scan: Scan) -> np.ndarray:
    """The direction in which the slices follow each other; a series has no handedness of its own."""
    return scan.turn[:, 2]


def _ds(value: float) -> str:
    """A number in the 16 characters that an element holds."""
    return f"{value:.10g}"[:16] if abs(value) >= 1e-4 else f"{value:.8f}"


def _places(made: Series, draw: Random) -> None:
    """Rounded or jittered positions and orientations; a gap, a tilt."""
    act = draw.random()
    slices, spacing = made.slices, made.scan.spacing
    if act < 0.12:
        step = draw.choice((0.1, 0.05, 0.01))
        gap = draw.choice((6.25, 3.33, 1.25, 0.625, 5.0))
        normal = _normal(made.scan)
        ordered = sorted(
            slices, key=lambda d: float(np.dot([float(v) for v in d.ImagePositionPatient], normal))
        )
        for k, d in enumerate(ordered):
            exact = made.scan.origin + k * gap * normal
            d.ImagePositionPatient = [_ds(round(v / step) * step) for v in exact]
            d.SliceThickness = _ds(gap)
        made.kinds.append(f"positions rounded to {step}")
        # Of few thin slices that lie aslant, rounded places do not show whether they stack at right angles.
        made.valid &= step <= 0.01 or not {"leaned", "oblique"} & set(made.kinds)
        made.tolerance += 1.7 * step * np.sqrt(3)
    elif act < 0.18:
        most = draw.choice((0.001, 0.01, 0.03))
        for d in slices:
            position = [float(v) + draw.uniform(-most, most) for v in d.ImagePositionPatient]
            d.ImagePositionPatient = [_ds(v) for v in position]
        made.kinds.append(f"positions jittered by {most}")
        made.tolerance += 3.4 * most * np.sqrt(3)
    elif act < 0.24:
        most = draw.choice((1e-6, 1e-5, 1e-4))
        for d in slices:
            values = [float(v) + draw.uniform(-most, most) for v in d.ImageOrientationPatient]
            d.ImageOrientationPatient = [_ds(v) for v in values]
        made.kinds.append(f"orientations jittered by {most:g}")
        made.tolerance += 4 * most * max(made.scan.hu.shape[1:]) * float(spacing[0])
    elif act < 0.27:
        del slices[draw.randrange(1, len(slices) - 1)]
        made.kinds.append("a slice is missing")
        made.valid = False
        made.gdcm = False
    elif act < 0.29:
        lean = draw.choice((0.05, 0.2)) * made.scan.turn[:, 1]
        for k, d in enumerate(slices):
            position = np.array([float(v) for v in d.ImagePositionPatient]) + k * spacing[2] * lean
            d.ImagePositionPatient = [_ds(v) for v in position]
        made.kinds.append("tilted gantry")
        made.valid = False
        made.gdcm = False


def _pixels(made: Series, draw: Random) -> None:
    """Stored values, how they become HU, and which are padding."""
    slices, signed = made.slices, maybe(draw, 0.4)
    bits = draw.choice((12, 13, 16, 16, 16))
    mode = draw.choice(
        ("plain",) * 4 + ("per file", "per file", "fractions", "texts", "modality LUT", "none", "MR")
    )
    pairs = [(1.0, 0.0 if signed else -1024.0)] * len(slices)
    if mode == "per file":
        choices = [(1.0, -1024.0), (0.5, -1024.0), (2.0, -1024.0), (1.0, -1000.0), (1.25, -1030.0)]
        pairs = [draw.choice(choices) for _ in slices]
    elif mode == "fractions":
        pairs = [draw.choice(((0.1234567, -1024.0), (1.0, -1024.5), (0.9, -1023.7), (2.3, 0.1)))] * len(
            slices
        )
    if mode not in ("plain", "MR"):
        made.kinds.append(f"rescale: {mode}" if mode != "none" else "no rescaling")
    made.gdcm &= len(set(pairs)) == 1 and mode in ("plain", "texts")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    position = {float(np.dot(_position(d), _normal(made.scan))): d for d in slices}
    order = {id(d): k for k, (_, d) in enumerate(sorted(position.items()))}
    padding = _padding(draw, low, high, signed)
    fills = None if mode == "modality LUT" or maybe(draw, 0.7) else padding
    text = draw.choice(_TEXTS)
    for d, (slope, intercept) in zip(slices, pairs, strict=True):
        hu = made.scan.hu[min(order[id(d)], len(made.scan.hu) - 1)]
        stored = np.rint((hu - intercept) / slope).clip(low, high).astype(np.int64)
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, bits, bits - 1, int(signed)
        if mode == "modality LUT":
            d.PixelRepresentation = 0
            stored = (hu + 1024).clip(0, 4095)
            d.ModalityLUTSequence = [_lut()]
        elif mode not in ("none", "MR"):
            d.RescaleSlope = text if mode == "texts" and slope == 1 else slope
            d.RescaleIntercept, d.RescaleType = intercept, "HU"
        if mode == "MR":
            d.Modality, d.SOPClassUID = "MR", MRImageStorage
            stored = (hu + 1024).clip(0, high)
        elif fills is not None:
            _fill(d, stored, made.scan.outside, fills, draw)
        d.stored = stored
    if mode == "MR":
        made.kinds.append("MR without rescaling")
    elif fills is not None:
        made.kinds.append(fills[2])
        made.gdcm = False
    if mode in ("modality LUT", "none"):
        made.valid = False
    if bits != 16 or signed:
        made.kinds.append(f"{'signed' if signed else 'unsigned'} {bits} bits")


def _position(d: Dataset) -> np.ndarray:
    return np.array([float(v) for v in d.ImagePositionPatient])


def _padding(draw: Random, low: int, high: int, signed: bool) -> tuple[int, int | None, str, str]:
    """Value, limit of a range, its kind and the representation of its elements."""
    value = draw.choice((low, low, high, high - 3))
    if maybe(draw, 0.4):
        limit = value - 40 if value > 0 else value + 40
        # Of unsigned numbers from 0 on the body's air is not far.
        limit = value if not signed and value == 0 else limit
        return value, limit, "padding range", draw.choice(("US", "SS")) if signed else "US"
    kind = "padding signed" if signed else "padding unsigned"
    return value, None, kind, draw.choice(("SS", "SS", "US")) if signed else "US"


def _fill(
    d: Dataset, stored: np.ndarray, outside: np.ndarray, fills: tuple[int, int | None, str, str], draw: Random
) -> None:
    value, limit, _, representation = fills
    between = [value] if limit is None else list(range(min(value, limit), max(value, limit) + 1, 7))
    stored[outside] = [draw.choice(between) for _ in range(int(outside.sum()))]
    for tag, end in ((0x00280120, value), (0x00280121, limit)):
        if end is not None:
            wrapped = end & 0xFFFF
            d.add_new(tag, representation, end if representation == "SS" else wrapped)


def _lut() -> Dataset:
    """A table from stored values to HU + 1024, which is not HU: CT must not have it."""
    item = Dataset()
    item.add_new(0x00283002, "US", [4096, 0, 16])
    item.add_new(0x00283006, "US", list(range(4096)))
    item.ModalityLUTType = "HU"
    return item


def _files(made: Series, draw: Random) -> list[bytes]:
    """The bytes of each file."""
    form = draw.choice(("plain",) * 5 + tuple(SYNTAXES) + ("no preamble",) * 2 + _PARTS)
    if form != "plain":
        made.kinds.append(form)
    if form == "JPEG 2000" and any(d.PixelRepresentation for d in made.slices):
        form = "JPEG-LS"
        made.kinds[-1] = form
    implicit = maybe(draw, 0.5)
    contents = []
    for d in made.slices:
        bare = form in ("no preamble", *_PARTS[1:]) or (form == _PARTS[0] and maybe(draw, 0.4))
        syntax = SYNTAXES.get(form, ImplicitVRLittleEndian if bare and implicit else ExplicitVRLittleEndian)
        contents.append(_bytes(d, syntax, form, bare, draw))
    if form in ("big endian", *_PARTS[1:]):
        made.gdcm = False
    made.valid &= form not in _PARTS[1:]
    return contents


def _bytes(d: Dataset, syntax: UID, form: str, bare: bool, draw: Random) -> bytes:
    """A file; without preamble and meta header where it is bare."""
    stored = np.asarray(d.stored)
    data = Dataset()
    data.update({element.tag: element for element in d})
    mask = (1 << int(d.BitsStored)) - 1
    kind = np.int16 if d.PixelRepresentation else np.uint16
    if form == "plain" and mask != 0xFFFF and maybe(draw, 0.2):
        # Bits above the highest one held overlays once.
        stored = (stored & mask) | 0x8000
    pixels = (stored & 0xFFFF).astype(np.uint16)
    data.PixelData = pixels.astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax in (RLELossless, JPEGLSLossless):
        data.compress(syntax, np.squeeze(pixels.view(kind)), generate_instance_uid=False)
    elif syntax == JPEG2000Lossless:
        data.PixelData = encapsulate([_jpeg2000(plane) for plane in np.atleast_3d(pixels.T).T])
        data["PixelData"].is_undefined_length = True
    elif syntax == ExplicitVRBigEndian:
        data.PixelData = pixels.astype(">u2").tobytes()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    file = io.BytesIO()
    if bare:
        plain = Dataset()
        plain.update({element.tag: element for element in data})
        implicit = syntax == ImplicitVRLittleEndian
        if form == "preamble without meta header":
            file.write(bytes(128) + b"DICM")
        elif form == "meta header without preamble":
            plain.file_meta = data.file_meta
        pydicom.dcmwrite(file, plain, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    else:
        pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def _jpeg2000(plane: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(plane).save(file, "JPEG2000", irreversible=False, no_jp2=True)
    return file.getvalue()


def _names(made: Series, count: int, draw: Random) -> list[str]:
    """Names of the files, in an order that says nothing of their places."""
    form = draw.choice(("IM{:04d}.dcm", "IM{:04d}", "IM{:04d}.IMA", "{:d}.dcm", "a b/IM {:d}", "1.2.3.{:d}"))
    if any(kind == "no preamble" or kind in _PARTS for kind in made.kinds):
        form = draw.choice((form, "IM{:04d}"))
    numbers = list(range(count))
    if maybe(draw, 0.6):
        draw.shuffle(numbers)
    names = [form.format(number) for number in numbers]
    if maybe(draw, 0.03):
        made.kinds.append(_APART)
        made.gdcm = False
        names = [draw.choice(("", "", "more/", "a/b/")) + name for name in names]
    return names
