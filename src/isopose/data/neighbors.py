"""Select the neighbors of a slice in the U-Net's input (``unet.context``)."""

import numpy as np

from isopose.settings import UNetConfig


def neighbors_of(body_slices: np.ndarray, spacing_mm: float, config: UNetConfig) -> np.ndarray:
    """Return the neighbors of each slice with a body, from the feet to the head, itself in the middle.

    A neighbor is the slice with a body that is nearest to the target position along the scan; of two at the
    same distance, the one nearer to the slice itself. Beyond the scan's ends it is the outermost slice with a
    body.

    Args:
        body_slices: ``(K,)`` indices of the slices with a body, ascending.
        spacing_mm: distance between adjacent slices, mm.
        config: ``unet.context``, the number of neighbors on each side, and ``unet.context_mm``, their
            distance.

    Returns:
        ``(K, 2 * context + 1)`` positions in ``body_slices``.
    """
    step = 1.0 if config.context_mm is None else config.context_mm / spacing_mm
    # Rounded, so that a position halfway between two slices is recognized despite rounding errors.
    offsets = np.round(np.arange(-config.context, config.context + 1) * step, 6)
    targets = body_slices[:, None] + offsets
    above = np.searchsorted(body_slices, targets).clip(max=len(body_slices) - 1)
    below = (above - 1).clip(min=0)
    to_above, to_below = np.abs(body_slices[above] - targets), np.abs(targets - body_slices[below])
    nearer_below = np.where(offsets > 0, to_below <= to_above, to_below < to_above)
    return np.where(nearer_below, below, above)
