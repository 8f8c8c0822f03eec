"""One scan brought to the reference's pose and size, straight from its own slices by one resampling."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isopose.data.preprocess import Prepared, prepare_as
from isopose.geometry.similarity import matrix_from_pose
from isopose.geometry.volume import Volume
from isopose.geometry.warp import invert
from isopose.homogenize.homogeniser import Homogeniser
from isopose.homogenize.transform import Grid, Row, Transform
from isopose.homogenize.warping import homogenised_image, homogenised_labels, values_in
from isopose.inference.poses import PoseRecords, batches_of, find_crops, find_poses, pose_warnings

#: Largest grid of a case, in sides of the reference's frame.
LARGEST = 2.0


@dataclass(frozen=True, eq=False)
class HomogenisedScan:
    """A scan in the reference's pose and size.

    Args:
        image: int16 HU on the homogenised grid.
        labels: uint8 classes on the same grid, or none.
        transform: how it came there.
        poses: of its slices, and how sure they are.
        warnings: for people, one line each.
    """

    image: Volume
    labels: Volume | None
    transform: Transform
    poses: PoseRecords
    warnings: tuple[str, ...]


@torch.inference_mode()
def homogenise(homogeniser: Homogeniser, volume: Volume, classes: Volume | None = None) -> HomogenisedScan:
    """Bring one scan, and its labels if given, to the reference's pose and size.

    Args:
        homogeniser: finds the poses.
        volume: CT in Hounsfield units, any size, spacing and orientation.
        classes: class indices on the volume's grid.

    Raises:
        InputError: non-finite values, or no body.
    """
    prepared = prepare_as(volume, homogeniser.scale, homogeniser.fov_mm, homogeniser.data)
    transformer, settings = homogeniser.transformer, homogeniser.predict
    records = PoseRecords.empty(len(prepared.image))
    batches = batches_of(prepared, settings.batch_size)
    find_poses(transformer, prepared, batches, settings, records)
    if homogeniser.joint is not None and batches:
        find_crops(homogeniser.joint, prepared, batches, records)
    if records.shown.any():
        # Slices without a body have no pose of their own; they stay beside their neighbours.
        records.pose[~records.shown] = records.common_pose()
    else:
        records.pose[:] = 0.0
    marked = None if classes is None else prepared.reorientation.apply(classes.array)
    transform, warnings = _transform(homogeniser, prepared, records, marked)
    image, labels = homogenised_image(volume, transform), None
    if classes is not None:
        labels = homogenised_labels(classes, transform)
        lost = sorted(set(values_in(classes.array)) - set(values_in(labels.array)))
        if lost:
            warnings += (f"too small to be seen at the new size: labels {lost}",)
    doubts = pose_warnings(records, transformer, settings, joint=homogeniser.joint is not None)
    return HomogenisedScan(
        image,
        labels,
        transform,
        records,
        (*prepared.warnings, *doubts, *warnings),
    )


def _transform(
    homogeniser: Homogeniser, prepared: Prepared, records: PoseRecords, marked: np.ndarray | None
) -> tuple[Transform, tuple[str, ...]]:
    """The transform of a scan whose poses are known, its grid large enough for the body and all labels."""

    def on(size: int) -> Transform:
        return Transform(
            shape=prepared.native_shape,
            world_from_index=_rows(prepared.native_world_from_index),
            axes=prepared.reorientation.axes,
            flips=prepared.reorientation.flips,
            frame=prepared.frame,
            grid=Grid(
                homogeniser.size,
                size,
                homogeniser.pixel_mm,
                prepared.spacing[2],
                float(prepared.world_from_index[2, 3]),
            ),
            poses=tuple(_five(pose) for pose in records.pose.tolist()),
        )

    usual = homogeniser.size
    theta1 = matrix_from_pose(torch.from_numpy(records.pose))
    needed = reach(prepared.mask, invert(theta1))
    if marked is not None:
        needed = max(needed, reach(marked > 0, invert(on(usual).slice_from_grid)))
    if needed <= 1.0:
        return on(usual), ()
    # By as many pixels on either side, so that the middle stays where it is.
    size = usual + 2 * int(np.ceil((min(needed, LARGEST) - 1.0) * usual / 2.0))
    warnings: tuple[str, ...] = ()
    if needed > LARGEST:
        warnings = (
            f"body or labels reach {needed:.1f} times as far as the reference's frame, and are cut at "
            f"{LARGEST:.0f}; is the pose right?",
        )
    return on(size), warnings


def reach(mask: np.ndarray, target_from_image: Tensor) -> float:
    """How far marked pixels reach from the middle of a target, in its half sides; 0 where none is marked.

    Args:
        mask: ``(z, h, w)``.
        target_from_image: ``(z, 3, 3)`` between normalised coordinates.
    """
    height, width = mask.shape[1:]
    farthest = 0.0
    for inside, matrix in zip(mask, target_from_image.double().numpy(), strict=True):
        rows = np.flatnonzero(inside.any(axis=1))
        if not len(rows):
            continue
        first = inside[rows].argmax(axis=1)
        last = width - inside[rows, ::-1].argmax(axis=1)
        # Outer corners of the outermost pixels of each row: a linear map has its extremes among them.
        x = np.concatenate([first, last, first, last])
        y = np.concatenate([rows, rows, rows + 1, rows + 1])
        points = np.stack([2.0 * x / width - 1.0, 2.0 * y / height - 1.0, np.ones(len(x))])
        farthest = max(farthest, float(np.abs((matrix @ points)[:2]).max()))
    return farthest


def _rows(matrix: np.ndarray) -> tuple[Row, Row, Row, Row]:
    first, second, third, fourth = ((float(a), float(b), float(c), float(d)) for a, b, c, d in matrix)
    return first, second, third, fourth


def _five(pose: list[float]) -> tuple[float, float, float, float, float]:
    angle, x, y, right, down = pose
    return angle, x, y, right, down
