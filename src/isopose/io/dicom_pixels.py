"""Decode DICOM pixels into their unit: decompress, rescale each frame, replace padding by air.

ITK rescales a whole file by one pair of slope and intercept. GDCM cannot read all files without a preamble,
nor float pixels. Therefore pydicom reads uncompressed values, and compressed ones are passed to GDCM in a
temporary file that contains only the pixels.
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
from isopose.io.dicom_files import file_meta_of
from isopose.io.dicom_frames import DicomFrame
from isopose.io.dicom_rescale import rescaled
from isopose.io.quiet import itk_name, quiet_itk, quiet_pydicom

#: Value that replaces padding in CT, in HU (0 in other modalities). Padding up to this much darker is kept,
#: since scanners also write air as -1024.
AIR_HU, AIR_MARGIN_HU = -1000, 24
_UNCOMPRESSED = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
#: Names of the pixel element, the padding value and the other end of the padding range.
_PIXEL_ELEMENTS = (
    ("PixelData", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    ("FloatPixelData", "FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    ("DoubleFloatPixelData", "DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
)
_FORMAT_FIELDS = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "NumberOfFrames",
)
_TAGS = [*_FORMAT_FIELDS, *(name for names in _PIXEL_ELEMENTS for name in names)]


@dataclass(frozen=True, eq=False)
class _Stored:
    """The stored values of a file.

    Args:
        array: ``(frame, y, x)`` in the allocated type, of which the stored bits may be a part.
        bits: number of stored bits; all for floats.
        shift: number of unused bits below them.
        padding: lowest and highest stored value that is padding.
    """

    array: np.ndarray
    bits: int
    shift: int
    padding: tuple[float, float] | None

    def values(self, index: int) -> np.ndarray:
        """Return the ``(y, x)`` stored values of a frame: only the stored bits, sign-extended."""
        array, allocated = self.array[index], 8 * self.array.dtype.itemsize
        if self.bits == allocated or array.dtype.kind == "f":
            return array
        # An arithmetic right shift extends the sign.
        top = allocated - self.bits - self.shift
        return np.right_shift(np.left_shift(array, top), allocated - self.bits)

    def padded(self, index: int, values: np.ndarray) -> np.ndarray | None:
        """Return a mask ``(y, x)`` of a frame's padding; None if there is none."""
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
            # A padding value outside the range of the stored bits is compared with all allocated bits.
            allocated = self.array[index]
            padded |= (allocated >= low) & (allocated <= high)
        return padded


def pixels(frames: Sequence[DicomFrame]) -> Iterator[np.ndarray]:
    """Yield slices ``(y, x)`` in their unit (HU in CT), each in the narrowest type that holds its values.

    Raises:
        InputError: pixels cannot be decoded, or their number does not match the header.
    """
    per_file = Counter(frame.path for frame in frames)
    opened: dict[Path, _Stored] = {}
    with tempfile.TemporaryDirectory(prefix="isopose-") as folder:
        for frame in frames:
            stored = opened.get(frame.path)
            if stored is None:
                itk_name(frame.path)  # refuse non-UTF-8 names here, as for other formats
                stored = _read_stored(frame.path, Path(folder))
                if per_file[frame.path] > 1:
                    opened[frame.path] = stored
            if stored.array.shape[1:] != frame.size or frame.index >= len(stored.array):
                raise InputError(
                    f"{frame.path}: pixels do not match the header's size; copy or export it again"
                )
            yield _rescaled_frame(stored, frame)


def _rescaled_frame(stored: _Stored, frame: DicomFrame) -> np.ndarray:
    values = stored.values(frame.index)
    padded = stored.padded(frame.index, values)
    scaled = rescaled(values, frame.rescale)
    if padded is None:
        return scaled
    air = AIR_HU if frame.modality == "CT" else 0
    with np.errstate(invalid="ignore"):
        padded &= ~((scaled <= air) & (scaled >= air - AIR_MARGIN_HU))  # also where padding is NaN
    if not padded.any():
        return scaled
    if not scaled.flags.writeable or scaled.dtype.kind == "u":
        scaled = scaled.astype(np.int64 if scaled.dtype.kind in "iu" else np.float64)
    scaled[padded] = air
    return scaled


