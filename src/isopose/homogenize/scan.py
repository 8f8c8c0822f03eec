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
    networks, crop = homogeniser.crop or homogeniser.joint, None
    if networks is not None and batches:
        theta2 = find_crops(networks, prepared, batches, records)
        crop = _box_of(theta2) if homogeniser.crop is not None else None
    if records.shown.any():
        # Slices without a body have no pose of their own; they stay beside their neighbours.
        records.pose[~records.shown] = records.common_pose()
    else:
        records.pose[:] = 0.0
    marked = None if classes is None else prepared.reorientation.apply(classes.array)
    transform, warnings = _transform(homogeniser, prepared, records, marked, crop)
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
    homogeniser: Homogeniser,
    prepared: Prepared,
    records: PoseRecords,
    marked: np.ndarray | None,
    crop: np.ndarray | None,
) -> tuple[Transform, tuple[str, ...]]:
    """The transform of a scan whose poses are known; its grid holds the body, or the crop, and all labels."""
    usual = homogeniser.size

    def on(size: int, middle: tuple[float, float] = (0.0, 0.0)) -> Transform:
        return Transform(
            shape=prepared.native_shape,
            world_from_index=_rows(prepared.native_world_from_index),
            axes=prepared.reorientation.axes,
            flips=prepared.reorientation.flips,
            frame=prepared.frame,
            grid=Grid(
                usual,
                size,
                homogeniser.pixel_mm,
                prepared.spacing[2],
                float(prepared.world_from_index[2, 3]),
                middle,
            ),
            poses=tuple(_five(pose) for pose in records.pose.tolist()),
        )

    if crop is None:
        needed = _joined(box_of(prepared.mask, invert(matrix_from_pose(torch.from_numpy(records.pose)))))
    else:
        needed = crop
    if marked is not None:
        needed = _joined(needed, box_of(marked > 0, invert(on(usual).slice_from_grid)))
    warnings: tuple[str, ...] = ()
    farthest = float(np.abs(needed).max())
    if farthest > LARGEST:
        warnings = (
            f"body or labels reach {farthest:.1f} times as far as the reference's frame, and are cut at "
            f"{LARGEST:.0f}; is the pose right?",
        )
    if crop is not None:
        return on(*_square(needed.clip(-LARGEST, LARGEST), usual)), warnings
    # By as many pixels on either side, so that the middle stays where it is.
    more = int(np.ceil((min(max(farthest, 1.0), LARGEST) - 1.0) * usual / 2.0))
    return on(usual + 2 * more), warnings


def _box_of(theta2: Tensor) -> np.ndarray:
    """``(x0, y0, x1, y1)`` in the reference's frame that holds the crops ``(N, 3, 3)`` of all slices."""
    half, middle = theta2[:, [0, 1], [0, 1]].abs(), theta2[:, :2, 2]
    return torch.cat([(middle - half).amin(dim=0), (middle + half).amax(dim=0)]).cpu().double().numpy()


def _joined(*boxes: np.ndarray | None) -> np.ndarray:
    """The box that holds some boxes ``(x0, y0, x1, y1)``; the middle where there are none."""
    stack = np.stack([box for box in boxes if box is not None] or [np.zeros(4)])
    return np.concatenate([stack[:, :2].min(axis=0), stack[:, 2:].max(axis=0)])


def _square(box: np.ndarray, usual: int) -> tuple[int, tuple[float, float]]:
    """Side in pixels and middle of a square of whole pixels of the reference's frame that holds a box."""
    first = np.floor((box[:2] + 1.0) / 2.0 * usual)
    size = int(max(1.0, (np.ceil((box[2:] + 1.0) / 2.0 * usual) - first).max()))
    x, y = (2.0 * first + size) / usual - 1.0
    return size, (float(x), float(y))


def box_of(mask: np.ndarray, target_from_image: Tensor) -> np.ndarray | None:
    """``(x0, y0, x1, y1)`` of what is marked, in normalised coordinates of a target; none where nothing is.

    Args:
        mask: ``(z, h, w)``.
        target_from_image: ``(z, 3, 3)`` between normalised coordinates.
    """
    height, width = mask.shape[1:]
    boxes = []
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
        seen = (matrix @ points)[:2]
        boxes.append(np.concatenate([seen.min(axis=1), seen.max(axis=1)]))
    return _joined(*boxes) if boxes else None


def _rows(matrix: np.ndarray) -> tuple[Row, Row, Row, Row]:
    first, second, third, fourth = ((float(a), float(b), float(c), float(d)) for a, b, c, d in matrix)
    return first, second, third, fourth


def _five(pose: list[float]) -> tuple[float, float, float, float, float]:
    angle, x, y, right, down = pose
    return angle, x, y, right, down
