"""Rescale slope and intercept of each frame, at every level where they may be stored."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_rescale

from io_helpers import SECRETS, dicom_slice, enhanced, raw_slices, save
from isopose.errors import InputError
from isopose.io.images import read_volume

HU = np.random.default_rng(1).integers(-1000, 1500, (6, 6, 7))


def pair_item(slope=None, intercept=None, kind="HU"):
    """Make an item of the pixel value transformation sequence; None leaves an element out."""
    item = Dataset()
    for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept), ("RescaleType", kind)):
        if value is not None:
            setattr(item, name, value)
    return item


def stored(pairs):
    """Return the stored values that give :data:`HU` by the slope and intercept of each slice."""
    return np.stack([(hu - pair[1]) / pair[0] for hu, pair in zip(HU, pairs, strict=True)]).astype(np.uint16)


def set_pairs(data, order, *, frames=None, shared=None, file=None):
    """Write slopes and intercepts into an enhanced file; ``frames`` is by slice, None for frames without."""
    for number, i in enumerate(order):
        if frames is not None and frames[i] is not None:
            group = data.PerFrameFunctionalGroupsSequence[number]
            group.PixelValueTransformationSequence = [pair_item(*frames[i])]
    group = data.SharedFunctionalGroupsSequence[0]
    if shared is None:
        del group.PixelValueTransformationSequence
    else:
        group.PixelValueTransformationSequence = [pair_item(*shared)]
    if file is not None:
        data.RescaleSlope, data.RescaleIntercept = file
    data.BitsStored, data.HighBit = 16, 15
    return data


ALTERNATING = [(1, -1024), (0.5, -1024)] * 3
OWN = [(1, -1000), (2, -1000), (1, -2000), (0.5, -1500), (0.25, -1024), (1, -1001)]


@pytest.mark.parametrize(
    ("pairs", "places"),
    [
        ([(1, -1024)] * 6, {"shared": (1, -1024)}),
        ([(1, -1024)] * 6, {"file": (1, -1024)}),
        ([(1, -1024)] * 6, {"frames": [(1, -1024)] * 6}),
        (ALTERNATING, {"frames": ALTERNATING}),
        (OWN, {"frames": OWN}),
        (OWN, {"frames": OWN, "shared": (3, -7)}),
        (OWN, {"frames": OWN, "file": (3, -7)}),
        ([(0.5, -1024)] * 6, {"shared": (0.5, -1024), "file": (3, -7)}),
        (ALTERNATING, {"frames": [None, (0.5, -1024)] * 3, "shared": (1, -1024)}),
        (ALTERNATING, {"frames": [None, (0.5, -1024)] * 3, "file": (1, -1024)}),
        # An item with nothing in it says nothing.
        (ALTERNATING, {"frames": [(None, None), (0.5, -1024)] * 3, "shared": (1, -1024)}),
        ([(-1, 1500)] * 6, {"shared": (-1, 1500)}),
    ],
)
def test_rescaling_of_enhanced_files_is_read_from_all_three_levels(tmp_path, pairs, places):
    raw, order = stored(pairs), (3, 0, 4, 2, 1, 5)
    save(set_pairs(enhanced(raw, order), order, **places), tmp_path / "enhanced.dcm")
    expected = np.stack([r * float(s) + i for r, (s, i) in zip(raw, pairs, strict=True)])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, expected.astype(np.float32))
    assert np.abs(volume.array - HU).max() < 2  # rounded to the stored values, never by another pair
    # The places are those of the plain series.
    for i, pixels in enumerate(raw):
        save(dicom_slice(pixels, (-10, 20, -300 + 2 * i)), tmp_path / "plain" / f"{i}.dcm")
    assert read_volume(tmp_path / "plain").grid_distance(volume) < 1e-9


def test_each_slice_may_have_its_own_rescaling_as_in_pet(tmp_path):
    raw = raw_slices(6)
    expected = []
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (0, 0, 2 * i), Modality="PT")
        data.RescaleSlope, data.RescaleIntercept = 0.013 * (i + 1), 0
        data.RescaleType = "BQML"
        expected.append(apply_rescale(data.pixel_array, data))
        save(data, tmp_path / f"{i}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, np.stack(expected).astype(np.float32))


@pytest.mark.parametrize(
    ("slope", "intercept"), [(-1, 3000), (2, -1024), (1, -1024.5), ("1.0E0", "-1.024E3")]
)
def test_any_slope_and_intercept(tmp_path, slope, intercept):
    raw = raw_slices(3)
    for i, pixels in enumerate(raw):
        fields = {"RescaleSlope": slope, "RescaleIntercept": intercept}
        save(dicom_slice(pixels, (0, 0, 2 * i), **fields), tmp_path / f"{i}.dcm")
    expected = raw * float(slope) + float(intercept)
    np.testing.assert_array_equal(read_volume(tmp_path).array, expected.astype(np.float32))


def refused(path, word):
    with pytest.raises(InputError) as error:
        read_volume(path)
    text = str(error.value)
    assert word in text, text
    assert "\n" not in text
    assert not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    "fields",
    [
        *({"RescaleSlope": 0}, {"RescaleSlope": ""}, {"RescaleIntercept": ""}, {"RescaleSlope": None}),
        *({"RescaleIntercept": None}, {"RescaleSlope": "nan"}, {"RescaleIntercept": "nan"}),
        *({"RescaleSlope": "inf"}, {"RescaleSlope": [1, 2]}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_unusable_rescaling_of_one_slice_is_refused(tmp_path, fields, modality):
    for i, pixels in enumerate(raw_slices(3)):
        odd = fields if i == 1 else {}
        save(dicom_slice(pixels, (0, 0, 2 * i), Modality=modality, **odd), tmp_path / f"{i}.dcm")
    refused(tmp_path, "without rescale slope and intercept that can be used")


def test_ct_without_rescaling_is_refused_and_mr_is_read(tmp_path):
    raw = raw_slices(3)
    for modality in ("CT", "MR"):
        for i, pixels in enumerate(raw):
            fields = {"Modality": modality, "RescaleSlope": None, "RescaleIntercept": None}
            save(dicom_slice(pixels, (0, 0, 2 * i), **fields), tmp_path / modality / f"{i}.dcm")
    refused(tmp_path / "CT", "without rescale slope and intercept, so their values are not HU")
    np.testing.assert_array_equal(read_volume(tmp_path / "MR").array, raw)


@pytest.mark.parametrize("modality", ["ct", "Ct ", ["CT", "MR"], "", "CT1", "Erika"])
def test_the_storage_class_says_that_values_must_be_hu(tmp_path, modality):
    raw = raw_slices(3)
    with pydicom.config.disable_value_validation():
        for i, pixels in enumerate(raw):
            position = (0, 0, 2 * i)
            save(dicom_slice(pixels, position, Modality=modality), tmp_path / "hu" / str(i))
            bare = {"Modality": modality, "RescaleSlope": None, "RescaleIntercept": None}
            save(dicom_slice(pixels, position, **bare), tmp_path / "bare" / str(i))
    np.testing.assert_array_equal(read_volume(tmp_path / "hu").array, raw.astype(int) - 1024)
    refused(tmp_path / "bare", "has CT images without rescale slope and intercept")


@pytest.mark.parametrize("frames", [[(1, None)], [(None, -1024)], [(0, -1024)]])
def test_an_incomplete_rescaling_of_a_frame_is_not_completed_from_the_shared_one(tmp_path, frames):
    order = range(6)
    data = set_pairs(enhanced(raw_slices(6), order), order, frames=[*frames, *[None] * 5], shared=(1, -1024))
    save(data, tmp_path / "a.dcm")
    refused(tmp_path, "that can be used")


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_lookup_table_is_refused(tmp_path, both, modality):
    for i, pixels in enumerate(raw_slices(3)):
        data = dicom_slice(pixels, (0, 0, 2 * i), Modality=modality)
        table = Dataset()
        table.add_new(0x00283002, "US", [4096, 0, 16])
        table.ModalityLUTType = "HU"
        table.add_new(0x00283006, "OW", np.arange(4096, dtype="<u2").tobytes())
        data.ModalityLUTSequence = [table]
        if not both:
            del data.RescaleSlope, data.RescaleIntercept
        save(data, tmp_path / f"{i}.dcm")
    refused(tmp_path, "Modality LUT")


@pytest.mark.parametrize("kind", ["HU", "hu ", "", None, "Hounsfield Units"])
def test_rescale_types_that_mean_hu(tmp_path, kind):
    raw = raw_slices(3)
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (0, 0, 2 * i))
        if kind is not None:
            data.RescaleType = kind
        save(data, tmp_path / f"{i}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)


@pytest.mark.parametrize("kind", ["OD", "US", "Z_EFF", "ED", "HU_MOD", "Muster"])
def test_rescale_types_of_other_quantities_are_refused(tmp_path, kind):
    for i, pixels in enumerate(raw_slices(3)):
        data = dicom_slice(pixels, (0, 0, 2 * i))
        data.RescaleType = kind
        save(data, tmp_path / "classic" / f"{i}.dcm")
    refused(tmp_path / "classic", "rescale type is not HU")
    data = enhanced(raw_slices(), range(5))
    data.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = kind
    save(data, tmp_path / "enhanced" / "a.dcm")
    refused(tmp_path / "enhanced", "rescale type is not HU")


def test_real_world_values_are_not_used(tmp_path):
    raw = raw_slices(3)
    for i, pixels in enumerate(raw):
        data = dicom_slice(pixels, (0, 0, 2 * i))
        item = Dataset()
        item.add_new(0x00409211, "US", 4095)
        item.add_new(0x00409216, "US", 0)
        item.RealWorldValueSlope, item.RealWorldValueIntercept = 7.0, 3.0
        data.RealWorldValueMappingSequence = [item]
        save(data, tmp_path / f"{i}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, raw.astype(int) - 1024)


def test_values_beyond_int32_are_kept(tmp_path):
    raw = raw_slices(2)
    for i, pixels in enumerate(raw):
        fields = {"Modality": "PT", "RescaleSlope": 2_000_000, "RescaleIntercept": 0}
        save(dicom_slice(pixels, (0, 0, 2 * i), **fields), tmp_path / f"{i}.dcm")
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, (raw * 2e6).astype(np.float32))
