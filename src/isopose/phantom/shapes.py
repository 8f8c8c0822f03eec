"""Implicit shapes: signed distances in mm, negative inside, on float32 coordinate arrays."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves, of zero mean and about unit variance.

    Args:
        vectors: ``(n, 3)`` wave vectors in radians per mm.
        phases: ``(n,)`` radians.
    """

    vectors: np.ndarray
    phases: np.ndarray

    @classmethod
    def sample(cls, rng: np.random.Generator, count: int, shortest: float, longest: float) -> "Waves":
        """Draw waves of random directions, with wavelengths in mm uniform on a log scale."""
        direction = rng.standard_normal((count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        lengths = np.exp(rng.uniform(np.log(shortest), np.log(longest), size=(count, 1)))
        return cls(direction * (2.0 * np.pi / lengths), rng.uniform(0.0, 2.0 * np.pi, size=count))

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Evaluate the field at points in mm, float32."""
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), dtype=np.float32)
        for (kx, ky, kz), phase in zip(self.vectors.tolist(), self.phases.tolist(), strict=True):
            total += np.cos(kx * x + ky * y + (kz * z + phase))
        total *= np.float32(np.sqrt(2.0 / len(self.phases)))
        return total

    def on_plane(self, points_from_index: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Evaluate the field on a plane of pixels, float32 ``(rows, columns)``.

        On a plane a wave's phase is a sum of a term per row and a term per column, so its cosine is two outer
        products instead of a cosine per pixel.

        Args:
            points_from_index: ``(4, 4)`` from (column, row, plane) to mm; the plane is plane 0.
            shape: rows and columns.
        """
        total = np.zeros(shape, dtype=np.float32)
        across = np.arange(shape[1])[None, :] * (self.vectors @ points_from_index[:3, 0])[:, None]
        down = np.arange(shape[0])[None, :] * (self.vectors @ points_from_index[:3, 1])[:, None]
        across = across + (self.vectors @ points_from_index[:3, 3] + self.phases)[:, None]
        scale = np.sqrt(2.0 / len(self.phases))
        for a, b in zip(across, down, strict=True):
            total += (scale * np.cos(b)).astype(np.float32)[:, None] * np.cos(a).astype(np.float32)
            total -= (scale * np.sin(b)).astype(np.float32)[:, None] * np.sin(a).astype(np.float32)
        return total


def ellipsoid(
    u: np.ndarray, v: np.ndarray, w: np.ndarray, axes: np.ndarray, power: float = 2.0
) -> np.ndarray:
    """Return the radial distance in mm to a superellipsoid's surface, for coordinates in its own frame.

    Args:
        u: first coordinate.
        v: second coordinate.
        w: third coordinate.
        axes: three half axes, mm.
        power: exponent; 2 is an ellipsoid, larger values are boxier.
    """
    a, b, c = (float(value) for value in axes)
    length = np.sqrt(u * u + v * v + w * w)
    if power == 2.0:
        q = np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2)
    else:
        q = (np.abs(u / a) ** power + np.abs(v / b) ** power + np.abs(w / c) ** power) ** (1.0 / power)
    # At the center the radial distance is undefined; the smallest half axis is used there.
    return np.where(q > 1e-3, length - length / np.maximum(q, 1e-3), -min(a, b, c)).astype(np.float32)


def capsule(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, ends: np.ndarray, radii: tuple[float, float]
) -> np.ndarray:
    """Return the distance in mm to a tapered capsule between ``ends`` ``(2, 3)``, with a radius at each."""
    start, stop = ends
    dx, dy, dz = (float(value) for value in stop - start)
    px, py, pz = x - float(start[0]), y - float(start[1]), z - float(start[2])
    t = np.clip((px * dx + py * dy + pz * dz) / max(dx * dx + dy * dy + dz * dz, 1e-6), 0.0, 1.0)
    px, py, pz = px - t * dx, py - t * dy, pz - t * dz
    return np.sqrt(px * px + py * py + pz * pz) - (radii[0] + t * (radii[1] - radii[0]))


def smooth_min(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Return the smooth union of distances: the minimum, rounded where they differ by under ``width`` mm."""
    h = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - h * h * (width / 4.0)


def inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """Return the fraction of a voxel that is inside, 0 to 1, for a soft edge ``edge`` mm wide."""
    return np.clip(0.5 - distance / edge, 0.0, 1.0)
