"""The pose and crops of one scan, for prediction and for homogenization alike."""

import numpy as np
import torch
from torch import Tensor

from isopose.config import Per, PredictConfig
from isopose.data.preprocess import Prepared
from isopose.geometry.box import carried
from isopose.geometry.pose import matrix_from_pose
from isopose.models.pipeline import Networks, SliceTransforms
from isopose.models.pose import BY_HAND, POSE_SOURCES, PoseTransformer, SlicePoses
from isopose.scan.correction import Correction
from isopose.scan.pose import ScanPose
from isopose.scan.poses import scan_poses, scan_transforms, slice_poses
from isopose.scan.volume import places, volume_agreement, volume_pose


def batches_of(prepared: Prepared, size: int) -> list[np.ndarray]:
    """Return the indices of the slices that show a body, ``size`` at a time."""
    shown = np.flatnonzero(prepared.mask.any(axis=(1, 2)))
    return [shown[first : first + size] for first in range(0, len(shown), size)]


def frames(prepared: Prepared, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return image and mask ``(N, 1, S, S)`` of some slices."""
    image = torch.from_numpy(prepared.image[rows])[:, None].to(device)
    mask = torch.from_numpy(prepared.mask[rows])[:, None].float().to(device)
    return image, mask


def slices_by_themselves(
    transformer: PoseTransformer, prepared: Prepared, settings: PredictConfig, per: Per | None = None
) -> SlicePoses | None:
    """Return what each slice that shows a body says of the pose by itself; None where no slice does.

    Args:
        transformer: STN1.
        prepared: the scan.
        settings: how many slices at a time, and which agreement is enough.
        per: which slices share a pose; None: as the transformer's configuration says.
    """
    batches = batches_of(prepared, settings.batch_size)
    if not batches:
        return None
    device = transformer.reference_mask.device
    return slice_poses(
        transformer, lambda rows: frames(prepared, rows, device), batches, settings.min_pose_dice, per
    )


def find_poses(
    transformer: PoseTransformer,
    prepared: Prepared,
    settings: PredictConfig,
    slices: SlicePoses | None,
    correction: Correction | None = None,
    per: Per | None = None,
) -> ScanPose:
    """Find the poses of a scan's slices.

    Args:
        transformer: STN1.
        prepared: the scan.
        settings: how many slices at a time.
        slices: by :func:`slices_by_themselves`.
        correction: what a person set takes the place of what was found.
        per: which slices share a pose; None: as the transformer's configuration says.
    """
    scan = ScanPose.empty(len(prepared.image))
    if slices is None:
        return scan
    rows = np.flatnonzero(prepared.mask.any(axis=(1, 2)))
    device = transformer.reference_mask.device
    z_mm = torch.from_numpy(rows * prepared.spacing[2]).to(device)
    pose, confidence = scan_poses(transformer, slices, z_mm, per)
    scan.pose[rows], scan.confidence[rows] = pose.cpu(), confidence.cpu()
    scan.mirrored[rows] = slices.mirrored.cpu()
    scan.source[rows] = slices.source.cpu()
    by_hand = correction and correction.poses_at(rows, prepared.frame, transformer.reference_mask)
    if by_hand is not None:
        scan.pose[rows], scan.confidence[rows], scan.source[rows] = by_hand, 1.0, BY_HAND
    _agree(transformer, prepared, settings, scan)
    return scan


def find_crops(
    networks: Networks,
    prepared: Prepared,
    scan: ScanPose,
    correction: Correction | None = None,
    per: Per | None = None,
) -> ScanPose:
    """Find the crops of a scan's posed slices, and with ``stn=joint`` the last step of its poses.

    Args:
        networks: of slices; their configuration says whether the slices share a crop.
        prepared: the scan.
        scan: poses by :func:`find_poses`; filled in and returned.
        correction: what a person set takes the place of what was found; poses set by hand are final.
        per: which slices share a step of the pose; None: as the networks' configuration says.
    """
    settings = networks.config.predict
    batches = batches_of(prepared, settings.batch_size)
    if not batches:
        return scan
    device = networks.pose.reference_mask.device
    rows = np.concatenate(batches)
    start = torch.from_numpy(scan.pose).to(device)
    parts = [networks.transforms(*frames(prepared, part, device), start[part]) for part in batches]
    slices = SliceTransforms(*map(torch.cat, zip(*parts, strict=True)))
    z_mm = torch.from_numpy(rows * prepared.spacing[2]).to(device)
    pose, theta2 = scan_transforms(networks.config, start[rows], slices, z_mm, per)
    if networks.joint is not None and correction is not None and correction.poses:
        theta2 = carried(theta2, matrix_from_pose(pose), matrix_from_pose(start[rows]))
    elif networks.joint is not None:
        scan.pose[rows] = pose.cpu()
        scan.source[rows[slices.learned.cpu().numpy()]] = POSE_SOURCES.index("learned")
        _agree(networks.pose, prepared, settings, scan)
    if correction is not None:
        final = torch.from_numpy(scan.pose[rows])
        by_hand = correction.crops_at(rows, final, networks.pose.reference_mask)
        theta2 = theta2 if by_hand is None else by_hand.to(device)
    scan.theta2[rows] = theta2.cpu()
    return scan


def find_volume_pose(
    networks: Networks, prepared: Prepared, image: Tensor, mask: Tensor, stack_from_frame: Tensor
) -> ScanPose:
    """Find the pose and the crop of a whole volume.

    Args:
        networks: of volumes.
        prepared: the scan.
        image: ``(1, 1, Z, S, S)`` its frames.
        mask: the same shape, foreground.
        stack_from_frame: ``(4, 4)``.
    """
    scan = ScanPose.empty(1, dims=3)
    scan.pose[:], scan.source[:], scan.confidence[:], scan.mirrored[:] = 0.0, 0, 0.0, 0.0
    slices = slices_by_themselves(networks.pose, prepared, networks.config.predict)
    if slices is not None:
        shown = np.flatnonzero(prepared.mask.any(axis=(1, 2)))
        z = places(shown, prepared.shape[0], stack_from_frame.cpu()).to(image.device)
        pose, confidence = volume_pose(networks.pose, slices, z)
        scan.pose[0], scan.confidence[0] = pose.cpu(), float(confidence)
        scan.mirrored[0] = float(slices.mirrored.mean())
        scan.source[0] = POSE_SOURCES.index(networks.config.pose.start)
    stack_from_homogenized = networks.input_from_homogenized(
        torch.from_numpy(scan.pose).to(image.device), stack_from_frame
    )
    scan.agreement[0] = float(volume_agreement(networks, mask, stack_from_homogenized))
    scan.theta2[:] = networks.theta2(image, mask, stack_from_homogenized).cpu()
    return scan


def _agree(transformer: PoseTransformer, prepared: Prepared, settings: PredictConfig, scan: ScanPose) -> None:
    """Fill in how outlines agree in the scan's poses, which may differ from the poses of single slices."""
    device = transformer.reference_mask.device
    for part in batches_of(prepared, settings.batch_size):
        pose = torch.from_numpy(scan.pose[part]).to(device)
        scan.agreement[part] = transformer.agreement(frames(prepared, part, device)[1], pose).cpu()
        if transformer.roll is None:
            found = scan.source[part] != BY_HAND
            scan.confidence[part] = np.where(found, scan.agreement[part], 1.0)
