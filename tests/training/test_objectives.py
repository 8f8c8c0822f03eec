"""The objectives of STN1 and STN2."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from objective_cases import (
    AIR,
    SIZE,
    STILL,
    batch_of,
    config,
    from_identity,
    joint,
    pipeline_of,
    poses,
    train,
    upright,
    validate,
)

from isopose.data.samples import Batch
from isopose.geometry.box import matrix_from_box
from isopose.geometry.pose import identity_pose, matrix_from_pose
from isopose.geometry.warp import warp
from isopose.settings import CropConfig
from isopose.training.losses import crop_loss, pose_loss
from isopose.training.objectives import CropObjective, JointObjective, PoseObjective, box_overlap, noise_size
from isopose.training.targets import crop_targets


def test_pose_objective_is_eq_1_and_learns() -> None:
    batch = batch_of(poses())
    pipeline = pipeline_of(config("pose.start=identity"))
    objective = PoseObjective(pipeline)
    # At the identity the unchanged masks are compared with the reference, image by image.
    reference = upright()[1]
    overlap = (batch.mask * reference).sum((1, 2, 3))
    dice = 2 * overlap / (batch.mask.square().sum((1, 2, 3)) + reference.square().sum())
    assert objective(batch, STILL).item() == pytest.approx(1 - dice.mean().item(), abs=1e-4)
    untrained = validate(objective, batch)
    before = untrained["mask dice"]
    # Untrained it is its own start, which is reported beside it.
    assert untrained["identity alone"] == before
    # What its mask Dice hides stands beside it, and does not choose the weights.
    assert list(untrained) == ["mask dice", "identity alone", "roll slope", "degrees from moments"]
    assert untrained["roll slope"] == 0.0
    assert before == pytest.approx(dice.mean().item(), abs=1e-4)
    losses = train(objective, batch, 1e-3, 40)
    assert losses[-1] < 0.5 * losses[0]
    trained = validate(objective, batch)
    assert trained["mask dice"] > before + 0.1
    assert trained["identity alone"] == before


def test_the_slope_distinguishes_an_stn1_that_learned_rotation() -> None:
    """After a few steps the masks overlap well, and the roll is still that of the slice."""
    lying = poses(24)
    batch = batch_of(lying)
    objective = PoseObjective(pipeline_of(config("pose.start=identity", "pose.max_angle=3.2")))
    still = torch.zeros(24, noise_size(2))
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-4)

    def steps(count: int) -> dict[str, float]:
        for _ in range(count):
            optimizer.zero_grad()
            objective(batch, still).backward()
            optimizer.step()
        return validate(objective, batch)

    early, late = steps(12), steps(250)
    assert early["mask dice"] > 0.85
    assert early["roll slope"] < 0.5 < late["roll slope"]
    assert late["degrees from moments"] < 0.5 * early["degrees from moments"]


def test_the_error_against_the_true_roll_of_phantoms_is_reported() -> None:
    batch = batch_of(poses())
    objective = PoseObjective(pipeline_of(config("pose.start=identity")), None, {"one": 0.25})
    cases = [SimpleNamespace(record=SimpleNamespace(id=name)) for name in ("one", "two")]
    slices = SimpleNamespace(cases=cases, rows=np.array([[0, 0]] * 4 + [[1, 0]] * 2))
    with torch.no_grad():
        judged = objective.validate(slices, [batch])
    # Untrained it says 0 of all.
    assert judged["degrees from the true roll"] == pytest.approx(math.degrees(0.25), abs=1e-3)


def test_moments_alone_find_most_of_the_pose() -> None:
    objective = PoseObjective(pipeline_of(config()))
    assert objective(batch_of(poses()), STILL).item() < 0.03


def test_crop_objective_is_eq_2_at_its_start_and_learns() -> None:
    batch = batch_of(poses())
    objective = CropObjective(pipeline_of(config("crop.margin=0.1")))
    whole = torch.eye(3).expand(6, 3, 3)
    target, has_box = crop_targets(
        batch.labels, matrix_from_pose(batch.pose), CropConfig(size=64, margin=0.1)
    )
    assert has_box.all()
    seen = warp(batch.image, matrix_from_pose(batch.pose), (64, 64), fill=AIR)
    cut = [warp(seen, theta, (64, 64), fill=AIR) for theta in (whole, target)]
    expected = crop_loss(cut[0], cut[1], whole, target, objective.crop.config)
    loss = objective(batch, STILL)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    overlap = validate(objective, batch)["box overlap"]
    # The target lies within the whole frame: the overlap is its part of the area.
    assert overlap == pytest.approx(target[:, 0, 0].square().mean().item(), rel=1e-4)
    losses = train(objective, batch, 2e-3, 40)
    assert losses[-1] < 0.5 * losses[0]
    assert validate(objective, batch)["box overlap"] > overlap + 0.3


def test_slices_without_label_do_not_train_the_crop() -> None:
    batch = batch_of(poses(4))
    labels = batch.labels.clone()
    labels[1] = labels[3] = 0
    objective = CropObjective(pipeline_of(config()))
    torch.nn.init.normal_(objective.crop.localization.output.weight, std=0.01)
    loss = objective(replace(batch, labels=labels), STILL[:4])
    kept = batch.select(torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(objective(kept, STILL[:2]).item(), rel=1e-5)
    judged = validate(objective, replace(batch, labels=labels))
    assert judged == pytest.approx(validate(objective, kept))
    # A batch without any: no loss, no gradient, and nothing to validate.
    none = replace(batch, labels=torch.zeros_like(labels))
    loss = objective(none, STILL[:4])
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in objective.parameters())
    assert validate(objective, none) == {}


def test_joint_objective_is_eq_1_and_eq_2_at_its_start() -> None:
    batch = from_identity(batch_of(poses()))
    objective = joint("crop.margin=0.1")
    whole = torch.eye(3).expand(6, 3, 3)
    target, _ = crop_targets(batch.labels, matrix_from_pose(batch.pose), CropConfig(size=64, margin=0.1))
    cut = [warp(batch.image, theta, (64, 64), fill=AIR) for theta in (whole, target)]
    eq_2 = crop_loss(cut[0], cut[1], whole, target, objective.config.crop)
    eq_1 = pose_loss(warp(batch.mask, whole, (SIZE, SIZE)), upright()[1])
    assert objective(batch, STILL).item() == pytest.approx((eq_1 + eq_2).item(), rel=1e-5)
    judged = validate(objective, batch)
    assert judged["mask dice"] == judged["identity alone"] == pytest.approx(1 - eq_1.item(), abs=1e-4)
    assert judged["box overlap"] == pytest.approx(target[:, 0, 0].square().mean().item(), rel=1e-4)
    assert judged["pose and crop"] == pytest.approx((judged["mask dice"] + judged["box overlap"]) / 2)
    assert next(iter(judged)) == "pose and crop"
    # From the identity this network alone sees the roll; from the shipped network's start it does not.
    assert judged["roll slope"] == 0.0
    assert "degrees from moments" in judged


def test_joint_learns_a_known_shift_and_box() -> None:
    true = identity_pose(6)
    true[:, 3:] = torch.tensor(
        [[-0.2, 0.1], [0.2, 0.15], [0.0, -0.2], [0.1, 0.0], [-0.15, -0.1], [0.25, -0.05]]
    )
    batch = batch_of(true)
    objective, start = joint(), from_identity(batch)
    losses = train(objective, start, 1e-3, 200)
    assert losses[-1] < 0.2 * losses[0]
    pose, theta2 = objective.joint_step(start.image, start.mask, start.pose)
    assert (pose - true).abs().max() < 0.03
    # The box of the upright slice's labels, which all slices show once posed.
    target, _ = crop_targets(batch.labels, matrix_from_pose(true), objective.config.crop)
    assert target[:, 0, 0].max() < 0.8
    assert (theta2 - target).abs().max() < 0.04
    after = validate(objective, start)
    assert after["mask dice"] > 0.98
    assert after["identity alone"] < 0.85
    assert after["box overlap"] > 0.9


def test_gradients_reach_all_nine_outputs_and_eq_2_does_not_change_the_pose() -> None:
    batch = from_identity(batch_of(poses()))

    def reached(of: Batch) -> list[bool]:
        objective = joint()
        objective(of, STILL[: len(of.rows)]).backward()
        return (objective.joint.output.bias.grad.abs() > 1e-6).tolist()

    assert reached(batch) == [True] * 9
    # Without labels the pose alone; where every outline is the reference's already, the crop alone.
    assert reached(replace(batch, labels=torch.zeros_like(batch.labels))) == [True] * 5 + [False] * 4
    objective = joint()
    pose, _, target, _ = objective._pose_and_crop(batch)
    assert not target.requires_grad
    objective.reference = warp(batch.mask, matrix_from_pose(pose.detach()), (SIZE, SIZE))
    loss = objective(batch, STILL)
    (step,) = torch.autograd.grad(loss, objective.joint.output.bias)
    still = joint()
    still.reference = objective.reference
    (of_pose,) = torch.autograd.grad(
        still(replace(batch, labels=torch.zeros_like(batch.labels)), STILL), still.joint.output.bias
    )
    assert torch.allclose(step[:5], of_pose[:5], atol=1e-7), "only Eq. 1 moves the pose"
    assert (step[5:].abs() > 1e-6).all()


def test_joint_slices_without_label_train_the_pose_only() -> None:
    batch = from_identity(batch_of(poses(4)))
    labels = batch.labels.clone()
    labels[1] = labels[3] = 0
    objective = joint()
    torch.nn.init.normal_(objective.joint.output.weight, std=0.01)
    mixed = objective(replace(batch, labels=labels), STILL[:4]).item()
    none = objective(replace(batch, labels=torch.zeros_like(labels)), STILL[:4]).item()
    kept = batch.select(torch.tensor([0, 2]))
    eq_2 = (
        objective(kept, STILL[:2]).item()
        - objective(replace(kept, labels=torch.zeros_like(kept.labels)), STILL[:2]).item()
    )
    assert mixed == pytest.approx(none + eq_2, rel=1e-4)
    assert "box overlap" not in validate(objective, replace(batch, labels=torch.zeros_like(labels)))


def test_only_the_joint_network_is_trained() -> None:
    objective = JointObjective(pipeline_of(config("stn=joint", "pose.start=anatomy")))
    assert {name.partition(".")[0] for name, _ in objective.named_parameters()} == {"joint"}
    assert all(name.startswith("joint.") for name in objective.state_dict())


def test_box_overlap_by_hand() -> None:
    boxes = torch.tensor([[-0.5, -0.5, 0.5, 0.5], [-0.5, -0.5, 0.5, 0.5], [-1.0, -1.0, -0.4, -0.4]])
    others = torch.tensor([[0.0, -0.5, 1.0, 0.5], [-0.5, -0.5, 0.5, 0.5], [0.4, 0.4, 1.0, 1.0]])
    overlap = box_overlap(matrix_from_box(boxes), matrix_from_box(others))
    assert overlap.tolist() == pytest.approx([0.5 / 1.5, 1.0, 0.0])
