"""How a page stores and shows a scan's values: as 16-bit numbers with slope and intercept, and in windows.

CT is shown in Hounsfield units and the usual windows. MR has no unit, and its brightness differs from scan to
scan, so its windows are computed from the scan.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from isopose.choices import Modality
from isopose.report.figure import window_of_scan

#: Windows of CT in HU, by name; the first is shown first.
WINDOWS_HU: dict[str, tuple[float, float]] = {
    "soft tissue": (-160.0, 240.0),
    "liver": (-15.0, 155.0),
    "bone": (-450.0, 1050.0),
    "lung": (-1350.0, 150.0),
    "wide": (-1000.0, 1000.0),
}
#: Width of the other windows of MR, as factors of the usual one's.
NARROW_WINDOW, WIDE_WINDOW = 0.5, 1.5
#: If the modality is unknown, a scan with a value below this is taken for CT (HU of air).
CT_BELOW = -200.0
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Shown:
    """How a scan's values are stored and shown.

    Args:
        slope: with ``intercept`` gives the value of a stored number: slope · stored + intercept.
        intercept: value of a stored 0.
        unit: of the values; empty where they have none.
        windows: lower and upper end in stored numbers, by name; the first is shown first.
    """

    slope: float
    intercept: float
    unit: str
    windows: dict[str, tuple[float, float]]

    @property
    def usual(self) -> tuple[float, float]:
        """The window that is shown first."""
        return next(iter(self.windows.values()))

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Return values as int16 numbers, rounded, and clipped to their range."""
        numbers = (values - self.intercept) / self.slope if (self.slope, self.intercept) != (1, 0) else values
        return np.clip(np.rint(numbers), _INT16.min, _INT16.max).astype(np.int16)

    def stored_range(self, low: float, high: float) -> tuple[float, float]:
        """Return a range of values in stored numbers, which are not rounded."""
        return (low - self.intercept) / self.slope, (high - self.intercept) / self.slope

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values for a page."""
        return {
            "slope": self.slope,
            "intercept": self.intercept,
            "unit": self.unit,
            "windows": {name: list(ends) for name, ends in self.windows.items()},
        }


def shown_values(array: np.ndarray, modality: Modality | None) -> Shown:
    """Return how a scan is stored and shown.

    Values of CT are rounded to whole HU. Those of MR are kept where they are whole and span at most 16 bits;
    all others are spread over the 16 bits.

    Args:
        array: ``(z, y, x)``, finite.
        modality: of the scan; None: unknown, then CT if a value lies below :data:`CT_BELOW`.
    """
    if modality is None:
        modality = "ct" if float(array.min()) < CT_BELOW else "mr"
    if modality == "ct":
        return Shown(1.0, 0.0, "HU", dict(WINDOWS_HU))
    low, high = float(array.min()), float(array.max())
    slope, intercept = _spread(low, high, whole=bool(np.array_equal(array, np.rint(array))))
    dark, usual = window_of_scan(array)
    ends = {
        "usual": (dark, usual),
        "brighter": (dark, dark + NARROW_WINDOW * (usual - dark)),
        "darker": (dark, dark + WIDE_WINDOW * (usual - dark)),
        "all": (low, max(high, low + slope)),
    }
    scaled = Shown(slope, intercept, "", {})
    return Shown(slope, intercept, "", {name: scaled.stored_range(*pair) for name, pair in ends.items()})


def _spread(low: float, high: float, *, whole: bool) -> tuple[float, float]:
    """Return slope and intercept with which values from ``low`` to ``high`` fill, or fit into, 16 bits."""
    if whole and _INT16.min <= low and high <= _INT16.max:
        return 1.0, 0.0
    if whole and high - low <= _INT16.max - _INT16.min:
        return 1.0, low - _INT16.min
    slope = (high - low) / (_INT16.max - _INT16.min)
    return (slope, low - slope * _INT16.min) if slope > 0 else (1.0, low)
