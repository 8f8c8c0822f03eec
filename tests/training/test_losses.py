"""The paper's three losses against numbers worked out by hand and an independent NumPy implementation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.settings import CropConfig
from isopose.training.losses import (
    crop_loss,
    deep_supervision_loss,
    one_hot,
    pose_loss,
    roll_loss,
    segmentation_loss,
    von_mises_loss,
)

L1, L2 = CropConfig(loss="l1+rmse"), CropConfig(loss="l2+rmse")


def theta(scale: float, x: float, y: float) -> torch.Tensor:
    return torch.tensor([[scale, 0.0, x], [0.0, scale, y], [0.0, 0.0, 1.0]])


def test_pose_loss_by_hand() -> None:
    """Eq. 1 of each image, then the mean: 2 * 1.5 / (1.25 + 3) and 2 * 1 / (1 + 3)."""
    homogenized = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]).reshape(2, 1, 2, 2)
    reference = torch.tensor([1.0, 1.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    expected = 1.0 - (3.0 / 4.25 + 2.0 / 4.0) / 2.0
    assert pose_loss(homogenized, reference).item() == pytest.approx(expected, abs=1e-6)
    assert pose_loss(reference, reference).item() == pytest.approx(0.0, abs=1e-6)
    assert pose_loss(torch.zeros(1, 1, 2, 2), reference).item() == pytest.approx(1.0, abs=1e-6)


def test_crop_loss_by_hand() -> None:
    """Both readings of Eq. 2 on two images of four pixels."""
    crop = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]).reshape(2, 1, 2, 2)
    goal = torch.tensor([[1.0, 2.0, 3.0, 0.0], [3.0, 0.0, 0.0, 4.0]]).reshape(2, 1, 2, 2)
    predicted = torch.stack([theta(0.5, 0.1, 0.0), theta(0.6, 0.0, 0.0)])
    target = torch.stack([theta(0.4, 0.1, 0.2), theta(0.6, 0.0, 0.3)])
    # Squared distances of the matrices: 2 * 0.1² + 0.2² = 0.06 and 0.3² = 0.09.
    matrices = math.sqrt((0.06 + 0.09) / 2.0)
    assert crop_loss(crop, goal, predicted, target, L1).item() == pytest.approx(11.0 / 8.0 + matrices)
    # Root mean squares of the images: sqrt(16 / 4) and sqrt(25 / 4).
    assert crop_loss(crop, goal, predicted, target, L2).item() == pytest.approx(2.25 + matrices)


@pytest.mark.parametrize("config", [L1, L2])
def test_the_loss_of_an_exact_crop_is_zero_with_a_finite_gradient(config: CropConfig) -> None:
    crop = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    predicted = theta(0.5, 0.1, 0.0).expand(2, 3, 3).clone().requires_grad_()
    cut = crop.clone().requires_grad_()
    loss = crop_loss(cut, crop, predicted, predicted.detach().clone(), config)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert torch.isfinite(predicted.grad).all()
    assert torch.isfinite(cut.grad).all()


def oracle(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Eq. 3 for one level, pixel after pixel and class after class, in float64."""
    n, classes, h, w = probabilities.shape
    entropy = 0.0
    for i, y, x in np.ndindex(n, h, w):
        entropy -= sum(
            target[i, c, y, x] * math.log(max(probabilities[i, c, y, x], 1e-7)) for c in range(classes)
        )
    dices = []
    for c in range(1, classes):
        p, g = probabilities[:, c].ravel(), target[:, c].ravel()
        dices.append((2 * np.dot(p, g) + 1e-5) / (np.dot(p, p) + np.dot(g, g) + 1e-5))
    return entropy / (n * h * w) + 1.0 - float(np.mean(dices))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 4), soft=st.booleans())
def test_segmentation_loss_agrees_with_a_naive_implementation(seed: int, classes: int, soft: bool) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), (2, 3, 4)).transpose(0, 3, 1, 2)
    target = random.dirichlet(np.full(classes, 0.3), (2, 3, 4)).transpose(0, 3, 1, 2)
    if not soft:
        target = np.eye(classes)[target.argmax(axis=1)].transpose(0, 3, 1, 2)
    loss = segmentation_loss(torch.from_numpy(probabilities), torch.from_numpy(target))
    assert loss.item() == pytest.approx(oracle(probabilities, target), rel=1e-4)


