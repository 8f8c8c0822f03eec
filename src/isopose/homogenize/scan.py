"""Bring one scan to the reference's pose and size, by one resampling of its own slices."""

import math
from dataclasses import dataclass

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
from isopose.homogenize.transform import Grid, MatrixRow, Nine, Transform
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
    records = find_poses(
        transformer, prepared, settings, slices, per=estimator.per, side_mm=estimator.side_mm
    )
    networks, crop = estimator.crop or estimator.joint, None
    if networks is not None and slices is not None:
        records = find_crops(networks, prepared, records, per=estimator.per)
        if estimator.crop is not None:
            crop = _box_of(torch.from_numpy(records.theta2[records.has_body]))
    if records.has_body.any():
        # Slices without a body have no pose of their own; the common one keeps them aligned with the others.
        records.pose[~records.has_body] = records.common_pose()
    else:
        records.pose[:] = 0.0
    marked = None if classes is None else prepared.reorientation.apply(classes.array)
    if marked is not None:
        marked = (marked > 0) & (marked != ignored)
    if estimator.tilted:
        z = slice_positions(
            np.flatnonzero(records.has_body), len(prepared.image), _stack_from_frame(prepared)
        )
        pose = torch.zeros(POSE_SIZES[3]) if slices is None else volume_pose(transformer, slices, z)[0]
        own_size = math.log(estimator.side_mm / prepared.frame.fov_mm)
        if records.decision is not None and not records.decision.outline_visible:
            pose[LOG_SCALES] = own_size
        elif not estimator.scale_z:
            pose[LOG_SCALES][2] = own_size
        transform, warnings = _tilted(estimator, prepared, records, pose, marked)
    else:
        transform, warnings = _transform(estimator, prepared, records, marked, crop)
    _check_distance(transform, prepared)
    image, labels = homogenized_image(volume, transform, estimator.modality), None
    if classes is not None:
        labels = homogenized_labels(classes, transform)
        lost_labels = sorted(set(values_in(classes.array)) - set(values_in(labels.array)))
        if lost_labels:
            warnings += (f"too small to be seen at the new size: labels {lost_labels}",)
    pose_lines = pose_warnings(records, transformer, settings, joint=estimator.joint is not None)
    return HomogenizedScan(
        image,
        labels,
        transform,
        records,
        (*prepared.warnings, *pose_lines, *warnings),
    )


def _check_distance(transform: Transform, prepared: Prepared) -> None:
    """Refuse a scan whose slices would lie implausibly far apart: its image could not be read back.

    Raises:
        InputError: they would.
    """
    distance, own = float(max(transform.homogenized.spacing)), prepared.spacing[2]
    if distance > VOXEL_MM[1]:
        raise InputError(
            f"at the size of the reference its slices would lie {distance:.0f} mm apart instead of "
            f"{own:.1f}, expected at most {VOXEL_MM[1]:g} mm: is the body's mask, or the voxel size, right? "
            "If they are, leave the distance as it is (--no-scale-z)"
        )


def _transform(
    estimator: PoseEstimator,
    prepared: Prepared,
    records: ScanPose,
    marked: np.ndarray | None,
    crop: np.ndarray | None,
) -> tuple[Transform, tuple[str, ...]]:
    """Return the transform for known poses; its grid contains the body, or the crop, and all labels."""
    usual, plane = estimator.size, estimator.data.plane
    first_mm = position_mm(prepared.world_from_index, plane)
    largest = MAX_GRID_SIDES if plane == "axial" else MAX_GRID_SIDES_VERTICAL
    z_scale = _z_scale(estimator, prepared, records) if estimator.scale_z else 1.0

    def on(size: int, middle: tuple[float, float] = (0.0, 0.0)) -> Transform:
        slice_mm = prepared.spacing[2]
        grid = Grid(usual, size, estimator.pixel_mm, slice_mm, first_mm, middle, z_scale=z_scale, plane=plane)
        return _transform_of(grid, prepared, records)

    if crop is None:
        theta1 = matrix_from_pose(torch.from_numpy(records.pose))
        needed = _union_box(box_of(prepared.covered, invert(theta1)))
    else:
        needed = crop
    if marked is not None:
        needed = _union_box(needed, box_of(marked, invert(on(usual).slice_from_grid)))
    size, warnings = _grid_size(float(np.abs(needed).max()), usual, largest)
    if crop is not None:
        return on(*_square_around(needed.clip(-largest, largest), usual)), warnings
    return on(size), warnings


