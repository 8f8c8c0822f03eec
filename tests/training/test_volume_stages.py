"""The objectives of volumes: targets where they should be, losses that fall, gradients, scores."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isopose.data.samples import Batch, VolumeBatch
from isopose.geometry.box import box_from_matrix, box_overlap, matrix_from_box
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import invert, warp
from isopose.labels import Labels
from isopose.models.pipeline import Networks
from isopose.presets import load_config
from isopose.training import losses as losses_module
from isopose.training.losses import one_hot
from isopose.training.objectives import CropObjective, noise_size
from isopose.training.segmentation import SegmentationObjective
from isopose.training.targets import crop_targets, homogenizing_matrix

SIDE, DEPTH = 64, 10
#: The stack is 0.8 frames deep: slices are longer than pixels by a factor of 5.
STACK_FROM_FRAME = torch.diag(torch.tensor([1.0, 1.0, 1.0 / 0.8, 1.0]))
STILL = torch.zeros(2, noise_size(3))


def named(*names: str) -> Labels:
    return Labels({name: value for value, name in enumerate(names, start=1)})


def pipeline(*settings: str) -> Networks:
    base: dict[str, Any] = {
        "dims": 3,
        "data": {"size": SIDE},
        "pose": {"start": "moments"},
        "crop": {"size": 32, "depth": 16, "margin": 0.0},
        "unet": {"input": "half", "depth": 16, "base_features": 4},
    }
    torch.manual_seed(0)
    networks = Networks(load_config(base=base, settings=settings), 3, torch.ones(1, 1, 32, 32), -2.0, 3.0)
    networks.reach.fill_(0.8)
    return networks


def case(pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, mask, labels of a stack whose pose is given: a box as kidney, a smaller one in it as tumor."""
    line = (torch.arange(SIDE) + 0.5) / (SIDE / 2) - 1
    height = 0.8 * ((torch.arange(DEPTH) + 0.5) / (DEPTH / 2) - 1)
    z, y, x = torch.meshgrid(height, line, line, indexing="ij")
    points = torch.stack([x, y, z, torch.ones_like(x)], dim=-1) @ invert(matrix_from_pose(pose)).T
    u, v, w = points[..., 0], points[..., 1], points[..., 2]
    mask = (u / 0.9) ** 2 + (v / 0.65) ** 2 < 1
    labels = torch.zeros(DEPTH, SIDE, SIDE, dtype=torch.uint8)
    labels[(u - 0.3).abs().lt(0.2) & (v - 0.1).abs().lt(0.2) & (w + 0.1).abs().lt(0.35)] = 1
    labels[(u - 0.3).abs().lt(0.1) & (v - 0.1).abs().lt(0.1) & (w + 0.1).abs().lt(0.2)] = 2
    image = torch.where(mask, 0.0, -2.0)
    image[labels == 1], image[labels == 2] = 1.5, 3.0
    return image[None, None], mask.float()[None, None], labels[None]


