"""The fingerprint of the training cases: grid and body sizes, tissue, labels, intensities of each channel.

Intensities of CT follow nnU-Net v2 (``DatasetFingerprintExtractor``): statistics of the raw values of labeled
voxels, with the same weight for each case. nnU-Net samples equally many voxels of each
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

from isopose.choices import Plane
from isopose.data.body import body_box
from isopose.data.drawn import classes_of, structures
from isopose.data.modality import find_body, modality_of
from isopose.data.normalization import (
    Channel,
    Intensity,
    LabeledValues,
    Scaling,
    Window,
    labeled_values,
    normalizations_of,
    pose_channel_of,
    scale_of_scan,
    scaling_of,
)
from isopose.data.plane import DIRECTIONS, EXTENT_NAMES, mask_in_plane
from isopose.data.tissue import Tissue, UsualTissue, tissue_of, usual_tissue
from isopose.devices import one_thread
from isopose.errors import InputError
from isopose.io.cases import CT, Case
from isopose.io.channels import read_channels
from isopose.io.images import read_labels
from isopose.io.masks import read_mask
from isopose.isolation import Failed
from isopose.labels import IGNORED, Labels
from isopose.parallel import Progress, all_of, attempts
from isopose.settings import DataConfig
from isopose.strict import STRICT, Count, first_problem

#: Margin of the frame around the largest body's box, as a fraction of the box's side.
FRAME_MARGIN = 0.04

Positive = Annotated[float, Field(gt=0)]


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
        slices_median: median number of slices.
        slices_min: fewest slices.
        slices_max: most slices.
        channels: names and normalization of the scans' channels, in the dataset's order.
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
    channels: Annotated[tuple[Channel, ...], Field(min_length=1)]
    body_median_mm: tuple[Positive, Positive]
    body_max_mm: tuple[Positive, Positive]
    fov_mm: Positive
    labels: tuple[LabelFacts, ...]
    tissue: UsualTissue | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as values that JSON represents exactly."""
        return _ADAPTER.dump_python(self, mode="json")

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        return tuple(channel.name for channel in self.channels)

    def pose_scale(self, config: DataConfig) -> Scaling:
        """Return how the channel that shows body and pose is normalized."""
        return self.channels[pose_channel_of(config, self.channel_names)].scale

    @classmethod
    def from_json(cls, values: Any, where: str = "fingerprint") -> "Fingerprint":
        """Read a fingerprint from JSON values, the inverse of :meth:`to_json`.

        Raises:
            InputError: a key is missing or unknown, or a value has another type or is out of range.
        """
        if isinstance(values, dict) and "intensity" in values:
            # Written by a version that supported only CT.
            values = {**values, "channels": [{"name": CT[0], "scale": values["intensity"]}]}
            del values["intensity"]
        try:
            fingerprint = _ADAPTER.validate_json(json.dumps(values))
        except ValidationError as error:
            raise InputError(
                f"{where}: {first_problem(error)}; the file is damaged or of another version"
            ) from None
        for channel in fingerprint.channels:
            scale = channel.scale
            low, high = (scale.low, scale.high) if isinstance(scale, Intensity) else (scale.air, scale.top)
            if not low <= high:
                raise InputError(f"{where}: channel {channel.name}: low is above high; the file is damaged")
        return fingerprint


_ADAPTER = TypeAdapter(Fingerprint)


@dataclass(frozen=True)
class CaseFacts:
    """Facts of one case, from which the fingerprint is computed.

    Args:
        patient: identifier of the patient, of whom there may be several cases.
        spacing: voxel size along ``(x, y, z)`` of the reoriented volume, mm.
        slices: number of slices.
        body_mm: sides ``(x, y)`` of the body's in-plane box, mm.
        channels: for each channel the values of its labeled voxels, or, if it is normalized by scan, the
            scan's own scale.
        volumes_ml: volume of each label in ml, in class order; 0 if the case does not have it.
        label_slices: number of slices that show each label, in class order.
        tissue: composition of the body; None in MR, whose values do not identify tissue.
        ignored: fraction of voxels that were not annotated.
        undrawn: number of slices without any annotated voxel.
    """

    patient: str
    spacing: tuple[float, float, float]
    slices: int
    body_mm: tuple[float, float]
    channels: tuple[LabeledValues | Window, ...]
    volumes_ml: tuple[float, ...]
    label_slices: tuple[int, ...]
    tissue: Tissue | None
    ignored: float = 0.0
    undrawn: int = 0


