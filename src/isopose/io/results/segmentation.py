"""Write label maps as DICOM Segmentation images (SEG)."""

from collections.abc import Iterable, Sequence

import highdicom as hd
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DSfloat

from isopose.geometry.volume import Volume
from isopose.io.results.codes import Meaning, meanings
from isopose.io.results.copied import CHARACTER_SET
from isopose.io.results.source import MANUFACTURER, MODEL_NAME, SERIAL_NUMBER, Source, uid_of
from isopose.version import __version__

#: Series number of the results.
SERIES_NUMBER = 9101


def segmentation(
    source: Source,
    classes: Volume,
    names: Sequence[str],
    colors: Sequence[str],
    made_from: list[str],
) -> Dataset:
    """Return a binary SEG with one segment per label, including empty ones.

    Its frames lie on the grid of the volume, which is also that of NIfTI results. Each frame refers to its
    slice of the series.

    Args:
        source: the series.
        classes: class indices, uint8, on the grid of the series as ``read_series`` stacks it.
        names: of the classes 1, 2, ...
        colors: color of each class as ``#rrggbb``, for viewers.
        made_from: hashes of all inputs of the result; equal hashes give equal UIDs.

    Returns:
        The data set, with the patient's and study's data of the series.
    """
    described = [
        _segment(number, meaning, color, made_from)
        for number, (meaning, color) in enumerate(zip(meanings(names), colors, strict=True), start=1)
    ]
    slices = _slices(source, classes)
    document = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(classes.array),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=uid_of(made_from, "segmentation series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid_of(made_from, "segmentation"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number=SERIAL_NUMBER,
        content_label="ISOPOSE",
        content_description="Automatic segmentation, for research only",
        series_description="isopose segmentation, for research only",
        specific_character_set=CHARACTER_SET,
        # A SEG needs at least one frame, even if all segments are empty.
        omit_empty_frames=bool(classes.array.any()),
    )
    _replace_references(document, source, {item.SOPInstanceUID: z for z, item in enumerate(slices)})
    return document


def _slices(source: Source, volume: Volume) -> list[Dataset]:
    """Return one data set per slice for highdicom, whichever file holds the slice.

    Each contains only what a result needs. A slice's position comes from the volume's grid, since the one in
    the header may be missing, rounded, or longer than the standard allows.
    """
    matrix, spacing = volume.world_from_index, volume.spacing
    common = Dataset()
    common.update(source.shared)
    common.update(source.image)
    common.SOPClassUID, common.SeriesInstanceUID, common.Modality = CTImageStorage, source.series, "CT"
    common.Rows, common.Columns = volume.array.shape[1:]
    common.ImageOrientationPatient = _numbers(volume.direction[:, :2].T.ravel())
    common.PixelSpacing = _numbers([spacing[1], spacing[0]])
    common.SliceThickness = _numbers([source.thickness])
    if len(volume.array) > 1:
        common.SpacingBetweenSlices = _numbers([spacing[2]])
    slices = []
    for z in range(len(volume.array)):
        item = Dataset()
        item.update(common)
        item.SOPInstanceUID = f"2.25.{z + 1}"
        item.ImagePositionPatient = _numbers((matrix @ [0, 0, z, 1])[:3])
        slices.append(item)
    return slices


def _numbers(values: Iterable[float]) -> list[DSfloat]:
    """Return numbers as decimal strings (DS), which may have at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _replace_references(document: Dataset, source: Source, z_of: dict[str, int]) -> None:
    """Replace references to the temporary data sets by references to the files and frames of the series."""
    document.SourceImageSequence = source.instances()
    document.ReferencedSeriesSequence[0].ReferencedInstanceSequence = source.instances()
    for frame in document.PerFrameFunctionalGroupsSequence:
        for derivation in frame.DerivationImageSequence:
            for image in derivation.SourceImageSequence:
                # Frames of one slice share their items, so an item may already have been replaced.
                z = z_of.get(image.ReferencedSOPInstanceUID)
                if z is not None:
                    image.update(source.instance(z))


def _segment(number: int, meaning: Meaning, color: str, made_from: list[str]) -> SegmentDescription:
    regions = [meaning.organ] if meaning.finding and meaning.organ is not None else None
    red, green, blue = (int(color[first : first + 2], 16) for first in (1, 3, 5))
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
