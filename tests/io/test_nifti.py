"""Hand-made NIfTI headers on which readers disagree."""

import gzip
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from io_helpers import rotation, upright
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.images import read_volume, write_image

ARRAY = upright((4, 5, 6)).array
TURN = rotation([10, 20, 30])


@pytest.fixture
def header(tmp_path):
    """Function that writes a NIfTI-1 file of an oblique grid with changed bytes of its header."""
    matrix = np.eye(4)
    matrix[:3, :3] = TURN * [0.7, 0.8, 2.5]
    matrix[:3, 3] = (-10.5, 20.25, -300)
    path = tmp_path / "scan.nii"
    write_image(Volume(ARRAY, matrix), path)
    original = path.read_bytes()

    def change(*edits):
        data = bytearray(original)
        for offset, form, *values in edits:
            struct.pack_into("<" + form, data, offset, *values)
        path.write_bytes(data)
        return path

    change.matrix = matrix
    return change


CODES, PIXDIM, SROW, QUATERN, SCALE, UNITS, DIM = 252, 80, 280, 256, 112, 123, 40
SFORM_ONLY, QFORM_ONLY, NEITHER = (CODES, "2h", 0, 2), (CODES, "2h", 1, 0), (CODES, "2h", 0, 0)


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_volume(path)
    assert str(error.value).startswith(f"{path}: ")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("code", [SFORM_ONLY, QFORM_ONLY])
def test_sform_and_qform_each_give_the_grid(header, code):
    np.testing.assert_allclose(read_volume(header(code)).world_from_index, header.matrix, atol=1e-4)


def test_a_missing_orientation_is_refused(header):
    refused(header(NEITHER), "left and right are unknown")


def test_sform_takes_precedence_over_pixdim(header):
    # SimpleITK takes the voxel size from pixdim here and puts the scan at a wrong size.
    for size in ((1, 1, 1), (0, 0, 0)):
        volume = read_volume(header(SFORM_ONLY, (PIXDIM, "3f", *size)))
        np.testing.assert_allclose(volume.world_from_index, header.matrix, atol=1e-4)


def test_qform_needs_a_voxel_size(header):
    refused(header(QFORM_ONLY, (PIXDIM, "3f", 0, 0.8, 2.5)), "not plausible")


def test_contradicting_sform_and_qform_are_refused(header):
    mirrored = (SROW, "12f", 0.7, 0, 0, 5, 0, 0.8, 0, 5, 0, 0, 2.5, 5)
    refused(header(mirrored), "sform and qform", "mm apart")
    np.testing.assert_allclose(
        read_volume(header(mirrored, SFORM_ONLY)).world_from_index,
        np.diag([-1, -1, 1, 1]) @ [[0.7, 0, 0, 5], [0, 0.8, 0, 5], [0, 0, 2.5, 5], [0, 0, 0, 1]],
        atol=1e-6,
    )


def test_sform_and_qform_may_differ_by_rounding(header):
    data = header()
    x = struct.unpack_from("<f", data.read_bytes(), SROW + 12)[0]
    volume = read_volume(header((SROW + 12, "f", x + 0.3)))
    assert volume.origin[0] == pytest.approx(-x - 0.3, abs=1e-5)  # the sform's word


def test_a_mirrored_qform_is_read(header, tmp_path):
    matrix = header.matrix.copy()
    matrix[:, 2] *= -1
    write_image(Volume(ARRAY, matrix), tmp_path / "m.nii")
    data = bytearray((tmp_path / "m.nii").read_bytes())
    assert struct.unpack_from("<f", data, 76) == (-1.0,)
    struct.pack_into("<2h", data, CODES, 1, 0)
    (tmp_path / "m.nii").write_bytes(data)
    np.testing.assert_allclose(read_volume(tmp_path / "m.nii").world_from_index, matrix, atol=1e-4)


