"""Augment the U-Net's input in the homogenized frame, on the device: intensities and a deformation.

The changes of intensities, their order, parts and ranges are those of nnU-Net v2's trainer
(``nnUNetTrainer.get_training_transforms``), after random convolutions, which nnU-Net does not have. Rotation,
scaling and shift are the jitter around the pose.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from isopose.geometry.blur import blur
from isopose.settings import IntensityConfig

#: Largest displacement of a deformed crop, in half sides of the crop.
MAX_DISPLACEMENT = 0.04
#: Control points of the deformation along each axis.
CONTROL_POINTS = 5
#: Largest standard deviation of added noise, in standard deviations of the normalized intensities.
MAX_NOISE_SD = 0.1
#: Layers of random convolutions, and their channels between the first and the last.
CONVOLUTIONS, CONVOLUTION_CHANNELS = 4, 2
#: Sigma of the blur in pixels, factor of brightness and contrast, part of the resolution, and exponent.
BLUR_SIGMA, CONTRAST_FACTOR, RESOLUTION, GAMMA = (0.5, 1.0), (0.75, 1.25), (0.5, 1.0), (0.7, 1.5)


def seeds_of(noise: Tensor) -> list[int]:
    """Return a seed for each value ``(N,)`` in [-1, 1): the same on every device."""
    return ((noise.cpu().double() + 1.0) * 2**23).long().tolist()


def each_changed(
    image: Tensor, seeds: Sequence[int], config: IntensityConfig, airs: Sequence[float]
) -> Tensor:
    """Return images whose channels are each passed to :func:`augmented_intensities`, with seeds of their own.

    Args:
        image: ``(N, C, M, M)`` or ``(N, C, D, M, M)``, channel after channel, each with all neighbors, which
            are changed alike.
        seeds: of each image.
        config: the part of the images that each change touches.
        airs: value outside the image, of each channel.
    """
    parts = image.chunk(len(airs), dim=1)
    return torch.cat(
        [
            augmented_intensities(part, [seed * len(airs) + number for seed in seeds], config, air)
            for number, (part, air) in enumerate(zip(parts, airs, strict=True))
        ],
        dim=1,
    )


def augmented_intensities(image: Tensor, seeds: Sequence[int], config: IntensityConfig, air: float) -> Tensor:
    """Return images with their intensities changed at random, each by some of the configured changes.

    Args:
        image: the U-Net's input ``(N, C, M, M)``, of volumes ``(N, C, D, M, M)``; it is not changed in place.
        seeds: of each image; the same seed gives the same change.
        config: the part of the images that each change touches.
        air: value outside the image.
    """

    def noised(some: Tensor, strength: Tensor, rows: Sequence[int]) -> Tensor:
        fields = [torch.randn(some.shape[1:], generator=_generator(seeds[row], 1)) for row in rows]
        return some + MAX_NOISE_SD * _per_image(strength, some) * torch.stack(fields).to(some)

    def blurred(some: Tensor, strength: Tensor, _: Sequence[int]) -> Tensor:
        sigmas = _between(strength, *BLUR_SIGMA)[:, None].expand(-1, some.ndim - 2)
        # The blur assumes 0 outside the image.
        return blur(some - air, sigmas) + air

    changes: dict[str, Callable[[Tensor, Tensor, Sequence[int]], Tensor]] = {
        "noise": noised,
        "blur": blurred,
        "brightness": lambda some, strength, _: some * _per_image(_between(strength, *CONTRAST_FACTOR), some),
        "contrast": lambda some, strength, _: with_contrast(some, _between(strength, *CONTRAST_FACTOR)),
        "low_resolution": lambda some, strength, _: with_resolution(some, _between(strength, *RESOLUTION)),
        "inverted_gamma": lambda some, strength, _: -with_gamma(-some, _between(strength, *GAMMA)),
        "gamma": lambda some, strength, _: with_gamma(some, _between(strength, *GAMMA)),
    }
    draws = torch.stack([torch.rand(2, len(changes), generator=_generator(seed)) for seed in seeds])
    out = image.clone()
    for row, seed in enumerate(seeds):
        generator = _generator(seed, 3)
        uniform, part = torch.rand(2, generator=generator).tolist()
        if uniform < config.random_convolutions:
            out[row] = randomly_convolved(out[row], part, generator)
    for number, (name, change) in enumerate(changes.items()):
        chosen = (draws[:, 0, number] < getattr(config, name)).nonzero()[:, 0]
        if len(chosen):
            rows, strength = chosen.to(image.device), draws[chosen, 1, number].to(image)
            out[rows] = change(out[rows], strength, chosen.tolist())
    return out


def displacements(seeds: Sequence[int], part: float, shape: Sequence[int]) -> Tensor | None:
    """Return smooth random displacements of a batch of crops; None where no crop of it is deformed.

    Displacements of :data:`CONTROL_POINTS` points along each axis are drawn uniformly and interpolated: cubic
    in two dimensions, linear in three.

    Args:
        seeds: of each crop.
        part: of the crops that are deformed.
        shape: of a crop, ``(M, M)`` or ``(D, M, M)``.

    Returns:
        ``(N, *shape, 2)`` or ``(N, *shape, 3)`` in normalized coordinates of the crop, at most about
        :data:`MAX_DISPLACEMENT`; 0 for crops that are not deformed.
    """
    axes, points = len(shape), []
    for seed in seeds:
        generator = _generator(seed, 2)
        deformed = float(torch.rand((), generator=generator)) < part
        control_displacements = torch.rand(axes, *[CONTROL_POINTS] * axes, generator=generator) * 2.0 - 1.0
        points.append(control_displacements * MAX_DISPLACEMENT * deformed)
    controls = torch.stack(points)
    if not controls.any():
        return None
    smooth = F.interpolate(
        controls, size=tuple(shape), mode="bicubic" if axes == 2 else "trilinear", align_corners=False
    )
    return smooth.movedim(1, -1)


def randomly_convolved(image: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """Return an image mixed with what a shallow network of random weights makes of it; mean and sd stay.

    Global intensity non-linear augmentation (GIN) of Ouyang et al., "Causality-inspired single-source domain
    generalization for medical image segmentation" (IEEE TMI 2022): :data:`CONVOLUTIONS` convolutions of 1 or
    3 pixels along each side with a leaky ReLU between them. Shapes stay, but the order of tissues from dark
    to bright does not. All channels (the neighbors of a slice) are changed alike.

    Args:
        image: ``(C, H, W)`` or ``(C, D, H, W)``.
        part: of the network's output in the mixture, from 0 to 1.
        generator: of the weights, on the CPU.
    """
    axes = image.ndim - 1
    convolve = F.conv2d if axes == 2 else F.conv3d
    out, channels = image[:, None], [1, *[CONVOLUTION_CHANNELS] * (CONVOLUTIONS - 1), 1]
    for layer, (inputs, outputs) in enumerate(pairwise(channels)):
        side = 3 if float(torch.rand((), generator=generator)) < 0.5 else 1
        weight = torch.randn(outputs, inputs, *[side] * axes, generator=generator).to(image)
        bias = torch.randn(outputs, generator=generator).to(image)
        out = convolve(out, weight, bias, padding=side // 2)
        if layer < CONVOLUTIONS - 1:
            out = F.leaky_relu(out)
    mixed = part * _standardized(out[:, 0]) + (1.0 - part) * _standardized(image)
    return _standardized(mixed) * image.std() + image.mean()


def _standardized(image: Tensor) -> Tensor:
    return (image - image.mean()) / image.std().clamp(min=1e-7)


def with_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Return images with their contrast around the mean multiplied, within each image's own range.

    Args:
        image: ``(N, C, ...)``.
        factor: ``(N,)``.
    """
    flat = image.flatten(1)
    mean, low, high = (
        _per_image(one, image) for one in (flat.mean(dim=1), flat.amin(dim=1), flat.amax(dim=1))
    )
    return ((image - mean) * _per_image(factor, image) + mean).clamp(low, high)


