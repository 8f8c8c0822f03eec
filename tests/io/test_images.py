import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from io_helpers import (
    ORIENTATIONS,
    SECRETS,
    SHARED,
    positions,
    raw_slices,
    rotation,
    stored,
    upright,
    write_series,
)
from isopose.errors import InputError, IsoposeError
from isopose.geometry.volume import Volume
from isopose.io.images import read_labels, read_volume, to_sitk, write_image, write_labels
from isopose.io.quiet import quiet_itk

ENDINGS = [".nii.gz", ".nii", ".nrrd", ".mha"]


def refused(path, *words, call=read_volume):
    with pytest.raises(InputError) as error:
        call(path)
    text = str(error.value)
    assert "\n" not in text
    assert path.name in text
    for word in words:
        assert word in text, text


def same_grid(one, two, tolerance):
    assert one.array.shape == two.array.shape
    np.testing.assert_allclose(one.world_from_index, two.world_from_index, rtol=0, atol=tolerance)


@pytest.mark.parametrize("ending", [".nii", ".nrrd"])
def test_all_48_storage_orientations_are_undone(tmp_path, ending):
    original = upright()
    where = positions(original)
    seen = set()
    for axes, flips in ORIENTATIONS:
        path = tmp_path / f"scan{ending}"
        write_image(stored(original, axes, flips), path)
        volume = read_volume(path)
        seen.add(volume.array.tobytes() + bytes(volume.array.shape))
        np.testing.assert_allclose(positions(volume), where, atol=1e-4)
        back = volume.reoriented()
        np.testing.assert_array_equal(back.array, original.array)
        same_grid(back, original, 1e-4)
    assert len(seen) == 48


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_on_all_48_grids_keep_the_exact_grid(tmp_path, ending):
    original = upright((3, 4, 5), np.uint8)
    for axes, flips in ORIENTATIONS:
        volume = stored(original, axes, flips)
        path = tmp_path / f"labels{ending}"
        write_labels(volume, path)
        back = read_labels(path, like=volume)
        assert back.array.dtype == np.uint8
        np.testing.assert_array_equal(back.array, volume.array)
        image = sitk.ReadImage(str(path))
        np.testing.assert_allclose(image.GetSpacing(), volume.spacing, rtol=1e-7)
        np.testing.assert_allclose(image.GetOrigin(), volume.origin, rtol=1e-7)
        np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), volume.direction, atol=1e-7)
        exact = read_volume(path)
        np.testing.assert_array_equal(exact.world_from_index, volume.world_from_index)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
    mirrored=st.booleans(),
    ending=st.sampled_from(ENDINGS),
)
def test_oblique_grids_there_and_back(tmp_path, angles, spacing, origin, mirrored, ending):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(angles) @ np.diag([1, 1, -1 if mirrored else 1]) * spacing
    matrix[:3, 3] = origin
    volume = Volume(upright((3, 4, 5)).array, matrix)
    path = tmp_path / f"oblique{ending}"
    write_image(volume, path)
    back = read_volume(path)
    np.testing.assert_array_equal(back.array, volume.array)
    # NIfTI holds float32: 900 mm to within 3e-5.
    same_grid(back, volume, 1e-4 if ".nii" in ending else 1e-10)
    again = tmp_path / f"again{ending}"
    write_image(back, again)
    same_grid(read_volume(again), back, 1e-6 if ".nii" in ending else 1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, bool])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_every_voxel_type_is_read(tmp_path, ending, dtype):
    array = (upright().array % 2).astype(dtype)
    path = tmp_path / f"scan{ending}"
    write_image(Volume(array), path)
    volume = read_volume(path)
    expected = {np.float64: np.float32, bool: np.uint8}.get(dtype, dtype)
    assert volume.array.dtype == expected
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.flags.writeable


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
def test_headers_with_detached_data_are_read(tmp_path, ending):
    image = sitk.GetImageFromArray(upright().array)
    image.SetSpacing((0.75, 0.5, 2.5))
    image.SetOrigin((-101.25, 33.5, -640))
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image, str(path))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, upright().array)
    same_grid(volume, upright(), 1e-12)
    for data in tmp_path.glob("scan.*raw*"):
        data.unlink()
    refused(path, "copy or export it again")


