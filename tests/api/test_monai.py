import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import AsDiscreted, Compose, Flipd, Invertd, LoadImaged, ScaleIntensityRanged, Spacingd

from isopose import Homogenizer
from isopose.api.images import as_volume
from isopose.api.monai import ReferencePose, ReferencePosed
from isopose.errors import InputError
from isopose.io.images import read_labels, read_volume
from isopose.phantom import write_cohort


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort") / "c"
    write_cohort(root, cases=2, slices=8, size=96, seed=22, test_fraction=0)
    return {
        "image": str(root / "imagesTr" / "phantom_001_0000.nii.gz"),
        "label": str(root / "labelsTr" / "phantom_001.nii.gz"),
    }


def loaded(case):
    return LoadImaged(("image", "label"), ensure_channel_first=True)(case)


def overlap(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_dictionary_transform_equals_the_homogenizer_and_inverts(case):
    data = loaded(case)
    out = ReferencePosed(("image", "label"), size=128)(data)
    image, labels = read_volume(case["image"]), read_labels(case["label"])
    expected = Homogenizer(size=128).transform(image, labels)
    np.testing.assert_array_equal(as_volume(out["image"]).array, expected.image.array)
    np.testing.assert_array_equal(as_volume(out["label"]).array, expected.labels.array)
    np.testing.assert_allclose(as_volume(out["image"]).world_from_index, expected.image.world_from_index)
    assert out["image"].dtype == torch.float32


@pytest.mark.parametrize("what", ["labels", "probabilities"])
def test_invertd_restores_predictions_through_monais_own_transforms(case, what):
    chain = Compose(
        [
            LoadImaged(("image", "label"), ensure_channel_first=True),
            ReferencePosed(("image", "label"), size=256),
            Flipd(("image", "label"), spatial_axis=0),
            Spacingd(("image", "label"), pixdim=(1.0, 1.0, 5.0), mode=("bilinear", "nearest")),
            ScaleIntensityRanged("image", -150, 250, 0, 1, clip=True),
        ]
    )
    data = chain(case)
    label = data["label"]
    if what == "labels":
        data["answer"] = label.clone()
        data["answer"].applied_operations = list(data["image"].applied_operations)
    else:
        shares = torch.cat([(label == value).float() for value in (0, 1, 2)])
        data["answer"] = MetaTensor(
            shares, meta=data["image"].meta, applied_operations=list(data["image"].applied_operations)
        )
    back = Invertd(
        "answer", transform=chain, orig_keys="image", nearest_interp=what == "labels", to_tensor=True
    )(data)["answer"]
    native = read_labels(case["label"])
    result = as_volume(back[0] if what == "labels" else MetaTensor(back[1], affine=back.affine))
    assert result.same_grid(native)
    kidney = result.array == 1 if what == "labels" else result.array > 0.5
    assert overlap(kidney, native.array == 1) > 0.9
    if what == "probabilities":
        torch.testing.assert_close(back.sum(dim=0).as_tensor(), torch.ones(back.shape[1:]), atol=1e-4, rtol=0)


def test_batches_from_workers_are_decollated_and_inverted(case):
    pose = ReferencePosed(("image", "label"), size=128)
    chain = Compose([LoadImaged(("image", "label"), ensure_channel_first=True), pose])
    loader = DataLoader(Dataset([case, case], chain), batch_size=2, num_workers=0)
    [batch] = list(loader)
    assert batch["image"].shape[:2] == (2, 1)
    post = Compose(
        [AsDiscreted("label", to_onehot=3), Invertd("label", transform=chain, nearest_interp=False)]
    )
    for one in decollate_batch(batch):
        back = post(one)["label"]
        assert back.shape == (3, *loaded(case)["label"].shape[1:])
        np.testing.assert_allclose(back.affine, loaded(case)["label"].affine, atol=1e-6)


def test_the_array_transform_and_its_inverse(case):
    image = loaded(case)["image"]
    pose = ReferencePose(size=192)
    upright = pose(image)
    assert [one["class"] for one in upright.applied_operations] == ["ReferencePose"]
    marked = MetaTensor(
        (upright > 100).float(), meta=upright.meta, applied_operations=list(upright.applied_operations)
    )
    back = pose.inverse(marked)
    assert back.applied_operations == []
    assert overlap(np.asarray(back[0]) > 0, np.asarray(image[0]) > 100) > 0.8
    with pytest.raises(InputError, match=r"expected a MetaTensor of shape \(1, x, y, z\)"):
        pose(torch.zeros(1, 4, 4, 4))
    with pytest.raises(InputError, match="image_key"):
        ReferencePosed("label")
    with pytest.raises(InputError, match="whole numbers"):
        ReferencePosed(("image", "label"))({"image": image, "label": image})
