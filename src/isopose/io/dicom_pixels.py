"""Pixels of DICOM files as their unit: stored values decoded, rescaled by frame, padding made air.

ITK rescales a whole file by one pair, and GDCM reads neither files without a preamble everywhere nor float
pixels. So uncompressed values are taken as pydicom reads them, and compressed ones are given to GDCM in a
file that holds nothing but the pixels.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    generate_uid,
)

from isopose.errors import InputError
from isopose.io.dicom_frames import Frame
from isopose.io.dicom_rescale import rescaled
from isopose.io.quiet import itk_name, quiet_itk, quiet_pydicom

#: What padding becomes in CT; in other modalities, where nothing is measured, 0. Padding that is as dark as
#: air already, at most so much below, stays: scanners write air as -1024 too.
AIR_HU, AS_DARK = -1000, 24
_UNCOMPRESSED = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
#: The element of the pixels, that of their padding, and that of the other end of the padding's range.
_PIXELS = (
    ("PixelData", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    ("FloatPixelData", "FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    ("DoubleFloatPixelData", "DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
)
_FORM = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames")
_TAGS = [*_FORM, *(name for names in _PIXELS for name in names)]


@dataclass(frozen=True, eq=False)
class _Stored:
    """What a file stores.

    Args:
        array: ``(frame, y, x)`` in the allocated type, of which the stored bits may be a part.
        bits: how many of them are stored, all for floats.
        shift: how many bits below them are not.
        padding: lowest and highest stored value that is padding.
    """

    array: np.ndarray
    bits: int
    shift: int
    padding: tuple[float, float] | None

    def values(self, index: int) -> np.ndarray:
        """``(y, x)`` stored values of a frame: the stored bits alone, with their sign."""
        array, allocated = self.array[index], 8 * self.array.dtype.itemsize
        if self.bits == allocated or array.dtype.kind == "f":
            return array
        # An arithmetic shift to the right repeats the sign.
        top = allocated - self.bits - self.shift
        shifted: np.ndarray = np.right_shift(np.left_shift(array, top), allocated - self.bits)
        return shifted

    def padded(self, index: int, values: np.ndarray) -> np.ndarray | None:
        """``(y, x)`` where a frame is padding; None where nothing is."""
        if self.padding is None:
            return None
        low, high = self.padding
        if np.isnan(low):
            return np.isnan(values)
        padded: np.ndarray = (values >= low) & (values <= high)
        if values.dtype.kind == "f":
            return padded
        signed = values.dtype.kind == "i"
        lowest, highest = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1)) if signed else (0, 2**self.bits)
        if self.shift == 0 and (low < lowest or high >= highest):
            # Padding beyond the stored bits is written in all of the allocated ones.
            whole = self.array[index]
            padded |= (whole >= low) & (whole <= high)
        return padded


def pixels(frames: Sequence[Frame]) -> Iterator[np.ndarray]:
    """Slices ``(y, x)`` in their unit (HU in CT), each in the type that its own values need.

    Raises:
        InputError: pixels that cannot be decoded, or are not as many as the header says.
    """
    per_file = Counter(frame.path for frame in frames)
    opened: dict[Path, _Stored] = {}
    with tempfile.TemporaryDirectory(prefix="isopose-") as place:
        for frame in frames:
            stored = opened.get(frame.path)
            if stored is None:
                itk_name(frame.path)  # as for other formats, so that all that follows can be given the name
                stored = _stored(frame.path, Path(place))
                if per_file[frame.path] > 1:
                    opened[frame.path] = stored
            if stored.array.shape[1:] != frame.size or frame.index >= len(stored.array):
                raise InputError(
                    f"{frame.path}: pixels do not match the header's size; copy or export it again"
                )
            yield _in_unit(stored, frame)


def _in_unit(stored: _Stored, frame: Frame) -> np.ndarray:
    values = stored.values(frame.index)
    padded = stored.padded(frame.index, values)
    scaled = rescaled(values, frame.rescale)
    if padded is None:
        return scaled
    air = AIR_HU if frame.modality == "CT" else 0
    with np.errstate(invalid="ignore"):
        padded &= ~((scaled <= air) & (scaled >= air - AS_DARK))  # also where padding is NaN
    if not padded.any():
        return scaled
    if not scaled.flags.writeable or scaled.dtype.kind == "u":
        scaled = scaled.astype(np.int64 if scaled.dtype.kind in "iu" else np.float64)
    scaled[padded] = air
    return scaled


def _stored(path: Path, place: Path) -> _Stored:
    """What a file stores; ``place`` is a folder for what has to be decompressed."""
    try:
        with quiet_pydicom():
            data = pydicom.dcmread(path, force=True, specific_tags=list(_TAGS))
            names = next(names for names in _PIXELS if names[0] in data)
            array, clean = _decoded(data, names[0], place)
            bits, shift = _bits(data, array, clean)
            padding = _padding(data, names[1], names[2], array.dtype)
    except Exception:  # whatever a damaged or unknown encoding leads to, and libraries quote the header
        raise InputError(
            f"{path}: pixels cannot be decoded (truncated, or compressed in an unsupported way); copy it "
            "again, or decompress it with your DICOM toolkit"
        ) from None
    return _Stored(array, bits, shift, padding)


def _decoded(data: Dataset, name: str, place: Path) -> tuple[np.ndarray, bool]:
    """``(frame, y, x)`` as stored, and whether unused bits were removed."""
    form = {field: int(data.get(field)) for field in _FORM if data.get(field) is not None}
    form["NumberOfFrames"] = form.get("NumberOfFrames") or 1
    syntax, bits = _syntax(data), form.get("BitsAllocated", 16)
    if syntax in _UNCOMPRESSED and syntax.is_little_endian and bits in (8, 16, 32, 64):
        if data[name].is_undefined_length:
            raise ValueError("compressed, against what the file says")
        kind = "f" if name != "PixelData" else "i" if form.get("PixelRepresentation") else "u"
        shape = form["NumberOfFrames"], form["Rows"], form["Columns"]
        array = np.frombuffer(data[name].value, f"<{kind}{bits // 8}", math.prod(shape))
        return array.reshape(shape), False
    plain = Dataset()
    for field, value in form.items():
        setattr(plain, field, value)
    plain.SamplesPerPixel, plain.PhotometricInterpretation = 1, "MONOCHROME2"
    plain[name] = data[name]
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = syntax
    if syntax not in _UNCOMPRESSED or bits % 8:
        try:
            array = _by_gdcm(plain, place)
            return (array if array.ndim == 3 else array[None]), True
        except RuntimeError:
            # GDCM does not take run lengths of very small images.
            if syntax != RLELossless:
                raise
    array = pixel_array(plain, raw=True, correct_unused_bits=False)
    return (array if array.ndim == 3 else array[None]), False


def _syntax(data: Dataset) -> UID:
    """Transfer syntax, as found by pydicom where the file does not name one."""
    meta = getattr(data, "file_meta", None)
    named = None if meta is None else meta.get("TransferSyntaxUID")
    if named:
        return UID(named)
    implicit, little = data.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _by_gdcm(plain: Dataset, place: Path) -> np.ndarray:
    uid = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    plain.SOPClassUID, plain.SOPInstanceUID = uid, generate_uid()
    plain.file_meta.MediaStorageSOPClassUID = uid
    plain.file_meta.MediaStorageSOPInstanceUID = plain.SOPInstanceUID
    file = place / "pixels.dcm"
    pydicom.dcmwrite(file, plain, enforce_file_format=True)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(file))
    with quiet_itk():
        return sitk.GetArrayFromImage(reader.Execute())


def _bits(data: Dataset, array: np.ndarray, clean: bool) -> tuple[int, int]:
    """How many bits are stored, and how many below them are not."""
    allocated = 8 * array.dtype.itemsize
    bits = int(data.get("BitsStored") or allocated)
    if clean or array.dtype.kind == "f" or not 0 < bits < allocated:
        return allocated, 0
    high = data.get("HighBit")
    shift = 0 if high is None else int(high) + 1 - bits
    return bits, shift if 0 <= shift <= allocated - bits else 0


def _padding(data: Dataset, name: str, limit: str, dtype: np.dtype) -> tuple[float, float] | None:
    """Lowest and highest stored value that is declared to be padding."""
    if data.get(name) is None:
        return None
    value = _as_stored(data.get(name), dtype)
    other = None if data.get(limit) is None else _as_stored(data.get(limit), dtype)
    if value is None:
        return None
    low, high = sorted((value, value if other is None else other))
    return low, high


def _as_stored(value: Any, dtype: np.dtype) -> float | None:
    """A padding value as the pixels store it, whatever representation it was declared in.

    Many files declare it signed where the pixels are not, or the other way round, so that a number that the
    pixels' type does not hold is taken by its bits.
    """
    if isinstance(value, (bytes, bytearray)):
        value = int.from_bytes(value[: dtype.itemsize], "little")
    elif isinstance(value, (list, tuple)) or (hasattr(value, "__len__") and not isinstance(value, str)):
        value = value[0] if len(value) else ""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if dtype.kind == "f":
        return number
    limits = np.iinfo(dtype)
    turns = (0, 2**16, -(2**16), 2 ** (8 * dtype.itemsize), -(2 ** (8 * dtype.itemsize)))
    return next((number + turn for turn in turns if limits.min <= number + turn <= limits.max), None)
