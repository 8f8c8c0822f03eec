"""The only place where images and volumes are resampled on tensors.

Convention: normalized coordinates ``(x, y)``, of volumes ``(x, y, z)``, in [-1, 1] from the outer edge of the
first pixel to the outer edge of the last (``align_corners=False``), so that a matrix means the same at every
resolution. Matrices map output to input, as samplers need it: ``x_input = input_from_output @ x_output``.
"""

import math
from collections.abc import Iterator
from functools import lru_cache, reduce
from operator import add
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["bilinear", "bicubic", "nearest"]
#: ``(h, w)`` of an image or ``(d, h, w)`` of a volume.
Size = tuple[int, ...]

#: Gaussian blur of a pixel that is k times larger, in pixels: sigma = FACTOR * sqrt(k^2 - 1); a pixel's blur
#: is taken as a Gaussian of one pixel's full width at half maximum (Cardoso et al., MICCAI 2015, eq. 2).
SIGMA_FACTOR = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))
#: Pixels to which a blur reaches in an exported graph: three sigma where an output pixel spans 5.6.
GRAPH_RADIUS = 7


def warp(
    image: Tensor,
    input_from_output: Tensor,
    size: Size,
    *,
    fill: float = 0.0,
    mode: Mode = "bilinear",
    prefilter: bool = True,
) -> Tensor:
    """Resample images, or volumes, through affine matrices.

    Matrix, grid and sampling are float32 (float64 for float64 images) under every precision and autocast.

    Args:
        image: ``(N, C, H, W)``, or volumes ``(N, C, D, H, W)``.
        input_from_output: ``(N, 3, 3)`` or ``(3, 3)``, normalized output to normalized input coordinates; of
            volumes ``(N, 4, 4)`` or ``(4, 4)``.
        size: ``(h, w)`` of the output, or ``(d, h, w)``.
        fill: value outside the input: air for images, 0 for masks and probabilities.
        mode: interpolation; ``nearest`` is never prefiltered, ``bicubic`` is for images only.
        prefilter: blur before shrinking, by the matrix's own scale, since sampling alone aliases.

    Returns:
        ``(N, C, *size)``, of the image's dtype where that is floating, else float32.
    """
    kept = image.dtype if image.dtype.is_floating_point else torch.float32
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    with torch.autocast(image.device.type, enabled=False):
        axes = len(size)
        matrix = input_from_output.to(dtype).expand(image.shape[0], axes + 1, axes + 1)
        source = image.to(dtype) - fill
        if prefilter and mode != "nearest":
            source = _blur(source, _sigmas(matrix.detach(), tuple(source.shape[2:]), size))
        grid = _grid(matrix, size)
        out = F.grid_sample(source, grid, mode=mode, padding_mode="zeros", align_corners=False)
        return (out + fill).to(kept)


def warp_straight(
    image: Tensor,
    input_from_output: Tensor,
    size: tuple[int, int],
    *,
    fill: float = 0.0,
    mode: Mode = "bilinear",
) -> Tensor:
    """As :func:`warp` through one matrix that neither turns nor shears, in a fraction of its time on a CPU.

    Blur and sampling then are the same for all rows, and for all columns: a product with a matrix each.

    Args:
        image: ``(N, C, H, W)``.
        input_from_output: ``(3, 3)``, normalized output to normalized input coordinates.
        size: ``(h, w)`` of the output.
        fill: value outside the input.
        mode: interpolation.

    Returns:
        ``(N, C, h, w)`` float32.

    Raises:
        ValueError: the matrix turns or shears.
    """
    (scale_x, shear_x, shift_x), (shear_y, scale_y, shift_y), _ = input_from_output.tolist()
    if shear_x or shear_y:
        raise ValueError("expected a matrix that scales and shifts only")
    height, width = image.shape[2:]
    rows = _shares(scale_y, shift_y, height, size[0], mode).to(image.device)
    columns = _shares(scale_x, shift_x, width, size[1], mode).to(image.device)
    with torch.autocast(image.device.type, enabled=False):
        return rows.T @ ((image.float() - fill) @ columns) + fill


