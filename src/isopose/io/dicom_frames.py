"""Read the geometry of DICOM images: one record per frame, for classic and enhanced (multi-frame) files.

Only technical fields are read. Names, identifiers, dates and free text (series and study descriptions often
contain names) are never read, so no message can show them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    UID_dictionary,
)

from isopose.errors import InputError
from isopose.io.dicom_files import (
    begins_as_dicom,
    file_meta_of,
    has_dicom_extension,
    is_gzipped_dicom,
    read_header,
    sop_class_of,
)
from isopose.io.dicom_rescale import rescale_of
from isopose.io.quiet import quiet_pydicom

#: Modalities of objects that have rows and columns but are not scans.
_NOT_SCANS = {"SEG", "RTDOSE", "RTIMAGE", "PR", "SR", "KO", "REG", "RWV", "DOC", "OT", "SC"}
#: Those of them that some exporters also write into slices.
_VAGUE_MODALITIES = {"OT", "SC"}
_REMEDY = "copy it again or remove it"
#: Modalities of slices, and the modality of storage classes, for files that state none of these.
MODALITIES = {"CT", "MR", "PT", "NM"}
_CLASSES = {
    CTImageStorage: "CT",
    EnhancedCTImageStorage: "CT",
    LegacyConvertedEnhancedCTImageStorage: "CT",
    MRImageStorage: "MR",
    EnhancedMRImageStorage: "MR",
}
#: Storage classes of slices. The class comes first in a file, so part of it survives truncation.
_SLICE_CLASSES = {*_CLASSES, PositronEmissionTomographyImageStorage}
#: Maximum length of a modality, in characters; a longer value may be free text.
_MAX_MODALITY_LENGTH = 16
#: Functional group, element and number of values of each part of a frame's geometry.
_GEOMETRY_FIELDS = (
    ("PlanePositionSequence", "ImagePositionPatient", 3),
    ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ("PixelMeasuresSequence", "PixelSpacing", 2),
)


@dataclass(frozen=True, eq=False)
class DicomFrame:
    """One slice: where its pixels are stored and where it lies in space.

    Args:
        path: its file.
        index: index of the frame in a multi-frame file, from 0.
        uid: SOP instance UID of the file, empty if it has none; never shown.
        series: series instance UID, never shown.
        number: series number as text, empty if the file has no numeric one.
        modality: ``CT``, ``MR``, ...
        kind: name of the file's storage class in the standard.
        size: rows and columns.
        position: ``(3,)`` LPS position of the first pixel's center, in mm.
        axes: ``(2, 3)`` unit vectors along a row (growing column) and down a column (growing row).
        spacing: mm between columns and mm between rows, ``(x, y)``.
        thickness: nominal slice thickness in mm, if the file gives it.
        rescale: slope and intercept of this frame, if it has them.
        unusable: why the stored values cannot be rescaled to their unit; empty if they can.
        gray: pixels are one unsigned or signed gray value each, larger is brighter.
        localizer: the image is a scout view.
    """

    path: Path
    index: int
    uid: str
    series: str
    number: str
    modality: str
    kind: str
    size: tuple[int, int]
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    thickness: float | None
    rescale: tuple[float, float] | None
    unusable: str
    gray: bool
    localizer: bool


@dataclass(frozen=True)
class NoFrame:
    """A DICOM file without usable slices.

    Args:
        path: its file.
        series: series instance UID, never shown.
        kind: name of the file's storage class in the standard.
        lacks: the geometry fields that an image lacks; empty if the file is not an image.
    """

    path: Path
    series: str
    kind: str
    lacks: str = ""


def inspect_file(path: Path) -> list[DicomFrame] | NoFrame | None:
    """Return the frames of one file, or why it has none; None if it is not DICOM.

    Raises:
        InputError: the file is DICOM by its name or first bytes, but its header is truncated. Skipping it
            would silently shorten the scan if it is the first or last slice.
    """
    try:
        with quiet_pydicom():
            return _inspect_file(path)
    except InputError:
        raise
    except Exception:  # pydicom decodes elements on access and raises many types of error
        raise InputError(f"{path}: a damaged DICOM file, its header cannot be read; {_REMEDY}") from None


def frames_of(path: Path) -> list[DicomFrame]:
    """Return the frames of one file; empty if it is not DICOM, not a scan, or lacks its position.

    Raises:
        InputError: the file is DICOM but its header is truncated or damaged.
    """
    content = inspect_file(path)
    return content if isinstance(content, list) else []


def _inspect_file(path: Path) -> list[DicomFrame] | NoFrame | None:
    header = read_header(path)
    if header is None and is_gzipped_dicom(path):
        raise InputError(f"{path}: gzip-compressed DICOM is not supported; decompress it (gunzip)")
    if header is None:
        if has_dicom_extension(path) or begins_as_dicom(path):
            raise InputError(f"{path}: a damaged DICOM file, its header cannot be read; {_REMEDY}")
        return None
    kind, series = _kind(header), str(header.get("SeriesInstanceUID") or "")
    if not header.get("Rows") or not header.get("Columns"):
        if any(uid.startswith(sop_class_of(header) or "-") for uid in _SLICE_CLASSES):
            raise InputError(f"{path}: a damaged DICOM file, its header is cut off; {_REMEDY}")
        return NoFrame(path, series, kind)
    stated = str(header.get("Modality") or "").strip().upper()
    vague = stated in _VAGUE_MODALITIES and sop_class_of(header) in _SLICE_CLASSES
    if stated in _NOT_SCANS and not vague:
        return NoFrame(path, series, kind)
    shared = _first(header, "SharedFunctionalGroupsSequence")
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    count = int(header.get("NumberOfFrames") or 1)
    if count > 1 and not per_frame:
        return NoFrame(path, series, kind, "a position of each of their frames")
    if count != len(per_frame or [None]):
        raise InputError(
            f"{path}: a damaged DICOM file, it has {count} frames and positions of {len(per_frame)}; "
            f"{_REMEDY}"
        )
    groups = [[group, shared] for group in per_frame or [Dataset()]]
    geometries = [_geometry(header, frame_groups) for frame_groups in groups]
    lacks = dict.fromkeys(name for _, lacking in geometries for name in lacking)
    if lacks:
        return NoFrame(path, series, kind, " and ".join(lacks))
    return [
        _frame(path, header, frame_groups, index, *geometry)
        for index, (frame_groups, (geometry, _)) in enumerate(zip(groups, geometries, strict=True))
    ]


def _frame(
    path: Path,
    header: Dataset,
    groups: Sequence[Dataset],
    index: int,
    position: np.ndarray,
    axes: np.ndarray,
    spacing: np.ndarray,
) -> DicomFrame:
    axes = axes.reshape(2, 3)
    thickness = _thickness(header, groups)
    kinds = _field(header, groups, "CTImageFrameTypeSequence", "FrameType") or header.get("ImageType") or ()
    modality = _modality(header)
    # The frame's own pair is preferred to the shared one, and that to the file's; never one half of each.
    values = [_first(group, "PixelValueTransformationSequence") for group in groups]
    rescale, unusable = rescale_of([*values, header], modality)
    return DicomFrame(
        path=path,
        index=index,
        uid=str(header.get("SOPInstanceUID") or file_meta_of(header).get("MediaStorageSOPInstanceUID") or ""),
        series=str(header.get("SeriesInstanceUID") or ""),
        number=_decimal(header.get("SeriesNumber")),
        modality=modality,
        kind=_kind(header),
        size=(int(header.Rows), int(header.Columns)),
        position=position,
        axes=axes / np.linalg.norm(axes, axis=1)[:, None],
        spacing=(float(spacing[1]), float(spacing[0])),  # DICOM: between rows first
        thickness=None if thickness is None else float(thickness[0]),
        rescale=rescale,
        unusable=unusable,
        gray=int(header.get("SamplesPerPixel") or 1) == 1
        and str(header.get("PhotometricInterpretation") or "MONOCHROME2").strip().upper() == "MONOCHROME2",
        localizer="LOCALIZER" in [str(kind).upper() for kind in kinds],
    )


def _geometry(header: Dataset, groups: Sequence[Dataset]) -> tuple[list[np.ndarray], list[str]]:
    """Return the position, orientation and pixel size of a frame, and the names of missing ones."""
    values, lacks = [], []
    for macro, name, count in _GEOMETRY_FIELDS:
        value = _field(header, groups, macro, name)
        numbers = _numbers(value, count)
        if numbers is not None and _is_valid(name, numbers):
            values.append(numbers)
        elif value is not None:
            lacks.append(f"a valid {name}")
        elif name == "PixelSpacing" and header.get("ImagerPixelSpacing") is not None:
            lacks.append("PixelSpacing (ImagerPixelSpacing is that of the detector)")
        else:
            lacks.append(name)
    return values, lacks


def _is_valid(name: str, numbers: np.ndarray) -> bool:
    if name == "ImageOrientationPatient":
        return bool((np.abs(np.linalg.norm(numbers.reshape(2, 3), axis=1) - 1) <= 1e-2).all())
    return name != "PixelSpacing" or bool((numbers > 0).all())


def _kind(header: Dataset) -> str:
    """Return the name of a file's storage class in the standard, or another description of it."""
    uid = sop_class_of(header)
    name = UID(uid).name.removesuffix(" Storage") if uid in UID_dictionary else ""
    return name or _modality(header)


