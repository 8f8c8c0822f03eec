"""``isopose.wrap``: a function sees homogenized images; its results are restored to the images' own grids."""

import logging

import numpy as np
import pytest
import SimpleITK as sitk

import isopose
from bright import dice, make_scene
from isopose.api.images import LPS_FROM_RAS
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.images import to_sitk

SCENE = make_scene(roll=0.4, slices=4)


@pytest.fixture(scope="module")
def homogenizer() -> isopose.Homogenizer:
    return isopose.Homogenizer(size=192)


def left_and_right(volume: Volume) -> np.ndarray:
    """Label bright voxels: 1 on the patient's left (x > 0 on the homogenized grid), 2 on the right."""
    x = volume.world_from_index[0, 3] + volume.world_from_index[0, 0] * np.arange(volume.array.shape[2])
    return np.where(volume.array > 145, np.where(x > 0, 1, 2), 0).astype(np.uint8)


def test_a_label_map_is_restored_to_the_images_grid_and_side(homogenizer) -> None:
    seen = []

    def segment(volume: Volume) -> Volume:
        """Mark both sides."""
        seen.append(volume)
        return volume.with_array(left_and_right(volume))

    wrapped = isopose.wrap(segment, homogenizer)
    assert wrapped.__doc__ == "Mark both sides."
    result = wrapped(SCENE.volume)
    assert seen[0].array.shape == (4, 192, 192)
    np.testing.assert_array_equal(result.world_from_index, SCENE.volume.world_from_index)
    assert result.array.dtype == np.uint8
    # The mass is on the patient's left.
    assert dice(result.array == 1, SCENE.truth > 0) >= 0.95
    assert np.count_nonzero(result.array == 2) == 0


def test_probabilities_are_restored_and_missing_mass_is_background() -> None:
    def segment(image: sitk.Image) -> dict[str, sitk.Image]:
        share = sitk.Cast(image > 145, sitk.sitkFloat32) * 0.75
        return {"background": 1 - share, "mass": share}

    result = isopose.wrap(segment, size=192)(to_sitk(SCENE.volume))
    assert [*result] == ["mass", "background"]
    assert result["mass"].GetSize() == SCENE.volume.array.shape[::-1]
    assert result["mass"].GetOrigin() == pytest.approx(SCENE.volume.origin)
    mass, rest = (sitk.GetArrayFromImage(result[name]) for name in ("mass", "background"))
    np.testing.assert_allclose(mass + rest, 1.0, atol=1e-5)
    assert dice(mass > 0.375, SCENE.truth > 0) >= 0.95
    assert mass.max() == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR"])
def test_a_label_map_in_another_storage_order_keeps_its_sides(homogenizer, axes) -> None:
    """A program that reads with nibabel may return arrays in (x, y, z) order; isopose wrap accepts them."""

    def segment(image: sitk.Image) -> sitk.Image:
        return sitk.DICOMOrient(sitk.Cast(image > 145, sitk.sitkUInt8), axes)

    image = to_sitk(SCENE.volume)
    result = isopose.wrap(segment, homogenizer)(image)
    shares = isopose.wrap(lambda i: {"mass": sitk.Cast(segment(i), sitk.sitkFloat32)}, homogenizer)(image)
    for one in (result, sitk.Cast(shares["mass"] > 0.5, sitk.sitkUInt8)):
        assert one.GetOrigin() == pytest.approx(image.GetOrigin())
        assert dice(sitk.GetArrayFromImage(one) > 0, SCENE.truth > 0) >= 0.95


def test_array_affine_pairs_and_paths_are_accepted(homogenizer, tmp_path) -> None:
    array = SCENE.volume.array.transpose(2, 1, 0)
    pair = (array, LPS_FROM_RAS @ SCENE.volume.world_from_index)
    result, affine = isopose.wrap(lambda p: ((p[0] > 145).astype(np.uint8), p[1]), homogenizer)(pair)
    np.testing.assert_allclose(affine, pair[1])
    sitk.WriteImage(to_sitk(SCENE.volume), str(tmp_path / "scan.nrrd"))
    image = isopose.wrap(lambda i: sitk.Cast(i > 145, sitk.sitkUInt8), homogenizer)(tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), result.transpose(2, 1, 0))
    assert dice(result.transpose(2, 1, 0) > 0, SCENE.truth > 0) >= 0.95


def test_warnings_of_the_pose_are_logged(homogenizer, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="isopose"):
        isopose.wrap(lambda v: v.with_array((v.array > 145).astype(np.uint8)), homogenizer)(SCENE.volume)
    assert [r.getMessage() for r in caplog.records] == list(homogenizer.transform(SCENE.volume).warnings)


@pytest.mark.parametrize(
    ("answer", "err"),
    [
        (lambda v: v.with_array(v.array.astype(np.float32) / 7), "whole numbers from 0 to 255"),
        (lambda v: SCENE.volume.with_array(SCENE.truth), "what the function returned: does not lie on"),
        (lambda v: {"mass": SCENE.volume}, "what the function returned: does not lie on"),
        (lambda v: None, "what the function returned: expected an image with its position"),
        (
            lambda v: v.array > 145,
            "what the function returned: expected an image with its position in the patient",
        ),
        (lambda v: {"background": v}, "no class but the background"),
        (lambda v: {"mass": v}, "mass: expected probabilities from 0 to 1"),
        (lambda v: {"mass": v.with_array(np.full(v.array.shape, np.nan, np.float32))}, "got values from nan"),
    ],
    ids=("image", "grid", "grid of a class", "nothing", "array", "background", "logits", "nan"),
)
def test_invalid_return_values_of_the_function_are_refused(answer, err, homogenizer) -> None:
    with pytest.raises(InputError, match=err):
        isopose.wrap(answer, homogenizer)(SCENE.volume)


def test_an_argument_that_is_not_callable_is_refused_at_once(homogenizer) -> None:
    with pytest.raises(InputError, match="expected a function of an image, got int"):
        isopose.wrap(3, homogenizer)


def test_settings_beside_a_homogenizer_are_refused(homogenizer) -> None:
    with pytest.raises(InputError, match="leave size, per out"):
        isopose.wrap(lambda v: v, homogenizer, size=64, per="slice")
    with pytest.raises(InputError, match="size"):
        isopose.wrap(lambda v: v, size=3)
