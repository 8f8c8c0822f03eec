"""Training cases that lie upside down are turned back before the crop and the U-Net learn from them."""

from types import SimpleNamespace

import pytest
import torch

from isopose.config import load_config
from isopose.data.slices import Batch
from isopose.geometry.similarity import matrix_from_pose, turned_by_180
from isopose.geometry.warp import warp
from isopose.models.pipeline import Pipeline
from isopose.progress import Silent
from isopose.training.fit import _atlas, _turn_back

SIZE, AIR = 64, -2.0


def patient() -> tuple[torch.Tensor, torch.Tensor]:
    """A body with a spine at its back."""
    line = (torch.arange(SIZE) * 2 + 1) / SIZE - 1
    mask = ((line / 0.6) ** 2 + (line[:, None] / 0.4) ** 2 < 1).float()[None, None]
    image = torch.where(mask > 0, 0.0, AIR)
    image[..., 36:44, 28:36] = 3.0
    return image, mask


class Rows:
    """Slices of three cases, two each; the last case lies upside down."""

    def __init__(self) -> None:
        image, mask = patient()
        turn = matrix_from_pose(turned_by_180(torch.zeros(1, 5)))[0]
        both = [image, image, image, image, *[warp(image, turn, (SIZE, SIZE), fill=AIR)] * 2]
        self.images, self.masks = torch.cat(both), mask.expand(6, 1, SIZE, SIZE)
        self.rows = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]).numpy()
        self.cases = [SimpleNamespace(record=SimpleNamespace(id=f"case_{n}")) for n in range(3)]
        self.pose = torch.zeros(6, 5)

    def __len__(self) -> int:
        return 6

    def in_order(self, batch_size: int):
        labels = torch.zeros(6, SIZE, SIZE, dtype=torch.uint8)
        yield Batch(torch.arange(6), self.images, self.masks, labels, self.pose)


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_the_case_upside_down_is_turned_and_no_other() -> None:
    config = load_config(base={"data": {"size": 64}, "pose": {"size": 64}, "unet": {"input": "full"}})
    slices, heard = Rows(), Heard()
    pipeline = Pipeline(config, 2, slices.masks[:1], AIR)
    run = SimpleNamespace(fabric=SimpleNamespace(device=torch.device("cpu")), reporter=heard)
    pipeline.pose.atlas.copy_(_atlas(pipeline, slices, run))
    # The mean of what was seen: two thirds upright, one third upside down.
    back, front = (pipeline.pose.atlas[..., y, 28:36].mean().item() for y in (slice(36, 44), slice(20, 28)))
    assert back == pytest.approx((2 * 5 + 2) / 3, abs=0.02)
    assert front == pytest.approx((2 * 2 + 5) / 3, abs=0.02)
    _turn_back(pipeline, slices, run)
    assert torch.equal(slices.pose[:4], torch.zeros(4, 5))
    assert torch.equal(slices.pose[4:], turned_by_180(torch.zeros(2, 5)))
    assert len(heard.lines) == 1
    assert heard.lines[0].startswith("case_2: ")
    seen = pipeline.pose.brightness(slices.images, slices.masks, slices.pose)
    assert torch.allclose(seen[4:], seen[:2], atol=0.05)
