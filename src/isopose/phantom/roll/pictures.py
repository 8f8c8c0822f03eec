"""Training images of the roll network: slices that are randomly deformed, occluded, cut and rotated."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from isopose.choices import Contrast
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import warp
from isopose.models.roll import SOFT_TISSUE_HU, scaled_by_own_body, views_of_slices
from isopose.phantom.roll.slabs import STORED_REACH, Slabs, hounsfield

#: Draws random numbers, one or an array for each image of a batch.
Draw = Callable[..., Tensor]
#: Pixels per side of the deformed images, from which the network's views are sampled.
DEFORMED_SIZE = 80
#: Share of windowed CT among images of any contrast, of those in which organs and muscle are alike, and of
#: those in which fluid is the brightest.
CT_SHARE, ALIKE_SHARE, FLUID_SHARE = 0.15, 0.35, 0.25
#: Density (HU) from which on tissue is bone.
BONE_HU = 200.0
#: Density (HU) of the brightest fluid.
FLUID_HU = 25.0
#: Densities (HU) at which tissues have a brightness of their own in a random contrast; in between it changes
#: evenly. The first is air and lung, the next two are fat.
TISSUES_HU = (-300.0, -115.0, -55.0, 0.0, 25.0, 50.0, 75.0, 110.0, 160.0, 230.0, 330.0, 480.0)
#: Views per image, and the standard deviation of the roll that remains after a first pass, radians.
VIEWS, REMAINING_ROLL_SD = 4, math.radians(12.0)


def picture(
    slabs: Slabs,
    rows: Tensor,
    generator: torch.Generator,
    *,
    contrast: Contrast = "ct",
    alike: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw random training images of some slices.

    Args:
        slabs: the slices.
        rows: indices of the slices to use.
        generator: source of randomness.
        contrast: of what the images show.
        alike: deform and disturb all in the same way, as slices of one scan.

    Returns:
        Images in [0, 1] and masks ``(N, 1, S, S)``, upright, not yet mirrored or turned.
    """
    count = len(rows)
    drawn = 1 if alike else count

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        values = torch.rand(drawn, *shape, generator=generator) * (high - low) + low
        return values.expand(count, *shape)

    def normal(sd: float, *shape: int) -> Tensor:
        return (torch.randn(drawn, *shape, generator=generator) * sd).expand(count, *shape)

    def sometimes(part: float) -> Tensor:
        return (torch.rand(drawn, generator=generator) < part).expand(count)

    grid = _deformation(slabs.roll[rows], uniform, normal, sometimes)
    channels = torch.stack([hounsfield(slabs.hu[rows]) + 1000.0, slabs.mask[rows].float()], dim=1)
    channels = F.grid_sample(channels, grid, align_corners=False)
    hu, mask = channels[:, :1] - 1000.0, channels[:, 1:]

    x, y = _coordinates(DEFORMED_SIZE)
    # Ascites: the fat around the organs is fluid.
    wet = (x.square() + y.square() < uniform(0.3, 0.7)[:, None, None]) & sometimes(0.1)[:, None, None]
    fat = (hu > -150.0) & (hu < -40.0)
    hu = torch.where(wet[:, None] & fat, uniform(-5.0, 30.0)[:, None, None, None], hu)
    # Ellipses in the belly, such as masses and fluid, never over the spine.
    for _ in range(2):
        blob = _ellipse(x, y, uniform(-0.9, 0.9), uniform(-0.9, 0.15), uniform(0.1, 0.6), uniform(0.1, 0.5))
        blob = blob * (sometimes(0.25).float() * (hu[:, 0].amax(dim=(1, 2)) > 0))[:, None, None]
        value = uniform(-30.0, 90.0)[:, None, None]
        hu = torch.where((blob > 0.5)[:, None] & (hu > -500.0), value[:, None] + 0.1 * hu, hu)
    # Errors of the mask: an arm or a piece of table is included, or a piece is missing.
    arm = _ellipse(x, y, *_around(uniform(-math.pi, math.pi), 1.12), uniform(0.15, 0.5), uniform(0.15, 0.5))
    stays = (arm > 0.5) & sometimes(0.15)[:, None, None]
    hu = torch.where((stays & (mask[:, 0] < 0.5))[:, None], uniform(-80.0, 120.0)[:, None, None, None], hu)
    mask = torch.maximum(mask, stays[:, None].float())
    bite = _ellipse(x, y, *_around(uniform(-math.pi, math.pi), 1.05), uniform(0.15, 0.5), uniform(0.15, 0.5))
    mask = mask * (1.0 - bite * sometimes(0.1).float()[:, None, None])[:, None]
    # A field of view that cuts the body.
    angle = uniform(-math.pi, math.pi)
    depth = torch.where(sometimes(0.15), uniform(0.3, 1.0), torch.tensor(9.0))
    across = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]
    mask = mask * (across < depth[:, None, None]).float()[:, None]

    image = _exposure(hu, uniform, normal, sometimes, generator)
    if contrast == "any":
        others = _any_contrast(hu, uniform, normal, sometimes, generator)
        image = torch.where(sometimes(CT_SHARE)[:, None, None, None], image, others)
        image = scaled_by_own_body(image, mask)
    # Metal, missing values, or no image at all, so that only the outline is left.
    hole = _ellipse(x, y, uniform(-1, 1), uniform(-1, 1), uniform(0.1, 0.4), uniform(0.1, 0.4)) > 0.5
    filled = (sometimes(0.5).float())[:, None, None]
    image = torch.where((hole & sometimes(0.08)[:, None, None])[:, None], filled[:, None], image)
    image = torch.where(sometimes(0.05)[:, None, None, None], torch.zeros_like(image), image)
    return image * mask, mask


