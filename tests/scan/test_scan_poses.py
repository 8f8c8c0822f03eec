"""Steps and crops of single slices, regressed jointly, brought together for a scan."""

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
    """All slices regress the same step but for one, whose outline agrees by ``bad``; boxes wander."""
    step = STEP.repeat(COUNT, 1)
    step[4] = torch.tensor([0.5, 0.4, -0.4, 0.3, 0.3])
    agreement = torch.full((COUNT,), 0.98)
    agreement[4] = bad
    corner = torch.linspace(-0.6, -0.4, COUNT)[:, None]
    theta2 = matrix_from_box(torch.cat([corner, corner, corner + 1.0, corner + 1.0], dim=1))
    return SliceTransforms(START + step, theta2, agreement, torch.ones(COUNT, dtype=torch.bool))


def centers(pose: torch.Tensor, theta2: torch.Tensor) -> torch.Tensor:
    return frame_from_crop(pose, theta2)[:, :2, 2]


def test_one_step_for_a_scan_and_crops_that_stay_in_place():
    given = slices()
    pose, theta2 = scan_transforms(config("volume"), START, given, Z_MM)
    assert torch.allclose(pose, (START[0] + STEP).expand(COUNT, 5), atol=1e-6), (
        "one bad slice decides nothing"
    )
    assert torch.allclose(centers(pose, theta2), centers(given.pose, given.theta2), atol=1e-5)
    assert not torch.allclose(theta2[4], given.theta2[4], atol=0.05)
    assert torch.allclose(theta2[0], given.theta2[0], atol=1e-6)


def test_smooth_steps_follow_the_start_and_a_bad_outline_counts_little():
    pose, theta2 = scan_transforms(config("smooth"), START, slices(bad=0.4), Z_MM)
    assert torch.allclose(pose, START + STEP, atol=2e-3)
    given = slices()
    pose, theta2 = scan_transforms(config("smooth"), START, given, Z_MM)
    step = pose - START
    assert 0.05 < step[4, 0] < 0.3, "a good outline counts, with its neighbors"
    assert (step[:, 0].diff().abs() < 0.05).all()
    assert torch.allclose(centers(pose, theta2), centers(given.pose, given.theta2), atol=1e-5)
    # What the start has along the scan is kept, not smoothed a second time.
    bent = START + torch.tensor([1.0, 0, 0, 0, 0]) * torch.linspace(-0.2, 0.2, COUNT).abs()[:, None]
    still = given._replace(pose=bent + STEP)
    assert torch.allclose(scan_transforms(config("smooth"), bent, still, Z_MM)[0], bent + STEP, atol=1e-6)


def test_each_slice_by_itself():
    given = slices()
    pose, theta2 = scan_transforms(config("slice"), START, given, Z_MM)
    assert torch.equal(pose, given.pose)
    assert torch.equal(theta2, given.theta2)


@pytest.mark.parametrize("stn", ["joint", "separate"])
def test_one_crop_for_a_scan_is_made_in_its_own_pose(stn):
    given = slices()
    pose, apart = scan_transforms(config("volume", "slice", stn), START, given, Z_MM)
    again, theta2 = scan_transforms(config("volume", "volume", stn), START, given, Z_MM)
    assert torch.equal(pose, again)
    assert torch.equal(theta2, common_crop(apart).expand(COUNT, 3, 3))
    if stn == "separate":
        assert torch.equal(pose, given.pose), "its poses were brought together before the crop was seen"
