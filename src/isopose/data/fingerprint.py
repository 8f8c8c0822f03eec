"""The fingerprint of the training cases: grid and body sizes, tissue, labels, intensities of labeled voxels.

Intensities follow nnU-Net v2 (``DatasetFingerprintExtractor``, ``CTNormalization``): statistics of the raw
values of labeled voxels, with the same weight for each case. nnU-Net samples equally many voxels of each
case; here the limit of infinitely many samples is computed from histograms, so that the result is
deterministic.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from isopose.config import DataConfig
from isopose.data.body import body_box, body_mask
from isopose.data.drawn import classes_of, structures
from isopose.data.tissue import Tissue, UsualTissue, tissue_of, usual_tissue
from isopose.devices import one_thread
from isopose.errors import InputError
from isopose.io.datasets import Case
from isopose.io.images import read_labels, read_volume
from isopose.isolation import Failed
from isopose.labels import IGNORED, Labels
from isopose.parallel import Progress, all_of, attempts
from isopose.strict import STRICT, first_problem

#: Margin of the frame around the largest body's box, as a fraction of the box's side.
MARGIN = 0.04

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Scale:
    """Normalization of raw values (HU): clip to ``low`` and ``high``, then z-score by ``mean`` and ``sd``."""

    low: float
    high: float
    mean: float
    sd: float

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Return normalized values of the same shape, a float32 copy."""
        out = np.clip(values.astype(np.float32), np.float32(self.low), np.float32(self.high))
        out -= np.float32(self.mean)
        out /= np.float32(max(self.sd, 1e-8))
        return out

    @property
    def air(self) -> float:
        """Normalized value of air: that of ``low``, since air is darker than any labeled organ."""
        return float(self.normalize(np.array([self.low]))[0])

    @property
    def top(self) -> float:
        """Normalized value of ``high``, the largest possible."""
        return float(self.normalize(np.array([self.high]))[0])


@dataclass(frozen=True)
class Window(Scale):
    """An intensity window in HU without z-scoring, used where there are no training cases."""

    low: float
    high: float
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True)
class Intensity(Scale):
    """Raw values (HU) of labeled voxels, pooled with the same weight for each case.

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
class LabelFacts:
    """Statistics of one label; volumes in ml over the cases that have it, 0 if none has."""

    name: str
    cases: Count
    slices: Count
    volume_median_ml: float
    volume_min_ml: float
    volume_max_ml: float
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class Fingerprint:
    """Facts of the training cases; nothing in it identifies a patient.

    Args:
        cases: number of scans.
        patients: number of patients.
        spacing_median: voxel size along ``(x, y, z)`` of the reoriented volumes, mm.
        spacing_min: smallest, for each axis.
        spacing_max: largest, for each axis.
        slices_median: median number of axial slices.
        slices_min: fewest axial slices.
        slices_max: most axial slices.
        intensity: statistics of labeled voxels.
        body_median_mm: sides ``(x, y)`` of the body's in-plane box, mm.
        body_max_mm: largest sides, for each axis.
        fov_mm: side of the square that holds the body's box of every case, with a margin of 4 %.
        labels: statistics of the labels, in class order.
        tissue: composition of the bodies; None in models from before it was measured.
    """

    cases: Annotated[int, Field(ge=1)]
    patients: Annotated[int, Field(ge=1)]
    spacing_median: tuple[Positive, Positive, Positive]
    spacing_min: tuple[Positive, Positive, Positive]
    spacing_max: tuple[Positive, Positive, Positive]
    slices_median: Positive
    slices_min: Annotated[int, Field(ge=1)]
    slices_max: Annotated[int, Field(ge=1)]
    intensity: Intensity
    body_median_mm: tuple[Positive, Positive]
    body_max_mm: tuple[Positive, Positive]
    fov_mm: Positive
    labels: tuple[LabelFacts, ...]
    tissue: UsualTissue | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as values that JSON represents exactly."""
        return _ADAPTER.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, values: Any, where: str = "fingerprint") -> "Fingerprint":
        """Read a fingerprint from JSON values, the inverse of :meth:`to_json`.

        Raises:
            InputError: a key is missing or unknown, or a value has another type or is out of range.
        """
        try:
            found = _ADAPTER.validate_json(json.dumps(values))
        except ValidationError as error:
            raise InputError(
                f"{where}: {first_problem(error)}; the file is damaged or of another version"
            ) from None
        if not found.intensity.low <= found.intensity.high:
            raise InputError(f"{where}: intensity: low is above high; the file is damaged")
        return found


