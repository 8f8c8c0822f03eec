"""Stack the frames of one series: sort them and fit a regular grid to their positions."""

from pathlib import Path

import numpy as np

from isopose.errors import InputError
from isopose.geometry.volume import SHEAR_TOLERANCE
from isopose.io.dicom_frames import DicomFrame

#: Tolerance of slice distances. Positions are often rounded to 0.1 mm or jitter by some hundredths; 1 % of
#: the distance of thick slices is tolerated as well. For thin slices the tolerance stays below 0.4 of the
#: distance, so that a missing slice is always noticed.
_ROUNDING_MM, _UNEVEN_SHARE, _THIN_SHARE = 0.1, 0.01, 0.4
#: Margin for rounded values that have no exact binary representation.
_SLACK_MM = 1e-3
#: Slices closer than this, or than this share of the usual distance, are at one position.
_DUPLICATE_MM, _DUPLICATE_SHARE = 0.02, 0.2
#: Tolerated deviation of direction cosines from their mean: 0.5 mm at the edge of a large slice.
_DIRECTION_TOLERANCE = 2e-3
#: Orientations and positions that deviate less than this are used unchanged.
_EXACT, _EXACT_MM = 1e-9, 1e-3


def series_prefix(path: Path, frame: DicomFrame) -> str:
    """Return the beginning of messages: the path and the series number."""
    return f"{path}: series {frame.number}" if frame.number else f"{path}: the series"


def sorted_frames(path: Path, frames: list[DicomFrame]) -> list[DicomFrame]:
    """Sort frames of one kind by their position along the slice normal.

    Raises:
        InputError: the frames differ in size, pixel size or orientation, or cannot be rescaled to HU.
    """
    first = frames[0]
    where = series_prefix(path, first)
    for property_name, values in (
        ("image size", {f"{f.size[1]} x {f.size[0]}" for f in frames}),
        ("modality", {f.modality for f in frames}),
    ):
        if len(values) > 1:
            raise InputError(
                f"{where} mixes images of differing {property_name} ({', '.join(sorted(values))}); "
                "separate them"
            )
    if max(np.abs(np.subtract(f.spacing, first.spacing)).max() for f in frames) > 1e-3 * min(first.spacing):
        raise InputError(f"{where} mixes images of differing pixel size; separate them")
    mean = np.mean([f.axes for f in frames], axis=0)
    if max(np.abs(f.axes - mean).max() for f in frames) > _DIRECTION_TOLERANCE:
        raise InputError(f"{where} mixes images of differing orientation; separate them")
    if not all(f.gray for f in frames):
        raise InputError(f"{where} holds color or inverted images, expected gray values (MONOCHROME2)")
    unusable = next((f.unusable for f in frames if f.unusable), "")
    if unusable:
        raise InputError(f"{where} has {first.modality} images {unusable}; export the original series")
    normal = np.cross(*_axes(frames))
    return sorted(frames, key=lambda f: float(f.position @ normal))


def _axes(frames: list[DicomFrame]) -> np.ndarray:
    """Return the ``(2, 3)`` unit vectors of all slices.

    They are the common ones, or the orthogonal pair nearest to their mean.
    """
    axes = np.stack([f.axes for f in frames])
    if np.abs(axes - axes[0]).max() <= _EXACT:
        return frames[0].axes
    left, _, right = np.linalg.svd(axes.mean(axis=0), full_matrices=False)
    return left @ right


def lps_from_index_of(path: Path, frames: list[DicomFrame]) -> np.ndarray:
    """Return the ``(4, 4)`` matrix ``lps_from_index`` of sorted frames that form a regular stack.

    If the positions deviate from a straight line, spacing and origin are those of a line fitted to all of
    them.

    Raises:
        InputError: duplicate, missing or unevenly spaced slices; gantry tilt.
    """
    first, axes = frames[0], _axes(frames)
    normal = np.cross(axes[0], axes[1])
    matrix = np.eye(4)
    matrix[:3, 0] = axes[0] * first.spacing[0]
    matrix[:3, 1] = axes[1] * first.spacing[1]
    matrix[:3, 2] = normal * (first.thickness or 1.0)
    matrix[:3, 3] = first.position
    if len(frames) == 1:
        return matrix
    positions = np.stack([f.position for f in frames])
    distance = _slice_distance(path, frames, normal)
    where, index = series_prefix(path, first), np.arange(len(frames))[:, None]
    line = (positions[-1] - positions[0]) / (len(frames) - 1)
    sideways_mm = float(np.linalg.norm(np.cross(line, normal)))
    tilt = min(1.0, sideways_mm / float(np.linalg.norm(line)))
    rounding = np.sqrt(3) * _ROUNDING_MM  # of all three coordinates
    if tilt > SHEAR_TOLERANCE and sideways_mm * (len(frames) - 1) > rounding:
        raise InputError(
            f"{where} was scanned with a tilted gantry ({np.degrees(np.arcsin(tilt)):.1f} degrees), so "
            "its slices do not stack at right angles; resample it to a rectangular grid first"
        )
    deviation_mm = np.linalg.norm(positions - positions[0] - index * line, axis=1).max()
    if deviation_mm > max(0.5 * min(first.spacing), rounding, _UNEVEN_SHARE * distance):
        raise InputError(
            f"{where}: slices are shifted against each other by up to {deviation_mm:.2f} mm; separate them"
        )
    if deviation_mm > _EXACT_MM:
        line, matrix[:3, 3] = np.polyfit(index[:, 0], positions, 1)
    matrix[:3, 2] = normal * (line @ normal)
    return matrix


def _slice_distance(path: Path, frames: list[DicomFrame], normal: np.ndarray) -> float:
    """Return the median distance of neighboring slices in mm, after checking that all distances agree.

    Raises:
        InputError: duplicate, missing or unevenly spaced slices.
    """
    along = np.array([frame.position @ normal for frame in frames])
    where, steps = series_prefix(path, frames[0]), np.diff(along)
    median = float(np.median(steps))
    duplicates = np.flatnonzero(steps < max(_DUPLICATE_MM, _DUPLICATE_SHARE * median))
    if duplicates.size:
        lower, upper = frames[duplicates[0]], frames[duplicates[0] + 1]
        if lower.path == upper.path:
            pair = f"frames {lower.index + 1} and {upper.index + 1} of {lower.path.name}"
        else:
            pair = f"{lower.path.name} and {upper.path.name}"
        raise InputError(
            f"{where} has several slices at one position, e.g. {pair} "
            f"({duplicates.size} too many); copies, phases or reconstructions must go into a folder each"
        )
    # Each coordinate is rounded; for axial slices only z matters.
    rounding = _ROUNDING_MM * np.abs(normal).sum() + _SLACK_MM
    allowed = max(_UNEVEN_SHARE * median, min(rounding, _THIN_SHARE * median))
    uneven = np.flatnonzero(np.abs(steps - median) > allowed)
    if uneven.size:
        at = uneven[0]
        missing = int(np.rint(steps / median - 1)[uneven].clip(0).sum())
        problem = f"slices are missing (about {missing})" if missing else "the slices are unevenly spaced"
        raise InputError(
            f"{where}: {problem}, e.g. {steps[at]:.2f} mm between {along[at]:.2f} and {along[at + 1]:.2f} mm "
            f"where {median:.2f} mm is usual; export the whole series, or resample it to even spacing"
        )
    return median
