"""STN1 and STN2 before any training, and what Eq. 1 measures."""

import pytest
import torch

from isopose.geometry.box import MIN_CROP
from isopose.geometry.overlap import soft_dice
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import invert, warp
from isopose.models.crop import CropTransformer
from isopose.models.localization import Localization
from isopose.models.pose import PoseTransformer
from isopose.settings import CropConfig, PoseConfig

SIZE = 64


def body(scale: float = 1.0) -> torch.Tensor:
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    return (((x / (0.6 * scale)) ** 2 + (y / (0.4 * scale)) ** 2) < 1).float()[None, None]


def test_pose_starts_at_the_identity():
    torch.manual_seed(0)
    config = PoseConfig(start="identity", learned=True, size=SIZE)
    transformer = PoseTransformer(config, body(), air=-2.0, top=3.0)
    image = torch.randn(3, 1, SIZE, SIZE)
    assert torch.equal(transformer(image, body().expand(3, 1, SIZE, SIZE)), torch.zeros(3, 5))
    crop = CropTransformer(CropConfig(size=SIZE))
    theta2 = crop(image, body().expand(3, 1, SIZE, SIZE))
    assert torch.equal(theta2, torch.eye(3).expand(3, 3, 3))


def test_pose_starts_at_the_moments():
    transformer = PoseTransformer(
        PoseConfig(start="moments", learned=True, size=SIZE), body(), air=-2.0, top=3.0
    )
    applied = torch.tensor([[0.3, -0.4, -0.4, 0.05, -0.1]])
    # Seen through the inverse the outline is small, turned and off center.
    moved = warp(body(), invert(matrix_from_pose(applied)), (SIZE, SIZE))
    pose = transformer(torch.zeros_like(moved), moved)
    assert torch.allclose(pose, applied, atol=0.03)
    assert transformer.agreement(moved, pose).item() > 0.98
    assert transformer.agreement(moved, torch.zeros(1, 5)).item() < 0.85


def test_one_scale_is_a_true_similarity():
    torch.manual_seed(0)
    transformer = PoseTransformer(
        PoseConfig(start="moments", learned=True, size=SIZE, scales=1), body(), air=0.0, top=3.0
    )
    torch.nn.init.normal_(transformer.localization.output.weight)
    pose = transformer(torch.randn(4, 1, SIZE, SIZE), body(0.7).expand(4, 1, SIZE, SIZE))
    assert torch.allclose(pose[:, 1], pose[:, 2])
    assert pose[:, 0].std() > 0


def test_residual_stays_within_its_bounds():
    torch.manual_seed(0)
    config = PoseConfig(
        start="identity", learned=True, size=SIZE, max_angle=0.2, max_log_scale=0.3, max_shift=0.1
    )
    transformer = PoseTransformer(config, body(), air=0.0, top=3.0)
    torch.nn.init.normal_(transformer.localization.output.weight, std=100.0)
    pose = transformer(torch.randn(8, 1, SIZE, SIZE), body().expand(8, 1, SIZE, SIZE))
    assert pose[:, 0].abs().max() <= 0.2
    assert pose[:, 1:3].abs().max() <= 0.3
    assert pose[:, 3:].abs().max() <= 0.1 + 1e-6
    assert pose[:, 0].abs().max() > 0.19


def test_soft_dice_by_hand():
    """Eq. 1: 2|A∩B| / (|A|² + |B|²), squares of the values."""
    a = torch.tensor([[1.0, 0.5, 0.0, 0.0]]).reshape(1, 1, 2, 2)
    b = torch.tensor([[1.0, 1.0, 0.0, 1.0]]).reshape(1, 1, 2, 2)
    assert soft_dice(a, b).item() == pytest.approx(2 * 1.5 / (1.25 + 3.0))
    assert soft_dice(a * 0, b * 0).item() == pytest.approx(1.0)


def test_localization_is_float32_under_autocast():
    torch.manual_seed(0)
    net = Localization(SIZE, 5)
    torch.nn.init.normal_(net.output.weight)
    image = torch.randn(2, 1, SIZE, SIZE)
    expected = net(image, body().expand(2, 1, SIZE, SIZE))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(image, body().expand(2, 1, SIZE, SIZE)), expected)


def test_crop_never_below_a_quarter():
    torch.manual_seed(0)
    crop = CropTransformer(CropConfig(size=SIZE))
    crop.start.fill_(0.1)
    theta2 = crop(torch.randn(2, 1, SIZE, SIZE), body().expand(2, 1, SIZE, SIZE))
    assert torch.allclose(theta2[:, 0, 0], torch.full((2,), MIN_CROP))
