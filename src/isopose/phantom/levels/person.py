"""One person's build and densities, sampled without regard to any plane."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.case import age_at
from isopose.phantom.growth import sample_size

#: Fraction of the people who are much fatter than the cohorts' phantoms.
OBESE = 0.2


@dataclass(frozen=True)
class Person:
    """Build and densities of one person. Lengths are fractions of half the trunk's width or depth.

    Args:
        half_width_mm: half the trunk's width.
        half_depth_mm: half the trunk's depth.
        level_mm: height of a vertebra with its disc.
        power: exponent of the superellipse of the outline; 2 is an ellipse.
        fat: thickness of the subcutaneous fat, of half the depth.
        wall: thickness of the muscles under it, of half the depth.
        vertebra: half the width of a vertebral body, of half the trunk's width.
        arm: radius of an arm, of half the trunk's width.
        breast: how far the breasts bulge, of half the depth; 0: none.
        fat_hu: fat.
        muscle_hu: muscle.
        organ_hu: parenchyma.
        blood_hu: large vessels and the heart's chambers.
        bone_hu: cancellous bone.
        cortex_hu: cortical bone.
        fluid_hu: effusions, urine.
        lung_hu: lung.
    """

    half_width_mm: float
    half_depth_mm: float
    level_mm: float
    power: float
    fat: float
    wall: float
    vertebra: float
    arm: float
    breast: float
    fat_hu: float
    muscle_hu: float
    organ_hu: float
    blood_hu: float
    bone_hu: float
    cortex_hu: float
    fluid_hu: float
    lung_hu: float


def sample_person(rng: np.random.Generator) -> Person:
    """Draw a person from birth to adult age, of any build, in any contrast phase."""
    age = age_at(float(rng.random()))
    size = sample_size(rng, age)
    fat = size.fat / (0.5 * size.depth)
    if rng.random() < OBESE:
        fat = float(rng.uniform(0.15, 0.4))
    soft = float(rng.uniform(25.0, 70.0))
    woman = age > 12.0 and rng.random() < 0.5
    return Person(
        half_width_mm=0.5 * size.width * float(np.exp(rng.normal(0.0, 0.05))) * (1.0 + 0.4 * fat),
        half_depth_mm=0.5 * size.depth * float(np.exp(rng.normal(0.0, 0.08))) * (1.0 + 0.5 * fat),
        level_mm=size.level,
        power=float(rng.uniform(2.0, 2.8)),
        fat=fat,
        wall=float(rng.uniform(0.08, 0.17)),
        vertebra=size.vertebra / size.width * float(rng.uniform(0.9, 1.15)),
        arm=2.0 * size.arm / size.width * float(rng.uniform(0.8, 1.2)),
        breast=float(rng.uniform(0.05, 0.45)) if woman else 0.0,
        fat_hu=float(rng.uniform(-120.0, -80.0)),
        muscle_hu=soft + float(rng.normal(5.0, 8.0)),
        organ_hu=soft + float(rng.uniform(0.0, 60.0)),
        blood_hu=float(rng.uniform(25.0, 350.0)),
        bone_hu=float(rng.uniform(120.0, 400.0)),
        cortex_hu=float(rng.uniform(500.0, 1200.0)),
        fluid_hu=float(rng.uniform(-5.0, 30.0)),
        lung_hu=float(rng.uniform(-920.0, -650.0)),
    )
