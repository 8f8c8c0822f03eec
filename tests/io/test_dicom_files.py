"""Recognition of DICOM files, and which files of a folder are read: copies, other objects, other files."""

import gzip
import json
import os
import shutil
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from io_helpers import SECRETS, dicom_slice, enhanced, raw_slices, save, write_series
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.dicom_files import is_dicom
from isopose.io.images import read_volume, write_image
from isopose.io.scans import find_scans
from isopose.io.sources import hash_of_source

ENCODINGS = ["implicit", "explicit", "big endian", "with the file's own group"]


def refused(path, *words):
    text = ""
    with pytest.raises(InputError) as error:
        read_volume(path)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    assert not any(secret in text for secret in SECRETS), text
    return text


def without_preamble(path, encoding):
    """Rewrite a file without preamble and file meta information, as old scanners do."""
    data = pydicom.dcmread(path)
    meta = data.file_meta
    bare = Dataset()
    bare.update({tag: data[tag] for tag in data.keys()})  # noqa: SIM118
    if encoding == "big endian":
        bare.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    if encoding == "with the file's own group":
        bare.file_meta = meta
        bare.preamble = None
        pydicom.dcmwrite(path, bare, enforce_file_format=False)
    else:
        implicit, little = encoding == "implicit", encoding != "big endian"
        pydicom.dcmwrite(path, bare, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    start = path.read_bytes()[:132]
    assert start[128:] != b"DICM"


@pytest.mark.parametrize("ending", ["", ".dcm", ".img", ".1", ".IMA"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("some", [True, False])
def test_files_without_a_preamble_are_read(tmp_path, encoding, ending, some):
    raw = raw_slices(6)
    folder = write_series(tmp_path / "series", raw)
    whole = read_volume(folder)
    for number, file in enumerate(sorted(folder.iterdir())):
        file = file.rename(file.with_suffix(ending))
        if number % 2 or not some:
            without_preamble(file, encoding)
        assert is_dicom(file)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array, whole.array)
    np.testing.assert_array_equal(volume.world_from_index, whole.world_from_index)
    np.testing.assert_array_equal(read_volume(folder / f"003{ending}").array, whole.array)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    np.testing.assert_array_equal(read_volume(tmp_path / archive).array, whole.array)


def test_a_multi_frame_file_without_a_preamble_is_read(tmp_path):
    raw = raw_slices()
    path = save(enhanced(raw, (3, 0, 4, 2, 1)), tmp_path / "enhanced")
    without_preamble(path, "implicit")
    for source in (path, tmp_path):
        np.testing.assert_array_equal(read_volume(source).array, raw.astype(int) - 1024)


def test_padding_value_of_a_file_without_a_preamble_has_the_sign_of_the_pixels(tmp_path):
    raw = raw_slices(3)
    raw[:, 0] = 63536
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (0, 0, 2 * i), BitsStored=16, HighBit=15)
        data.add_new(0x00280120, "US", 63536)
        without_preamble(save(data, tmp_path / str(i)), "implicit")
    np.testing.assert_array_equal(read_volume(tmp_path).array[:, 0], -1000)


@pytest.mark.parametrize("encoding", ["implicit", "explicit", "big endian"])
@pytest.mark.parametrize("kept", [60, 200, 500, -20])
def test_a_damaged_file_without_a_preamble_is_named(tmp_path, encoding, kept):
    raw = np.random.default_rng(0).integers(0, 4096, (4, 20, 20)).astype(np.uint16)
    folder = write_series(tmp_path, raw)
    for file in sorted(folder.iterdir()):
        without_preamble(file.rename(file.with_suffix("")), encoding)
    first = folder / "003"
    first.write_bytes(first.read_bytes()[:kept])
    with pytest.raises(InputError, match="003: ") as error:
        read_volume(folder)
    assert not any(secret in str(error.value) for secret in SECRETS)


def written_in_parts(path, *parts):
    """Write a file's groups in the order of the parts, without a preamble."""
    data, written = pydicom.dcmread(path), b""
    for groups in parts:
        part, buffer = Dataset(), BytesIO()
        part.update({tag: data[tag] for tag in data.keys() if tag.group in groups})  # noqa: SIM118
        pydicom.dcmwrite(buffer, part, implicit_vr=True, little_endian=True, enforce_file_format=False)
        written += buffer.getvalue()
    path.write_bytes(written)


def lasting(folder, count):
    """Return the files of the last slices by position."""
    files = sorted(folder.iterdir(), key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    return files[-count:]


GROUPS = (0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x7FE0)


@pytest.mark.parametrize("first", GROUPS[1:-1])
def test_elements_out_of_order_without_a_preamble_are_read(tmp_path, first):
    raw = raw_slices(6)
    folder = write_series(tmp_path, raw)
    for file in lasting(folder, 2):
        written_in_parts(file, (first,), [group for group in GROUPS if group != first])
        assert file.read_bytes()[:2] == first.to_bytes(2, "little")
        file.rename(file.with_suffix(""))
    np.testing.assert_array_equal(read_volume(folder).array, raw.astype(int) - 1024)


@pytest.mark.parametrize("ending", ["", ".7", ".img"])
@pytest.mark.parametrize("kind", ["group 0010 first", "zeros", "random", "link", "pipe"])
def test_unrecognizable_slices_are_reported_and_not_skipped(tmp_path, kind, ending):
    raw = np.random.default_rng(0).integers(0, 4096, (6, 64, 64)).astype(np.uint16)
    folder = write_series(tmp_path / "series", raw)
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(ending))
    for file in lasting(folder, 2):
        size = file.stat().st_size
        if kind == "group 0010 first":
            written_in_parts(file, GROUPS[1:])
            continue
        file.unlink()
        if kind == "link":
            file.symlink_to(tmp_path / "store" / file.name)
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            file.write_bytes(bytes(size) if kind == "zeros" else np.random.default_rng(0).bytes(size))
    lost = "broken links, pipes or devices lie beside them (2,", "by place and size are not DICOM (2,"
    what = lost[kind not in ("link", "pipe")]
    for path in (folder, tmp_path, next(folder.glob("003*"))):
        refused(path, "series 4 has 4 images, but ", what)


def test_files_that_cannot_be_slices_are_ignored(tmp_path):
    raw = raw_slices()
    folder = write_series(tmp_path / "series", raw)
    size = next(folder.iterdir()).stat().st_size
    (folder / "report.pdf").write_bytes(bytes(size))
    (folder / "README").write_bytes(bytes(2 * size))
    (folder / "old.json").symlink_to(tmp_path / "nowhere")
    (folder / "below").mkdir()
    (folder / "below" / "IM").write_bytes(bytes(size))
    (folder / "below" / "link").symlink_to(tmp_path / "nowhere")
    np.testing.assert_array_equal(read_volume(folder).array, raw.astype(int) - 1024)


def test_pixels_that_are_neither_signed_nor_unsigned_are_refused(tmp_path):
    folder = write_series(tmp_path, raw_slices(3), PixelRepresentation=65535)
    with pytest.raises(InputError, match="pixels cannot be decoded"):
        read_volume(folder)


@pytest.mark.parametrize("kind", ["last slices", "the same slices", "another series", "itself"])
def test_linked_folders_are_not_followed_and_missing_slices_are_reported(tmp_path, kind):
    raw = raw_slices(6)
    folder = write_series(tmp_path / "scan" / "part1", raw)
    store = tmp_path / "store"
    store.mkdir()
    if kind == "last slices":
        for file in lasting(folder, 2):
            shutil.move(file, store)
    elif kind == "another series":
        write_series(store, raw, series="1.2.9")
    targets = {"the same slices": folder, "itself": tmp_path / "scan"}
    (tmp_path / "scan" / "part2").symlink_to(targets.get(kind, store), target_is_directory=True)
    if kind == "last slices":
        refused(tmp_path / "scan", "series 4 has more images in part2, a link to a folder")
    else:
        np.testing.assert_array_equal(read_volume(tmp_path / "scan").array, raw.astype(int) - 1024)


def test_a_slice_with_an_unknown_modality_is_reported(tmp_path):
    raw = raw_slices(6)
    folder = write_series(tmp_path, raw)
    (last,) = lasting(folder, 1)
    data = pydicom.dcmread(last)
    data.Modality = "OT"
    save(data, last)
    np.testing.assert_array_equal(read_volume(folder).array, raw.astype(int) - 1024)


def test_an_empty_file_among_slices_is_reported(tmp_path):
    folder = write_series(tmp_path, raw_slices(6))
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(""))
    lasting(folder, 1)[0].write_bytes(b"")
    refused(folder, "series 4 has 5 images, but files", "by place and size are not DICOM (1, ")


