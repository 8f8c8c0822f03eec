"""A region of interest and its matrix theta2 (scales and translation, no rotation), for slices and volumes.

A box is ``(..., 4)``, ``x0, y0, x1, y1``, in normalized coordinates of the homogenized frame; for a volume
it is ``(..., 6)``, ``x0, y0, z0, x1, y1, z1``. The matrix maps the crop to the homogenized frame
(``homogenized_from_crop``). A scale of 1 keeps the whole frame; 0.25 is the smallest crop, a quarter of the
frame's side (the paper's "quarter of the original image").

In plane the crop is always square, so that the U-Net's input is not distorted. Along z its extent is free:
the length of a scan does not follow from the body's size, and a cube around a short stack would spend most of
the network's voxels on air.
"""

import torch
from torch import Tensor

from isopose.geometry.warp import affine, compose, invert

#: Numbers of a box, by the number of dimensions.
BOX_SIZES = {2: 4, 3: 6}
BOX_SIZE = BOX_SIZES[2]
#: Smallest side of a crop as a fraction of the frame's side (the paper, section "STN for ROI cropping").
MIN_CROP = 0.25
#: Smallest depth of a crop as a fraction of the homogenized volume's depth, which may be many times an
#: organ's.
MIN_DEPTH = 0.05
#: Quantile of the slices' box edges that a common crop may leave out on each side.
EDGE_QUANTILE = 0.15


def whole_frame(dims: int) -> Tensor:
    """Return the box of the whole frame: ``(4,)``, with ``dims=3`` ``(6,)``."""
    return torch.tensor([-1.0] * dims + [1.0] * dims)


def matrix_from_box(box: Tensor) -> Tensor:
    """Return theta2 of the smallest crop around a box, ``homogenized_from_crop``.

    The crop keeps the box's center. Its side in plane is the box's longer side, between :data:`MIN_CROP` and
    the whole frame; its depth is the box's, between :data:`MIN_DEPTH` and the whole. Computed in float32 or
    float64, also under autocast.

    Args:
        box: ``(..., 4)``, of volumes ``(..., 6)``, normalized coordinates.

    Returns:
        ``(..., 3, 3)``, of volumes ``(..., 4, 4)``.
    """
    with torch.autocast(box.device.type, enabled=False):
        box = box if box.dtype == torch.float64 else box.float()
        low, high = box.chunk(2, dim=-1)
        half, center = (high - low) / 2.0, (high + low) / 2.0
        side = clamp_keeping_gradient(torch.maximum(half[..., :1], half[..., 1:2]), MIN_CROP, 1.0)
        scales = torch.cat([side, side, clamp_keeping_gradient(half[..., 2:], MIN_DEPTH, 1.0)], dim=-1)
        return affine(torch.diag_embed(scales), center)