def fingerprint_of(
    cases: Sequence[Case],
    labels: Labels,
    config: DataConfig,
    workers: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    channels: Sequence[str] = CT,
) -> Fingerprint:
    """Read every training case once and compute the fingerprint.

    Args:
        cases: training cases only, each with a label file.
        labels: names and stored values.
        config: percentiles and the body's threshold.
        workers: processes; the result does not depend on their number.
        progress: called with the numbers of cases done and of all cases.
        say: called with a line for each case that cannot be used.
        channels: names of the dataset's channels.

    Raises:
        InputError: no case, or unusable cases, after all were read.
    """
    if not cases:
        raise InputError("fingerprint: expected at least one training case, got none")
    work = partial(case_facts, labels=labels, config=config, channels=channels)
    facts = all_of(work, cases, name=attrgetter("id"), workers=workers, progress=progress, say=say)
    return reduce_facts(facts, labels, config, channels)


def facts_of(
    cases: Sequence[Case],
    labels: Labels,
    config: DataConfig,
    workers: int = 0,
    progress: Progress | None = None,
    channels: Sequence[str] = CT,
) -> Iterator[CaseFacts | Failed]:
    """Yield the facts of each case, or its failure if it is unusable; see :func:`fingerprint_of`."""
    work = partial(case_facts, labels=labels, config=config, channels=channels)
    return attempts(work, cases, name=attrgetter("id"), workers=workers, progress=progress)


@one_thread()
def case_facts(case: Case, labels: Labels, config: DataConfig, channels: Sequence[str] = CT) -> CaseFacts:
    """Read one case and measure it.

    Raises:
        InputError: no label file, unreadable files, another grid, an unknown label, no body, or a channel
            that cannot be normalized.
    """
    if case.label is None:
        raise InputError("expected a label file for a training case, got none")
    modality = modality_of(config, channels)
    volumes = read_channels(case.images, channels, modality=modality)
    volume = volumes[pose_channel_of(config, channels)]
    stored = read_labels(case.label, like=volume)
    own_mask = None if case.mask is None else volume.reorientation().apply(read_mask(case.mask, volume))
    reoriented = volume.reoriented()
    classes = classes_of(stored.reoriented(config.plane).array, labels, config.undrawn)
    body = find_body(reoriented, config, modality) if own_mask is None else own_mask
    tissue = tissue_of(reoriented, body) if modality == "ct" else None
    body, volume = mask_in_plane(body, volume, config.plane), volume.reoriented(config.plane)
    x0, y0, x1, y1 = body_box(body, volume.spacing)
    marked = structures(classes)
    milliliter = float(np.prod(volume.spacing)) / 1000.0
    inside = [classes == index for index in range(1, labels.classes)]
    return CaseFacts(
        patient=case.patient,
        spacing=tuple(volume.spacing.tolist()),
        slices=volume.array.shape[0],
        body_mm=(x1 - x0, y1 - y0),
        channels=tuple(
            labeled_values(array[marked])
            if method == "ct"
            else scale_of_scan(method, config.clip_percentiles, array, body)
            for method, array in zip(
                normalizations_of(config, channels),
                (v.reoriented(config.plane).array for v in volumes),
                strict=True,
            )
        ),
        volumes_ml=tuple(float(np.count_nonzero(mask)) * milliliter for mask in inside),
        label_slices=tuple(int(mask.any(axis=(1, 2)).sum()) for mask in inside),
        tissue=tissue,
        ignored=float((classes == IGNORED).mean()),
        undrawn=int((classes == IGNORED).all(axis=(1, 2)).sum()),
    )


