"""Poses and crops that a user set by hand, in place of those that STN1 and STN2 estimate.

A correction belongs to a scan, identified by its hash, and can be used with any model: it records the frame
and the reference of its poses, from which they are converted to those of the model.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from isopose.errors import InputError
from isopose.files import hash_of, read_json, write_json
from isopose.geometry.box import MIN_CROP, transferred
from isopose.geometry.frame import Frame
from isopose.geometry.moments import moments, radii_along
from isopose.geometry.pose import ANGLE, LOG_SCALE_X, LOG_SCALE_Y, POSE_SIZE, SHIFT_X, matrix_from_pose
from isopose.renamed import CORRECTION, with_present_names
from isopose.strict import STRICT, Hash, first_problem

FORMAT: Literal["isopose-correction/1"] = "isopose-correction/1"


@dataclass(frozen=True)
class SetPose:
    """A pose set in one slice.

    Args:
        slice: index from the feet, after reorientation.
        pose: ``(5,)``, see :mod:`isopose.geometry.pose`, in the correction's frame and relative to its
            reference.
    """

    slice: Annotated[int, Field(ge=0)]
    pose: Annotated[tuple[float, ...], Field(min_length=POSE_SIZE, max_length=POSE_SIZE)]
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if max(abs(value) for value in self.pose) > 10.0:
            raise ValueError("expected radians, logarithms and half sides below 10")


@dataclass(frozen=True)
class SetCrop:
    """A crop set in one slice: half its side and its center, in half sides of the homogenized frame."""

    slice: Annotated[int, Field(ge=0)]
    scale: Annotated[float, Field(ge=MIN_CROP, le=1.0)]
    x: Annotated[float, Field(ge=-1.0, le=1.0)]
    y: Annotated[float, Field(ge=-1.0, le=1.0)]
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class OutlineMoments:
    """Center of a reference's body in the homogenized frame, and its standard deviation along x and y."""

    center: tuple[float, float]
    spread: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class Correction:
    """Poses and crops that a user set for one scan; linear between the slices that were set, constant beyond.

    Args:
        image_sha256: hash of the scan, see ``io/sources.py: hash_of_source``.
        frame: of the poses.
        reference: outline to which the poses bring the scan.
        poses: by ascending slice; empty: the estimated poses are used.
        crops: by ascending slice; empty: the crops are estimated, in the poses that were set.
    """

    image_sha256: Hash
    frame: Frame
    reference: OutlineMoments
    poses: tuple[SetPose, ...] = ()
    crops: tuple[SetCrop, ...] = ()
    format: Literal["isopose-correction/1"] = FORMAT
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if not self.poses and not self.crops:
            raise ValueError("expected a pose or a crop")
        for entries in (self.poses, self.crops):
            indices = [entry.slice for entry in entries]
            if indices != sorted(set(indices)):
                raise ValueError("expected slices in ascending order, each once")
        if not 0 < self.frame.fov_mm < 1e5 or self.frame.size < 1:
            raise ValueError("expected a frame with a side")

    def to_json(self) -> dict[str, Any]:
        """Return the correction as values that JSON represents exactly."""
        return _CORRECTION.dump_python(self, mode="json")

    @property
    def sha256(self) -> str:
        """Hash that identifies the correction in the records of results."""
        return hash_of(self.to_json())

    def poses_at(self, slices: np.ndarray, frame: Frame, reference_mask: Tensor) -> Tensor | None:
        """Return poses ``(N, 5)`` for slices; None if no pose was set.

        Args:
            slices: ``(N,)`` indices from the feet.
            frame: of the returned poses.
            reference_mask: ``(1, 1, S, S)``, reference to which the returned poses bring the scan.
        """
        if not self.poses:
            return None
        values = np.array([entry.pose for entry in self.poses])
        values[:, ANGLE] = np.unwrap(values[:, ANGLE])
        pose = torch.from_numpy(_interpolate([entry.slice for entry in self.poses], values, slices)).float()
        return _to_reference(_to_frame(pose, self.frame, frame), self.reference, outline_of(reference_mask))

    def crops_at(self, slices: np.ndarray, poses: Tensor, reference_mask: Tensor) -> Tensor | None:
        """Return crops ``(N, 3, 3)``, homogenized from crop, for slices; None if no crop was set.

        Args:
            slices: ``(N,)`` indices from the feet.
            poses: ``(N, 5)`` in which the crops are returned, set by hand or estimated.
            reference_mask: ``(1, 1, S, S)``, reference to which the poses bring the scan.
        """
        if not self.crops:
            return None
        values = np.array([[np.log(entry.scale), entry.x, entry.y] for entry in self.crops])
        log_scale, x, y = _interpolate([entry.slice for entry in self.crops], values, slices).T
        theta2 = torch.zeros(len(slices), 3, 3)
        theta2[:, 0, 0] = theta2[:, 1, 1] = torch.from_numpy(np.exp(log_scale)).float()
        theta2[:, 0, 2], theta2[:, 1, 2] = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        theta2[:, 2, 2] = 1.0
        # The crops were set in the poses that bring the scan to the correction's own reference.
        poses = poses.cpu()
        original_poses = _to_reference(poses, outline_of(reference_mask), self.reference)
        if torch.equal(original_poses, poses):
            return theta2
        return transferred(theta2, matrix_from_pose(original_poses), matrix_from_pose(poses))


