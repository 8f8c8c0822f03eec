"""Brightness of tissues: in HU, in which they are drawn, or as in an MR sequence."""

from dataclasses import dataclass

import numpy as np

#: Density of the skin, HU.
SKIN_HU = 25.0


@dataclass(frozen=True)
class Tones:
    """A piecewise linear function from the densities in which phantoms are drawn to brightness.

    Args:
        drawn: ascending densities, HU; none: the brightness is the density.
        shown: brightness of each.
        skin: brightness of the skin.
    """

    drawn: tuple[float, ...] = ()
    shown: tuple[float, ...] = ()
    skin: float = SKIN_HU

    def of(self, value: np.ndarray | float) -> np.ndarray | float:
        """Return the brightness of densities, of the same shape."""
        if not self.drawn:
            return value
        return np.interp(value, self.drawn, self.shown)


#: Computed tomography: HU.
CT = Tones()