@pytest.mark.parametrize("ending", [*ENDINGS, ".zraw.mha"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_cut_off_files_are_refused_without_noise(tmp_path, capfd, ending, kept):
    array = np.random.default_rng(0).integers(-1000, 1000, (6, 30, 30)).astype(np.int16)
    path = tmp_path / f"scan{ending}"
    image = sitk.GetImageFromArray(array)
    sitk.WriteImage(image, str(path), useCompression="z" in ending)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    refused(path)
    assert capfd.readouterr().err == ""


def test_a_flipped_bit_in_a_compressed_file_is_refused(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_image(upright((6, 30, 30)), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    refused(path, "truncated or corrupt")


def test_a_damaged_compressed_metaimage_is_refused(tmp_path, capfd):
    # ITK returns a volume of garbage here, and tells standard error only.
    path = tmp_path / "scan.mha"
    write_image(upright((6, 30, 30)), path)
    data = bytearray(path.read_bytes())
    data[data.index(b"LOCAL") + 60] ^= 0x10
    path.write_bytes(data)
    refused(path, "truncated or corrupt")
    assert capfd.readouterr().err == ""


def outcome(path):
    """Return "" if a file can be read, else its one-line refusal; any other outcome fails."""
    try:
        read_volume(path)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".dcm"])
def test_damaged_bytes_never_end_in_a_traceback(tmp_path, capfd, ending):
    random = np.random.default_rng(sum(ending.encode()))
    folder = write_series(tmp_path / "series", raw_slices(3))
    path = folder / "003.dcm" if ending == ".dcm" else tmp_path / f"scan{ending}"
    if ending != ".dcm":
        write_image(upright(), path)
    original = path.read_bytes()
    outcomes = []
    for _ in range(60):
        data = bytearray(original)
        for offset in random.integers(0, min(len(data), 1000), random.integers(1, 4)):
            data[offset] = random.choice([0, 255, random.integers(256)])
        path.write_bytes(data)
        outcomes.append(outcome(folder if ending == ".dcm" else path))
    refusals = [text for text in outcomes if text]
    assert refusals
    assert not any("\n" in text or secret in text for text in refusals for secret in SECRETS)
    assert capfd.readouterr().err == ""


def test_reading_in_threads_restores_standard_error(tmp_path, capfd):
    path = tmp_path / "scan.mha"
    write_image(upright(), path)
    with ThreadPoolExecutor(4) as pool:
        for volume in pool.map(read_volume, [path] * 40):
            np.testing.assert_array_equal(volume.array, upright().array)
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


def test_unknown_formats_and_missing_files_are_refused(tmp_path, capfd):
    refused(tmp_path / "none.nii.gz", "no such file")
    for name in ("a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.mhd", "a.nhdr", "a.png", "a"):
        (tmp_path / name).write_text("hello world " * 100)
        refused(tmp_path / name)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(b"x" * 1000))
    refused(tmp_path / "b.nii.gz", "expected a NIfTI file")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_other_dimensions_and_vectors_are_refused(tmp_path, ending):
    image = sitk.GetImageFromArray(upright().array)
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image[:, :, 0], str(path))
    refused(path, "3D")
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(path))
    refused(path, "one 3D volume", "6 x 5 x 4 x 2")
    sitk.WriteImage(sitk.Compose([image, image]), str(path))
    refused(path)
    sitk.WriteImage(sitk.JoinSeries([image]), str(path))
    if ending == ".nrrd":  # ITK writes four axes without a patient space
        refused(path, "left and right are unknown")
        return
    np.testing.assert_array_equal(read_volume(path).array, upright().array)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused(tmp_path, ending, value):
    array = np.ones((3, 4, 5), np.float32)
    array[1, 2, 3] = value
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    refused(path, "not finite")