def test_broken_links_are_reported(tmp_path):
    for number in range(3):
        (tmp_path / f"IM{number}").symlink_to(tmp_path / "store" / str(number))
    refused(tmp_path, "no DICOM image series here", "(broken links, pipes or devices: 3)")


def junk(folder):
    """Write files that are not DICOM although their first bytes may look like it."""
    draw = np.random.default_rng(0)
    files = {
        "notes.txt": b"\x08 CT of the abdomen\n" * 40,
        "data.json": json.dumps({"Modality": "CT", "Rows": 512}).encode(),
        "random": draw.bytes(2000),
        "zeros": bytes(2000),
        "table": b"\x08\x00 a table\n" * 40,
        "odd": b"\x08\x00\x05\x00\x01\x00\x00\x00" + bytes(200),  # odd length
        "long": b"\x08\x00\x05\x00\xff\xff\xff\x7f" + bytes(200),
        "private": b"\x08\x00\xff\xfe\x04\x00\x00\x00" + bytes(200),
        "Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(500),
        "desktop.ini": b"[.ShellClassInfo]\n",
        ".DS_Store": b"\0\0\0\1Bud1" + bytes(300),
        "._000.dcm": bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(160),
        "__MACOSX/000.dcm": bytes.fromhex("0005160700020000") + bytes(160),
        ".hidden/000.dcm": b"no DICOM",
        "short": b"\x08\x00",
        "empty": b"",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    for kind in ("jpeg", "png", "bmp", "gif"):
        Image.new("L", (20, 20)).save(folder / f"picture.{kind}")
    return folder


def test_other_files_are_not_taken_for_dicom(tmp_path):
    for file in junk(tmp_path).rglob("*"):
        assert not is_dicom(file), file
    with pytest.raises(InputError, match="no DICOM image series here"):
        read_volume(tmp_path)


def test_volumes_in_subfolders_are_mentioned(tmp_path):
    folder = junk(tmp_path / "dataset")
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "one_0000.nii.gz").write_bytes(b"")
    with pytest.raises(InputError) as error:
        read_volume(folder)
    assert str(error.value).endswith(f"; for volumes give their own folder, e.g. {folder / 'imagesTs'}")


