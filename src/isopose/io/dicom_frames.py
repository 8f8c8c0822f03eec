"""What a DICOM file says about its images: one record per frame, classic and enhanced (multi-frame) alike.

Only technical fields are read. Names, identifiers, dates and free text (series and study descriptions hold
names often enough) never leave the file, so that no message can show them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from isopose.errors import InputError
from isopose.io.quiet import quiet_pydicom

_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
#: Objects that hold rows and columns but are no scan.
_NO_SCAN = {"SEG", "RTDOSE", "RTIMAGE", "PR", "SR", "KO", "REG", "RWV", "DOC", "OT", "SC"}


_AGAIN = "copy it again or remove it"
#: Storage classes of slices; the class stands first in a file, so that it survives a cut.
_SCANS = {
    CTImageStorage,
    EnhancedCTImageStorage,
    MRImageStorage,
    EnhancedMRImageStorage,
    PositronEmissionTomographyImageStorage,
}


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: where its pixels are and where it lies.

    Args:
        path: its file.
        index: its place in a multi-frame file, from 0.
        series: series instance UID, never shown.
        number: series number as text, empty where the file has none that is a number.
        modality: ``CT``, ``MR``, ...
        size: rows and columns.
        position: ``(3,)`` LPS position of the first pixel's centre, in mm.
        axes: ``(2, 3)`` unit vectors along a row (growing column) and down a column (growing row).
        spacing: mm between columns and mm between rows, ``(x, y)``.
        thickness: nominal slice thickness in mm, if told.
        rescale: slope and intercept, if told.
        grey: one unsigned or signed grey value per pixel, larger is brighter.
        localizer: a scout view.
    """

    path: Path
    index: int
    series: str
    number: str
    modality: str
    size: tuple[int, int]
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    thickness: float | None
    rescale: tuple[float, float] | None
    grey: bool
    localizer: bool

    @property
    def normal(self) -> np.ndarray:
        """``(3,)`` unit vector across the slice, right-handed with its axes."""
        return np.cross(self.axes[0], self.axes[1])


def read_header(path: Path) -> Dataset | None:
    """The technical fields of a DICOM file, or None where it is not one or too damaged to say.

    Files without the preamble are read as well where they end in ``.dcm`` or ``.ima``.
    """
    try:
        with quiet_pydicom():
            header = pydicom.dcmread(
                path, stop_before_pixels=True, force=_named(path), specific_tags=list(_TAGS)
            )
            known = "Modality" in header or "SOPClassUID" in header or _stored_class(header)
    except Exception:  # pydicom raises whatever a damaged element leads to
        return None
    return header if known else None


def frames_of(path: Path) -> list[Frame]:
    """The frames of one file; empty where it is not DICOM, not a scan, or does not say where it lies.

    Raises:
        InputError: it is DICOM by its name or its first bytes, but its header is cut off. Passing over it
            would shorten the scan without a word when it is the first or last slice.
    """
    try:
        with quiet_pydicom():
            return _frames_of(path)
    except InputError:
        raise
    except Exception:  # elements are decoded when they are asked for, and fail in as many ways as there are
        raise InputError(f"{path}: a damaged DICOM file, its header cannot be read; {_AGAIN}") from None


def _frames_of(path: Path) -> list[Frame]:
    header = read_header(path)
    if header is None:
        if _named(path) or _marked(path):
            raise InputError(
                f"{path}: a damaged DICOM file, its header cannot be read; copy it again or remove it"
            )
        return []
    if not header.get("Rows") or not header.get("Columns"):
        if _stored_class(header) in _SCANS:
            raise InputError(f"{path}: a damaged DICOM file, its header is cut off; {_AGAIN}")
        return []
    if str(header.get("Modality", "")).upper() in _NO_SCAN:
        return []
    shared = _first(header, "SharedFunctionalGroupsSequence")
    each = header.get("PerFrameFunctionalGroupsSequence") or []
    if not each and int(header.get("NumberOfFrames") or 1) > 1:
        return []
    found = [_frame(path, header, [group, shared], i) for i, group in enumerate(each or [Dataset()])]
    return [frame for frame in found if frame is not None] if None not in found else []


def _frame(path: Path, header: Dataset, groups: Sequence[Dataset], index: int) -> Frame | None:
    position = _numbers(_field(header, groups, "PlanePositionSequence", "ImagePositionPatient"), 3)
    axes = _numbers(_field(header, groups, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing = _numbers(_field(header, groups, "PixelMeasuresSequence", "PixelSpacing"), 2)
    if position is None or axes is None or spacing is None:
        return None
    axes = axes.reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if (np.abs(lengths - 1) > 1e-2).any() or (spacing <= 0).any():
        return None
    thickness = _thickness(header, groups)
    slope = _numbers(_field(header, groups, "PixelValueTransformationSequence", "RescaleSlope"), 1)
    intercept = _numbers(_field(header, groups, "PixelValueTransformationSequence", "RescaleIntercept"), 1)
    kinds = _field(header, groups, "CTImageFrameTypeSequence", "FrameType") or header.get("ImageType") or ()
    return Frame(
        path=path,
        index=index,
        series=str(header.get("SeriesInstanceUID") or ""),
        number=_shown(header.get("SeriesNumber")),
        modality=str(header.get("Modality") or "unknown modality"),
        size=(int(header.Rows), int(header.Columns)),
        position=position,
        axes=axes / lengths[:, None],
        spacing=(float(spacing[1]), float(spacing[0])),  # DICOM: between rows first
        thickness=None if thickness is None else float(thickness[0]),
        rescale=None if slope is None or intercept is None else (float(slope[0]), float(intercept[0])),
        grey=int(header.get("SamplesPerPixel") or 1) == 1
        and str(header.get("PhotometricInterpretation") or "MONOCHROME2") == "MONOCHROME2",
        localizer="LOCALIZER" in [str(kind).upper() for kind in kinds],
    )


def _thickness(header: Dataset, groups: Sequence[Dataset]) -> np.ndarray | None:
    try:
        return _numbers(_field(header, groups, "PixelMeasuresSequence", "SliceThickness"), 1)
    except Exception:  # of any kind; without it a slice's place is known all the same
        return None


def _field(header: Dataset, groups: Sequence[Dataset], macro: str, name: str) -> Any:
    """A field of the frame's own or the shared functional groups, else of the file itself."""
    for group in groups:
        item = _first(group, macro)
        if item.get(name) is not None:
            return item.get(name)
    return header.get(name)


def _first(dataset: Dataset, name: str) -> Dataset:
    sequence = dataset.get(name)
    return sequence[0] if sequence else Dataset()


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """``count`` finite numbers, or None."""
    if value is None or value == "":
        return None
    array = np.array(value, dtype=np.float64).reshape(-1)
    return array if array.size == count and np.isfinite(array).all() else None


def _shown(number: Any) -> str:
    """A number as text; of another kind of element, which may hold anything, nothing."""
    text = "" if number is None else str(number)
    return text if text.isascii() and text.removeprefix("-").isdecimal() else ""


def _named(path: Path) -> bool:
    return path.suffix.lower() in (".dcm", ".ima")


def _marked(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _stored_class(header: Dataset) -> str:
    meta = getattr(header, "file_meta", None)
    return "" if meta is None else str(meta.get("MediaStorageSOPClassUID") or "")
