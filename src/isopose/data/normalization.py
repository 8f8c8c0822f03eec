"""Normalize the intensities of scans, by a scale of all training cases or by one of each scan alone.

``ct`` and ``zscore`` follow nnU-Net v2 (``CTNormalization``, ``ZScoreNormalization``), and so does the choice
by a channel's name (``get_normalization_scheme``). Unlike there, ``zscore`` looks at the body alone, so that
the air around a patient and the size of the scan do not matter, and is clipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import ConfigDict, Field

from isopose.choices import Normalization
from isopose.errors import InputError
from isopose.settings import DataConfig
from isopose.strict import STRICT

#: Names of channels, in lower case, that nnU-Net does not z-score by scan.
_SCHEME_BY_CHANNEL: dict[str, Normalization] = {"ct": "ct", "nonorm": "raw"}
#: Most voxels of a body from which percentiles, mean and standard deviation are computed.
_MAX_VOXELS = 4_000_000
#: Largest value that the store holds (float16).
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class Scale:
    """Normalization of raw values: clip to ``low`` and ``high``, then z-score by ``mean`` and ``sd``."""

    low: float
    high: float
    mean: float
    sd: float

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Return normalized values of the same shape, a float32 copy."""
        out = values.astype(np.float32)
        np.clip(out, np.float32(self.low), np.float32(self.high), out=out)
        out -= np.float32(self.mean)
        out /= np.float32(max(self.sd, 1e-8))
        return out

    @property
    def air(self) -> float:
        """Normalized value of ``low``: of air in CT, which is darker than any labeled organ."""
        return float(self.normalize(np.array([self.low]))[0])

    @property
    def top(self) -> float:
        """Normalized value of ``high``, the largest possible."""
        return float(self.normalize(np.array([self.high]))[0])

    def of_scan(self, array: np.ndarray, body: np.ndarray) -> "Scale":  # noqa: ARG002 - as ByScan has it
        """Return the scale of one scan, which is this one."""
        return self


@dataclass(frozen=True)
class Window(Scale):
    """The scale of one scan, or a window in HU where there are no training cases."""

    low: float
    high: float
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True)
class Intensity(Scale):
    """Raw values of labeled voxels (HU), pooled with the same weight for each case.

    Args:
        percentiles: the percentiles that ``low`` and ``high`` are.
        low: lower bound for clipping.
        median: median of the values.
        high: upper bound for clipping.
        mean: mean of the raw values, before clipping.
        sd: standard deviation of the raw values, before clipping.
        minimum: smallest value.
        maximum: largest value.
    """

    percentiles: tuple[float, float]
    low: float
    median: float
    high: float
    mean: float
    sd: Annotated[float, Field(ge=0)]
    minimum: float
    maximum: float
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class ByScan:
    """Normalization of each scan by its own body, for intensities without a unit.

    Args:
        method: ``zscore`` or ``raw``, see :func:`scale_of_scan`.
        percentiles: of the body's values, between which ``zscore`` clips.
        air: smallest normalized value of all training scans, used outside the image.
        top: largest normalized value of all training scans.
    """

    method: Literal["zscore", "raw"]
    percentiles: tuple[float, float]
    air: float
    top: float
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def of_scan(self, array: np.ndarray, body: np.ndarray) -> Window:
        """Return the scale of one scan; see :func:`scale_of_scan`."""
        return scale_of_scan(self.method, self.percentiles, array, body)


#: How one channel is normalized.
Scaling: TypeAlias = Intensity | ByScan


@dataclass(frozen=True)
class Channel:
    """One channel of the scans.

    Args:
        name: as the dataset has it.
        scale: how it is normalized.
    """

    name: str
    scale: Scaling
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class LabeledValues:
    """Statistics of the values of a case's labeled voxels in one channel.

    Args:
        values: ``(n,)`` distinct values, ascending.
        counts: ``(n,)`` number of voxels with each value.
        mean: mean of the values; 0 without labeled voxels.
        variance: variance of the values; 0 without labeled voxels.
    """

    values: np.ndarray
    counts: np.ndarray
    mean: float
    variance: float