@lru_cache(maxsize=64)
def _shares(scale: float, shift: float, pixels: int, size: int, mode: Mode) -> Tensor:
    """``(pixels, size)``: what each output pixel takes of each input pixel along one axis, zeros outside."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 0], matrix[0, 2] = scale, shift
    one_each = torch.eye(pixels, dtype=torch.float64)[None, None]
    return warp(one_each, matrix, (pixels, size), mode=mode)[0, 0].float()


def warp_slabs(
    volume: Tensor, input_from_output: Tensor, size: Size, *, fill: float = 0.0, voxels: int
) -> Iterator[tuple[slice, Tensor]]:
    """As :func:`warp` of one volume, some slices of the output at a time, to bound the memory.

    Args:
        volume: ``(D, H, W)``, float32.
        input_from_output: ``(4, 4)``.
        size: ``(d, h, w)`` of the output.
        fill: value outside the input.
        voxels: of the output at a time.

    Yields:
        Which slices, and their values ``(n, h, w)``.
    """
    depth, height, width = size
    matrix = input_from_output.to(volume.dtype)[None]
    source = (volume - fill)[None, None]
    source = _blur(source, _sigmas(matrix, tuple(volume.shape), size))
    step = max(1, voxels // (height * width))
    for first in range(0, depth, step):
        last = min(first + step, depth)
        grid = _grid(matrix @ whole_from_slab(first, last, depth).to(matrix), (last - first, height, width))
        out = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        yield slice(first, last), out[0, 0] + fill


def whole_from_slab(first: int, last: int, depth: int) -> Tensor:
    """``(4, 4)`` from the normalized coordinates of slices ``first`` to ``last - 1`` to the whole stack's."""
    matrix = torch.eye(4)
    matrix[2, 2], matrix[2, 3] = (last - first) / depth, (first + last) / depth - 1.0
    return matrix


def _grid(input_from_output: Tensor, size: Size) -> Tensor:
    """Where output pixels lie in the input, ``(N, *size, 2)`` or ``(N, *size, 3)``.

    As ``F.affine_grid``, which multiplies a matrix with every pixel and on a CPU takes longer than sampling.
    """
    n, axes = input_from_output.shape[0], len(size)
    columns = input_from_output[:, :axes].unbind(dim=2)
    grid = columns[axes].reshape(n, *[1] * axes, axes)
    # From the outermost axis to x, so that only the last sum is as large as the output.
    for place, side in enumerate(size):
        centers = (2.0 * torch.arange(side, device=grid.device, dtype=grid.dtype) + 1.0) / side - 1.0
        along = columns[axes - 1 - place].reshape(n, *[1] * axes, axes)
        grid = grid + along * centers.reshape(-1, *[1] * (axes - place))
    return grid


def pixels_per_step(input_from_output: Tensor, input_size: Size, size: Size) -> Tensor:
    """How many input pixels one output pixel spans along input x and y (and z): ``(N, 2)`` or ``(N, 3)``."""
    axes = len(size)
    # Multiplied, not made from lists, which would fix the lengths that an exported graph leaves open.
    one = input_from_output.new_ones(())
    per_output = torch.stack([2.0 / (one * side) for side in reversed(size)])
    per_input = torch.stack([one * side / 2.0 for side in reversed(input_size)])
    jacobian = per_input[:, None] * input_from_output[..., :axes, :axes] * per_output[None, :]
    return jacobian.square().sum(dim=-1).sqrt()


def _sigmas(matrix: Tensor, input_size: Size, size: Size) -> Tensor:
    step = pixels_per_step(matrix, input_size, size)
    return SIGMA_FACTOR * (step.square() - 1.0).clamp(min=0.0).sqrt()


def _blur(image: Tensor, sigmas: Tensor) -> Tensor:
    """Separable Gaussian blur, ``sigmas`` ``(N, 2)`` or ``(N, 3)`` pixels along x, y (and z)."""
    if image.ndim == 4:
        return _blur_along(_blur_along(image, sigmas[:, 0], 0), sigmas[:, 1], 1)
    # A volume is blurred as images: its slices along x and y, then with rows laid out as one along z.
    n, c, d, h, w = image.shape
    slices = _blur(image.reshape(n, c * d, h, w), sigmas[:, :2])
    return _blur_along(slices.reshape(n, c, d, h * w), sigmas[:, 2], 1).reshape(image.shape)