def _modality(header: Dataset) -> str:
    """Return the modality; that of the storage class, unless the file states another one of slices."""
    modality = str(header.get("Modality") or "").strip()
    if modality.upper() in MODALITIES:
        return modality.upper()
    of_class = _CLASSES.get(UID(sop_class_of(header)))
    if of_class is not None:
        return of_class
    is_code = (
        modality.isascii()
        and modality.isalnum()
        and modality.isupper()
        and len(modality) <= _MAX_MODALITY_LENGTH
    )
    return modality if is_code else "unknown modality"


def _thickness(header: Dataset, groups: Sequence[Dataset]) -> np.ndarray | None:
    try:
        return _numbers(_field(header, groups, "PixelMeasuresSequence", "SliceThickness"), 1)
    except Exception:  # any error: the thickness is optional
        return None


def _field(header: Dataset, groups: Sequence[Dataset], macro: str, name: str) -> Any:
    """Return a field from the frame's functional groups, the shared ones, or the file itself."""
    for group in groups:
        value = _first(group, macro).get(name)
        if value is not None and value != "":
            return value
    value = header.get(name)
    return None if value == "" else value


def _first(dataset: Dataset, name: str) -> Dataset:
    sequence = dataset.get(name)
    return sequence[0] if sequence else Dataset()


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """Return ``count`` finite numbers, or None."""
    if value is None:
        return None
    array = np.array(value, dtype=np.float64).reshape(-1)
    return array if array.size == count and np.isfinite(array).all() else None


def _decimal(number: Any) -> str:
    """Return a number as text; an empty text for any other value, which may identify the patient."""
    text = "" if number is None else str(number)
    return text if text.isascii() and text.removeprefix("-").isdecimal() else ""
