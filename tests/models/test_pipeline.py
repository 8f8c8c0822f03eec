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
    """Return image and mask of the reference's body in given poses."""
    back = invert(matrix_from_pose(pose))
    mask = warp(body().expand(len(pose), 1, SIZE, SIZE), back, (SIZE, SIZE))
    return torch.where(mask > 0.5, 0.3, -2.0), mask


@pytest.mark.parametrize("start", ["anatomy", "moments", "identity"])
def test_the_joint_network_has_nine_outputs_and_starts_without_a_step(start):
    networks = pipeline(f"pose.start={start}")
    assert networks.joint.output.out_features == 9
    assert networks.pose.localization is None
    assert networks.crop.localization is None
    image, mask = lying(torch.tensor([[0.1, -0.2, -0.1, 0.05, 0.1], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    before = networks.pose.initial_pose(image, mask)
    pose, theta2 = networks.joint_step(image, mask, before)
    assert torch.equal(pose, before)
    assert torch.equal(theta2, torch.eye(3).expand(2, 3, 3))
    if start == "moments":
        assert pose[0].abs().max() > 0.05


def test_separate_networks_give_the_same_transforms():
    networks = pipeline("pose.start=moments", "pose.learned=true", joint=False)
    assert networks.joint is None
    torch.nn.init.normal_(networks.crop.localization.output.weight, std=0.02)
    image, mask = lying(torch.tensor([[0.1, -0.2, -0.1, 0.05, 0.1]]))
    start = networks.pose.initial_pose(image, mask)
    result = networks.transforms(image, mask, start)
    assert torch.equal(result.pose, start)
    assert torch.equal(result.theta2, networks.theta2(image, mask, matrix_from_pose(start)))
    assert not result.learned.any()
    with pytest.raises(AssertionError, match="stn=joint"):
        networks.joint_step(image, mask, start)


def test_the_joint_step_is_applied_to_the_start_and_bounded():
    networks = pipeline(
        "pose.start=identity", "pose.max_angle=0.2", "pose.max_log_scale=0.3", "pose.max_shift=0.1"
    )
    start = torch.tensor([[0.4, 0.5, 0.2, 0.1, 0.0]])
    image, mask = lying(start)
    networks.joint.output.bias.copy_(torch.tensor([9.0, -9.0, 0.01, 9.0, 0.0, 0.5, 0.4, -0.5, -0.6]))
    pose, theta2 = networks.joint_step(image, mask, start)
    assert pose[0, :3].tolist() == pytest.approx([0.6, 0.2, 0.21], abs=1e-4)
    # Half sides of the homogenized frame, carried through the start's matrix.
    shift = start[0, 3:] + matrix_from_pose(start)[0, :2, :2] @ torch.tensor([0.1, 0.0])
    assert pose[0, 3:].tolist() == pytest.approx(shift.tolist(), abs=1e-5)
    # The box's corners from those of the whole frame: half a side wide, the center of the box kept.
    assert box_from_matrix(theta2)[0].tolist() == pytest.approx([-0.5, -0.6, 0.5, 0.4])
    assert pipeline("pose.scales=1").pose.add_bounded(start, torch.tensor([[0, 0.1, 0.3, 0, 0]]))[
        0, 1:3
    ].tolist() == (pytest.approx([0.55, 0.55], abs=0.01))


def test_the_joint_network_sees_the_slice_in_its_start_pose():
    networks = pipeline("pose.start=moments")
    seen = []
    networks.joint.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    image, mask = lying(torch.tensor([[0.3, -0.2, -0.1, 0.05, 0.1]]))
    networks.transforms(image, mask, networks.pose.initial_pose(image, mask))
    assert (seen[1] - body()).abs().mean() < 0.02
    assert (mask - body()).abs().mean() > 0.06
    assert seen[0][..., :4].max().item() == pytest.approx(-2.0)


def test_a_step_that_lowers_the_agreement_is_rejected():
    networks = pipeline("pose.start=moments")
    true = torch.tensor([[0.2, -0.2, -0.1, 0.05, 0.1], [0.0, 0.1, 0.1, 0.0, 0.0]])
    image, mask = lying(true)
    start = networks.pose.initial_pose(image, mask)
    networks.joint.output.bias.copy_(torch.tensor([0.5, -0.5, -0.5, 0.3, 0.0, 0.5, 0.5, -0.7, -0.7]))
    pose, theta2 = networks.joint_step(image, mask, start)
    assert networks.pose.agreement(mask, pose).max() < 0.8
    result = networks.transforms(image, mask, start)
    assert not result.learned.any()
    assert torch.equal(result.pose, start)
    assert torch.equal(result.agreement, networks.pose.agreement(mask, start))
    # The crop was regressed in the pose that is not taken: it stays where it is in the slice.
    assert torch.allclose(
        frame_from_crop(result.pose, result.theta2)[:, :2, 2],
        frame_from_crop(pose, theta2)[:, :2, 2],
        atol=1e-5,
    )
    # Good enough goes before better.
    networks.joint.output.bias.copy_(torch.tensor([0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    result = networks.transforms(image, mask, start)
    assert result.learned.all()
    assert (result.agreement < networks.pose.agreement(mask, start)).all()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 5, 4, 8, 8)])
def test_argmax_takes_the_first_of_equal_classes(shape):
    probabilities = torch.randint(0, 4, shape).float() / 4.0  # many are equal
    expected = torch.from_numpy(probabilities.numpy().argmax(axis=1))
    assert torch.equal(most_probable(probabilities).long(), expected)
    assert torch.equal(marked(probabilities), expected > 0)
    assert (expected == 0).any()
    assert (expected > 0).any()


def test_restoring_the_region_of_the_crops_equals_restoring_everything():
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


def test_a_crop_outside_the_image_has_a_minimal_region():
    away = matrix_from_box(torch.tensor([[3.0, 3.0, 4.0, 4.0]]))
    rows, columns = reached(away, 16, (40, 56))
    assert (rows, columns) == (slice(39, 40), slice(55, 56))
    crop = torch.rand(1, 3, 16, 16).softmax(dim=1)
    assert restore(crop, away, (40, 56), region=(rows, columns))[0, 0].eq(1).all()
