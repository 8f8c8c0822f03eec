"""Fine-tuning of the shipped roll network on a user's slices keeps what upright means."""

import math
from dataclasses import replace

import pytest
import torch

from isopose.data.body import body_mask
from isopose.data.samples import Batch
from isopose.geometry.warp import resize
from isopose.models.pipeline import Networks
from isopose.models.shipped import load_shipped
from isopose.phantom.randomized import sample_slab
from isopose.presets import load_config
from isopose.training.objectives import RollObjective, noise_size

SIZE = 96
AIR, TOP = -1.5, 2.5


def batch() -> Batch:
    """Slices of three unseen phantoms; the poses are what the scans said, here the truth."""
    images, masks, rolls = [], [], []
    for index in range(3):
        slab = sample_slab(78, index, slices=4, size=SIZE)
        mask = torch.from_numpy(body_mask(slab.volume, -250.0)).float()[:, None]
        hu = torch.from_numpy(slab.volume.array.astype("float32"))[:, None].clamp(-150.0, 300.0)
        images.append((hu + 150.0) / 450.0 * (TOP - AIR) + AIR)
        masks.append(mask)
        rolls += [slab.roll] * len(mask)
    pose = torch.zeros(len(rolls), 5)
    pose[:, 0] = torch.tensor(rolls)
    image, mask = torch.cat(images), torch.cat(masks)
    labels = torch.zeros(len(rolls), SIZE, SIZE, dtype=torch.uint8)
    return Batch(torch.arange(len(rolls)), image, mask, labels, pose)


@pytest.fixture(scope="module")
def slices() -> Batch:
    return batch()


@pytest.fixture
def pipeline(slices) -> Networks:
    torch.manual_seed(0)
    config = load_config(
        base={"data": {"size": 128}, "pose": {"learned": True}, "unet": {"base_features": 2}}
    )
    networks = Networks(config, 3, resize(slices.mask[:1], (64, 64)), AIR, TOP)
    load_shipped(networks.pose.roll)
    return networks


def noise(seed: int, count: int = 12) -> torch.Tensor:
    return torch.rand(count, noise_size(2), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def test_the_target_is_the_scans_pose_plus_the_known_rotation(pipeline, slices):
    """The shipped network is near the optimum for a right pose, and far from it for a wrong one."""
    objective = RollObjective(pipeline)
    right = objective(slices, noise(1)).item()
    wrong = replace(slices, pose=slices.pose + torch.tensor([math.radians(25.0), 0, 0, 0, 0]))
    # Half a radian of freedom: the mean of k (1 - cos) is about 1/2 where k is right.
    assert right < 2.0
    assert objective(wrong, noise(1)).item() > right + 5.0


def test_training_lowers_the_loss_and_keeps_batch_statistics(pipeline, slices):
    objective = RollObjective(pipeline)
    objective.train()
    before = {name: value.clone() for name, value in pipeline.pose.roll.named_buffers()}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-4)
    # Scans that say something else than the network: near its optimum nothing would be left to learn.
    other = replace(slices, pose=slices.pose + torch.tensor([math.radians(12.0), 0, 0, 0, 0]))
    first = objective(other, noise(2)).item()
    for step in range(15):
        optimizer.zero_grad()
        objective(other, noise(10 + step)).backward()
        optimizer.step()
    assert objective(other, noise(2)).item() < 0.5 * first
    for name, value in pipeline.pose.roll.named_buffers():
        assert torch.equal(value, before[name]), name


def test_fine_tuning_does_not_raise_the_concentration(pipeline, slices):
    """The network agrees with its own mean; likelihood alone would raise the concentration unboundedly."""
    objective = RollObjective(pipeline)
    objective.train()
    seen = objective.roll_input(slices.image, slices.mask)
    with torch.no_grad():
        before = pipeline.pose.roll.estimate(seen).concentration
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-4)
    for step in range(30):
        optimizer.zero_grad()
        objective(slices, noise(100 + step)).backward()
        optimizer.step()
    with torch.no_grad():
        after = pipeline.pose.roll.estimate(seen).concentration
    assert (after / before).median().item() == pytest.approx(1.0, abs=0.4)


def test_the_score_is_the_agreement_with_the_scans_pose(pipeline, slices):
    objective = RollObjective(pipeline)
    objective.eval()
    with torch.no_grad():
        good = objective.validate(None, [slices])
        shifted = replace(slices, pose=slices.pose + torch.tensor([math.radians(40.0), 0, 0, 0, 0]))
        bad = objective.validate(None, [shifted])
    assert good["roll cosine"] > 0.99
    assert good["roll degrees"] < 3.0
    assert bad["roll cosine"] == pytest.approx(math.cos(math.radians(40.0)), abs=0.05)
    assert bad["roll degrees"] == pytest.approx(40.0, abs=3.0)