def test_other_files_beside_slices_are_ignored(tmp_path):
    raw = raw_slices()
    junk(write_series(tmp_path / "series", raw))
    np.testing.assert_array_equal(read_volume(tmp_path / "series").array, raw.astype(int) - 1024)
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)


@pytest.mark.parametrize("path", ["{}(1).dcm", "{} copy.dcm", "copy of {}.dcm", "a/{}.dcm", "{}"])
@pytest.mark.parametrize("some", [True, False])
def test_copies_of_files_are_read_once(tmp_path, path, some):
    raw = raw_slices()
    folder = write_series(tmp_path / "series" / "b", raw)
    base = folder.parent if path.startswith("a/") else folder
    for number, file in enumerate(sorted(folder.iterdir())):
        if number < 2 or not some:
            copy = base / path.format(file.stem)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(file, copy)
    before = hash_of_source(folder.parent)
    volume = read_volume(folder.parent)
    np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024)
    np.testing.assert_allclose(volume.spacing, (0.75, 0.5, 2))
    np.testing.assert_array_equal(read_volume(folder / "003.dcm").array, volume.array)
    assert hash_of_source(folder.parent) == before
    assert hash_of_source(folder / "003.dcm") == hash_of_source(folder / "010.dcm")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder.parent)
    np.testing.assert_array_equal(read_volume(tmp_path / archive).array, volume.array)


def again(path, **fields):
    """Write the same instance again in another encoding."""
    data = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(data, name, value)
    return save(data, path.with_stem(f"{path.stem}x"))


def test_copies_in_another_encoding_are_read_once(tmp_path):
    raw = raw_slices()
    folder = write_series(tmp_path, raw)
    one = again(folder / "003.dcm", SeriesDescription="exported again")
    assert one.read_bytes() != (folder / "003.dcm").read_bytes()
    data = pydicom.dcmread(folder / "010.dcm")
    data.compress(RLELossless, generate_instance_uid=False)
    save(data, folder / "packed.dcm")
    shutil.copy(folder / "017.dcm", folder / "bare")
    without_preamble(folder / "bare", "implicit")
    np.testing.assert_array_equal(read_volume(folder).array, raw.astype(int) - 1024)