def test_float64_values_beyond_float32_are_refused(tmp_path):
    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 4, 5), 1e300)), str(path))
    refused(path, "not finite")


def test_shear_and_missing_orientation_are_refused(tmp_path):
    text = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 4 3\n"
        "space directions: (1,0,0) (0.2,1,0) (0,0,2)\nkinds: domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (0,0,0)\n\n"
    )
    path = tmp_path / "scan.nrrd"
    path.write_bytes(text.encode() + bytes(120))
    refused(path, "right angles")
    plain = text.replace("(0.2,1,0)", "(0,1,0)")
    path.write_bytes(plain.replace("left-posterior", "right-anterior").encode() + bytes(120))
    np.testing.assert_array_equal(np.diag(read_volume(path).world_from_index), [-1, -1, 2, 1])
    bare = "\n".join(line for line in plain.splitlines() if not line.startswith(("space", "kinds"))) + "\n\n"
    path.write_bytes(bare.encode() + bytes(120))
    refused(path, "left and right are unknown")


def test_label_values_must_be_whole_numbers_up_to_255(tmp_path):
    path = tmp_path / "labels.nii.gz"
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 2, 3], array[0, 0, 1] = 255, 2
    write_image(Volume(array), path)
    labels = read_labels(path)
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, array)
    for value, word in ((256, "0 to 255"), (-1, "0 to 255"), (0.5, "whole numbers"), (255.5, "0 to 255")):
        array[2, 2, 2] = value
        write_image(Volume(array), path)
        refused(path, word, call=read_labels)


