"""Label maps as DICOM Segmentation images (SEG)."""

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from isopose import __version__
from isopose.io.dicom_results.codes import Meaning, meanings
from isopose.io.dicom_results.source import CHARACTERS, MANUFACTURER, MODEL_NAME, SERIAL, Source, uid_of

#: Numbers of the series that results are put into, beside the scanner's own.
SERIES_NUMBER = 9101


def segmentation(
    source: Source,
    classes: np.ndarray,
    names: Sequence[str],
    colours: Sequence[str],
    made_from: list[str],
) -> Dataset:
    """A binary SEG with one segment for each label, those included that mark nothing.

    Args:
        source: the series.
        classes: class indices ``(z, y, x)`` on its grid, as ``read_series`` stacks it.
        names: of the classes 1, 2, ...
        colours: for each class a colour as ``#rrggbb``, for viewers.
        made_from: hashes of all that decides the result; equal ones give equal identifiers.

    Returns:
        The data set, with the patient's and study's data of the series.
    """
    if source.multi_frame:
        # Frames of one file come in its own order, which need not be that of their places.
        stored = np.zeros_like(classes)
        stored[source.frames] = classes
        classes = stored
    described = [
        _segment(number, meaning, colour, made_from)
        for number, (meaning, colour) in enumerate(zip(meanings(names), colours, strict=True), start=1)
    ]
    return hd.seg.Segmentation(
        source_images=source.headers,
        pixel_array=np.ascontiguousarray(classes, dtype=np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=uid_of(made_from, "segmentation series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid_of(made_from, "segmentation"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number=SERIAL,
        content_label="ISOPOSE",
        content_description="Automatic segmentation, for research only",
        series_description="isopose segmentation, for research only",
        specific_character_set=CHARACTERS,
        # Where nothing is marked at all a frame has to be there all the same.
        omit_empty_frames=bool(classes.any()),
    )


def _segment(number: int, meaning: Meaning, colour: str, made_from: list[str]) -> SegmentDescription:
    regions = [meaning.organ] if meaning.finding and meaning.organ is not None else None
    red, green, blue = (int(colour[first : first + 2], 16) for first in (1, 3, 5))
    described = SegmentDescription(
        segment_number=number,
        segment_label=meaning.name[:64],
        segmented_property_category=meaning.category,
        segmented_property_type=meaning.kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=MODEL_NAME, family=codes.DCM.ArtificialIntelligence, version=__version__
        ),
        tracking_uid=uid_of(made_from, f"segment {number}"),
        tracking_id=meaning.name[:64],
        anatomic_regions=regions,
        display_color=hd.color.CIELabColor.from_rgb(red, green, blue),
    )
    if meaning.side is not None:
        side: list[CodedConcept] = [meaning.side]
        if regions:
            described.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
        else:
            described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = side
    return described