@pytest.mark.parametrize(
    "fields",
    [
        {"PixelData": bytes(84)},
        {"RescaleIntercept": -1000},
        {"ImageOrientationPatient": [1, 1e-4, 0, 0, 1, 0]},
        {"PixelSpacing": [0.5, 0.7501]},
        {"PhotometricInterpretation": "MONOCHROME1"},
    ],
)
def test_one_instance_with_two_contents_is_refused(tmp_path, fields):
    folder = write_series(tmp_path, raw_slices())
    again(folder / "003.dcm", **fields)
    refused(folder, "003.dcm and 003x.dcm have one SOP instance UID", "differ")


@pytest.mark.parametrize("uids", [["1.2.3.4"], ["1.2.3.4", "1.2.3.5"]])
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("copies", [True, False])
def test_slices_with_one_shared_uid_are_all_read(tmp_path, uids, alike, copies):
    """Also where their pixels are the same, and beside copies of them."""
    raw = raw_slices(6)
    if alike:
        raw[:] = raw[0]
    folder = write_series(tmp_path / "series", raw)
    for number, file in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(file)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uids[number % len(uids)]
        save(data, file)
        if copies:
            shutil.copy(file, file.with_stem(f"{file.stem}(1)"))
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    for path in (folder, folder / "003.dcm", tmp_path / archive):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024)
        np.testing.assert_allclose(volume.spacing, (0.75, 0.5, 2))
        np.testing.assert_allclose(volume.origin, (-10, 20, -300))
    again(folder / "003.dcm", PixelData=bytes(84))
    refused(folder, "003.dcm and 003x.dcm have one SOP instance UID", "differ")


def test_one_uid_at_two_positions_gives_two_slices(tmp_path):
    folder = write_series(tmp_path, raw_slices())
    again(folder / "003.dcm", ImagePositionPatient=[-10, 20, -301])
    refused(folder, "unevenly spaced", "1.00 mm")


@pytest.mark.parametrize("same", [True, False])
def test_copies_without_a_uid_are_read_once(tmp_path, same):
    raw = raw_slices()
    folder = write_series(tmp_path, raw)
    for file in list(folder.iterdir()):
        data = pydicom.dcmread(file)
        del data.SOPInstanceUID
        del data.file_meta.MediaStorageSOPInstanceUID
        pydicom.dcmwrite(file, data, enforce_file_format=False)
        if not same:
            data.PixelData = bytes(84)
        pydicom.dcmwrite(file.with_stem(f"{file.stem}x"), data, enforce_file_format=False)
    if same:
        np.testing.assert_array_equal(read_volume(folder).array, raw.astype(int) - 1024)
    else:
        refused(folder, "several slices at one position")


def test_another_instance_at_one_position_is_no_copy(tmp_path):
    folder = write_series(tmp_path, raw_slices())
    again(folder / "003.dcm", SOPInstanceUID="1.2.3.4")
    refused(folder, "several slices at one position", "003.dcm and 003x.dcm")


def test_a_copy_of_a_multi_frame_file_is_read_once(tmp_path):
    raw = raw_slices()
    save(enhanced(raw, (3, 0, 4, 2, 1)), tmp_path / "a.dcm")
    shutil.copy(tmp_path / "a.dcm", tmp_path / "a(1).dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii", "mask.nrrd", "mask.mha", "mask.mhd", "SEG.NRRD"])
@pytest.mark.parametrize("where", ["beside", "above", "without endings"])
def test_a_volume_beside_slices_is_refused(tmp_path, name, where):
    raw = raw_slices()
    path = tmp_path / "scan"
    folder = write_series(path / "IMAGES" if where == "above" else path, raw)
    series = read_volume(folder)
    if where == "without endings":
        for file in sorted(folder.iterdir()):
            file.rename(file.with_suffix(""))
    write_image(series.with_array((series.array > 0).astype(np.uint8)), tmp_path / "mask.nrrd")
    shutil.copy(tmp_path / "mask.nrrd", path / name)
    refused(path, "holds both DICOM slices and", name, "give one of the slices' files")
    # As one scan, so that others beside it are done and a dataset's case may name the folder.
    assert [scan.path for scan in find_scans([path])] == [path]
    # What the line says to do helps.
    slice_ = next(file for file in sorted(folder.iterdir()) if file.name.startswith("003"))
    np.testing.assert_array_equal(read_volume(slice_).array, raw.astype(int) - 1024)


