import math

import numpy as np
import pytest
import torch
from torch import nn

from isopose.data.body import body_mask
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import warp
from isopose.io.images import read_volume
from isopose.nnunet.network import PosedNetwork, body
from isopose.nnunet.plans import LOWEST_HU
from isopose.phantom import write_cohort

MEAN, SD, LOW, HIGH = 100.0, 80.0, LOWEST_HU, 300.0


class Bright(nn.Module):
    """A stand-in for the U-Net: class 1 above a learned threshold, at one or two resolutions."""

    def __init__(self, levels=1):
        super().__init__()
        self.levels = levels
        self.threshold = nn.Parameter(torch.tensor(1.3))
        self.decoder = nn.Identity()
        self.seen = []

    def forward(self, image):
        self.seen.append(image.detach())
        logits = (image[:, :1] - self.threshold) * 20.0
        full = torch.cat([-logits, logits, torch.full_like(logits, -50.0)], dim=1)
        if self.levels == 1:
            return full
        return [full, nn.functional.avg_pool2d(full, 2)]


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Normalized as nnU-Net does it, ``(N, 1, H, W)``, from phantoms that lie rather straight."""
    root = write_cohort(
        tmp_path_factory.mktemp("c") / "c", cases=3, slices=8, size=160, seed=31, test_fraction=0
    )
    result = []
    for path in sorted((root / "imagesTr").glob("*.nii.gz")):
        array = read_volume(path).reoriented().array[3:6].astype(np.float32)
        result.append((array.clip(LOW, HIGH) - MEAN) / SD)
    return torch.from_numpy(np.concatenate(result))[:, None]


def posed(levels=1):
    return PosedNetwork(Bright(levels), mean=MEAN, sd=SD, low=LOW)


def moved(image, degrees, scale):
    """Rotate and scale the patient within the image."""
    pose = torch.tensor([[math.radians(degrees), math.log(scale), math.log(scale), 0.02, -0.03]])
    return warp(
        image, matrix_from_pose(pose).expand(len(image), 3, 3), image.shape[2:], fill=(LOW - MEAN) / SD
    )


def coarse(image):
    """Smooth thin ribs and noise, which differ after a rotation of one degree or a blur."""
    return nn.functional.avg_pool2d(image, 8).flatten()


def test_the_network_sees_one_pose_and_size_for_any_patient(slices):
    network = posed()
    network(slices)
    network(moved(slices, 35.0, 1.25))
    network(moved(slices, -140.0, 1.1))
    straight, *others = network.network.seen
    for other in others:
        alike = [np.corrcoef(coarse(a), coarse(b))[0, 1] for a, b in zip(straight, other, strict=True)]
        assert min(alike) > 0.9
        assert np.mean(alike) > 0.95
    plain = [
        np.corrcoef(coarse(a), coarse(b))[0, 1]
        for a, b in zip(slices, moved(slices, 35.0, 1.25), strict=True)
    ]
    assert max(plain) < 0.8


def test_poses_follow_applied_rotation_and_scale(slices):
    """The estimated pose of a rotated and scaled slice changes by the same rotation and scale."""
    network = posed()
    before = network.input_from_homogenized(slices)
    for degrees, scale in ((35.0, 1.25), (-140.0, 1.1)):
        after = network.input_from_homogenized(moved(slices, degrees, scale))
        for one, two in zip(before, after, strict=True):
            by = torch.linalg.solve(one[:2, :2], two[:2, :2], left=False)
            turned = math.degrees(math.atan2(by[1, 0] - by[0, 1], by[0, 0] + by[1, 1]))
            assert abs(abs(turned) - abs(degrees)) < 4.0
            assert by.det().sqrt().item() == pytest.approx(1.0 / scale, rel=0.06)


@pytest.mark.parametrize("degrees", [0.0, 40.0, 170.0])
def test_logits_are_restored_to_the_position_in_the_slice(slices, degrees):
    image = moved(slices, degrees, 1.1)
    out = posed()(image).argmax(dim=1)
    expected = Bright()(image).argmax(dim=1)
    overlap = 2.0 * ((out == 1) & (expected == 1)).sum() / ((out == 1).sum() + (expected == 1).sum())
    assert overlap > 0.9
    assert torch.allclose(
        posed()(image).exp().sum(dim=1), torch.ones(len(image), *image.shape[2:]), atol=1e-4
    )


def test_output_sizes_of_every_resolution_and_of_non_square_slices(slices):
    wide = slices[:2, :, 16:-16]
    full, half = posed(2)(wide)
    assert full.shape == (2, 3, 128, 160)
    assert half.shape == (2, 3, 64, 80)
    square = posed(1)(slices[:2])
    # Cropped by the picture's edge, not moved: what both show agrees.
    full_mask, square_mask = full.argmax(dim=1) == 1, square.argmax(dim=1)[:, 16:-16] == 1
    assert 2.0 * (full_mask & square_mask).sum() / (full_mask.sum() + square_mask.sum()) > 0.9


class Checkerboard(nn.Module):
    """Predict class 1 at every other pixel, a checkerboard."""

    def forward(self, image):
        side = torch.arange(image.shape[-1])
        squares = ((side[:, None] + side) % 2).expand(len(image), 1, -1, -1) * 20.0 - 10.0
        return torch.cat([-squares, squares], dim=1)


def test_training_does_not_smooth_a_checkerboard_prediction(slices):
    """Restored probabilities are 0 or 1 in training, as in the network's output."""
    network = PosedNetwork(Checkerboard(), mean=MEAN, sd=SD, low=LOW)
    hidden = [network.train(mode)(slices).exp()[:, 1] for mode in (True, False)]
    unsure = [((p > 0.2) & (p < 0.8)).float().mean() for p in hidden]
    assert unsure[0] == 0
    assert unsure[1] > 0.5


