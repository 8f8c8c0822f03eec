"""One patient's anatomy as parameters, sampled for an age, independent of any grid."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.bowel import out_of_the_way, sample_bowel, sample_mesentery
from isopose.phantom.growth import BodySize, sample_size
from isopose.phantom.organs import Blob, Kidney, Tube, frame_from
from isopose.phantom.outline import Trunk, radius_at
from isopose.phantom.shapes import Waves
from isopose.phantom.tumor import Tumor, grow, largest_diameter, sample_diameter
from isopose.phantom.vessels import sample_vessels
from isopose.phantom.viscera import sample_liver, sample_spleen, sample_viscera


@dataclass(frozen=True)
class Anatomy:
    """The parameters of one patient, in the order in which they are painted.

    Args:
        age_years: birth to 16, or 18 and more.
        sex: ``"F"`` or ``"M"``.
        size: lengths and volumes before the tumor.
        trunk: shape of the trunk.
        mesentery: small vessels and nodes in the fat.
        bowel: loops and colon.
        viscera: stomach, pancreas, adrenals, gall bladder.
        liver: blobs, joined smoothly.
        liver_hu: in the early arterial phase.
        spleen: one blob.
        kidneys: left and right.
        cysts: simple cysts in the healthy kidney; most patients have none.
        tumor: tumor of one kidney.
        vessels: aorta, vena cava and their branches.
        wobble: displacement fields along x, y and z that deform every soft organ.
        wobble_mm: their amplitude.
        bone_hu: cancellous bone.
        rib_drop: vertebral levels by which a rib descends from back to front.
        fat_hu: visceral and subcutaneous fat, a little denser in infants.
    """

    age_years: float
    sex: str
    size: BodySize
    trunk: Trunk
    mesentery: tuple[Tube, ...]
    bowel: tuple[Tube, ...]
    viscera: tuple[Blob | Tube, ...]
    liver: tuple[Blob, ...]
    liver_hu: float
    spleen: Blob
    kidneys: tuple[Kidney, Kidney]
    cysts: tuple[Blob, ...]
    tumor: Tumor
    vessels: tuple[Tube, ...]
    wobble: tuple[Waves, Waves, Waves]
    wobble_mm: float
    bone_hu: float
    rib_drop: float
    fat_hu: float

    @property
    def spine_y(self) -> float:
        """Distance in mm of the vertebral bodies' centers behind the axis."""
        return self.trunk.spine_y


def sample_anatomy(
    rng: np.random.Generator, age_years: float, gravity: np.ndarray, *, tumor_share: float = 1.0
) -> Anatomy:
    """Draw one patient of an age.

    Args:
        rng: source of randomness.
        age_years: birth to 16, or 18 and more.
        gravity: ``(3,)`` unit vector of gravity in the patient's frame, for the flattened side.
        tumor_share: factor of the tumor's drawn diameter; near 0 the patient is nearly healthy.
    """
    size, maturity, trunk, kidneys, sick, diameter = _sample_trunk(rng, age_years, gravity, tumor_share)
    trunk, kidneys[sick], tumor = grow(rng, trunk, kidneys[sick], diameter)
    liver, liver_hu = sample_liver(rng, trunk), float(rng.uniform(72.0, 100.0))
    spleen = sample_spleen(rng, trunk)
    clear = 0.28 * tumor.mass.radius
    shortest, longest = 0.35 * size.width, 1.2 * size.width
    return Anatomy(
        age_years=age_years,
        sex="F" if rng.random() < 0.5 else "M",
        size=size,
        trunk=trunk,
        mesentery=out_of_the_way(sample_mesentery(rng, trunk), tumor.mass.center, clear),
        bowel=out_of_the_way(sample_bowel(rng, trunk), tumor.mass.center, clear),
        viscera=sample_viscera(rng, trunk),
        liver=liver,
        liver_hu=liver_hu,
        spleen=spleen,
        kidneys=(kidneys[1], kidneys[-1]),
        cysts=sample_cysts(rng, kidneys[-sick]),
        tumor=tumor,
        vessels=sample_vessels(rng, trunk, kidneys),
        wobble=(
            Waves.sample(rng, 4, shortest, longest),
            Waves.sample(rng, 4, shortest, longest),
            Waves.sample(rng, 4, shortest, longest),
        ),
        wobble_mm=0.016 * size.width,
        bone_hu=float(rng.uniform(190.0, 270.0)),
        rib_drop=float(rng.uniform(1.5, 1.9) + 0.9 * maturity),
        fat_hu=float(rng.uniform(-112.0, -98.0) + 14.0 * (1.0 - maturity)),
    )