def test_dice_is_computed_over_the_whole_batch() -> None:
    """One slice found wholly, one missed wholly: 2 * 6 / (6 + 8), not the mean of 1 and 0."""
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, :2, :3] = 1
    labels[1, 0, :2] = 1
    predicted = labels.clone()
    predicted[1] = 0
    probabilities, target = one_hot(predicted, 2), one_hot(labels, 2)
    entropy = 2 * -math.log(1e-7) / 32
    assert segmentation_loss(probabilities, target).item() == pytest.approx(entropy + 1 - 12 / 14, rel=1e-5)


def test_the_loss_of_a_perfect_prediction_is_zero() -> None:
    labels = torch.tensor([[[0, 1], [2, 0]]])
    target = one_hot(labels, 3)
    assert segmentation_loss(target, target).item() == pytest.approx(0.0, abs=1e-6)
    wrong = one_hot(labels.roll(1, dims=2), 3)
    assert segmentation_loss(wrong, target).item() > 10.0


def test_an_absent_class_that_is_not_predicted_costs_nothing() -> None:
    labels = torch.tensor([[[0, 1], [1, 0]]])
    target = one_hot(labels, 3)
    assert segmentation_loss(target, target).item() == pytest.approx(0.0, abs=1e-6)
    # Predicted where it is not: its Dice is 0, so half of the two classes' mean is lost.
    probabilities = target.clone()
    probabilities[0, :, 0, 0] = torch.tensor([0.0, 0.0, 1.0])
    entropy = -math.log(1e-7) / 4
    assert segmentation_loss(probabilities, target).item() == pytest.approx(entropy + 0.5, rel=1e-4)


def test_gradients_are_finite_at_zero_and_one() -> None:
    target = one_hot(torch.tensor([[[0, 1], [1, 0]]]), 3)
    for start in (target, 1.0 - target, torch.zeros_like(target)):
        probabilities = start.clone().requires_grad_()
        segmentation_loss(probabilities, target).backward()
        assert torch.isfinite(probabilities.grad).all()
    # Wrong everywhere, the loss still says in which direction to go.
    logits = (torch.tensor([4.0, -4.0, -4.0]).view(1, 3, 1, 1).repeat(1, 1, 2, 2)).requires_grad_()
    segmentation_loss(logits.softmax(dim=1), target).backward()
    assert (logits.grad[0, 1][target[0, 1] > 0] < -0.01).all()


def test_all_losses_are_float32_under_autocast() -> None:
    random = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2, 3, 8, 8, generator=random).softmax(dim=1)
    target = one_hot(torch.randint(0, 3, (2, 8, 8), generator=random), 3)
    image, goal = torch.rand(2, 2, 1, 8, 8, generator=random)
    matrices = torch.stack([theta(0.512345, 0.1, 0.0), theta(0.612345, 0.0, 0.0)])
    target_matrices = torch.stack([theta(0.4, 0.1, 0.2), theta(0.6, 0.0, 0.3)])

    def losses() -> list[torch.Tensor]:
        return [
            pose_loss(image, goal[:1]),
            crop_loss(image, goal, matrices, target_matrices, L1),
            crop_loss(image, goal, matrices, target_matrices, L2),
            segmentation_loss(probabilities, target),
        ]

    plain = losses()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses()
    assert all(loss.dtype == torch.float32 for loss in mixed)
    assert [loss.item() for loss in mixed] == [loss.item() for loss in plain]
    # What a network in half precision gives is taken up to float32 before anything is summed.
    assert pose_loss(image.bfloat16(), goal[:1]).dtype == torch.float32
    rounded = segmentation_loss(probabilities.bfloat16(), target)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(
        segmentation_loss(probabilities.bfloat16().double(), target).item()
    )


def test_one_hot_encoding() -> None:
    hot = one_hot(torch.tensor([[[2, 0]]], dtype=torch.uint8), 3)
    assert hot.tolist() == [[[[0.0, 1.0]], [[0.0, 0.0]], [[1.0, 0.0]]]]


def test_deep_supervision_halves_the_weight_of_each_level() -> None:
    torch.manual_seed(0)
    levels = [
        (torch.rand(2, 3, n, n).softmax(dim=1), one_hot(torch.randint(3, (2, n, n)), 3)) for n in (8, 4, 2)
    ]
    expected = sum(segmentation_loss(p, g) / 2**n for n, (p, g) in enumerate(levels))
    assert deep_supervision_loss(levels).item() == pytest.approx(expected.item(), rel=1e-6)


