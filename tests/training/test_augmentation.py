"""nnU-Net's augmentation: the same by seed, what each part does to image and labels, and training with it."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.transforms import RandAdjustContrastd, RandGaussianNoised
from safetensors.torch import load_file

from isopose.data.samples import Batch
from isopose.errors import InputError
from isopose.io.datasets import open_dataset
from isopose.labels import Labels
from isopose.presets import load_config
from isopose.training.augmentation import Augmentation
from isopose.training.fit import fit
from isopose.training.stages import _augmentation

AIR = -3.0
PLAIN = ("pose.start=identity", "pose.learned=false", "crop.enabled=false", "unet.input=full")


def batch_of(count: int, size: int = 64) -> Batch:
    """Make an off-center body with a bright, labeled square in its upper left."""
    y, x = np.indices((size, size)) / size - 0.5
    body = (x / 0.32) ** 2 + (y / 0.26) ** 2 < 1
    image = np.where(body, 0.2, AIR).astype(np.float32)
    labels = np.zeros((size, size), np.uint8)
    labels[22:30, 20:28] = 1
    image[labels == 1] = 1.5
    rows = torch.arange(count)
    return Batch(
        rows,
        torch.from_numpy(image)[None, None].repeat(count, 1, 1, 1),
        torch.from_numpy(body.astype(np.float32))[None, None].repeat(count, 1, 1, 1),
        torch.from_numpy(labels)[None].repeat(count, 1, 1),
    )


def test_augmentation_is_reproducible_by_seed() -> None:
    augment, batch = Augmentation(AIR), batch_of(12)
    one, same, other = (
        augment(batch, (1, 2, 3)),
        Augmentation(AIR)(batch, (1, 2, 3)),
        augment(batch, (1, 2, 4)),
    )
    assert torch.equal(one.image, same.image)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.image, other.image)
    # Slices of a batch are not all disturbed alike.
    assert len({tuple(image.flatten().tolist()) for image in one.image}) > 6


def test_channels_share_spatial_and_have_separate_intensity_augmentation() -> None:
    batch = batch_of(16)
    two = replace(batch, image=torch.cat([batch.image, batch.image + 1.0], dim=1))
    out = Augmentation(AIR, AIR + 1.0)(two, (5,))
    assert out.image.shape == two.image.shape
    first, second = out.image[:, 0], out.image[:, 1]
    for one, other, labels in zip(first, second, out.labels, strict=True):
        together = float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
        assert together > 0.95
        # The square is where its label is, in both channels.
        for image in (one, other):
            assert image[labels == 1].median() > image[labels == 0].median()
    assert ((first + 1.0 - second).abs().amax(dim=(1, 2)) > 0.05).sum() > 4


def test_augmentation_of_a_slice_does_not_depend_on_its_batch() -> None:
    """So any number of ranks applies the same augmentation to a slice."""
    augment, batch = Augmentation(AIR), batch_of(8)
    whole = augment(batch, (1, 2, 3))
    places = torch.tensor([5, 2, 7])
    part = augment(batch.select(places), (1, 2, 3), places.tolist())
    assert torch.equal(part.image, whole.image[places])
    assert torch.equal(part.labels, whole.labels[places])


def test_augmentation_keeps_types_sizes_and_other_fields() -> None:
    batch = batch_of(8)
    out = Augmentation(AIR)(batch, (0,))
    assert type(out.image) is type(out.labels) is torch.Tensor
    assert (out.image.dtype, out.labels.dtype) == (torch.float32, torch.uint8)
    assert out.image.shape == batch.image.shape
    assert torch.equal(out.mask, batch.mask)
    assert set(out.labels.unique().tolist()) <= {0, 1}
    assert out.image.isfinite().all()


def test_labels_follow_the_augmented_image() -> None:
    augment = Augmentation(AIR)
    for seed in range(40):
        out = augment.spatial.set_random_state(seed)({"image": batch_of(1).image[0] - AIR,
                                                      "labels": batch_of(1).labels[:1].float()})  # fmt: skip
        bright, marked = out["image"][0] > 4.0, out["labels"][0] == 1
        assert float((bright == marked).float().mean()) > 0.985, seed


def test_outside_of_a_turned_slice_is_air() -> None:
    augment = Augmentation(AIR)
    augment.intensities.transforms = ()
    for seed in range(30):
        out = augment(batch_of(2), (seed,))
        for corner in (out.image[:, 0, 0, 0], out.image[:, 0, -1, -1]):
            assert corner.tolist() == pytest.approx([AIR, AIR], abs=1e-4)


def sizes(augment: Augmentation, count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """For many augmented slices, return the labeled square's area and whether it lies in the upper left."""
    out = augment(batch_of(count), (5,))
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    marks = (out.labels == 1).float()
    area = marks.sum((1, 2))
    middle = [(marks * c).sum((1, 2)) / area.clamp(min=1) for c in (x, y)]
    return area.numpy(), ((middle[0] < 32) & (middle[1] < 32)).numpy()