def test_folders_of_volumes_alone_are_read(tmp_path):
    volume = Volume(np.zeros((3, 4, 5), np.int16))
    for name in ("a.nii.gz", "b.nrrd"):
        write_image(volume, tmp_path / name)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "notes.txt").write_text("no DICOM")
    data = dicom_slice(raw_slices()[0], (0, 0, 0), SOPClassUID=SegmentationStorage, Modality="SEG")
    save(data, tmp_path / "results" / "a.dcm")
    assert [scan.name for scan in find_scans([tmp_path])] == ["a", "b"]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["ImagePositionPatient"], "5 CT Image, which lack ImagePositionPatient"),
        (["ImageOrientationPatient"], "5 CT Image, which lack ImageOrientationPatient"),
        (["PixelSpacing"], "5 CT Image, which lack PixelSpacing"),
        (
            ["ImagePositionPatient", "PixelSpacing"],
            "5 CT Image, which lack ImagePositionPatient and PixelSpacing",
        ),
    ],
)
def test_missing_elements_are_reported(tmp_path, missing, words):
    folder = write_series(tmp_path, raw_slices(), **dict.fromkeys(missing))
    refused(folder, "no DICOM image series here", words)
    refused(folder / "003.dcm", "1 CT Image, which lacks")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ImagePositionPatient": ""}, "lack ImagePositionPatient"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 1, 0]}, "lack a valid ImageOrientationPatient"),
        ({"PixelSpacing": [0, 0]}, "lack a valid PixelSpacing"),
        ({"ImagePositionPatient": [1, 2]}, "lack a valid ImagePositionPatient"),
    ],
)
def test_invalid_elements_are_reported(tmp_path, fields, words):
    refused(write_series(tmp_path, raw_slices(), **fields), words)


def test_the_detectors_pixel_size_is_not_that_of_the_patient(tmp_path):
    folder = write_series(tmp_path, raw_slices(), PixelSpacing=None, ImagerPixelSpacing=[0.5, 0.75])
    refused(folder, "which lack PixelSpacing (ImagerPixelSpacing is that of the detector)")


@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("end", ["003.dcm", "031.dcm"])
def test_a_slice_without_a_position_is_reported(tmp_path, name, end):
    """Without an end slice there is no gap that would reveal it."""
    folder = write_series(tmp_path, raw_slices())
    data = pydicom.dcmread(folder / end)
    delattr(data, name)
    save(data, folder / end)
    refused(folder, f"series 4 has images that lack {name} (1 of 5, e.g. {end})")


def test_a_dose_report_in_the_series_is_ignored(tmp_path):
    raw = raw_slices()
    folder = write_series(tmp_path, raw)
    fields = {"ImagePositionPatient": None, "SOPClassUID": SecondaryCaptureImageStorage}
    save(dicom_slice(raw[0], (0, 0, 0), **fields), folder / "dose.dcm")
    np.testing.assert_array_equal(read_volume(folder).array, raw.astype(int) - 1024)


def test_other_dicom_objects_are_named_in_the_message(tmp_path):
    for number, uid in enumerate((BasicTextSRStorage, BasicTextSRStorage, SegmentationStorage)):
        data = dicom_slice(raw_slices()[0], (0, 0, 0), SOPClassUID=uid)
        data.Modality = "SR" if uid == BasicTextSRStorage else "SEG"
        if uid == BasicTextSRStorage:
            del data.Rows, data.Columns, data.PixelData
        save(data, tmp_path / f"{number}.dcm")
    refused(tmp_path, "no DICOM image series here", "2 Basic Text SR", "1 Segmentation")
    refused(tmp_path / "0.dcm", "1 Basic Text SR")


@pytest.mark.filterwarnings("ignore")
def test_messages_name_no_patient(tmp_path):
    data = dicom_slice(raw_slices()[0], (0, 0, 0), ImagePositionPatient=None)
    data.SOPClassUID = "1.2.3"
    data.file_meta.MediaStorageSOPClassUID = "1.2.3"
    data.Modality = "Muster^Erika"
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    save(data, tmp_path / "a.dcm")
    refused(tmp_path, "1 unknown modality, which lacks ImagePositionPatient")


SPREAD = ["{0}.dcm", "more/{0}.dcm", "a/b/{0}"]


@pytest.mark.parametrize("others", [SPREAD[1:2], SPREAD[2:], SPREAD, ["1/{0}", "2/{0}"]])
@pytest.mark.parametrize("first", [True, False])
def test_one_series_spread_over_folders_is_read_whole(tmp_path, others, first):
    """The first slice may lie in any of the folders."""
    raw = raw_slices(8)
    folder = write_series(tmp_path / "series", raw)
    whole = read_volume(folder)
    for number, file in enumerate(sorted(folder.iterdir())):
        target = folder / others[(number + first) % len(others)].format(file.stem)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    at_the_top = [file for file in folder.iterdir() if file.is_file()]
    for path in (folder, tmp_path / archive, *at_the_top):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, whole.array)
        np.testing.assert_array_equal(volume.world_from_index, whole.world_from_index)


