"""How a growing mass pushes its surroundings: the map of an incompressible tissue around a sphere."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.shapes import Waves


@dataclass(frozen=True)
class Mass:
    """A tumor: where, how large, which shape, and how much tissue it replaced.

    A point at distance ``r0`` from the center was pushed to ``r = (r0^3 + R^3 - s^3)^(1/3)``, which keeps the
    volume of what was pushed; ``s`` is the radius of what the tumor destroyed. Far away the push dies out as
    ``1 / r^2``; near the surface tissue is stretched into a thin claw.

    Args:
        center: ``(3,)`` canonical mm.
        radius: mm, half the diameter of the sphere of the same volume, up to lobulation.
        seed: mm, ``s`` above, smaller than ``radius``.
        stretch: ``(3,)`` half axes over ``radius``, of product 1.
        lobes: shape noise on the surface.
        lobulation: its size, a share of the radius.
    """

    center: np.ndarray
    radius: float
    seed: float
    stretch: np.ndarray
    lobes: Waves
    lobulation: float

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance in mm to the tumor's surface, negative inside (approximate: radial)."""
        return self._scaled_radius(x, y, z) - self.radius

    def before(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the tissue that is now at a point was before the tumor grew."""
        r = np.maximum(self._scaled_radius(x, y, z), 1e-3)
        factor = np.cbrt(np.maximum(r**3 - self._grown, 0.0)) / r
        cx, cy, cz = (float(value) for value in self.center)
        return cx + (x - cx) * factor, cy + (y - cy) * factor, cz + (z - cz) * factor

    def after(self, points: np.ndarray) -> np.ndarray:
        """Where the tissue that was at ``(n, 3)`` points is now, lobulation left aside."""
        offset = points - self.center
        r = np.maximum(np.linalg.norm(offset / self.stretch, axis=1), 1e-6)
        return self.center + offset * (np.cbrt(r**3 + self._grown) / r)[:, None]

    def bound(self, centers: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spheres that hold, after growth, what spheres ``(n, 3)``, ``(n,)`` held before."""
        scale = float(self.stretch.max()) * (1.0 + 2.0 * self.lobulation)
        d = np.linalg.norm((centers - self.center) / self.stretch, axis=1)
        reach = radii / float(self.stretch.min())
        near = np.maximum(d - reach, 1e-3)
        # Far from the mass a sphere is widened by the largest tangential stretch on it. Near the mass that
        # is unbounded, and the ball around the mass that holds everything is the better bound.
        wide = reach * np.cbrt(near**3 + self._grown) / near * scale
        ball = np.cbrt((d + reach) ** 3 + self._grown) * scale
        close = (d - reach < 0.2 * self.radius) | (wide > ball)
        return np.where(close[:, None], self.center, self.after(centers)), np.where(close, ball, wide)

    @property
    def _grown(self) -> float:
        """The cube of the radius by which the tissue was pushed, in mm^3."""
        return self.radius**3 - self.seed**3

    def _scaled_radius(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        cx, cy, cz = (float(value) for value in self.center)
        a, b, c = (float(value) for value in self.stretch)
        px, py, pz = x - cx, y - cy, z - cz
        r = np.sqrt((px / a) ** 2 + (py / b) ** 2 + (pz / c) ** 2)
        if self.lobulation > 0.0:
            # Noise of the direction only, so that the map stays radial and cannot fold.
            unit = np.float32(self.radius) / np.maximum(r, 1e-3)
            r = r / (1.0 + self.lobulation * self.lobes(px * unit, py * unit, pz * unit))
        return r