def evidence(degrees: list[float], length: list[float]) -> torch.Tensor:
    angle, size = torch.tensor(degrees).deg2rad(), torch.tensor(length)
    return size[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def test_von_mises_loss_is_the_likelihood() -> None:
    """Against SciPy's density, without its constant log 2 pi; finite where the Bessel function is not."""
    from scipy.stats import vonmises

    seen, truth = evidence([10.0, -170.0], [3.0, 40.0]), torch.tensor([25.0, 175.0]).deg2rad()
    expected = -vonmises.logpdf(np.radians([15.0, 15.0]), [3.0, 40.0]).mean() - math.log(2 * math.pi)
    assert von_mises_loss(seen, truth).item() == pytest.approx(expected, rel=1e-5)
    assert von_mises_loss(evidence([0.0], [5000.0]), torch.zeros(1)).isfinite()


def test_roll_loss_by_hand() -> None:
    """k (1 - cos 60 degrees) and the squared logarithm of the length over k."""
    seen, truth = evidence([60.0], [20.0]), torch.zeros(1)
    concentration = torch.tensor([10.0])
    assert roll_loss(seen, truth, concentration).item() == pytest.approx(
        10.0 * 0.5 + math.log(2.0) ** 2, rel=1e-5
    )
    assert roll_loss(evidence([0.0], [10.0]), truth, concentration).item() == pytest.approx(0.0, abs=1e-5)


def test_roll_loss_does_not_reward_overconfidence() -> None:
    """For a correct direction, likelihood would grow the length without bound; this loss is minimal at k."""
    seen = evidence([0.0], [20.0]).requires_grad_()
    roll_loss(seen, torch.zeros(1), torch.tensor([10.0])).backward()
    assert seen.grad[0, 0] > 0
    again = evidence([0.0], [20.0]).requires_grad_()
    von_mises_loss(again, torch.zeros(1)).backward()
    assert again.grad[0, 0] < 0


@pytest.mark.parametrize("regions", [(), ((1, 2), (2,))])
def test_ignored_pixels_do_not_change_the_loss(regions: tuple[tuple[int, ...], ...]) -> None:
    """If half of a picture is not annotated, the loss is that of the other half alone."""
    random = torch.Generator().manual_seed(4)
    probabilities = torch.rand(2, 3, 4, 6, generator=random).softmax(dim=1).requires_grad_()
    labels = torch.randint(0, 3, (2, 4, 6), generator=random)
    labels[:, :, 3:] = 255
    target = one_hot(labels, 3)
    loss = segmentation_loss(probabilities, target, partial=True, regions=regions)
    cut = segmentation_loss(probabilities[..., :3], target[..., :3], regions=regions)
    assert loss.item() == pytest.approx(cut.item(), rel=1e-6)
    loss.backward()
    assert not probabilities.grad[..., 3:].any()
    assert (probabilities.grad[..., :3] != 0).any(dim=1).all()


def test_a_partly_labeled_pixel_is_weighted_by_its_fraction() -> None:
    """Two pixels, of which the second is labeled by a quarter, with sums by hand."""
    p = torch.tensor([[0.4, 0.5], [0.6, 0.5]]).reshape(1, 2, 1, 2)
    g = torch.tensor([[0.0, 0.0], [1.0, 0.25]]).reshape(1, 2, 1, 2)
    entropy = -(math.log(0.6) + 0.25 * math.log(0.5)) / 1.25
    dice = 2 * (0.6 + 0.25 * 0.5) / ((0.36 + 1) + 0.25 * (0.25 + 1))
    assert segmentation_loss(p, g, partial=True).item() == pytest.approx(entropy + 1 - dice, rel=1e-5)


def test_region_loss_by_hand() -> None:
    """One pixel of the second class; the whole is both classes: cross entropies of inside and outside."""
    p = torch.tensor([0.2, 0.5, 0.3]).reshape(1, 3, 1, 1)
    g = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    entropy = -(math.log(0.8) + math.log(0.3)) / 2
    dice = (2 * 0.8 / (0.64 + 1) + 2 * 0.3 / (0.09 + 1)) / 2
    loss = segmentation_loss(p, g, regions=((1, 2), (2,)))
    assert loss.item() == pytest.approx(entropy + 1 - dice, rel=1e-5)
    # A wrong class within a right region costs less than background, which without regions costs as much.
    near, far = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.05, 0.9, 0.05], [0.9, 0.05, 0.05]))
    plain = [segmentation_loss(one, g).item() for one in (near, far)]
    nested = [segmentation_loss(one, g, regions=((1, 2), (2,))).item() for one in (near, far)]
    assert nested[0] < nested[1] - 0.5
    assert abs(plain[0] - plain[1]) < abs(nested[0] - nested[1])