def _z_scale(estimator: PoseEstimator, prepared: Prepared, records: ScanPose) -> float:
    """Return the in-plane scale, in homogenized mm per mm of the scan: the median over slices with a body.

    For a slice it is the geometric mean of its two scales. A scan that keeps its size has 1.
    """
    if not records.has_body.any():
        return 1.0
    log_scale = records.pose[records.has_body, LOG_SCALE_X:SHIFT_X].astype(np.float64).mean(axis=1)
    return estimator.side_mm / prepared.frame.fov_mm / math.exp(float(np.median(log_scale)))


def _tilted(
    estimator: PoseEstimator,
    prepared: Prepared,
    records: ScanPose,
    pose: Tensor,
    marked: np.ndarray | None,
) -> tuple[Transform, tuple[str, ...]]:
    """Return the transform of a scan with one pose, including pitch and yaw, for the whole volume.

    The grid contains the body and all labels. Measured in the patient, its slices are as thick as the scan's.
    """
    usual, side_mm, fov_mm = estimator.size, estimator.side_mm, prepared.frame.fov_mm
    # The distance of the scan's slices in millimeters of the reference.
    slice_mm = prepared.spacing[2] * side_mm / fov_mm / float(pose[LOG_SCALES][2].exp())

    def on(size: int, slices: int, first_mm: float) -> Transform:
        grid = Grid(usual, size, estimator.pixel_mm, slice_mm, first_mm, slices=slices)
        return _transform_of(grid, prepared, records, tuple(pose.tolist()))

    stack_from_frame = compose(_stack_from_frame(prepared), matrix_from_pose(pose))
    needed = _union_box(
        solid_box_of(prepared.mask, invert(stack_from_frame)),
        None if marked is None else solid_box_of(marked, invert(on(usual, 1, 0.0).volume_from_frame)),
    )
    size, warnings = _grid_size(float(np.abs(needed[[0, 1, 3, 4]]).max()), usual)
    height_mm = len(prepared.image) * prepared.spacing[2]
    if height_mm < SHORT_SCAN_FRACTION * fov_mm:
        warnings += (
            f"the scan is {height_mm:.0f} mm long: too short to estimate pitch and yaw reliably, check them",
        )
    low, high = (float(z) * 0.5 * side_mm for z in needed[[2, 5]])
    slices = max(1, int(np.ceil((high - low) / slice_mm)))
    return on(size, slices, 0.5 * (low + high) - 0.5 * (slices - 1) * slice_mm), warnings


def _transform_of(grid: Grid, prepared: Prepared, records: ScanPose, tilted: Nine | None = None) -> Transform:
    """Build the transform from a scan's own grid to a homogenized one."""
    return Transform(
        shape=prepared.native_shape,
        world_from_index=_rows(prepared.native_world_from_index),
        axes=prepared.reorientation.axes,
        flips=prepared.reorientation.flips,
        frame=prepared.frame,
        grid=grid,
        poses=tuple(_five(pose) for pose in records.pose.tolist()),
        tilted=tilted,
    )


def _grid_size(farthest: float, usual: int, largest: float = MAX_GRID_SIDES) -> tuple[int, tuple[str, ...]]:
    """Return the side in pixels of a grid that contains everything, and a warning if it had to be limited.

    It grows by the same number of pixels on both sides, so that its center does not move.

    Args:
        farthest: largest distance from the center that the grid must contain, in half sides of the
            reference's frame.
        usual: side of the reference's frame in pixels.
        largest: side of the largest grid, in sides of the reference's frame.
    """
    more = int(np.ceil((min(max(farthest, 1.0), largest) - 1.0) * usual / 2.0))
    if farthest <= largest:
        return usual + 2 * more, ()
    warning = (
        f"body or labels reach {farthest:.1f} times as far as the reference's frame, and are cut at "
        f"{largest:.0f}; is the pose right?"
    )
    return usual + 2 * more, (warning,)


