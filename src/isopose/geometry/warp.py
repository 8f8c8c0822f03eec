"""Resample images and volumes through affine matrices, and compose and invert these.

Convention: normalized coordinates ``(x, y)``, of volumes ``(x, y, z)``, in [-1, 1] from the outer edge of the
first pixel to the outer edge of the last (``align_corners=False``), so that a matrix means the same at every
resolution. Matrices map output to input, as samplers need it: ``x_input = input_from_output @ x_output``.

Faster on a CPU for many images: :mod:`isopose.geometry.weighted`; with less memory for large outputs:
:mod:`isopose.geometry.parts`.
"""

from functools import reduce
from operator import add
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from isopose.geometry.blur import blur, prefilter_sigmas
from isopose.geometry.volume import PixelWindow

Mode = Literal["bilinear", "bicubic", "nearest"]
#: ``(h, w)`` of an image or ``(d, h, w)`` of a volume.
Size = tuple[int, ...]


def warp(
    image: Tensor,
    input_from_output: Tensor,
    size: Size,
    *,
    fill: float = 0.0,
    mode: Mode = "bilinear",
    prefilter: bool = True,
    displacement: Tensor | None = None,
    window: PixelWindow | None = None,
) -> Tensor:
    """Resample images or volumes through affine matrices.

    Matrix, grid and sampling are float32 (float64 for float64 images) under every precision and autocast.

    Args:
        image: ``(N, C, H, W)``, or volumes ``(N, C, D, H, W)``.
        input_from_output: ``(N, 3, 3)`` or ``(3, 3)``, normalized output to normalized input coordinates; of
            volumes ``(N, 4, 4)`` or ``(4, 4)``.
        size: ``(h, w)`` of the output, or ``(d, h, w)``.
        fill: value outside the input: air for images, 0 for masks and probabilities.
        mode: interpolation; ``nearest`` is never prefiltered, ``bicubic`` is for images only.
        prefilter: blur before shrinking, by the matrix's scale, since sampling alone aliases.
        displacement: ``(N, *size, 2)``, of volumes ``(N, *size, 3)``, of output pixels in normalized output
            coordinates ``(x, y[, z])``: the input is sampled at ``input_from_output @ (x + displacement)``.
        window: rows and columns of the output that are sampled, without a displacement; None: all.

    Returns:
        ``(N, C, *size)``, or the window of it, of the image's dtype if that is floating, otherwise float32.
    """
    out_dtype = image.dtype if image.dtype.is_floating_point else torch.float32
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    with torch.autocast(image.device.type, enabled=False):
        axes = len(size)
        matrix = input_from_output.to(dtype).expand(image.shape[0], axes + 1, axes + 1)
        # Skipping a fill of 0 saves two passes over the images.
        source = image.to(dtype) - fill if fill else image.to(dtype)
        if prefilter and mode != "nearest":
            source = blur(source, prefilter_sigmas(matrix.detach(), tuple(source.shape[2:]), size))
        grid = sampling_grid(matrix, size, window)
        if displacement is not None:
            linear = matrix[:, None, :axes, :axes]
            moved = linear @ displacement.to(dtype).reshape(len(grid), -1, axes, 1)
            grid = grid + moved.reshape(grid.shape)
        out = F.grid_sample(source, grid, mode=mode, padding_mode="zeros", align_corners=False)
        return (out + fill if fill else out).to(out_dtype)


def sampling_grid(input_from_output: Tensor, size: Size, window: PixelWindow | None = None) -> Tensor:
    """Return the normalized input coordinates of output pixels, as ``F.grid_sample`` takes them.

    The values are those of ``F.affine_grid``, which multiplies a matrix with every pixel and on a CPU takes
    longer than the sampling.

    Args:
        input_from_output: ``(N, 3, 3)`` or ``(N, 4, 4)``, normalized output to normalized input coordinates.
        size: ``(h, w)`` of the output, or ``(d, h, w)``.
        window: rows and columns of the output, of images only; None: all.

    Returns:
        ``(N, *size, 2)`` points ``(x, y)`` or ``(N, *size, 3)`` points ``(x, y, z)``, or the window of them.
    """
    n, axes = input_from_output.shape[0], len(size)
    columns = input_from_output[:, :axes].unbind(dim=2)
    grid = columns[axes].reshape(n, *[1] * axes, axes)
    # From the outermost axis to x, so that only the last sum is as large as the output.
    for position, side in enumerate(size):
        centers = (2.0 * torch.arange(side, device=grid.device, dtype=grid.dtype) + 1.0) / side - 1.0
        centers = centers if window is None else centers[window[position]]
        along = columns[axes - 1 - position].reshape(n, *[1] * axes, axes)
        grid = grid + along * centers.reshape(-1, *[1] * (axes - position))
    return grid


