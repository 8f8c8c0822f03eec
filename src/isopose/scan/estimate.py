"""The poses of a scan's slices and what is doubtful about them: for prediction and for homogenizing alike."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from isopose.config import PredictConfig
from isopose.data.preprocess import Prepared
from isopose.geometry.box import carried
from isopose.geometry.pose import ANGLE, LOG_SCALE_X, matrix_from_pose
from isopose.models.pipeline import Networks, SliceTransforms
from isopose.models.pose import BY_HAND, POSE_SOURCES, PoseTransformer, SlicePoses
from isopose.scan.aggregate import common_values
from isopose.scan.correction import Correction
from isopose.scan.poses import LEAST_AGREEMENT, MIRRORED, TURNED, scan_poses, scan_transforms, slice_poses


@dataclass(kw_only=True)
class PoseRecords:
    """Poses of the slices of a reoriented volume, feet to head; NaN where no body is.

    Args:
        pose: ``(z, 5)``.
        agreement: ``(z,)`` with the reference's outline.
        pose_source: ``(z,)`` index into ``POSE_SOURCES``, -1 where no body is.
        confidence: ``(z,)`` probability that the roll is right, see ``scan/poses.py: confidence``; 1 where
            it was set by hand.
        mirrored: ``(z,)`` logit that the slice is shown as in a mirror.
    """

    pose: np.ndarray
    agreement: np.ndarray
    pose_source: np.ndarray
    confidence: np.ndarray
    mirrored: np.ndarray

    @classmethod
    def empty(cls, slices: int) -> Self:
        """Records of so many slices without a body."""
        return cls(
            pose=np.full((slices, 5), np.nan, np.float32),
            agreement=np.full(slices, np.nan, np.float32),
            pose_source=np.full(slices, -1, np.int64),
            confidence=np.full(slices, np.nan, np.float32),
            mirrored=np.full(slices, np.nan, np.float32),
        )

    @property
    def shown(self) -> np.ndarray:
        """``(z,)`` booleans: which slices show a body."""
        return self.pose_source >= 0

    @property
    def roll(self) -> float:
        """Middle of the angles by which the slices lean, radians in (-pi, pi]."""
        angle = self.pose[self.shown, ANGLE].astype(np.float64)
        if not len(angle):
            return 0.0
        # Around their mean direction: near half a turn some lie at +pi and some at -pi.
        mean = np.angle(np.exp(1j * angle).sum())
        middle = mean + np.median(np.angle(np.exp(1j * (angle - mean))))
        return float(np.angle(np.exp(1j * middle)))

    def common_pose(self) -> np.ndarray:
        """``(5,)`` what the slices have in common, those whose outline fits better counting more."""
        pose = torch.from_numpy(self.pose[self.shown])
        weight = (torch.from_numpy(self.agreement[self.shown]) - LEAST_AGREEMENT).clamp(min=1e-3)
        angle = torch.atan2((weight * pose[:, ANGLE].sin()).sum(), (weight * pose[:, ANGLE].cos()).sum())
        return torch.cat([angle[None], common_values(pose[:, LOG_SCALE_X:], weight)]).numpy()


def batches_of(prepared: Prepared, size: int) -> list[np.ndarray]:
    """Indices of the slices that show a body, so many at a time."""
    shown = np.flatnonzero(prepared.mask.any(axis=(1, 2)))
    return [shown[first : first + size] for first in range(0, len(shown), size)]


def frames(prepared: Prepared, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Image and mask ``(N, 1, S, S)`` of some slices."""
    image = torch.from_numpy(prepared.image[rows])[:, None].to(device)
    mask = torch.from_numpy(prepared.mask[rows])[:, None].float().to(device)
    return image, mask


def find_poses(
    transformer: PoseTransformer,
    prepared: Prepared,
    batches: list[np.ndarray],
    settings: PredictConfig,
    records: PoseRecords,
    correction: Correction | None = None,
) -> SlicePoses | None:
    """Estimate the poses of a scan's slices and write them down.

    Args:
        transformer: STN1; its own ``config.per`` says whether the slices share a pose.
        prepared: the scan.
        batches: see :func:`batches_of`; none is no body.
        settings: agreement from which a pose is believed.
        records: of as many slices as the scan has.
        correction: what a person set takes the place of what was found.

    Returns:
        What each slice says by itself; none where no slice shows a body.
    """
    if not batches:
        return None
    device, least = transformer.reference_mask.device, settings.min_pose_dice
    slices = slice_poses(transformer, lambda rows: frames(prepared, rows, device), batches, least)
    rows = np.concatenate(batches)
    found = scan_poses(transformer, slices, torch.from_numpy(rows * prepared.spacing[2]).to(device))
    records.pose[rows] = found.pose.cpu()
    records.confidence[rows] = found.confidence.cpu()
    records.mirrored[rows] = slices.mirrored.cpu()
    records.pose_source[rows] = slices.source.cpu()
    by_hand = correction and correction.poses_at(rows, prepared.frame, transformer.reference_mask)
    if by_hand is not None:
        records.pose[rows], records.confidence[rows], records.pose_source[rows] = by_hand, 1.0, BY_HAND
    _agree(transformer, prepared, batches, records)
    return slices


