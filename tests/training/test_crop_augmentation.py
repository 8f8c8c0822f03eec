"""Augmentation in the homogenized frame: values as in MONAI, fractions, seeds, a shared deformation."""

import pytest
import torch
import torch.nn.functional as F
from monai.transforms import AdjustContrast, GaussianSmooth, ScaleIntensityFixedMean
from torch import Tensor

from isopose.errors import InputError
from isopose.geometry.warp import warp
from isopose.presets import load_config
from isopose.settings import IntensityConfig
from isopose.training.crop_augmentation import (
    BLUR_SIGMA,
    CONTRAST_FACTOR,
    MAX_DISPLACEMENT,
    augmented_intensities,
    displacements,
    each_changed,
    randomly_convolved,
    seeds_of,
    with_contrast,
    with_gamma,
    with_resolution,
)

AIR = -2.0
OFF = dict.fromkeys(IntensityConfig.model_fields, 0.0)


def images(count: int = 4, shape: tuple[int, ...] = (32, 32), seed: int = 0) -> Tensor:
    """Smooth pictures with values around 0."""
    noise = torch.randn(count, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return torch.cumsum(noise, dim=-1) / 4.0


def only(name: str) -> IntensityConfig:
    """Configure a single augmentation that is applied to every slice."""
    return IntensityConfig(**{**OFF, name: 1.0})


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
def test_gamma_agrees_with_monai(gamma: float) -> None:
    for image in images():
        plain = AdjustContrast(gamma, retain_stats=True)(image)
        inverted = AdjustContrast(gamma, invert_image=True, retain_stats=True)(image)
        torch.testing.assert_close(with_gamma(image[None], torch.tensor([gamma]))[0], torch.as_tensor(plain))
        own = -with_gamma(-image[None], torch.tensor([gamma]))[0]
        torch.testing.assert_close(own, torch.as_tensor(inverted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("factor", CONTRAST_FACTOR)
def test_contrast_agrees_with_monai(factor: float) -> None:
    for image in images():
        expected = ScaleIntensityFixedMean(factor - 1.0, preserve_range=True)(image)
        torch.testing.assert_close(
            with_contrast(image[None], torch.tensor([factor]))[0],
            torch.as_tensor(expected),
            atol=1e-4,
            rtol=1e-4,
        )


def test_blur_and_brightness_are_within_their_ranges() -> None:
    image = images(8)
    inside = (..., slice(6, -6), slice(6, -6))
    spread = [
        float(torch.as_tensor(GaussianSmooth(sigma, approx="sampled")(image[0]))[inside].std())
        for sigma in BLUR_SIGMA
    ]
    after = augmented_intensities(image[:1].repeat(16, 1, 1, 1), range(16), only("blur"), AIR)
    for one in after:
        assert spread[1] - 1e-2 <= float(one[inside].std()) <= spread[0] + 1e-2
    factors = augmented_intensities(image, range(8), only("brightness"), AIR).flatten(1).std(
        1
    ) / image.flatten(1).std(1)
    assert len({round(value, 4) for value in factors.tolist()}) == 8
    assert all(CONTRAST_FACTOR[0] <= value <= CONTRAST_FACTOR[1] for value in factors.tolist())


@pytest.mark.parametrize("shape", [(32, 32), (8, 16, 16)])
@pytest.mark.parametrize("name", list(OFF))
def test_each_augmentation_is_independent_reproducible_and_keeps_its_input(
    name: str, shape: tuple[int, ...]
) -> None:
    image = images(4, shape)
    before = image.clone()
    out = augmented_intensities(image, [1, 2, 3, 4], only(name), AIR)
    torch.testing.assert_close(image, before, rtol=0, atol=0)
    assert out.isfinite().all()
    assert all(not torch.equal(one, other) for one, other in zip(out, image, strict=True))
    # A sample's change depends on its seed alone, not on its place or its neighbors.
    again = augmented_intensities(image[[2, 0]], [3, 1], only(name), AIR)
    torch.testing.assert_close(again, out[[2, 0]])


def test_only_the_configured_fraction_is_augmented() -> None:
    image = images(1).repeat(400, 1, 1, 1)
    off = augmented_intensities(image, range(400), IntensityConfig(**OFF), AIR)
    torch.testing.assert_close(off, image, rtol=0, atol=0)
    some = augmented_intensities(image, range(400), IntensityConfig(**{**OFF, "gamma": 0.3}), AIR)
    part = float((some != image).flatten(1).any(dim=1).float().mean())
    assert 0.22 < part < 0.38


def test_a_lower_resolution_keeps_low_frequencies() -> None:
    ramp = torch.linspace(-1.0, 1.0, 64).expand(1, 1, 64, 64)
    out = with_resolution(ramp, torch.tensor([0.5]))
    torch.testing.assert_close(out[..., 4:-4, 4:-4], ramp[..., 4:-4, 4:-4], atol=0.03, rtol=0)
    fine = torch.tensor([1.0, -1.0]).repeat(32).expand(1, 1, 64, 64)
    assert float(with_resolution(fine, torch.tensor([0.5]))[..., 4:-4].std()) < 0.2


@pytest.mark.parametrize("shape", [(32, 32), (8, 16, 16)])
def test_random_convolutions_keep_mean_and_deviation_and_change_the_order(shape: tuple[int, ...]) -> None:
    orders = set()
    for seed in range(30):
        (image,) = images(1, shape, seed)
        dark, bright = image < image.quantile(0.2), image > image.quantile(0.8)
        before = image.clone()
        out = randomly_convolved(image, 1.0, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(image, before)
        assert out.shape == image.shape
        assert float(out.mean()) == pytest.approx(float(image.mean()), abs=1e-3)
        assert float(out.std()) == pytest.approx(float(image.std()), rel=1e-3)
        orders.add(bool(out[dark].mean() < out[bright].mean()))
    assert orders == {True, False}


def test_random_convolutions_mix_with_the_image_and_keep_a_constant_one_finite() -> None:
    (image,) = images(1)
    same = randomly_convolved(image, 0.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(same, image, atol=1e-4, rtol=1e-4)
    half = randomly_convolved(image, 0.5, torch.Generator().manual_seed(1))
    whole = randomly_convolved(image, 1.0, torch.Generator().manual_seed(1))
    mixed = half - image.mean()
    both = (image - image.mean()) + (whole - image.mean())
    assert float(F.cosine_similarity(mixed.flatten(), both.flatten(), dim=0)) == pytest.approx(1.0, abs=1e-3)
    constant = torch.full((1, 8, 8), 3.0)
    assert torch.isfinite(randomly_convolved(constant, 0.7, torch.Generator().manual_seed(2))).all()


@pytest.mark.parametrize("shape", [(32, 32), (8, 16, 16)])
def test_displacements_are_smooth_small_and_of_the_chosen_part(shape: tuple[int, ...]) -> None:
    moved = displacements(range(200), 0.2, shape)
    assert moved is not None
    assert moved.shape == (200, *shape, len(shape))
    touched = moved.flatten(1).any(dim=1)
    assert 0.1 < float(touched.float().mean()) < 0.3
    assert float(moved.abs().max()) < 1.5 * MAX_DISPLACEMENT
    # Less than the distance of neighboring pixels: nothing is folded.
    steps = moved.diff(dim=-2).abs().max()
    assert float(steps) < 2.0 / shape[-1]
    assert displacements([1, 2], 0.0, shape) is None


def test_a_displacement_moves_the_sampled_places_before_the_matrix() -> None:
    image = images(1)
    shift = torch.zeros(1, 32, 32, 2)
    shift[..., 0] = 2 * 3 / 32  # three pixels along x
    out = warp(image, torch.eye(3), (32, 32), fill=AIR, displacement=shift)
    torch.testing.assert_close(out[..., :-3], image[..., 3:])
    turned = torch.eye(3)
    turned[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    expected = warp(image, turned, (32, 32), fill=AIR)
    out = warp(image, turned, (32, 32), fill=AIR, displacement=shift)
    torch.testing.assert_close(out[..., :-3], expected[..., 3:], atol=1e-5, rtol=0)


def test_seeds_differ_and_do_not_depend_on_neighbors() -> None:
    noise = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seeds = seeds_of(noise)
    assert len(set(seeds)) > 990
    assert min(seeds) >= 0
    assert seeds_of(noise[5:6]) == seeds[5:6]


def test_a_deformation_needs_the_canonical_loss() -> None:
    with pytest.raises(InputError, match=r"unet\.elastic"):
        load_config(settings=["unet.augmentation=homogenized", "unet.loss_space=native"])
    load_config(settings=["unet.augmentation=homogenized", "unet.loss_space=native", "unet.elastic=0"])


def test_channels_are_augmented_separately_and_neighbors_together() -> None:
    config, seeds, airs = IntensityConfig(), list(range(40)), (-2.0, 0.5)
    image = torch.randn(40, 6, 24, 24, generator=torch.Generator().manual_seed(1))
    out = each_changed(image, seeds, config, airs)
    assert torch.equal(
        each_changed(image[:, :3], seeds, config, airs[:1]),
        augmented_intensities(image[:, :3], seeds, config, -2.0),
    )
    for number, air in enumerate(airs):
        own = slice(3 * number, 3 * number + 3)
        expected = augmented_intensities(image[:, own], [2 * seed + number for seed in seeds], config, air)
        assert torch.equal(out[:, own], expected)
    touched = (out != image).flatten(2).any(dim=2)
    assert torch.equal(touched[:, 0], touched[:, 2])
    assert (touched[:, 0] != touched[:, 3]).any()
