"""Stored values of every encoding, their unused bits and their padding; compared with GDCM and pydicom."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.pixels import apply_rescale
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from io_helpers import dicom_slice, enhanced, raw_slices, save, write_series
from isopose.errors import InputError
from isopose.io.dicom_pixels import AIR_HU
from isopose.io.images import read_volume


def by_gdcm(folder):
    """Read the series by SimpleITK's series reader."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def by_pydicom(folder):
    """Read rescaled slices in order of position by pydicom."""
    slices = sorted(
        map(pydicom.dcmread, folder.iterdir()), key=lambda one: float(one.ImagePositionPatient[2])
    )
    return np.stack([apply_rescale(one.pixel_array, one) for one in slices])


def signed(raw):
    """Return stored 12-bit values as signed values of two bytes."""
    return (raw.astype(np.int16) - 2048).view(np.uint16)


def compressed_by_gdcm(data, name, path):
    """Compress the pixels of a slice by GDCM."""
    kind = np.int16 if data.PixelRepresentation else np.uint16
    pixels = np.frombuffer(data.PixelData, kind).reshape(data.Rows, data.Columns)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path / "pixels.dcm"))
    writer.SetUseCompression(True)
    writer.SetCompressor(name)
    writer.Execute(sitk.GetImageFromArray(pixels[None]))
    dataset = pydicom.dcmread(path / "pixels.dcm")
    assert dataset.file_meta.TransferSyntaxUID.is_compressed
    data.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    for field in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(data, field, dataset.get(field))
    data["PixelData"] = dataset["PixelData"]
    return data


@pytest.mark.parametrize(
    "syntax",
    [
        *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian),
        *(DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless, "JPEG", "JPEG2000"),
    ],
)
@pytest.mark.parametrize("representation", [0, 1])
def test_every_transfer_syntax_gives_the_same_values(tmp_path, syntax, representation):
    # GDCM's compressors want more than a few pixels.
    raw = np.random.default_rng(0).integers(0, 4096, (3, 40, 48)).astype(np.uint16)
    stored = signed(raw) if representation else raw
    for i, pixels in enumerate(stored):
        data = dicom_slice(pixels, (0, 0, 2 * i), PixelRepresentation=representation)
        data.BitsStored, data.HighBit = 16, 15
        if syntax in ("JPEG", "JPEG2000"):
            data = compressed_by_gdcm(data, syntax, tmp_path)
        elif syntax in (RLELossless, JPEGLSLossless):
            data.compress(syntax, generate_instance_uid=False)
        else:
            if syntax == ExplicitVRBigEndian:
                data.PixelData = pixels.astype(">u2").tobytes()
            data.file_meta.TransferSyntaxUID = syntax
        save(data, tmp_path / "series" / f"{i}.dcm")
    expected = raw.astype(int) - 1024 - 2048 * representation
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_gdcm(tmp_path / "series")), expected)


def test_a_compressed_multi_frame_file_is_read(tmp_path):
    raw = raw_slices()
    data = enhanced(raw, (3, 0, 4, 2, 1))
    data.compress(RLELossless, generate_instance_uid=False)
    save(data, tmp_path / "enhanced.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)


@pytest.mark.parametrize("representation", [0, 1])
@pytest.mark.parametrize("garbage", ["zeros", "sign", "overlay"])
def test_unused_bits_are_ignored(tmp_path, representation, garbage):
    raw = raw_slices()
    stored = (signed(raw) if representation else raw) & 0x0FFF
    if garbage == "overlay":
        written = stored | np.uint16(0x5000)
    elif garbage == "sign":
        written = signed(raw) if representation else stored
    else:
        written = stored
    folder = write_series(tmp_path, written, PixelRepresentation=representation)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024 - 2048 * representation)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_gdcm(folder)), volume.array)


def test_a_high_bit_above_the_stored_bits_is_read(tmp_path):
    raw = raw_slices()
    volume = read_volume(write_series(tmp_path, (raw << 4) | 0x5, HighBit=15))
    np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024)


