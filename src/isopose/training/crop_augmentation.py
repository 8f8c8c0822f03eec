"""Augment the U-Net's input in the homogenized frame, on the device: intensities and a deformation.

The intensity transforms, their order, probabilities and ranges are those of nnU-Net v2's trainer
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
#: Ranges: sigma of the blur in pixels, factor of brightness and contrast, resolution relative to the image's,
#: and exponent.
BLUR_SIGMA, CONTRAST_FACTOR, RESOLUTION, GAMMA = (0.5, 1.0), (0.75, 1.25), (0.5, 1.0), (0.7, 1.5)


def seeds_of(noise: Tensor) -> list[int]:
    """Convert values ``(N,)`` in [-1, 1) to integer seeds, the same on every device."""
    return ((noise.cpu().double() + 1.0) * 2**23).long().tolist()


def each_changed(
    image: Tensor, seeds: Sequence[int], config: IntensityConfig, airs: Sequence[float]
) -> Tensor:
    """Return images whose channels are each passed to :func:`augmented_intensities`, with seeds of their own.

    Args:
        image: ``(N, C, M, M)`` or ``(N, C, D, M, M)``, channel after channel, each with all neighbors, which
            are changed alike.
        seeds: a seed for each image.
        config: the probability of each transform.
        airs: value outside the image, for each channel.
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
    """Apply random intensity transforms, each to the images that are drawn for it.

    Args:
        image: the U-Net's input ``(N, C, M, M)``, of volumes ``(N, C, D, M, M)``; it is not changed in place.
        seeds: a seed for each image; the same seed gives the same transforms.
        config: the probability of each transform.
        air: value outside the image.
    """

    def noised(x: Tensor, strength: Tensor, rows: Sequence[int]) -> Tensor:
        fields = [torch.randn(x.shape[1:], generator=_generator(seeds[row], 1)) for row in rows]
        return x + MAX_NOISE_SD * _per_image(strength, x) * torch.stack(fields).to(x)

    def blurred(x: Tensor, strength: Tensor, _: Sequence[int]) -> Tensor:
        sigmas = _between(strength, *BLUR_SIGMA)[:, None].expand(-1, x.ndim - 2)
        # The blur assumes 0 outside the image.
        return blur(x - air, sigmas) + air

    changes: dict[str, Callable[[Tensor, Tensor, Sequence[int]], Tensor]] = {
        "noise": noised,
        "blur": blurred,
        "brightness": lambda x, strength, _: x * _per_image(_between(strength, *CONTRAST_FACTOR), x),
        "contrast": lambda x, strength, _: with_contrast(x, _between(strength, *CONTRAST_FACTOR)),
        "low_resolution": lambda x, strength, _: with_resolution(x, _between(strength, *RESOLUTION)),
        "inverted_gamma": lambda x, strength, _: -with_gamma(-x, _between(strength, *GAMMA)),
        "gamma": lambda x, strength, _: with_gamma(x, _between(strength, *GAMMA)),
    }
    draws = torch.stack([torch.rand(2, len(changes), generator=_generator(seed)) for seed in seeds])
    out = image.clone()
    for row, seed in enumerate(seeds):
        generator = _generator(seed, 3)
        uniform, weight = torch.rand(2, generator=generator).tolist()
        if uniform < config.random_convolutions:
            out[row] = randomly_convolved(out[row], weight, generator)
    for number, (name, change) in enumerate(changes.items()):
        chosen = (draws[:, 0, number] < getattr(config, name)).nonzero()[:, 0]
        if len(chosen):
            rows, strength = chosen.to(image.device), draws[chosen, 1, number].to(image)
            out[rows] = change(out[rows], strength, chosen.tolist())
    return out


def displacements(seeds: Sequence[int], fraction: float, shape: Sequence[int]) -> Tensor | None:
    """Return smooth random displacements of a batch of crops; None where no crop of it is deformed.

    Displacements of :data:`CONTROL_POINTS` points along each axis are drawn uniformly and interpolated: cubic
    in two dimensions, linear in three.

    Args:
        seeds: a seed for each crop.
        fraction: probability that a crop is deformed, 0 to 1.
        shape: shape of a crop, ``(M, M)`` or ``(D, M, M)``.

    Returns:
        ``(N, *shape, 2)`` or ``(N, *shape, 3)`` in normalized coordinates of the crop, at most about
        :data:`MAX_DISPLACEMENT`; 0 for crops that are not deformed.
    """
    axes, control_displacements = len(shape), []
    for seed in seeds:
        generator = _generator(seed, 2)
        deformed = float(torch.rand((), generator=generator)) < fraction
        drawn = torch.rand(axes, *[CONTROL_POINTS] * axes, generator=generator) * 2.0 - 1.0
        control_displacements.append(drawn * MAX_DISPLACEMENT * deformed)
    controls = torch.stack(control_displacements)
    if not controls.any():
        return None
    smooth = F.interpolate(
        controls, size=tuple(shape), mode="bicubic" if axes == 2 else "trilinear", align_corners=False
    )
    return smooth.movedim(1, -1)