def _read_stored(path: Path, folder: Path) -> _Stored:
    """Return a file's stored values; ``folder`` is a temporary folder for decompression."""
    try:
        with quiet_pydicom():
            data = pydicom.dcmread(path, force=True, specific_tags=list(_TAGS))
            names = next(names for names in _PIXEL_ELEMENTS if names[0] in data)
            array, clean = _decode(data, names[0], folder)
            bits, shift = _bits(data, array, clean)
            padding = _padding(data, names[1], names[2], array.dtype)
    except Exception:  # any error of a damaged file; the library's message may quote the header
        raise InputError(
            f"{path}: pixels cannot be decoded (truncated, or compressed in an unsupported way); copy it "
            "again, or decompress it with your DICOM toolkit"
        ) from None
    return _Stored(array, bits, shift, padding)


def _decode(data: Dataset, name: str, folder: Path) -> tuple[np.ndarray, bool]:
    """Return the stored values ``(frame, y, x)``, and whether unused bits were already removed."""
    fields = {field: int(data.get(field)) for field in _FORMAT_FIELDS if data.get(field) is not None}
    if fields.get("PixelRepresentation", 0) not in (0, 1):
        raise ValueError("neither signed nor unsigned")
    fields["NumberOfFrames"] = fields.get("NumberOfFrames") or 1
    syntax, bits = _transfer_syntax(data), fields.get("BitsAllocated", 16)
    if syntax in _UNCOMPRESSED and syntax.is_little_endian and bits in (8, 16, 32, 64):
        if data[name].is_undefined_length:
            raise ValueError("compressed, against what the file says")
        kind = "f" if name != "PixelData" else "i" if fields.get("PixelRepresentation") else "u"
        shape = fields["NumberOfFrames"], fields["Rows"], fields["Columns"]
        array = np.frombuffer(data[name].value, f"<{kind}{bits // 8}", math.prod(shape))
        return array.reshape(shape), False
    image = Dataset()
    for field, value in fields.items():
        setattr(image, field, value)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image[name] = data[name]
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    if syntax not in _UNCOMPRESSED or bits % 8:
        try:
            array = _decode_by_gdcm(image, folder)
            return (array if array.ndim == 3 else array[None]), True
        except RuntimeError:
            # GDCM fails on very small run-length encoded images.
            if syntax != RLELossless:
                raise
    array = pixel_array(image, raw=True, correct_unused_bits=False)
    return (array if array.ndim == 3 else array[None]), False


def _transfer_syntax(data: Dataset) -> UID:
    """Return the transfer syntax, as detected by pydicom if the file does not name one."""
    named = file_meta_of(data).get("TransferSyntaxUID")
    if named:
        return UID(named)
    implicit, little = data.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _decode_by_gdcm(image: Dataset, folder: Path) -> np.ndarray:
    uid = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    image.SOPClassUID, image.SOPInstanceUID = uid, generate_uid()
    image.file_meta.MediaStorageSOPClassUID = uid
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    file = folder / "pixels.dcm"
    pydicom.dcmwrite(file, image, enforce_file_format=True)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(file))
    with quiet_itk():
        return sitk.GetArrayFromImage(reader.Execute())


def _bits(data: Dataset, array: np.ndarray, clean: bool) -> tuple[int, int]:
    """Return the number of stored bits and the number of unused bits below them."""
    allocated = 8 * array.dtype.itemsize
    bits = int(data.get("BitsStored") or allocated)
    if clean or array.dtype.kind == "f" or not 0 < bits < allocated:
        return allocated, 0
    high = data.get("HighBit")
    shift = 0 if high is None else int(high) + 1 - bits
    return bits, shift if 0 <= shift <= allocated - bits else 0


def _padding(data: Dataset, name: str, limit: str, dtype: np.dtype) -> tuple[float, float] | None:
    """Return the lowest and highest stored value that is declared as padding."""
    value, other = (_padding_value(data.get(end), dtype) for end in (name, limit))
    if value is None:
        return None
    low, high = sorted((value, value if other is None else other))
    return low, high


def _padding_value(value: Any, dtype: np.dtype) -> float | None:
    """Return a padding value in the representation of the pixels; None if that is impossible.

    Many files declare the padding signed and the pixels unsigned, or the reverse. A value outside the range
    of the pixels' type is therefore reinterpreted by its bits.
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
    offsets = (0, 2**16, -(2**16), 2 ** (8 * dtype.itemsize), -(2 ** (8 * dtype.itemsize)))
    return next((number + offset for offset in offsets if limits.min <= number + offset <= limits.max), None)
