"""STN1: from a slice and its foreground mask to theta1, the pose and size relative to the reference."""

import torch
from torch import Tensor, nn

from isopose.config import PoseConfig
from isopose.geometry.moments import moments, pose_from_moments
from isopose.geometry.similarity import (
    POSE_SIZE,
    add_residual,
    bounded,
    identity_pose,
    isotropic,
    matrix_from_pose,
)
from isopose.geometry.warp import warp
from isopose.models.localisation import Localisation


class PoseTransformer(nn.Module):
    """Estimate poses: closed-form moments or the identity first, then a learned residual.

    Args:
        config: which start, whether and how far it is refined.
        reference_mask: ``(1, 1, S, S)`` in [0, 1], the foreground of the reference in the homogenised frame.
        air: value of air in the normalised images, put outside of them.
    """

    reference_mask: Tensor

    def __init__(self, config: PoseConfig, reference_mask: Tensor, air: float) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("reference_mask", reference_mask.float())
        self.air = float(air)
        self.localisation = Localisation(config.size, POSE_SIZE) if config.learned else None

    def start(self, mask: Tensor) -> Tensor:
        """The pose ``(N, 5)`` from which the regression starts, of masks ``(N, 1, N, N)``."""
        if self.config.start == "identity":
            return identity_pose(mask.shape[0], device=mask.device)
        pose = pose_from_moments(moments(mask), moments(self.reference_mask))
        return isotropic(pose) if self.config.scales == 1 else pose

    def refine(self, image: Tensor, mask: Tensor, start: Tensor) -> Tensor:
        """One learned step from a pose ``(N, 5)`` to a better one; without a network the pose itself."""
        if self.localisation is None:
            return start
        size = (self.config.size, self.config.size)
        theta = matrix_from_pose(start)
        seen = warp(image, theta, size, fill=self.air)
        outline = warp(mask.to(image.dtype), theta, size)
        raw = self.localisation(seen, outline)
        config = self.config
        residual = torch.cat(
            [
                bounded(raw[:, :1], config.max_angle),
                bounded(raw[:, 1:3], config.max_log_scale),
                bounded(raw[:, 3:], config.max_shift),
            ],
            dim=1,
        )
        pose = add_residual(start, residual)
        return isotropic(pose) if config.scales == 1 else pose

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Poses ``(N, 5)`` of frames: image and mask ``(N, 1, S, S)``."""
        return self.refine(image, mask, self.start(mask))

    def agreement(self, mask: Tensor, pose: Tensor) -> Tensor:
        """Eq. 1 for each slice: soft Dice ``(N,)`` of the homogenised mask and the reference's."""
        size = self.reference_mask.shape[-1]
        homogenised = warp(mask.float(), matrix_from_pose(pose), (size, size))
        return soft_dice(homogenised, self.reference_mask)


def soft_dice(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 1 as a fraction: 2|A∩B| / (|A|² + |B|²) for each image of ``(N, C, H, W)``; empty ones agree."""
    overlap = (a * b).flatten(1).sum(dim=1)
    squares = a.square().flatten(1).sum(dim=1) + b.square().flatten(1).sum(dim=1)
    return (2.0 * overlap + 1e-6) / (squares + 1e-6)
