"""Eq. 1 of the paper: the soft Dice of two masks or images."""

from torch import Tensor

#: Added to numerator and denominator, so that the value of two empty images is 1.
EPSILON = 1e-6


def soft_dice(a: Tensor, b: Tensor) -> Tensor:
    """Return Eq. 1 as a fraction for each image of a batch: 2 |A∩B| / (|A|² + |B|²).

    Args:
        a: ``(N, ...)`` values in [0, 1].
        b: the same shape, or one image for the whole batch, ``(1, ...)``.

    Returns:
        ``(N,)`` values in [0, 1]; 1 where both images are empty.
    """
    squares = a.square().flatten(1).sum(dim=1) + b.square().flatten(1).sum(dim=1)
    return soft_dice_from_sums((a * b).flatten(1).sum(dim=1), squares)


def soft_dice_from_sums(product: Tensor, squares: Tensor) -> Tensor:
    """Return Eq. 1 from its sums, which may have been taken over parts of an image or over processes.

    Args:
        product: sum of A · B, any shape.
        squares: sum of A² + B², the same shape.
    """
    return (2.0 * product + EPSILON) / (squares + EPSILON)
