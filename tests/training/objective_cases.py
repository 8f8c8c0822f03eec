"""Batches, networks and settings for tests of the objectives."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from isopose.config import Config
from isopose.data.samples import Batch
from isopose.geometry.pose import identity_pose, matrix_from_pose
from isopose.geometry.warp import invert, warp
from isopose.models.pipeline import Networks
from isopose.presets import load_config
from isopose.training.losses import one_hot
from isopose.training.objectives import JointObjective, noise_size

SIZE = 64
AIR, TOP = -2.0, 3.0
STILL = torch.zeros(6, noise_size(2))
#: One resolution, pose and crop undisturbed.
PLAIN: dict[str, Any] = {
    "data": {"size": SIZE},
    "pose": {"size": 32, "start": "moments", "learned": True, "per": "slice"},
    "crop": {"size": 64},
    "unet": {"base_features": 4, "input": "full", "pose_jitter": 0.0, "mirror": 0.0},
}


def config(*settings: str) -> Config:
    return load_config(base=PLAIN, settings=("crop.jitter_shift=0", "crop.jitter_scale=0", *settings))


def upright() -> tuple[Tensor, Tensor, Tensor]:
    """A slice: trunk with a spine, a kidney at each side, a tumor at one; image, mask, labels."""
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    mask = (x / 0.85) ** 2 + (y / 0.6) ** 2 < 1
    labels = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    labels[((x.abs() - 0.38) / 0.15) ** 2 + ((y - 0.1) / 0.15) ** 2 < 1] = 1
    labels[(x + 0.3) ** 2 + (y + 0.12) ** 2 < 0.02] = 2
    image = torch.where(mask, 0.0, AIR)
    image[(x**2 + (y - 0.3) ** 2) < 0.015] = 3.0
    image[labels == 1] = 1.5
    image[labels == 2] = 0.8
    return image[None, None], mask.float()[None, None], labels[None]


def batch_of(pose: Tensor, theta2: Tensor | None = None) -> Batch:
    """Make a batch of the upright slice in given poses, so that theta1 makes it upright."""
    image, mask, labels = upright()
    lying = invert(matrix_from_pose(pose))
    count = len(pose)
    hot = warp(one_hot(labels, 3)[:, 1:].expand(count, 2, SIZE, SIZE), lying, (SIZE, SIZE))
    classes = torch.cat([1 - hot.sum(1, keepdim=True), hot], dim=1).argmax(dim=1).to(torch.uint8)
    return Batch(
        torch.arange(count),
        warp(image.expand(count, 1, SIZE, SIZE), lying, (SIZE, SIZE), fill=AIR),
        (warp(mask.expand(count, 1, SIZE, SIZE), lying, (SIZE, SIZE)) > 0.5).float(),
        classes,
        pose,
        torch.eye(3).expand(count, 3, 3) if theta2 is None else theta2,
    )


def poses(count: int = 6, spread: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(3)
    scale = spread * torch.tensor([0.3, 0.1, 0.1, 0.06, 0.06])
    return (torch.rand(count, 5, generator=random) * 2 - 1) * scale + torch.tensor([0, 0.2, 0.2, 0, 0])


def pipeline_of(settings: Config) -> Networks:
    torch.manual_seed(0)
    return Networks(settings, 3, upright()[1], AIR, TOP)


class Answering(torch.nn.Module):
    """A stand-in for the U-Net that returns fixed logits and records its inputs."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.seen = torch.empty(0)

    def forward(self, crop: Tensor, *, deep: bool = False) -> list[Tensor]:
        self.seen = crop
        return [self.logits]


def validate(objective: Any, batch: Batch, patients: str = "") -> dict[str, float]:
    with torch.no_grad():
        return objective.validate(SimpleNamespace(patients=list(patients)), [batch])


def train(objective: torch.nn.Module, batch: Batch, rate: float, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(objective.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = objective(batch, STILL[: len(batch.rows)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_all_learn(objective: torch.nn.Module, loss: Tensor) -> None:
    loss.backward()
    still = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


def joint(*settings: str) -> JointObjective:
    return JointObjective(pipeline_of(config("stn=joint", "pose.start=identity", *settings)))


def from_identity(batch: Batch) -> Batch:
    """Set the starting poses that the joint stage receives, here the identity."""
    return replace(batch, pose=identity_pose(len(batch.rows)))
