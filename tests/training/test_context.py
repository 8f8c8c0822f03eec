"""Neighboring slices as channels, aligned in their own poses, in training and prediction."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bright import LABELS, Brightness, bright_model, dice, make_scene
from isopose.data.samples import Batch, Slices
from isopose.data.store import write_store
from isopose.geometry.volume import Volume
from isopose.geometry.warp import warp
from isopose.inference.predict import predict
from isopose.io.datasets import Case, open_dataset
from isopose.io.images import read_volume, write_image, write_labels
from isopose.models.card import CARD
from isopose.models.folder import Model, load_model
from isopose.presets import load_config
from isopose.report.steps import steps_of
from isopose.training.augmentation import Augmentation
from isopose.training.fit import fit
from isopose.training.objectives import noise_size
from isopose.training.segmentation import SegmentationObjective
from isopose.training.transforms import poses_of, transforms_of

#: Each slice lies turned by another angle; the anatomy is the same in all.
DEGREES = (-40, -15, 5, 30, 50)
#: Pose by moments alone, of each slice; a crop that cuts nothing.
SETTINGS: dict[str, Any] = {"pose": {"learned": False}, "crop": {"learned": False}}
BOX = (-0.4, -0.75, 0.8, 0.45)


class Channel(Brightness):
    """Segment one channel by brightness; record all inputs."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def fused(self) -> "Channel":
        return self

    def forward(self, image: Tensor, *, deep: bool = False) -> list[Tensor]:
        self.seen.append(image)
        return super().forward(image[:, self.channel, None])


@dataclass(frozen=True)
class Turning:
    """A scan whose roll changes along z, and its slices as training reads them."""

    volume: Volume
    truth: np.ndarray
    slices: Slices


def model_of(context: int, channel: int | None = None, **changes: Any) -> Model:
    unet = {"context": context, "pose_jitter": 1.0, **changes.pop("unet", {})}
    model = bright_model({**SETTINGS, "unet": unet, **changes}, crop_start=BOX)
    model.pipeline.unet = Channel(context if channel is None else channel)  # type: ignore[assignment]
    return model


@pytest.fixture(scope="module")
def turning(tmp_path_factory: pytest.TempPathFactory) -> Turning:
    folder: Path = tmp_path_factory.mktemp("turning")
    parts = [make_scene(roll=math.radians(angle), slices=1, field=(250.0, 250.0)) for angle in DEGREES]
    array = np.concatenate([part.volume.array for part in parts])
    volume = Volume(array, parts[0].volume.world_from_index)
    truth = np.concatenate([part.truth for part in parts])
    write_image(volume, folder / "scan.nii.gz")
    write_labels(volume.with_array(truth), folder / "label.nii.gz")
    model = model_of(0)
    case = Case("one", folder / "scan.nii.gz", folder / "label.nii.gz", patient="one")
    store = write_store(folder / "store", [case], model.fingerprint, LABELS, model.config.data)
    slices = Slices(store.cases)
    slices.pose = poses_of(model.pipeline, slices, torch.device("cpu"))
    slices.pose, slices.theta2 = transforms_of(model.pipeline, slices, torch.device("cpu"))
    return Turning(volume, truth, slices)


def batch_of(turning: Turning, model: Model, rows: list[int] | None = None) -> Batch:
    """The slices with the neighbors that the model's settings name."""
    slices = turning.slices.subset(np.arange(len(turning.slices)))
    slices.set_neighbors(model.config.unet)
    return slices.read(np.arange(len(slices)) if rows is None else np.array(rows))


def crops_of(model: Model, batch: Batch, noise: Tensor) -> Tensor:
    objective = SegmentationObjective(model.pipeline, LABELS)
    return objective._crop_input(
        batch, objective._jittered(batch, noise), *objective._draw_displacements(noise)
    )


