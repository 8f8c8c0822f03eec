"""A square region of interest and its matrix theta2 (scale and translation, no rotation).

A box is ``(..., 4)``: ``x0, y0, x1, y1`` in normalized coordinates of the homogenized frame. The matrix maps
the crop to the homogenized frame (``homogenized_from_crop``); scale 1 keeps the whole frame, 0.25 is the
smallest crop, a quarter of the frame's side (the paper's "quarter of the original image").
"""

import torch
from torch import Tensor

from isopose.geometry.warp import compose, invert

BOX_SIZE = 4
#: Smallest side of a crop as a fraction of the frame's side (the paper, section "STN for ROI cropping").
MIN_CROP = 0.25
#: Part of a volume's slices that a common crop may leave out on each side.
OUTERMOST = 0.15


def matrix_from_box(box: Tensor, *, min_scale: float = MIN_CROP) -> Tensor:
    """theta2 of the smallest square around a box: ``(..., 4)`` to ``(..., 3, 3)``.

    The side is the longer one of the box, between ``min_scale`` and the whole frame; the center is the
    box's. At least float32 under autocast.
    """
    with torch.autocast(box.device.type, enabled=False):
        box = box if box.dtype == torch.float64 else box.float()
        x0, y0, x1, y1 = box.unbind(dim=-1)
        scale = within(torch.maximum(x1 - x0, y1 - y0).div(2.0), min_scale, 1.0)
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        rows = [
            torch.stack([scale, zero, (x0 + x1) / 2.0], dim=-1),
            torch.stack([zero, scale, (y0 + y1) / 2.0], dim=-1),
            torch.stack([zero, zero, one], dim=-1),
        ]
        return torch.stack(rows, dim=-2)


