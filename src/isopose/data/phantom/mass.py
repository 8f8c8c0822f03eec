"""How a growing mass pushes its surroundings: the map of an incompressible tissue around a sphere."""

from dataclasses import dataclass

import numpy as np

from isopose.data.phantom.shapes import Waves


@dataclass(frozen=True)
class Mass:
    """A tumour: where, how large, which shape, and how much tissue it replaced.

    A point at distance ``r0`` from the centre was pushed to ``r = (r0^3 + R^3 - s^3)^(1/3)``, which keeps the
    volume of what was pushed; ``s`` is the radius of what the tumour destroyed. Far away the push dies out as
    ``1 / r^2``; near the surface tissue is stretched into a thin claw.

    Args:
        centre: ``(3,)`` canonical mm.
        radius: mm, half the diameter of the sphere of the same volume, up to lobulation.
        seed: mm, ``s`` above, smaller than ``radius``.
        stretch: ``(3,)`` half axes over ``radius``, of product 1.
        lobes: shape noise on the surface.
        lobulation: its size, a share of the radius.
    """

    centre: np.ndarray
    radius: float
    seed: float
    stretch: np.ndarray
    lobes: Waves
    lobulation: float

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance in mm to the tumour's surface, negative inside (approximate: radial)."""
        return self._scaled_radius(x, y, z) - self.radius

    def before(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the tissue that is now at a point was before the tumour grew."""
        r = np.maximum(self._scaled_radius(x, y, z), 1e-3)
        grown = self.radius**3 - self.seed**3
        factor = np.cbrt(np.maximum(r**3 - grown, 0.0)) / r
        cx, cy, cz = (float(value) for value in self.centre)
        return cx + (x - cx) * factor, cy + (y - cy) * factor, cz + (z - cz) * factor

    def after(self, point: np.ndarray) -> np.ndarray:
        """Where the tissue that was at a ``(3,)`` point is now, lobulation left aside."""
        offset = (np.asarray(point) - self.centre) / self.stretch
        r = max(float(np.linalg.norm(offset)), 1e-6)
        grown = self.radius**3 - self.seed**3
        return self.centre + (np.asarray(point) - self.centre) * (np.cbrt(r**3 + grown) / r)

    def bound(self, centre: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
        """A sphere that holds, after growth, what a sphere held before."""
        grown = self.radius**3 - self.seed**3
        scale = float(self.stretch.max()) * (1.0 + 2.0 * self.lobulation)
        d = float(np.linalg.norm((centre - self.centre) / self.stretch))
        reach = radius / float(self.stretch.min())
        if d - reach < 0.35 * self.radius:
            return self.centre, float(np.cbrt((d + reach) ** 3 + grown)) * scale
        near = d - reach
        return self.after(centre), reach * float(np.cbrt(near**3 + grown) / near) * scale

    def _scaled_radius(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        cx, cy, cz = (float(value) for value in self.centre)
        a, b, c = (float(value) for value in self.stretch)
        px, py, pz = x - cx, y - cy, z - cz
        r = np.sqrt((px / a) ** 2 + (py / b) ** 2 + (pz / c) ** 2)
        if self.lobulation > 0.0:
            # Noise of the direction only, so that the map stays radial and cannot fold.
            unit = np.float32(self.radius) / np.maximum(r, 1e-3)
            r = r / (1.0 + self.lobulation * self.lobes(px * unit, py * unit, pz * unit))
        return r
