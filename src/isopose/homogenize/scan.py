"""Bring one scan to the reference's pose and size, by one resampling of its own slices."""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from isopose.data.plane import position_mm
from isopose.data.preprocess import Prepared, prepare_as
from isopose.errors import InputError
from isopose.geometry.pose import LOG_SCALE_X, LOG_SCALES, POSE_SIZES, SHIFT_X, matrix_from_pose
from isopose.geometry.volume import Volume
from isopose.geometry.warp import compose, invert
from isopose.homogenize.estimator import PoseEstimator
from isopose.homogenize.transform import Grid, Matrix, SlicePose, Transform, VolumePose
from isopose.homogenize.warping import homogenized_image, homogenized_labels, values_in
from isopose.io.sizes import VOXEL_MM
from isopose.scan.find import find_crops, find_poses, slice_poses_of
from isopose.scan.pose import ScanPose
from isopose.scan.volume import slice_positions, volume_pose
from isopose.scan.warnings import pose_warnings

#: Largest grid of a case, in sides of the reference's frame.
MAX_GRID_SIDES = 2.0
#: The same for coronal and sagittal slices, which may extend far above and below that frame.
MAX_GRID_SIDES_VERTICAL = 4.0
#: Extent along z, as a fraction of the frame's side, below which there is a warning about the tilt.
SHORT_SCAN_FRACTION = 0.25


@dataclass(frozen=True, eq=False)
class HomogenizedScan:
    """A scan in the reference's pose and size.

    Args:
        image: int16 HU on the homogenized grid; in MR the scan's own values, float32 if they are not whole
            or too large.
        labels: uint8 classes on the same grid, or None.
        transform: from the scan's own grid and back.
        poses: of its slices, with their confidence.
        warnings: one line each.
    """

    image: Volume
    labels: Volume | None
    transform: Transform
    poses: ScanPose
    warnings: tuple[str, ...]


@torch.inference_mode()
def homogenize_scan(
    estimator: PoseEstimator,
    volume: Volume,
    classes: Volume | None = None,
    ignored: int | None = None,
    body: np.ndarray | None = None,
) -> HomogenizedScan:
    """Bring one scan, and its labels if given, to the reference's pose and size.

    Args:
        estimator: estimates the poses.
        volume: CT in Hounsfield units, or MR, any size, spacing and orientation.
        classes: class indices on the volume's grid.
        ignored: class of voxels that were not annotated, which do not enlarge the grid; None: no such class.
        body: ``(z, y, x)`` mask on the volume's grid, in place of the automatic one.

    Raises:
        InputError: non-finite values, no body, or slices that would lie implausibly far apart.
    """
    prepared = prepare_as(
        volume,
        estimator.scale,
        estimator.fov_mm,
        estimator.data,
        modality=estimator.modality,
        body=body,
    )
    transformer, settings = estimator.transformer, estimator.predict
    slices = slice_poses_of(transformer, prepared, settings, estimator.per)
    scan_pose = find_poses(
        transformer, prepared, settings, slices, per=estimator.per, side_mm=estimator.side_mm
    )
    networks, crop_box = estimator.crop or estimator.joint, None
    if networks is not None and slices is not None:
        scan_pose = find_crops(networks, prepared, scan_pose, per=estimator.per)
        if estimator.crop is not None:
            crop_box = _box_of_crops(torch.from_numpy(scan_pose.theta2[scan_pose.has_body]))
    if scan_pose.has_body.any():
        # Slices without a body have no pose of their own; the common one keeps them aligned with the others.
        scan_pose.pose[~scan_pose.has_body] = scan_pose.common_pose()
    else:
        scan_pose.pose[:] = 0.0
    labeled = None if classes is None else prepared.reorientation.apply(classes.array)
    if labeled is not None:
        labeled = (labeled > 0) & (labeled != ignored)
    if estimator.config.per == "tilted":
        z = slice_positions(
            np.flatnonzero(scan_pose.has_body), len(prepared.image), _stack_from_frame(prepared)
        )
        pose = torch.zeros(POSE_SIZES[3]) if slices is None else volume_pose(transformer, slices, z)[0]
        unchanged_log_scale = math.log(estimator.side_mm / prepared.frame.fov_mm)
        if scan_pose.decision is not None and not scan_pose.decision.outline_visible:
            pose[LOG_SCALES] = unchanged_log_scale
        elif not estimator.config.scale_z:
            pose[LOG_SCALES][2] = unchanged_log_scale
        transform, warnings = _volume_transform(estimator, prepared, scan_pose, pose, labeled)
    else:
        transform, warnings = _slice_transform(estimator, prepared, scan_pose, labeled, crop_box)
    _check_slice_distance(transform, prepared)
    image, labels = homogenized_image(volume, transform, estimator.modality), None
    if classes is not None:
        labels = homogenized_labels(classes, transform)
        lost_labels = sorted(set(values_in(classes.array)) - set(values_in(labels.array)))
        if lost_labels:
            warnings += (f"too small to be seen at the new size: labels {lost_labels}",)
    warnings = (
        *prepared.warnings,
        *pose_warnings(scan_pose, transformer, settings, joint=estimator.joint is not None),
        *warnings,
    )
    return HomogenizedScan(image, labels, transform, scan_pose, warnings)