def noises(count: int) -> Tensor:
    return torch.rand(count, noise_size(2), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("augmentation", ["off", "homogenized"])
def test_the_middle_channel_equals_the_slice_without_context(turning: Turning, augmentation: str) -> None:
    """With jitter, mirroring and deformation."""
    changes = {"augmentation": augmentation, "elastic": 1.0, "mirror": 0.5}
    noise, seen = noises(len(DEGREES)), {}
    for context in (0, 2):
        model = model_of(context, unet=changes)
        seen[context] = crops_of(model, batch_of(turning, model), noise)
    assert seen[2].shape == (5, 5, 128, 128)
    assert torch.equal(seen[2][:, 2:3], seen[0])
    # Some were mirrored, some were not.
    assert 0 < (noise[:, -2] < 0).sum() < 5


def test_neighbors_in_their_own_poses_are_aligned(turning: Turning) -> None:
    model = model_of(1, unet={"mirror": 0.5})
    batch, noise = batch_of(turning, model, [1, 2, 3]), noises(3)
    own = crops_of(model, batch, noise)
    assert batch.channel_pose is not None
    of_the_slice = batch.channel_pose[:, 1:2].expand(-1, 3, -1)
    other = crops_of(model, replace(batch, channel_pose=of_the_slice), noise)
    for crop, most, least in ((own, 0.12, 0.0), (other, 9.0, 0.4)):
        for channel in (0, 2):
            apart = (crop[:, channel] - crop[:, 1]).abs().mean(dim=(1, 2))
            assert (apart < most).all(), apart
            assert (apart > least).all(), apart


def test_every_channel_shares_jitter_mirroring_and_deformation(turning: Turning) -> None:
    """A neighbor in the slice's pose gets the same crop as the slice itself."""
    model = model_of(1, unet={"mirror": 1.0, "augmentation": "homogenized", "elastic": 1.0})
    batch, noise = batch_of(turning, model, [2]), noises(1)
    assert batch.channel_pose is not None
    seen = crops_of(model, replace(batch, channel_pose=batch.channel_pose[:, 1:2].expand(-1, 3, -1)), noise)
    alone = SegmentationObjective(model_of(0, unet=model.config.unet.model_dump()).pipeline, LABELS)
    theta, shift = alone._jittered(batch, noise), alone._draw_displacements(noise)[0]
    for channel in range(3):
        image = batch.image[:, channel, None]
        expected = warp(image, theta, (128, 128), fill=model.pipeline.air, displacement=shift)
        torch.testing.assert_close(seen[:, channel, None], expected, atol=1e-3, rtol=0)


def test_a_mirrored_crop_is_the_crop_with_its_columns_reversed(turning: Turning) -> None:
    noise, seen = noises(5), []
    for mirror in (0.0, 1.0):
        model = model_of(1, unet={"mirror": mirror})
        seen.append(crops_of(model, batch_of(turning, model), noise))
    torch.testing.assert_close(seen[1], seen[0].flip(3), atol=1e-2, rtol=0)


def test_training_and_prediction_give_the_network_the_same_input(turning: Turning) -> None:
    model = model_of(2, unet={"pose_jitter": 0.0}, predict={"precision": "32-true"})
    batch = batch_of(turning, model)
    objective = SegmentationObjective(model.pipeline, LABELS)
    expected = objective._crop_input(batch, objective._theta(batch))
    predict(model, turning.volume)
    seen = model.pipeline.unet.seen[0]
    assert seen.shape == expected.shape == (5, 5, 128, 128)
    # The store's images are of half precision.
    torch.testing.assert_close(seen, expected, atol=2e-2, rtol=0)
    # At the ends of the scan the last slice stands in for what is not there.
    assert torch.equal(seen[0, 0], seen[0, 2])
    torch.testing.assert_close(seen[0, 0], seen[1, 1], atol=2e-2, rtol=0)


@pytest.mark.parametrize("cut", [False, True])
def test_a_network_that_ignores_neighbors_predicts_as_without_context(turning: Turning, cut: bool) -> None:
    """Also with widened crops, mirror averaging and returned crops."""
    changes = {"predict": {"mirror": cut, "precision": "32-true"}, "unet": {"input": "half"}}
    results = []
    for context in (0, 1):
        model = model_of(context, **changes)
        if cut:
            model.pipeline.crop.start.copy_(torch.tensor((-0.1, -0.45, 0.6, 0.25)))
        results.append(predict(model, turning.volume, crops=True))
    assert results[0].scan_pose.widened.any() == cut
    np.testing.assert_array_equal(results[1].labels.array, results[0].labels.array)
    np.testing.assert_array_equal(results[1].crops, results[0].crops)
    np.testing.assert_array_equal(results[1].scan_pose.theta2, results[0].scan_pose.theta2)


@pytest.mark.parametrize("channel", [0, 2])
def test_structures_in_a_neighbor_are_segmented_at_their_position_in_the_slice(
    turning: Turning, channel: int
) -> None:
    """Slices differ by 20 to 25 degrees of roll; in its own pose, the neighbor is aligned with the slice."""
    labels = predict(model_of(1, channel), turning.volume).labels
    for z in range(len(DEGREES)):
        assert dice(labels.array[z] > 0, turning.truth[z] > 0) > 0.85


def test_neighbors_of_a_subset_of_rows_come_from_the_whole_scan(turning: Turning) -> None:
    whole = turning.slices.subset(np.arange(5))
    whole.set_neighbors(model_of(1).config.unet)
    assert whole.channels.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]
    assert whole.pose is not None
    for part, rows in (
        (whole.spread(3), [0, 2, 4]),
        (whole.labeled(), [0, 1, 2, 3, 4]),
        (whole.subset(np.array([3, 1])).subset(np.array([1])), [1]),
    ):
        batch = part.read(np.arange(len(part)))
        assert batch.channel_pose is not None
        assert batch.image.shape == (len(rows), 3, 128, 128)
        assert batch.mask.shape == (len(rows), 1, 128, 128)
        for position, row in enumerate(rows):
            image, mask, labels = whole.cases[0].read(whole.channels[row].tolist())
            np.testing.assert_array_equal(batch.image[position], image)
            np.testing.assert_array_equal(batch.mask[position, 0], mask[1])
            np.testing.assert_array_equal(batch.labels[position], labels[1])
            assert torch.equal(batch.channel_pose[position], whole.pose[whole.channels[row]])