def batch(
    slabs: Slabs, rows: Tensor, generator: torch.Generator, contrast: Contrast = "ct"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a training batch: views ``(N, 2, S, S)``, angles ``(N,)`` and whether mirrored ``(N,)``.

    Each row's image gives :data:`VIEWS` views: at any angle, as in the first pass, and nearly upright, as in
    the second; each plain and mirrored.
    """
    image, mask = picture(slabs, rows, generator, contrast=contrast)
    image, mask = torch.cat([image, image.flip(3)]), torch.cat([mask, mask.flip(3)])
    image, mask = image.repeat(VIEWS // 2, 1, 1, 1), mask.repeat(VIEWS // 2, 1, 1, 1)
    count = len(image)
    mirrored = (torch.arange(count) // len(rows)) % 2
    any_angle = (torch.rand(count, generator=generator) * 2.0 - 1.0) * math.pi
    small = torch.randn(count, generator=generator) * REMAINING_ROLL_SD
    angle = torch.where(torch.arange(count) < count // 2, any_angle, small)
    return views_of_slices(image, mask, -angle), angle, mirrored.float()


def turned_pictures(
    slabs: Slabs, rows: Tensor, *, randomized: bool, seed: int, contrast: Contrast = "ct"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return slices of one patient, rotated by one random angle and slightly shifted, to test a network.

    Args:
        slabs: the slices.
        rows: indices of the patient's slices.
        randomized: disturb them as in training, all alike; otherwise show a soft-tissue window.
        seed: of the random numbers.
        contrast: of disturbed slices, and how the others are scaled.

    Returns:
        Images in [0, 1] and masks ``(N, 1, S, S)``, and the true rolls ``(N,)``, radians.
    """
    generator = torch.Generator().manual_seed(seed)
    if randomized:
        image, mask = picture(slabs, rows, generator, contrast=contrast, alike=True)
        roll = torch.zeros(len(rows))
    else:
        low, high = SOFT_TISSUE_HU
        mask = slabs.mask[rows].float()[:, None]
        image = ((hounsfield(slabs.hu[rows])[:, None] - low) / (high - low)).clamp(0.0, 1.0)
        image = (scaled_by_own_body(image, mask) if contrast == "any" else image) * mask
        roll = slabs.roll[rows]
    angle = (torch.rand(1, generator=generator) * 2.0 - 1.0).expand(len(rows)) * math.pi
    shift = ((torch.rand(1, 2, generator=generator) * 2.0 - 1.0) * 0.1).expand(len(rows), 2)
    pose = torch.cat([-angle[:, None], torch.zeros(len(rows), 2), shift], dim=1)
    size = (image.shape[2], image.shape[3])
    channels = warp(torch.cat([image, mask], dim=1), matrix_from_pose(pose), size)
    return channels[:, :1], channels[:, 1:], roll + angle


class Batches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The batches of a run by their number, the same on any machine."""

    def __init__(self, slabs: Slabs, seed: int, steps: int, pictures: int, contrast: Contrast = "ct") -> None:
        self.slabs, self.seed, self.steps, self.pictures = slabs, seed, steps, pictures
        self.contrast = contrast

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randint(0, len(self.slabs.roll), (self.pictures,), generator=generator)
        return batch(self.slabs, rows, generator, self.contrast)


def _deformation(roll: Tensor, uniform: Draw, normal: Draw, sometimes: Draw) -> Tensor:
    """Return sampling grids ``(N, S, S, 2)`` that turn bodies upright and deform them."""
    count = len(roll)
    x, y = (c.expand(count, DEFORMED_SIZE, DEFORMED_SIZE) for c in _coordinates(DEFORMED_SIZE))
    bent = _smooth(normal(0.035, 2, 5, 5)) + _smooth(normal(0.012, 2, 12, 12))
    x, y = x + bent[:, 0], y + bent[:, 1]
    # Fat: the inside shrinks toward the center while the skin stays.
    radius = (x.square() + y.square()).sqrt().clamp(min=1e-3)
    power = torch.where(sometimes(0.5), uniform(0.55, 1.15), torch.ones(count))[:, None, None]
    factor = radius.clamp(max=1.3) ** (power - 1.0)
    x, y = x * factor, y * factor
    # A belly: the front is stretched forward.
    belly = torch.where(sometimes(0.4), uniform(0.0, 0.45), torch.zeros(count))[:, None, None]
    y = torch.where(y < 0.1, 0.1 + (y - 0.1) / (1.0 + belly), y)
    build = normal(0.1)[:, None, None]
    x, y = x * build.exp(), y * (-build).exp()
    cos, sin = roll.cos()[:, None, None], roll.sin()[:, None, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) / STORED_REACH


def _exposure(hu: Tensor, uniform: Draw, normal: Draw, sometimes: Draw, generator: torch.Generator) -> Tensor:
    """Return images in [0, 1] of CT ``(N, 1, S, S)`` in HU: windowed, unevenly bright, blurred and noisy."""
    low, high = uniform(-200.0, 0.0), uniform(120.0, 550.0)
    image = ((hu - low[:, None, None, None]) / (high - low)[:, None, None, None]).clamp(0.0, 1.0)
    image = image ** normal(0.35).exp()[:, None, None, None]
    image = image * _smooth(normal(0.12, 1, 4, 4)).exp()
    image = _blurred(image, uniform, sometimes)
    strength = torch.where(sometimes(0.15), uniform(0.07, 0.6), uniform(0.0, 0.07))
    noise = (
        torch.randn(len(hu), 1, DEFORMED_SIZE, DEFORMED_SIZE, generator=generator)
        * strength[:, None, None, None]
    )
    return (image + noise).clamp(0.0, 1.0)


def _any_contrast(
    hu: Tensor, uniform: Draw, normal: Draw, sometimes: Draw, generator: torch.Generator
) -> Tensor:
    """Return images of any scale in which tissues have any brightness, as MR might show them.

    Each image has a random brightness for every density (as in SynthSeg: Billot et al., Medical Image
    Analysis 2023), texture, a bias field, blur and Rician noise.

    Args:
        hu: CT ``(N, 1, S, S)``, HU.
        uniform: draws ``(N, ...)`` evenly between two bounds.
        normal: draws ``(N, ...)`` around 0, from a standard deviation.
        sometimes: draws ``(N,)`` booleans that are True with a probability.
        generator: of the noise, which differs between images that have all else in common.
    """
    image = _brightness(hu, uniform, normal, sometimes)
    image = image * _smooth(normal(0.08, 1, 20, 20)).exp()
    bias = uniform(0.0, 0.45)[:, None, None, None] * normal(1.0, 1, 4, 4)
    image = image * _smooth(bias).exp()
    image = _blurred(image, uniform, sometimes)
    strength = torch.where(sometimes(0.2), uniform(0.04, 0.25), uniform(0.0, 0.04))[:, None, None, None]
    noise = torch.randn(2, len(hu), 1, DEFORMED_SIZE, DEFORMED_SIZE, generator=generator) * strength
    return torch.hypot(image + noise[0], noise[1])


def _brightness(hu: Tensor, uniform: Draw, normal: Draw, sometimes: Draw) -> Tensor:
    """Return images of the shape of ``hu`` in which each tissue has a random brightness."""
    # Powers, because in some contrasts most tissues are dark and few are bright.
    shown = uniform(0.0, 1.0, len(TISSUES_HU)) ** uniform(1.0, 3.0, 1)
    fluid = (torch.tensor(TISSUES_HU) >= 0.0) & (torch.tensor(TISSUES_HU) <= FLUID_HU)
    shown = torch.where(sometimes(FLUID_SHARE)[:, None] & fluid, uniform(0.8, 1.2, 1), shown)
    # As in T1: muscle and organs differ little, and bone is like them or dark.
    even = uniform(0.15, 0.7, 1) + normal(0.07, len(TISSUES_HU))
    dark = (sometimes(0.5)[:, None] & (torch.tensor(TISSUES_HU) > BONE_HU)).expand_as(even)
    even = torch.where(dark, uniform(0.0, 0.2, 1), even).clamp(0.0, 1.0)
    shown = torch.where(sometimes(ALIKE_SHARE)[:, None], even, shown)
    # Air and lung are dark; fat is bright or suppressed, and has one brightness.
    fat = torch.where(sometimes(0.6), uniform(0.5, 1.2), uniform(0.02, 0.5))
    shown = torch.cat([uniform(0.0, 0.12, 1), fat[:, None], fat[:, None], shown[:, 3:]], dim=1)
    # Linear between the two densities of the table that are nearest.
    densities = torch.tensor(TISSUES_HU)
    flat = hu.flatten(1).clamp(TISSUES_HU[0], TISSUES_HU[-1] - 1e-3)
    above = torch.bucketize(flat, densities, right=True).clamp(1, len(TISSUES_HU) - 1)
    low, high = densities[above - 1], densities[above]
    part = (flat - low) / (high - low)
    image = (1.0 - part) * shown.gather(1, above - 1) + part * shown.gather(1, above)
    return image.view_as(hu)


def _blurred(image: Tensor, uniform: Draw, sometimes: Draw) -> Tensor:
    """Return the images, every other one mixed with a blurred copy of itself."""
    blurred = F.avg_pool2d(F.avg_pool2d(image, 3, stride=1, padding=1), 3, stride=1, padding=1)
    part = torch.where(sometimes(0.5), uniform(0.0, 1.0), torch.zeros(len(image)))
    return image + part[:, None, None, None] * (blurred - image)


def _smooth(coarse: Tensor) -> Tensor:
    """Interpolate coarse values ``(N, C, n, n)`` bicubically to ``(N, C, S, S)``."""
    # One matrix product per axis is many times faster than interpolating each field.
    n = coarse.shape[-1]
    weights = F.interpolate(
        torch.eye(n)[None, :, None], (1, DEFORMED_SIZE), mode="bicubic", align_corners=False
    )[0, :, 0]
    return weights.T @ coarse @ weights


def _coordinates(size: int) -> tuple[Tensor, Tensor]:
    """Return x and y of pixel centers, each ``(1, S, S)``, in radii of the disc of the body's area."""
    line = ((2.0 * torch.arange(size) + 1.0) / size - 1.0) * STORED_REACH
    return line[None, None, :].expand(1, size, size), line[None, :, None].expand(1, size, size)


def _around(angle: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Return x and y of points at an angle and a radius."""
    return radius * angle.cos(), radius * angle.sin()


def _ellipse(x: Tensor, y: Tensor, cx: Tensor, cy: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return 1 within ellipses of center (cx, cy) and half axes (a, b), 0 outside."""
    inside = ((x - cx[:, None, None]) / a[:, None, None]).square() + (
        (y - cy[:, None, None]) / b[:, None, None]
    ).square()
    return (inside < 1.0).float()