def test_slices_are_mirrored_scaled_and_turned_as_often_as_nnunet_does() -> None:
    area, upper_left = sizes(Augmentation(AIR))
    # Both flips at a half each: a quarter stays where it was, give or take the turned ones.
    assert 0.18 < upper_left.mean() < 0.32
    changed = np.abs(area - 64) > 6
    assert 0.08 < changed.mean() < 0.28
    assert area.max() < 64 * 1.5**2
    assert area.min() > 64 * 0.6**2
    _, unmirrored = sizes(Augmentation(AIR, mirror=False))
    # Only the fifth that is turned leaves its quarter.
    assert 0.78 < unmirrored.mean() < 0.94


def test_intensities_change_as_often_as_nnunet_changes_them() -> None:
    augment = Augmentation(AIR, mirror=False)
    augment.spatial.transforms = ()
    out = augment(batch_of(600), (3,))
    untouched = (out.image - batch_of(1).image).abs().flatten(1).amax(dim=1) < 1e-4
    chance = math.prod(1 - p for p in (0.1, 0.1, 0.15, 0.15, 0.125, 0.1, 0.3))
    assert float(untouched.float().mean()) == pytest.approx(chance, abs=0.06)
    kinds = [type(t) for t in augment.intensities.transforms]
    assert kinds.index(RandGaussianNoised) == 0
    assert kinds[-2:] == [RandAdjustContrastd, RandAdjustContrastd]


def test_training_with_augmentation_is_resumable(cohort: Path, tiny, tmp_path) -> None:
    dataset = open_dataset(cohort)
    plain, augmented = (
        tiny(*PLAIN, "unet.mirror=0"),
        tiny(*PLAIN, "unet.mirror=0", "unet.augmentation=nnunet"),
    )
    for name, config in (("plain", plain), ("one", augmented), ("two", augmented)):
        fit(dataset, tmp_path / name, config, store=tmp_path / "store")
    without, one, two = (load_file(tmp_path / n / "weights.safetensors") for n in ("plain", "one", "two"))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert [name for name in one if not torch.equal(one[name], without[name])] != []


@pytest.mark.parametrize(
    "setting", ["pose.start=moments", "crop.enabled=true", "pose.learned=true", "dims=3"]
)
def test_nnunets_augmentation_is_refused_with_homogenization(setting: str) -> None:
    with pytest.raises(InputError, match=r"with unet\.augmentation=nnunet only"):
        load_config(settings=[*PLAIN, "unet.augmentation=nnunet", setting])


@pytest.mark.parametrize(("name", "expected"), [("off", False), ("homogenized", False), ("nnunet", True)])
def test_only_the_baseline_augments_slices_in_their_own_pose(name: str, expected: bool) -> None:
    base = {"pose": {"start": "identity"}, "crop": {"enabled": False}, "unet": {"augmentation": name}}
    context = SimpleNamespace(config=load_config(base=base), labels=Labels.create({"kidney": 1}))
    assert isinstance(_augmentation(context, SimpleNamespace(airs=(-2.0,))), Augmentation) == expected
