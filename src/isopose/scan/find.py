"""Find the pose and crops of one scan, for prediction and for homogenization."""

import math

import numpy as np
import torch
from torch import Tensor

from isopose.choices import Per
from isopose.data.neighbors import neighbors_of
from isopose.data.preprocess import Prepared
from isopose.geometry.box import transferred
from isopose.geometry.pose import LOG_SCALE_X, LOG_SCALE_Y, matrix_from_pose
from isopose.models.pipeline import Networks, SliceTransforms
from isopose.models.pose import HAND_SOURCE, POSE_SOURCES, PoseTransformer, SlicePoses
from isopose.scan.correction import Correction
from isopose.scan.pose import RollDecision, ScanPose
from isopose.scan.poses import scan_poses, scan_transforms, slice_poses
from isopose.scan.prior import ScanRoll
from isopose.scan.volume import slice_positions, volume_agreement, volume_pose
from isopose.settings import PredictConfig, UNetConfig


def body_slices(prepared: Prepared) -> np.ndarray:
    """Return the indices ``(N,)`` of the slices with a body."""
    return np.flatnonzero(prepared.mask.any(axis=(1, 2)))


def body_batches(prepared: Prepared, size: int) -> list[np.ndarray]:
    """Return the indices of the slices with a body, in batches of at most ``size``."""
    rows = body_slices(prepared)
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def images_and_masks(prepared: Prepared, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return image and mask ``(N, 1, S, S)`` of the slices with the given indices, on a device."""
    image = torch.from_numpy(prepared.image[rows])[:, None].to(device)
    mask = torch.from_numpy(prepared.mask[rows])[:, None].float().to(device)
    return image, mask


def unet_channels(
    prepared: Prepared, rows: np.ndarray, scan: ScanPose, config: UNetConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the U-Net's input channels before the crop: each slice with its neighbors, and their poses.

    Args:
        prepared: the scan.
        rows: ``(N,)`` slices with a body.
        scan: the poses of all its slices.
        config: how many neighbors, and how far from each other.
        device: of the result.

    Returns:
        Images ``(N, C, S, S)``, channel after channel, each with all neighbors; and theta1 ``(N, K, 3, 3)``
            of the slice and its neighbors.
    """
    with_body = np.flatnonzero(scan.has_body)
    neighbors_of_all = neighbors_of(with_body, prepared.spacing[2], config)
    neighbors = with_body[neighbors_of_all[np.searchsorted(with_body, rows)]]
    image = torch.from_numpy(prepared.images[:, neighbors].swapaxes(0, 1)).flatten(1, 2).to(device)
    return image, matrix_from_pose(torch.from_numpy(scan.pose[neighbors]).to(device))


def slice_poses_of(
    transformer: PoseTransformer, prepared: Prepared, settings: PredictConfig, per: Per | None = None
) -> SlicePoses | None:
    """Estimate the pose of each slice with a body independently.

    Args:
        transformer: STN1.
        prepared: the scan.
        settings: batch size, and the agreement from which a pose is accepted.
        per: which slices share a pose; None: as the transformer's configuration says.

    Returns:
        The poses of the slices with a body, in order; None where no slice has one.
    """
    batches = body_batches(prepared, settings.batch_size)
    if not batches:
        return None
    device = transformer.reference_mask.device
    return slice_poses(
        transformer,
        lambda rows: images_and_masks(prepared, rows, device),
        batches,
        settings.min_pose_dice,
        per,
    )


def find_poses(
    transformer: PoseTransformer,
    prepared: Prepared,
    settings: PredictConfig,
    slices: SlicePoses | None,
    correction: Correction | None = None,
    per: Per | None = None,
    side_mm: float | None = None,
) -> ScanPose:
    """Find the poses of a scan's slices.

    If the scan shows no outline of a body, it keeps its pose, and its size in mm.

    Args:
        transformer: STN1.
        prepared: the scan.
        settings: batch size.
        slices: by :func:`slice_poses_of`.
        correction: a person's corrections; its poses replace the estimated ones.
        per: which slices share a pose; None: as the transformer's configuration says.
        side_mm: side of the reference's frame in mm, if it may differ from that of the scan's own frame.
    """
    scan = ScanPose.empty(len(prepared.image))
    if slices is None:
        return scan
    rows = body_slices(prepared)
    device = transformer.reference_mask.device
    z_mm = torch.from_numpy(rows * prepared.spacing[2]).to(device)
    pose, confidence, roll = scan_poses(transformer, slices, z_mm, per)
    scan.pose[rows], scan.confidence[rows] = pose.cpu(), confidence.cpu()
    scan.decision = _roll_decision(transformer, roll)
    if side_mm is not None and scan.decision is not None and not scan.decision.outline_visible:
        for scale in (LOG_SCALE_X, LOG_SCALE_Y):
            scan.pose[rows, scale] = math.log(side_mm / prepared.frame.fov_mm)
    scan.mirrored[rows] = slices.mirrored.cpu()
    scan.source[rows] = slices.source.cpu()
    manual = correction and correction.poses_at(rows, prepared.frame, transformer.reference_mask)
    if manual is not None:
        scan.pose[rows], scan.confidence[rows], scan.source[rows] = manual, 1.0, HAND_SOURCE
    _set_agreement(transformer, prepared, settings, scan)
    return scan


def find_crops(
    networks: Networks,
    prepared: Prepared,
    scan: ScanPose,
    correction: Correction | None = None,
    per: Per | None = None,
) -> ScanPose:
    """Find the crops of a scan's slices, and with ``stn=joint`` refine its poses.

    Args:
        networks: of slices; their ``config`` says whether the slices share a crop and a refinement.
        prepared: the scan.
        scan: poses by :func:`find_poses`; changed in place.
        correction: a person's corrections; its crops replace the estimated ones, its poses are final.
        per: which slices share a refinement; None: as the configuration of the networks says.

    Returns:
        ``scan``.
    """
    settings = networks.config.predict
    batches = body_batches(prepared, settings.batch_size)
    if not batches:
        return scan
    device = networks.pose.reference_mask.device
    rows = np.concatenate(batches)
    initial = torch.from_numpy(scan.pose).to(device)
    transforms = [
        networks.transforms(*images_and_masks(prepared, batch, device), initial[batch]) for batch in batches
    ]
    slices = SliceTransforms(*map(torch.cat, zip(*transforms, strict=True)))
    z_mm = torch.from_numpy(rows * prepared.spacing[2]).to(device)
    pose, theta2 = scan_transforms(networks.config, initial[rows], slices, z_mm, per)
    if networks.joint is not None and correction is not None and correction.poses:
        theta2 = transferred(theta2, matrix_from_pose(pose), matrix_from_pose(initial[rows]))
    elif networks.joint is not None:
        scan.pose[rows] = pose.cpu()
        scan.source[rows[slices.learned.cpu().numpy()]] = POSE_SOURCES.index("learned")
        _set_agreement(networks.pose, prepared, settings, scan)
    if correction is not None:
        final = torch.from_numpy(scan.pose[rows])
        manual = correction.crops_at(rows, final, networks.pose.reference_mask)
        theta2 = theta2 if manual is None else manual.to(device)
    scan.theta2[rows] = theta2.cpu()
    return scan


def find_volume_pose(
    networks: Networks,
    prepared: Prepared,
    image: Tensor,
    mask: Tensor,
    stack_from_frame: Tensor,
    slices: SlicePoses | None,
) -> ScanPose:
    """Find the pose and the crop of a whole volume.

    Args:
        networks: of volumes.
        prepared: the scan.
        image: ``(1, 1, Z, S, S)``, the scan's frames.
        mask: the same shape, foreground.
        stack_from_frame: ``(4, 4)``, see :meth:`isopose.geometry.frame.Frame.stack_from_frame`.
        slices: by :func:`slice_poses_of`.

    Returns:
        One row; pose 0 and confidence 0 where no slice has a body.
    """
    scan = ScanPose.empty(1, dims=3)
    scan.pose[:], scan.source[:], scan.confidence[:], scan.mirrored[:] = 0.0, 0, 0.0, 0.0
    if slices is not None:
        z = slice_positions(body_slices(prepared), prepared.shape[0], stack_from_frame.cpu()).to(image.device)
        pose, confidence, roll = volume_pose(networks.pose, slices, z)
        scan.pose[0], scan.confidence[0] = pose.cpu(), float(confidence)
        scan.decision = _roll_decision(networks.pose, roll)
        scan.mirrored[0] = float(slices.mirrored.mean())
        scan.source[0] = POSE_SOURCES.index(networks.config.pose.start)
    stack_from_homogenized = networks.input_from_homogenized(
        torch.from_numpy(scan.pose).to(image.device), stack_from_frame
    )
    scan.agreement[0] = float(volume_agreement(networks, mask, stack_from_homogenized))
    scan.theta2[:] = networks.theta2(image, mask, stack_from_homogenized).cpu()
    return scan


def _roll_decision(transformer: PoseTransformer, roll: ScanRoll | None) -> RollDecision | None:
    """Return the decision about a scan's roll, as it is recorded.

    None if the roll comes from outlines or STN1, or if the slices are not axial: there it rotates out of
    plane.
    """
    if roll is None or transformer.plane != "axial":
        return None
    return RollDecision(
        shown_degrees=math.degrees(roll.slices_angle),
        odds=float(roll.odds),
        needed_odds=transformer.config.turn_odds,
        header_kept=not bool(roll.overrides_header),
        outline_visible=bool(roll.outline_visible),
    )


def _set_agreement(
    transformer: PoseTransformer, prepared: Prepared, settings: PredictConfig, scan: ScanPose
) -> None:
    """Compute the agreement of the outlines in the scan's poses, which may differ from the slices' own.

    Without the roll network it is also the confidence.
    """
    device = transformer.reference_mask.device
    for batch in body_batches(prepared, settings.batch_size):
        pose = torch.from_numpy(scan.pose[batch]).to(device)
        _, mask = images_and_masks(prepared, batch, device)
        scan.agreement[batch] = transformer.agreement(mask, pose).cpu()
        if transformer.roll is None:
            by_hand = scan.source[batch] == HAND_SOURCE
            scan.confidence[batch] = np.where(by_hand, 1.0, scan.agreement[batch])