def test_labels_are_read_on_the_grid_of_the_image(tmp_path):
    image = stored(upright(), (2, 0, 1), (True, False, True))
    path = tmp_path / "labels.nrrd"
    marked = upright((4, 5, 6), np.uint8)
    write_labels(stored(marked, (0, 1, 2), (False, True, False)), path)
    labels = read_labels(path, like=image)
    np.testing.assert_array_equal(labels.world_from_index, image.world_from_index)
    np.testing.assert_allclose(positions(labels), positions(marked), atol=1e-9)
    nearly = image.world_from_index.copy()
    nearly[:3, 3] += 0.02
    write_labels(Volume(labels.array, nearly), path)
    np.testing.assert_array_equal(read_labels(path, like=image).world_from_index, image.world_from_index)
    nearly[0, 3] += 0.3
    write_labels(Volume(labels.array, nearly), path)
    with pytest.raises(InputError, match=r"up to 0\.32 mm apart"):
        read_labels(path, like=image)
    write_labels(Volume(labels.array[:-1], image.world_from_index), path)
    with pytest.raises(InputError, match=r"6 x 4 x 4 voxels, the image has 6 x 4 x 5|voxels, the image has"):
        read_labels(path, like=image)
    mirrored = image.world_from_index.copy()
    mirrored[:, 0] *= -1
    write_labels(Volume(labels.array, mirrored), path)
    with pytest.raises(InputError, match="mm apart"):
        read_labels(path, like=image)


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    path = tmp_path / "new" / "labels.nii.gz"
    write_labels(Volume(np.ones((3, 4, 5), np.int64)), path)
    before = path.read_bytes()
    for bad in (np.full((3, 4, 5), 256), np.full((3, 4, 5), 0.5), np.full((3, 4, 5), -1)):
        with pytest.raises(ValueError, match="whole numbers"):
            write_labels(Volume(bad), path)

    def broken(header, file):
        file.write(b"half")
        raise OSError("an error\n disk full")

    monkeypatch.setattr(nib.Nifti1Header, "write_to", broken)
    with pytest.raises(IsoposeError, match=r"labels\.nii\.gz: cannot be written \(disk full\)"):
        write_labels(Volume(np.zeros((3, 4, 5))), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["labels.nii.gz"]
    for name in ("a.png", "a.mhd", "a.nhdr", "a"):
        with pytest.raises(InputError, match="cannot write this format"):
            write_image(Volume(np.zeros((3, 4, 5))), tmp_path / name)


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "f4", "f8", "i8"])
def test_nifti_files_equal_those_of_itk(tmp_path, kind):
    turn = Rotation.from_euler("zyx", (10, -20, 200), degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn * (0.7, 0.8, 2.5), (-101.5, 33.25, 1200.0)
    values = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(kind)
    # As a result is, that goes back to a scan's own axes: a view, its slices not one after the other.
    volume = Volume(values.transpose(2, 0, 1)[::-1], matrix)
    sitk.WriteImage(to_sitk(volume), str(tmp_path / "itk.nii"))
    for name in ("a.nii", "a.nii.gz", "b.nii.gz"):
        write_image(volume, tmp_path / name)
    itk, written = (tmp_path / "itk.nii").read_bytes(), (tmp_path / "a.nii").read_bytes()
    assert written[348:] == itk[348:]
    ours, theirs = (nib.Nifti1Header(data[:348]) for data in (written, itk))
    for field in theirs:
        if theirs[field].dtype.kind == "f":
            # The last digit of float32 may differ.
            np.testing.assert_allclose(ours[field], theirs[field], rtol=2e-7, atol=2e-8)
        else:
            np.testing.assert_array_equal(ours[field], theirs[field])
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()) == written
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_of_a_slightly_sheared_scan_keep_its_grid(tmp_path, ending):
    """ITK would write orthogonal axes."""
    affine = np.eye(4)
    affine[:3, :3] = rotation([10, 20, 30]) * [0.7, 0.8, 2.5]
    affine[:3, 0] += 9e-4 * 0.7 * affine[:3, 1] / 0.8
    affine[:3, 3] = (-120.5, 80.25, -300)
    scan = nib.Nifti1Image(upright((40, 50, 60)).array.T, affine)
    scan.set_qform(affine, 0)
    scan.set_sform(affine, 1)
    nib.save(scan, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    path = tmp_path / f"labels{ending}"
    write_labels(volume.with_array(volume.array % 4), path)
    labels = read_labels(path)
    np.testing.assert_array_equal(labels.array, volume.array % 4)
    np.testing.assert_allclose(labels.world_from_index, volume.world_from_index, rtol=0, atol=1e-5)
    if ending.startswith(".nii"):
        np.testing.assert_allclose(nib.load(path).affine, affine, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["A.NII.GZ", "a.Nii", "ä b.nii.gz"])
def test_file_names_keep_their_spelling(tmp_path, name):
    volume = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    write_image(volume, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, volume.array)


def test_more_slices_than_nifti_holds_are_refused(tmp_path):
    volume = Volume(np.zeros((32768, 1, 1), np.uint8))
    with pytest.raises(IsoposeError, match="NIfTI holds at most 32767 slices, got 32768"):
        write_image(volume, tmp_path / "a.nii.gz")
    write_image(volume, tmp_path / "a.nrrd")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nrrd"]
    assert read_volume(tmp_path / "a.nrrd").array.shape == volume.array.shape


def test_written_files_are_compressed(tmp_path):
    volume = Volume(np.zeros((40, 50, 60), np.uint8))
    for ending in (".nii.gz", ".nrrd", ".mha"):
        write_labels(volume, tmp_path / f"a{ending}")
        assert (tmp_path / f"a{ending}").stat().st_size < 5000


def test_quiet_suppresses_messages_of_itk(capfd):
    with quiet_itk():
        os.write(2, b"a progress bar")
    assert capfd.readouterr().err == "a progress bar"
    for message in (
        b"Warning: In /build/gdcmAttribute.h, line 12, function Set\nValue Mustermann is not valid\n",
        b"[nrrd] read_header: couldn't parse Mustermann\n",
    ):
        with quiet_itk():
            os.write(2, message)
        assert capfd.readouterr().err == ""

    def fail():
        with quiet_itk():
            os.write(2, b"chatter")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capfd.readouterr().err == ""
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


@pytest.mark.skipif(not (SHARED / "kits19-masks").is_dir(), reason="../shared/data/kits19-masks is not there")
@pytest.mark.parametrize(("case", "thick"), [("case_00004", 4.0), ("case_00012", 5.0), ("case_00037", 5.0)])
def test_kits19_masks_are_upright(case, thick):
    labels = read_labels(SHARED / "kits19-masks" / case / "segmentation.nii.gz")
    assert labels.array.shape[:2] == (512, 512)  # the axial axis is stored first in the file: last here
    back = labels.reoriented()
    assert back.spacing[2] == pytest.approx(thick)
    assert back.array.shape[1:] == (512, 512)
    mask = back.array[:, ::2, ::2] > 0
    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())[1:]
    largest = np.argsort(sizes)[-2:] + 1
    assert count >= 2
    assert sizes[largest - 1].min() * np.prod(back.spacing) * 4 > 3e4  # two organs, not crumbs
    (z1, y1, x1), (z2, y2, x2) = ndimage.center_of_mass(mask, parts, largest)
    left_right, front_back, head_foot = np.abs(
        np.array([2 * (x1 - x2), 2 * (y1 - y2), z1 - z2]) * back.spacing
    )
    assert left_right > 80
    assert front_back < 60
    assert head_foot < 90