def test_shear_other_units_and_damage_are_refused(header):
    refused(header(SFORM_ONLY, (SROW, "12f", -0.7, 0.3, 0, 5, 0, -0.8, 0, 5, 0, 0, 2.5, 5)), "right angles")
    refused(header((UNITS, "B", 1)), "meters")
    refused(header((UNITS, "B", 3)), "micrometers")
    refused(header((SROW, "f", np.nan)), "damaged")
    refused(header((DIM, "8h", 3, 0, 5, 4, 1, 1, 1, 1)), "dimensions")
    refused(header((DIM, "8h", 3, -6, 5, 4, 1, 1, 1, 1)), "dimensions")
    refused(header((DIM, "h", 9)), "dimensions")
    refused(header((DIM, "8h", 2, 6, 20, 1, 1, 1, 1, 1)), "one 3D volume")
    refused(header((70, "h", 128)), "type 128")
    refused(header((344, "4s", b"ni1\0")), "single NIfTI")
    with pytest.raises(InputError, match="its header promises"):
        read_volume(header((DIM, "8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)))


def test_unknown_spatial_units_and_time_units_are_accepted(header):
    for unit in (0, 2, 10, 8):
        np.testing.assert_array_equal(read_volume(header((UNITS, "B", unit))).array, ARRAY)


def test_slope_and_intercept_are_applied(header):
    volume = read_volume(header((SCALE, "2f", 1, -1024)))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, ARRAY - 1024.0)
    np.testing.assert_array_equal(read_volume(header((SCALE, "2f", 0.5, 3))).array, ARRAY * 0.5 + 3)
    for slope, inter in ((0, 0), (0, 5), (1, 0), (np.nan, np.nan)):
        volume = read_volume(header((SCALE, "2f", slope, inter)))
        assert volume.array.dtype == np.int16
        np.testing.assert_array_equal(volume.array, ARRAY)


def test_valid_headers_are_read_as_by_simpleitk(header):
    for scale in ((1, 0), (2, -1000)):
        path = header((SCALE, "2f", *scale))
        image, volume = sitk.ReadImage(str(path)), read_volume(path)
        np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(image))
        np.testing.assert_allclose(volume.spacing, image.GetSpacing(), rtol=1e-6)
        np.testing.assert_allclose(volume.origin, image.GetOrigin(), rtol=1e-6)
        np.testing.assert_allclose(volume.direction.ravel(), image.GetDirection(), atol=1e-6)


def test_trailing_bytes_and_large_voxel_offsets_are_read(header):
    path = header((108, "f", 400))
    data = bytearray(path.read_bytes())
    data[352:352] = bytes(48)  # an extension
    path.write_bytes(data + b"trailer")
    np.testing.assert_array_equal(read_volume(path).array, ARRAY)
    packed = path.with_suffix(".nii.gz")
    packed.write_bytes(gzip.compress(bytes(data[:500])) + gzip.compress(bytes(data[500:])))
    np.testing.assert_array_equal(read_volume(packed).array, ARRAY)


@pytest.mark.parametrize("junk", [b"Muster^Erika", b"\x01", b"PK\x03\x04" + bytes(50), bytes(3) + b"x"])
def test_bytes_after_a_compressed_volume_are_refused_and_not_quoted(header, junk):
    """Trailing zeros, as padding of disks and tapes, are ignored, as gzip does."""
    data = header().read_bytes()
    packed = header().with_suffix(".nii.gz")
    packed.write_bytes(gzip.compress(data) + bytes(20))
    np.testing.assert_array_equal(read_volume(packed).array, ARRAY)
    for first in (data, data[:200], data[:400]):
        packed.write_bytes(gzip.compress(first) + junk)
        with pytest.raises(InputError) as error:
            read_volume(packed)
        assert str(error.value) == (
            f"{packed}: truncated or corrupt (bytes that are not gzip's follow its compressed data); "
            "copy or download it again"
        )


def swapped(data):
    """Return the bytes of a NIfTI-1 file in big-endian order."""
    data = bytearray(data)
    fields = [
        (0, "i", 1),
        (40, "h", 8),
        (70, "h", 2),
        (76, "f", 8),
        (108, "f", 3),
        (252, "h", 2),
        (256, "f", 18),
    ]
    for offset, form, count in fields:
        struct.pack_into(
            f">{count}{form}", data, offset, *struct.unpack_from(f"<{count}{form}", data, offset)
        )
    voxels = np.frombuffer(bytes(data[352:]), "<i2").astype(">i2").tobytes()
    return bytes(data[:352]) + voxels


def test_big_endian_files_are_read(header):
    path = header()
    path.write_bytes(swapped(path.read_bytes()))
    volume = read_volume(path)
    assert volume.array.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.world_from_index, header.matrix, atol=1e-4)


def test_nifti_2_files_are_read(tmp_path, header):
    matrix = np.diag([-1, -1, 1, 1]) @ header.matrix
    data = bytearray(544)
    struct.pack_into("<i8sh", data, 0, 540, b"n+2\0\r\n\x1a\n", 4)
    struct.pack_into("<8q", data, 16, 3, 6, 5, 4, 1, 1, 1, 1)
    struct.pack_into("<8d", data, 104, 1, 0.7, 0.8, 2.5, 1, 1, 1, 1)
    struct.pack_into("<q2d", data, 168, 544, 1, 0)
    struct.pack_into("<2i", data, 344, 0, 1)
    struct.pack_into("<12d", data, 400, *matrix[:3].ravel())
    struct.pack_into("<i", data, 500, 2)
    path = tmp_path / "two.nii.gz"
    path.write_bytes(gzip.compress(bytes(data) + ARRAY.astype("<i2").tobytes()))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.world_from_index, header.matrix, atol=1e-12)
