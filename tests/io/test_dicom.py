import shutil

import numpy as np
import pydicom
import pytest

from io_helpers import SECRETS, SHARED, dicom_slice, enhanced, raw_slices, rotation, save, write_series
from isopose.errors import InputError
from isopose.io.dicom_files import is_dicom
from isopose.io.images import read_volume

REAL = SHARED / "real-ct" / "dicom-series"
real = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/real-ct is not there")


def refused(path, *words, series=None):
    """Assert that a path is refused in one line that contains the words and names no patient."""
    with pytest.raises(InputError) as error:
        read_volume(path, series)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    for word in words:
        assert word in text, text
    # The folder's own name may hold anything; what we add must not.
    for secret in SECRETS:
        assert secret not in text
    assert error.value.__cause__ is None
    return text


@real
def test_real_series_equals_an_independent_reading():
    volume = read_volume(REAL)
    slices = [pydicom.dcmread(path) for path in REAL.iterdir()]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    expected = np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, expected)
    rows, columns = (float(v) for v in slices[0].PixelSpacing)
    np.testing.assert_allclose(volume.spacing, [columns, rows, 2.0], rtol=1e-12)
    np.testing.assert_allclose(volume.origin, np.array(slices[0].ImagePositionPatient, float), atol=1e-9)
    last = volume.world_from_index @ [0, 0, 19, 1]
    np.testing.assert_allclose(last[:3], np.array(slices[-1].ImagePositionPatient, float), atol=1e-9)
    np.testing.assert_array_equal(volume.direction, np.eye(3))


@real
def test_real_series_with_gap_and_shuffled_names(tmp_path):
    ordered = sorted(
        REAL.iterdir(), key=lambda p: float(pydicom.dcmread(p, stop_before_pixels=True).SliceLocation)
    )
    for i, source in enumerate(ordered[:6]):
        shutil.copy(source, tmp_path / f"{(i * 5) % 6}.dcm")
    whole, part = read_volume(REAL), read_volume(tmp_path)
    np.testing.assert_array_equal(part.array, whole.array[:6])
    np.testing.assert_array_equal(part.world_from_index, whole.world_from_index)
    (tmp_path / f"{(3 * 5) % 6}.dcm").unlink()
    refused(tmp_path, "slices are missing (about 1)", "4.00 mm", "2.00 mm is usual")


def test_slices_are_sorted_by_position_and_rescaled_to_hu(tmp_path):
    raw = raw_slices()
    volume = read_volume(write_series(tmp_path, raw))
    np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024)
    expected = np.diag([0.75, 0.5, 2.0, 1.0])  # PixelSpacing tells the distance between rows first
    expected[:3, 3] = (-10, 20, -300)
    np.testing.assert_allclose(volume.world_from_index, expected, atol=1e-12)


def test_a_file_of_a_series_reads_the_whole_series(tmp_path):
    raw = raw_slices()
    write_series(tmp_path, raw)
    write_series(tmp_path / "other", raw_slices(seed=1), series="1.2.9")
    for path in (tmp_path / "other").iterdir():
        path.rename(tmp_path / f"b{path.name}")
    volume = read_volume(tmp_path / "003.dcm")
    np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024)


def test_files_without_suffix_and_in_subfolders_are_read(tmp_path):
    raw = raw_slices()
    for path in write_series(tmp_path / "DICOM" / "A", raw).iterdir():
        path.rename(path.with_suffix(""))
    (tmp_path / "DICOM" / "A" / "notes.txt").write_text("no DICOM")
    (tmp_path / "DICOMDIR").write_bytes(b"x")
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)
    np.testing.assert_array_equal(read_volume(tmp_path / "DICOM" / "A" / "003").array, raw.astype(int) - 1024)


@pytest.mark.parametrize(
    ("orientation", "step"),
    [
        ((-1, 0, 0, 0, -1, 0), (0, 0, 2)),  # prone: the picture is turned, the patient's left stays left
        ((-1, 0, 0, 0, 1, 0), (0, 0, -2)),  # feet first
        ((1, 0, 0, 0, 0, -1), (0, 2, 0)),  # coronal
        ((0, 1, 0, 0, 0, -1), (2, 0, 0)),  # sagittal
    ],
)
def test_any_patient_position_keeps_left_and_right(tmp_path, orientation, step):
    raw = np.zeros((5, 6, 7), np.uint16)
    raw[1, 2, 5] = 3000
    volume = read_volume(write_series(tmp_path, raw, step=step, orientation=orientation))
    k, j, i = np.argwhere(volume.array == 3000 - 1024)[0]
    world = volume.world_from_index @ [i, j, k, 1]
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    expected = np.array([-10, 20, -300]) + np.multiply(1, step) + 5 * 0.75 * row + 2 * 0.5 * column
    np.testing.assert_allclose(world[:3], expected, atol=1e-9)
    assert np.linalg.det(volume.direction) == pytest.approx(1)


