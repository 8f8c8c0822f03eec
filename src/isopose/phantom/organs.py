"""Parametric soft organs: blobs, tubes and kidneys in the canonical frame of one patient."""

from dataclasses import dataclass, field

import numpy as np

from isopose.phantom.shapes import ellipsoid


@dataclass(frozen=True)
class Blob:
    """A superellipsoid with an optional wall and an optional gas bubble above its content.

    Args:
        name: of the organ, for code and tests.
        center: ``(3,)`` canonical mm.
        axes: ``(3,)`` half axes in mm.
        hu: density of the content.
        frame: ``(3, 3)``, rows are the blob's own axes in the canonical frame.
        power: exponent; 2 is an ellipsoid.
        wall: thickness in mm; 0: no wall.
        wall_hu: density of the wall.
        gas: fraction of the height that is gas, 0 to 1.
        mottle: standard deviation in HU of coarse texture (stool, an early arterial spleen).
    """

    name: str
    center: np.ndarray
    axes: np.ndarray
    hu: float
    frame: np.ndarray = field(default_factory=lambda: np.eye(3))
    power: float = 2.0
    wall: float = 0.0
    wall_hu: float = 90.0
    gas: float = 0.0
    mottle: float = 0.0

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return the signed distance in mm at canonical points, negative inside."""
        return ellipsoid(*local(self.frame, self.center, x, y, z), self.axes, self.power)


@dataclass(frozen=True)
class Tube:
    """A bent tube through ``points`` ``(n, 3)`` with ``radii`` ``(n,)``; other fields as in :class:`Blob`."""

    name: str
    points: np.ndarray
    radii: np.ndarray
    hu: float
    wall: float = 0.0
    wall_hu: float = 90.0
    gas: float = 0.0
    mottle: float = 0.0


@dataclass(frozen=True)
class Kidney:
    """A kidney with cortex, pyramids, sinus fat and pelvis.

    Its own axes, the rows of ``frame``, are u (to the hilum), v, and w (to the upper pole).

    Args:
        side: +1 left, -1 right.
        center: ``(3,)`` canonical mm, before tumor growth.
        axes: ``(3,)`` half axes in mm along u, v, w.
        frame: ``(3, 3)``.
        pyramids: ``(n, 3)`` unit directions of the medullary pyramids in own axes.
        cortex_hu: in the early arterial phase.
        medulla_hu: in the early arterial phase.
    """

    side: int
    center: np.ndarray
    axes: np.ndarray
    frame: np.ndarray
    pyramids: np.ndarray
    cortex_hu: float
    medulla_hu: float

    @property
    def hilum(self) -> np.ndarray:
        """``(3,)`` canonical point where the sinus opens."""
        return self.center + self.frame[0] * 0.85 * self.axes[0]

    def own(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return own coordinates u, v, w of canonical points, without the bend toward the hilum."""
        u, v, w = local(self.frame, self.center, x, y, z)
        return u - 0.30 * float(self.axes[0]) * (w / float(self.axes[2])) ** 2, v, w

    def surface(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return the signed distance in mm to the capsule, in own coordinates, ignoring the sinus."""
        return ellipsoid(u, v, w, self.axes, 2.2)

    def sinus(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return the signed distance in mm to the sinus, in own coordinates."""
        a, b, c = self.axes
        return ellipsoid(u - 0.72 * a, v, w, np.array([0.62 * a, 0.28 * b, 0.40 * c]))

    def volume_ml(self) -> float:
        """Return the volume of the parenchyma without the sinus, sampled on a grid."""
        a, b, c = (1.3 * float(value) for value in self.axes)
        middles = (np.arange(48) + 0.5) / 24.0 - 1.0
        u, v, w = np.meshgrid(*(middles * s for s in (a, b, c)), indexing="ij")
        share = np.mean((self.surface(u, v, w) < 0) & (self.sinus(u, v, w) > 0))
        return float(share * 8.0 * a * b * c / 1000.0)


def local(
    frame: np.ndarray, center: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coordinates of points along the rows of ``frame``, relative to ``center``."""
    px, py, pz = (p - float(c) for p, c in zip((x, y, z), center, strict=True))
    rows = frame.tolist()
    return (
        rows[0][0] * px + rows[0][1] * py + rows[0][2] * pz,
        rows[1][0] * px + rows[1][1] * py + rows[1][2] * pz,
        rows[2][0] * px + rows[2][1] * py + rows[2][2] * pz,
    )


def frame_from(first: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Return a right-handed frame ``(3, 3)``: its third row along ``third``, its first near ``first``."""
    w = third / np.linalg.norm(third)
    u = first - w * float(first @ w)
    u = u / np.linalg.norm(u)
    return np.stack([u, np.cross(w, u), w])
