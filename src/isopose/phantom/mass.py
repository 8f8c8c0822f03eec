"""The displacement of tissue by a growing mass: incompressible tissue around a sphere."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.shapes import Waves


@dataclass(frozen=True)
class Mass:
    """Place, size and shape of a tumor, and how much tissue it replaced.

    A point at distance ``r0`` from the center is displaced to ``r = (r0^3 + R^3 - s^3)^(1/3)``, which keeps
    volumes; ``s`` is the radius of the destroyed tissue. The displacement decreases as ``1 / r^2``; near the
    surface tissue is stretched thin, as in the claw sign.

    Args:
        center: ``(3,)`` canonical mm.
        radius: mm, R above: radius of the sphere of the same volume, without lobulation.
        seed: mm, ``s`` above, smaller than ``radius``.
        stretch: ``(3,)`` half axes divided by ``radius``, with product 1.
        lobes: noise of the surface.
        lobulation: its amplitude, as a fraction of the radius.
    """

    center: np.ndarray
    radius: float
    seed: float
    stretch: np.ndarray
    lobes: Waves
    lobulation: float

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return the radial distance in mm to the tumor's surface, negative inside."""
        return self._scaled_radius(x, y, z) - self.radius

    def before(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where the tissue at points was before the tumor grew, canonical mm."""
        r = np.maximum(self._scaled_radius(x, y, z), 1e-3)
        factor = np.cbrt(np.maximum(r**3 - self._grown, 0.0)) / r
        cx, cy, cz = (float(value) for value in self.center)
        return cx + (x - cx) * factor, cy + (y - cy) * factor, cz + (z - cz) * factor

    def after(self, points: np.ndarray) -> np.ndarray:
        """Return where the tissue that was at points ``(n, 3)`` is after growth, ignoring lobulation."""
        offset = points - self.center
        r = np.maximum(np.linalg.norm(offset / self.stretch, axis=1), 1e-6)
        return self.center + offset * (np.cbrt(r**3 + self._grown) / r)[:, None]

    def bound(self, centers: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return spheres that contain, after growth, the tissue that was in given spheres.

        Args:
            centers: ``(n, 3)`` canonical mm.
            radii: ``(n,)`` mm.

        Returns:
            Centers ``(n, 3)`` and radii ``(n,)``.
        """
        scale = float(self.stretch.max()) * (1.0 + 2.0 * self.lobulation)
        d = np.linalg.norm((centers - self.center) / self.stretch, axis=1)
        reach = radii / float(self.stretch.min())
        near = np.maximum(d - reach, 1e-3)
        # Far from the mass a sphere grows by its largest tangential stretch. Near the mass that is unbounded;
        # there the ball around the mass that contains the sphere is the better bound.
        wide = reach * np.cbrt(near**3 + self._grown) / near * scale
        ball = np.cbrt((d + reach) ** 3 + self._grown) * scale
        close = (d - reach < 0.2 * self.radius) | (wide > ball)
        return np.where(close[:, None], self.center, self.after(centers)), np.where(close, ball, wide)

    @property
    def _grown(self) -> float:
        """R^3 - s^3 in mm^3, the increase of a point's cubed radius."""
        return self.radius**3 - self.seed**3

    def _scaled_radius(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        cx, cy, cz = (float(value) for value in self.center)
        a, b, c = (float(value) for value in self.stretch)
        px, py, pz = x - cx, y - cy, z - cz
        r = np.sqrt((px / a) ** 2 + (py / b) ** 2 + (pz / c) ** 2)
        if self.lobulation > 0.0:
            # Noise depends on the direction only, so that the map stays radial and invertible.
            unit = np.float32(self.radius) / np.maximum(r, 1e-3)
            r = r / (1.0 + self.lobulation * self.lobes(px * unit, py * unit, pz * unit))
        return r
