"""The parameters of a pose and their matrix theta1 = T · R · S, for slices and for volumes.

A pose is a tensor of five numbers for slices, ``(..., 5)``, or of nine for volumes, ``(..., 9)``: angles,
natural logarithms of scales, shifts.

* Slices: ``angle`` in radians, positive from +x to +y; ``log_scale_x``, ``log_scale_y``; ``shift_x``,
  ``shift_y`` in normalized coordinates of a square frame.
* Volumes: ``roll``, ``pitch``, ``yaw`` in radians, right-handed (roll about z, +x to +y; pitch about x, +y to
  +z; yaw about y, +z to +x); three log scales; three shifts, in units of half the frame's side along x, y and
  z alike, with the origin in the frame's center and the scan's middle
  (:meth:`isopose.geometry.frame.Frame.stack_from_frame`).

Both units are isotropic, so R is a true rotation. The matrix maps the homogenized frame to the input frame
(``input_from_homogenized``): a scale below 1 enlarges the patient.
"""

import torch
from torch import Tensor

from isopose.geometry.warp import affine

#: Indices of a slice's five numbers.
ANGLE, LOG_SCALE_X, LOG_SCALE_Y, SHIFT_X, SHIFT_Y = range(5)
#: Indices of a volume's nine numbers.
ROLL, PITCH, YAW, LOG_SCALES, SHIFTS = 0, 1, 2, slice(3, 6), slice(6, 9)
#: Numbers of a pose, by the number of dimensions.
POSE_SIZES = {2: 5, 3: 9}
POSE_SIZE = POSE_SIZES[2]


def identity_pose(count: int, *, device: torch.device | None = None) -> Tensor:
    """Return identity poses ``(count, 5)``."""
    return torch.zeros(count, POSE_SIZE, device=device)


def split_pose(pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split poses ``(..., 5)`` into angles, log scales and shifts: ``(..., 1)``, ``(..., 2)``, ``(..., 2)``.

    Poses ``(..., 9)`` are split into three parts of ``(..., 3)``.
    """
    dims = 2 if pose.shape[-1] == POSE_SIZE else 3
    angles = pose.shape[-1] - 2 * dims
    return pose[..., :angles], pose[..., angles : angles + dims], pose[..., angles + dims :]


def matrix_from_pose(pose: Tensor) -> Tensor:
    """Return theta1 = T · R · S (the paper's theta^1) of poses.

    Poses ``(..., 5)`` give ``(..., 3, 3)``, poses ``(..., 9)`` of volumes ``(..., 4, 4)``. Scales are
    exponentials, so every finite pose has an inverse. Computed in float32 or float64, also under autocast.
    """
    with torch.autocast(pose.device.type, enabled=False):
        pose = pose if pose.dtype == torch.float64 else pose.float()
        angles, log_scales, shifts = split_pose(pose)
        return affine(_rotation(angles) * log_scales.exp()[..., None, :], shifts)


def _rotation(angles: Tensor) -> Tensor:
    """Return rotations ``(..., 2, 2)`` by angles ``(..., 1)``, or ``(..., 3, 3)`` by ``(..., 3)``.

    In 3D R = Rz(roll) · Ry(yaw) · Rx(pitch), the order of the phantoms' truth (``phantom/pose.py``).
    """
    if angles.shape[-1] == 1:
        c, s = angles[..., 0].cos(), angles[..., 0].sin()
        return torch.stack([torch.stack([c, -s], dim=-1), torch.stack([s, c], dim=-1)], dim=-2)
    cz, cx, cy = angles.cos().unbind(dim=-1)
    sz, sx, sy = angles.sin().unbind(dim=-1)
    rows = [
        torch.stack([cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx], dim=-1),
        torch.stack([sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx], dim=-1),
        torch.stack([-sy, cy * sx, cy * cx], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def pose_from_matrix(matrix: Tensor) -> Tensor:
    """Return the pose of a matrix T · R · S with positive scales; the inverse of :func:`matrix_from_pose`.

    Args:
        matrix: ``(..., 3, 3)`` or ``(..., 4, 4)``, neither sheared nor mirrored, because such a matrix has no
            pose. A volume's yaw is assumed to be within 90 degrees.
    """
    dims = matrix.shape[-1] - 1
    scales = matrix[..., :dims, :dims].norm(dim=-2)
    r = matrix[..., :dims, :dims] / scales[..., None, :]
    angles = [torch.atan2(r[..., 1, 0], r[..., 0, 0])]
    if dims == 3:
        angles.append(torch.atan2(r[..., 2, 1], r[..., 2, 2]))
        angles.append(torch.atan2(-r[..., 2, 0], torch.hypot(r[..., 2, 1], r[..., 2, 2])))
    return torch.cat([torch.stack(angles, dim=-1), scales.log(), matrix[..., :dims, dims]], dim=-1)


def add_residual(pose: Tensor, residual: Tensor) -> Tensor:
    """Add a residual, estimated in the homogenized frame, to a pose; the result keeps the form T · R · S.

    Angles and log scales are added. The residual's shift is given in the homogenized frame and is mapped
    through the pose's matrix. (The product of the two matrices would contain shear.) Computed in float32 or
    float64, also under autocast.

    Args:
        pose: ``(..., 5)`` or ``(..., 9)``.
        residual: the same shape.
    """
    with torch.autocast(pose.device.type, enabled=False):
        shifts = split_pose(pose)[2]
        dims = shifts.shape[-1]
        linear = matrix_from_pose(pose)[..., :dims, :dims]
        moved = (linear @ residual.to(linear.dtype)[..., -dims:, None]).squeeze(-1) + shifts
        return torch.cat([pose[..., :-dims] + residual[..., :-dims], moved], dim=-1)


def isotropic(pose: Tensor) -> Tensor:
    """Return true similarities: all scales of poses are replaced by their geometric mean.

    Args:
        pose: ``(..., 5)`` or ``(..., 9)``.
    """
    angles, log_scales, shifts = split_pose(pose)
    return torch.cat([angles, log_scales.mean(dim=-1, keepdim=True).expand_as(log_scales), shifts], dim=-1)


def bounded(raw: Tensor, limit: float) -> Tensor:
    """Bound values smoothly to (-limit, limit), limit · tanh(raw / limit), with a gradient everywhere."""
    return limit * torch.tanh(raw / limit)
