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
    #: ``(1, 1, size, size)`` mean of the homogenised training slices; zeros until it is known.
    atlas: Tensor

    def __init__(self, config: PoseConfig, reference_mask: Tensor, air: float) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("reference_mask", reference_mask.float())
        self.register_buffer("atlas", torch.zeros(1, 1, config.size, config.size))
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

    def brightness(self, image: Tensor, mask: Tensor, pose: Tensor) -> Tensor:
        """Homogenised slices ``(N, 1, size, size)``, brightness above air within the body, 0 outside."""
        size = (self.config.size, self.config.size)
        theta = matrix_from_pose(pose)
        return (warp(image, theta, size, fill=self.air) - self.air) * warp(mask.to(image.dtype), theta, size)

    def upright_margin(self, image: Tensor, mask: Tensor, pose: Tensor) -> Tensor:
        """How much more a slice resembles the atlas as posed than turned by 180 degrees: ``(N,)``.

        The difference of two correlations, in [-2, 2]. An outline looks the same turned by 180 degrees; the
        spine, the liver and the gas do not. One slice can mislead, the mean over a scan hardly: measured in
        docs/pipeline.md, "Upside down". Zero while there is no atlas.
        """
        seen, atlas = _standardised(self.brightness(image, mask, pose)), _standardised(self.atlas)
        return ((seen - seen.flip(2, 3)) * atlas).flatten(1).sum(dim=1)


def _standardised(image: Tensor) -> Tensor:
    """Mean 0 and norm 1 for each image, so that a product of two is their correlation."""
    centred = image - image.mean(dim=(1, 2, 3), keepdim=True)
    return centred / centred.square().sum(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)


def soft_dice(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 1 as a fraction: 2|A∩B| / (|A|² + |B|²) for each image of ``(N, C, H, W)``; empty ones agree."""
    overlap = (a * b).flatten(1).sum(dim=1)
    squares = a.square().flatten(1).sum(dim=1) + b.square().flatten(1).sum(dim=1)
    return (2.0 * overlap + 1e-6) / (squares + 1e-6)
