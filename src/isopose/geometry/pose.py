"""Five numbers of a pose and their matrix: theta1 = T · R · S.

A pose is a tensor ``(..., 5)``: ``angle`` in radians, positive from +x to +y; ``log_scale_x``,
``log_scale_y``, natural logarithms; ``shift_x``, ``shift_y`` in normalized coordinates of a square frame.
The matrix maps the homogenized frame to the input frame (``input_from_homogenized``), so a scale below 1
enlarges the patient. Frames are square, hence normalized units are isotropic and R is a true rotation.
"""

import torch
from torch import Tensor

ANGLE, LOG_SCALE_X, LOG_SCALE_Y, SHIFT_X, SHIFT_Y = range(5)
POSE_SIZE = 5


def identity_pose(count: int, *, device: torch.device | None = None) -> Tensor:
    """``(count, 5)`` poses that change nothing."""
    return torch.zeros(count, POSE_SIZE, device=device)


def matrix_from_pose(pose: Tensor) -> Tensor:
    """theta1 = T · R · S as ``(..., 3, 3)`` (the paper's theta^1, five parameters), from poses ``(..., 5)``.

    Scales are exponentials, so every finite pose has an inverse. At least float32 under autocast.
    """
    with torch.autocast(pose.device.type, enabled=False):
        pose = pose if pose.dtype == torch.float64 else pose.float()
        cos, sin = torch.cos(pose[..., ANGLE]), torch.sin(pose[..., ANGLE])
        sx, sy = torch.exp(pose[..., LOG_SCALE_X]), torch.exp(pose[..., LOG_SCALE_Y])
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rows = [
            torch.stack([cos * sx, -sin * sy, pose[..., SHIFT_X]], dim=-1),
            torch.stack([sin * sx, cos * sy, pose[..., SHIFT_Y]], dim=-1),
            torch.stack([zero, zero, one], dim=-1),
        ]
        return torch.stack(rows, dim=-2)


def pose_from_matrix(matrix: Tensor) -> Tensor:
    """The pose of a matrix T · R · S with positive scales; the inverse of :func:`matrix_from_pose`.

    A matrix that is not of this form (sheared or mirrored) has no pose; the result is then meaningless.
    """
    angle = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    scale_x = matrix[..., :2, 0].norm(dim=-1)
    scale_y = matrix[..., :2, 1].norm(dim=-1)
    return torch.stack([angle, scale_x.log(), scale_y.log(), matrix[..., 0, 2], matrix[..., 1, 2]], dim=-1)


def add_residual(start: Tensor, residual: Tensor) -> Tensor:
    """Follow a pose by a small change seen in the homogenized frame, staying in T · R · S.

    Angles and log scales add; the residual's shift is measured in the homogenized frame and carried through
    the start's matrix. The plain product of two such matrices would shear. Both ``(..., 5)``. At least
    float32 under autocast.
    """
    with torch.autocast(start.device.type, enabled=False):
        linear = matrix_from_pose(start)[..., :2, :2]
        shift = (linear @ residual.to(linear.dtype)[..., SHIFT_X:, None]).squeeze(-1) + start[..., SHIFT_X:]
        return torch.cat([start[..., :SHIFT_X] + residual[..., :SHIFT_X], shift], dim=-1)


def isotropic(pose: Tensor) -> Tensor:
    """The true similarity nearest to a pose: both scales replaced by their geometric mean."""
    mean = pose[..., LOG_SCALE_X : LOG_SCALE_Y + 1].mean(dim=-1, keepdim=True)
    return torch.cat([pose[..., :1], mean, mean, pose[..., SHIFT_X:]], dim=-1)


def bounded(raw: Tensor, limit: float) -> Tensor:
    """Clamp to (-limit, limit) smoothly, so that the gradient never dies; identity near 0."""
    return limit * torch.tanh(raw / limit)