def test_a_model_with_context_is_trained_saved_loaded_and_predicts(
    cohort: Path, tiny: Any, tmp_path: Path
) -> None:
    short = ("pose.learned=false", "crop.learned=false", "unet.optimizer.epochs=1", "unet.base_features=2")
    config = tiny(*short, "unet.context=1", "unet.context_mm=7")
    trained = fit(open_dataset(cohort), tmp_path / "model", config)
    assert trained.pipeline.unet.first[0][0].weight.shape == (2, 3, 3, 3)
    assert "with 1 neighboring slices on each side" in (tmp_path / "model" / CARD).read_text()
    scan = read_volume(cohort / "imagesTs" / "Muster_Erika_6_0000.nii.gz")
    result = predict(load_model(tmp_path / "model"), scan, crops=True)
    assert result.labels.same_grid(scan)
    np.testing.assert_array_equal(result.labels.array, predict(trained, scan).labels.array)
    # The figures show what the network saw: its middle channel, and its answer.
    for step in steps_of(trained, scan, result):
        z = int(step.heading.split()[1])
        assert step.cropped.shape == (32, 32)
        assert result.crops is not None
        np.testing.assert_array_equal(step.crop_classes, result.crops[z])


def test_slices_and_their_neighbors_are_augmented_together(turning: Turning) -> None:
    """All channels share rotation and scale, so equal channels stay equal but for pixel noise."""
    config = load_config(
        base={"pose": {"start": "identity"}, "crop": {"enabled": False}},
        settings=["unet.augmentation=nnunet", "unet.context=1"],
    )
    batch = batch_of(turning, model_of(1), [0, 1, 2, 3])
    batch = replace(batch, image=batch.image[:, 1:2].expand(-1, 3, -1, -1).clone())
    out = Augmentation(-2.0)(batch, (1, 2))
    assert out.image.shape == batch.image.shape
    assert (out.image[:, 0] - out.image[:, 1]).abs().mean() < 0.2
    assert (out.image[:, 1] - batch.image[:, 1]).abs().amax(dim=(1, 2)).max() > 0.5
    assert config.unet.context == 1