def _blur_along(image: Tensor, sigma: Tensor, axis: int) -> Tensor:
    """Blur ``(N, C, H, W)`` along x (axis 0) or y (1) by one sigma ``(N,)`` each."""
    if torch.compiler.is_compiling():
        return _blur_in_graph(image, sigma, axis)
    widest = float(sigma.max()) if len(sigma) else 0.0
    if not math.isfinite(widest):
        raise FloatingPointError("a pose or crop is not finite")
    # Below a fifth of a pixel the kernel's neighbors weigh less than 1e-5: no blur at all.
    if widest < 0.2:
        return image
    radius = min(math.ceil(3.0 * widest), image.shape[3 - axis])
    kernel = _gaussian(sigma, radius)
    n, c, h, w = image.shape
    kernel = kernel.repeat_interleave(c, dim=0)
    shape = (n * c, 1, 1, -1) if axis == 0 else (n * c, 1, -1, 1)
    padding = (0, radius) if axis == 0 else (radius, 0)
    flat = image.reshape(1, n * c, h, w)
    return F.conv2d(flat, kernel.reshape(shape), padding=padding, groups=n * c).reshape(n, c, h, w)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """Kernels ``(N, 2 radius + 1)`` that sum to 1."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    return kernel / kernel.sum(dim=1, keepdim=True)


def _blur_in_graph(image: Tensor, sigma: Tensor, axis: int) -> Tensor:
    """As :func:`_blur_along` in an exported graph, which takes no shape from a value and has any N."""
    side = image.shape[3 - axis]
    padding = (GRAPH_RADIUS, GRAPH_RADIUS)
    padded = F.pad(image, padding if axis == 0 else (0, 0, *padding))
    shifted = (padded.narrow(3 - axis, first, side) for first in range(2 * GRAPH_RADIUS + 1))
    weights = _gaussian(sigma, GRAPH_RADIUS).unbind(dim=1)
    return reduce(add, (w[:, None, None, None] * s for w, s in zip(weights, shifted, strict=True)))


def resize(image: Tensor, size: tuple[int, int], *, fill: float = 0.0, mode: Mode = "bilinear") -> Tensor:
    """The same field of view on another number of pixels, ``(N, C, H, W)`` to ``(N, C, h, w)``."""
    if (image.shape[2], image.shape[3]) == size:
        return image
    return warp(image, torch.eye(3, device=image.device), size, fill=fill, mode=mode)


def block_means(image: Tensor, least: int) -> Tensor:
    """Square images ``(N, C, S, S)`` shrunk by the largest whole factor that leaves ``least`` pixels a side.

    The same field of view, without aliasing, many times faster than a blur: what a small network or a measure
    of overlap sees of a large slice is then sampled from this.
    """
    side = image.shape[-1]
    block = max(b for b in range(1, max(side // least, 1) + 1) if side % b == 0)
    # Every so-manieth row and column added up: an eighth of the time that average pooling takes on a CPU.
    rows = reduce(add, [image[..., first::block, :] for first in range(block)])
    return reduce(add, [rows[..., first::block] for first in range(block)]) / block**2


def normalized_from_pixel(size: Size, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """``(3, 3)`` matrix from pixel indices ``(x, y)`` (centers) to normalized coordinates, for ``(h, w)``.

    For ``(d, h, w)`` it is ``(4, 4)``, from voxel indices ``(x, y, z)``.
    """
    sides = torch.tensor(tuple(reversed(size)), dtype=torch.float64)
    matrix = torch.diag(torch.cat([2.0 / sides, sides.new_ones(1)]))
    matrix[:-1, -1] = 1.0 / sides - 1.0
    return matrix.to(dtype)


def invert(matrix: Tensor) -> Tensor:
    """Inverse of affine matrices in closed form, float32 or float64 under autocast too.

    Args:
        matrix: ``(..., 3, 3)``, of volumes ``(..., 4, 4)``.
    """
    with torch.autocast(matrix.device.type, enabled=False):
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        if matrix.shape[-1] == 4:
            return _invert3d(matrix)
        a, b, tx = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2]
        c, d, ty = matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2]
        det = a * d - b * c
        zero, one = torch.zeros_like(det), torch.ones_like(det)
        rows = [
            torch.stack([d / det, -b / det, (b * ty - d * tx) / det], dim=-1),
            torch.stack([-c / det, a / det, (c * tx - a * ty) / det], dim=-1),
            torch.stack([zero, zero, one], dim=-1),
        ]
        return torch.stack(rows, dim=-2)


def _invert3d(matrix: Tensor) -> Tensor:
    a, b, c, t = matrix[..., :3, :].unbind(dim=-1)
    # Rows of the inverse are cross products of the columns over the determinant.
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-2)
    linear = rows / (rows[..., 0, :] * a).sum(dim=-1)[..., None, None]
    top = torch.cat([linear, -(linear @ t[..., None])], dim=-1)
    return torch.cat([top, matrix.new_tensor([0.0, 0.0, 0.0, 1.0]).expand_as(matrix[..., 3:, :])], dim=-2)


def compose(*matrices: Tensor) -> Tensor:
    """Product of ``(..., 3, 3)`` or ``(..., 4, 4)`` matrices, right to left, never in a reduced precision."""
    with torch.autocast(matrices[0].device.type, enabled=False):
        product = matrices[0] if matrices[0].dtype == torch.float64 else matrices[0].float()
        for matrix in matrices[1:]:
            product = product @ matrix.to(product.dtype)
        return product
