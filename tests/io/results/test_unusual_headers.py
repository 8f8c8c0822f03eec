"""DICOM results of series whose headers lack elements, or hold ones that the standard does not allow."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from io_helpers import dicom_slice, enhanced, save
from isopose.io.images import read_volume
from isopose.io.results.formats import result_files, write_results
from isopose.labels import Labels

FORMATS = ("dicom-seg", "rtstruct", "dicom-sr")
NAMES = {"kidney": 3, "tumor": 7}
STEP = 2.5


@dataclass(frozen=True)
class Raw:
    """Raw bytes of an element, with a value representation that may be wrong for it."""

    vr: str
    value: bytes


def fill(data: Dataset, fields: dict[str, Any]) -> None:
    """Set elements to any value, also an invalid one; None removes the element."""
    for name, value in fields.items():
        if value is None:
            if name in data:
                delattr(data, name)
        elif isinstance(value, Raw):
            tag, held = Tag(name), value.value + b" " * (len(value.value) % 2)
            data._dict[tag] = RawDataElement(tag, value.vr, len(held), held, 0, False, True)
        else:
            setattr(data, name, value)


@pytest.fixture
def lax(monkeypatch):
    """Let pydicom write invalid values without a warning."""
    monkeypatch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "_reading_validation_mode", pydicom.config.IGNORE)


def series(folder: Path, **fields: Any) -> Path:
    """Write five slices with study and frame of reference; ``fields`` override elements."""
    raw = np.random.default_rng(2).integers(0, 4096, (5, 10, 14)).astype(np.uint16)
    same = {name: generate_uid() for name in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")}
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (-10.0, 20.0, -300.0 + STEP * i))
        known = {"StudyDate": "20210304", "StudyTime": "112233", "StudyID": "S1", "AccessionNumber": "A1"}
        fill(data, {**same, **known, **fields})
        save(data, folder / f"{(i * 3 + 1) % 7:03d}.dcm")
    return folder


def marked(volume):
    array = np.zeros(volume.array.shape, np.uint8)
    array[1:4, 3:7, 4:11] = 3
    array[4, 1:3, 2:5] = 7
    return volume.with_array(array)


def written(folder: Path, source: Path):
    """Write all formats; return the labels, the objects as read back, and the warnings of the record."""
    labels = marked(read_volume(source))
    files = result_files(folder, "scan", FORMATS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = write_results(
            files,
            labels,
            Labels(NAMES),
            {"kidney": 12.5, "tumor": 0.5},
            path=source,
            series=None,
            made_from=["one"],
        )
    return labels, {one: pydicom.dcmread(file) for one, file in files.items()}, lines


def places(array, matrix):
    index = np.column_stack([np.argwhere(array)[:, ::-1], np.ones(int(array.sum()))])
    return np.array(sorted(np.round((index @ matrix.T)[:, :3], 2).tolist()))


def same_voxels(labels, objects):
    """Assert that voxels of SEG, planes of RTSTRUCT and volumes of SR agree with the label map."""
    segments = hd.seg.Segmentation.from_dataset(objects["dicom-seg"])
    for number, value in enumerate(NAMES.values(), start=1):
        read = segments.get_volume(segment_numbers=[number], combine_segments=True)
        index = np.column_stack([np.argwhere(read.array == number), np.ones((read.array == number).sum())])
        result = np.array(sorted(np.round((index @ read.affine.T)[:, :3], 2).tolist()))
        np.testing.assert_allclose(result, places(labels.array == value, labels.world_from_index), atol=0.02)
        contours = objects["rtstruct"].ROIContourSequence[number - 1].ContourSequence
        heights = {round(float(contour.ContourData[2]), 2) for contour in contours}
        assert heights == {round(float(z), 2) for z in result[:, 2]}
    assert numbers(objects["dicom-sr"]) == [12.5, 0.5]


def numbers(report):
    """Return all numeric values of a structured report."""
    result = []
    for item in report.get("ContentSequence", []):
        if item.ValueType == "NUM":
            result.append(float(item.MeasuredValueSequence[0].NumericValue))
        result += numbers(item)
    return result


def valid(objects):
    """Assert that a strict reader accepts every element."""
    before = pydicom.config.settings._reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
    try:
        for data in objects.values():
            for element in pydicom.dcmread(data.filename).iterall():
                str(element.value)
    finally:
        pydicom.config.settings._reading_validation_mode = before


MÜLLER = "Müller^Zoë"
#: What is in the headers and must be left out, by keyword.
INVALID = {
    "sex of another kind": {"PatientSex": "X"},
    "sex in small letters": {"PatientSex": "female"},
    "several sexes": {"PatientSex": ["M", "F"]},
    "study date with dashes": {"StudyDate": "2020-01-01"},
    "study date that is a range": {"StudyDate": "20200101-20210101"},
    "study date with a time": {"StudyDate": "20200101120000"},
    "study time with colons": {"StudyTime": "10:00:00"},
    "study time of another day": {"StudyTime": "251200"},
    "study time in words": {"StudyTime": "noon"},
    "birth date zero": {"PatientBirthDate": "00000000"},
    "birth date with dots": {"PatientBirthDate": "1980.02.03"},
    "birth date that no calendar has": {"PatientBirthDate": "20190231"},
    "birth date in words": {"PatientBirthDate": "3 FEB 1980"},
    "birth date as a number": {"PatientBirthDate": Raw("US", b"\x01\x02")},
    "age without its unit": {"PatientAge": "12"},
    "age in words": {"PatientAge": "twelve"},
    "weight of too many digits": {"PatientWeight": Raw("DS", b"70.500000000000000001")},
    "weight with its unit": {"PatientWeight": Raw("DS", b"70.5 kg")},
    "size with a comma": {"PatientSize": Raw("DS", b"1,75")},
    "size that is no number": {"PatientSize": Raw("DS", b"NaN")},
    "study too long": {"StudyID": "S" * 40},
    "accession number too long": {"AccessionNumber": "A" * 40},
    "several accession numbers": {"AccessionNumber": "A1\\A2"},
    "issuer too long": {"IssuerOfPatientID": "I" * 80},
    "comments too long": {"PatientComments": "C" * 20000},
    "several names": {"PatientName": "Meier^A\\Meier^B"},
    "name of six parts": {"PatientName": "A^B^C^D^E^F"},
    "name of four groups": {"PatientName": "A=B=C=D"},
    "name too long": {"PatientName": "M" * 70},
    "name with a control character": {"PatientName": Raw("PN", b"Meier\x07^A")},
    "name without its character set": {"PatientName": Raw("PN", MÜLLER.encode("latin1"))},
    "name of an unknown character set": {
        "SpecificCharacterSet": "ISO_IR 999",
        "PatientName": Raw("PN", MÜLLER.encode("latin1")),
    },
    "name of another character set": {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": Raw("PN", MÜLLER.encode("latin1")),
    },
    "identifier of binary data": {"PatientID": Raw("OB", b"\x00\x01\xff\xfe")},
    "name that is a sequence": {"PatientName": Raw("SQ", b"")},
    "physician of seven parts": {"ReferringPhysicianName": "A^B^C^D^E^F^G"},
    "smoking in words": {"SmokingStatus": "OFTEN"},
    "pregnancy beyond its values": {"PregnancyStatus": 9},
    "compression in words": {"LossyImageCompression": "MAYBE"},
}


@pytest.mark.parametrize("fields", INVALID.values(), ids=INVALID)
def test_invalid_elements_are_left_empty_and_named(fields, lax, tmp_path):
    name = next(name for name in fields if name != "SpecificCharacterSet")
    source = series(tmp_path / "series", **fields)
    labels, objects, lines = written(tmp_path, source)
    [line] = lines
    assert line.endswith(f": {name}")
    held = fields[name]
    held = held.value.decode("latin1") if isinstance(held, Raw) else str(held)
    assert held == "" or len(held) == 1 or held not in line
    for data in objects.values():
        assert not data.get(name) or (name, data.get(name)) == ("LossyImageCompression", "00")
    same_voxels(labels, objects)
    valid(objects)
    other = {"PatientID": "ID-4711", "StudyID": "S1", "StudyTime": "112233"}
    for data in objects.values():
        for keyword, value in other.items():
            if keyword != name:
                assert data.get(keyword) == value


#: What is unusual and valid, or not needed, with what becomes of it.
KEPT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "name without caret": ({"PatientName": "Mustermann"}, {"PatientName": "Mustermann"}),
    "name of TCIA": ({"PatientName": "TCGA-XX-0001^^"}, {"PatientName": "TCGA-XX-0001^^"}),
    "name of three groups": (
        {
            "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
            "PatientName": Raw("PN", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
        },
        {"PatientName": "Yamada^Tarou=山田^太郎"},
    ),
    "name in GB18030": (
        {"SpecificCharacterSet": "GB18030", "PatientName": Raw("PN", "王^小东".encode("gb18030"))},
        {"PatientName": "王^小东"},
    ),
    "name in ASCII of an unknown character set": (
        {"SpecificCharacterSet": "FOO", "PatientName": "Meier^A"},
        {"PatientName": "Meier^A"},
    ),
    "name as a long string": ({"PatientName": Raw("LO", b"Meier^A")}, {"PatientName": "Meier^A"}),
    "identifier of unknown kind": ({"PatientID": Raw("UN", b"ID-4712")}, {"PatientID": "ID-4712"}),
    "nothing of the patient": (
        {
            **dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex")),
            **dict.fromkeys(("StudyDate", "StudyTime", "StudyID", "AccessionNumber")),
        },
        {"PatientName": "", "PatientBirthDate": "", "PatientSex": "", "StudyDate": "", "StudyTime": ""},
    ),
    "all of the patient empty": (
        dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"), ""),
        {"PatientName": "", "PatientID": "", "PatientSex": "", "StudyDate": ""},
    ),
    "age and weight": (
        {"PatientAge": "005Y", "PatientWeight": "18.5", "PatientSize": "1.1"},
        {"PatientAge": "005Y", "PatientWeight": 18.5, "PatientSize": 1.1},
    ),
    "a zone of time in words": ({"TimezoneOffsetFromUTC": "Berlin"}, {"StudyTime": "112233"}),
    "pixel size of too many digits": (
        {"PixelSpacing": Raw("DS", b"0.97656250000000001\\0.97656250000000001")},
        {},
    ),
    "slice number of too many digits": ({"InstanceNumber": Raw("IS", b"123456789012345678")}, {}),
    "compressed before": (
        {"LossyImageCompression": "01", "LossyImageCompressionRatio": "10"},
        {},
    ),
}


@pytest.mark.parametrize(("fields", "expected"), KEPT.values(), ids=KEPT)
def test_unusual_but_valid_elements_are_kept(fields, expected, lax, tmp_path):
    labels, objects, lines = written(tmp_path, series(tmp_path / "series", **fields))
    assert lines == ()
    for data in objects.values():
        for name, value in expected.items():
            result = data.get(name)
            assert (str(result or "") if isinstance(value, str) else result) == value
    same_voxels(labels, objects)
    valid(objects)


@pytest.mark.parametrize("thickness", [None, "", 0, -3, Raw("DS", b"5 mm"), Raw("DS", b"1\\2")])
def test_a_missing_slice_thickness_is_replaced_by_the_slice_distance(thickness, lax, tmp_path):
    labels, objects, lines = written(tmp_path, series(tmp_path / "series", SliceThickness=thickness))
    assert lines == ()
    [measures] = objects["dicom-seg"].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SliceThickness == STEP == measures.SpacingBetweenSlices
    same_voxels(labels, objects)
    valid(objects)


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("held", ["", None, "Erika Muster", "1." * 40 + "1", Raw("UI", b"1.2\\1.3")])
def test_an_invalid_identifier_is_replaced(name, held, lax, tmp_path):
    labels, objects, lines = written(tmp_path, series(tmp_path / "series", **{name: held}))
    [line] = lines
    assert name in line
    assert "Erika" not in line
    uids = {data.get("StudyInstanceUID") for data in objects.values()}
    assert len(uids) == 1
    assert uids.pop().is_valid
    assert objects["dicom-seg"].FrameOfReferenceUID == objects["rtstruct"].FrameOfReferenceUID
    same_voxels(labels, objects)
    valid(objects)


def test_an_identifier_with_leading_zeros_ties_results_to_the_series(lax, tmp_path):
    held = {
        "StudyInstanceUID": "1.2.03.4",
        "SeriesInstanceUID": "1.2.03.5",
        "FrameOfReferenceUID": "1.2.03.6",
    }
    labels, objects, lines = written(tmp_path, series(tmp_path / "series", **held))
    [line] = lines
    assert all(name in line for name in held)
    assert not any(uid in line for uid in held.values())
    for data in objects.values():
        assert data.StudyInstanceUID == "1.2.03.4"
    assert objects["dicom-seg"].FrameOfReferenceUID == "1.2.03.6"
    assert objects["dicom-seg"].ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.03.5"
    same_voxels(labels, objects)


def test_invalid_instance_uids_are_replaced(lax, tmp_path):
    source = series(tmp_path / "series")
    for number, file in enumerate(sorted(source.iterdir())):
        data = pydicom.dcmread(file)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"Muster, slice {number}"
        pydicom.dcmwrite(file, data, enforce_file_format=False)
    labels, objects, lines = written(tmp_path, source)
    [line] = lines
    assert "SOPInstanceUID" in line
    assert "Muster" not in line
    named = {one.ReferencedSOPInstanceUID for one in objects["dicom-seg"].SourceImageSequence}
    assert len(named) == 5
    assert all(uid.is_valid for uid in named)
    same_voxels(labels, objects)
    valid(objects)


def test_nothing_but_valid_elements_of_patient_and_study_is_copied(lax, tmp_path):
    inner = Dataset()
    inner.PatientID, inner.TypeOfPatientID = "ID-other", "TEXT"
    inner.add_new(0x00090010, "LO", "Secret")
    inner.add_new(0x00091001, "LO", "Secret of Erika!")
    long = Dataset()
    long.UniversalEntityIDType = "in words"
    source = series(
        tmp_path / "series",
        OtherPatientIDsSequence=[inner],
        IssuerOfAccessionNumberSequence=[long],
        InstitutionName="Xanadu",
        StationName="Xanadu",
        SeriesDescription="Xanadu",
        OperatorsName="Xanadu",
        Manufacturer="Xanadu",
        PatientComments="of the patient",
    )
    _, objects, lines = written(tmp_path, source)
    [line] = lines
    assert line.endswith(": IssuerOfAccessionNumberSequence")
    for data in objects.values():
        [item] = data.OtherPatientIDsSequence
        assert (item.PatientID, item.TypeOfPatientID, len(item)) == ("ID-other", "TEXT", 2)
        assert data.PatientComments == "of the patient"
        whole = Path(data.filename).read_bytes()
        assert b"Xanadu" not in whole
        assert b"Secret" not in whole


def test_an_unknown_sop_class_is_kept(lax, tmp_path):
    """highdicom does not know private SOP classes, but the pixels can be read."""
    source = series(tmp_path / "series")
    labels = marked(read_volume(source))
    for file in source.iterdir():
        data = pydicom.dcmread(file)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.99.1"
        data.save_as(file)
    files = result_files(tmp_path, "scan", FORMATS)
    lines = write_results(
        files, labels, Labels(NAMES), {"kidney": 1.0, "tumor": 1.0}, path=source, series=None, made_from=[]
    )
    assert lines == ()
    read = {one: pydicom.dcmread(file) for one, file in files.items()}
    [frame, *_] = read["dicom-seg"].PerFrameFunctionalGroupsSequence
    [evidence] = read["dicom-sr"].CurrentRequestedProcedureEvidenceSequence
    for one in (
        read["dicom-seg"].SourceImageSequence[0],
        frame.DerivationImageSequence[0].SourceImageSequence[0],
        read["rtstruct"].ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0],
        evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0],
    ):
        assert one.ReferencedSOPClassUID == "1.3.12.2.1107.5.99.1"


def test_positions_that_are_rounded_lie_on_the_grid_of_the_label_map(tmp_path):
    source = series(tmp_path / "series")
    for number, file in enumerate(sorted(source.iterdir())):
        data = pydicom.dcmread(file)
        data.ImagePositionPatient[2] = round(float(data.ImagePositionPatient[2]) + 0.008 * (-1) ** number, 3)
        data.save_as(file)
    labels, objects, lines = written(tmp_path, source)
    assert lines == ()
    same_voxels(labels, objects)
    assert (
        objects["dicom-seg"].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    )


def test_files_without_preamble_and_meta_header_are_referenced(tmp_path):
    source = series(tmp_path / "series")
    for file in source.iterdir():
        bare = Dataset()
        bare.update(pydicom.dcmread(file))
        pydicom.dcmwrite(file, bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    labels, objects, lines = written(tmp_path, source)
    assert lines == ()
    assert str(objects["rtstruct"].PatientName) == "Muster^Erika"
    same_voxels(labels, objects)


def test_results_of_an_archived_series(lax, tmp_path):
    source = series(tmp_path / "series", PatientSex="X")
    packed = tmp_path / "series.zip"
    with ZipFile(packed, "w") as archive:
        for file in source.iterdir():
            archive.write(file, file.name)
    labels, objects, lines = written(tmp_path, packed)
    assert lines[0].endswith(": PatientSex")
    same_voxels(labels, objects)


def test_an_enhanced_series_without_thickness_whose_frames_each_say_where_they_are(tmp_path):
    raw = np.random.default_rng(3).integers(0, 4096, (6, 10, 14)).astype(np.uint16)
    data = enhanced(raw, (3, 0, 5, 1, 4, 2))
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (generate_uid() for _ in "abc")
    [shared] = data.SharedFunctionalGroupsSequence
    del shared.PixelMeasuresSequence[0].SliceThickness
    for group in data.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = shared.PlaneOrientationSequence
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        group.PixelValueTransformationSequence = shared.PixelValueTransformationSequence
    data.SharedFunctionalGroupsSequence = [Dataset()]
    save(data, tmp_path / "series" / "all.dcm")
    labels, objects, lines = written(tmp_path, tmp_path / "series")
    assert lines == ()
    same_voxels(labels, objects)
    [measures] = objects["dicom-seg"].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SliceThickness == 2.0
    [image] = objects["dicom-seg"].SourceImageSequence
    assert image.ReferencedSOPInstanceUID == data.SOPInstanceUID
    for frame in objects["dicom-seg"].PerFrameFunctionalGroupsSequence:
        [source] = frame.DerivationImageSequence[0].SourceImageSequence
        group = data.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
        position = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-3)


def test_results_of_several_enhanced_files_of_one_series(tmp_path):
    raw = np.random.default_rng(3).integers(0, 4096, (6, 10, 14)).astype(np.uint16)
    uids = [generate_uid() for _ in "abc"]
    for number, order in enumerate([(0, 1, 2), (3, 4, 5)]):
        data = enhanced(raw, order)
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = uids
        save(data, tmp_path / "series" / f"{number}.dcm")
    labels, objects, lines = written(tmp_path, tmp_path / "series")
    assert lines == ()
    same_voxels(labels, objects)
    assert len(objects["dicom-seg"].SourceImageSequence) == 2
    number = objects["rtstruct"].ROIContourSequence[1].ContourSequence[0].ContourImageSequence[0]
    assert number.ReferencedFrameNumber == 2


def test_libraries_print_nothing_and_logging_settings_are_restored(lax, tmp_path, caplog):
    source = series(tmp_path / "series", PatientName="Mustermann", PatientBirthDate="1980.02.03")
    logging.getLogger("highdicom").setLevel(logging.DEBUG)
    try:
        with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            files = result_files(tmp_path, "scan", FORMATS)
            labels = marked(read_volume(source))
            write_results(
                files,
                labels,
                Labels(NAMES),
                {"kidney": 1.0, "tumor": 1.0},
                path=source,
                series=None,
                made_from=[],
            )
            logging.getLogger("highdicom.base").debug("still heard")
            warnings.warn("still heard", stacklevel=1)
        assert [str(one.message) for one in caught] == ["still heard"]
        assert [record.message for record in caplog.records] == ["still heard"]
        assert logging.getLogger("highdicom").level == logging.DEBUG
    finally:
        logging.getLogger("highdicom").setLevel(logging.NOTSET)
