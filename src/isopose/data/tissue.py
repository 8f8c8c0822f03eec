"""What a body is made of, as far as HU tell, and whether training scans were like that.

A network answers a chest as calmly as an abdomen. Two facts of a whole scan tell regions apart without any
training: how much of the body is gas and how much is bone; and, from the feet to the head, how the share of
lean tissue changes (in an abdomen it grows toward the liver), which turns round where feet and head are
exchanged in a header, though each slice looks as it should.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from isopose.geometry.volume import Volume
from isopose.strict import STRICT

#: HU below which the body's inside is gas or lung; up to the next, fat; then lean tissue; above, bone and
#: what contrast medium fills.
_GAS, _FAT, _LEAN = -300, -30, 200
#: Pixels of about so many mm are looked at.
_PIXEL_MM = 3.0
#: Shares may exceed the largest of the training scans by so much.
_MORE_GAS, _MORE_BONE = 0.10, 0.08
#: Slices and mm along the body without which no change along it is told.
_SLICES, _LENGTH_MM = 8, 60.0
#: Training scans without which nothing is said of which end is up, and how clearly half of them must tell.
_CASES, _CLEAR = 10, 0.6
#: How much less than in any training scan the lean share must grow.
_LESS = 0.2

Share = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True)
class Tissue:
    """Of one scan.

    Args:
        gas: share of the body's voxels, lungs and bowel gas.
        bone: share of the body's voxels, with what is as bright.
        rising: correlation of the lean share of lean tissue and fat with the way from the feet to the head;
            none where the scan is too short to tell.
    """

    gas: float
    bone: float
    rising: float | None


@dataclass(frozen=True)
class UsualTissue:
    """Of the training scans.

    Args:
        gas_max: the largest share.
        bone_max: the largest share.
        rising_cases: scans that are long enough to tell.
        rising_median: of their correlations, 0 without any.
        rising_min: the least, 0 without any.
        rising_max: the largest, 0 without any.
    """

    gas_max: Share
    bone_max: Share
    rising_cases: Annotated[int, Field(ge=0)]
    rising_median: Correlation
    rising_min: Correlation
    rising_max: Correlation
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


def tissue_of(upright: Volume, body: np.ndarray) -> Tissue:
    """Measure one scan.

    Args:
        upright: reoriented to the patient's axes, HU.
        body: its mask ``(z, y, x)``, not empty.
    """
    steps = [max(1, round(_PIXEL_MM / float(side))) for side in upright.spacing[:2]]
    part = (slice(None), slice(None, None, steps[1]), slice(None, None, steps[0]))
    values, inside = upright.array[part], body[part]
    whole = inside.sum(axis=(1, 2))
    below = [np.count_nonzero(inside & (values < limit), axis=(1, 2)) for limit in (_GAS, _FAT, _LEAN)]
    gas, fat, lean, bone = below[0], below[1] - below[0], below[2] - below[1], whole - below[2]
    total = max(int(whole.sum()), 1)
    told = np.flatnonzero(lean + fat)
    rising = None
    if len(told) >= _SLICES and (told[-1] - told[0]) * float(upright.spacing[2]) >= _LENGTH_MM:
        share = lean[told] / (lean[told] + fat[told])
        if share.std() > 0:
            rising = float(np.corrcoef(told, share)[0, 1].clip(-1, 1))
    return Tissue(float(gas.sum() / total), float(bone.sum() / total), rising)


def usual_tissue(scans: Sequence[Tissue]) -> UsualTissue:
    """What is usual in these scans, at least one."""
    rising = [scan.rising for scan in scans if scan.rising is not None]
    some = rising or [0.0]
    return UsualTissue(
        gas_max=max(scan.gas for scan in scans),
        bone_max=max(scan.bone for scan in scans),
        rising_cases=len(rising),
        rising_median=float(np.median(some)),
        rising_min=min(some),
        rising_max=max(some),
    )


def unlike(found: Tissue, usual: UsualTissue) -> Iterator[str]:
    """One line for each way in which a scan is made of other things than the training scans."""
    for name, share, most, more in (
        ("gas or lung", found.gas, usual.gas_max, _MORE_GAS),
        ("bone or as bright", found.bone, usual.bone_max, _MORE_BONE),
    ):
        if share > most + more:
            yield (
                f"{100 * share:.0f} % of the body is {name}, in the training scans at most "
                f"{100 * most:.0f} %; does the scan show another part of the body? Do not trust what is "
                "marked there"
            )
    if found.rising is None or usual.rising_cases < _CASES or abs(usual.rising_median) < _CLEAR:
        return
    # Of scans that end elsewhere the share may fall toward the head; then all is turned round.
    sign = 1.0 if usual.rising_median > 0 else -1.0
    least = usual.rising_min if sign > 0 else -usual.rising_max
    if sign * found.rising < min(-_CLEAR, least - _LESS):
        yield (
            "from the feet to the head fat and lean tissue change the other way round than in the training "
            "scans: are feet and head exchanged in the file's header?"
        )