def test_files_of_a_series_may_differ_in_encoding(tmp_path):
    raw = raw_slices(4)
    forms = [
        (raw[0], {}),
        (signed(raw[1]), {"PixelRepresentation": 1, "RescaleIntercept": 1024}),
        (raw[2], {"BitsStored": 16, "HighBit": 15}),
        (raw[3] | 0x6000, {}),
    ]
    for i, (pixels, form) in enumerate(forms):
        save(dicom_slice(pixels, (0, 0, 2 * i), **form), tmp_path / f"{i}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)


@pytest.mark.parametrize("allocated", [8, 32])
def test_pixels_of_8_and_32_bits_are_read(tmp_path, allocated):
    raw = raw_slices() % 256 if allocated == 8 else raw_slices()
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (0, 0, 2 * i))
        data.BitsAllocated = data.BitsStored = allocated
        data.HighBit = allocated - 1
        data.PixelData = pixels.astype(f"<u{allocated // 8}").tobytes()
        save(data, tmp_path / f"{i}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)


@pytest.mark.parametrize(("name", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_float_pixels_are_read(tmp_path, name, kind):
    raw = raw_slices()
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (0, 0, 2 * i), RescaleSlope=2, RescaleIntercept=-1000)
        for unused in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(data, unused)
        data.BitsAllocated = 8 * np.dtype(kind).itemsize
        setattr(data, name, (pixels / 4).astype(kind).tobytes())
        padding = {"FloatPixelData": "FloatPixelPaddingValue"}.get(name, "DoubleFloatPixelPaddingValue")
        setattr(data, padding, float(raw[0, 0, 0] / 4))
        save(data, tmp_path / f"{i}.dcm")
    expected = np.where(raw == raw[0, 0, 0], AIR_HU, raw / 4 * 2.0 - 1000)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, expected)


def padded_series(folder, declared, *, value=None, representation=0, syntax=None, **fields):
    """Write a series whose first row is padding, declared by ``(tag, VR, value)``; return the other rows."""
    raw = raw_slices(3)
    stored = (raw.astype(int) - 2048) if representation else raw.astype(int)
    stored[:, 0] = value
    for i, pixels in enumerate(stored):
        data = dicom_slice(raw[i], (0, 0, 2 * i), PixelRepresentation=representation, **fields)
        data.BitsStored, data.HighBit = 16, 15
        data.PixelData = (pixels & 0xFFFF).astype("<u2").tobytes()
        for tag, representation_of_value, number in declared:
            data.add_new(tag, representation_of_value, number)
        if syntax is not None:
            data.file_meta.TransferSyntaxUID = syntax
        save(data, folder / f"{i}.dcm")
    return stored[:, 1:] - 1024


PADDING, LIMIT = 0x00280120, 0x00280121


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("representation", "value", "declared"),
    [
        (0, 63536, [(PADDING, "US", 63536)]),
        (0, 63536, [(PADDING, "SS", -2000)]),  # the right bits with the wrong sign
        (0, 5000, [(PADDING, "US", 5000)]),
        (0, 5000, [(PADDING, "SS", 5000)]),
        (1, 30000, [(PADDING, "SS", 30000)]),
        (1, 30000, [(PADDING, "US", 30000)]),
        (0, 63000, [(PADDING, "US", 62000), (LIMIT, "US", 65535)]),
        (0, 63000, [(PADDING, "US", 65535), (LIMIT, "US", 62000)]),
        (0, 63000, [(PADDING, "SS", -3000), (LIMIT, "SS", -1)]),
        (1, 31000, [(PADDING, "SS", 32767), (LIMIT, "SS", 30000)]),
        (1, 31000, [(PADDING, "US", 30000), (LIMIT, "US", 32767)]),
    ],
)
def test_declared_padding_is_air(tmp_path, representation, value, declared, syntax):
    rest = padded_series(tmp_path, declared, value=value, representation=representation, syntax=syntax)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[:, 0], AIR_HU)
    np.testing.assert_array_equal(volume.array[:, 1:], rest)


@pytest.mark.parametrize(
    ("representation", "value", "declared", "hu"),
    [
        (0, 0, [(PADDING, "US", 0)], -1024),  # is air, and stays what the scanner wrote
        (0, 24, [(PADDING, "US", 24)], -1000),
        (1, -2000, [], -3024),  # not declared
        (0, 63536, [], 62512),  # not declared
        (0, 63536, [(PADDING, "US", 63535)], 62512),
        (0, 63536, [(LIMIT, "US", 63536)], 62512),  # a limit alone declares nothing
        (0, 63536, [(PADDING, "UT", "none")], 62512),
    ],
)
def test_undeclared_padding_and_air_are_kept(tmp_path, representation, value, declared, hu):
    rest = padded_series(tmp_path, declared, value=value, representation=representation)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[:, 0], hu)
    np.testing.assert_array_equal(volume.array[:, 1:], rest)


