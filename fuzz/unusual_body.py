"""What unusual files hold: a small body whose voxels all differ from their neighbors, anywhere in space."""

from dataclasses import dataclass
from random import Random

import numpy as np


@dataclass(frozen=True, eq=False)
class Scan:
    """Whole HU on a grid.

    Args:
        hu: ``(z, y, x)`` int64.
        turn: ``(3, 3)`` directions of the index axes x, y, z in LPS as columns, orthonormal.
        spacing: ``(3,)`` mm along x, y, z.
        origin: ``(3,)`` LPS of the first voxel.
    """

    hu: np.ndarray
    turn: np.ndarray
    spacing: np.ndarray
    origin: np.ndarray

    @property
    def affine(self) -> np.ndarray:
        """``(4, 4)`` LPS from index."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.turn * self.spacing
        matrix[:3, 3] = self.origin
        return matrix

    @property
    def outside(self) -> np.ndarray:
        """``(y, x)``: out of the scanner's round field of view, which holds no part of the body."""
        y, x = (np.linspace(-1, 1, n) for n in self.hu.shape[1:])
        return y[:, None] ** 2 + x**2 > 1.1


def drawn_scan(draw: Random, turns: str) -> Scan:
    """A body of water in air.

    Args:
        draw: what it depends on.
        turns: ``axial``, ``swapped`` (axes in any order and direction), ``leaned`` (by some degrees) or
            ``oblique`` (anyhow).
    """
    shape = (draw.randint(5, 9), draw.randint(24, 40), draw.randint(24, 40))
    z, y, x = (np.linspace(-1, 1, n) for n in shape)
    values = np.random.default_rng(draw.randrange(2**32))
    hu = np.where((y[:, None] / 0.5) ** 2 + (x / 0.7) ** 2 < 1, 40.0, -1000.0) + 0 * z[:, None, None]
    hu[:, (np.hypot(y[:, None] + 0.1, x - 0.3) < 0.15)] = 300.0
    hu = (hu + values.normal(0, 12, shape)).clip(-1024, 3000).round().astype(np.int64)
    turn = np.eye(3)
    if turns == "swapped":
        turn = np.eye(3)[draw.sample(range(3), 3)] * [draw.choice((-1, 1)) for _ in range(3)]
    elif turns in ("leaned", "oblique"):
        turn, _ = np.linalg.qr(values.normal(size=(3, 3)))
        if turns == "leaned":
            turn, _ = np.linalg.qr(np.eye(3) + 0.1 * values.normal(size=(3, 3)))
            turn *= np.sign(np.diag(turn))
    pixel = draw.choice((5.0, 8.0, 7.03125, 6.25, 9.765625))
    spacing = np.array([pixel, pixel, draw.choice((5.0, 10.0, 2.5, 12.0, 3.0))])
    origin = np.array([draw.choice((-150.0, -187.5, 12.3456, 0.0, 341.2)) for _ in range(3)])
    return Scan(hu, turn, spacing, origin)


def maybe(draw: Random, share: float) -> bool:
    """Whether a thing of that share happens."""
    return draw.random() < share
