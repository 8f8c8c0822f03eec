"""Nine numbers of a volume's pose and their matrix: theta1 = T · R · S in three dimensions.

A pose is a tensor ``(..., 9)``: ``roll``, ``pitch``, ``yaw`` in radians, right-handed (roll about z, +x to
+y; pitch about x, +y to +z; yaw about y, +z to +x); three natural logarithms of scales; three shifts.
Coordinates are isotropic: units of half the frame's side along x, y and z alike, the origin in the frame's
center and the scan's middle (:meth:`isopose.geometry.frame.Frame.stack_from_frame`), so R is a true rotation
whatever the spacing of the slices. The matrix maps the homogenized frame to the input frame
(``frame_from_homogenized``), so a scale below 1 enlarges the patient.
"""

import torch
from torch import Tensor

ROLL, PITCH, YAW, LOG_SCALES, SHIFTS = 0, 1, 2, slice(3, 6), slice(6, 9)
POSE3D_SIZE = 9


def matrix_from_pose3d(pose: Tensor) -> Tensor:
    """theta1 = T · R · S as ``(..., 4, 4)`` from poses ``(..., 9)``; R = z (roll) · y (yaw) · x (pitch).

    Pitch is innermost, as in the phantoms' truth (``phantom/pose.py``). Scales are exponentials, so
    every finite pose has an inverse. At least float32 under autocast.
    """
    with torch.autocast(pose.device.type, enabled=False):
        pose = pose if pose.dtype == torch.float64 else pose.float()
        cz, cx, cy = pose[..., :3].cos().unbind(dim=-1)
        sz, sx, sy = pose[..., :3].sin().unbind(dim=-1)
        rotation = torch.stack(
            [
                torch.stack([cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx], dim=-1),
                torch.stack([sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx], dim=-1),
                torch.stack([-sy, cy * sx, cy * cx], dim=-1),
            ],
            dim=-2,
        )
        linear = rotation * pose[..., None, LOG_SCALES].exp()
        top = torch.cat([linear, pose[..., SHIFTS, None]], dim=-1)
        last = pose.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*pose.shape[:-1], 1, 4)
        return torch.cat([top, last], dim=-2)


def pose3d_from_matrix(matrix: Tensor) -> Tensor:
    """The pose of a matrix T · R · S with positive scales; the inverse of :func:`matrix_from_pose3d`.

    Yaw lies within 90 degrees. A sheared or mirrored matrix has no pose; the result is then meaningless.
    """
    scales = matrix[..., :3, :3].norm(dim=-2)
    r = matrix[..., :3, :3] / scales[..., None, :]
    roll = torch.atan2(r[..., 1, 0], r[..., 0, 0])
    pitch = torch.atan2(r[..., 2, 1], r[..., 2, 2])
    yaw = torch.atan2(-r[..., 2, 0], torch.hypot(r[..., 2, 1], r[..., 2, 2]))
    return torch.cat([torch.stack([roll, pitch, yaw], dim=-1), scales.log(), matrix[..., :3, 3]], dim=-1)


def add_residual3d(start: Tensor, residual: Tensor) -> Tensor:
    """Follow a pose by a small change seen in the homogenized frame, staying in T · R · S; both ``(..., 9)``.

    As :func:`isopose.geometry.pose.add_residual`: angles and log scales add, the residual's shift is
    carried through the start's matrix. At least float32 under autocast.
    """
    with torch.autocast(start.device.type, enabled=False):
        linear = matrix_from_pose3d(start)[..., :3, :3]
        shift = (linear @ residual.to(linear.dtype)[..., SHIFTS, None]).squeeze(-1) + start[..., SHIFTS]
        return torch.cat([start[..., :6] + residual[..., :6], shift], dim=-1)
