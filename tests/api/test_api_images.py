import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor

from io_helpers import ORIENTATIONS, positions, rotation, stored, upright
from isopose.api.images import as_volume, like
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.images import to_sitk, write_image

KINDS = ("sitk", "numpy", "torch", "meta", "meta without channel", "volume")


def of_kind(volume, kind):
    """Return the image as an object of another library, made without isopose."""
    if kind == "volume":
        return volume
    if kind == "sitk":
        return to_sitk(volume)
    # nibabel's convention: index order x, y, z and a world that grows to the right, the front and the head.
    array = np.ascontiguousarray(np.transpose(volume.array, (2, 1, 0)))
    affine = volume.world_from_index.copy()
    affine[:2] *= -1
    if kind == "numpy":
        return array, affine
    tensor = torch.from_numpy(array)
    if kind == "torch":
        return tensor, torch.from_numpy(affine)
    tensor = tensor[None] if kind == "meta" else tensor
    return MetaTensor(tensor, affine=torch.from_numpy(affine))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(number=st.integers(0, 47), turn=st.tuples(*[st.floats(-40, 40)] * 3))
def test_round_trip_keeps_the_world_position_of_every_voxel(kind, number, turn):
    volume = upright()
    matrix = volume.world_from_index.copy()
    matrix[:3, :3] = rotation(turn) @ matrix[:3, :3]
    volume = stored(Volume(volume.array, matrix), *ORIENTATIONS[number])
    image = of_kind(volume, kind)
    result = as_volume(image)
    np.testing.assert_allclose(positions(result), positions(volume), atol=1e-6)
    back = like(image)(result)
    assert type(back) is type(image)
    np.testing.assert_allclose(positions(as_volume(back)), positions(volume), atol=1e-6)
    if kind.startswith("meta"):
        assert back.shape == image.shape
        torch.testing.assert_close(back.affine, image.affine)


@pytest.mark.parametrize("kind", ["sitk", "numpy"])
def test_simpleitk_and_nibabel_images_of_one_file_have_the_same_grid(kind, tmp_path):
    volume = upright()
    write_image(volume, tmp_path / "a.nii.gz")
    if kind == "sitk":
        image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    else:
        nibabel = pytest.importorskip("nibabel")
        read = nibabel.load(tmp_path / "a.nii.gz")
        image = np.asarray(read.dataobj), read.affine
    np.testing.assert_allclose(positions(as_volume(image)), positions(volume), atol=1e-4)
    np.testing.assert_allclose(positions(as_volume(tmp_path / "a.nii.gz")), positions(volume), atol=1e-4)
    assert isinstance(like(str(tmp_path / "a.nii.gz"))(volume), sitk.Image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 4, 5)),
        torch.zeros(3, 4, 5),
        (np.zeros((3, 4)), np.eye(4)),
        (np.zeros((3, 4, 5)), np.eye(3)),
        sitk.Image([4, 4], sitk.sitkInt16),
        sitk.Image([4, 4, 4], sitk.sitkVectorUInt8),
        7,
    ],
    ids=["bare array", "bare tensor", "plane", "affine of a plane", "2D", "color", "number"],
)
def test_images_without_a_position_in_the_patient_are_refused(image):
    with pytest.raises(InputError, match="expected"):
        as_volume(image)


def test_a_tensor_of_bfloat16_which_numpy_does_not_have():
    values = torch.arange(24).reshape(2, 3, 4)
    volume = as_volume((values.bfloat16(), torch.eye(4)))
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, values.numpy().transpose(2, 1, 0))
