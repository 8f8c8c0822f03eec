"""Rescale stored values to their unit; reject rescaling that is missing or ambiguous."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

#: Rescale types that mean HU in CT; an empty one does as well (PS3.3 C.8.2.1).
_HU_TYPES = ("", "HU", "HOUNSFIELD UNITS")


def rescale_of(headers: Iterable[Dataset], modality: str) -> tuple[tuple[float, float] | None, str]:
    """Return a frame's slope and intercept, or why its values cannot be rescaled to their unit.

    Real world value mappings are ignored: they map to quantities other than the modality's own unit.

    Args:
        headers: data sets that may hold slope and intercept, the preferred one first: the frame's own
            functional groups, the shared ones, the file itself. Both numbers are taken from the same data
            set.
        modality: CT requires a pair, with HU as its unit.

    Returns:
        The pair, or None if there is none; and the end of a sentence that begins with "has CT images", empty
            if the values can be used.
    """
    headers = list(headers)
    if any(header.get("ModalityLUTSequence") for header in headers):
        return None, "whose values are looked up in a table (Modality LUT), expected a rescale slope"
    for header in headers:
        slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
        if slope in (None, "") and intercept in (None, ""):
            continue
        pair = _number(slope), _number(intercept)
        if pair[0] is None or pair[1] is None or pair[0] == 0:
            return None, _without(modality, " that can be used")
        unit = str(header.get("RescaleType") or "").strip().upper()
        if modality == "CT" and unit not in _HU_TYPES:
            return None, "whose rescale type is not HU, so their values are another quantity"
        return (pair[0], pair[1]), ""
    return None, _without(modality, "") if modality == "CT" else ""


def _without(modality: str, rest: str) -> str:
    """Return the reason why values without a slope and intercept, or without usable ones, have no unit."""
    unit = "HU" if modality == "CT" else "known"
    return f"without rescale slope and intercept{rest}, so their values are not {unit}"


def _number(value: Any) -> float | None:
    """Return a finite number, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def rescaled(values: np.ndarray, pair: tuple[float, float] | None) -> np.ndarray:
    """Return stored values times slope plus intercept: integers if all numbers are whole, else float64.

    Args:
        values: stored values, integers or floats.
        pair: slope and intercept; None leaves the values as they are.
    """
    if pair is None:
        return values
    slope, intercept = pair
    if values.dtype.kind == "f" or slope % 1 or intercept % 1:
        return values * np.float64(slope) + intercept
    largest = max(abs(float(limit)) for limit in (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max))
    reach = largest * abs(slope) + abs(intercept)
    if reach >= 2**62:
        return values * np.float64(slope) + intercept
    wide = np.int32 if reach < 2**31 else np.int64
    scaled: np.ndarray = values.astype(wide)
    if slope != 1:
        scaled *= int(slope)
    scaled += int(intercept)
    return scaled