def resize(image: Tensor, size: tuple[int, int], *, fill: float = 0.0) -> Tensor:
    """Resample images ``(N, C, H, W)`` to ``(N, C, h, w)`` over the same field of view; see :func:`warp`."""
    if (image.shape[2], image.shape[3]) == size:
        return image
    return warp(image, torch.eye(3, device=image.device), size, fill=fill)


def block_means(image: Tensor, least: int) -> Tensor:
    """Shrink square images by block means, over the same field of view.

    It does not alias and is many times faster than a Gaussian blur. Small networks and overlap measures then
    sample from the result.

    Args:
        image: ``(N, C, S, S)``.
        least: fewest pixels along a side of the result; the largest whole factor that allows it is taken.
    """
    side = image.shape[-1]
    block = max(b for b in range(1, max(side // least, 1) + 1) if side % b == 0)
    # Sums of strided slices take an eighth of the time of average pooling on a CPU.
    rows = reduce(add, [image[..., first::block, :] for first in range(block)])
    return reduce(add, [rows[..., first::block] for first in range(block)]) / block**2


def normalized_from_pixel(size: Size, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the matrix from pixel indices (centers) to normalized coordinates.

    Args:
        size: ``(h, w)``, or ``(d, h, w)`` of a volume.
        dtype: of the result.

    Returns:
        ``(3, 3)`` for indices ``(x, y)``, or ``(4, 4)`` for ``(x, y, z)``.
    """
    sides = torch.tensor(tuple(reversed(size)), dtype=torch.float64)
    matrix = torch.diag(torch.cat([2.0 / sides, sides.new_ones(1)]))
    matrix[:-1, -1] = 1.0 / sides - 1.0
    return matrix.to(dtype)


def invert(matrix: Tensor) -> Tensor:
    """Invert affine matrices in closed form, in float32 or float64, also under autocast.

    Args:
        matrix: ``(..., 3, 3)``, of volumes ``(..., 4, 4)``.
    """
    with torch.autocast(matrix.device.type, enabled=False):
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        if matrix.shape[-1] == 4:
            return _invert3d(matrix)
        a, b, tx = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2]
        c, d, ty = matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2]
        det = (a * d - b * c)[..., None]
        rows = [torch.stack([d, -b], dim=-1) / det, torch.stack([-c, a], dim=-1) / det]
        shift = torch.stack([b * ty - d * tx, c * tx - a * ty], dim=-1) / det
        return affine(torch.stack(rows, dim=-2), shift)


def _invert3d(matrix: Tensor) -> Tensor:
    """Invert affine matrices ``(..., 4, 4)``."""
    a, b, c, t = matrix[..., :3, :].unbind(dim=-1)
    # The rows of the inverse are cross products of the columns, divided by the determinant.
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-2)
    linear = rows / (rows[..., 0, :] * a).sum(dim=-1)[..., None, None]
    return affine(linear, -(linear @ t[..., None])[..., 0])


def affine(linear: Tensor, shift: Tensor) -> Tensor:
    """Return matrices ``(..., n + 1, n + 1)`` of linear parts ``(..., n, n)`` and shifts ``(..., n)``."""
    top = torch.cat([linear, shift[..., None]], dim=-1)
    last = torch.cat([torch.zeros_like(top[..., :1, :-1]), torch.ones_like(top[..., :1, -1:])], dim=-1)
    return torch.cat([top, last], dim=-2)


def compose(*matrices: Tensor) -> Tensor:
    """Multiply matrices ``(..., 3, 3)`` or ``(..., 4, 4)`` in float32 or float64, also under autocast.

    The last matrix is applied first: ``compose(a_from_b, b_from_c)`` is ``a_from_c``.
    """
    with torch.autocast(matrices[0].device.type, enabled=False):
        product = matrices[0] if matrices[0].dtype == torch.float64 else matrices[0].float()
        for matrix in matrices[1:]:
            product = product @ matrix.to(product.dtype)
        return product
