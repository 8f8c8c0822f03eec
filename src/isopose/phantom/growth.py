"""Sizes of children by age and of adults, from published reference values, interpolated over age.

Sources, by the names used below:

- ``ICRP89``: ICRP Publication 89, Basic anatomical and physiological data for use in radiological protection,
  Ann. ICRP 32 (3-4), 2002: stature, mass, liver, spleen and kidneys at birth, 1, 5, 10 and 15 years.
- ``ORNL8381``: Cristy and Eckerman, Specific absorbed fractions of energy at various ages, ORNL/TM-8381,
  1987: width, depth and length of the trunk at the same ages. Its trunk includes the arms.
  Both have an adult as well.
- ``EMAMIAN1993``: Emamian et al., Kidney dimensions at sonography, AJR 160:83, 1993: adults' renal length.
- ``KIM2010``: Kim et al., Kidney length in normal Korean children, J Korean Soc Ultrasound Med 29:181,
  2010: renal length in mm by months, in two regressions.

``docs/phantom.md`` says which values are the sources' and which are approximations.
"""

from dataclasses import dataclass

import numpy as np

#: Ages in years of the reference values (ICRP89, ORNL8381).
AGES = (0.0, 1.0, 5.0, 10.0, 15.0)
#: ICRP89; the means of boys and girls at 15 years.
STATURE_CM = (51.0, 76.0, 109.0, 138.0, 164.0)
MASS_KG = (3.5, 10.0, 19.0, 32.0, 54.5)
LIVER_G = (130.0, 330.0, 570.0, 830.0, 1300.0)
SPLEEN_G = (9.5, 29.0, 50.0, 80.0, 130.0)
KIDNEYS_G = (25.0, 70.0, 110.0, 180.0, 245.0)
#: ORNL8381.
TRUNK_WIDTH_MM = (127.0, 176.0, 229.0, 278.0, 345.0)
TRUNK_DEPTH_MM = (98.0, 130.0, 150.0, 168.0, 196.0)
TRUNK_LENGTH_MM = (216.0, 307.0, 408.0, 508.0, 631.0)
#: Share of the ORNL8381 width that is trunk, not arm (our approximation, it grows into an adult's 0.83).
TRUNK_SHARE = (0.905, 0.89, 0.875, 0.865, 0.835)
#: Our approximations, in mm: vertebral body width, subcutaneous fat, lateral muscle wall, psoas, aorta, arm.
VERTEBRA_WIDTH_MM = (15.0, 21.0, 28.0, 34.0, 41.0)
FAT_MM = (3.5, 6.0, 5.0, 7.5, 11.0)
WALL_MM = (4.0, 5.5, 8.0, 10.5, 13.5)
PSOAS_RADIUS_MM = (4.5, 6.5, 9.5, 13.0, 18.0)
AORTA_RADIUS_MM = (3.0, 3.9, 5.2, 6.4, 7.8)
ARM_RADIUS_MM = (15.0, 20.0, 25.0, 30.0, 37.0)
#: Age from which patients are adults.
ADULT_YEARS = 18.0
#: Density of parenchyma in g/ml (ICRP89).
DENSITY = 1.05


def at_age(values: tuple[float, ...], age_years: float) -> float:
    """Return a reference value at an age in years, linearly interpolated.

    After 15 years half the last slope is used, because growth slows in late adolescence.
    """
    if age_years <= AGES[-1]:
        return float(np.interp(age_years, AGES, values))
    slope = (values[-1] - values[-2]) / (AGES[-1] - AGES[-2])
    return float(values[-1] + 0.5 * slope * (age_years - AGES[-1]))


def kidney_length_mm(age_years: float) -> float:
    """Return the renal length in mm at an age: the two regressions of KIM2010, for infants and children.

    The published lines change at 24 months, where the first is 4 mm above the second and a kidney would
    shrink; here they change where they cross, at 18.8 months.
    """
    months = 12.0 * age_years
    return min(45.953 + 1.064 * months, 62.173 + 0.203 * months)


