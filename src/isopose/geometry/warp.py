"""Resample images and volumes through affine matrices; no other module samples through matrices.

Convention: normalized coordinates ``(x, y)``, of volumes ``(x, y, z)``, in [-1, 1] from the outer edge of the
first pixel to the outer edge of the last (``align_corners=False``), so that a matrix means the same at every
resolution. Matrices map output to input, as samplers need it: ``x_input = input_from_output @ x_output``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from isopose.devices import one_thread

Mode = Literal["bilinear", "bicubic", "nearest"]
#: ``(h, w)`` of an image or ``(d, h, w)`` of a volume.
Size = tuple[int, ...]
#: Rows and columns of an image.
Window = tuple[slice, slice]

#: Prefilter for a pixel that becomes k times larger: sigma = FACTOR * sqrt(k^2 - 1) pixels, where a pixel's
#: blur is a Gaussian of one pixel's full width at half maximum (Cardoso et al., MICCAI 2015, eq. 2).
SIGMA_FACTOR = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))
#: Below a fifth of a pixel the neighbors' weights are under 1e-5, and nothing is blurred.
LEAST_SIGMA = 0.2
#: Parameter of the cubic kernel (Keys, 1981) in PyTorch.
CUBIC = -0.75
#: Radius of the blur in an exported graph, in pixels: three sigma where an output pixel spans 5.6.
GRAPH_RADIUS = 7


def warp(
    image: Tensor,
    input_from_output: Tensor,
    size: Size,
    *,
    fill: float = 0.0,
    mode: Mode = "bilinear",
    prefilter: bool = True,
    displacement: Tensor | None = None,
    window: Window | None = None,
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
        # Without fill, two passes over the images less.
        source = image.to(dtype) - fill if fill else image.to(dtype)
        if prefilter and mode != "nearest":
            source = blur(source, _sigmas(matrix.detach(), tuple(source.shape[2:]), size))
        grid = _grid(matrix, size, window)
        if displacement is not None:
            linear = matrix[:, None, :axes, :axes]
            moved = linear @ displacement.to(dtype).reshape(len(grid), -1, axes, 1)
            grid = grid + moved.reshape(grid.shape)
        out = F.grid_sample(source, grid, mode=mode, padding_mode="zeros", align_corners=False)
        return (out + fill if fill else out).to(out_dtype)


@one_thread()
def warp_straight(
    image: Tensor,
    input_from_output: Tensor,
    size: tuple[int, int],
    *,
    fill: float = 0.0,
    mode: Mode = "bilinear",
) -> Tensor:
    """Resample images through one matrix of scales and shifts, in a fraction of :func:`warp`'s time on a CPU.

    Blur and sampling are separable and the same for all rows and all columns: rows are weighted and summed,
    then columns. The values are those of :func:`warp`. It takes one thread: several would wait for each other
    in steps as short as these on a busy machine.

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
    # What the weights lack to 1 lies outside.
    outside = fill * (1.0 - rows.shares.sum(dim=1)[:, None] * columns.shares.sum(dim=1))
    out = image.new_empty((n, channels, *size), dtype=torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        # Plane by plane, which then stays in the processor's cache.
        for plane, target in zip(image.flatten(0, 1), out.flatten(0, 1), strict=True):
            target.copy_(columns.summed(rows.summed(plane.float()).T.contiguous()).T)
            if fill:
                target += outside
    return out


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights of input pixels in output pixels along one axis.

    Args:
        pixels: ``(output, K)`` input pixels that each output pixel sees.
        shares: ``(output, K)`` their weights; all other input pixels have none.
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
    """Return the weights of input pixels in output pixels along one axis."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 0], matrix[0, 2] = scale, shift
    one_each = torch.eye(pixels, dtype=torch.float64)[None, None]
    whole = warp(one_each, matrix, (pixels, size), mode=mode)[0, 0].float().T
    most = max(1, int((whole != 0).sum(dim=1).max()))
    # Those with a weight before those without, in their order.
    seen = (whole == 0).byte().argsort(dim=1, stable=True)[:, :most].contiguous()
    return _Weights(seen, whole.gather(1, seen))


@one_thread()
def warp_alike(
    images: Tensor, input_from_output: Tensor, size: tuple[int, int], *, fill: float = 0.0
) -> Tensor:
    """Resample images through one matrix, bicubic and prefiltered, in less time than :func:`warp` on a CPU.

    An output pixel is a weighted sum of the same 16 pixels in all images. These lie side by side in memory,
    so that a sum of all images is one operation on vectors. The values are those of :func:`warp`. It takes
    one thread: several would wait for each other in its short steps on a busy machine.

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
    sigmas = _sigmas(matrix, (height, width), size)
    weights = _cubic_weights(tuple(matrix.flatten().tolist()), (height, width), size)
    planes = images.new_empty((n, height, width), dtype=torch.float32)
    for image, plane in zip(images, planes, strict=True):
        plane.copy_(blur((image.float() - fill)[None, None], sigmas)[0, 0])
    sums = weights.summed(planes.flatten(1).T.contiguous())
    return (sums.T + fill).reshape(n, *size)


@lru_cache(maxsize=1)
def _cubic_weights(matrix: tuple[float, ...], input_size: tuple[int, int], size: tuple[int, int]) -> _Weights:
    """Return the weights of input pixels in output pixels, row by row, as ``F.grid_sample`` has them.

    The slices of a scan are resampled a part at a time, all through the last matrix.
    """
    grid, rows_and_columns = _grid(torch.tensor(matrix).reshape(1, 3, 3), size)[0], []
    for along, side in zip(grid.flip(2).unbind(dim=2), input_size, strict=True):
        place = (along + 1.0) * (side / 2.0) - 0.5
        pixels = place.floor()[..., None] + torch.arange(-1.0, 3.0)
        off = (place[..., None] - pixels).abs()
        near = ((CUBIC + 2.0) * off - (CUBIC + 3.0)) * off * off + 1.0
        far = ((CUBIC * off - 5.0 * CUBIC) * off + 8.0 * CUBIC) * off - 4.0 * CUBIC
        inside = (pixels >= 0) & (pixels < side)
        shares = torch.where(off <= 1.0, near, far) * inside
        rows_and_columns.append((pixels.clamp(0, side - 1).long(), shares))
    (rows, of_rows), (columns, of_columns) = rows_and_columns
    pixels = rows[..., :, None] * input_size[1] + columns[..., None, :]
    shares = of_rows[..., :, None] * of_columns[..., None, :]
    return _Weights(pixels.reshape(-1, 16), shares.reshape(-1, 16))


def warp_slabs(
    volume: Tensor, input_from_output: Tensor, size: Size, *, fill: float = 0.0, voxels: int
) -> Iterator[tuple[slice, Tensor]]:
    """Resample one volume, linearly and prefiltered, a slab of output slices at a time to bound the memory.

    Args:
        volume: ``(D, H, W)``, float32.
        input_from_output: ``(4, 4)``, normalized output to normalized input coordinates.
        size: ``(d, h, w)`` of the output.
        fill: value outside the input.
        voxels: output voxels at a time.

    Yields:
        The slab's slices, and their values ``(n, h, w)``.
    """
    depth, height, width = size
    matrix = input_from_output.to(volume.dtype)[None]
    source = (volume - fill)[None, None]
    source = blur(source, _sigmas(matrix, tuple(volume.shape), size))
    step = max(1, voxels // (height * width))
    for first in range(0, depth, step):
        last = min(first + step, depth)
        grid = _grid(matrix @ whole_from_slab(first, last, depth).to(matrix), (last - first, height, width))
        out = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        yield slice(first, last), out[0, 0] + fill


def whole_from_slab(first: int, last: int, depth: int) -> Tensor:
    """Return the ``(4, 4)`` matrix from a slab's normalized coordinates to the whole stack's."""
    matrix = torch.eye(4)
    matrix[2, 2], matrix[2, 3] = (last - first) / depth, (first + last) / depth - 1.0
    return matrix


def window_of(
    box: Window, input_from_output: Tensor, input_size: tuple[int, int], size: tuple[int, int]
) -> Window:
    """Return the rows and columns of the output that a part of the input can reach, linearly sampled.

    Args:
        box: rows and columns of the input.
        input_from_output: ``(N, 3, 3)``, normalized coordinates.
        input_size: ``(h, w)``.
        size: ``(h, w)`` of the output.
    """
    # Samples see a pixel on each side, and what the blur brings there.
    sigma = float(_sigmas(input_from_output, input_size, size).max())
    reach = 1 + (math.ceil(3.0 * sigma) if sigma >= LEAST_SIGMA else 0)
    y, x = (
        torch.tensor([part.start - reach, part.stop + reach]) * 2.0 / side - 1.0
        for part, side in zip(box, input_size, strict=True)
    )
    corners = torch.stack([x[[0, 0, 1, 1]], y[[0, 1, 0, 1]], torch.ones(4)])
    seen = (invert(input_from_output) @ corners)[:, :2].transpose(0, 1).flatten(1)
    sides = torch.tensor([size[1], size[0]])
    low, high = ((ends + 1.0) / 2.0 * sides for ends in (seen.amin(dim=1), seen.amax(dim=1)))
    columns, rows = (
        slice(min(max(math.floor(first) - 1, 0), side), min(max(math.ceil(last) + 1, 0), side))
        for first, last, side in zip(low.tolist(), high.tolist(), sides.tolist(), strict=True)
    )
    return rows, columns


def _grid(input_from_output: Tensor, size: Size, window: Window | None = None) -> Tensor:
    """Return the normalized input coordinates of output pixels, ``(N, *size, 2)`` or ``(N, *size, 3)``.

    The values are those of ``F.affine_grid``, which multiplies a matrix with every pixel and on a CPU takes
    longer than the sampling.
    """
    n, axes = input_from_output.shape[0], len(size)
    columns = input_from_output[:, :axes].unbind(dim=2)
    grid = columns[axes].reshape(n, *[1] * axes, axes)
    # From the outermost axis to x, so that only the last sum is as large as the output.
    for place, side in enumerate(size):
        centers = (2.0 * torch.arange(side, device=grid.device, dtype=grid.dtype) + 1.0) / side - 1.0
        centers = centers if window is None else centers[window[place]]
        along = columns[axes - 1 - place].reshape(n, *[1] * axes, axes)
        grid = grid + along * centers.reshape(-1, *[1] * (axes - place))
    return grid


def pixels_per_step(input_from_output: Tensor, input_size: Size, size: Size) -> Tensor:
    """Return the input pixels that one output pixel spans along input x and y (and z).

    Args:
        input_from_output: ``(N, 3, 3)`` or ``(N, 4, 4)``, normalized coordinates.
        input_size: ``(h, w)`` or ``(d, h, w)``.
        size: of the output.

    Returns:
        ``(N, 2)`` or ``(N, 3)``.
    """
    axes = len(size)
    # Products of tensors: a list would become a constant in an exported graph, whose sizes are dynamic.
    one = input_from_output.new_ones(())
    per_output = torch.stack([2.0 / (one * side) for side in reversed(size)])
    per_input = torch.stack([one * side / 2.0 for side in reversed(input_size)])
    jacobian = per_input[:, None] * input_from_output[..., :axes, :axes] * per_output[None, :]
    return jacobian.square().sum(dim=-1).sqrt()


def _sigmas(matrix: Tensor, input_size: Size, size: Size) -> Tensor:
    """Return the prefilter's sigmas along x, y (and z) in input pixels, ``(N, 2)`` or ``(N, 3)``."""
    step = pixels_per_step(matrix, input_size, size)
    return SIGMA_FACTOR * (step.square() - 1.0).clamp(min=0.0).sqrt()


def blur(image: Tensor, sigmas: Tensor) -> Tensor:
    """Blur with a separable Gaussian; outside the image is 0.

    Args:
        image: ``(N, C, H, W)``, or volumes ``(N, C, D, H, W)``.
        sigmas: ``(N, 2)`` or ``(N, 3)``, in pixels along x, y (and z).
    """
    if image.ndim == 4:
        return _blur_along(_blur_along(image, sigmas[:, 0], 0), sigmas[:, 1], 1)
    # A volume is blurred as images: its slices along x and y, then, with planes flattened to rows, along z.
    n, c, d, h, w = image.shape
    slices = blur(image.reshape(n, c * d, h, w), sigmas[:, :2])
    return _blur_along(slices.reshape(n, c, d, h * w), sigmas[:, 2], 1).reshape(image.shape)


def _blur_along(image: Tensor, sigma: Tensor, axis: int) -> Tensor:
    """Blur ``(N, C, H, W)`` along x (axis 0) or y (axis 1), with a sigma ``(N,)`` for each image."""
    if torch.compiler.is_compiling():
        return _blur_in_graph(image, sigma, axis)
    widest = float(sigma.max()) if len(sigma) else 0.0
    if not math.isfinite(widest):
        raise FloatingPointError("a pose or crop is not finite")
    if widest < LEAST_SIGMA:
        return image
    radius = min(math.ceil(3.0 * widest), image.shape[3 - axis])
    kernel = _gaussian(sigma, radius)
    if image.device.type == "cpu" and not (torch.is_grad_enabled() and image.requires_grad):
        return _blur_by_shifts(image, kernel, 3 - axis)
    n, c, h, w = image.shape
    kernel = kernel.repeat_interleave(c, dim=0)
    shape = (n * c, 1, 1, -1) if axis == 0 else (n * c, 1, -1, 1)
    padding = (0, radius) if axis == 0 else (radius, 0)
    flat = image.reshape(1, n * c, h, w)
    return F.conv2d(flat, kernel.reshape(shape), padding=padding, groups=n * c).reshape(n, c, h, w)


@one_thread()
def _blur_by_shifts(image: Tensor, kernels: Tensor, dim: int) -> Tensor:
    """Blur ``(N, C, H, W)`` along a dimension as a sum of shifted images, on a CPU.

    A plane stays in the processor's cache meanwhile. A convolution of one channel takes ten times as long.
    It takes one thread: several would wait for each other in steps as short as these on a busy machine.

    Args:
        image: the images; no gradient is kept.
        kernels: ``(N, 2 radius + 1)``, symmetric.
        dim: 2 or 3.
    """
    out = torch.empty_like(image, memory_format=torch.contiguous_format)
    for images, blurred, kernel in zip(image, out, kernels.tolist(), strict=True):
        middle = len(kernel) // 2
        for plane, target in zip(images, blurred, strict=True):
            torch.mul(plane, kernel[middle], out=target)
            side = plane.shape[dim - 2]
            for shift in range(1, min(middle, side - 1) + 1):
                weight, rest = kernel[middle - shift], side - shift
                target.narrow(dim - 2, shift, rest).add_(plane.narrow(dim - 2, 0, rest), alpha=weight)
                target.narrow(dim - 2, 0, rest).add_(plane.narrow(dim - 2, shift, rest), alpha=weight)
    return out


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """Return Gaussian kernels ``(N, 2 radius + 1)`` that sum to 1."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    return kernel / kernel.sum(dim=1, keepdim=True)


def _blur_in_graph(image: Tensor, sigma: Tensor, axis: int) -> Tensor:
    """Blur in an exported graph, where no shape may depend on a value and N is dynamic."""
    side = image.shape[3 - axis]
    padding = (GRAPH_RADIUS, GRAPH_RADIUS)
    padded = F.pad(image, padding if axis == 0 else (0, 0, *padding))
    shifted = (padded.narrow(3 - axis, first, side) for first in range(2 * GRAPH_RADIUS + 1))
    weights = _gaussian(sigma, GRAPH_RADIUS).unbind(dim=1)
    return reduce(add, (w[:, None, None, None] * s for w, s in zip(weights, shifted, strict=True)))


def resize(image: Tensor, size: tuple[int, int], *, fill: float = 0.0, mode: Mode = "bilinear") -> Tensor:
    """Resample images ``(N, C, H, W)`` to ``(N, C, h, w)`` over the same field of view; see :func:`warp`."""
    if (image.shape[2], image.shape[3]) == size:
        return image
    return warp(image, torch.eye(3, device=image.device), size, fill=fill, mode=mode)


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