_CORRECTION = TypeAdapter(Correction)


def outline_of(reference_mask: Tensor) -> OutlineMoments:
    """Return center and spread of a reference mask ``(1, 1, S, S)``."""
    outline = moments(reference_mask)
    (center_x, center_y), *_ = outline.center.tolist()
    (spread_x, spread_y), *_ = radii_along(outline, torch.zeros_like(outline.angle)).tolist()
    return OutlineMoments((center_x, center_y), (spread_x, spread_y))


def correction_from_json(value: Any, name: str) -> Correction:
    """Return a correction from the values that :meth:`Correction.to_json` returns.

    Args:
        value: parsed JSON.
        name: of its file, for messages.

    Raises:
        InputError: the value is not a correction.
    """
    try:
        # As JSON text: pydantic's strict mode then accepts lists for tuples.
        return _CORRECTION.validate_json(json.dumps(with_present_names(value, CORRECTION)))
    except ValidationError as error:
        raise InputError(
            f"{name}: expected a correction ({FORMAT}), but {first_problem(error)}; set it again"
        ) from None


def write_correction(folder: Path, correction: Correction) -> Path:
    """Write a correction to a file named by its scan's hash, replacing an earlier one; return its path."""
    path = correction_path(folder, correction.image_sha256)
    write_json(path, correction.to_json())
    return path


def correction_path(folder: Path, image_sha256: str) -> Path:
    """Return the path of a scan's correction."""
    return Path(folder) / f"{image_sha256[:16]}.json"


def read_corrections(folder: Path) -> dict[str, Correction]:
    """Read all corrections of a folder; returns them by the scan's hash.

    Raises:
        InputError: no such folder, a file that is not a correction, or two corrections of one scan.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of corrections, as isopose serve keeps them")
    corrections: dict[str, Correction] = {}
    for path in sorted(folder.glob("*.json")):
        correction = correction_from_json(read_json(path), str(path))
        if correction.image_sha256 in corrections:
            raise InputError(f"{path}: a second correction of the same scan; keep one")
        corrections[correction.image_sha256] = correction
    if not corrections:
        raise InputError(f"{folder}: holds no correction (*.json)")
    return corrections


def _interpolate(indices: Sequence[int], values: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Interpolate linearly along the scan; constant before the first and after the last index.

    Args:
        indices: K ascending indices of slices.
        values: ``(K, n)`` at these slices.
        slices: ``(N,)`` indices at which to interpolate.

    Returns:
        ``(N, n)``.
    """
    return np.stack([np.interp(slices, indices, column) for column in values.T], axis=1)


def _to_frame(pose: Tensor, old: Frame, new: Frame) -> Tensor:
    """Convert poses ``(N, 5)`` from one frame of a scan to another."""
    factor = old.fov_mm / new.fov_mm
    center = [2.0 * (old.center_mm[axis] - new.center_mm[axis]) / new.fov_mm for axis in (0, 1)]
    out = pose.clone()
    out[:, LOG_SCALE_X : LOG_SCALE_Y + 1] += float(np.log(factor))
    out[:, SHIFT_X:] = factor * pose[:, SHIFT_X:] + pose.new_tensor(center)
    return out


def _to_reference(pose: Tensor, old: OutlineMoments, new: OutlineMoments) -> Tensor:
    """Convert poses ``(N, 5)`` from one reference to another with a different center and size."""
    if np.allclose([*old.center, *old.spread], [*new.center, *new.spread], atol=1e-6):
        return pose
    out = pose.clone()
    ratio = pose.new_tensor(old.spread) / pose.new_tensor(new.spread)
    out[:, LOG_SCALE_X : LOG_SCALE_Y + 1] += ratio.log()
    before, after = matrix_from_pose(pose)[:, :2, :2], matrix_from_pose(out)[:, :2, :2]
    out[:, SHIFT_X:] += before @ pose.new_tensor(old.center) - after @ pose.new_tensor(new.center)
    return out
