"""When is a crop believed."""

import torch
from torch import Tensor

from isopose.models.restore import marked


def touches_border(probabilities: Tensor, theta2: Tensor, border: int) -> Tensor:
    """Which crops cut a structure off: a label lies at an edge of the crop that is not the frame's own edge.

    Args:
        probabilities: ``(N, classes, M, M)``.
        theta2: ``(N, 3, 3)``, homogenized from crop.
        border: width in pixels that counts as the edge.
    """
    if border == 0:
        return torch.zeros(len(theta2), dtype=torch.bool, device=theta2.device)
    shown = marked(probabilities)
    scale, x, y = theta2[:, 0, 0], theta2[:, 0, 2], theta2[:, 1, 2]
    edges = (
        (shown[:, :, :border], x - scale > -1.0),
        (shown[:, :, -border:], x + scale < 1.0),
        (shown[:, :border, :], y - scale > -1.0),
        (shown[:, -border:, :], y + scale < 1.0),
    )
    cut = [strip.flatten(1).any(dim=1) & inside for strip, inside in edges]
    return torch.stack(cut).any(dim=0)


def volume_touches_border(probabilities: Tensor, theta2: Tensor, border: int) -> bool:
    """Likewise of a volume's crop: any of its six faces that is not the homogenized volume's own.

    Args:
        probabilities: ``(1, classes, D, M, M)``.
        theta2: ``(1, 4, 4)``, homogenized from crop.
        border: width in voxels that counts as the face.
    """
    shown = marked(probabilities)[0]
    for axis in range(3):
        scale, center = float(theta2[0, axis, axis]), float(theta2[0, axis, 3])
        size = shown.shape[2 - axis]
        faces = ((0, center - scale > -1.0), (size - border, center + scale < 1.0))
        for start, inside in faces:
            if border and inside and shown.narrow(2 - axis, start, border).any():
                return True
    return False