def randomly_convolved(image: Tensor, weight: float, generator: torch.Generator) -> Tensor:
    """Mix an image with the output of a shallow network of random weights; mean and sd are kept.

    Global intensity non-linear augmentation (GIN) of Ouyang et al., "Causality-inspired single-source domain
    generalization for medical image segmentation" (IEEE TMI 2022): :data:`CONVOLUTIONS` convolutions of 1 or
    3 pixels along each side with a leaky ReLU between them. Shapes stay, but the order of tissues from dark
    to bright does not. All channels (the neighbors of a slice) are changed alike.

    Args:
        image: ``(C, H, W)`` or ``(C, D, H, W)``.
        weight: weight of the network's output in the mixture, from 0 to 1.
        generator: CPU generator from which the network's weights are drawn.
    """
    axes = image.ndim - 1
    convolve = F.conv2d if axes == 2 else F.conv3d
    out, channels = image[:, None], [1, *[CONVOLUTION_CHANNELS] * (CONVOLUTIONS - 1), 1]
    for layer, (inputs, outputs) in enumerate(pairwise(channels)):
        side = 3 if float(torch.rand((), generator=generator)) < 0.5 else 1
        kernel = torch.randn(outputs, inputs, *[side] * axes, generator=generator).to(image)
        bias = torch.randn(outputs, generator=generator).to(image)
        out = convolve(out, kernel, bias, padding=side // 2)
        if layer < CONVOLUTIONS - 1:
            out = F.leaky_relu(out)
    mixed = weight * _standardized(out[:, 0]) + (1.0 - weight) * _standardized(image)
    return _standardized(mixed) * image.std() + image.mean()


def _standardized(image: Tensor) -> Tensor:
    return (image - image.mean()) / image.std().clamp(min=1e-7)


def with_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image's contrast around its mean, clipped to the image's own range.

    Args:
        image: ``(N, C, ...)``.
        factor: ``(N,)``.
    """
    flat = image.flatten(1)
    mean, low, high = (
        _per_image(statistic, image) for statistic in (flat.mean(dim=1), flat.amin(dim=1), flat.amax(dim=1))
    )
    return ((image - mean) * _per_image(factor, image) + mean).clamp(low, high)


def with_resolution(image: Tensor, fraction: Tensor) -> Tensor:
    """Simulate a lower resolution: downsample by nearest neighbors, then interpolate to the original size.

    Args:
        image: ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        fraction: ``(N,)`` resolution along each side, as a fraction of the image's.
    """
    out = []
    for single, scale in zip(image.split(1), fraction.tolist(), strict=True):
        size = single.shape[2:]
        small_size = [max(1, round(side * scale)) for side in size]
        small = F.interpolate(single, size=small_size, mode="nearest-exact")
        mode = "bicubic" if len(size) == 2 else "trilinear"
        out.append(F.interpolate(small, size=size, mode=mode, align_corners=False))
    return torch.cat(out)


def with_gamma(image: Tensor, gamma: Tensor) -> Tensor:
    """Scale each image to [0, 1], raise it to a power, and restore its mean and standard deviation.

    Args:
        image: ``(N, C, ...)``.
        gamma: ``(N,)`` exponents.
    """
    flat = image.flatten(1)
    low, high = (_per_image(extreme, image) for extreme in (flat.amin(dim=1), flat.amax(dim=1)))
    span = (high - low).clamp(min=1e-7)
    changed = ((image - low) / span).clamp(min=0.0) ** _per_image(gamma, image) * span + low
    mean, sd = _per_image(flat.mean(dim=1), image), _per_image(flat.std(dim=1), image)
    flat_out = changed.flatten(1)
    centered = changed - _per_image(flat_out.mean(dim=1), image)
    return centered / _per_image(flat_out.std(dim=1), image).clamp(min=1e-7) * sd + mean


def _between(strength: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * strength


def _per_image(value: Tensor, image: Tensor) -> Tensor:
    """Return values ``(N,)`` in a shape that multiplies images."""
    return value.reshape(-1, *[1] * (image.ndim - 1))


def _generator(seed: int, stream: int = 0) -> torch.Generator:
    """Return a generator on the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(4 * seed + stream)
