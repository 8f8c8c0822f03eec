"""The paper's losses (Eq. 1 to 3), and those of the roll network. All are computed in float32."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from isopose.geometry.overlap import soft_dice, soft_dice_from_sums
from isopose.ranks import summed
from isopose.settings import CropConfig


def pose_loss(homogenized: Tensor, reference: Tensor) -> Tensor:
    """Return 1 - SoftDice (Eq. 1 as a loss), the mean over the batch.

    Args:
        homogenized: warped foreground masks ``(N, 1, S, S)`` (H).
        reference: ``(1, 1, S, S)`` (T).
    """
    return 1.0 - soft_dice(homogenized.float(), reference.float()).mean()


def crop_loss(
    crop: Tensor, target_crop: Tensor, theta2: Tensor, target_theta2: Tensor, config: CropConfig
) -> Tensor:
    """Return Eq. 2: distance of the crops plus distance of the matrices.

    The paper's text says L1 + L2, its formula shows an L2 and a root mean square; ``crop.loss`` chooses.

    Args:
        crop: ``(N, 1, S, S)`` or ``(N, 1, D, S, S)``, cut by the predicted matrix (H_C).
        target_crop: the same shape, cut by the target matrix (T_C).
        theta2: ``(N, 3, 3)`` or ``(N, 4, 4)``, predicted.
        target_theta2: the target matrix, the same shape.
        config: chooses the first term.

    Returns:
        The loss of the whole batch over all ranks, of which this rank may have no sample; 0 if no rank has
            any.
    """
    count = summed(theta2.new_tensor(float(len(theta2))))
    if not count:
        return theta2.sum()
    difference = (crop.float() - target_crop.float()).flatten(1)
    if config.loss == "l1+rmse":
        images = difference.abs().mean(dim=1)
    else:
        # The L2 norm of an image grows with its size; per pixel it stays comparable with the second term.
        images = (difference.square().mean(dim=1) + 1e-12).sqrt()
    matrices = (theta2 - target_theta2).square().flatten(1).sum(dim=1)
    image, matrix = summed(torch.stack([images.sum(), matrices.sum()])) / count
    # The epsilon keeps the root's gradient finite for an exact prediction.
    return image + matrix.add(1e-12).sqrt()


def segmentation_loss(
    probabilities: Tensor, target: Tensor, *, partial: bool = False, regions: Sequence[Sequence[int]] = ()
) -> Tensor:
    """Return one level of Eq. 3: cross entropy + (1 - SoftDice).

    SoftDice (Eq. 1) is computed for each foreground class over the whole batch on all ranks, as in nnU-Net's
    2D training, then averaged over classes.

    Args:
        probabilities: ``(N, classes, H, W)`` or ``(N, classes, D, H, W)``, summing to 1 over classes.
        target: the same shape, one-hot or averaged over larger pixels. Its sum over classes is the part of a
            pixel that is labeled, 1 unless ``partial``.
        partial: weight each pixel by its labeled fraction, so that unlabeled pixels have no effect.
        regions: classes of each region, which may overlap. A region's probability is the sum of its classes';
            SoftDice is averaged over regions, and so are the cross entropies of inside and outside. Empty:
            each foreground class is compared.
    """
    probabilities, target = probabilities.float(), target.float()
    labeled = target.sum(dim=1, keepdim=True) if partial else None
    if regions:
        inside = probabilities.new_zeros(len(regions), probabilities.shape[1])
        for row, classes in zip(inside, regions, strict=True):
            row[list(classes)] = 1.0
        # The probability outside is summed, not 1 - inside: that would lose its logarithm to rounding.
        (p, g), (q, h) = (
            [torch.einsum("rc,nc...->nr...", membership, values) for values in (probabilities, target)]
            for membership in (inside, 1.0 - inside)
        )
        entropy = -(g * p.clamp(min=1e-7).log() + h * q.clamp(min=1e-7).log()).mean(dim=1)
    else:
        entropy = -(target * probabilities.clamp(min=1e-7).log()).sum(dim=1)
        p, g = probabilities[:, 1:], target[:, 1:]
    pixels = (0, *range(2, p.ndim))
    overlap = (p * g).sum(dim=pixels)
    if labeled is None:
        mean = entropy.mean()
        squares = p.square().sum(dim=pixels) + g.square().sum(dim=pixels)
    else:
        entropies, count = summed(torch.stack([entropy.sum(), labeled.sum()]))
        mean = entropies / count.clamp(min=1.0)
        squares = (labeled * p.square() + g.square() / labeled.clamp(min=1e-7)).sum(dim=pixels)
    overlap, squares = summed(torch.stack([overlap, squares]))
    return mean + (1.0 - soft_dice_from_sums(overlap, squares).mean())


def deep_supervision_loss(levels: Iterable[tuple[Tensor, Tensor]], **options: Any) -> Tensor:
    """Return Eq. 3: the sum over levels n of :func:`segmentation_loss` / 2^n, not normalized.

    Args:
        levels: probabilities and target of each level, from the finest (n = 0).
        options: of :func:`segmentation_loss`.
    """
    losses = [segmentation_loss(p, g, **options) * 0.5**n for n, (p, g) in enumerate(levels)]
    return torch.stack(losses).sum()


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return ``(N, classes, ...)`` float32 of class indices ``(N, H, W)`` or ``(N, D, H, W)``.

    If the index is not a class, as for voxels that were not annotated, all are 0.
    """
    # torch's one_hot returns int64, many times the memory of a large scan.
    return torch.stack([labels == index for index in range(classes)], dim=1).float()


def von_mises_loss(evidence: Tensor, angle: Tensor) -> Tensor:
    """Return the mean negative log likelihood of angles under von Mises distributions.

    The likelihood is log I0(k) - k cos(error), without the constant log 2 pi. The exponentially scaled Bessel
    function keeps it finite for any concentration k.

    Args:
        evidence: ``(N, 2)``, concentration times direction.
        angle: ``(N,)``, radians.
    """
    concentration = evidence.norm(dim=1)
    projection = evidence[:, 0] * angle.cos() + evidence[:, 1] * angle.sin()
    return (torch.special.i0e(concentration).log() + concentration - projection).mean()


def roll_loss(evidence: Tensor, angle: Tensor, concentration: Tensor) -> Tensor:
    """Return the mean negative log likelihood of angles for given concentrations k.

    k (1 - cos(error)), plus the squared logarithm of the ratio of the length of the evidence to k.

    Args:
        evidence: ``(N, 2)``, concentration times direction.
        angle: ``(N,)``, radians.
        concentration: ``(N,)``, not learned.
    """
    length = evidence.norm(dim=1).clamp(min=1e-6)
    cosine = (evidence[:, 0] * angle.cos() + evidence[:, 1] * angle.sin()) / length
    concentration_error = (length / concentration.clamp(min=1e-6)).log().square()
    return (concentration * (1.0 - cosine) + concentration_error).mean()