def find_crops(
    pipeline: Networks,
    prepared: Prepared,
    batches: list[np.ndarray],
    records: PoseRecords,
    correction: Correction | None = None,
) -> Tensor:
    """The crops of a scan's posed frames, ``(N, 3, 3)``; jointly also the last step of its poses.

    Args:
        pipeline: its ``config`` says whether the slices share a crop, and a step.
        prepared: the scan.
        batches: see :func:`batches_of`, at least one.
        records: poses by :func:`find_poses`; changed where the joint network goes on from them.
        correction: what a person set takes the place of what was found; poses so set are final.
    """
    device = pipeline.pose.reference_mask.device
    rows = np.concatenate(batches)
    start = torch.from_numpy(records.pose).to(device)
    parts = [pipeline.transforms(*frames(prepared, part, device), start[part]) for part in batches]
    slices = SliceTransforms(*map(torch.cat, zip(*parts, strict=True)))
    z_mm = torch.from_numpy(rows * prepared.spacing[2]).to(device)
    pose, theta2 = scan_transforms(pipeline.config, start[rows], slices, z_mm)
    if pipeline.joint is not None and correction is not None and correction.poses:
        theta2 = carried(theta2, matrix_from_pose(pose), matrix_from_pose(start[rows]))
    elif pipeline.joint is not None:
        records.pose[rows] = pose.cpu()
        records.pose_source[rows[slices.learned.cpu().numpy()]] = POSE_SOURCES.index("learned")
        _agree(pipeline.pose, prepared, batches, records)
    if correction is None:
        return theta2
    final = torch.from_numpy(records.pose[rows])
    by_hand = correction.crops_at(rows, final, pipeline.pose.reference_mask)
    return theta2 if by_hand is None else by_hand.to(device)


def _agree(
    transformer: PoseTransformer, prepared: Prepared, batches: list[np.ndarray], records: PoseRecords
) -> None:
    """Write down how the outlines agree in the scan's poses, which may differ from those of the slices."""
    device = transformer.reference_mask.device
    for part in batches:
        pose = torch.from_numpy(records.pose[part]).to(device)
        records.agreement[part] = transformer.agreement(frames(prepared, part, device)[1], pose).cpu()
        if transformer.roll is None:
            found = records.pose_source[part] != BY_HAND
            records.confidence[part] = np.where(found, records.agreement[part], 1.0)


def pose_warnings(
    records: PoseRecords, transformer: PoseTransformer, settings: PredictConfig, *, joint: bool = False
) -> list[str]:
    """One line for each kind of doubt about the poses of a scan.

    Args:
        records: of the scan.
        transformer: STN1.
        settings: when to doubt.
        joint: whether the joint network went on from STN1's poses.
    """
    shown = records.shown
    total = int(shown.sum())
    lines = []
    config = transformer.config
    learned = joint or transformer.localization is not None
    for source, name in enumerate(POSE_SOURCES):
        count = int((records.pose_source == source).sum())
        if count and source == BY_HAND:
            lines.append(f"the pose was set by hand in {count} of {total} slices")
        elif count and name != ("learned" if learned else config.start):
            lines.append(f"pose fell back to {name} in {count} of {total} slices")
    if abs(records.roll) > TURNED:
        lines.append(
            f"lies turned by {np.degrees(records.roll):+.0f} degrees against what the file's header says: "
            "turned back; check the sides"
        )
    if transformer.roll is not None:
        doubted = int((records.confidence[shown] < settings.min_confidence).sum())
        if doubted:
            lines.append(f"it is not sure which way up the patient lies in {doubted} of {total} slices")
        if total and float(records.mirrored[shown].mean()) > MIRRORED:
            lines.append("looks like its own mirror image (liver on the left); check the sides in the header")
    low = int((records.agreement[shown] < settings.min_pose_dice).sum())
    if low and (joint or config.learned or config.start != "identity"):
        lines.append(f"low pose confidence in {low} of {total} slices: their outline resembles no reference")
    return lines