@dataclass(frozen=True)
class BodySize:
    """Sizes of one patient in mm, ml and kg; ``level`` is the height of a vertebra with its disc."""

    stature_mm: float
    mass_kg: float
    width: float
    depth: float
    level: float
    kidney_length: float
    kidney_ml: float
    liver_ml: float
    spleen_ml: float
    vertebra: float
    fat: float
    wall: float
    psoas: float
    aorta: float
    arm: float


#: The reference adult, mean of both sexes: stature and organs of ICRP89, width of ORNL8381 (0.83 of 400 mm is
#: trunk), kidney length of EMAMIAN1993, mass by the median body mass index of KiTS19, 29.8. The depth that
#: goes with it (ORNL8381's adult of 200 mm is lean) and the rest are approximations as for children.
ADULT = BodySize(
    stature_mm=1695.0,
    mass_kg=85.6,
    width=332.0,
    depth=235.0,
    level=35.0,
    kidney_length=110.0,
    kidney_ml=292.5 / 2.0 / DENSITY,
    liver_ml=1600.0 / DENSITY,
    spleen_ml=140.0 / DENSITY,
    vertebra=45.0,
    fat=20.0,
    wall=15.0,
    psoas=20.0,
    aorta=9.5,
    arm=44.0,
)


def reference_size(age_years: float) -> BodySize:
    """Return the reference child of an age in years (below 18) or the reference adult, mean of both sexes."""
    if age_years >= ADULT_YEARS:
        return ADULT
    width = at_age(TRUNK_WIDTH_MM, age_years) * at_age(TRUNK_SHARE, min(age_years, 15.0))
    return BodySize(
        stature_mm=10.0 * at_age(STATURE_CM, age_years),
        mass_kg=at_age(MASS_KG, age_years),
        width=width,
        depth=at_age(TRUNK_DEPTH_MM, age_years),
        # A lumbar level is about a twentieth of the trunk from pelvis to shoulder at any age (approximation).
        level=at_age(TRUNK_LENGTH_MM, age_years) / 20.0,
        kidney_length=kidney_length_mm(age_years),
        kidney_ml=at_age(KIDNEYS_G, age_years) / 2.0 / DENSITY,
        liver_ml=at_age(LIVER_G, age_years) / DENSITY,
        spleen_ml=at_age(SPLEEN_G, age_years) / DENSITY,
        vertebra=at_age(VERTEBRA_WIDTH_MM, age_years),
        fat=at_age(FAT_MM, age_years),
        wall=at_age(WALL_MM, age_years),
        psoas=at_age(PSOAS_RADIUS_MM, age_years),
        aorta=at_age(AORTA_RADIUS_MM, age_years),
        arm=at_age(ARM_RADIUS_MM, age_years),
    )


def sample_size(rng: np.random.Generator, age_years: float) -> BodySize:
    """Draw the sizes of one patient of an age.

    Body lengths vary by about 6 %, fat by a third, organ volumes by about 12 %. Length, width and organ
    volumes are correlated, since a large child has large organs. In adults the width varies twice and the
    depth three times as much as in children, because of the belly.
    """
    mean = reference_size(age_years)
    frame, girth, organs, fat = np.clip(rng.standard_normal(4), -2.0, 2.0)
    wide, deep = (0.08, 0.15) if age_years >= ADULT_YEARS else (0.04, 0.05)
    length = float(np.exp(0.04 * frame))
    across = float(np.exp(0.03 * frame + wide * girth))
    front = float(np.exp(0.03 * frame + deep * girth))
    volume = float(np.exp(0.10 * frame + 0.08 * organs))
    return BodySize(
        stature_mm=mean.stature_mm * length,
        mass_kg=mean.mass_kg * length * across * front,
        width=mean.width * across,
        depth=mean.depth * front,
        level=mean.level * length,
        kidney_length=mean.kidney_length * volume ** (1 / 3),
        kidney_ml=mean.kidney_ml * volume,
        liver_ml=mean.liver_ml * volume,
        spleen_ml=mean.spleen_ml * volume,
        vertebra=mean.vertebra * length,
        fat=mean.fat * float(np.exp(0.25 * girth + 0.25 * fat)),
        wall=mean.wall * across,
        psoas=mean.psoas * across,
        aorta=mean.aorta * length,
        arm=mean.arm * across,
    )