def reduce_facts(
    facts: Sequence[CaseFacts], labels: Labels, config: DataConfig, channels: Sequence[str] = CT
) -> Fingerprint:
    """Combine the facts of cases, in their order, into a fingerprint.

    Raises:
        InputError: no case has a labeled voxel.
    """
    spacing = np.array([f.spacing for f in facts])
    slices = np.array([f.slices for f in facts])
    body = np.array([f.body_mm for f in facts])
    tissues = [f.tissue for f in facts if f.tissue is not None]
    return Fingerprint(
        cases=len(facts),
        patients=len({f.patient for f in facts}),
        spacing_median=tuple(np.median(spacing, axis=0).tolist()),
        spacing_min=tuple(spacing.min(axis=0).tolist()),
        spacing_max=tuple(spacing.max(axis=0).tolist()),
        slices_median=float(np.median(slices)),
        slices_min=int(slices.min()),
        slices_max=int(slices.max()),
        channels=tuple(
            Channel(name, scaling_of(method, [f.channels[number] for f in facts], config.clip_percentiles))
            for number, (name, method) in enumerate(
                zip(channels, normalizations_of(config, channels), strict=True)
            )
        ),
        body_median_mm=tuple(np.median(body, axis=0).tolist()),
        body_max_mm=tuple(body.max(axis=0).tolist()),
        fov_mm=float(body.max() * (1.0 + FRAME_MARGIN)),
        labels=tuple(_label(name, index, facts) for index, name in enumerate(labels.names)),
        tissue=usual_tissue(tissues) if tissues else None,
    )


def ignored_of(facts: Sequence[CaseFacts]) -> dict[str, float]:
    """Return how much of the cases was not annotated; empty if every voxel was.

    Returns:
        ``voxels``, the fraction of voxels that were not annotated, averaged over cases; ``slices``, the
        number of slices without any annotated voxel; ``of_slices``, the number of all slices.
    """
    if not any(f.ignored for f in facts):
        return {}
    return {
        "voxels": float(np.mean([f.ignored for f in facts])),
        "slices": sum(f.undrawn for f in facts),
        "of_slices": sum(f.slices for f in facts),
    }


def _label(name: str, index: int, facts: Sequence[CaseFacts]) -> LabelFacts:
    """Compute the statistics of one label."""
    volumes = np.array([f.volumes_ml[index] for f in facts if f.volumes_ml[index] > 0])
    volumes_or_zero = volumes if len(volumes) else np.zeros(1)
    return LabelFacts(
        name=name,
        cases=len(volumes),
        slices=sum(f.label_slices[index] for f in facts),
        volume_median_ml=float(np.median(volumes_or_zero)),
        volume_min_ml=float(volumes_or_zero.min()),
        volume_max_ml=float(volumes_or_zero.max()),
    )


def describe(fingerprint: Fingerprint, plane: Plane = "axial") -> list[tuple[str, str]]:
    """Return the fingerprint as rows of name and value, for display.

    Args:
        fingerprint: what is described.
        plane: plane of the slices, which names the two directions of a body's size.
    """
    f = fingerprint
    rows = [
        ("cases", f"{f.cases} of {f.patients} patients"),
        ("voxel size", f"{_times(f.spacing_median)} mm ({_times(f.spacing_min)} to {_times(f.spacing_max)})"),
        ("slices", f"{f.slices_median:g} ({f.slices_min} to {f.slices_max})"),
        (
            f"body, {' x '.join(EXTENT_NAMES[direction] for direction in DIRECTIONS[plane])}",
            f"{_times(f.body_median_mm, 0)} mm (at most {_times(f.body_max_mm, 0)})",
        ),
        ("frame", f"{f.fov_mm:.0f} mm square holds every body"),
    ]
    for channel in f.channels:
        suffix = "" if f.channels == (channel,) else f", {channel.name}"
        rows += [(f"{name}{suffix}", value) for name, value in _normalization_rows(channel.scale)]
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


def _normalization_rows(scale: Scaling) -> list[tuple[str, str]]:
    """Return rows of name and value of a channel's normalization."""
    low, high = scale.percentiles
    if isinstance(scale, Intensity):
        span = f"{scale.minimum:g} to {scale.maximum:g}"
        return [
            (
                "labeled voxels",
                f"mean {scale.mean:.1f} HU, sd {scale.sd:.1f}, median {scale.median:g}, {span}",
            ),
            ("clipped to", f"{scale.low:g} to {scale.high:g} HU ({low:g} and {high:g} percentile)"),
        ]
    if scale.method == "raw":
        return [("normalization", f"values as they are, {scale.air:g} to {scale.top:g}")]
    return [("normalization", f"z-score of each scan's body, clipped to its {low:g} and {high:g} percentile")]


def _times(values: Sequence[float], digits: int = 2) -> str:
    return " x ".join(f"{value:.{digits}f}" for value in values)