def test_oblique_series_are_read(tmp_path):
    turn = rotation([10, -7, 25])
    raw = raw_slices()
    orientation = [*turn[:, 0], *turn[:, 1]]
    volume = read_volume(write_series(tmp_path, raw, step=2.0 * turn[:, 2], orientation=orientation))
    np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024)
    np.testing.assert_allclose(volume.direction, turn, atol=1e-9)


def test_gaps_duplicates_and_uneven_slices_are_refused(tmp_path):
    raw = raw_slices(8)
    refused(write_series(tmp_path / "gap", raw, skip=(3, 4)), "slices are missing (about 2)", "6.00 mm")
    write_series(tmp_path / "double", raw)
    save(dicom_slice(raw[0], (-10, 20, -296)), tmp_path / "double" / "again.dcm")
    refused(tmp_path / "double", "several slices at one position", "(1 too many)", "again.dcm")
    write_series(tmp_path / "uneven", raw)
    save(dicom_slice(raw[0], (-10, 20, -298.3)), tmp_path / "uneven" / "010.dcm")
    refused(tmp_path / "uneven", "unevenly spaced", "1.70 mm")


def test_rounded_positions_count_as_even(tmp_path):
    raw = raw_slices(9)
    for i, pixels in enumerate(raw):
        save(dicom_slice(pixels, (-10, 20, round(-300 + 0.625 * i, 2))), tmp_path / f"{i}.dcm")
    assert read_volume(tmp_path).spacing[2] == pytest.approx(0.625, abs=1e-3)


def test_gantry_tilt_and_shifted_slices_are_refused(tmp_path):
    raw = raw_slices()
    angle = np.radians(12)
    tilted = write_series(tmp_path / "tilt", raw, orientation=(1, 0, 0, 0, np.cos(angle), np.sin(angle)))
    refused(tilted, "tilted gantry (12.0 degrees)")
    write_series(tmp_path / "shift", raw)
    save(dicom_slice(raw[0], (-8, 20, -296)), tmp_path / "shift" / "017.dcm")
    refused(tmp_path / "shift", "shifted against each other by up to 2.00 mm")


def test_one_of_several_series_must_be_chosen(tmp_path):
    raw, more = raw_slices(), raw_slices(3, seed=2)
    write_series(tmp_path, raw)
    for path in write_series(tmp_path / "x", more, series="1.2.9", SeriesNumber=7).iterdir():
        path.rename(tmp_path / f"x{path.name}")
    refused(tmp_path, "got 2", "series 4 (CT, 5 images)", "series 7 (CT, 3 images)", "choose one")
    np.testing.assert_array_equal(read_volume(tmp_path, "7").array, more.astype(int) - 1024)
    np.testing.assert_array_equal(read_volume(tmp_path, "1.2.3").array, raw.astype(int) - 1024)
    refused(tmp_path, "no series '9'", "series 4", series="9")


def test_two_series_with_the_same_number_are_refused(tmp_path):
    write_series(tmp_path, raw_slices())
    for path in write_series(tmp_path / "x", raw_slices(3), series="1.2.9").iterdir():
        path.rename(tmp_path / f"x{path.name}")
    refused(tmp_path, "got 2", "one of its files", series="4")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"ImageOrientationPatient": [0.0, 1, 0, 0, 0, -1]}, "orientation"),
        ({"PixelSpacing": [0.5, 0.8]}, "pixel size"),
        ({"Rows": 7, "Columns": 6}, "image size (6 x 7, 7 x 6)"),
        ({"RescaleIntercept": None}, "without rescale"),
        ({"RescaleSlope": 0}, "without rescale"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME2"),
        ({"Modality": "MR"}, "modality (CT, MR)"),
    ],
)
def test_a_slice_unlike_the_others_is_refused(tmp_path, fields, word):
    raw = raw_slices()
    write_series(tmp_path, raw)
    save(dicom_slice(raw[2], (-10, 20, -296), **fields), tmp_path / "017.dcm")
    refused(tmp_path, word)


