"""All NIfTI header fields that affect values and positions of voxels, compared with nibabel."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from io_helpers import rotation, upright
from isopose.errors import InputError
from isopose.io.images import read_labels, read_volume

ARRAY = upright().array
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = np.eye(4)
AFFINE[:3, :3] = rotation([10, 20, 30]) * [0.7, 0.8, 2.5]
AFFINE[:3, 3] = (-10.5, 20.25, -300)
OFFSET, SCALE, UNITS, CODES, SROW, PIXDIM = 108, 112, 123, 252, 280, 76


def written(path, *edits, kind=nib.Nifti1Image, array=ARRAY, order="<"):
    """Write a file by nibabel and overwrite header fields by ``(offset, format, *values)``."""
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    image = kind(array.T, AFFINE, header)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    packed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for offset, form, *values in edits:
        struct.pack_into(order + form, data, offset, *values)
    path.write_bytes(gzip.compress(bytes(data)) if packed else data)
    return path


def as_nibabel(path):
    """Assert that values and the position of every voxel agree with nibabel."""
    image, volume = nib.load(path), read_volume(path)
    np.testing.assert_allclose(volume.array, image.get_fdata().T, rtol=1e-6)
    np.testing.assert_allclose(volume.world_from_index, LPS @ image.affine, atol=1e-4)
    return volume


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_volume(path)
    assert str(error.value).startswith(f"{path}: ")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_both_versions_and_byte_orders_are_read(tmp_path, kind, order, ending):
    as_nibabel(written(tmp_path / f"a{ending}", kind=kind, order=order))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_voxel_offset_of_0_means_behind_the_header(tmp_path, ending):
    path = written(tmp_path / f"a{ending}", (OFFSET, "f", 0))
    volume = read_volume(path)
    # nibabel itself takes the header for voxels here.
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.world_from_index, LPS @ AFFINE, atol=1e-4)
    two = written(tmp_path / f"b{ending}", (168, "q", 0), kind=nib.Nifti2Image)
    np.testing.assert_array_equal(read_volume(two).array, ARRAY)


def test_a_voxel_offset_of_0_does_not_shift_labels(tmp_path):
    labels = np.zeros((8, 9, 10), np.int16)
    labels[5, 6, 7] = 3
    path = written(tmp_path / "a.nii", (OFFSET, "f", 0), array=labels)
    assert np.argwhere(read_labels(path).array == 3).tolist() == [[5, 6, 7]]


@pytest.mark.parametrize("offset", [-1, 1, 100, 348, 351, 352.5, 367.9, np.nan, np.inf, -np.inf, -352])
def test_other_voxel_offsets_inside_the_header_are_refused(tmp_path, offset):
    refused(written(tmp_path / "a.nii", (OFFSET, "f", offset)), "")


@pytest.mark.parametrize("offset", [-1, 1, 352, 540, 543])
def test_voxel_offsets_inside_a_header_of_version_2_are_refused(tmp_path, offset):
    refused(written(tmp_path / "a.nii", (168, "q", offset), kind=nib.Nifti2Image), "inside the header")


@pytest.mark.parametrize("offset", [1e6, 1e30])
def test_voxel_offsets_beyond_the_file_are_refused(tmp_path, offset):
    for name in ("a.nii", "a.nii.gz"):
        refused(written(tmp_path / name, (OFFSET, "f", offset)), "truncated")


@pytest.mark.parametrize("lengths", [(16,), (32, 48), (160,)])
def test_extensions_lie_before_the_voxels(tmp_path, lengths):
    image = nib.Nifti1Image(ARRAY.T, AFFINE)
    for length in lengths:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"x" * (length - 8)))
    nib.save(image, tmp_path / "a.nii")
    volume = as_nibabel(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.array, ARRAY)
    data = bytearray((tmp_path / "a.nii").read_bytes())
    # Before the extensions' end, and without a word.
    for wrong in (0, 352, 352 + sum(lengths) - 8):
        struct.pack_into("<f", data, OFFSET, wrong)
        (tmp_path / "b.nii").write_bytes(data)
        refused(tmp_path / "b.nii", "voxels are said to begin")


def test_a_large_number_of_extensions_is_read_quickly(tmp_path):
    path = written(tmp_path / "a.nii", (348, "B", 1), (OFFSET, "f", 352 + (1 << 24)))
    data = bytearray(path.read_bytes()[:352] + struct.pack("<4i", 16, 6, 0, 0) * (1 << 20))
    path.write_bytes(data + ARRAY.tobytes())
    refused(path, "extensions reach beyond")


def test_zeros_after_extensions_and_an_empty_extension_flag_are_accepted(tmp_path):
    image = nib.Nifti1Image(ARRAY.T, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"x" * 24))
    nib.save(image, tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[384:384] = bytes(32)
    struct.pack_into("<f", data, OFFSET, 416)
    (tmp_path / "a.nii").write_bytes(data)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").array, ARRAY)
    np.testing.assert_array_equal(read_volume(written(tmp_path / "b.nii", (348, "B", 1))).array, ARRAY)


@pytest.mark.parametrize("slope", [1, 2, -0.5, 0, np.nan, np.inf, -np.inf, 1e-3])
@pytest.mark.parametrize("inter", [0, -1024, np.nan, np.inf, -np.inf])
def test_scaling_agrees_with_nibabel_or_is_refused(tmp_path, slope, inter):
    path = written(tmp_path / "a.nii", (SCALE, "2f", slope, inter))
    if slope and np.isfinite(slope) and not np.isfinite(inter):
        # nibabel raises, too.
        refused(path, "scl_inter")
        return
    as_nibabel(path)


def test_a_halved_scan_with_a_slope_of_2_and_no_intercept(tmp_path):
    half = np.round(ARRAY / 2).astype(np.int16)
    path = written(tmp_path / "a.nii", (SCALE, "2f", 2, np.nan), array=half)
    refused(path, "scales its values by 2", "not a number")


def test_display_range_and_intent_do_not_change_values(tmp_path):
    for edits in ([(124, "2f", 40, -160)], [(68, "h", 1002)], [(39, "B", 57)], [(56, "3f", 1, 2, 3)]):
        np.testing.assert_array_equal(as_nibabel(written(tmp_path / "a.nii", *edits)).array, ARRAY)


@pytest.mark.parametrize("unit", range(8))
@pytest.mark.parametrize("time", [0, 8, 16, 24])
def test_units_are_converted_or_refused(tmp_path, unit, time):
    path = written(tmp_path / "a.nii", (UNITS, "B", unit | time))
    if unit in (0, 2):
        as_nibabel(path)
    else:
        refused(path, {1: "meters", 3: "micrometers"}.get(unit, f"code {unit}"))


QFORM = (CODES, "2h", 1, 0)


@pytest.mark.parametrize("factor", [1, -1, 0, 5])
def test_handedness_of_the_qform_agrees_with_nibabel(tmp_path, factor):
    as_nibabel(written(tmp_path / "a.nii", QFORM, (PIXDIM, "f", factor)))


@pytest.mark.parametrize(
    "pixdim",
    [
        (-2, 0.7, 0.8, 2.5),
        (np.nan, 0.7, 0.8, 2.5),
        (1, -0.7, 0.8, 2.5),
        (1, 0.7, 0, 2.5),
        (1, 0.7, 0.8, np.nan),
    ],
)
def test_an_ambiguous_qform_is_refused(tmp_path, pixdim):
    refused(written(tmp_path / "a.nii", QFORM, (PIXDIM, "4f", *pixdim)), "")
    # Where the sform says where voxels lie, nobody reads it.
    as_nibabel(written(tmp_path / "a.nii", (CODES, "2h", 0, 1), (PIXDIM, "4f", *pixdim)))


TURNS = [
    (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
    (0.6, 0.8, 0.0),
    (0.0, -0.28, 0.96),
    (0.48, 0.6, 0.64),
    (-2 / 7, 3 / 7, 6 / 7),
]
#: A square of the quaternion's first part that is the others' rounding, of either sign.
ROUNDING = (0.0, 5e-8, -5e-8, 9e-8, -1e-6)


def around(turn, size=(0.7, 0.8, 2.5)):
    """Return the rotation by 180 degrees about axis n: v becomes 2 (v.n) n - v."""
    axis = np.array(turn) / np.linalg.norm(turn)
    matrix = np.eye(4)
    matrix[:3, :3] = (2 * np.outer(axis, axis) - np.eye(3)) * size
    matrix[:3, 3] = AFFINE[:3, 3]
    return LPS @ matrix


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("square", ROUNDING)
def test_a_qform_rotation_of_180_degrees_is_exact(tmp_path, turn, square):
    """nifti1_io.c and nibabel set the first component of the quaternion to 0 there."""
    quatern = np.array(turn) * np.sqrt(1 - square)
    path = written(tmp_path / "a.nii", QFORM, (256, "3f", *quatern))
    np.testing.assert_allclose(read_volume(path).world_from_index, around(turn), atol=1e-6)
    if square >= -1e-7:  # further off nibabel refuses
        as_nibabel(path)
    second = written(
        tmp_path / "b.nii", (344, "i", 1), (348, "i", 0), (352, "3d", *quatern), kind=nib.Nifti2Image
    )
    np.testing.assert_allclose(read_volume(second).world_from_index, around(turn), atol=1e-6)


@pytest.mark.parametrize("square", [5e-7, 1e-6, 1e-4])
def test_a_qform_rotation_of_nearly_180_degrees_is_kept(tmp_path, square):
    quatern = np.array([0.48, 0.6, 0.64]) * np.sqrt(1 - square)
    path = written(tmp_path / "a.nii", QFORM, (256, "3f", *quatern))
    as_nibabel(path)
    assert np.abs(read_volume(path).world_from_index - around((0.48, 0.6, 0.64))).max() > 1e-3


def test_an_invalid_quaternion_is_refused(tmp_path):
    refused(written(tmp_path / "a.nii", QFORM, (256, "3f", 0.9, 0.9, 0.9)), "no rotation")


def sheared(path, off, *more):
    """Write a file whose sform is sheared by an amount, beside a qform that is not."""
    srow = AFFINE.copy()
    srow[:3, 0] += off * AFFINE[:3, 1] / np.linalg.norm(AFFINE[:3, 1]) * np.linalg.norm(AFFINE[:3, 0])
    return written(path, (SROW, "12f", *srow[:3].ravel()), *more)


def test_a_valid_qform_replaces_a_sheared_sform(tmp_path):
    path = sheared(tmp_path / "a.nii", 1.5e-3)
    np.testing.assert_allclose(read_volume(path).world_from_index, LPS @ AFFINE, atol=1e-4)
    # Alone, further off than half a millimeter, or beside another rotation it does not.
    refused(sheared(tmp_path / "b.nii", 1.5e-3, (CODES, "2h", 0, 1)), "right angles")
    refused(sheared(tmp_path / "c.nii", 0.3), "")
    np.testing.assert_allclose(
        read_volume(sheared(tmp_path / "d.nii", 1e-4)).world_from_index[0, 0],
        -(AFFINE[0, 0] + 1e-4 * 0.7 * AFFINE[0, 1] / 0.8),
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_voxel_type_is_read_as_image_and_labels(tmp_path, kind, order):
    array = (upright((4, 5, 6), np.int64).array % 120).astype(kind)
    path = written(tmp_path / "a.nii.gz", array=array, order=order)
    assert as_nibabel(path).array.dtype == (np.float32 if kind[0] == "f" else np.dtype(kind))
    np.testing.assert_array_equal(read_labels(path).array, array)


def test_float64_beyond_float32_and_invalid_dimensions_are_refused(tmp_path):
    refused(written(tmp_path / "a.nii", array=np.full((3, 4, 5), 1e300)), "not finite")
    for rank in (3, 4, 7):
        as_nibabel_shape = written(tmp_path / "b.nii", (40, "8h", rank, 6, 5, 4, 1, 1, 1, 1))
        np.testing.assert_array_equal(read_volume(as_nibabel_shape).array, ARRAY)
    refused(written(tmp_path / "c.nii", (40, "8h", 5, 6, 5, 4, 1, 3, 1, 1)), "one 3D volume")


def test_concatenated_gzip_members_and_trailing_bytes(tmp_path):
    whole = gzip.decompress(written(tmp_path / "a.nii.gz").read_bytes())
    parts = [gzip.compress(part) for part in (whole[:300], whole[300:400], whole[400:])]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(parts) + bytes(64))
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").array, ARRAY)
    (tmp_path / "c.nii.gz").write_bytes(b"".join(parts) + b"junk")
    refused(tmp_path / "c.nii.gz", "truncated or corrupt")


def test_pairs_and_other_formats_are_refused_in_one_line(tmp_path):
    nib.save(nib.Nifti1Pair(ARRAY.T, AFFINE), tmp_path / "a.hdr")
    for name in ("a.hdr", "a.img"):
        refused(tmp_path / name, "not a format that can be read")
    (tmp_path / "a.hdr").rename(tmp_path / "b.nii")
    refused(tmp_path / "b.nii", "single NIfTI")


def test_extensions_of_version_2_lie_before_the_voxels_too(tmp_path):
    image = nib.Nifti2Image(ARRAY.T, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"x" * 24))
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(as_nibabel(tmp_path / "a.nii").array, ARRAY)
    data = bytearray((tmp_path / "a.nii").read_bytes())
    for wrong in (0, 544, 560):
        struct.pack_into("<q", data, 168, wrong)
        (tmp_path / "b.nii").write_bytes(data)
        refused(tmp_path / "b.nii", "voxels are said to begin")


@pytest.mark.parametrize("size", [(27307, 1, 6), (3, 1, 1)])
def test_dimensions_of_freesurfer_surfaces_are_read_as_stored(tmp_path, size):
    """nibabel reads the first as 163842 x 1 x 1 voxels."""
    array = np.arange(np.prod(size), dtype=np.int32).reshape(size[::-1])
    path = written(tmp_path / "a.nii", (CODES, "2h", 0, 1), (SROW, "12f", *np.eye(4)[:3].ravel() * 0.1))
    head = bytearray(path.read_bytes()[:352])
    struct.pack_into("<8h", head, 40, 3, *size, 1, 1, 1, 1)
    struct.pack_into("<h", head, 70, 8)
    path.write_bytes(head + array.tobytes())
    np.testing.assert_array_equal(read_volume(path).array, array)


def test_nibabel_logs_nothing(tmp_path, capfd, caplog, recwarn):
    """nibabel logs repairs of a header by its own handler and quotes the file."""
    odd = [
        *((72, "h", 99), (CODES, "2h", 77, 1), (PIXDIM - 4, "f", 9), (344, "4s", b"n+1\1")),
        *((148, "80s", b"Zzyzx"), (68, "h", 12345), (39, "B", 255), (122, "b", 99)),
    ]
    with caplog.at_level(0):
        for number, edit in enumerate(odd):
            path = written(tmp_path / f"{number}.nii", edit)
            read_volume(path)
        refused(written(tmp_path / "type.nii", (70, "h", 12345)), "type 12345")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list
