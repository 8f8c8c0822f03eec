"""Write label maps as DICOM RT Structure Sets: closed contours in each slice."""

import datetime
from collections.abc import Iterator, Sequence

import numpy as np
from contourpy import contour_generator
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage

from isopose.geometry.volume import Volume
from isopose.io.results.codes import meanings
from isopose.io.results.copied import CHARACTER_SET
from isopose.io.results.source import MANUFACTURER, MODEL_NAME, SERIAL_NUMBER, Source, uid_of
from isopose.version import __version__

SERIES_NUMBER = 9102


def structure_set(
    source: Source,
    classes: Volume,
    names: Sequence[str],
    colors: Sequence[str],
    made_from: list[str],
) -> FileDataset:
    """Return an RTSTRUCT with one region per label; empty labels have no contours.

    Args:
        source: the series.
        classes: class indices, uint8, on the grid of the series as ``read_series`` stacks it.
        names: of the classes 1, 2, ...
        colors: color of each class as ``#rrggbb``.
        made_from: hashes of all inputs of the result; equal hashes give equal UIDs.
    """
    now = datetime.datetime.now()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = UID(uid_of(made_from, "structures"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    out.SpecificCharacterSet = CHARACTER_SET
    out.update(source.shared)
    out.SOPClassUID, out.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    out.Modality, out.SeriesNumber = "RTSTRUCT", SERIES_NUMBER
    out.SeriesInstanceUID = uid_of(made_from, "structures series")
    out.SeriesDescription = "isopose structures, for research only"
    out.OperatorsName, out.InstanceNumber = "", 1
    out.Manufacturer, out.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    out.DeviceSerialNumber, out.SoftwareVersions = SERIAL_NUMBER, __version__
    out.StructureSetLabel = "ISOPOSE"
    out.StructureSetDate, out.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    out.InstanceCreationDate, out.InstanceCreationTime = out.StructureSetDate, out.StructureSetTime
    out.ApprovalStatus = "UNAPPROVED"
    out.ReferencedFrameOfReferenceSequence = Items([_referenced_frame(source)])
    roi, contours, observations = [], [], []
    described = zip(meanings(names), colors, strict=True)
    for number, (meaning, color) in enumerate(described, start=1):
        item = Dataset()
        item.ROINumber, item.ROIName = number, meaning.name[:64]
        item.ReferencedFrameOfReferenceUID = source.shared.FrameOfReferenceUID
        item.ROIGenerationAlgorithm = "AUTOMATIC"
        roi.append(item)
        item = Dataset()
        item.ReferencedROINumber = number
        item.ROIDisplayColor = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        item.ContourSequence = Items(_contours(source, classes.array == number, classes.world_from_index))
        contours.append(item)
        item = Dataset()
        item.ObservationNumber = item.ReferencedROINumber = number
        # Only a physician can declare a target volume.
        item.RTROIInterpretedType = "" if meaning.finding else "ORGAN"
        item.ROIInterpreter = ""
        item.RTROIIdentificationCodeSequence = Items([meaning.kind])
        observations.append(item)
    out.StructureSetROISequence = Items(roi)
    out.ROIContourSequence = Items(contours)
    out.RTROIObservationsSequence = Items(observations)
    return out


def contours_of(mask: np.ndarray) -> list[np.ndarray]:
    """Return closed polygons ``(n, 2)`` around a slice's foreground ``(y, x)``.

    Points are ``(x, y)`` in pixel centers. The polygons run half way between foreground and background
    pixels. A hole has its own polygon inside the outer one; readers combine them by the even-odd rule.
    """
    padded = np.pad(mask.astype(np.float64), 1)
    lines = contour_generator(z=padded).lines(0.5)
    return [np.asarray(line)[:-1] - 1.0 for line in lines if len(line) > 3]


def _contours(source: Source, mask: np.ndarray, world_from_index: np.ndarray) -> Iterator[Dataset]:
    number = 0
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        for outline in contours_of(mask[z]):
            number += 1
            index = np.column_stack([outline, np.full(len(outline), z), np.ones(len(outline))])
            points = (index @ world_from_index.T)[:, :3]
            item = Dataset()
            item.ContourNumber = number
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(points)
            item.ContourData = [f"{value:.4f}" for value in points.ravel()]
            item.ContourImageSequence = Items([source.instance(int(z))])
            yield item


def _referenced_frame(source: Source) -> Dataset:
    """Return the item that refers to the frame of reference, the study and the images of the series."""
    series = Dataset()
    series.SeriesInstanceUID = source.series
    series.ContourImageSequence = Items(source.instances())
    study = Dataset()
    # SOP class of the retired study object; readers still expect it.
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = source.shared.StudyInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    frame = Dataset()
    frame.FrameOfReferenceUID = source.shared.FrameOfReferenceUID
    frame.RTReferencedStudySequence = Items([study])
    return frame
