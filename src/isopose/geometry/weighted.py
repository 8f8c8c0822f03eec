"""Resample images as weighted sums of input pixels, which on a CPU is faster than ``F.grid_sample``.

The weights are computed once for a matrix and used for all images that are resampled through it.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from isopose.devices import one_thread
from isopose.geometry.blur import blur, prefilter_sigmas
from isopose.geometry.warp import Mode, sampling_grid, warp

#: Parameter of the cubic kernel (Keys, 1981) in PyTorch.
CUBIC_A = -0.75


@one_thread()
def warp_axis_aligned(
    image: Tensor,
    input_from_output: Tensor,
    size: tuple[int, int],
    *,
    fill: float = 0.0,
    mode: Mode = "bilinear",
) -> Tensor:
    """Resample images through one matrix of scales and shifts, in a fraction of ``warp``'s time on a CPU.

    Blur and sampling are separable, and the same for all rows and all columns: rows are weighted and summed,
    then columns. The values are those of :func:`isopose.geometry.warp.warp`. Runs on one thread: the steps
    are so short that on a busy machine several threads would mostly wait.

    Args:
        image: ``(N, C, H, W)``.
        input_from_output: ``(3, 3)``, normalized output to normalized input coordinates.
        size: ``(h, w)`` of the output.
        fill: value outside the input.
        mode: interpolation.

    Returns:
        ``(N, C, h, w)`` float32.

    Raises:
        ValueError: the matrix rotates or shears.
    """
    (scale_x, shear_x, shift_x), (shear_y, scale_y, shift_y), _ = input_from_output.tolist()
    if shear_x or shear_y:
        raise ValueError("expected a matrix that scales and shifts only")
    n, channels, height, width = image.shape
    rows = _weights(scale_y, shift_y, height, size[0], mode).to(image.device)
    columns = _weights(scale_x, shift_x, width, size[1], mode).to(image.device)
    # The rest of the weights, up to a sum of 1, lies outside the image.
    outside = fill * (1.0 - rows.shares.sum(dim=1)[:, None] * columns.shares.sum(dim=1))
    out = image.new_empty((n, channels, *size), dtype=torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        # Plane by plane, so that each stays in the processor's cache.
        for plane, target in zip(image.flatten(0, 1), out.flatten(0, 1), strict=True):
            target.copy_(columns.summed(rows.summed(plane.float()).T.contiguous()).T)
            if fill:
                target += outside
    return out


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights of input pixels in output pixels along one axis.

    Args:
        pixels: ``(output, K)`` indices of the input pixels on which each output pixel depends.
        shares: ``(output, K)`` their weights; all other input pixels have weight 0.
    """

    pixels: Tensor
    shares: Tensor

    def to(self, device: torch.device) -> "_Weights":
        """Return the weights on a device."""
        return _Weights(self.pixels.to(device), self.shares.to(device))

    def summed(self, lines: Tensor) -> Tensor:
        """Return weighted sums ``(output, n)`` of lines ``(input, n)``."""
        return F.embedding_bag(self.pixels, lines, mode="sum", per_sample_weights=self.shares)


@lru_cache(maxsize=64)
def _weights(scale: float, shift: float, pixels: int, size: int, mode: Mode) -> _Weights:
    """Return the weights of input pixels in output pixels along one axis, prefilter included.

    Args:
        scale: of the matrix from normalized output to normalized input coordinates.
        shift: of that matrix.
        pixels: of the input along the axis.
        size: pixels of the output along the axis.
        mode: interpolation.
    """
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 0], matrix[0, 2] = scale, shift
    identity = torch.eye(pixels, dtype=torch.float64)[None, None]
    dense = warp(identity, matrix, (pixels, size), mode=mode)[0, 0].float().T
    count = max(1, int((dense != 0).sum(dim=1).max()))
    # Pixels with a weight first, in their order.
    order = (dense == 0).byte().argsort(dim=1, stable=True)[:, :count].contiguous()
    return _Weights(order, dense.gather(1, order))


@one_thread()
def warp_stack(
    images: Tensor, input_from_output: Tensor, size: tuple[int, int], *, fill: float = 0.0
) -> Tensor:
    """Resample images through one matrix, bicubic and prefiltered, in less time than ``warp`` on a CPU.

    An output pixel is a weighted sum of the same 16 pixels in all images. The images' values of a pixel lie
    side by side in memory, so that the sums of all images are one vector operation. The values are those of
    :func:`isopose.geometry.warp.warp`. Runs on one thread: the steps are so short that on a busy machine
    several threads would mostly wait.

    Args:
        images: ``(N, H, W)``; N of 16 or a multiple is fastest.
        input_from_output: ``(3, 3)``, normalized output to normalized input coordinates.
        size: ``(h, w)`` of the output.
        fill: value outside the input.

    Returns:
        ``(N, h, w)`` float32.
    """
    n, height, width = images.shape
    matrix = input_from_output.float()[None]
    sigmas = prefilter_sigmas(matrix, (height, width), size)
    weights = _cubic_weights(tuple(matrix.flatten().tolist()), (height, width), size)
    planes = images.new_empty((n, height, width), dtype=torch.float32)
    for image, plane in zip(images, planes, strict=True):
        plane.copy_(blur((image.float() - fill)[None, None], sigmas)[0, 0])
    sums = weights.summed(planes.flatten(1).T.contiguous())
    return (sums.T + fill).reshape(n, *size)


@lru_cache(maxsize=1)
def _cubic_weights(matrix: tuple[float, ...], input_size: tuple[int, int], size: tuple[int, int]) -> _Weights:
    """Return the weights of input pixels in output pixels, row by row, as ``F.grid_sample`` has them.

    The last matrix's weights are cached: the slices of a scan are resampled in chunks through one matrix.
    """
    grid, rows_and_columns = sampling_grid(torch.tensor(matrix).reshape(1, 3, 3), size)[0], []
    for along, side in zip(grid.flip(2).unbind(dim=2), input_size, strict=True):
        position = (along + 1.0) * (side / 2.0) - 0.5
        pixels = position.floor()[..., None] + torch.arange(-1.0, 3.0)
        distance = (position[..., None] - pixels).abs()
        inner = ((CUBIC_A + 2.0) * distance - (CUBIC_A + 3.0)) * distance * distance + 1.0
        outer = ((CUBIC_A * distance - 5.0 * CUBIC_A) * distance + 8.0 * CUBIC_A) * distance - 4.0 * CUBIC_A
        inside = (pixels >= 0) & (pixels < side)
        shares = torch.where(distance <= 1.0, inner, outer) * inside
        rows_and_columns.append((pixels.clamp(0, side - 1).long(), shares))
    (rows, row_shares), (columns, column_shares) = rows_and_columns
    pixels = rows[..., :, None] * input_size[1] + columns[..., None, :]
    shares = row_shares[..., :, None] * column_shares[..., None, :]
    return _Weights(pixels.reshape(-1, 16), shares.reshape(-1, 16))
