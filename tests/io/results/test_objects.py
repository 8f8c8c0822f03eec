"""SEG, RTSTRUCT and SR are read by other software; voxels and contours have their positions in space."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.uid import generate_uid

from io_helpers import SECRETS, SHARED, dicom_slice, enhanced, rotation, save
from isopose.errors import InputError
from isopose.io.images import read_labels, read_volume
from isopose.io.results.formats import result_files, write_results
from isopose.io.results.source import open_source
from isopose.labels import Labels

BIN = Path(sys.executable).parent
NAMES = {"kidney_left": 3, "tumor": 7, "cyst": 9}
FORMATS = ("dicom-seg", "rtstruct", "dicom-sr")
dcmqi = pytest.mark.skipif(
    not (BIN / "segimage2itkimage").exists(), reason="dcmqi, the independent reader, is not installed"
)


def series(folder, *, turn=None, flipped=False, count=6, size=(18, 22)):
    """Write a series at any position, with file names in another order than the slices."""
    axes = np.eye(3) if turn is None else rotation(turn)
    if flipped:  # rows that run to the right, as in a prone patient
        axes = axes @ np.diag([-1.0, -1.0, 1.0])
    raw = np.random.default_rng(2).integers(0, 4096, (count, *size)).astype(np.uint16)
    study, one, frame = generate_uid(), generate_uid(), generate_uid()
    for i, pixels in enumerate(raw):
        position = np.array([-10.0, 20.0, -300.0]) + axes[:, 2] * 2.0 * i
        data = dicom_slice(
            pixels,
            position,
            orientation=(*axes[:, 0], *axes[:, 1]),
            series=one,
            StudyInstanceUID=study,
            FrameOfReferenceUID=frame,
        )
        save(data, folder / f"{(i * 5 + 3) % 101:03d}.dcm")
    return folder


def one_file(folder):
    """Write an enhanced CT whose frames are not stored in order of position."""
    raw = np.random.default_rng(3).integers(0, 4096, (6, 18, 22)).astype(np.uint16)
    data = enhanced(raw, (3, 0, 5, 1, 4, 2))
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.FrameOfReferenceUID = generate_uid()
    save(data, folder / "all.dcm")
    return folder


def marked(volume):
    """Make an asymmetric label map; the last label has no voxels."""
    array = np.zeros(volume.array.shape, np.uint8)
    array[1:4, 3:9, 4:15] = 3
    array[2, 5:7, 6:9] = 0  # a hole
    array[3:5, 10:16, 12:20] = 7
    array[5, 2, 2:6] = 7
    return volume.with_array(array)


def written(folder, source, labels=None, names=NAMES, formats=FORMATS):
    labels = labels if labels is not None else marked(read_volume(source))
    files = result_files(folder, "scan", formats)
    warnings = write_results(
        files,
        labels,
        Labels(names),
        dict.fromkeys(names, 1.5),
        path=source,
        series=None,
        made_from=["one", "two"],
    )
    return labels, files, warnings


def places(volume, value):
    """Return the sorted world positions of the voxels of a label value."""
    index = np.argwhere(volume.array == value)[:, ::-1]
    points = np.column_stack([index, np.ones(len(index))]) @ volume.world_from_index.T
    return np.array(sorted(np.round(points[:, :3], 2).tolist())).reshape(-1, 3)


WHERE = {
    "straight": series,
    "oblique": lambda folder: series(folder, turn=(10, -25, 40)),
    "prone": lambda folder: series(folder, flipped=True),
    "sagittal": lambda folder: series(folder, turn=(90, 0, 90)),
    "multi-frame": one_file,
}


@pytest.fixture(params=WHERE, name="source")
def each_source(request, tmp_path):
    return WHERE[request.param](tmp_path / "series")


@dcmqi
def test_dcmqi_reads_every_voxel_of_the_segmentation_at_its_position(source, tmp_path):
    labels, files, warnings = written(tmp_path, source)
    assert warnings == ()
    out = tmp_path / "read"
    out.mkdir()
    command = [BIN / "segimage2itkimage", "--inputDICOM", files["dicom-seg"], "--outputDirectory", out]
    subprocess.run([*map(str, command), "-t", "nii"], check=True, capture_output=True)
    meta = json.loads((out / "meta.json").read_text())
    described = {one["labelID"]: one for [one] in meta["segmentAttributes"]}
    assert [described[n]["SegmentLabel"] for n in (1, 2, 3)] == list(NAMES)
    assert described[1]["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "64033007"
    assert described[1]["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] == "Left"
    assert described[2]["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "108369006"
    assert described[2]["AnatomicRegionSequence"]["CodeValue"] == "64033007"
    for number, value in enumerate(NAMES.values(), start=1):
        read = out / f"{number}.nii.gz"
        np.testing.assert_allclose(places(read_labels(read), number), places(labels, value), atol=0.02)


def test_highdicom_reads_the_same_segments_and_references(source, tmp_path):
    labels, files, _ = written(tmp_path, source)
    read = hd.seg.segread(files["dicom-seg"])
    first = pydicom.dcmread(next(source.iterdir()), stop_before_pixels=True)
    assert read.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert read.StudyInstanceUID == first.StudyInstanceUID
    assert read.SeriesInstanceUID != first.SeriesInstanceUID
    assert (read.PatientName, read.PatientID) == ("Muster^Erika", "ID-4711")
    assert [read.get_segment_description(n).segment_label for n in (1, 2, 3)] == list(NAMES)
    instances = {str(pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID) for f in source.iterdir()}
    assert {uid for *_, uid in read.get_source_image_uids()} == instances
    for number, value in enumerate(NAMES.values(), start=1):
        if not (labels.array == value).any():
            continue
        volume = read.get_volume(segment_numbers=[number], combine_segments=True)
        index = np.argwhere(volume.array == number)
        points = np.column_stack([index, np.ones(len(index))]) @ volume.affine.T
        actual = np.array(sorted(np.round(points[:, :3], 2).tolist()))
        np.testing.assert_allclose(actual, places(labels, value), atol=0.02)


def test_contours_enclose_the_marked_voxels(source, tmp_path):
    labels, files, _ = written(tmp_path, source)
    read = pydicom.dcmread(files["rtstruct"])
    assert [one.ROIName for one in read.StructureSetROISequence] == list(NAMES)
    assert [one.RTROIInterpretedType for one in read.RTROIObservationsSequence] == ["ORGAN", "", ""]
    assert (read.PatientName, read.Modality, read.ApprovalStatus) == (
        "Muster^Erika",
        "RTSTRUCT",
        "UNAPPROVED",
    )
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in source.iterdir()]
    by_uid = {header.SOPInstanceUID: header for header in headers}
    index_from_world = np.linalg.inv(labels.world_from_index)
    for item, value in zip(read.ROIContourSequence, NAMES.values(), strict=True):
        result = np.zeros(labels.array.shape, bool)
        for contour in item.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            index = (np.column_stack([points, np.ones(len(points))]) @ index_from_world.T)[:, :3]
            z = round(index[0, 2])
            assert np.abs(index[:, 2] - z).max() < 1e-3
            [image] = contour.ContourImageSequence
            header = by_uid[image.ReferencedSOPInstanceUID]
            if "ReferencedFrameNumber" in image:
                header = header.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1]
                header = header.PlanePositionSequence[0]
            origin = labels.world_from_index @ [0, 0, z, 1]
            np.testing.assert_allclose(header.ImagePositionPatient, origin[:3], atol=0.01)
            result[z] ^= filled(index[:, :2], result[z].shape)
        np.testing.assert_array_equal(result, labels.array == value)


def filled(polygon, shape):
    """Return the pixels whose centers lie in a polygon, rasterized at eight times the resolution."""
    canvas = Image.new("1", (shape[1] * 8, shape[0] * 8))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in (polygon * 8 + 4).tolist()], fill=1)
    return np.asarray(canvas)[4::8, 4::8]


@dcmqi
def test_dcmqi_reads_volumes_from_the_report(source, tmp_path):
    _, files, _ = written(tmp_path, source)
    out = tmp_path / "report.json"
    command = [BIN / "tid1500reader", "--inputDICOM", files["dicom-sr"], "--outputMetadata", out]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    groups = json.loads(out.read_text())["Measurements"]
    segments = pydicom.dcmread(files["dicom-seg"])
    assert [group["TrackingIdentifier"] for group in groups] == list(NAMES)
    for number, group in enumerate(groups, start=1):
        assert group["ReferencedSegment"] == number
        assert group["segmentationSOPInstanceUID"] == segments.SOPInstanceUID
        [item] = group["measurementItems"]
        assert (item["quantity"]["CodeMeaning"], item["units"]["CodeValue"]) == ("Volume", "mL")
        assert float(item["value"]) == 1.5
    assert groups[0]["Laterality"]["CodeMeaning"] == "Left"


def test_an_empty_label_map_is_written(tmp_path):
    source = series(tmp_path / "series")
    nothing = read_volume(source).with_array(np.zeros((6, 18, 22), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, files, _ = written(tmp_path, source, nothing)
    assert not hd.seg.segread(files["dicom-seg"]).pixel_array.any()
    read = pydicom.dcmread(files["rtstruct"])
    assert [len(one.ContourSequence) for one in read.ROIContourSequence] == [0, 0, 0]


def test_the_same_result_has_the_same_identifiers(tmp_path):
    source = series(tmp_path / "series")
    uids = []
    for folder in ("a", "b"):
        _, files, _ = written(tmp_path / folder, source)
        uids.append([pydicom.dcmread(file).SOPInstanceUID for file in files.values()])
    assert uids[0] == uids[1]
    assert len(set(uids[0])) == len(FORMATS)
    # Another device may find another voxel: another object, though all that it was made from is the same.
    other = marked(read_volume(source))
    other.array[0, 0, 0] = 3
    _, files, _ = written(tmp_path / "c", source, other)
    assert not {pydicom.dcmread(file).SOPInstanceUID for file in files.values()} & set(uids[0])


def test_patient_and_label_names_may_use_different_scripts(tmp_path):
    source = series(tmp_path / "series")
    for file in source.iterdir():
        data = pydicom.dcmread(file)
        data.SpecificCharacterSet = "ISO_IR 100"
        data.PatientName = "Müller^Zoë"
        data.save_as(file)
    _, files, _ = written(tmp_path, source, names={"腎臓": 3, "tumeur du rein gauche": 7, "cyst": 9})
    for file in files.values():
        assert str(pydicom.dcmread(file).PatientName) == "Müller^Zoë"
    segments = pydicom.dcmread(files["dicom-seg"]).SegmentSequence
    regions = pydicom.dcmread(files["rtstruct"]).StructureSetROISequence
    assert segments[0].SegmentLabel == "腎臓"
    assert regions[0].ROIName == "腎臓"


def test_a_series_without_study_is_reported_and_one_without_instances_refused(tmp_path):
    source = series(tmp_path / "series")
    for file in source.iterdir():
        data = pydicom.dcmread(file)
        data.StudyInstanceUID = ""
        data.SOPInstanceUID = ""  # still in the file's own header
        data.save_as(file)
    _, files, warnings = written(tmp_path, source)
    [line] = warnings
    assert "StudyInstanceUID" in line
    assert hd.seg.segread(files["dicom-seg"]).StudyInstanceUID
    for file in source.iterdir():
        data = pydicom.dcmread(file)
        data.file_meta.MediaStorageSOPInstanceUID = ""
        pydicom.dcmwrite(file, data, enforce_file_format=False)
    with pytest.raises(InputError, match="expected SOPInstanceUID") as error:
        written(tmp_path, source)
    assert not any(secret in str(error.value) for secret in SECRETS)


def test_a_series_that_changed_is_refused(tmp_path):
    source = series(tmp_path / "series")
    volume = read_volume(source)
    shutil.copy(source / "003.dcm", tmp_path / "kept")
    (source / "003.dcm").unlink()
    with pytest.raises(InputError, match="expected 6 slices, found 5"):
        open_source(source, None, volume)


@pytest.mark.skipif(not (SHARED / "real-ct").is_dir(), reason="../shared/data/real-ct is not there")
@dcmqi
def test_organs_of_the_real_series_are_written_and_read(tmp_path):
    source = SHARED / "real-ct" / "dicom-series"
    volume = read_volume(source)
    organs = read_labels(SHARED / "real-ct" / "dicom-series-organs.nii.gz", volume)
    names = {"spleen": 1, "liver": 5, "aorta": 52}
    kept = organs.with_array(np.where(np.isin(organs.array, list(names.values())), organs.array, 0))
    _, files, warnings = written(tmp_path, source, kept, names)
    # Its study was taken out by whoever made it anonymous.
    assert len(warnings) == 1
    command = [BIN / "segimage2itkimage", "--inputDICOM", files["dicom-seg"], "--outputDirectory", tmp_path]
    subprocess.run([*map(str, command), "-t", "nii"], check=True, capture_output=True)
    for number, value in enumerate(names.values(), start=1):
        expected = places(read_labels(tmp_path / f"{number}.nii.gz"), number)
        np.testing.assert_allclose(expected, places(kept, value), atol=0.02)