@pytest.mark.parametrize("places", [("", "b"), ("a", "b"), ("a", "a/b"), ("a/b/c", "")])
def test_two_series_in_different_folders_are_listed_in_the_refusal(tmp_path, places):
    raw, more = raw_slices(), raw_slices(3, seed=2)
    scan = tmp_path / "scan"
    write_series(scan / places[0], raw)
    write_series(tmp_path / "new", more, series="1.2.9", SeriesNumber=7)
    for file in (tmp_path / "new").iterdir():
        target = scan / places[1] / f"x{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    archive = tmp_path / shutil.make_archive(str(tmp_path / "packed"), "zip", scan)
    for path in (scan, archive):
        refused(path, "got 2", "series 4 (CT, 5 images)", "series 7 (CT, 3 images)", "choose one")
        np.testing.assert_array_equal(read_volume(path, "7").array, more.astype(int) - 1024)
        np.testing.assert_array_equal(read_volume(path, "4").array, raw.astype(int) - 1024)
    np.testing.assert_array_equal(read_volume(scan / places[0] / "003.dcm").array, raw.astype(int) - 1024)


def test_results_and_scouts_below_a_series_are_left_out(tmp_path):
    raw = raw_slices()
    folder = write_series(tmp_path, raw)
    volume = read_volume(folder)
    scout = {"series": "1.2.8", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    save(dicom_slice(raw[0], (0, 0, 0), **scout), folder / "scouts" / "a.dcm")
    marks = {"series": "1.2.7", "SOPClassUID": SegmentationStorage, "Modality": "SEG"}
    save(dicom_slice(raw[0], (0, 0, 0), **marks), folder / "results" / "scan.seg.dcm")
    write_image(volume.with_array((volume.array > 0).astype(np.uint8)), folder / "results" / "scan.nii.gz")
    for path in (folder, folder / "003.dcm"):
        np.testing.assert_array_equal(read_volume(path).array, volume.array)


@pytest.mark.parametrize("given", ["a.dcm", "b.dcm"])
def test_one_of_several_multi_frame_files_reads_the_whole_series(tmp_path, given):
    raw = raw_slices(8)
    parts = {"a.dcm": (6, 0, 3), "b.dcm": (5, 1, 2, 7, 4)}
    for name, order in parts.items():
        save(enhanced(raw, order), tmp_path / name)
    other = enhanced(raw_slices(3, seed=4), range(3))
    other.SeriesInstanceUID = "1.2.9"
    save(other, tmp_path / "c.dcm")
    for read in (read_volume(tmp_path / given), read_volume(tmp_path, "1.2.3")):
        np.testing.assert_array_equal(read.array, raw.astype(int) - 1024)
        np.testing.assert_allclose(read.spacing, (0.75, 0.5, 2))
        np.testing.assert_allclose(read.origin, (-10, 20, -300))
    assert read_volume(tmp_path / "c.dcm").array.shape == (3, 6, 7)
    assert hash_of_source(tmp_path / "a.dcm") == hash_of_source(tmp_path / "b.dcm")


def test_a_non_image_object_does_not_hide_the_series_below(tmp_path):
    raw = raw_slices()
    write_series(tmp_path / "below", raw)
    report = dicom_slice(raw[0], (0, 0, 0), SOPClassUID=BasicTextSRStorage, Modality="SR")
    del report.Rows, report.Columns, report.PixelData
    save(report, tmp_path / "report.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)


@pytest.mark.parametrize("packed", [(4,), (0, 1, 2, 3, 4)])
def test_gzipped_slices_are_refused(tmp_path, packed):
    folder = write_series(tmp_path, raw_slices())
    files = sorted(folder.iterdir(), key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    for number, file in enumerate(files):
        if number in packed:
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    with pytest.raises(InputError, match=r"\.gz: gzip-compressed DICOM is not supported; decompress it"):
        read_volume(folder)


def test_a_lower_case_photometric_interpretation_is_read(tmp_path):
    expected = read_volume(write_series(tmp_path / "a", raw_slices()))
    result = read_volume(write_series(tmp_path / "b", raw_slices(), PhotometricInterpretation="monochrome2"))
    np.testing.assert_array_equal(result.array, expected.array)
