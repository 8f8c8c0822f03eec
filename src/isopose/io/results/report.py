"""Write volumes of labels as a DICOM structured report (template TID 1500)."""

from collections.abc import Mapping, Sequence

import highdicom as hd
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, CTImageStorage

from isopose.io.results.codes import Meaning, meanings
from isopose.io.results.copied import CHARACTER_SET
from isopose.io.results.source import MANUFACTURER, MODEL_NAME, SERIAL_NUMBER, Source, uid_of
from isopose.version import __version__

SERIES_NUMBER = 9103
#: Unit of the Unified Code for Units of Measure; pydicom defines no plain milliliter.
MILLILITER = CodedConcept("mL", "UCUM", "milliliter")


def report(
    source: Source,
    segments: Dataset,
    names: Sequence[str],
    volumes_ml: Mapping[str, float],
    made_from: list[str],
) -> Dataset:
    """Return an unverified report with the volume of each segment.

    Args:
        source: the series.
        segments: its segmentation, see ``segmentation.py``.
        names: of the classes 1, 2, ..., which are the segments.
        volumes_ml: volume by name in milliliters.
        made_from: hashes of all inputs of the result.
    """
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=uid_of(["isopose", __version__], "device"),
            name=MODEL_NAME,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=SERIAL_NUMBER,
        ),
    )
    groups = [
        _measurement_group(number, meaning, volumes_ml[meaning.name], segments, source)
        for number, meaning in enumerate(meanings(names), start=1)
    ]
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=_procedure(source),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    document = hd.sr.Comprehensive3DSR(
        evidence=[*_evidence(source), segments],
        content=content,
        series_instance_uid=uid_of(made_from, "report series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid_of(made_from, "report"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_verified=False,
        series_description="isopose volumes, for research only",
        specific_character_set=CHARACTER_SET,
    )
    # Classes as in the series, since highdicom knows the elements of some classes only.
    classes = {header.SOPInstanceUID: header.SOPClassUID for header in source.headers}
    for study in document.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            for instance in series.ReferencedSOPSequence:
                uid = instance.ReferencedSOPInstanceUID
                instance.ReferencedSOPClassUID = classes.get(uid, instance.ReferencedSOPClassUID)
    return document


def _procedure(source: Source) -> CodedConcept:
    """Return the code of the examination, by the storage class of the series."""
    kind = UID(source.headers[0].SOPClassUID).name if source.headers else ""
    return codes.LN.MRIUnspecifiedBodyRegion if "MR Image" in kind else codes.LN.CTUnspecifiedBodyRegion


def _evidence(source: Source) -> list[Dataset]:
    """Return data sets for highdicom: UIDs of the series' files and the elements shared with results."""
    files = []
    for header in source.headers:
        item = Dataset()
        item.update(source.shared)
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, header.SOPInstanceUID
        item.SeriesInstanceUID = source.series
        files.append(item)
    return files


def _measurement_group(
    number: int, meaning: Meaning, volume_ml: float, segments: Dataset, source: Source
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return the report's item with the volume of one segment, numbered from 1."""
    described = segments.SegmentSequence[number - 1]
    sites = []
    if meaning.organ is not None:
        sites = [hd.sr.FindingSite(anatomic_location=meaning.organ, laterality=meaning.side)]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=described.TrackingUID, identifier=described.TrackingID
        ),
        # Refer to the segment by number only: an empty segment has no frames to name.
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segments.SOPClassUID,
            sop_instance_uid=segments.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(source.series),
        ),
        finding_category=meaning.category,
        finding_type=meaning.kind,
        finding_sites=sites,
        algorithm_id=hd.sr.AlgorithmIdentification(name=MODEL_NAME, version=__version__),
        measurements=[hd.sr.Measurement(name=codes.SCT.Volume, value=volume_ml, unit=MILLILITER)],
    )