def within(value: Tensor, low: float, high: float) -> Tensor:
    """A value between bounds, beyond which it keeps the gradient that leads back.

    A clamp has no gradient beyond its bounds. A network that starts at the whole frame is at one of them, and
    a step beyond would be its last: no loss could bring the crop's size back.
    """
    bounded = value.clamp(low, high).detach() + (value - value.detach())
    if bounded.requires_grad:
        at_low, at_high = value.detach() <= low, value.detach() >= high

        def inward(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            return gradient.masked_fill((at_high & (gradient < 0)) | (at_low & (gradient > 0)), 0.0)

        bounded.register_hook(inward)
    return bounded


def box_from_matrix(matrix: Tensor) -> Tensor:
    """The square box ``(..., 4)`` that a theta2 ``(..., 3, 3)`` crops to."""
    scale, tx, ty = matrix[..., 0, 0], matrix[..., 0, 2], matrix[..., 1, 2]
    return torch.stack([tx - scale, ty - scale, tx + scale, ty + scale], dim=-1)


def box_of_mask(mask: Tensor, *, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Outer edges of the non-zero pixels of ``(N, H, W)`` as boxes, and which images have any.

    Args:
        mask: anything that is non-zero inside.
        margin: added on each side, as a fraction of the box's longer side.

    Returns:
        Boxes ``(N, 4)`` (the whole frame where the mask is empty) and ``(N,)`` booleans.
    """
    inside = mask != 0
    found = inside.flatten(1).any(dim=1)
    edges = []
    for along, size in ((1, mask.shape[2]), (2, mask.shape[1])):
        line = inside.any(dim=along).to(torch.float32)
        first = line.argmax(dim=1).float()
        last = size - line.flip(1).argmax(dim=1).float()
        edges.append((2.0 * first / size - 1.0, 2.0 * last / size - 1.0))
    (x0, x1), (y0, y1) = edges
    grow = margin * torch.maximum(x1 - x0, y1 - y0)
    box = torch.stack([x0 - grow, y0 - grow, x1 + grow, y1 + grow], dim=1)
    whole = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=mask.device)
    return torch.where(found[:, None], box, whole), found


def common_crop(theta2: Tensor) -> Tensor:
    """One crop ``(3, 3)`` for a volume from those of its slices ``(N, 3, 3)``.

    Its box reaches as far as those of all but the outermost slices on each side (:data:`OUTERMOST`), so that
    it holds what most slices show and no single slice decides.
    """
    boxes = box_from_matrix(theta2)
    low = torch.quantile(boxes[:, :2], OUTERMOST, dim=0)
    high = torch.quantile(boxes[:, 2:], 1.0 - OUTERMOST, dim=0)
    return matrix_from_box(torch.cat([low, high]))


def carried(theta2: Tensor, input_from_old: Tensor, input_from_new: Tensor) -> Tensor:
    """Crops ``(N, 3, 3)`` of one homogenized frame as crops of another one of the same input.

    The center stays exactly where it is in the input, and so does the area; a square has no rotation and one
    size, so what the two poses differ in roll and aspect is left out.

    Args:
        theta2: old homogenized frame from crop.
        input_from_old: theta1 ``(N, 3, 3)`` in which the crops were found.
        input_from_new: theta1 ``(N, 3, 3)`` in which they are wanted.
    """
    moved = compose(invert(input_from_new), input_from_old, theta2)
    area = moved[:, 0, 0] * moved[:, 1, 1] - moved[:, 0, 1] * moved[:, 1, 0]
    half, center = area.sqrt()[:, None], moved[:, :2, 2]
    return matrix_from_box(torch.cat([center - half, center + half], dim=1))


def widened(matrix: Tensor, factor: float) -> Tensor:
    """Larger squares ``(N, 3, 3)`` around the same centers, at most the frame and moved to lie within it."""
    scale = (matrix[:, 0, 0] * factor).clamp(max=1.0)
    room = (1.0 - scale)[:, None]
    center = matrix[:, :2, 2].clamp(-room, room)
    return matrix_from_box(torch.cat([center - scale[:, None], center + scale[:, None]], dim=1))


def mirrored(matrix: Tensor) -> Tensor:
    """Transforms ``(..., 3, 3)`` by which the flip of their crop is cut: ``matrix · M``, M = diag(-1, 1, 1).

    Mirroring belongs into the transform. A patient mirrored about the line x = 0 of the homogenized frame is
    seen through theta1 · M. The crop must be mirrored with the patient, theta2' = M · theta2 · M (center
    ``(-tx, ty)``, the same size): one that stayed where it was would show the other side of the body, and cut
    off the label of an organ that lies on one side. Together theta1 · M · theta2' = theta1 · theta2 · M. So
    the mirrored patient in the mirrored crop is exactly the plain crop with its columns in reverse, whatever
    pose, crop and their jitter are. Mirrored twice it is as before; the determinant changes its sign.

    Args:
        matrix: theta2, or theta1 · theta2 (frame from crop); of volumes ``(..., 4, 4)``, about x = 0 too.
    """
    return torch.cat([-matrix[..., :1], matrix[..., 1:]], dim=-1)


def jittered(
    matrix: Tensor, noise: Tensor, *, shift: float, scale: float, min_scale: float = MIN_CROP
) -> Tensor:
    """theta2 with its center and size disturbed, for training a U-Net that meets imperfect crops.

    Args:
        matrix: ``(N, 3, 3)``.
        noise: ``(N, 3)`` in [-1, 1]: size, x, y.
        shift: largest shift as a fraction of the crop's half side.
        scale: largest change of the size's logarithm.
        min_scale: smallest side.
    """
    size = (matrix[:, 0, 0] * torch.exp(scale * noise[:, 0])).clamp(min_scale, 1.0)
    center = matrix[:, :2, 2] + shift * matrix[:, 0, 0, None] * noise[:, 1:]
    box = torch.cat([center - size[:, None], center + size[:, None]], dim=1)
    return matrix_from_box(box, min_scale=min_scale)
