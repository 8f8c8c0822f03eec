"""The pose and crop of one scan, with their confidence."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from isopose.geometry.pose import ANGLE, LOG_SCALE_X, POSE_SIZES
from isopose.models.pose import POSE_SOURCES
from isopose.scan.aggregate import common_values
from isopose.strict import STRICT

#: Agreement with the reference's outline up to which a slice has no weight for size and center.
MIN_AGREEMENT = 0.5


def agreement_weight(agreement: Tensor) -> Tensor:
    """Return the weights ``(N,)`` of slices for size and center, from their agreement ``(N,)``."""
    return (agreement - MIN_AGREEMENT).clamp(min=1e-3)


@dataclass(frozen=True)
class RollDecision:
    """The roll that the slices of a scan show, and whether it overrides the file's header.

    Args:
        shown_degrees: roll that the slices show together, from +x to +y, against the file's header.
        odds: that the slices show the roll: alone or given the header, whichever is less.
        needed_odds: smallest odds at which the slices override the header.
        header_kept: True if the odds are lower, so that the scan keeps the header's roll.
        outline_visible: False if the scan shows no outline of a body, so that it keeps its size as well.
    """

    shown_degrees: float
    odds: float
    needed_odds: float
    header_kept: bool
    outline_visible: bool
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(kw_only=True)
class ScanPose:
    """The pose and crop of one scan: a row for each of its slices, or one row for a whole volume.

    Slices are those of the reoriented volume, from the feet. A slice without a body has NaN and source -1.

    Args:
        pose: ``(z, 5)``, or ``(1, 9)`` of a volume, see :mod:`isopose.geometry.pose`.
        agreement: ``(z,)`` Eq. 1 of the outline with the reference's.
        source: ``(z,)`` index into :data:`isopose.models.pose.POSE_SOURCES`, -1 where there is no body.
        confidence: ``(z,)`` probability that the roll is right within 6 degrees; without the roll network the
            agreement; 1 where a person set the pose.
        mirrored: ``(z,)`` logit that the scan is mirrored.
        theta2: ``(z, 3, 3)`` or ``(1, 4, 4)``, homogenized from crop.
        widened: ``(z,)`` True where the crop cut a structure and a larger one was used instead.
        cut_off: ``(z,)`` True where the segmentation still touches the crop's border.
        decision: whether the slices' roll overrides the header; None where it comes from outlines or STN1.
    """

    pose: np.ndarray
    agreement: np.ndarray
    source: np.ndarray
    confidence: np.ndarray
    mirrored: np.ndarray
    theta2: np.ndarray
    widened: np.ndarray
    cut_off: np.ndarray
    decision: RollDecision | None = None

    @classmethod
    def empty(cls, rows: int, dims: int = 2) -> "ScanPose":
        """Return the pose of a scan without a body in any slice.

        Args:
            rows: number of slices; 1 for a volume.
            dims: 2 for slices, 3 for a volume.
        """

        def nans(*shape: int) -> np.ndarray:
            return np.full((rows, *shape), np.nan, np.float32)

        return cls(
            pose=nans(POSE_SIZES[dims]),
            agreement=nans(),
            source=np.full(rows, -1, np.int64),
            confidence=nans(),
            mirrored=nans(),
            theta2=nans(dims + 1, dims + 1),
            widened=np.zeros(rows, bool),
            cut_off=np.zeros(rows, bool),
        )

    @property
    def has_body(self) -> np.ndarray:
        """``(z,)`` booleans: which rows have a body."""
        return self.source >= 0

    @property
    def roll(self) -> float:
        """Circular median of the slices' roll, radians in (-pi, pi]; 0 without a body."""
        angle = self.pose[self.has_body, ANGLE].astype(np.float64)
        if not len(angle):
            return 0.0
        # Taken around the mean direction: near half a turn some angles are +pi and some -pi.
        mean = np.angle(np.exp(1j * angle).sum())
        median = mean + np.median(np.angle(np.exp(1j * (angle - mean))))
        return float(np.angle(np.exp(1j * median)))

    def common_pose(self) -> np.ndarray:
        """Return one pose ``(5,)`` for all slices: weighted mean of the roll, weighted medians of the rest.

        The weight of a slice grows with its agreement.
        """
        pose = torch.from_numpy(self.pose[self.has_body])
        weight = agreement_weight(torch.from_numpy(self.agreement[self.has_body]))
        angle = torch.atan2((weight * pose[:, ANGLE].sin()).sum(), (weight * pose[:, ANGLE].cos()).sum())
        return torch.cat([angle[None], common_values(pose[:, LOG_SCALE_X:], weight)]).numpy()

    def source_of(self, row: int) -> str | None:
        """Return where a row's pose came from, one of ``POSE_SOURCES``; None without a body."""
        return POSE_SOURCES[self.source[row]] if self.source[row] >= 0 else None