def sample_tumor_diameter(rng: np.random.Generator, age_years: float, gravity: np.ndarray) -> float:
    """Return the diameter in mm of the tumor that :func:`sample_anatomy` draws, without drawing the rest.

    Args:
        rng: source of randomness, in the same state.
        age_years: birth to 16, or 18 and more.
        gravity: ``(3,)`` unit vector of gravity in the patient's frame.
    """
    *_, diameter = _sample_trunk(rng, age_years, gravity, 1.0)
    return diameter


def _sample_trunk(
    rng: np.random.Generator, age_years: float, gravity: np.ndarray, tumor_share: float
) -> tuple[BodySize, float, Trunk, dict[int, Kidney], int, float]:
    """Draw size, maturity, trunk, kidneys, the sick side, and the tumor's diameter, which depends on them."""
    size = sample_size(rng, age_years)
    maturity = float(np.clip((size.width / size.depth - 1.15) / 0.38, 0.0, 1.0))
    trunk = Trunk(
        size=size,
        maturity=maturity,
        harmonics=rng.normal(0.0, 1.0, (4, 2)) * np.array([[0.007], [0.009], [0.006], [0.004]]),
        gravity=gravity,
        sag=float(rng.uniform(0.03, 0.08)),
        groove=float(rng.uniform(0.03, 0.07)) * (0.35 + 0.65 * maturity),
    )
    kidneys = {side: sample_kidney(rng, trunk, side) for side in (1, -1)}
    sick = 1 if rng.random() < 0.5 else -1
    diameter = tumor_share * sample_diameter(rng, largest_diameter(trunk), age_years)
    return size, maturity, trunk, kidneys, sick, diameter


def sample_kidney(rng: np.random.Generator, trunk: Trunk, side: int) -> Kidney:
    """Draw a kidney beside the spine, upper pole inward and backward, hilum inward and forward.

    Args:
        rng: source of randomness.
        trunk: of the patient.
        side: +1 left, -1 right.
    """
    size = trunk.size
    z = size.level * ((0.85 if side > 0 else 0.45) + rng.normal(0.0, 0.2))
    c = 0.5 * size.kidney_length
    axes = np.array([0.54 * c, 0.44 * c, c])
    tilt = rng.normal(np.deg2rad([12.0, 9.0]), np.deg2rad(4.0))
    third = np.array([-side * np.sin(tilt[0]), np.sin(tilt[1]), 1.0])
    turn = np.deg2rad(rng.normal(35.0, 8.0))
    frame = frame_from(np.array([-side * np.cos(turn), -np.sin(turn), 0.0]), third)
    pyramids = np.concatenate(
        [_ring(rng, height, count) for height, count in ((-0.62, 4), (0.0, 5), (0.62, 4))]
    )
    kidney = Kidney(
        side, np.zeros(3), axes, frame, pyramids, rng.uniform(165.0, 225.0), rng.uniform(62.0, 92.0)
    )
    # KIM2010 gives the length, ICRP89 the volume; the two shorter axes follow from both.
    short = float(np.sqrt(size.kidney_ml / kidney.volume_ml()))
    axes = axes * np.array([short, short, 1.0])
    wall = trunk.back_wall(z)
    x = side * (0.5 * size.vertebra + 0.95 * size.psoas + 0.92 * axes[0] + 0.012 * size.width)
    y = wall - axes[1] - 0.02 * size.depth - 0.1 * abs(x) * trunk.maturity
    limit = radius_at(trunk.at(z).cavity, x, y) / float(np.hypot(x, y))
    x = side * min(abs(x), abs(x) * limit - 0.95 * float(axes[0]))
    return Kidney(side, np.array([x, y, z]), axes, frame, pyramids, kidney.cortex_hu, kidney.medulla_hu)


def _ring(rng: np.random.Generator, height: float, count: int) -> np.ndarray:
    """Draw directions of pyramids at one height, fanning away from the hilum (u points toward it)."""
    angle = np.linspace(-1.75, 1.75, count) + rng.normal(0.0, 0.12, count)
    w = height + rng.normal(0.0, 0.06, count)
    flat = np.sqrt(np.maximum(1.0 - w * w, 0.05))
    return np.stack([-flat * np.cos(angle), flat * np.sin(angle), w], axis=1)


def sample_cysts(rng: np.random.Generator, kidney: Kidney) -> tuple[Blob, ...]:
    """Draw a simple cyst in the kidney without tumor, for 15 % of the patients."""
    if rng.random() > 0.15:
        return ()
    toward = rng.normal(0.0, 1.0, 3) * np.array([0.4, 0.6, 1.0]) - np.array([0.8, 0.0, 0.0])
    toward /= np.linalg.norm(toward)
    place = kidney.center + kidney.frame.T @ (toward / np.linalg.norm(toward / kidney.axes))
    return (Blob("cyst", place, np.full(3, rng.uniform(0.12, 0.35) * kidney.axes[0]), 6.0),)
