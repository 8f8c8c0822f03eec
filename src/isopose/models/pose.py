"""STN1: from a slice and its foreground mask to theta1, the pose and size relative to the reference."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from isopose.choices import Plane
from isopose.geometry.box import filled_fraction
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
from isopose.models.roll import RollInput, RollNetwork, roll_input_by_own_body, roll_input_of
from isopose.settings import PoseConfig

#: Fewest pixels along a side on which the agreement of outlines is computed.
AGREEMENT_SIZE = 48
#: Where a slice's pose comes from, in the order in which they are tried; "hand" is a person's correction.
POSE_SOURCES = ("anatomy", "learned", "moments", "header", "identity", "hand")
HAND_SOURCE = POSE_SOURCES.index("hand")


class SlicePoses(NamedTuple):
    """Poses of N slices, each estimated independently, and the evidence for a common pose of their scan.

    Args:
        pose: ``(N, 5)``.
        evidence: ``(N, 2)`` concentration of the roll times its unit direction.
        mirrored: ``(N,)`` logit that a slice is mirrored; 0 where it is not estimated.
        agreement: ``(N,)`` soft Dice with the reference's outline (Eq. 1).
        source: ``(N,)`` index into :data:`POSE_SOURCES`.
        filled: ``(N,)`` fraction of its bounding box that the mask fills.
        outline: moments of the masks.
    """

    pose: Tensor
    evidence: Tensor
    mirrored: Tensor
    agreement: Tensor
    source: Tensor
    filled: Tensor
    outline: Moments


class PoseTransformer(nn.Module):
    """Estimate the pose of slices: an initial pose, then, where configured, a learned residual.

    The initial pose (``config.start``) takes the roll from the anatomy or the file's header and the rest from
    the outline's moments, or all from the moments, or is the identity.

    Args:
        config: the initial pose, whether it is refined, and the bounds of the residual.
        reference_mask: ``(1, 1, S, S)`` in [0, 1], the foreground of the reference in the homogenized frame.
        air: value of air in the normalized images, with which pixels outside of them are filled.
        top: largest value of the normalized images.
        joint: build no network here: one joint network gives residual and crop (``models/pipeline.py``).
        plane: of the slices. In another one than ``axial`` the roll is the header's, and both scales are that
            of the outline's width, since the field of view cuts the outline above and below.
    """

    reference_mask: Tensor

    def __init__(
        self,
        config: PoseConfig,
        reference_mask: Tensor,
        air: float,
        top: float,
        *,
        joint: bool = False,
        plane: Plane = "axial",
    ) -> None:
        super().__init__()
        self.config = config = config.in_plane(plane)
        self.plane = plane
        self.register_buffer("reference_mask", reference_mask.float())
        self.air, self.top = float(air), float(top)
        uses_roll_network = config.start == "anatomy"
        self.roll = RollNetwork() if uses_roll_network else None
        has_network = config.learned and not uses_roll_network and not joint
        self.localization = Localization(config.size, POSE_SIZE) if has_network else None

    @property
    def keeps_header(self) -> bool:
        """Whether the roll is always the header's."""
        return self.config.start == "header" and self.localization is None

    def initial_pose(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return the poses ``(N, 5)`` to which the regressed residual is added.

        Args:
            image: frames ``(N, 1, S, S)``.
            mask: the same shape, foreground.
        """
        if self.config.start == "identity":
            return identity_pose(mask.shape[0], device=mask.device)
        outline = moments(mask)
        if self.roll is not None:
            return self.pose_at_angle(outline, self.roll.estimate(self.roll_input(image, mask)).angle)
        if self.config.start == "header":
            return self.pose_at_angle(outline, torch.zeros_like(outline.angle))
        pose = pose_from_moments(outline, moments(self.reference_mask))
        return isotropic(pose) if self.config.scales == 1 else pose

    def refine(self, image: Tensor, mask: Tensor, initial_pose: Tensor) -> Tensor:
        """Add the localization network's residual to poses; without a network return them unchanged.

        Args:
            image: frames ``(N, 1, S, S)``.
            mask: the same shape, foreground.
            initial_pose: ``(N, 5)``, by which the network's input is homogenized.

        Returns:
            Poses ``(N, 5)``.
        """
        if self.localization is None:
            return initial_pose
        size = (self.config.size, self.config.size)
        theta = matrix_from_pose(initial_pose)
        homogenized = warp(image, theta, size, fill=self.air)
        homogenized_mask = warp(mask.to(image.dtype), theta, size)
        return self.add_bounded(initial_pose, self.localization(homogenized, homogenized_mask))

    def add_bounded(self, initial_pose: Tensor, raw: Tensor) -> Tensor:
        """Add a regressed residual to poses, within the configured bounds.

        Args:
            initial_pose: ``(N, 5)``.
            raw: ``(N, 5)``, the network's output.

        Returns:
            Poses ``(N, 5)``; true similarities where ``config.scales`` is 1.
        """
        config = self.config
        residual = torch.cat(
            [
                bounded(raw[:, :1], config.max_angle),
                bounded(raw[:, 1:3], config.max_log_scale),
                bounded(raw[:, 3:], config.max_shift),
            ],
            dim=1,
        )
        pose = add_residual(initial_pose, residual)
        return isotropic(pose) if config.scales == 1 else pose

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Estimate poses ``(N, 5)`` of frames: image and mask ``(N, 1, S, S)``."""
        return self.refine(image, mask, self.initial_pose(image, mask))

    def roll_input(self, image: Tensor, mask: Tensor) -> RollInput:
        """Prepare frames ``(N, 1, S, S)`` for the roll network."""
        if self.config.contrast == "any":
            return roll_input_by_own_body(image, mask)
        return roll_input_of(image, mask, self.air, self.top)

    def pose_at_angle(self, outline: Moments, angle: Tensor) -> Tensor:
        """Return poses ``(N, 5)`` of outlines whose roll ``(N,)`` (radians) is known."""
        pose = pose_at_angle(outline, angle, moments(self.reference_mask), by_width=self.plane != "axial")
        return isotropic(pose) if self.config.scales == 1 else pose

    def agreement(self, mask: Tensor, pose: Tensor) -> Tensor:
        """Return Eq. 1 for each slice: soft Dice ``(N,)`` of the homogenized mask and the reference's.

        In coronal and sagittal slices only those rows are compared in which both masks have foreground: how
            far
        a field of view reaches toward head and feet does not depend on the pose.

        Args:
            mask: ``(N, 1, S, S)``.
            pose: ``(N, 5)``.
        """
        reference = block_means(self.reference_mask, AGREEMENT_SIZE)
        size = (reference.shape[2], reference.shape[3])
        shrunk = block_means(mask.float(), AGREEMENT_SIZE)
        # Block means have no more detail than the samples taken from them, so no prefilter is needed.
        homogenized = warp(shrunk, matrix_from_pose(pose), size, prefilter=False)
        if self.plane == "axial":
            return soft_dice(homogenized, reference)
        rows = (homogenized.amax(dim=3, keepdim=True) >= 0.5) & (reference.amax(dim=3, keepdim=True) >= 0.5)
        agreement = soft_dice(homogenized * rows, reference * rows)
        return torch.where(rows.flatten(1).any(dim=1), agreement, torch.zeros_like(agreement))

    def estimate(
        self, image: Tensor, mask: Tensor, min_agreement: float, scan_roll: Tensor | None = None
    ) -> SlicePoses:
        """Estimate the poses of slices and how far each can be trusted.

        With the roll network there is one candidate, its pose. Otherwise the first of learned pose, moments
        or header, and identity (not with ``start=header``) whose agreement with the reference reaches
        ``min_agreement`` is taken. Where none does (a slice of lung or pelvis may resemble the reference in
        no pose), the candidate of the highest agreement is taken, and that agreement stays below
        ``min_agreement`` for the caller to report.

        Args:
            image: frames ``(N, 1, S, S)``.
            mask: foreground ``(N, 1, S, S)``.
            min_agreement: agreement (Eq. 1) from which a candidate is accepted.
            scan_roll: ``()`` initial roll of the scan, from which one pass is enough; None: two passes for
                each slice. Used by the roll network only.
        """
        outline, filled = moments(mask), filled_fraction(mask)
        if self.plane != "axial":
            # A silhouette that the field of view cuts above and below fills its box, and shows its width.
            filled = torch.zeros_like(filled)
        if self.roll is not None:
            slices = self.roll_input(image, mask)
            passes = 2 if scan_roll is None else 1
            roll = self.roll.estimate(slices, passes=passes, initial_angle=scan_roll)
            pose = self.pose_at_angle(outline, roll.angle)
            source = torch.full_like(roll.angle, POSE_SOURCES.index("anatomy"), dtype=torch.long)
            agreement = self.agreement(slices.mask, pose)
            return SlicePoses(pose, roll.evidence, roll.mirrored, agreement, source, filled, outline)
        initial = self.initial_pose(image, mask)
        candidates: list[tuple[str, Tensor]] = []
        if self.localization is not None:
            candidates.append(("learned", self.refine(image, mask, initial)))
        if self.config.start in ("moments", "header"):
            candidates.append((self.config.start, initial))
        if self.config.start != "header":
            candidates.append(("identity", identity_pose(mask.shape[0], device=mask.device)))
        poses = torch.stack([pose for _, pose in candidates])
        agreement = torch.stack([self.agreement(mask, pose) for _, pose in candidates])
        accepted = agreement >= min_agreement
        # argmax of booleans gives the first that is True.
        chosen = torch.where(accepted.any(dim=0), accepted.float().argmax(dim=0), agreement.argmax(dim=0))
        rows = torch.arange(mask.shape[0], device=mask.device)
        sources = torch.tensor([POSE_SOURCES.index(name) for name, _ in candidates], device=mask.device)
        pose, agreement = poses[chosen, rows], agreement[chosen, rows]
        direction = torch.stack([pose[:, ANGLE].cos(), pose[:, ANGLE].sin()], dim=1)
        evidence = agreement[:, None].square() * direction
        mirrored = torch.zeros_like(agreement)
        return SlicePoses(pose, evidence, mirrored, agreement, sources[chosen], filled, outline)
