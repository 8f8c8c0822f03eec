"""Cross-sections of the trunk as closed curves around the canonical axis: skin, muscle, cavity, ribs.

A curve is a table of radii over ``BINS`` angles theta (0 at the patient's left, pi/2 at the back).
"""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.growth import BodySize

BINS = 2048
THETA = (np.arange(BINS) + 0.5) * (2.0 * np.pi / BINS) - np.pi
COS, SIN = np.cos(THETA), np.sin(THETA)


@dataclass(frozen=True)
class BodyOutline:
    """Curves of the trunk at one height: radii in mm over ``THETA``."""

    skin: np.ndarray
    muscle: np.ndarray
    cavity: np.ndarray
    rib: np.ndarray


@dataclass(frozen=True)
class Trunk:
    """Parameters of the shape of one patient's trunk.

    Args:
        size: lengths in mm.
        maturity: 0 (newborn: round section, belly) to 1 (adult: wide section, waist).
        harmonics: ``(n, 2)`` amplitudes, as fractions of the radius, of cosine and sine of 2, 3, ... theta.
        gravity: ``(3,)`` unit vector along which soft parts are flattened.
        sag: share of the half depth by which the lower side is flattened.
        groove: depth of the furrow over the spine, share of the half depth.
        bulge: bulge over the tumor: angle in radians; height, added radius and extent in mm.
    """

    size: BodySize
    maturity: float
    harmonics: np.ndarray
    gravity: np.ndarray
    sag: float
    groove: float
    bulge: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)

    def half_axes(self, z: float) -> tuple[float, float]:
        """Return half width and half depth in mm at height ``z`` mm.

        Infants have a belly, adults a waist and hips.
        """
        t = z / self.size.level
        belly = np.exp(-((t - 0.3) ** 2) / 8.0)
        hips = 1.0 / (1.0 + np.exp(1.6 * (t + 4.0)))
        wide = 1.0 + (0.05 - 0.10 * self.maturity) * belly + 0.05 * self.maturity * hips
        deep = 1.0 + (0.05 - 0.06 * self.maturity) * belly + 0.02 * hips
        # The reference width and depth hold at the kidneys (t = 0.3), where the belly term is 1.
        wide /= 1.05 - 0.10 * self.maturity
        deep /= 1.05 - 0.06 * self.maturity
        return 0.5 * self.size.width * wide, 0.5 * self.size.depth * deep

    def back_wall(self, z: float) -> float:
        """Return the distance in mm of the cavity's rear wall behind the axis, at height ``z`` mm."""
        return 0.58 * self.half_axes(z)[1]

    @property
    def spine_y(self) -> float:
        """Distance in mm of the vertebral bodies' centers behind the axis; the same at every height."""
        return 0.31 * self.half_axes(0.5 * self.size.level)[1]

    def at(self, z: float) -> BodyOutline:
        """Compute the curves at height ``z`` mm."""
        a, b = self.half_axes(z)
        front, back = 2.05 + 0.25 * self.maturity, 2.12 + 0.50 * self.maturity
        power = front + (back - front) * 0.5 * (1.0 + np.tanh(3.0 * SIN))
        skin = (np.abs(COS / a) ** power + np.abs(SIN / b) ** power) ** (-1.0 / power)
        turn = np.arange(2, 2 + len(self.harmonics))[:, None] * THETA
        skin = skin * (1.0 + self.harmonics[:, 0] @ np.cos(turn) + self.harmonics[:, 1] @ np.sin(turn))
        angle, height, added, reach = self.bulge
        away = np.angle(np.exp(1j * (THETA - angle)))
        skin = skin + added * np.exp(-((away / 0.7) ** 2) - ((z - height) / reach) ** 2)
        skin = skin - self.groove * b * np.exp(-(((THETA - np.pi / 2) / 0.16) ** 2))
        skin = self._flattened(skin, b)

        size = self.size
        # Fat is thickest at the flanks and beside the spine, thin over the spine itself.
        flank = 1.0 + 0.35 * self.maturity * np.maximum(SIN, 0.0) * np.abs(COS) * 2.0 - 0.15 * np.abs(SIN)
        muscle = skin - size.fat * flank
        recti = np.exp(-(((np.abs(THETA + np.pi / 2) - 0.30) / 0.22) ** 2))
        line = np.exp(-(((THETA + np.pi / 2) / 0.07) ** 2))
        wall = size.wall * (0.55 + 0.45 * np.abs(COS) ** 1.5 + 0.25 * recti - 0.30 * line)
        cavity = muscle - wall
        rear = self.back_wall(z) / np.maximum(SIN, 0.05)
        soft = 0.10 * b
        cavity = -soft * np.logaddexp(-cavity / soft, -np.where(SIN > 0.05, rear, 20.0 * b) / soft)
        rib = np.maximum(muscle - 0.55 * size.wall * (0.55 + 0.45 * np.abs(COS) ** 1.5), 0.2 * b)
        # Behind, the ribs run inside the muscles of the back, along the cavity.
        rib = np.minimum(rib, cavity + 0.45 * size.wall + 1.5)
        return BodyOutline(*(r.astype(np.float32) for r in (skin, muscle, cavity, rib)))

    def _flattened(self, skin: np.ndarray, b: float) -> np.ndarray:
        """Flatten the side on which the patient lies, with a smooth transition at the rim."""
        down = COS * self.gravity[0] + SIN * self.gravity[1]
        depth = float(np.max(skin * down)) - self.sag * b
        limit = np.where(down > 0.05, depth / np.maximum(down, 0.05), 20.0 * b)
        soft = 0.035 * b
        return -soft * np.logaddexp(-skin / soft, -limit / soft)


def radius_at(table: np.ndarray, x: float, y: float) -> float:
    """Return a curve's radius in mm in the direction of a point ``(x, y)``."""
    return float(table[int((np.arctan2(y, x) + np.pi) * (BINS / (2.0 * np.pi))) % BINS])
