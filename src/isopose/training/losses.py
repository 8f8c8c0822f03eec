"""The paper's three losses. All are taken in float32, whatever the networks ran in."""

from collections.abc import Iterable

import torch
from torch import Tensor

from isopose.config import CropConfig
from isopose.geometry.overlap import soft_dice, soft_dice_from_sums
from isopose.ranks import summed


def pose_loss(homogenized: Tensor, reference: Tensor) -> Tensor:
    """Eq. 1 turned into something to minimise: 1 - SoftDice, mean over the batch.

    Args:
        homogenized: warped foreground masks ``(N, 1, S, S)`` (H).
        reference: ``(1, 1, S, S)`` (T).
    """
    return 1.0 - soft_dice(homogenized.float(), reference.float()).mean()


def crop_loss(
    crop: Tensor, target_crop: Tensor, theta2: Tensor, target: Tensor, config: CropConfig
) -> Tensor:
    """Eq. 2: distance of the crops plus distance of the matrices.

    The paper's text says L1 + L2, its formula shows an L2 and a root mean square; ``crop.loss`` chooses.

    Args:
        crop: ``(N, 1, S, S)``, or of volumes ``(N, 1, D, S, S)``, cut by the predicted matrix (H_C).
        target_crop: the same cut by the target matrix (T_C).
        theta2: ``(N, 3, 3)`` or ``(N, 4, 4)`` predicted.
        target: the same shape.
        config: the reading of the first term.

    Returns:
        Of the batch on all ranks, of which this one may have none; where no rank has any, nothing to learn.
    """
    count = summed(theta2.new_tensor(float(len(theta2))))
    if not count:
        return theta2.sum()
    difference = (crop.float() - target_crop.float()).flatten(1)
    if config.loss == "l1+rmse":
        images = difference.abs().mean(dim=1)
    else:
        # The norm of a whole image grows with its size; per pixel it stays comparable with the second term.
        images = (difference.square().mean(dim=1) + 1e-12).sqrt()
    matrices = (theta2 - target).square().flatten(1).sum(dim=1)
    image, matrix = summed(torch.stack([images.sum(), matrices.sum()])) / count
    # The small number keeps the root's gradient finite where the prediction is exact.
    return image + matrix.add(1e-12).sqrt()


def segmentation_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """Return one level of Eq. 3: cross entropy + (1 - SoftDice).

    SoftDice is Eq. 1's, of each foreground class over the whole batch, on all ranks, as nnU-Net does in 2D,
    then the mean.

    Args:
        probabilities: ``(N, classes, H, W)`` or ``(N, classes, D, H, W)``, sums of 1.
        target: the same shape, one-hot or its average over larger pixels.
    """
    probabilities, target = probabilities.float(), target.float()
    entropy = -(target * probabilities.clamp(min=1e-7).log()).sum(dim=1).mean()
    p, g = probabilities[:, 1:], target[:, 1:]
    pixels = (0, *range(2, p.ndim))
    overlap = (p * g).sum(dim=pixels)
    squares = p.square().sum(dim=pixels) + g.square().sum(dim=pixels)
    overlap, squares = summed(torch.stack([overlap, squares]))
    return entropy + (1.0 - soft_dice_from_sums(overlap, squares).mean())


def deep_supervision_loss(levels: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Eq. 3: the sum over levels n of :func:`segmentation_loss` / 2^n, not normalized.

    Args:
        levels: probabilities and target of each level, from the finest (n = 0).
    """
    losses = [segmentation_loss(p, g) * 0.5**n for n, (p, g) in enumerate(levels)]
    return torch.stack(losses).sum()


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return ``(N, classes, ...)`` float32 of class indices ``(N, H, W)`` or ``(N, D, H, W)``."""
    # Not PyTorch's own, whose 64-bit integers would take many times a large scan's memory.
    return torch.stack([labels == index for index in range(classes)], dim=1).float()


def von_mises_loss(evidence: Tensor, angle: Tensor) -> Tensor:
    """Mean negative log likelihood of angles ``(N,)`` under concentration times direction ``(N, 2)``.

    log I0(k) - k cos(error), without the constant log 2 pi; the exponentially scaled Bessel function keeps it
    finite for any k.
    """
    concentration = evidence.norm(dim=1)
    along = evidence[:, 0] * angle.cos() + evidence[:, 1] * angle.sin()
    return (torch.special.i0e(concentration).log() + concentration - along).mean()


def roll_loss(evidence: Tensor, angle: Tensor, concentration: Tensor) -> Tensor:
    """Mean negative log likelihood of angles ``(N,)`` where the concentration ``(N,)`` is given, not learned.

    k (1 - cos(error)), and the squared logarithm of how far the length of the evidence ``(N, 2)`` is from k.
    """
    length = evidence.norm(dim=1).clamp(min=1e-6)
    along = (evidence[:, 0] * angle.cos() + evidence[:, 1] * angle.sin()) / length
    drift = (length / concentration.clamp(min=1e-6)).log().square()
    return (concentration * (1.0 - along) + drift).mean()