def _stack_from_frame(prepared: Prepared) -> Tensor:
    return prepared.frame.stack_from_frame(len(prepared.image), prepared.spacing[2])


def _box_of(theta2: Tensor) -> np.ndarray:
    """Return the box ``(x0, y0, x1, y1)`` in the reference's frame around the crops ``(N, 3, 3)``."""
    half, middle = theta2[:, [0, 1], [0, 1]].abs(), theta2[:, :2, 2]
    return torch.cat([(middle - half).amin(dim=0), (middle + half).amax(dim=0)]).cpu().double().numpy()


def _union_box(*boxes: np.ndarray | None) -> np.ndarray:
    """Return the bounding box of boxes, as lowest and highest corner; zeros without any box."""
    known = [box for box in boxes if box is not None]
    if not known:
        return np.zeros(6)
    low, high = np.split(np.stack(known), 2, axis=1)
    return np.concatenate([low.min(axis=0), high.max(axis=0)])


def _square_around(box: np.ndarray, usual: int) -> tuple[int, tuple[float, float]]:
    """Return side (pixels) and center of a square of whole pixels of the reference's frame around a box."""
    first = np.floor((box[:2] + 1.0) / 2.0 * usual)
    size = int(max(1.0, (np.ceil((box[2:] + 1.0) / 2.0 * usual) - first).max()))
    x, y = (2.0 * first + size) / usual - 1.0
    return size, (float(x), float(y))


def box_of(mask: np.ndarray, target_from_image: Tensor) -> np.ndarray | None:
    """Return the in-plane box of a mask in another image's coordinates, over all slices.

    Args:
        mask: ``(z, h, w)`` booleans.
        target_from_image: ``(z, 3, 3)`` between normalized coordinates.

    Returns:
        ``(x0, y0, x1, y1)``, or None if the mask is empty.
    """
    seen = [
        (matrix @ np.concatenate([outline, np.ones((1, outline.shape[1]))]))[:2]
        for inside, matrix in zip(mask, target_from_image.double().numpy(), strict=True)
        for outline in _outline(inside)
    ]
    return _union_box(*(np.concatenate([s.min(axis=1), s.max(axis=1)]) for s in seen)) if seen else None


def solid_box_of(mask: np.ndarray, target_from_volume: Tensor) -> np.ndarray | None:
    """Return the box of a volume's mask in another volume's coordinates.

    Args:
        mask: ``(z, h, w)`` booleans; a slice reaches half way to its neighbors.
        target_from_volume: ``(4, 4)`` between normalized coordinates.

    Returns:
        ``(x0, y0, z0, x1, y1, z1)``, or None if the mask is empty.
    """
    boxes, matrix, depth = [], target_from_volume.double().numpy(), len(mask)
    for z, inside in enumerate(mask):
        for outline in _outline(inside):
            for edge in (z, z + 1):
                height = np.full((1, outline.shape[1]), 2.0 * edge / depth - 1.0)
                seen = (matrix @ np.concatenate([outline, height, np.ones_like(height)]))[:3]
                boxes.append(np.concatenate([seen.min(axis=1), seen.max(axis=1)]))
    return _union_box(*boxes) if boxes else None


def _outline(inside: np.ndarray) -> list[np.ndarray]:
    """Return the normalized outer corners ``(2, N)`` of the outermost pixels of each row, as a list of one.

    The list is empty for an empty mask. The extremes of the mask under any linear map are among these points.
    """
    height, width = inside.shape
    rows = np.flatnonzero(inside.any(axis=1))
    if not len(rows):
        return []
    first = inside[rows].argmax(axis=1)
    last = width - inside[rows, ::-1].argmax(axis=1)
    x = np.concatenate([first, last, first, last])
    y = np.concatenate([rows, rows, rows + 1, rows + 1])
    return [np.stack([2.0 * x / width - 1.0, 2.0 * y / height - 1.0])]


def _rows(matrix: np.ndarray) -> tuple[MatrixRow, MatrixRow, MatrixRow, MatrixRow]:
    first, second, third, fourth = ((float(a), float(b), float(c), float(d)) for a, b, c, d in matrix)
    return first, second, third, fourth


def _five(pose: list[float]) -> tuple[float, float, float, float, float]:
    angle, x, y, right, down = pose
    return angle, x, y, right, down