@pytest.mark.skipif(not (SHARED / "real-ct").is_dir(), reason="../shared/data/real-ct is not there")
def test_real_organs_are_on_their_sides():
    image = read_volume(SHARED / "real-ct" / "abdomen.nii.gz")
    labels = read_labels(SHARED / "real-ct" / "abdomen-organs.nii.gz", like=image).reoriented()
    right, left, liver = (
        (labels.world_from_index @ [*ndimage.center_of_mass(labels.array == v)[::-1], 1])[:3]
        for v in (2, 3, 5)
    )
    assert left[0] > right[0] + 60  # x grows to the patient's left
    assert liver[0] < left[0]
    assert liver[2] > right[2]  # the liver stands above the right kidney
    assert liver[1] < right[1]  # and in front of it
    assert image.array[image.array > -200].mean() > -100
    scan = read_volume(SHARED / "real-ct" / "dicom-series")
    organs = read_labels(SHARED / "real-ct" / "dicom-series-organs.nii.gz", like=scan)
    np.testing.assert_array_equal(organs.world_from_index, scan.world_from_index)
    assert 80 < np.median(scan.array[organs.array == 5]) < 150  # contrast-enhanced liver, in HU
    assert 100 < np.median(scan.array[organs.array == 52]) < 400  # aorta


@pytest.mark.parametrize("name", [b"\xff.mha", b"\xff.nrrd", b"\xff.dcm", b"\xff.nii.gz"])
def test_names_that_are_not_utf8_are_reported(tmp_path, name):
    """SimpleITK crashes on such names; NIfTI files are read and written without it."""
    volume = upright()
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    if name.endswith(b".dcm"):
        (first, *_) = write_series(tmp_path / "series", raw_slices(1)).iterdir()
        first.rename(path)
        with pytest.raises(InputError, match="name is not UTF-8; rename it"):
            read_volume(path)
        return
    if name.endswith(b".nii.gz"):
        write_image(volume, path)
        np.testing.assert_array_equal(read_volume(path).array, volume.array)
        return
    with pytest.raises(InputError, match="name is not UTF-8; rename it"):
        write_image(volume, path)
    plain = tmp_path / f"plain{os.fsdecode(name[1:])}"
    write_image(volume, plain)
    plain.rename(path)
    with pytest.raises(InputError, match="name is not UTF-8; rename it"):
        read_volume(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".dcm", ".zip", ""])
def test_a_named_pipe_is_refused_without_waiting(tmp_path, ending):
    path = tmp_path / f"scan{ending}"
    os.mkfifo(path)
    for read in (read_volume, read_labels):
        with pytest.raises(InputError, match=r"scan.*: is neither a file nor a folder"):
            read(path)
