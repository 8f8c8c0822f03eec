"""The U-Net's objective."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from objective_cases import (
    AIR,
    PLAIN,
    SIZE,
    STILL,
    TOP,
    Answering,
    assert_all_learn,
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
from torch import Tensor

from isopose.data.samples import Batch
from isopose.errors import InputError
from isopose.geometry.box import jittered, matrix_from_box
from isopose.geometry.pose import add_residual, identity_pose, matrix_from_pose
from isopose.geometry.warp import warp
from isopose.labels import IGNORED, Labels
from isopose.models.pipeline import Networks
from isopose.models.restore import restore
from isopose.presets import load_config
from isopose.training.crop_augmentation import augmented_intensities, displacements, seeds_of
from isopose.training.losses import one_hot, segmentation_loss
from isopose.training.objectives import CropObjective, PoseObjective, noise_size
from isopose.training.segmentation import POSE_JITTER, SegmentationObjective, patient_dice, warped_target


def test_every_parameter_learns() -> None:
    batch = batch_of(poses())
    # An output of zeros, as it starts, gives no gradient to the layers before it: take it after a step.
    for objective, batch_of_objective in (
        (PoseObjective(pipeline_of(config("pose.start=identity"))), batch),
        (CropObjective(pipeline_of(config())), batch),
        (joint(), from_identity(batch)),
    ):
        train(objective, batch_of_objective, 1e-3, 1)
        assert_all_learn(objective, objective(batch_of_objective, STILL))
    for space in ("native", "canonical"):
        objective = SegmentationObjective(pipeline_of(config(f"unet.loss_space={space}")))
        assert_all_learn(objective, objective(batch, STILL))


@pytest.mark.parametrize("space", ["native", "canonical"])
def test_deep_supervision_weighs_levels_by_halves(space: str) -> None:
    """Eq. 3 from the network's own outputs: labels averaged over 2^n pixels, weighed by 1 / 2^n."""
    batch = batch_of(identity_pose(3))
    objective = SegmentationObjective(pipeline_of(config(f"unet.loss_space={space}")))
    outputs = [logits.detach() for logits in copy.deepcopy(objective.unet)(batch.image, deep=True)]
    assert [logits.shape[-1] for logits in outputs] == [64, 32]
    labels = one_hot(batch.labels, 3)
    coarse = labels.reshape(3, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    parts = [
        segmentation_loss(logits.softmax(1), goal).item()
        for logits, goal in zip(outputs, (labels, coarse), strict=True)
    ]
    assert objective(batch, STILL[:3]).item() == pytest.approx(parts[0] + 0.5 * parts[1], rel=1e-3)


def test_native_and_canonical_losses_agree_at_the_identity() -> None:
    batch = batch_of(identity_pose(4))
    losses = {}
    for space in ("native", "canonical"):
        objective = SegmentationObjective(pipeline_of(config(f"unet.loss_space={space}")))
        losses[space] = objective(batch, STILL[:4]).item()
    assert losses["native"] == pytest.approx(losses["canonical"], rel=1e-3)


def test_the_native_loss_compares_in_the_patients_pose() -> None:
    """For a perfect network both spaces have a low loss; mirrored labels have a high one."""
    theta2 = matrix_from_box(torch.tensor([[-0.75, -0.7, 0.65, 0.7]])).expand(4, 3, 3)
    batch = batch_of(poses(4), theta2)
    for space in ("native", "canonical"):
        objective = SegmentationObjective(pipeline_of(config(f"unet.loss_space={space}")))
        theta = objective._theta(batch)
        probabilities = warped_target(one_hot(batch.labels, 3), theta, (SIZE, SIZE))
        objective.unet = Answering(probabilities.clamp(min=1e-4).log())
        loss = objective(batch, STILL[:4]).item()
        turned = objective(replace(batch, labels=batch.labels.flip(2)), STILL[:4]).item()
        assert loss < 0.25
        assert turned > loss + 0.5


def test_jitter_of_pose_and_crop_follows_the_configuration() -> None:
    noise = torch.rand(6, noise_size(2), generator=torch.Generator().manual_seed(1)) * 2 - 1
    theta2 = matrix_from_box(torch.tensor([[-0.5, -0.4, 0.5, 0.6]])).expand(6, 3, 3)
    batch = batch_of(poses(), theta2)
    settings = load_config(base=PLAIN, settings=["unet.pose_jitter=0.5", "crop.jitter_shift=0.2"])
    objective = SegmentationObjective(pipeline_of(settings))
    moved = objective._jittered(batch, noise)
    pose = add_residual(batch.pose, noise[:, :5] * 0.5 * torch.tensor(POSE_JITTER[2]))
    crop = jittered(theta2, noise[:, 5:8], shift=0.2, scale=settings.crop.jitter_scale)
    assert torch.allclose(moved, matrix_from_pose(pose) @ crop, atol=1e-6)
    assert not torch.allclose(moved, objective._theta(batch), atol=0.05)
    still = SegmentationObjective(pipeline_of(config()))
    assert torch.allclose(still._jittered(batch, noise), still._theta(batch), atol=1e-6)
    # Where no crop is configured its noise does nothing.
    whole = SegmentationObjective(
        pipeline_of(load_config(base=PLAIN, settings=["crop.enabled=false", "unet.pose_jitter=0.5"]))
    )
    without = replace(batch, theta2=torch.eye(3).expand(6, 3, 3))
    assert torch.allclose(whole._jittered(without, noise), matrix_from_pose(pose), atol=1e-6)


def test_a_single_scale_is_jittered_isotropically() -> None:
    """With a single scale, jitter must not stretch slices along one axis."""
    noise = torch.rand(6, noise_size(2), generator=torch.Generator().manual_seed(1)) * 2 - 1
    batch = batch_of(identity_pose(6))
    for scales in (1, 2):
        settings = config("unet.pose_jitter=1", "crop.enabled=false", f"pose.scales={scales}")
        theta = SegmentationObjective(pipeline_of(settings))._jittered(batch, noise)
        stretch = (theta[:, :2, 0].norm(dim=1) / theta[:, :2, 1].norm(dim=1)).log()
        size = theta[:, :2, 0].norm(dim=1) * theta[:, :2, 1].norm(dim=1)
        assert torch.allclose(size.log(), 0.1 * noise[:, 1:3].sum(dim=1), atol=1e-5)
        assert torch.allclose(stretch, (scales - 1) * 0.1 * (noise[:, 1] - noise[:, 2]), atol=1e-5)


#: Classes 1 and 3 are each other's other side.
SIDED = ("kidney_left", "tumor", "kidney_right")
SWAPPED = [0, 3, 2, 1]


def sided(batch: Batch) -> Batch:
    """Label the right half of the image (the patient's left) as class 1, the other half as class 3."""
    right = (batch.labels == 1) & (torch.arange(SIZE) < SIZE // 2)
    return replace(batch, labels=torch.where(right, 3, batch.labels.long()).to(torch.uint8))


def numbered(names: tuple[str, ...]) -> Labels:
    return Labels({name: value for value, name in enumerate(names, start=1)})


def sided_objective(*settings: str) -> SegmentationObjective:
    torch.manual_seed(0)
    objective = SegmentationObjective(Networks(config(*settings), 4, upright()[1], AIR, TOP), numbered(SIDED))
    for output in objective.unet.outputs.values():
        # Answers far enough apart that losses of other crops and targets differ.
        torch.nn.init.normal_(output[0].weight)
    return objective


def random_noise() -> Tensor:
    return torch.rand(6, noise_size(2), generator=torch.Generator().manual_seed(7)) * 2 - 1


#: Lies to one side and is not the middle of anything, so that a crop which stays where it was is another one.
OFF_CENTER = torch.tensor([[-0.75, -0.4, 0.15, 0.5]])


@pytest.mark.parametrize("space", ["native", "canonical"])
def test_the_mirrored_loss_equals_that_of_the_flipped_crop_and_swapped_target(space: str) -> None:
    """With and without jitter; the expected loss is computed by flipped images, not mirrored transforms."""
    batch = sided(batch_of(poses(), matrix_from_box(OFF_CENTER).expand(6, 3, 3)))
    jitter = ("unet.pose_jitter=0.4", "crop.jitter_shift=0.1", "crop.jitter_scale=0.1")
    objective = sided_objective(f"unet.loss_space={space}", "unet.mirror=1", *jitter)
    plain = sided_objective(f"unet.loss_space={space}", "unet.mirror=0", *jitter)
    noise = random_noise()
    theta = plain._jittered(batch, noise)
    flipped = warp(batch.image, theta, (SIZE, SIZE), fill=AIR).flip(3)
    swapped = one_hot(batch.labels, 4)[:, SWAPPED]
    expected = 0.0
    for level, logits in enumerate(copy.deepcopy(objective.unet)(flipped, deep=True)):
        probabilities = logits.softmax(dim=1)
        if space == "canonical":
            goal = warped_target(swapped, theta, (SIZE, SIZE)).flip(3)
        else:
            probabilities = restore(
                probabilities.flip(3), theta, (SIZE >> level, SIZE >> level), mode="nearest"
            )
            goal = swapped
        goal = torch.nn.functional.avg_pool2d(goal, 2**level)
        expected += 0.5**level * segmentation_loss(probabilities, goal).item()
    assert objective(batch, noise).item() == pytest.approx(expected, rel=1e-4)
    # Neither the plain loss, nor that of targets that keep their sides, is near it.
    assert plain(batch, noise).item() != pytest.approx(expected, rel=3e-3)
    kept = replace(batch, labels=torch.tensor(SWAPPED)[batch.labels.long()].to(torch.uint8))
    assert objective(kept, noise).item() != pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize("space", ["native", "canonical"])
def test_mirroring_twice_gives_the_same_loss(space: str) -> None:
    """Mirroring the mirror image of a patient in training gives the patient."""
    batch = sided(batch_of(identity_pose(6), torch.eye(3).expand(6, 3, 3)))
    image = torch.where(batch.labels[:, None] == 1, 2.5, batch.image)
    batch = replace(batch, image=image)
    mirrored_batch = replace(
        batch,
        image=batch.image.flip(3),
        mask=batch.mask.flip(3),
        labels=torch.tensor(SWAPPED)[batch.labels.flip(2).long()].to(torch.uint8),
    )
    once = sided_objective(f"unet.loss_space={space}", "unet.mirror=1")(mirrored_batch, STILL).item()
    plain = sided_objective(f"unet.loss_space={space}", "unet.mirror=0")
    assert once == pytest.approx(plain(batch, STILL).item(), rel=1e-4)
    assert once != pytest.approx(plain(mirrored_batch, STILL).item(), rel=3e-3)


def test_slices_are_mirrored_with_the_given_probability() -> None:
    batch = sided(batch_of(poses(), matrix_from_box(OFF_CENTER).expand(6, 3, 3)))
    noise = STILL.clone()
    noise[:, -2] = torch.tensor([-1.0, -0.51, -0.49, 0.1, 0.49, 0.999])
    cut = warp(batch.image, sided_objective()._theta(batch), (SIZE, SIZE), fill=AIR)
    for probability, count in ((0.0, 0), (0.25, 2), (0.5, 3), (1.0, 6)):
        objective = sided_objective(f"unet.mirror={probability}")
        objective.unet = Answering(torch.zeros(6, 4, SIZE, SIZE))
        objective(batch, noise)
        seen = objective.unet.seen
        assert torch.allclose(seen[:count], cut[:count].flip(3), atol=1e-3)
        assert torch.allclose(seen[count:], cut[count:], atol=1e-3)
    drawn = torch.rand(20000, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    share = sided_objective("unet.mirror=0.3")._draw_mirrored(drawn).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.015)


def test_validation_does_not_mirror() -> None:
    batch = sided(batch_of(poses(3)))
    scores = []
    for probability in (0, 1):
        objective = sided_objective(f"unet.mirror={probability}").eval()
        scores.append(validate(objective, batch, "abc"))
    assert scores[0] == scores[1]


def test_a_side_without_a_partner_is_accepted_without_mirroring() -> None:
    names = numbered(("kidney_left", "tumor"))
    assert SegmentationObjective(pipeline_of(config()), names).partners == [0, 1, 2]
    with pytest.raises(InputError, match="'kidney_left' names a side"):
        SegmentationObjective(pipeline_of(config("unet.mirror=0.5")), names)


def test_training_lowers_the_segmentation_loss() -> None:
    batch = batch_of(poses(), matrix_from_box(torch.tensor([[-0.7, -0.6, 0.7, 0.8]])).expand(6, 3, 3))
    objective = SegmentationObjective(pipeline_of(config("unet.input=half")))
    losses = train(objective, batch, 0.01, 40)
    assert losses[-1] < 0.5 * losses[0]
    objective.eval()
    scores = validate(objective, batch, "aaaaaa")
    assert scores["dice 1"] > 0.7


def test_validation_dice_is_per_patient_on_the_frame() -> None:
    """Two patients, three slices: the network answers with given classes and the pose is undone."""
    batch = batch_of(poses(3))
    objective = SegmentationObjective(pipeline_of(config()))
    answers = one_hot(batch.labels, 3)
    answers[2] = one_hot(torch.zeros(1, SIZE, SIZE), 3)[0]
    objective.unet = Answering(20.0 * warped_target(answers, objective._theta(batch), (SIZE, SIZE)))
    scores = validate(objective, batch, "bba")
    # Patient b is found, patient a is missed.
    assert scores["dice 1"] == pytest.approx(0.5, abs=0.03)
    assert scores["dice 2"] == pytest.approx(0.5, abs=0.03)
    assert scores["dice"] == pytest.approx((scores["dice 1"] + scores["dice 2"]) / 2)
    assert next(iter(scores)) == "dice"
    assert torch.allclose(
        objective.unet.seen, warp(batch.image, objective._theta(batch), (SIZE, SIZE), fill=AIR)
    )


def test_validation_without_slices_has_no_score() -> None:
    batch = replace(batch_of(identity_pose(2)), labels=torch.zeros(2, SIZE, SIZE, dtype=torch.uint8))
    objective = SegmentationObjective(pipeline_of(config()))
    nothing = torch.tensor([9.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, SIZE, SIZE)
    objective.unet = Answering(nothing)
    assert validate(objective, batch, "aa") == {}


def test_patient_dice_by_hand() -> None:
    both = np.array([[3, 0], [1, 0], [0, 0]])
    predicted = np.array([[4, 0], [2, 0], [0, 5]])
    truth = np.array([[3, 0], [3, 0], [0, 0]])
    dice = patient_dice(["b", "a", "b"], both, predicted, truth)
    # Sorted by patient: a 2 * 1 / 5; b 2 * 3 / 7 over both slices, and 0 for what is not there.
    assert dice[0, 0] == pytest.approx(2 / 5)
    assert math.isnan(dice[0, 1])
    assert dice[1].tolist() == pytest.approx([6 / 7, 0.0])


def test_restoring_warped_targets_gives_the_labels() -> None:
    """Canonical targets and restored predictions are inverse to each other, and sum to one."""
    batch = batch_of(poses())
    theta = matrix_from_pose(batch.pose)
    target = warped_target(one_hot(batch.labels, 3), theta, (SIZE, SIZE))
    assert torch.allclose(target.sum(dim=1), torch.ones(6, SIZE, SIZE), atol=1e-5)
    back = restore(target, theta, (SIZE, SIZE)).argmax(dim=1)
    for label in (1, 2):
        a, b = back == label, batch.labels == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9
    # Most of the label map moved on the way.
    assert (target.argmax(dim=1) == batch.labels).float().mean() < 0.97


def test_a_checkerboard_prediction_costs_as_much_in_native_as_in_canonical_space() -> None:
    """Averaging neighbors would hide a checkerboard, and training would stay at a Dice of one half."""
    shrunk = torch.tensor([[0.1, -0.29, -0.23, 0.0, 0.02]]).expand(4, 5)
    batch = batch_of(shrunk)
    cost = {}
    for space in ("native", "canonical"):
        objective = SegmentationObjective(pipeline_of(config(f"unet.loss_space={space}")))
        perfect = warped_target(one_hot(batch.labels, 3), objective._theta(batch), (SIZE, SIZE))
        squares = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 == 0
        empty = torch.zeros_like(perfect)
        empty[:, 0] = 1.0
        for name, probabilities in (("whole", perfect), ("chequered", torch.where(squares, perfect, empty))):
            objective.unet = Answering(probabilities.clamp(min=1e-3).log())
            cost[space, name] = objective(batch, STILL[:4]).item()
    extra = {space: cost[space, "chequered"] - cost[space, "whole"] for space in ("native", "canonical")}
    assert extra["native"] > 0.8 * extra["canonical"]


def test_the_augmented_loss_equals_that_of_the_augmented_crop_and_deformed_target() -> None:
    """Written out: the deformation moves image and target, and the last value of the noise is the seed."""
    batch = sided(batch_of(poses(), matrix_from_box(OFF_CENTER).expand(6, 3, 3)))
    objective = sided_objective("unet.augmentation=homogenized", "unet.elastic=1")
    noise = random_noise()
    settings, seeds = objective.config.unet, seeds_of(noise[:, -1])
    theta, moved = objective._jittered(batch, noise), displacements(seeds, 1.0, (SIZE, SIZE))
    crop = warp(batch.image, theta, (SIZE, SIZE), fill=AIR, displacement=moved)
    goal = warped_target(one_hot(batch.labels, 4), theta, (SIZE, SIZE), displacement=moved)
    expected = 0.0
    for level, logits in enumerate(
        copy.deepcopy(objective.unet)(augmented_intensities(crop, seeds, settings.intensity, AIR), deep=True)
    ):
        expected += (
            0.5**level
            * segmentation_loss(logits.softmax(dim=1), torch.nn.functional.avg_pool2d(goal, 2**level)).item()
        )
    assert objective(batch, noise).item() == pytest.approx(expected, rel=1e-4)
    off = sided_objective("unet.augmentation=off", "unet.elastic=1")
    assert off(batch, noise).item() != pytest.approx(expected, rel=1e-3)
    other = noise.clone()
    other[:, -1] = -other[:, -1]
    assert objective(batch, other).item() != pytest.approx(expected, rel=1e-3)


def half_ignored(batch: Batch) -> tuple[Batch, Tensor]:
    """The right half of each picture is not labeled."""
    ignored = torch.zeros(batch.labels.shape, dtype=torch.bool)
    ignored[..., SIZE // 2 :] = True
    return replace(batch, labels=batch.labels.masked_fill(ignored, IGNORED)), ignored


@pytest.mark.parametrize("space", ["native", "canonical"])
@pytest.mark.parametrize("regions", [{}, {"both": 1, "tumor": 2}])
def test_ignored_pixels_have_no_gradient(space: str, regions: dict[str, int]) -> None:
    """Only logits that map to the labeled half have a gradient."""
    labels = Labels.create({"kidney": 1, "tumor": 2, "ignore": 3}, {"both": ("kidney", "tumor")}, regions)
    batch, ignored = half_ignored(batch_of(identity_pose(2)))
    objective = SegmentationObjective(pipeline_of(config(f"unet.loss_space={space}")), labels)
    assert objective.partial
    logits = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    objective.unet = Answering(logits)
    loss = objective(batch, STILL[:2])
    loss.backward()
    moved = logits.grad.abs().sum(dim=1)
    # Where the two halves meet the warp may round.
    assert moved[..., SIZE // 2 + 1 :].max() < 1e-9
    assert (moved[..., : SIZE // 2 - 1] > 0).all()
    with torch.no_grad():
        objective.unet = Answering(torch.where(ignored[:, None], 3 * logits, logits))
        assert objective(batch, STILL[:2]).item() == pytest.approx(loss.item(), rel=1e-5)
        objective.unet = Answering(3 * logits)
        assert objective(batch, STILL[:2]).item() != pytest.approx(loss.item(), rel=1e-2)


@pytest.mark.parametrize("space", ["native", "canonical"])
def test_an_entirely_ignored_batch_has_zero_loss(space: str) -> None:
    batch = batch_of(poses(2))
    labels = Labels.create({"kidney": 1, "tumor": 2, "ignore": 9})
    objective = SegmentationObjective(pipeline_of(config(f"unet.loss_space={space}")), labels)
    known = objective(batch, STILL[:2]).item()
    assert known > 0.5
    # With all labeled it is the plain loss.
    plain = SegmentationObjective(pipeline_of(config(f"unet.loss_space={space}")))
    assert known == pytest.approx(plain(batch, STILL[:2]).item(), rel=1e-5)
    if space == "native":
        nothing = replace(batch, labels=torch.full_like(batch.labels, IGNORED))
        loss = objective(nothing, STILL[:2])
        loss.backward()
        assert loss.item() == pytest.approx(0.0, abs=1e-6)
        assert all(p.grad is None or not p.grad.any() for p in objective.unet.parameters())


def test_validation_scores_labeled_pixels_and_regions() -> None:
    batch, ignored = half_ignored(batch_of(identity_pose(2)))
    names = Labels.create(
        {"kidney": 1, "tumor": 2, "ignore": 3}, {"both": ("kidney", "tumor")}, {"both": 1, "tumor": 2}
    )
    plain = replace(names, regions={})
    probabilities = torch.zeros(2, 3, SIZE, SIZE)
    # All that is labeled is called tumor, and so is all that is not.
    probabilities[:, 2] = 5.0 * ((batch.labels > 0) | ignored)
    probabilities[:, 0] = 1.0
    kidney, tumor = (int((batch.labels == index).sum()) for index in (1, 2))
    expected = 2 * tumor / (kidney + 2 * tumor)
    objective = SegmentationObjective(pipeline_of(config()), plain)
    objective.unet = Answering(probabilities)
    scores = validate(objective, batch, "aa")
    assert scores["dice tumor"] == pytest.approx(expected, abs=1e-6)
    assert scores["dice kidney"] == 0.0
    objective = SegmentationObjective(pipeline_of(config()), names)
    objective.unet = Answering(probabilities)
    scores = validate(objective, batch, "aa")
    assert scores.keys() == {"dice", "dice both", "dice tumor"}
    assert scores["dice both"] == 1.0
    assert scores["dice tumor"] == pytest.approx(expected, abs=1e-6)
