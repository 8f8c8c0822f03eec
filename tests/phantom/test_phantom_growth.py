"""Sizes by age: the published figures, and what is measured in rendered images."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, label

from isopose.phantom.anatomy import Anatomy, sample_anatomy
from isopose.phantom.case import PhantomCase, truth
from isopose.phantom.growth import (
    AGES,
    DENSITY,
    KIDNEYS_G,
    MASS_KG,
    TRUNK_DEPTH_MM,
    kidney_length_mm,
    reference_size,
    sample_size,
)
from isopose.phantom.pose import Pose
from isopose.phantom.render import KIDNEY, TUMOR, render
from isopose.phantom.scan import PhantomScan, sample_scan
from isopose.phantom.surroundings import background
from isopose.phantom.tumor import sample_diameter

UPRIGHT = Pose("supine", True, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
MEASURED_AGES = (0.0, 1.0, 5.0, 10.0, 15.0)
#: What grows with age.
GROWING = ("stature_mm", "mass_kg", "width", "depth", "level", "kidney_length", "kidney_ml", "liver_ml")


def patient(age: float, seed: int, slices: int = 14) -> tuple[Anatomy, PhantomScan, np.ndarray, np.ndarray]:
    """An upright patient without noise, arms above: anatomy, scan, HU, labels."""
    rng = np.random.default_rng(seed)
    anatomy = sample_anatomy(rng, age, UPRIGHT.gravity_canonical)
    scan = replace(sample_scan(rng, anatomy, UPRIGHT, 104, slices), arms="above")
    return anatomy, scan, *render(anatomy, UPRIGHT, scan, rng, noise=False)


def extent(anatomy: Anatomy, scan: PhantomScan, image: np.ndarray) -> tuple[float, float]:
    """Return width and depth in mm of the body at the level of the kidneys, measured in the image."""
    z = np.arange(scan.slices) * scan.thickness + scan.origin[2]
    k = int(np.abs(z - 0.5 * anatomy.size.level).argmin())
    body = np.abs(image[k] - np.rint(background(anatomy, UPRIGHT, scan))) > 300
    rows, columns = np.nonzero(body)
    return np.ptp(columns) * scan.pixel, np.ptp(rows) * scan.pixel


@pytest.fixture(scope="module")
def patients() -> dict[float, list[tuple[Anatomy, PhantomScan, np.ndarray, np.ndarray]]]:
    return {age: [patient(age, 10 * i + n) for n in range(1, 2)] for i, age in enumerate(MEASURED_AGES)}


@given(st.floats(0.0, 16.0), st.floats(0.01, 4.0))
def test_every_size_grows_with_age_apart_from_fat(age: float, later: float) -> None:
    young, old = reference_size(age), reference_size(min(age + later, 16.5))
    for name in GROWING:
        assert getattr(old, name) > getattr(young, name), name


def test_the_reference_child_has_the_published_values() -> None:
    for age, mass, depth, kidneys in zip(AGES, MASS_KG, TRUNK_DEPTH_MM, KIDNEYS_G, strict=True):
        size = reference_size(age)
        assert (size.mass_kg, size.depth) == (mass, depth)
        assert 2.0 * size.kidney_ml * DENSITY == pytest.approx(kidneys)
    # Kim et al. 2010: 46 mm at birth, 62.173 + 0.203 mm a month after the second year.
    assert kidney_length_mm(0.0) == pytest.approx(45.953)
    assert kidney_length_mm(10.0) == pytest.approx(62.173 + 0.203 * 120)


def test_an_infant_is_nearly_round_and_a_teenager_is_flat() -> None:
    ratio = {age: reference_size(age).width / reference_size(age).depth for age in AGES}
    assert ratio[0.0] < 1.25
    assert ratio[15.0] > 1.4


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 16.0))
@settings(max_examples=50, deadline=None)
def test_one_child_stays_near_the_reference(seed: int, age: float) -> None:
    size, mean = sample_size(np.random.default_rng(seed), age), reference_size(age)
    assert 0.80 < size.width / mean.width < 1.25
    assert 0.80 < size.depth / mean.depth < 1.25
    assert 0.65 < size.kidney_ml / mean.kidney_ml < 1.5


def test_adults_are_larger_than_any_child_and_of_every_girth() -> None:
    adult, oldest = reference_size(40.0), reference_size(16.0)
    assert reference_size(20.0) == reference_size(88.0) == adult
    for name in GROWING:
        assert getattr(adult, name) > getattr(oldest, name), name
    depths = [sample_size(np.random.default_rng(seed), 60.0).depth for seed in range(400)]
    children = [sample_size(np.random.default_rng(seed), 16.0).depth for seed in range(400)]
    assert np.std(np.log(depths)) > 2.0 * np.std(np.log(children))


def test_adults_have_the_smaller_tumors_of_kits() -> None:
    diameters = [sample_diameter(np.random.default_rng(seed), 130.0, 60.0) for seed in range(2000)]
    assert np.percentile(diameters, [25, 50, 75]) == pytest.approx([27.5, 42.0, 64.0], rel=0.06)
    assert min(diameters) >= 10.0
    assert max(diameters) <= 130.0


def test_width_and_depth_of_the_body_in_the_image_match_the_anatomy(patients) -> None:
    widths = []
    for group in patients.values():
        for anatomy, scan, image, _ in group:
            width, depth = extent(anatomy, scan, image)
            # The tumor's bulge adds to both; sag takes from the depth.
            assert 0.93 < width / anatomy.size.width < 1.16
            assert 0.85 < depth / anatomy.size.depth < 1.16
        widths.append(np.mean([extent(a, s, i)[0] for a, s, i, _ in group]))
    assert (np.diff(widths) > 0.0).all()


def test_the_healthy_kidney_in_the_image_has_the_patients_volume_and_length(patients) -> None:
    for group in patients.values():
        for anatomy, scan, _, labels in group:
            true = truth(PhantomCase(anatomy, UPRIGHT, scan, np.random.SeedSequence(0)), labels)
            healthy, sick = ("right", "left") if anatomy.tumor.side > 0 else ("left", "right")
            assert 0.85 < true[f"kidney_{healthy}_ml"] / anatomy.size.kidney_ml < 1.12
            # What the tumor destroyed or pressed against a wall is missing on its side, never all of it.
            assert 0.35 < true[f"kidney_{sick}_ml"] / anatomy.size.kidney_ml < 1.10
            x = (np.arange(scan.size) - 0.5 * (scan.size - 1)) * scan.pixel
            # The tumor's kidney may reach across the midline; the healthy one is the larger piece there.
            pieces, _ = label((labels == KIDNEY) & (-anatomy.tumor.side * x > 0.0))
            whole = pieces == np.bincount(pieces[pieces > 0]).argmax()
            length = (np.ptp(np.nonzero(whole)[0]) + 1) * scan.thickness
            expected = anatomy.size.kidney_length
            assert abs(length - expected) < 0.08 * expected + scan.thickness


def test_the_tumor_in_the_image_has_the_stated_diameter_and_touches_its_kidney(patients) -> None:
    for group in patients.values():
        for anatomy, scan, _, labels in group:
            assert 10.0 <= anatomy.tumor.diameter_mm <= 150.0
            volume = (labels == TUMOR).sum() * scan.pixel**2 * scan.thickness
            diameter = (6.0 * volume / np.pi) ** (1.0 / 3.0)
            assert 0.80 < diameter / anatomy.tumor.diameter_mm < 1.10
            touching = binary_dilation(labels == TUMOR) & (labels == KIDNEY)
            assert touching.any()
            x = np.nonzero(labels == TUMOR)[2]
            assert np.sign(x.mean() - 0.5 * (scan.size - 1)) == anatomy.tumor.side


def test_labels_lie_on_plausible_densities(patients) -> None:
    for group in patients.values():
        for _, _, image, labels in group:
            kidney, tumor = image[labels == KIDNEY], image[labels == TUMOR]
            assert 110 < np.median(kidney) < 230
            assert 10 < np.median(tumor) < 90
            assert np.percentile(tumor, 2) > -60
            assert np.percentile(kidney, 5) > -60


@pytest.mark.parametrize("organ", ["liver", "spleen"])
def test_each_organ_is_on_its_side_of_the_image(organ: str) -> None:
    rng = np.random.default_rng(3)
    anatomy = sample_anatomy(rng, 6.0, UPRIGHT.gravity_canonical)
    scan = sample_scan(rng, anatomy, UPRIGHT, 80, 10)
    pictures = []
    for shift in (0.0, 1e4):  # the same patient with the organ and without it, moved out of the body
        away = np.array([0.0, 0.0, shift])
        other = replace(
            anatomy,
            liver=tuple(replace(b, center=b.center + away * (organ == "liver")) for b in anatomy.liver),
            spleen=replace(anatomy.spleen, center=anatomy.spleen.center + away * (organ == "spleen")),
        )
        pictures.append(render(other, UPRIGHT, scan, np.random.default_rng(0), noise=False)[0])
    columns = np.nonzero(np.abs(pictures[0].astype(int) - pictures[1]) > 30)[2]
    left = np.mean(columns > 0.5 * (scan.size - 1))  # columns grow to the patient's left
    assert len(columns) > 100
    assert left < 0.25 if organ == "liver" else left > 0.99