def with_resolution(image: Tensor, part: Tensor) -> Tensor:
    """Return images as they look at a lower resolution: the nearest of fewer pixels, then interpolated.

    Args:
        image: ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        part: ``(N,)`` of the pixels along each side that is left.
    """
    out = []
    for one, left in zip(image.split(1), part.tolist(), strict=True):
        whole = one.shape[2:]
        few = F.interpolate(one, size=[max(1, round(side * left)) for side in whole], mode="nearest-exact")
        mode = "bicubic" if len(whole) == 2 else "trilinear"
        out.append(F.interpolate(few, size=whole, mode=mode, align_corners=False))
    return torch.cat(out)


def with_gamma(image: Tensor, gamma: Tensor) -> Tensor:
    """Return images whose intensities, from 0 to 1, are raised to a power; mean and deviation stay.

    Args:
        image: ``(N, C, ...)``.
        gamma: ``(N,)`` exponents.
    """
    flat = image.flatten(1)
    low, high = (_per_image(edge, image) for edge in (flat.amin(dim=1), flat.amax(dim=1)))
    span = (high - low).clamp(min=1e-7)
    out = ((image - low) / span).clamp(min=0.0) ** _per_image(gamma, image) * span + low
    mean, sd = _per_image(flat.mean(dim=1), image), _per_image(flat.std(dim=1), image)
    after = out.flatten(1)
    centered = out - _per_image(after.mean(dim=1), image)
    return centered / _per_image(after.std(dim=1), image).clamp(min=1e-7) * sd + mean


def _between(strength: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * strength


def _per_image(value: Tensor, image: Tensor) -> Tensor:
    """Return values ``(N,)`` in a shape that multiplies images."""
    return value.reshape(-1, *[1] * (image.ndim - 1))


def _generator(seed: int, stream: int = 0) -> torch.Generator:
    """Return a generator on the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(4 * seed + stream)
