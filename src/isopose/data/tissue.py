"""Measure the composition of a body by HU, and compare it with that of the training scans.

A network segments a chest without complaint, even if it was trained on abdomens. Two measures of a whole scan
detect such cases without training: the fractions of gas and of bone; and the change of the lean fraction from
feet to head. In an abdomen it grows toward the liver; if feet and head are exchanged in the header, the
change is reversed, although each slice looks right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from isopose.geometry.volume import Volume
from isopose.strict import STRICT

#: Upper HU limits of gas and lung, of fat, and of lean tissue; above are bone and contrast medium.
_GAS_HU, _FAT_HU, _LEAN_HU = -300, -30, 200
#: Slices are subsampled to pixels of about this side, mm.
_PIXEL_MM = 3.0
#: Fractions of gas and of bone may exceed the largest of the training scans by this much.
_GAS_MARGIN, _BONE_MARGIN = 0.10, 0.08
#: Fewest slices, and shortest length in mm, for which the change along the body is measured.
_MIN_SLICES, _MIN_LENGTH_MM = 8, 60.0
#: Fewest training scans for a judgment of the head's direction, and the least absolute median correlation.
_MIN_CASES, _MIN_CORRELATION = 10, 0.6
#: A scan's correlation must be below that of all training scans by this much.
_CORRELATION_MARGIN = 0.2

Share = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True)
class Tissue:
    """The composition of one scan's body.

    Args:
        gas: fraction of the body's voxels that are gas or lung.
        bone: fraction of the body's voxels that are bone or as bright.
        rising: correlation of lean / (lean + fat) with the position from feet to head; None if the scan is
            too short.
    """

    gas: float
    bone: float
    rising: float | None


@dataclass(frozen=True)
class UsualTissue:
    """The composition of the training scans' bodies.

    Args:
        gas_max: largest fraction of gas or lung.
        bone_max: largest fraction of bone or as bright.
        rising_cases: number of scans that are long enough for ``rising``.
        rising_median: median of their correlations, 0 without any.
        rising_min: smallest, 0 without any.
        rising_max: largest, 0 without any.
    """

    gas_max: Share
    bone_max: Share
    rising_cases: Annotated[int, Field(ge=0)]
    rising_median: Correlation
    rising_min: Correlation
    rising_max: Correlation
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


def tissue_of(volume: Volume, body: np.ndarray) -> Tissue:
    """Measure the composition of one scan's body.

    Args:
        volume: reoriented to the patient's axes, HU.
        body: its mask ``(z, y, x)``, not empty.
    """
    steps = [max(1, round(_PIXEL_MM / float(side))) for side in volume.spacing[:2]]
    subsampled = (slice(None), slice(None, None, steps[1]), slice(None, None, steps[0]))
    values, inside = volume.array[subsampled], body[subsampled]
    body_counts = inside.sum(axis=(1, 2))
    below = [
        np.count_nonzero(inside & (values < limit), axis=(1, 2)) for limit in (_GAS_HU, _FAT_HU, _LEAN_HU)
    ]
    gas, fat, lean, bone = below[0], below[1] - below[0], below[2] - below[1], body_counts - below[2]
    body_voxels = max(int(body_counts.sum()), 1)
    slices = np.flatnonzero(lean + fat)
    rising = None
    if len(slices) >= _MIN_SLICES and (slices[-1] - slices[0]) * float(volume.spacing[2]) >= _MIN_LENGTH_MM:
        lean_fraction = lean[slices] / (lean[slices] + fat[slices])
        if lean_fraction.std() > 0:
            rising = float(np.corrcoef(slices, lean_fraction)[0, 1].clip(-1, 1))
    return Tissue(float(gas.sum() / body_voxels), float(bone.sum() / body_voxels), rising)


def usual_tissue(scans: Sequence[Tissue]) -> UsualTissue:
    """Summarize the composition of training scans, at least one."""
    rising = [scan.rising for scan in scans if scan.rising is not None]
    rising_or_zero = rising or [0.0]
    return UsualTissue(
        gas_max=max(scan.gas for scan in scans),
        bone_max=max(scan.bone for scan in scans),
        rising_cases=len(rising),
        rising_median=float(np.median(rising_or_zero)),
        rising_min=min(rising_or_zero),
        rising_max=max(rising_or_zero),
    )


def composition_warnings(tissue: Tissue, usual: UsualTissue) -> Iterator[str]:
    """Yield a warning for each way in which a scan's composition differs from the training scans'."""
    for name, fraction, highest, margin in (
        ("gas or lung", tissue.gas, usual.gas_max, _GAS_MARGIN),
        ("bone or as bright", tissue.bone, usual.bone_max, _BONE_MARGIN),
    ):
        if fraction > highest + margin:
            yield (
                f"{100 * fraction:.0f} % of the body is {name}, in the training scans at most "
                f"{100 * highest:.0f} %; does the scan show another part of the body? Do not trust the "
                "segmentation there"
            )
    if (
        tissue.rising is None
        or usual.rising_cases < _MIN_CASES
        or abs(usual.rising_median) < _MIN_CORRELATION
    ):
        return
    # In scans of another region the lean fraction may fall toward the head; then the signs are reversed.
    sign = 1.0 if usual.rising_median > 0 else -1.0
    smallest = usual.rising_min if sign > 0 else -usual.rising_max
    if sign * tissue.rising < min(-_MIN_CORRELATION, smallest - _CORRELATION_MARGIN):
        yield (
            "from feet to head, the fractions of fat and lean tissue change in the opposite direction to the "
            "training scans: are feet and head exchanged in the file's header?"
        )
