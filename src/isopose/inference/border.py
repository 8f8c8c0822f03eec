"""Detect crops that cut a structure off."""

import torch
from torch import Tensor

from isopose.models.restore import marked


def touches_border(probabilities: Tensor, theta2: Tensor, border: int) -> Tensor:
    """Return which crops cut a structure off: foreground lies at an edge of the crop within the frame.

    Args:
        probabilities: ``(N, classes, M, M)``, of volumes ``(N, classes, D, M, M)``.
        theta2: ``(N, 3, 3)`` or ``(N, 4, 4)``, homogenized from crop.
        border: width in pixels that counts as the edge; 0 disables the test.

    Returns:
        ``(N,)`` booleans.
    """
    foreground = marked(probabilities)
    cut = torch.zeros(len(theta2), dtype=torch.bool, device=theta2.device)
    if border == 0:
        return cut
    half, center = theta2.diagonal(dim1=-2, dim2=-1)[:, :-1], theta2[:, :-1, -1]
    for axis in range(half.shape[1]):  # x first, which is the last dimension
        dim = foreground.ndim - 1 - axis
        low_inside = center[:, axis] - half[:, axis] > -1.0
        high_inside = center[:, axis] + half[:, axis] < 1.0
        for start, inside in ((0, low_inside), (foreground.shape[dim] - border, high_inside)):
            cut |= foreground.narrow(dim, start, border).flatten(1).any(dim=1) & inside
    return cut
