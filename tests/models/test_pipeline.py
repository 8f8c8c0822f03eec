"""One network for pose and crop: its start, its bounds, and the fallback if its pose is wrong."""

import pytest
import torch

from isopose.geometry.box import box_from_matrix, matrix_from_box
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import invert, warp
from isopose.models.pipeline import Networks, frame_from_crop
from isopose.models.restore import marked, most_probable, reached, restore
from isopose.presets import load_config

SIZE = 64


def body() -> torch.Tensor:
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    return (((x / 0.6) ** 2 + (y / 0.4) ** 2) < 1).float()[None, None]


def pipeline(*settings: str, joint: bool = True) -> Networks:
    torch.manual_seed(0)
    config = load_config(
        base={"stn": "joint" if joint else "separate", "data": {"size": SIZE}},
        settings=["pose.size=64", "crop.size=32", "unet.base_features=2", *settings],
    )
    return Networks(config, 3, body(), air=-2.0, top=3.0).eval().requires_grad_(False)


def lying(pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and mask of the reference's body lying in poses."""
    back = invert(matrix_from_pose(pose))
    mask = warp(body().expand(len(pose), 1, SIZE, SIZE), back, (SIZE, SIZE))
    return torch.where(mask > 0.5, 0.3, -2.0), mask


@pytest.mark.parametrize("start", ["anatomy", "moments", "identity"])
def test_one_network_of_nine_numbers_that_starts_at_the_start(start):
    made = pipeline(f"pose.start={start}")
    assert made.joint.output.out_features == 9
    assert made.pose.localization is None
    assert made.crop.localization is None
    image, mask = lying(torch.tensor([[0.1, -0.2, -0.1, 0.05, 0.1], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    before = made.pose.initial_pose(image, mask)
    pose, theta2 = made.joint_step(image, mask, before)
    assert torch.equal(pose, before)
    assert torch.equal(theta2, torch.eye(3).expand(2, 3, 3))
    if start == "moments":
        assert pose[0].abs().max() > 0.05


def test_separate_networks_are_as_they_were():
    made = pipeline("pose.start=moments", "pose.learned=true", joint=False)
    assert made.joint is None
    torch.nn.init.normal_(made.crop.localization.output.weight, std=0.02)
    image, mask = lying(torch.tensor([[0.1, -0.2, -0.1, 0.05, 0.1]]))
    start = made.pose.initial_pose(image, mask)
    found = made.transforms(image, mask, start)
    assert torch.equal(found.pose, start)
    assert torch.equal(found.theta2, made.theta2(image, mask, matrix_from_pose(start)))
    assert not found.learned.any()
    with pytest.raises(AssertionError, match="stn=joint"):
        made.joint_step(image, mask, start)


def test_the_step_is_seen_in_the_start_and_bounded():
    made = pipeline(
        "pose.start=identity", "pose.max_angle=0.2", "pose.max_log_scale=0.3", "pose.max_shift=0.1"
    )
    start = torch.tensor([[0.4, 0.5, 0.2, 0.1, 0.0]])
    image, mask = lying(start)
    made.joint.output.bias.copy_(torch.tensor([9.0, -9.0, 0.01, 9.0, 0.0, 0.5, 0.4, -0.5, -0.6]))
    pose, theta2 = made.joint_step(image, mask, start)
    assert pose[0, :3].tolist() == pytest.approx([0.6, 0.2, 0.21], abs=1e-4)
    # Half sides of the homogenized frame, carried through the start's matrix.
    shift = start[0, 3:] + matrix_from_pose(start)[0, :2, :2] @ torch.tensor([0.1, 0.0])
    assert pose[0, 3:].tolist() == pytest.approx(shift.tolist(), abs=1e-5)
    # The box's corners from those of the whole frame: half a side wide, the center of the box kept.
    assert box_from_matrix(theta2)[0].tolist() == pytest.approx([-0.5, -0.6, 0.5, 0.4])
    assert pipeline("pose.scales=1").pose.add_bounded(start, torch.tensor([[0, 0.1, 0.3, 0, 0]]))[
        0, 1:3
    ].tolist() == (pytest.approx([0.55, 0.55], abs=0.01))


def test_what_is_looked_at_is_the_slice_in_the_start():
    made = pipeline("pose.start=moments")
    seen = []
    made.joint.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    image, mask = lying(torch.tensor([[0.3, -0.2, -0.1, 0.05, 0.1]]))
    made.transforms(image, mask, made.pose.initial_pose(image, mask))
    assert (seen[1] - body()).abs().mean() < 0.02
    assert (mask - body()).abs().mean() > 0.06
    assert seen[0][..., :4].max().item() == pytest.approx(-2.0)


def test_a_step_that_leads_away_from_the_reference_is_not_taken():
    made = pipeline("pose.start=moments")
    true = torch.tensor([[0.2, -0.2, -0.1, 0.05, 0.1], [0.0, 0.1, 0.1, 0.0, 0.0]])
    image, mask = lying(true)
    start = made.pose.initial_pose(image, mask)
    made.joint.output.bias.copy_(torch.tensor([0.5, -0.5, -0.5, 0.3, 0.0, 0.5, 0.5, -0.7, -0.7]))
    pose, theta2 = made.joint_step(image, mask, start)
    assert made.pose.agreement(mask, pose).max() < 0.8
    found = made.transforms(image, mask, start)
    assert not found.learned.any()
    assert torch.equal(found.pose, start)
    assert torch.equal(found.agreement, made.pose.agreement(mask, start))
    # The crop was regressed in the pose that is not taken: it stays where it is in the slice.
    assert torch.allclose(
        frame_from_crop(found.pose, found.theta2)[:, :2, 2],
        frame_from_crop(pose, theta2)[:, :2, 2],
        atol=1e-5,
    )
    # Good enough goes before better.
    made.joint.output.bias.copy_(torch.tensor([0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    found = made.transforms(image, mask, start)
    assert found.learned.all()
    assert (found.agreement < made.pose.agreement(mask, start)).all()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 5, 4, 8, 8)])
def test_the_most_probable_class_is_the_first_of_the_largest(shape):
    probabilities = torch.randint(0, 4, shape).float() / 4.0  # many are equal
    expected = torch.from_numpy(probabilities.numpy().argmax(axis=1))
    assert torch.equal(most_probable(probabilities).long(), expected)
    assert torch.equal(marked(probabilities), expected > 0)
    assert (expected == 0).any()
    assert (expected > 0).any()


def test_a_region_holds_all_that_the_crops_reach_and_is_restored_as_the_whole_is():
    generator = torch.Generator().manual_seed(5)
    size, smaller = (40, 56), 0
    for _ in range(20):
        pose = 0.3 * torch.randn(3, 5, generator=generator)
        center = 0.5 * torch.rand(3, 2, generator=generator) - 0.25
        half = 0.2 + 0.3 * torch.rand(3, 1, generator=generator)
        theta = frame_from_crop(pose, matrix_from_box(torch.cat([center - half, center + half], dim=1)))
        crop = torch.rand(3, 4, 16, 16, generator=generator).softmax(dim=1)
        whole = restore(crop, theta, size)
        rows, columns = reached(theta, 16, size)
        part = restore(crop, theta, size, region=(rows, columns))
        torch.testing.assert_close(part, whole[:, :, rows, columns], rtol=0, atol=2e-4)
        outside = whole.clone()
        outside[:, :, rows, columns] = 0
        outside[:, 0, rows, columns] = 1
        assert torch.equal(outside[:, 0], torch.ones(3, *size))
        smaller += part[0, 0].numel() < 0.8 * whole[0, 0].numel()
    assert smaller >= 5


def test_a_crop_that_lies_outside_reaches_next_to_nothing():
    away = matrix_from_box(torch.tensor([[3.0, 3.0, 4.0, 4.0]]))
    rows, columns = reached(away, 16, (40, 56))
    assert (rows, columns) == (slice(39, 40), slice(55, 56))
    crop = torch.rand(1, 3, 16, 16).softmax(dim=1)
    assert restore(crop, away, (40, 56), region=(rows, columns))[0, 0].eq(1).all()