def _check_slice_distance(transform: Transform, prepared: Prepared) -> None:
    """Raise an InputError if homogenized slices lie implausibly far apart: the image could not be read."""
    distance = float(max(transform.homogenized.spacing))
    if distance > VOXEL_MM[1]:
        raise InputError(
            f"at the size of the reference its slices would lie {distance:.0f} mm apart instead of "
            f"{prepared.spacing[2]:.1f}, expected at most {VOXEL_MM[1]:g} mm: is the body's mask, or the "
            "voxel size, right? If they are, leave the distance as it is (--no-scale-z)"
        )


def _slice_transform(
    estimator: PoseEstimator,
    prepared: Prepared,
    scan_pose: ScanPose,
    labeled: np.ndarray | None,
    crop_box: np.ndarray | None,
) -> tuple[Transform, tuple[str, ...]]:
    """Return the transform of a scan by the poses of its slices, and warnings.

    Args:
        estimator: size and reference.
        prepared: the scan.
        scan_pose: a pose for each slice.
        labeled: ``(z, h, w)`` booleans on the reoriented grid, labels that the grid must contain; or None.
        crop_box: ``(x0, y0, x1, y1)`` in the reference's frame, which the grid contains in place of the body;
            or None.
    """
    frame_size, plane = estimator.config.size, estimator.data.plane
    first_mm = position_mm(prepared.world_from_index, plane)
    max_sides = MAX_GRID_SIDES if plane == "axial" else MAX_GRID_SIDES_VERTICAL
    z_scale = _z_scale(estimator, prepared, scan_pose) if estimator.config.scale_z else 1.0

    def transform_to(size: int, center: tuple[float, float] = (0.0, 0.0)) -> Transform:
        slice_mm = prepared.spacing[2]
        grid = Grid(
            frame_size, size, estimator.pixel_mm, slice_mm, first_mm, center, z_scale=z_scale, plane=plane
        )
        return _transform_of(grid, prepared, scan_pose)

    if crop_box is None:
        theta1 = matrix_from_pose(torch.from_numpy(scan_pose.pose))
        box = _union_box(box_of(prepared.covered, invert(theta1)))
    else:
        box = crop_box
    if labeled is not None:
        box = _union_box(box, box_of(labeled, invert(transform_to(frame_size).slice_from_grid)))
    size, warnings = _grid_size(float(np.abs(box).max()), frame_size, max_sides)
    if crop_box is not None:
        return transform_to(*_square_around(box.clip(-max_sides, max_sides), frame_size)), warnings
    return transform_to(size), warnings


def _z_scale(estimator: PoseEstimator, prepared: Prepared, scan_pose: ScanPose) -> float:
    """Return the in-plane scale, in homogenized mm per mm of the scan: the median over slices with a body.

    For a slice it is the geometric mean of its two scales. A scan that keeps its size has 1.
    """
    if not scan_pose.has_body.any():
        return 1.0
    log_scale = scan_pose.pose[scan_pose.has_body, LOG_SCALE_X:SHIFT_X].astype(np.float64).mean(axis=1)
    return estimator.side_mm / prepared.frame.fov_mm / math.exp(float(np.median(log_scale)))


