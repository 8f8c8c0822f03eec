"""STN1: from a slice and its foreground mask to theta1, the pose and size relative to the reference."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from isopose.config import PoseConfig
from isopose.geometry.moments import Moments, moments, pose_at_angle, pose_from_moments
from isopose.geometry.overlap import soft_dice
from isopose.geometry.pose import (
    ANGLE,
    POSE_SIZE,
    add_residual,
    bounded,
    identity_pose,
    isotropic,
    matrix_from_pose,
)
from isopose.geometry.warp import block_means, warp
from isopose.models.localization import Localization
from isopose.models.roll import RollNetwork, Shown, shown, view

#: Pixels along a side from which the agreement of outlines is taken, at least.
AGREEMENT = 48
#: Where a slice's pose came from, in the order in which they are tried; last, what a person set.
POSE_SOURCES = ("anatomy", "learned", "moments", "identity", "hand")
BY_HAND = POSE_SOURCES.index("hand")


class SlicePoses(NamedTuple):
    """Poses of N slices, each by itself, and what a scan's common pose is made from.

    Args:
        pose: ``(N, 5)``.
        evidence: ``(N, 2)`` how sure the roll is, times its direction.
        mirrored: ``(N,)`` logit that a slice is shown as in a mirror; 0 where nothing is known of it.
        agreement: ``(N,)`` soft Dice with the reference's outline (Eq. 1).
        source: ``(N,)`` index into :data:`POSE_SOURCES`.
        outline: moments of the masks.
    """

    pose: Tensor
    evidence: Tensor
    mirrored: Tensor
    agreement: Tensor
    source: Tensor
    outline: Moments


class PoseTransformer(nn.Module):
    """Estimate poses: the roll by anatomy, the rest by moments; or moments or the identity, then a residual.

    Args:
        config: which start, whether and how far it is refined.
        reference_mask: ``(1, 1, S, S)`` in [0, 1], the foreground of the reference in the homogenized frame.
        air: value of air in the normalized images, put outside of them.
        top: largest value of the normalized images.
        joint: the residual comes from the network that also crops, see ``models/pipeline.py``; so none here.
    """

    reference_mask: Tensor

    def __init__(
        self, config: PoseConfig, reference_mask: Tensor, air: float, top: float, *, joint: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("reference_mask", reference_mask.float())
        self.air, self.top = float(air), float(top)
        anatomy = config.start == "anatomy"
        self.roll = RollNetwork() if anatomy else None
        alone = config.learned and not anatomy and not joint
        self.localization = Localization(config.size, POSE_SIZE) if alone else None

    def start(self, image: Tensor, mask: Tensor) -> Tensor:
        """The pose ``(N, 5)`` from which the regression starts, of frames ``(N, 1, S, S)``."""
        if self.config.start == "identity":
            return identity_pose(mask.shape[0], device=mask.device)
        of = moments(mask)
        if self.roll is not None:
            return self.at_angle(of, self.roll.roll(self.shown(image, mask)).angle)
        pose = pose_from_moments(of, moments(self.reference_mask))
        return isotropic(pose) if self.config.scales == 1 else pose

    def refine(self, image: Tensor, mask: Tensor, start: Tensor) -> Tensor:
        """One learned step from a pose ``(N, 5)`` to a better one; without a network the pose itself."""
        if self.localization is None:
            return start
        size = (self.config.size, self.config.size)
        theta = matrix_from_pose(start)
        seen = warp(image, theta, size, fill=self.air)
        outline = warp(mask.to(image.dtype), theta, size)
        return self.follow(start, self.localization(seen, outline))

    def follow(self, start: Tensor, raw: Tensor) -> Tensor:
        """A pose ``(N, 5)`` followed by what a network regressed in it, ``(N, 5)``, within the bounds."""
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
        return self.refine(image, mask, self.start(image, mask))

    def shown(self, image: Tensor, mask: Tensor) -> Shown:
        """Frames as the roll network views them."""
        return shown(image, mask, self.air, self.top)

    def first_roll(self, image: Tensor, mask: Tensor) -> Tensor:
        """The angle ``()`` at which a scan lies, as a few of its slices say together after one look.

        The nearer to upright the look at all slices starts, the more alike it errs however the scan lies.
        """
        assert self.roll is not None, "only with the roll network"
        few = self.shown(image, mask)
        evidence = self.roll(view(few, few.place.new_zeros(len(few.place))))[:, :2].sum(dim=0)
        return torch.atan2(evidence[1], evidence[0])

    def at_angle(self, of: Moments, angle: Tensor) -> Tensor:
        """Poses ``(N, 5)`` of outlines whose roll ``(N,)`` is known."""
        pose = pose_at_angle(of, angle, moments(self.reference_mask))
        return isotropic(pose) if self.config.scales == 1 else pose

    def agreement(self, mask: Tensor, pose: Tensor) -> Tensor:
        """Eq. 1 for each slice: soft Dice ``(N,)`` of the homogenized mask and the reference's."""
        reference = block_means(self.reference_mask, AGREEMENT)
        size = (reference.shape[2], reference.shape[3])
        shrunk = block_means(mask.float(), AGREEMENT)
        # The means have no more detail than what is sampled from them: no blur is needed.
        return soft_dice(warp(shrunk, matrix_from_pose(pose), size, prefilter=False), reference)

    def estimate(self, image: Tensor, mask: Tensor, least: float, start: Tensor | None = None) -> SlicePoses:
        """Poses of slices and how far they can be trusted.

        With anatomy, that is the pose. Else the first of learned pose, moments and identity that agrees well
        enough with the reference; where none does (a slice of lung or pelvis looks like no reference in any
        pose) the one that agrees best, whose agreement stays below ``least`` for the caller to report.

        Args:
            image: frames ``(N, 1, S, S)``.
            mask: foreground ``(N, 1, S, S)``.
            least: agreement that is enough.
            start: ``()`` roll of the scan (:meth:`first_roll`), from which one look is enough; none: each
                slice is looked at twice by itself. Only with anatomy.
        """
        of = moments(mask)
        if self.roll is not None:
            slices = self.shown(image, mask)
            seen = self.roll.roll(slices) if start is None else self.roll.roll(slices, 1, start)
            pose = self.at_angle(of, seen.angle)
            source = torch.full_like(seen.angle, POSE_SOURCES.index("anatomy"), dtype=torch.long)
            agreement = self.agreement(slices.mask, pose)
            return SlicePoses(pose, seen.evidence, seen.mirrored, agreement, source, of)
        start = self.start(image, mask)
        candidates: list[tuple[str, Tensor]] = []
        if self.localization is not None:
            candidates.append(("learned", self.refine(image, mask, start)))
        if self.config.start == "moments":
            candidates.append(("moments", start))
        candidates.append(("identity", identity_pose(mask.shape[0], device=mask.device)))
        poses = torch.stack([pose for _, pose in candidates])
        agreement = torch.stack([self.agreement(mask, pose) for _, pose in candidates])
        enough = agreement >= least
        # argmax of booleans is the first that is true.
        chosen = torch.where(enough.any(dim=0), enough.float().argmax(dim=0), agreement.argmax(dim=0))
        rows = torch.arange(mask.shape[0], device=mask.device)
        sources = torch.tensor([POSE_SOURCES.index(name) for name, _ in candidates], device=mask.device)
        pose, agreement = poses[chosen, rows], agreement[chosen, rows]
        direction = torch.stack([pose[:, ANGLE].cos(), pose[:, ANGLE].sin()], dim=1)
        evidence = agreement[:, None].square() * direction
        return SlicePoses(pose, evidence, torch.zeros_like(agreement), agreement, sources[chosen], of)
