"""A region of interest in a homogenized volume and its matrix theta2 (scales and translation, no rotation).

A box is ``(..., 6)``: ``x0, y0, z0, x1, y1, z1`` in normalized coordinates of the homogenized volume. The
matrix maps the crop to it (``homogenized_from_crop``). In plane the crop is square, as in 2D, so that what
the U-Net sees keeps its shape. Along z it is free: how far a scan reaches is its own matter, and a cube
around a short stack would spend most of the network's voxels on air.
"""

import torch
from torch import Tensor

from isopose.geometry.box import MIN_CROP, within

#: Smallest depth of a crop as a fraction of the homogenized volume's, which may be many times that of organs.
MIN_DEPTH = 0.05
WHOLE = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


def matrix_from_box3d(box: Tensor) -> Tensor:
    """theta2 of the smallest crop around a box that is square in plane: ``(..., 6)`` to ``(..., 4, 4)``.

    The side is the longer one of the box in plane, between :data:`MIN_CROP` and the whole volume's; the depth
    is the box's, between :data:`MIN_DEPTH` and the whole; the center is the box's. At least float32.
    """
    with torch.autocast(box.device.type, enabled=False):
        box = box if box.dtype == torch.float64 else box.float()
        half, center = (box[..., 3:] - box[..., :3]) / 2.0, (box[..., 3:] + box[..., :3]) / 2.0
        side = within(torch.maximum(half[..., 0], half[..., 1]), MIN_CROP, 1.0)
        depth = within(half[..., 2], MIN_DEPTH, 1.0)
        scales = torch.stack([side, side, depth], dim=-1)
        top = torch.cat([torch.diag_embed(scales), center[..., None]], dim=-1)
        last = box.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*box.shape[:-1], 1, 4)
        return torch.cat([top, last], dim=-2)


def box_from_matrix3d(matrix: Tensor) -> Tensor:
    """The box ``(..., 6)`` that a theta2 ``(..., 4, 4)`` crops to."""
    half, center = matrix.diagonal(dim1=-2, dim2=-1)[..., :3], matrix[..., :3, 3]
    return torch.cat([center - half, center + half], dim=-1)


def box_of_mask3d(mask: Tensor, *, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Outer edges of the non-zero voxels of ``(N, D, H, W)`` as boxes, and which volumes have any.

    Args:
        mask: anything that is non-zero inside.
        margin: added on each side, as a fraction of the longer side in plane, and along z of the depth.

    Returns:
        Boxes ``(N, 6)`` (the whole volume where the mask is empty) and ``(N,)`` booleans.
    """
    inside = mask != 0
    found = inside.flatten(1).any(dim=1)
    low, high = [], []
    for axis in (3, 2, 1):
        others = tuple(other for other in (1, 2, 3) if other != axis)
        line = inside.any(dim=others[1]).any(dim=others[0]).float()
        size = mask.shape[axis]
        low.append(2.0 * line.argmax(dim=1) / size - 1.0)
        high.append(2.0 * (size - line.flip(1).argmax(dim=1)) / size - 1.0)
    lower, upper = torch.stack(low, dim=1), torch.stack(high, dim=1)
    length = upper - lower
    side = torch.maximum(length[:, 0], length[:, 1])
    grow = margin * torch.stack([side, side, length[:, 2]], dim=1)
    whole = torch.tensor(WHOLE, device=mask.device)
    return torch.where(found[:, None], torch.cat([lower - grow, upper + grow], dim=1), whole), found


def widened3d(matrix: Tensor, factor: float) -> Tensor:
    """Larger crops ``(N, 4, 4)`` around the same centers, at most the volume and moved to lie within it."""
    half = (matrix.diagonal(dim1=1, dim2=2)[:, :3] * factor).clamp(max=1.0)
    room = 1.0 - half
    center = matrix[:, :3, 3].clamp(-room, room)
    return matrix_from_box3d(torch.cat([center - half, center + half], dim=1))


def jittered3d(matrix: Tensor, noise: Tensor, *, shift: float, scale: float) -> Tensor:
    """theta2 with its center and sizes disturbed, for training a U-Net that meets imperfect crops.

    Args:
        matrix: ``(N, 4, 4)``.
        noise: ``(N, 5)`` in [-1, 1]: size in plane, depth, x, y, z.
        shift: largest shift as a fraction of the crop's half sides.
        scale: largest change of a size's logarithm.
    """
    half = matrix.diagonal(dim1=1, dim2=2)[:, :3]
    grown = half * torch.exp(scale * noise[:, [0, 0, 1]])
    center = matrix[:, :3, 3] + shift * half * noise[:, 2:5]
    return matrix_from_box3d(torch.cat([center - grown, center + grown], dim=1))