def _volume_transform(
    estimator: PoseEstimator,
    prepared: Prepared,
    scan_pose: ScanPose,
    pose: Tensor,
    labeled: np.ndarray | None,
) -> tuple[Transform, tuple[str, ...]]:
    """Return the transform of a scan by one pose with pitch and yaw, and warnings.

    The grid contains the body and all labels. Measured in the patient, its slices are as thick as the scan's.

    Args:
        estimator: size and reference.
        prepared: the scan.
        scan_pose: in-plane poses of the slices, for the record.
        pose: ``(9,)`` of the whole volume.
        labeled: ``(z, h, w)`` booleans on the reoriented grid, labels that the grid must contain; or None.
    """
    frame_size, side_mm, fov_mm = estimator.config.size, estimator.side_mm, prepared.frame.fov_mm
    # The distance of the scan's slices in millimeters of the reference.
    slice_mm = prepared.spacing[2] * side_mm / fov_mm / float(pose[LOG_SCALES][2].exp())

    def transform_to(size: int, slices: int, first_mm: float) -> Transform:
        grid = Grid(frame_size, size, estimator.pixel_mm, slice_mm, first_mm, slices=slices)
        return _transform_of(grid, prepared, scan_pose, pose)

    stack_from_frame = compose(_stack_from_frame(prepared), matrix_from_pose(pose))
    boxes = [solid_box_of(prepared.mask, invert(stack_from_frame))]
    if labeled is not None:
        frame_from_volume = invert(transform_to(frame_size, 1, 0.0).volume_from_frame)
        boxes.append(solid_box_of(labeled, frame_from_volume))
    box = _union_box(*boxes)
    size, warnings = _grid_size(float(np.abs(box[[0, 1, 3, 4]]).max()), frame_size)
    height_mm = len(prepared.image) * prepared.spacing[2]
    if height_mm < SHORT_SCAN_FRACTION * fov_mm:
        warnings += (
            f"the scan is {height_mm:.0f} mm long: too short to estimate pitch and yaw reliably, check them",
        )
    low_mm, high_mm = (float(z) * 0.5 * side_mm for z in box[[2, 5]])
    slices = max(1, int(np.ceil((high_mm - low_mm) / slice_mm)))
    first_mm = 0.5 * (low_mm + high_mm) - 0.5 * (slices - 1) * slice_mm
    return transform_to(size, slices, first_mm), warnings


def _transform_of(
    grid: Grid, prepared: Prepared, scan_pose: ScanPose, volume_pose: Tensor | None = None
) -> Transform:
    """Build the transform from a scan's own grid to a homogenized one.

    Args:
        grid: the homogenized grid.
        prepared: the scan.
        scan_pose: a pose for each slice.
        volume_pose: ``(9,)`` of the whole volume; None: the slices are resampled one by one.
    """
    return Transform(
        shape=prepared.native_shape,
        world_from_index=cast(Matrix, tuple(map(tuple, prepared.native_world_from_index.tolist()))),
        axes=prepared.reorientation.axes,
        flips=prepared.reorientation.flips,
        frame=prepared.frame,
        grid=grid,
        poses=cast(tuple[SlicePose, ...], tuple(map(tuple, scan_pose.pose.tolist()))),
        tilted=None if volume_pose is None else cast(VolumePose, tuple(volume_pose.tolist())),
    )


def _grid_size(
    farthest: float, frame_size: int, max_sides: float = MAX_GRID_SIDES
) -> tuple[int, tuple[str, ...]]:
    """Return the side in pixels of a grid that contains everything, and a warning if it had to be limited.

    It grows by the same number of pixels on both sides, so that its center does not move.

    Args:
        farthest: largest distance from the center that the grid must contain, in half sides of the
            reference's frame.
        frame_size: side of the reference's frame in pixels.
        max_sides: side of the largest grid, in sides of the reference's frame.
    """
    margin = int(np.ceil((min(max(farthest, 1.0), max_sides) - 1.0) * frame_size / 2.0))
    if farthest <= max_sides:
        return frame_size + 2 * margin, ()
    warning = (
        f"body or labels reach {farthest:.1f} times as far as the reference's frame, and are cut at "
        f"{max_sides:.0f}; is the pose right?"
    )
    return frame_size + 2 * margin, (warning,)


