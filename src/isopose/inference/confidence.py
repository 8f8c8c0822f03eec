"""When is a pose or a crop believed, and what is used instead."""

from dataclasses import dataclass

import torch
from torch import Tensor

from isopose.geometry.similarity import identity_pose
from isopose.models.pose import PoseTransformer

#: Where a slice's pose came from, in the order in which they are tried.
POSE_SOURCES = ("learned", "moments", "identity")


@dataclass(frozen=True)
class ChosenPose:
    """Poses and how far they can be trusted.

    Args:
        pose: ``(N, 5)``.
        agreement: ``(N,)`` soft Dice with the reference's outline (Eq. 1).
        source: ``(N,)`` index into :data:`POSE_SOURCES`.
    """

    pose: Tensor
    agreement: Tensor
    source: Tensor


def choose_pose(transformer: PoseTransformer, image: Tensor, mask: Tensor, least: float) -> ChosenPose:
    """The first of learned pose, moments and identity that agrees well enough with the reference.

    Where none does (a slice of lung or pelvis looks like no reference in any pose) the one that agrees best
    is taken, and its agreement stays below ``least`` for the caller to report.

    Args:
        transformer: STN1.
        image: frames ``(N, 1, S, S)``.
        mask: foreground ``(N, 1, S, S)``.
        least: agreement that is enough.
    """
    start = transformer.start(mask)
    candidates: list[tuple[int, Tensor]] = []
    if transformer.localisation is not None:
        candidates.append((0, transformer.refine(image, mask, start)))
    if transformer.config.start == "moments":
        candidates.append((1, start))
    candidates.append((2, identity_pose(mask.shape[0], device=mask.device)))
    poses = torch.stack([pose for _, pose in candidates])
    agreement = torch.stack([transformer.agreement(mask, pose) for _, pose in candidates])
    enough = agreement >= least
    # argmax of booleans is the first that is true.
    chosen = torch.where(enough.any(dim=0), enough.float().argmax(dim=0), agreement.argmax(dim=0))
    rows = torch.arange(mask.shape[0], device=mask.device)
    sources = torch.tensor([source for source, _ in candidates], device=mask.device)
    return ChosenPose(poses[chosen, rows], agreement[chosen, rows], sources[chosen])


def touches_border(probabilities: Tensor, theta2: Tensor, border: int) -> Tensor:
    """Which crops cut a structure off: a label lies at an edge of the crop that is not the frame's own edge.

    Args:
        probabilities: ``(N, classes, M, M)``.
        theta2: ``(N, 3, 3)``, homogenised from crop.
        border: width in pixels that counts as the edge.
    """
    marked = probabilities.argmax(dim=1) > 0
    if border == 0:
        return torch.zeros(len(marked), dtype=torch.bool, device=marked.device)
    scale, x, y = theta2[:, 0, 0], theta2[:, 0, 2], theta2[:, 1, 2]
    edges = (
        (marked[:, :, :border], x - scale > -1.0),
        (marked[:, :, -border:], x + scale < 1.0),
        (marked[:, :border, :], y - scale > -1.0),
        (marked[:, -border:, :], y + scale < 1.0),
    )
    cut = [strip.flatten(1).any(dim=1) & inside for strip, inside in edges]
    return torch.stack(cut).any(dim=0)
