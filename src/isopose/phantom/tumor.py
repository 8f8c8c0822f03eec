"""A tumor that grows from a kidney, at most as large as the body allows."""

from dataclasses import dataclass, replace

import numpy as np

from isopose.phantom.growth import ADULT_YEARS
from isopose.phantom.mass import Mass
from isopose.phantom.organs import Kidney
from isopose.phantom.outline import Trunk, radius_at
from isopose.phantom.shapes import Waves

SMALLEST_MM, LARGEST_MM = 10.0, 150.0


@dataclass(frozen=True)
class Tumor:
    """A tumor: its mass and the tissue it consists of.

    Args:
        side: +1 left, -1 right.
        mass: place, shape and displacement.
        hu: density of the solid part.
        necrosis_hu: density of the necrotic or cystic part.
        necrosis: threshold of the coarse texture above which tissue is necrotic; a large one: no necrosis.
        coarse: texture of necrosis and nodules.
        fine: texture within the solid part.
        calcified: whether it contains calcifications (about 9 % of nephroblastomas).
    """

    side: int
    mass: Mass
    hu: float
    necrosis_hu: float
    necrosis: float
    coarse: Waves
    fine: Waves
    calcified: bool

    @property
    def diameter_mm(self) -> float:
        """Diameter in mm of the sphere of the same volume, before it is cut off at the cavity's walls."""
        return 2.0 * self.mass.radius


def largest_diameter(trunk: Trunk) -> float:
    """Return the diameter in mm of the largest tumor that fits into one side of the body."""
    z = 0.5 * trunk.size.level
    outline = trunk.at(z)
    depth = radius_at(outline.cavity, 0.0, -1.0) + trunk.back_wall(z)
    width = radius_at(outline.cavity, 1.0, 0.0) + radius_at(outline.cavity, -1.0, 0.0)
    return float(min(LARGEST_MM, 0.98 * depth, 0.62 * width))


def sample_diameter(rng: np.random.Generator, largest: float, age_years: float) -> float:
    """Sample a tumor's diameter in mm, at most ``largest``.

    In children a quarter are small, up to 40 mm, the others larger. In adults (KiTS19, Heller et al. 2019,
    arXiv:1904.00445) the median is 42 mm, the quartiles 26 and 61 mm.
    """
    if age_years >= ADULT_YEARS:
        return float(np.clip(np.exp(rng.normal(np.log(42.0), 0.63)), SMALLEST_MM, largest))
    if rng.random() < 0.25:
        return float(rng.uniform(SMALLEST_MM, min(40.0, largest)))
    return float(rng.uniform(min(35.0, 0.6 * largest), largest))


def grow(
    rng: np.random.Generator, trunk: Trunk, kidney: Kidney, diameter: float
) -> tuple[Trunk, Kidney, Tumor]:
    """Grow a tumor from a kidney; trunk and kidney are displaced.

    If a wall is in the way, the tumor's center and the kidney move together, so that the tumor stays at its
    place on the kidney.

    Args:
        rng: source of randomness.
        trunk: of the patient.
        kidney: the kidney from which it grows.
        diameter: mm.

    Returns:
        The trunk with a bulge, the displaced kidney, the tumor.
    """
    radius = 0.5 * diameter
    toward = np.array([0.45 * kidney.side, -0.75, 0.0]) + np.array([0.35, 0.3, 0.75]) * rng.uniform(-1, 1, 3)
    toward /= np.linalg.norm(toward)
    own = kidney.frame @ toward
    surface = 1.0 / float(np.linalg.norm(own / kidney.axes))
    attach = kidney.center + toward * surface * rng.uniform(0.88, 1.15)
    z = float(attach[2])
    outline = trunk.at(z)
    front = radius_at(outline.cavity, 0.3 * kidney.side, -1.0)
    room = trunk.back_wall(z) - float(kidney.axes[1]) * min(1.0, radius / float(kidney.axes[1]))
    center = attach.copy()
    # The belly yields in front; the spine behind does not.
    center[1] = np.clip(attach[1], min(-front + radius, room - radius), room - radius)
    across = radius_at(outline.cavity, float(kidney.side), 0.15) - radius
    least = 0.5 * trunk.size.vertebra + 0.55 * radius
    reach = kidney.side * center[0]
    center[0] = kidney.side * max(min(reach, across), min(least, across + 0.15 * radius))
    stretch = np.exp(rng.normal(0.0, 0.07, 3))
    stretch /= np.cbrt(np.prod(stretch))
    mass = Mass(
        center=center,
        radius=radius,
        seed=min(0.5 * radius, 0.7 * float(kidney.axes[0])),
        stretch=stretch,
        lobes=Waves.sample(rng, 10, 1.6 * radius, 5.0 * radius),
        lobulation=float(rng.uniform(0.02, 0.06)),
    )
    angle = float(np.arctan2(center[1], center[0]))
    needed = float(np.hypot(center[0], center[1])) + radius - radius_at(outline.cavity, center[0], center[1])
    bulge = float(np.clip(needed + 0.10 * radius, 0.0, 0.10 * trunk.size.depth)) if diameter > 40.0 else 0.0
    tumor = Tumor(
        side=kidney.side,
        mass=mass,
        hu=float(rng.uniform(52.0, 74.0)),
        necrosis_hu=float(rng.uniform(12.0, 30.0)),
        necrosis=float(rng.uniform(0.3, 1.4) if diameter > 30.0 else rng.uniform(1.2, 2.5)),
        coarse=Waves.sample(rng, 10, 0.5 * radius, 1.6 * radius),
        fine=Waves.sample(rng, 8, 6.0, 16.0),
        calcified=bool(rng.random() < 0.09),
    )
    moved = replace(kidney, center=kidney.center + (center - attach))
    return replace(trunk, bulge=(angle, z, bulge, 0.9 * radius + 10.0)), moved, tumor