def targets_of(networks: Networks, samples: VolumeBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return crop_targets(samples.labels, homogenizing_matrix(networks, samples), networks.config.crop)


def batch(*poses: torch.Tensor) -> VolumeBatch:
    images, masks, labels = zip(*(case(pose) for pose in poses), strict=True)
    matrices = STACK_FROM_FRAME.expand(len(poses), 4, 4)
    theta2 = matrix_from_box(torch.tensor([[-0.2, -0.4, -0.8, 0.8, 0.6, 0.6]])).expand(len(poses), 4, 4)
    return Batch(
        torch.arange(len(poses)), images, masks, labels, torch.stack(poses), theta2.contiguous(), matrices
    )


STRAIGHT = torch.zeros(9)
LEANING = torch.tensor([0.3, 0.12, -0.1, -0.2, -0.2, -0.2, 0.05, -0.04, 0.06])


def test_targets_are_the_boxes_of_labels_in_the_homogenized_volume():
    """The box is the same for a straight patient and for one that is tilted, smaller and shifted."""
    target, has_box = targets_of(pipeline(), batch(STRAIGHT, LEANING))
    assert has_box.tolist() == [True, True]
    # By hand: x 0.1 to 0.5, y -0.1 to 0.3, z -0.45 to 0.25 over a reach of 0.8.
    expected = torch.tensor([0.1, -0.1, -0.45 / 0.8, 0.5, 0.3, 0.25 / 0.8])
    for box in box_from_matrix(target):
        # To within the voxels of the crop's input; along z within a slice, a fifth of the half depth.
        assert ((box - expected).abs() < torch.tensor([0.08, 0.08, 0.2] * 2)).all()
        assert (box[3] - box[0]).item() == pytest.approx((box[4] - box[1]).item())


def test_the_margin_widens_targets_and_slices_without_labels_have_none():
    wide, wider = (
        targets_of(pipeline(f"crop.margin={margin}"), batch(STRAIGHT))[0] for margin in (0.1, 0.25)
    )
    ratio = (wider / wide).diagonal(dim1=1, dim2=2)[0, :3]
    assert ratio.tolist() == pytest.approx([1.5 / 1.2] * 3, rel=1e-4)
    empty = batch(STRAIGHT)
    empty.labels[0].zero_()
    assert targets_of(pipeline(), empty)[1].tolist() == [False]
    loss = CropObjective(pipeline())(empty, STILL[:1])
    assert loss.item() == 0.0


def test_the_crop_learns_and_its_loss_is_zero_at_the_target():
    torch.manual_seed(2)
    objective = CropObjective(pipeline())
    target, _ = targets_of(objective.networks[0], batch(STRAIGHT, LEANING))
    examples = batch(STRAIGHT, LEANING)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    with torch.no_grad():
        before = objective.validate(None, [examples])["box overlap"]
    losses = []
    for _ in range(80):
        loss = objective(examples, STILL)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    with torch.no_grad():
        assert objective.validate(None, [examples])["box overlap"] > max(0.5, 2 * before)
        objective.crop.localization.output.weight.zero_()
        raw = box_from_matrix(target)[0] - objective.crop.start
        objective.crop.localization.output.bias.copy_(raw)
    assert objective(batch(STRAIGHT), STILL[:1]).item() < 1e-3


def test_the_unet_learns_in_the_crop():
    objective = SegmentationObjective(pipeline("unet.pose_jitter=0.1"), named("kidney", "tumor"))
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    examples = batch(STRAIGHT, LEANING)
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        loss = objective(examples, torch.rand(2, noise_size(3), generator=generator) * 2 - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    objective.eval()
    scores = objective.validate(SimpleNamespace(patients=["a", "b"]), [examples])
    assert list(scores) == ["dice", "dice kidney", "dice tumor"]
    assert scores["dice"] > 0.6
    assert scores["dice"] == pytest.approx((scores["dice kidney"] + scores["dice tumor"]) / 2)


def test_a_perfect_network_scores_nearly_one_in_the_frame():
    """The cropped and restored labels lose only by resampling."""
    networks = pipeline("unet.input=full", "unet.depth=64")
    objective = SegmentationObjective(networks, named("kidney", "tumor"))

    def truth(crop):
        return [20.0 * torch.cat([(crop < 1).float(), ((crop >= 1) & (crop < 2.2)), (crop >= 2.2)], dim=1)]

    networks.unet.forward = truth
    scores = objective.validate(SimpleNamespace(patients=["a", "b"]), [batch(STRAIGHT, LEANING)])
    assert scores["dice kidney"] > 0.85
    assert scores["dice tumor"] > 0.85


@pytest.mark.parametrize(("place", "limit"), [(0, 0.17), (1, 0.09), (3, 0.1), (6, 0.1)])
def test_jitter_disturbs_pose_and_crop_within_their_bounds(place, limit):
    objective = SegmentationObjective(pipeline("unet.pose_jitter=0.5"), named("a", "b"))
    networks, examples = objective.networks[0], batch(STRAIGHT)
    assert torch.allclose(objective._jittered(examples, STILL[:1]), objective._theta(examples))
    noise = torch.zeros(1, noise_size(3))
    noise[0, place] = 1.0
    pose = torch.zeros(1, 9)
    pose[0, place] = 0.5 * limit
    expected = networks.input_from_homogenized(pose, STACK_FROM_FRAME) @ examples.theta2
    assert torch.allclose(objective._jittered(examples, noise), expected, atol=1e-6)
    still = pipeline("unet.pose_jitter=0.5", "crop.enabled=false")
    noise = torch.zeros(1, noise_size(3))
    noise[0, 9:] = 1.0
    objective = SegmentationObjective(still, named("a", "b"))
    assert torch.allclose(objective._jittered(examples, noise), objective._theta(examples))


def test_gradients_reach_the_image_through_pose_crop_and_network():
    objective = SegmentationObjective(pipeline(), named("kidney", "tumor"))
    examples = batch(LEANING)
    examples.image[0].requires_grad_()
    objective(examples, STILL[:1]).backward()
    assert examples.image[0].grad.abs().sum() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())


def test_a_mirrored_volume_is_the_flip_with_the_sides_swapped():
    """The loss of a mirrored volume is that of the flipped crop against the flipped, swapped target."""
    objective = SegmentationObjective(pipeline("unet.mirror=1"), named("left kidney", "right kidney"))
    networks, examples, seen = objective.networks[0], batch(LEANING), []
    truth = one_hot(examples.labels[0], 3)
    whole = warp(truth, objective._theta(examples), (16, 32, 32))

    def unet(crop, deep):
        seen.append(crop)
        return [torch.zeros(1, 3, 16, 32, 32)]

    objective.unet.forward = unet
    plain = networks.cut(examples.image[0], objective._theta(examples))
    objective(examples, STILL[:1])
    assert torch.allclose(seen[0], plain.flip(-1), atol=1e-4)
    targets = []
    original = losses_module.segmentation_loss
    try:
        losses_module.segmentation_loss = lambda p, goal, **_: targets.append(goal) or p.sum()
        objective(examples, STILL[:1])
    finally:
        losses_module.segmentation_loss = original
    assert torch.allclose(targets[0][:, 1:], whole.flip(-1)[:, [2, 1]], atol=1e-4)


def test_overlap_of_boxes_by_hand():
    a = matrix_from_box(torch.tensor([[-0.5, -0.5, -0.5, 0.5, 0.5, 0.5]]))
    b = matrix_from_box(torch.tensor([[-0.5, -0.5, 0.0, 0.5, 0.5, 0.5]]))
    c = matrix_from_box(torch.tensor([[0.5, -0.5, -0.5, 1.5, 0.5, 0.5]]))
    assert box_overlap(a, a).item() == pytest.approx(1.0)
    assert box_overlap(a, b).item() == pytest.approx(0.5)
    assert box_overlap(a, c).item() == 0.0
    assert one_hot(torch.zeros(1, 2, 3, 4), 3).shape == (1, 3, 2, 3, 4)
    assert math.isfinite(box_overlap(a, c).item())
