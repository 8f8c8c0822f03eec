"""DICOM as pydicom reads it, frame by frame; where all frames are scaled alike GDCM must find the same."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from planes import Differs, MustBeRefused, Plane, from_reading
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut


def _members(path: Path) -> Iterator[Dataset]:
    """All that pydicom can read below a folder, in an archive or beside a file."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            contents = [
                archive.read(member)
                for member in archive.infolist()
                if not member.is_dir() and "__MACOSX" not in member.filename
            ]
    else:
        folder = path if path.is_dir() else path.parent
        contents = [file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()]
    for content in contents:
        try:
            data = pydicom.dcmread(io.BytesIO(content), force=True)
            usable = "PixelData" in data and "Rows" in data
        except Exception:
            continue
        if usable:
            yield data


def dicom_planes(path: Path) -> list[Plane]:
    """The slices of the only series of images, each instance once; at different places they are different."""
    instances: dict[tuple[str, str], Dataset] = {}
    for data in _members(path):
        if data.get("Modality") in ("CT", "MR") and "LOCALIZER" not in data.get("ImageType", []):
            instances.setdefault((str(data.SOPInstanceUID), _places(data)), data)
    wanted = {str(data.SeriesInstanceUID) for data in instances.values()}
    if path.is_file() and path.suffix.lower() != ".zip":
        wanted = {str(pydicom.dcmread(path, force=True, stop_before_pixels=True).SeriesInstanceUID)}
    if len(wanted) != 1:
        raise MustBeRefused(f"{len(wanted)} series")
    chosen = [data for data in instances.values() if str(data.SeriesInstanceUID) in wanted]
    return [plane for data in chosen for plane in _frames(data)]


def _places(data: Dataset) -> str:
    """The positions of a file's frames as text."""
    groups = data.get("PerFrameFunctionalGroupsSequence") or [Dataset()]
    return str(
        [str(_element(data, [group], "PlanePositionSequence", "ImagePositionPatient")) for group in groups]
    )


def _frames(data: Dataset) -> list[Plane]:
    groups = list(data.get("PerFrameFunctionalGroupsSequence") or [Dataset()])
    shared = (data.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if "TransferSyntaxUID" not in getattr(data, "file_meta", {}):
        implicit, little = data.original_encoding
        data.ensure_file_meta()
        data.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        )
        assert little, "no preamble and big endian"
    stack = data.pixel_array.reshape(len(groups), data.Rows, data.Columns)
    planes = []
    for stored, group in zip(_significant(data, stack), groups, strict=True):
        places = [group, shared]
        position = _numbers(_element(data, places, "PlanePositionSequence", "ImagePositionPatient"))
        axes = _numbers(_element(data, places, "PlaneOrientationSequence", "ImageOrientationPatient"))
        between_rows, between_columns = _numbers(
            _element(data, places, "PixelMeasuresSequence", "PixelSpacing")
        )
        values, scale = _rescaled(data, places, stored)
        planes.append(
            Plane(
                values,
                position,
                axes[:3] * between_columns,
                axes[3:] * between_rows,
                _padding(data, stored),
                scale,
            )
        )
    return planes


def _significant(data: Dataset, stack: np.ndarray) -> np.ndarray:
    """Stored values without the bits above the highest one, which may hold anything."""
    shift = 16 - int(data.BitsStored)
    if data.BitsAllocated != 16 or not shift:
        return stack
    bits = stack.astype(np.int64).astype(np.uint16) << shift
    return (bits.view(np.int16) if data.PixelRepresentation else bits) >> shift


def _rescaled(data: Dataset, places: list[Dataset], stored: np.ndarray) -> tuple[np.ndarray, float]:
    if "ModalityLUTSequence" in data:
        return apply_modality_lut(stored, data).astype(np.float64), 0.0
    pair = Dataset()
    for name in ("RescaleSlope", "RescaleIntercept"):
        value = _element(data, places, "PixelValueTransformationSequence", name)
        if value in (None, ""):
            if data.Modality == "CT":
                raise MustBeRefused("CT without rescaling")
            return stored.astype(np.float64), 0.0
        setattr(pair, name, value)
    slope, intercept = float(pair.RescaleSlope), float(pair.RescaleIntercept)
    scale = max(abs(intercept), float(np.abs(stored.astype(np.float64)).max()) * abs(slope))
    return apply_modality_lut(stored, pair).astype(np.float64), scale


def _padding(data: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Pixels of the padding value, or from it to the range's limit, by their sixteen bits."""
    if data.get("PixelPaddingValue") is None:
        return None
    ends = [data.PixelPaddingValue, data.get("PixelPaddingRangeLimit", data.PixelPaddingValue)]
    if any(isinstance(end, bytes) for end in ends):
        ends = [int.from_bytes(end, "little") if isinstance(end, bytes) else end for end in ends]
    as_stored = np.int16 if data.PixelRepresentation else np.uint16
    low, high = sorted(int(np.array(int(end) & 0xFFFF, np.uint16).astype(as_stored)) for end in ends)
    return (stored >= low) & (stored <= high)


def _element(data: Dataset, places: list[Dataset], macro: str, name: str) -> Any:
    """An element of the frame, else of all frames, else of the file."""
    for place in places:
        items = place.get(macro)
        if items and items[0].get(name) is not None:
            return items[0].get(name)
    return data.get(name)


def _numbers(value: Any) -> np.ndarray:
    return np.array([float(part) for part in value])


def check_with_gdcm(path: Path, planes: list[Plane], tolerance: float) -> None:
    """SimpleITK's series reader must find what pydicom found, where no pixel is padding."""
    folder = path if path.is_dir() else path.parent
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        image = sitk.ReadImage(names, sitk.sitkFloat64, "GDCMImageIO")
    except RuntimeError:  # e.g. of slices that say that nothing lies between them
        return
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    found = from_reading(sitk.GetArrayFromImage(image), matrix, planes, tolerance)
    if found:
        raise Differs(f"pydicom and GDCM do not agree: {found}")
