"""Poses and crops set by hand, as training targets."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from isopose.data.samples import Slices
from isopose.geometry.frame import Frame
from isopose.geometry.pose import POSE_SIZE
from isopose.scan.correction import Correction

Corrections = Mapping[str, Correction]


def manual_poses(slices: Slices, corrections: Corrections, reference_mask: Tensor) -> Tensor:
    """Return the poses ``(N, 5)`` set by hand; NaN for other rows.

    Args:
        slices: rows of any cases.
        corrections: by the hash of a case's image.
        reference_mask: ``(1, 1, S, S)``, the reference to which the poses bring the slices.
    """
    out = torch.full((len(slices), POSE_SIZE), torch.nan)
    for rows, correction, frame in _corrected(slices, corrections):
        poses = correction.poses_at(slices.rows[rows, 1], frame, reference_mask)
        if poses is not None:
            out[rows] = poses
    return out


def manual_crops(slices: Slices, corrections: Corrections, reference_mask: Tensor) -> Tensor:
    """Return the crops ``(N, 3, 3)`` set by hand, in the rows' known poses; NaN for other rows."""
    assert slices.pose is not None, "crops follow poses"
    out = torch.full((len(slices), 3, 3), torch.nan)
    for rows, correction, _ in _corrected(slices, corrections):
        theta2 = correction.crops_at(slices.rows[rows, 1], slices.pose[rows], reference_mask)
        if theta2 is not None:
            out[rows] = theta2
    return out


def override(manual: Tensor, estimated: Tensor | None) -> Tensor:
    """Return the values set by hand, and the estimated ones elsewhere."""
    assert estimated is not None, "corrections replace estimated values"
    return torch.where(manual.isfinite(), manual, estimated)


def count_corrected(slices: Slices, corrections: Corrections) -> int:
    """Return how many cases have a correction."""
    return sum(case.record.sources["image"] in corrections for case in slices.cases)


def _corrected(slices: Slices, corrections: Corrections) -> Iterator[tuple[np.ndarray, Correction, Frame]]:
    for number, case in enumerate(slices.cases):
        correction = corrections.get(case.record.sources["image"])
        if correction is not None:
            yield np.flatnonzero(slices.rows[:, 0] == number), correction, case.record.frame