_ADAPTER = TypeAdapter(Fingerprint)


@dataclass(frozen=True)
class CaseFacts:
    """Facts of one case, from which the fingerprint is computed; labels in class order, lengths in mm."""

    patient: str
    spacing: tuple[float, float, float]
    slices: int
    body_mm: tuple[float, float]
    values: np.ndarray
    counts: np.ndarray
    mean: float
    variance: float
    volumes_ml: tuple[float, ...]
    label_slices: tuple[int, ...]
    tissue: Tissue
    #: Part of the voxels that nobody labeled, and slices of which nothing was.
    ignored: float = 0.0
    undrawn: int = 0


def fingerprint_of(
    cases: Sequence[Case],
    labels: Labels,
    config: DataConfig,
    workers: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Fingerprint:
    """Read every training case once and compute the fingerprint.

    Args:
        cases: training cases only, each with a label file.
        labels: names and stored values.
        config: percentiles and the body's threshold.
        workers: processes; the result does not depend on their number.
        progress: called with the numbers of cases done and of all cases.
        say: called with a line for each case that cannot be used.

    Raises:
        InputError: no case, or unusable cases, after all were read.
    """
    if not cases:
        raise InputError("fingerprint: expected at least one training case, got none")
    work = partial(case_facts, labels=labels, config=config)
    facts = all_of(work, cases, name=attrgetter("id"), workers=workers, progress=progress, say=say)
    return reduce_facts(facts, labels, config)


def facts_of(
    cases: Sequence[Case],
    labels: Labels,
    config: DataConfig,
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[CaseFacts | Failed]:
    """Yield the facts of each case, or its failure if it is unusable; see :func:`fingerprint_of`."""
    work = partial(case_facts, labels=labels, config=config)
    return attempts(work, cases, name=attrgetter("id"), workers=workers, progress=progress)


@one_thread()
def case_facts(case: Case, labels: Labels, config: DataConfig) -> CaseFacts:
    """Read one case and measure it.

    Raises:
        InputError: no label file, unreadable files, another grid, an unknown label, no body.
    """
    if case.label is None:
        raise InputError("expected a label file for a training case, got none")
    volume = read_volume(case.image)
    stored = read_labels(case.label, like=volume)
    volume = volume.reoriented()
    classes = classes_of(stored.reoriented().array, labels, config.undrawn)
    body = body_mask(volume, config.body_threshold_hu)
    x0, y0, x1, y1 = body_box(body, volume.spacing)
    labeled = volume.array[structures(classes)].astype(np.float64)
    values, counts = np.unique(np.rint(labeled).astype(np.int64), return_counts=True)
    milliliter = float(np.prod(volume.spacing)) / 1000.0
    inside = [classes == index for index in range(1, labels.classes)]
    sx, sy, sz = (float(s) for s in volume.spacing)
    return CaseFacts(
        patient=case.patient,
        spacing=(sx, sy, sz),
        slices=volume.array.shape[0],
        body_mm=(x1 - x0, y1 - y0),
        values=values,
        counts=counts,
        mean=float(labeled.mean()) if labeled.size else 0.0,
        variance=float(labeled.var()) if labeled.size else 0.0,
        volumes_ml=tuple(float(np.count_nonzero(mask)) * milliliter for mask in inside),
        label_slices=tuple(int(mask.any(axis=(1, 2)).sum()) for mask in inside),
        tissue=tissue_of(volume, body),
        ignored=float((classes == IGNORED).mean()),
        undrawn=int((classes == IGNORED).all(axis=(1, 2)).sum()),
    )


def reduce_facts(facts: Sequence[CaseFacts], labels: Labels, config: DataConfig) -> Fingerprint:
    """Combine the facts of cases, in their order, into a fingerprint.

    Raises:
        InputError: no case has a labeled voxel.
    """
    spacing = np.array([f.spacing for f in facts])
    slices = np.array([f.slices for f in facts])
    body = np.array([f.body_mm for f in facts])
    return Fingerprint(
        cases=len(facts),
        patients=len({f.patient for f in facts}),
        spacing_median=_three(np.median(spacing, axis=0)),
        spacing_min=_three(spacing.min(axis=0)),
        spacing_max=_three(spacing.max(axis=0)),
        slices_median=float(np.median(slices)),
        slices_min=int(slices.min()),
        slices_max=int(slices.max()),
        intensity=_intensity([f for f in facts if len(f.values)], config.clip_percentiles),
        body_median_mm=_two(np.median(body, axis=0)),
        body_max_mm=_two(body.max(axis=0)),
        fov_mm=float(body.max() * (1.0 + MARGIN)),
        labels=tuple(_label(name, index, facts) for index, name in enumerate(labels.names)),
        tissue=usual_tissue([f.tissue for f in facts]),
    )


def ignored_of(facts: Sequence[CaseFacts]) -> dict[str, float]:
    """Return how much of the cases nobody labeled; empty where all is labeled.

    Returns:
        ``voxels``, the mean over the cases of a part from 0 to 1; ``slices`` that are wholly ignored;
        ``of_slices``, how many there are.
    """
    if not any(f.ignored for f in facts):
        return {}
    return {
        "voxels": float(np.mean([f.ignored for f in facts])),
        "slices": sum(f.undrawn for f in facts),
        "of_slices": sum(f.slices for f in facts),
    }


def _intensity(facts: Sequence[CaseFacts], percentiles: tuple[float, float]) -> Intensity:
    """Compute the pooled intensity statistics of the cases with labeled voxels."""
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


def _label(name: str, index: int, facts: Sequence[CaseFacts]) -> LabelFacts:
    """Compute the statistics of one label."""
    volumes = np.array([f.volumes_ml[index] for f in facts if f.volumes_ml[index] > 0])
    some = volumes if len(volumes) else np.zeros(1)
    return LabelFacts(
        name=name,
        cases=len(volumes),
        slices=sum(f.label_slices[index] for f in facts),
        volume_median_ml=float(np.median(some)),
        volume_min_ml=float(some.min()),
        volume_max_ml=float(some.max()),
    )


def _two(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _three(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def describe(fingerprint: Fingerprint) -> list[tuple[str, str]]:
    """Return the fingerprint as rows of name and value for display."""
    f, i = fingerprint, fingerprint.intensity
    rows = [
        ("cases", f"{f.cases} of {f.patients} patients"),
        ("voxel size", f"{_by(f.spacing_median)} mm ({_by(f.spacing_min)} to {_by(f.spacing_max)})"),
        ("slices", f"{f.slices_median:g} ({f.slices_min} to {f.slices_max})"),
        ("body, width x depth", f"{_by(f.body_median_mm, 0)} mm (at most {_by(f.body_max_mm, 0)})"),
        ("frame", f"{f.fov_mm:.0f} mm square holds every body"),
        (
            "labeled voxels",
            f"mean {i.mean:.1f} HU, sd {i.sd:.1f}, median {i.median:g}, {i.minimum:g} to {i.maximum:g}",
        ),
        (
            "clipped to",
            f"{i.low:g} to {i.high:g} HU ({i.percentiles[0]:g} and {i.percentiles[1]:g} percentile)",
        ),
    ]
    if f.tissue is not None:
        gas, bone = 100 * f.tissue.gas_max, 100 * f.tissue.bone_max
        rows.append(("body", f"at most {gas:.0f} % gas or lung, {bone:.0f} % bone or as bright"))
    for label in f.labels:
        value = (
            f"{label.cases} cases, {label.slices} slices, {label.volume_median_ml:.1f} ml "
            f"({label.volume_min_ml:.1f} to {label.volume_max_ml:.1f})"
        )
        rows.append((label.name, value if label.cases else "in no case"))
    return rows


def _by(values: Sequence[float], digits: int = 2) -> str:
    return " x ".join(f"{value:.{digits}f}" for value in values)