def test_only_the_wrapped_network_learns(slices):
    network = posed().train()
    network(slices).mean().backward()
    assert network.network.threshold.grad is not None
    assert not any(p.requires_grad for p in network.pose.parameters())
    assert not any(m.training for m in network.pose.modules())
    assert network.decoder is network.network.decoder
    again = posed()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(slices), network(slices))


def test_empty_slices_and_half_precision(slices):
    air = torch.full((2, 1, 64, 64), (LOW - MEAN) / SD)
    assert (posed()(air).argmax(dim=1) == 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = posed()(slices)
    assert rounded.dtype == torch.float32
    assert rounded.isfinite().all()


def test_the_body_is_bright_thick_and_filled():
    image = torch.full((1, 1, 100, 100), -2.0)
    y, x = torch.meshgrid(torch.arange(100.0), torch.arange(100.0), indexing="ij")
    distance = ((x - 50) ** 2 + (y - 45) ** 2).sqrt()
    image[0, 0][distance < 30] = 0.5
    image[0, 0][((x - 42) ** 2 + (y - 45) ** 2).sqrt() < 8] = -2.0
    image[0, 0, 80, 10:90] = 1.0  # a table's shell
    result = body(image, -1.0)[0, 0]
    disc = distance < 30
    assert 2.0 * (result.bool() & disc).sum() / (result.sum() + disc.sum()) > 0.97
    assert result[45, 42] == 1
    assert result[80].sum() == 0


def test_the_body_mask_equals_that_of_the_scan_if_fat_was_kept(slices, real_ct):
    volume = read_volume(real_ct / "abdomen.nii.gz").reoriented()
    expected = torch.from_numpy(body_mask(volume, -300.0))[:, None].float()
    image = torch.from_numpy(volume.array.astype(np.float32))[:, None]

    def agreement(low):
        network = PosedNetwork(Bright(), mean=MEAN, sd=SD, low=low)
        result = body((image.clip(low, HIGH) - MEAN) / SD, network.threshold)
        return 2.0 * (result * expected).sum() / (result.sum() + expected.sum())

    assert agreement(LOWEST_HU) > 0.99
    assert agreement(0.0) < 0.7  # why the trainer refuses it


def test_values_below_nnunets_own_clip_are_not_shown_to_the_network(slices):
    """Fat is used for the pose alone; nnU-Net's network sees the values of nnU-Net's normalization."""
    wide, seen_from = posed(), 6.0
    narrow = PosedNetwork(Bright(), mean=MEAN, sd=SD, low=LOW, seen_from=seen_from)
    wide(slices)
    narrow(slices)
    darkest = (seen_from - MEAN) / SD
    assert wide.network.seen[0].min() == pytest.approx((LOW - MEAN) / SD, abs=1e-4)
    assert narrow.network.seen[0].min() == pytest.approx(darkest, abs=1e-4)
    torch.testing.assert_close(narrow.input_from_homogenized(slices), wide.input_from_homogenized(slices))