@pytest.mark.parametrize("declared", [[(PADDING, "SS", -2000)], [(PADDING, "US", 63536)]])
def test_padding_below_air_becomes_air(tmp_path, declared):
    rest = padded_series(tmp_path, declared, value=-2000, representation=1)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[:, 0], AIR_HU)
    np.testing.assert_array_equal(volume.array[:, 1:], rest)


def test_padding_beyond_the_stored_bits(tmp_path):
    """Of 16 bits 12 are stored; the padding value uses all 16 and would look like tissue if cut to 12."""
    raw = raw_slices(3)
    written = raw.copy()
    written[:, 0] = 63536
    raw[:, 1] = written[:, 1] = 63536 & 0x0FFF
    for i, pixels in enumerate(written):
        data = dicom_slice(pixels, (0, 0, 2 * i))
        data.add_new(PADDING, "US", 63536)
        save(data, tmp_path / f"{i}.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[:, 0], AIR_HU)
    np.testing.assert_array_equal(volume.array[:, 1:], raw[:, 1:].astype(int) - 1024)


def test_every_file_has_its_own_padding(tmp_path):
    raw = raw_slices(3)
    raw[:, 0] = np.array([5000, 6000, 7000])[:, None]
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (0, 0, 2 * i), BitsStored=16, HighBit=15)
        data.add_new(PADDING, "US", 5000 + 1000 * i)
        save(data, tmp_path / f"{i}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array[:, 0], AIR_HU)


def test_padding_of_multi_frame_and_compressed_files(tmp_path):
    raw = raw_slices()
    raw[:, 0] = 63536
    for path in ("plain", "packed"):
        data = enhanced(raw, (3, 0, 4, 2, 1))
        data.BitsStored, data.HighBit = 16, 15
        data.add_new(PADDING, "US", 63536)
        if path == "packed":
            data.compress(RLELossless, generate_instance_uid=False)
        save(data, tmp_path / path / "enhanced.dcm")
        volume = read_volume(tmp_path / path)
        np.testing.assert_array_equal(volume.array[:, 0], AIR_HU)
        np.testing.assert_array_equal(volume.array[:, 1:], raw[:, 1:].astype(int) - 1024)


def test_padding_of_other_modalities_is_kept(tmp_path):
    raw = raw_slices(3)
    raw[:, 0] = 4095
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (0, 0, 2 * i), Modality="MR", RescaleSlope=None, RescaleIntercept=None)
        data.add_new(PADDING, "US", 4095)
        save(data, tmp_path / f"{i}.dcm")
    expected = np.where(raw == 4095, 0, raw)
    np.testing.assert_array_equal(read_volume(tmp_path).array, expected)


def test_values_and_positions_agree_with_other_readers(tmp_path):
    raw = raw_slices()
    folder = write_series(tmp_path, raw)
    volume, image = read_volume(folder), by_gdcm(folder)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image))
    np.testing.assert_array_equal(volume.array, by_pydicom(folder))
    for index in ((0, 0, 0), (6, 5, 4), (2, 3, 1)):
        position = volume.world_from_index @ [*index, 1]
        np.testing.assert_allclose(position[:3], image.TransformIndexToPhysicalPoint(index), atol=1e-9)


@pytest.mark.parametrize("kept", [0, 2, 50, 82])
def test_missing_pixels_are_refused(tmp_path, kept):
    folder = write_series(tmp_path, raw_slices())
    data = dicom_slice(raw_slices()[0], (-10, 20, -300))
    data.PixelData = data.PixelData[:kept]
    save(data, folder / "003.dcm")
    with pytest.raises(InputError, match=r"003\.dcm: pixels cannot be decoded"):
        read_volume(folder)


def test_more_frames_than_positions_are_refused(tmp_path):
    data = enhanced(raw_slices(), range(5))
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:4]
    save(data, tmp_path / "a.dcm")
    with pytest.raises(InputError, match="it has 5 frames and positions of 4"):
        read_volume(tmp_path)
