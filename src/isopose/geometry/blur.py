"""The Gaussian prefilter of a shrinking warp, since sampling alone aliases."""

import math
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from isopose.devices import one_thread

#: Prefilter for a pixel that becomes k times larger: sigma = FACTOR * sqrt(k^2 - 1) pixels, where a pixel's
#: blur is a Gaussian of one pixel's full width at half maximum (Cardoso et al., MICCAI 2015, eq. 2).
SIGMA_FACTOR = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))
#: Below a fifth of a pixel the neighbors' weights are under 1e-5, and nothing is blurred.
MIN_SIGMA = 0.2
#: Radius of the blur in an exported graph, in pixels: three sigma where an output pixel spans 5.6.
GRAPH_RADIUS = 7


def pixels_per_step(input_from_output: Tensor, input_size: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
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


def prefilter_sigmas(matrix: Tensor, input_size: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Return the sigmas of the Gaussian prefilter along x, y (and z).

    Args:
        matrix: ``(N, 3, 3)`` or ``(N, 4, 4)``, normalized output to normalized input coordinates.
        input_size: ``(h, w)`` or ``(d, h, w)``.
        size: of the output.

    Returns:
        ``(N, 2)`` or ``(N, 3)`` standard deviations in input pixels; 0 where nothing shrinks.
    """
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
    if widest < MIN_SIGMA:
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

    Each plane stays in the processor's cache; a convolution of one channel takes ten times as long. Runs on
    one thread: the steps are so short that on a busy machine several threads would mostly wait.

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