def _stack_from_frame(prepared: Prepared) -> Tensor:
    return prepared.frame.stack_from_frame(len(prepared.image), prepared.spacing[2])


def _box_of_crops(theta2: Tensor) -> np.ndarray:
    """Return the box ``(x0, y0, x1, y1)`` in the reference's frame around the crops ``(N, 3, 3)``."""
    half, center = theta2[:, [0, 1], [0, 1]].abs(), theta2[:, :2, 2]
    return torch.cat([(center - half).amin(dim=0), (center + half).amax(dim=0)]).cpu().double().numpy()


def _box_of_points(points: np.ndarray) -> np.ndarray:
    """Return the bounding box of points ``(dims, N)``, as lowest and highest corner."""
    return np.concatenate([points.min(axis=1), points.max(axis=1)])


def _union_box(*boxes: np.ndarray | None) -> np.ndarray:
    """Return the bounding box of boxes, as lowest and highest corner; zeros without any box."""
    corners = [box for box in boxes if box is not None]
    if not corners:
        return np.zeros(6)
    low, high = np.split(np.stack(corners), 2, axis=1)
    return np.concatenate([low.min(axis=0), high.max(axis=0)])


def _square_around(box: np.ndarray, frame_size: int) -> tuple[int, tuple[float, float]]:
    """Return side (pixels) and center of a square of whole pixels of the reference's frame around a box."""
    first = np.floor((box[:2] + 1.0) / 2.0 * frame_size)
    size = int(max(1.0, (np.ceil((box[2:] + 1.0) / 2.0 * frame_size) - first).max()))
    x, y = (2.0 * first + size) / frame_size - 1.0
    return size, (float(x), float(y))


def box_of(mask: np.ndarray, target_from_image: Tensor) -> np.ndarray | None:
    """Return the in-plane box of a mask in another image's coordinates, over all slices.

    Args:
        mask: ``(z, h, w)`` booleans.
        target_from_image: ``(z, 3, 3)`` between normalized coordinates.

    Returns:
        ``(x0, y0, x1, y1)``, or None if the mask is empty.
    """
    matrices = target_from_image.double().numpy()
    boxes = []
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        x, y = _outline_corners(mask[z])
        boxes.append(_box_of_points((matrices[z] @ np.stack([x, y, np.ones_like(x)]))[:2]))
    return _union_box(*boxes) if boxes else None


def solid_box_of(mask: np.ndarray, target_from_volume: Tensor) -> np.ndarray | None:
    """Return the box of a volume's mask in another volume's coordinates.

    Args:
        mask: ``(z, h, w)`` booleans; a slice reaches half way to its neighbors.
        target_from_volume: ``(4, 4)`` between normalized coordinates.

    Returns:
        ``(x0, y0, z0, x1, y1, z1)``, or None if the mask is empty.
    """
    boxes, matrix, depth = [], target_from_volume.double().numpy(), len(mask)
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        x, y = _outline_corners(mask[z])
        for edge in (z, z + 1):
            edge_z = np.full_like(x, 2.0 * edge / depth - 1.0)
            boxes.append(_box_of_points((matrix @ np.stack([x, y, edge_z, np.ones_like(x)]))[:3]))
    return _union_box(*boxes) if boxes else None


def _outline_corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return normalized x and y ``(N,)`` of the outer corners of the outermost pixels of each row.

    The extremes of the mask under any linear map are among these points.

    Args:
        mask: ``(h, w)`` booleans, not empty.
    """
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = width - mask[rows, ::-1].argmax(axis=1)
    x = np.concatenate([first, last, first, last])
    y = np.concatenate([rows, rows, rows + 1, rows + 1])
    return 2.0 * x / width - 1.0, 2.0 * y / height - 1.0