def clamp_keeping_gradient(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp values to bounds; outside of them, keep the gradients that lead back inside.

    A plain clamp has no gradient outside its bounds. The crop's size starts at one of them (the whole frame);
    after one step beyond it no loss could reduce the size again.
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
    """Return the boxes ``(..., 4)`` of theta2 ``(..., 3, 3)``; boxes ``(..., 6)`` of ``(..., 4, 4)``."""
    half, center = _half_and_center(matrix)
    return torch.cat([center - half, center + half], dim=-1)


def _half_and_center(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return half sides and center of a crop, each ``(..., 2)`` or ``(..., 3)``."""
    return matrix.diagonal(dim1=-2, dim2=-1)[..., :-1], matrix[..., :-1, -1]


def filled_fraction(mask: Tensor) -> Tensor:
    """Return the fraction ``(N,)`` of its bounding box that each mask ``(N, 1, H, W)`` fills.

    A rectangle fills all of it, an ellipse pi / 4, an empty mask nothing.
    """
    inside = (mask[:, 0] > 0.5).float()
    width, height = inside.amax(dim=1).sum(dim=1), inside.amax(dim=2).sum(dim=1)
    return inside.sum(dim=(1, 2)) / (width * height).clamp(min=1.0)


def box_of_mask(mask: Tensor, *, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the bounding boxes of masks, from outer edge to outer edge of their pixels.

    Args:
        mask: ``(N, H, W)`` or ``(N, D, H, W)``, non-zero inside, any dtype.
        margin: added on each side, as a fraction of the box's longer side in plane, and along z of its depth.

    Returns:
        Boxes ``(N, 4)`` or ``(N, 6)``, the whole frame where a mask is empty; and booleans ``(N,)``, whether
        a mask is not empty.
    """
    inside = mask != 0
    has_box = inside.flatten(1).any(dim=1)
    axes = range(mask.ndim - 1, 0, -1)  # x first
    lows, highs = [], []
    for axis in axes:
        line = inside
        for other in sorted(set(axes) - {axis}, reverse=True):
            line = line.any(dim=other)
        size, line = mask.shape[axis], line.float()
        lows.append(2.0 * line.argmax(dim=1) / size - 1.0)
        highs.append(2.0 * (size - line.flip(1).argmax(dim=1)) / size - 1.0)
    lower, upper = torch.stack(lows, dim=1), torch.stack(highs, dim=1)
    length = upper - lower
    side = length[:, :2].amax(dim=1, keepdim=True)
    padding = margin * torch.cat([side, side, length[:, 2:]], dim=1)
    whole_box = whole_frame(mask.ndim - 1).to(mask.device)
    boxes = torch.cat([lower - padding, upper + padding], dim=1)
    return torch.where(has_box[:, None], boxes, whole_box), has_box


def box_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union ``(N,)`` of two crops.

    Args:
        a: theta2 ``(N, 3, 3)`` or ``(N, 4, 4)``.
        b: the same shape.
    """
    (low_a, high_a), (low_b, high_b) = (box_from_matrix(one).chunk(2, dim=-1) for one in (a, b))
    common = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0.0).prod(dim=-1)
    return common / ((high_a - low_a).prod(dim=-1) + (high_b - low_b).prod(dim=-1) - common)


def common_crop(theta2: Tensor) -> Tensor:
    """Return one crop ``(3, 3)`` for a scan from the crops ``(N, 3, 3)`` of its slices.

    Each edge is a quantile of the slices' edges (:data:`EDGE_QUANTILE`), so that the crop holds most slices'
    boxes and no single slice decides.
    """
    boxes = box_from_matrix(theta2)
    low = torch.quantile(boxes[:, :2], EDGE_QUANTILE, dim=0)
    high = torch.quantile(boxes[:, 2:], 1.0 - EDGE_QUANTILE, dim=0)
    return matrix_from_box(torch.cat([low, high]))


def transferred(theta2: Tensor, input_from_old: Tensor, input_from_new: Tensor) -> Tensor:
    """Transfer crops from one homogenized frame to another one of the same input.

    Center and area of each crop in the input stay exactly the same. A crop is an upright square, so the two
    poses' difference in roll and aspect ratio is dropped.

    Args:
        theta2: ``(N, 3, 3)``, old homogenized frame from crop.
        input_from_old: theta1 ``(N, 3, 3)`` of the old frame.
        input_from_new: theta1 ``(N, 3, 3)`` of the new frame.

    Returns:
        ``(N, 3, 3)``, new homogenized frame from crop.
    """
    moved = compose(invert(input_from_new), input_from_old, theta2)
    area = moved[:, 0, 0] * moved[:, 1, 1] - moved[:, 0, 1] * moved[:, 1, 0]
    half, center = area.sqrt()[:, None], moved[:, :2, 2]
    return matrix_from_box(torch.cat([center - half, center + half], dim=1))


def enlarged(matrix: Tensor, factor: float) -> Tensor:
    """Enlarge crops around their centers, up to the whole frame; shift them to stay inside the frame.

    Args:
        matrix: theta2 ``(N, 3, 3)`` or ``(N, 4, 4)``.
        factor: factor of the side lengths, above 1.
    """
    half, center = _half_and_center(matrix)
    half = (half * factor).clamp(max=1.0)
    center = center.clamp(half - 1.0, 1.0 - half)
    return matrix_from_box(torch.cat([center - half, center + half], dim=1))


def mirrored(matrix: Tensor) -> Tensor:
    """Return ``matrix · M``, M = diag(-1, 1, 1), which samples the mirror image of a crop.

    A patient mirrored about the line x = 0 of the homogenized frame is sampled by theta1 · M. The crop must
    be mirrored with the patient, theta2' = M · theta2 · M (center ``(-tx, ty)``, the same size): an unchanged
    crop would show the other side of the body and cut off an organ that lies on one side. Together, theta1 ·
    M · theta2' = theta1 · theta2 · M: the mirrored patient in the mirrored crop is exactly the crop with its
    columns reversed, for every pose and crop. Mirroring twice is the identity; mirroring once changes the
    sign of the determinant.

    Args:
        matrix: theta2, or theta1 · theta2 (frame from crop), ``(..., 3, 3)`` or ``(..., 4, 4)``.
    """
    return torch.cat([-matrix[..., :1], matrix[..., 1:]], dim=-1)


def jittered(matrix: Tensor, noise: Tensor, *, shift: float, scale: float) -> Tensor:
    """Return theta2 with center and size perturbed, so that a U-Net learns to cope with imperfect crops.

    Args:
        matrix: ``(N, 3, 3)`` or ``(N, 4, 4)``.
        noise: ``(N, 3)`` in [-1, 1]: size, x, y; of volumes ``(N, 5)``: size in plane, depth, x, y, z.
        shift: largest shift, as a fraction of the crop's half sides.
        scale: largest change of the natural logarithm of a size.
    """
    half, center = _half_and_center(matrix)
    dims = half.shape[1]
    sizes = noise[:, [0, 0, 1][:dims]]
    grown = half * torch.exp(scale * sizes)
    center = center + shift * half * noise[:, dims - 1 :]
    return matrix_from_box(torch.cat([center - grown, center + grown], dim=1))