def scale_of_scan(
    method: Literal["zscore", "raw"], percentiles: tuple[float, float], array: np.ndarray, body: np.ndarray
) -> Window:
    """Return the scale of one scan, computed from that scan only.

    Args:
        method: ``zscore``: clip at percentiles of the body's values, then z-score by the mean and standard
            deviation of the clipped values; darker values, also around the patient, become the lower
            percentile. ``raw``: values are not changed.
        percentiles: lower and upper percentile, 0 to 100.
        array: ``(z, y, x)`` raw values, finite.
        body: ``(z, y, x)`` booleans, the body's mask, not empty.

    Raises:
        InputError: nearly all of the body has one value; with ``raw``, values too large for the store.
    """
    if method == "raw":
        low, high = float(array.min()), float(array.max())
        if max(-low, high) > _FLOAT16_MAX:
            raise InputError(
                f"values from {low:g} to {high:g} are too large to be used unchanged, expected at most "
                f"{_FLOAT16_MAX:g}; scale them, or set data.normalization=zscore"
            )
        return Window(low, high)
    inside = array[body]
    inside = inside[:: -(-len(inside) // _MAX_VOXELS)].astype(np.float64)
    low, high = (float(value) for value in np.percentile(inside, percentiles))
    if low == high:
        raise InputError(
            f"nearly all voxels of the body have the value {low:g}, so they cannot be normalized; "
            "export the scan again"
        )
    np.clip(inside, low, high, out=inside)
    return Window(low, high, float(inside.mean()), float(inside.std()))


def labeled_values(raw: np.ndarray) -> LabeledValues:
    """Count the values of labeled voxels, rounded to whole HU."""
    labeled = raw.astype(np.float64)
    values, counts = np.unique(np.rint(labeled).astype(np.int64), return_counts=True)
    mean, variance = (float(labeled.mean()), float(labeled.var())) if labeled.size else (0.0, 0.0)
    return LabeledValues(values, counts, mean, variance)


def scaling_of(
    method: Normalization, facts: Sequence[LabeledValues | Window], percentiles: tuple[float, float]
) -> Scaling:
    """Return the normalization of one channel.

    Args:
        method: how the channel is normalized.
        facts: statistics of the channel in each case: :class:`LabeledValues` with ``ct``, else
            :class:`Window`.
        percentiles: lower and upper percentile, 0 to 100.

    Raises:
        InputError: with ``ct``, no case has a labeled voxel, or nearly all have one value.
    """
    if method == "ct":
        return pooled_intensity(
            [f for f in facts if isinstance(f, LabeledValues) and len(f.values)], percentiles
        )
    scales = [f for f in facts if isinstance(f, Window)]
    air, top = min(scale.air for scale in scales), max(scale.top for scale in scales)
    return ByScan(method, percentiles, air, top)


def pooled_intensity(facts: Sequence[LabeledValues], percentiles: tuple[float, float]) -> Intensity:
    """Compute the pooled intensity statistics of the cases with labeled voxels.

    Raises:
        InputError: no case has a labeled voxel, or nearly all labeled voxels have one value.
    """
    if not facts:
        raise InputError(
            "fingerprint: no training case has a labeled voxel; are these the right label files?"
        )
    values = np.concatenate([f.values for f in facts])
    weights = np.concatenate([f.counts / f.counts.sum() for f in facts])
    order = np.argsort(values, kind="stable")
    values, share = values[order], np.cumsum(weights[order])
    # The value at which the cumulative weight reaches the percentile, with a tolerance for rounding.
    wanted = np.array([percentiles[0], 50.0, percentiles[1]]) / 100.0 * share[-1] - 1e-12
    low, median, high = values[np.searchsorted(share, wanted).clip(max=len(values) - 1)]
    if low == high:
        raise InputError(
            f"fingerprint: nearly all labeled voxels have the value {low:g}, by which nothing can be "
            "normalized; are these the scans, as CT in Hounsfield units?"
        )
    means = np.array([f.mean for f in facts])
    # Law of total variance: mean of the cases' variances plus variance of their means.
    variance = np.mean([f.variance for f in facts]) + means.var()
    return Intensity(
        percentiles=(float(percentiles[0]), float(percentiles[1])),
        low=float(low),
        median=float(median),
        high=float(high),
        mean=float(means.mean()),
        sd=float(np.sqrt(variance)),
        minimum=float(values[0]),
        maximum=float(values[-1]),
    )


def pose_channel_of(config: DataConfig, channels: Sequence[str]) -> int:
    """Return the number of the channel that shows body, pose and crop; see :func:`channel_number`."""
    return channel_number(config.pose_channel, channels, "data.pose_channel")


def channel_number(wanted: int | str, channels: Sequence[str], setting: str) -> int:
    """Return the number of a channel.

    Args:
        wanted: index, counted from 0, or name of the channel.
        channels: names of the channels.
        setting: name of the setting that holds ``wanted``, for the message.

    Raises:
        InputError: there is no such channel.
    """
    if isinstance(wanted, str) and wanted in channels:
        return channels.index(wanted)
    if isinstance(wanted, int) and 0 <= wanted < len(channels):
        return wanted
    raise InputError(
        f"{setting} is {wanted!r}, expected 0 to {len(channels) - 1} or one of {', '.join(channels)}"
    )


def normalizations_of(config: DataConfig, channels: Sequence[str]) -> tuple[Normalization, ...]:
    """Return how each channel is normalized: as ``data.normalization`` says, or by its name.

    Args:
        config: the setting; ``data.modality``, where it is set, counts as the name of the channel that shows
            the pose.
        channels: names of the dataset's channels.

    Raises:
        InputError: the setting lists another number of channels.
    """
    wanted = config.normalization
    if wanted == "auto":
        names = list(channels)
        if config.modality != "auto":
            names[pose_channel_of(config, channels)] = config.modality
        return tuple(_SCHEME_BY_CHANNEL.get(name.casefold(), "zscore") for name in names)
    if not isinstance(wanted, tuple):
        return (wanted,) * len(channels)
    if len(wanted) != len(channels):
        raise InputError(
            f"data.normalization lists {len(wanted)}, expected one for each of the {len(channels)} channels "
            f"({', '.join(channels)})"
        )
    return wanted
