"""Overlap, surface agreement and volumes of one structure in one scan, in 3D on the native grid."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from isopose.errors import InputError

#: Distance in mm up to which two surfaces count as the same in the surface Dice.
SURFACE_TOLERANCE_MM = 2.0

#: Percentile of the surface distances that HD95 reports.
HAUSDORFF_PERCENTILE = 95.0

ScoreOutcome = Literal["scored", "missed", "false alarm", "empty"]


@dataclass(frozen=True)
class Metric:
    """How a score is named and shown.

    Args:
        title: its heading, with the unit.
        digits: decimals that are shown.
        lower_is_better: whether lower values are better.
    """

    title: str
    digits: int
    lower_is_better: bool = False


#: By the name of a field of :class:`Scores`, the deciding one first; tables and comparisons follow these.
METRICS: Mapping[str, Metric] = {
    "dice": Metric("Dice", 3),
    "surface_dice": Metric("Surface Dice", 3),
    "hd95_mm": Metric("HD95 (mm)", 1, lower_is_better=True),
}


@dataclass(frozen=True)
class Scores:
    """Scores of one structure in one scan; ``None`` means that no value exists, never a hidden zero.

    Which values exist depends on which masks are empty:

    =================  ==================  ====  ============  ======
    ground truth       prediction          Dice  surface Dice  HD95
    =================  ==================  ====  ============  ======
    not empty          not empty (scored)  yes   yes           yes
    not empty          empty (missed)      0     0             none
    empty              not empty (false    0     0             none
                       alarm)
    empty              empty (empty)       none  none          none
    =================  ==================  ====  ============  ======

    Two empty masks say nothing about an outline: they are excluded from means and counted separately.
    With one mask empty the surface distance is infinite; HD95 has no value then, and tables count the case as
    missed or as a false alarm beside their means. A partly labeled scan has no surface scores.

    Args:
        dice: ``2 |P and T| / (|P| + |T|)`` by voxels, 0 to 1.
        surface_dice: the part of both surfaces, by area, that lies within the tolerance of the other, 0 to 1
            (Nikolov et al., arXiv:1809.04430).
        hd95_mm: the larger of the two directed 95th percentiles of the distances between boundary voxels.
        prediction_ml: volume of the prediction in ml.
        truth_ml: volume of the ground truth in ml.
    """

    dice: float | None
    surface_dice: float | None
    hd95_mm: float | None
    prediction_ml: float
    truth_ml: float

    @property
    def outcome(self) -> ScoreOutcome:
        """Which row of the table above applies."""
        if self.truth_ml > 0:
            return "scored" if self.prediction_ml > 0 else "missed"
        return "false alarm" if self.prediction_ml > 0 else "empty"


def score(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_zyx: Sequence[float] | np.ndarray,
    tolerance_mm: float | None = SURFACE_TOLERANCE_MM,
) -> Scores:
    """Score one mask against its ground truth.

    Surfaces are MONAI's. For the surface Dice they run between voxel centers and are weighted by their area
    (as in DeepMind's ``surface-distance``); for HD95 they are the mask's boundary voxels, unweighted. Where a
    mask reaches the edge of the volume, that edge is part of its surface. The grid may be anisotropic.

    Args:
        prediction: bool, ``(z, y, x)``.
        truth: bool, the same shape.
        spacing_zyx: voxel size along ``(z, y, x)`` in mm.
        tolerance_mm: tolerance of the surface Dice in mm; None: no surface scores.

    Raises:
        InputError: masks of different shapes or not three-dimensional, a voxel size that is not positive, or
            a negative tolerance.
    """
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise InputError(f"expected two volumes on one grid, got shapes {prediction.shape} and {truth.shape}")
    spacing = tuple(float(length) for length in spacing_zyx)
    if len(spacing) != 3 or not all(np.isfinite(length) and length > 0 for length in spacing):
        raise InputError(f"expected three positive voxel sizes in mm, got {spacing}")
    if tolerance_mm is not None and not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError(f"expected a surface tolerance of 0 mm or more, got {tolerance_mm}")
    prediction, truth = prediction.astype(bool, copy=False), truth.astype(bool, copy=False)
    box = joint_box(prediction, truth)
    if box is None:
        return Scores(None, None, None, 0.0, 0.0)
    # Distances are between the two surfaces alone, so the volume around them costs time and changes nothing.
    prediction, truth = prediction[box], truth[box]
    voxel_ml = float(np.prod(spacing)) / 1000.0
    predicted_voxels, true_voxels = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    volumes = predicted_voxels * voxel_ml, true_voxels * voxel_ml
    if not predicted_voxels or not true_voxels:
        return Scores(0.0, None if tolerance_mm is None else 0.0, None, *volumes)
    dice = 2.0 * int(np.count_nonzero(prediction & truth)) / (predicted_voxels + true_voxels)
    if tolerance_mm is None:
        return Scores(dice, None, None, *volumes)
    return Scores(dice, *_surface_scores(prediction, truth, spacing, tolerance_mm), *volumes)


def joint_box(a: np.ndarray, b: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the smallest box around the nonzero voxels of two arrays; ``None`` if there are none."""
    bounds = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(a.any(axis=others) | b.any(axis=others))
        if used.size == 0:
            return None
        bounds.append(slice(int(used[0]), int(used[-1]) + 1))
    return bounds[0], bounds[1], bounds[2]


def _surface_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance_mm: float
) -> tuple[float, float]:
    """Return surface Dice and HD95 (mm) of two non-empty masks."""
    # Imported here: MONAI takes seconds to import.
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    # MONAI 1.6 warns about a call in its own code; users cannot do anything about it.
    warnings.filterwarnings("ignore", message=".*get_mask_edges.*", category=FutureWarning)
    # A rim of background closes surfaces at the border; MONAI's two functions treat the border differently.
    p, t = (torch.from_numpy(np.pad(mask, 2))[None, None] for mask in (prediction, truth))
    surface_dice = compute_surface_dice(
        p, t, [tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True
    )
    hausdorff = compute_hausdorff_distance(
        p, t, include_background=True, percentile=HAUSDORFF_PERCENTILE, spacing=spacing
    )
    return float(surface_dice), float(hausdorff)