def test_scouts_and_other_objects_are_left_out(tmp_path):
    raw = raw_slices()
    write_series(tmp_path, raw)
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    coronal = {"orientation": (1, 0, 0, 0, 0, -1), "ImageType": scout}
    save(dicom_slice(raw[0], (0, 0, 0), **coronal), tmp_path / "scout.dcm")
    save(dicom_slice(raw[0], (0, 0, 0), series="1.2.8", **coronal), tmp_path / "scout2.dcm")
    save(dicom_slice(raw[0], (0, 0, 0), series="1.2.7", Modality="SEG"), tmp_path / "seg.dcm")
    save(dicom_slice(raw[0], (0, 0, 0), series="1.2.6", ImagePositionPatient=None), tmp_path / "dose.dcm")
    for path in (tmp_path, tmp_path / "003.dcm"):
        np.testing.assert_array_equal(read_volume(path).array, raw.astype(int) - 1024)
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(tmp_path / "scout.dcm", only)
    refused(only, "no DICOM image series", "scout views left out: 1")


def test_multi_frame_in_any_order(tmp_path):
    raw = raw_slices()
    path = save(enhanced(raw, (3, 0, 4, 2, 1)), tmp_path / "enhanced.dcm")
    for source in (path, tmp_path):
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.array, raw.astype(int) - 1024)
        np.testing.assert_allclose(volume.origin, (-10, 20, -300))
        np.testing.assert_allclose(volume.spacing, (0.75, 0.5, 2))


def test_multi_frame_without_positions_is_refused(tmp_path):
    data = enhanced(raw_slices(), range(5))
    del data.PerFrameFunctionalGroupsSequence
    save(data, tmp_path / "a.dcm")
    refused(tmp_path, "no DICOM image series")
    refused(tmp_path / "a.dcm", "position, orientation and pixel size")


def test_slope_and_intercept_of_each_slice_are_applied(tmp_path):
    raw = raw_slices(3)
    for i, (slope, intercept) in enumerate([(1, -1024), (0.5, -500), (2, -1000)]):
        data = dicom_slice(raw[i], (0, 0, 2 * i), RescaleSlope=slope, RescaleIntercept=intercept)
        save(data, tmp_path / f"{i}.dcm")
    volume = read_volume(tmp_path)
    expected = np.stack([raw[0] - 1024.0, raw[1] * 0.5 - 500, raw[2] * 2.0 - 1000])
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, expected)


def test_wide_values_do_not_wrap(tmp_path):
    raw = raw_slices(3)
    raw[1, 0, 0] = 60000
    wide = {"BitsStored": 16, "HighBit": 15, "RescaleIntercept": 0}
    volume = read_volume(write_series(tmp_path, raw, **wide))
    assert volume.array.dtype == np.int32
    np.testing.assert_array_equal(volume.array, raw)


@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("kept", [0, 100, 140, 400, 700, 5000, 8000])
def test_damaged_file_is_refused_without_noise(tmp_path, capfd, kept, suffix):
    raw = np.random.default_rng(0).integers(0, 4096, (4, 64, 64)).astype(np.uint16)
    for path in write_series(tmp_path, raw).iterdir():
        path.rename(path.with_suffix(suffix))
    path = tmp_path / f"003{suffix}"  # the first slice: without it there is no gap to be seen
    path.write_bytes(path.read_bytes()[:kept])
    if not suffix and kept == 100:
        assert read_volume(tmp_path).array.shape[0] == 3  # nothing is left that says DICOM
        return
    with pytest.raises(InputError) as error:
        read_volume(tmp_path)
    assert not any(secret in str(error.value) for secret in SECRETS)
    assert capfd.readouterr().err == ""


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    refused(tmp_path, "no DICOM image series")
    assert not is_dicom(tmp_path / "a.txt")
    (tmp_path / "b.dcm").write_bytes(b"\0" * 400)
    assert not is_dicom(tmp_path / "b.dcm")


def test_a_single_slice_has_its_thickness_as_spacing(tmp_path):
    volume = read_volume(write_series(tmp_path, raw_slices(1)))
    assert volume.array.shape == (1, 6, 7)
    assert volume.spacing[2] == 3
