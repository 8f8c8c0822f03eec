"""Poses and crops of slices are combined to those of a scan."""

import pytest
import torch

from isopose.config import Config
from isopose.geometry.box import common_crop, matrix_from_box
from isopose.models.pipeline import SliceTransforms, frame_from_crop
from isopose.presets import load_config
from isopose.scan.poses import scan_transforms

COUNT = 9
Z_MM = torch.arange(COUNT) * 5.0
START = torch.tensor([0.1, 0.2, 0.1, 0.05, -0.05]).expand(COUNT, 5)
STEP = torch.tensor([0.03, -0.1, -0.05, 0.02, 0.04])


def config(per: str, crop_per: str = "slice", stn: str = "joint") -> Config:
    return load_config(base={"stn": stn, "pose": {"per": per}, "crop": {"per": crop_per}})


def slices(bad: float = 0.9) -> SliceTransforms:
    """Make slices with the same step but for one with agreement ``bad``; boxes vary."""
    step = STEP.repeat(COUNT, 1)
    step[4] = torch.tensor([0.5, 0.4, -0.4, 0.3, 0.3])
    agreement = torch.full((COUNT,), 0.98)
    agreement[4] = bad
    corner = torch.linspace(-0.6, -0.4, COUNT)[:, None]
    theta2 = matrix_from_box(torch.cat([corner, corner, corner + 1.0, corner + 1.0], dim=1))
    return SliceTransforms(START + step, theta2, agreement, torch.ones(COUNT, dtype=torch.bool))


def centers(pose: torch.Tensor, theta2: torch.Tensor) -> torch.Tensor:
    return frame_from_crop(pose, theta2)[:, :2, 2]


def test_a_pose_per_scan_keeps_the_position_of_crops():
    scan_slices = slices()
    pose, theta2 = scan_transforms(config("volume"), START, scan_slices, Z_MM)
    assert torch.allclose(pose, (START[0] + STEP).expand(COUNT, 5), atol=1e-6), (
        "one bad slice decides nothing"
    )
    assert torch.allclose(centers(pose, theta2), centers(scan_slices.pose, scan_slices.theta2), atol=1e-5)
    assert not torch.allclose(theta2[4], scan_slices.theta2[4], atol=0.05)
    assert torch.allclose(theta2[0], scan_slices.theta2[0], atol=1e-6)


def test_smoothed_poses_follow_the_start_and_discount_bad_outlines():
    pose, theta2 = scan_transforms(config("smooth"), START, slices(bad=0.4), Z_MM)
    assert torch.allclose(pose, START + STEP, atol=2e-3)
    scan_slices = slices()
    pose, theta2 = scan_transforms(config("smooth"), START, scan_slices, Z_MM)
    step = pose - START
    assert 0.05 < step[4, 0] < 0.3, "a good outline counts, with its neighbors"
    assert (step[:, 0].diff().abs() < 0.05).all()
    assert torch.allclose(centers(pose, theta2), centers(scan_slices.pose, scan_slices.theta2), atol=1e-5)
    # What the start has along the scan is kept, not smoothed a second time.
    bent = START + torch.tensor([1.0, 0, 0, 0, 0]) * torch.linspace(-0.2, 0.2, COUNT).abs()[:, None]
    still = scan_slices._replace(pose=bent + STEP)
    assert torch.allclose(scan_transforms(config("smooth"), bent, still, Z_MM)[0], bent + STEP, atol=1e-6)


def test_poses_per_slice_are_independent():
    scan_slices = slices()
    pose, theta2 = scan_transforms(config("slice"), START, scan_slices, Z_MM)
    assert torch.equal(pose, scan_slices.pose)
    assert torch.equal(theta2, scan_slices.theta2)


@pytest.mark.parametrize("stn", ["joint", "separate"])
def test_a_crop_per_scan_is_made_in_the_pose_of_the_scan(stn):
    scan_slices = slices()
    pose, apart = scan_transforms(config("volume", "slice", stn), START, scan_slices, Z_MM)
    again, theta2 = scan_transforms(config("volume", "volume", stn), START, scan_slices, Z_MM)
    assert torch.equal(pose, again)
    assert torch.equal(theta2, common_crop(apart).expand(COUNT, 3, 3))
    if stn == "separate":
        assert torch.equal(pose, scan_slices.pose), "its poses were brought together before the crop was seen"
