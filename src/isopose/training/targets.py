"""Training targets of pose and crop: the reference's outline and the boxes around the labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isopose.choices import Plane
from isopose.data.plane import OUTLINE_WIDTH
from isopose.data.samples import Batch, each_stack
from isopose.data.store import StoredCase
from isopose.errors import InputError
from isopose.geometry.box import box_of_mask, matrix_from_box
from isopose.geometry.moments import moments, radii_along
from isopose.geometry.pose import LOG_SCALE_X, matrix_from_pose, pose_from_matrix
from isopose.geometry.symmetry import symmetry_axis
from isopose.geometry.warp import compose, warp
from isopose.labels import IGNORED
from isopose.models.pipeline import Networks
from isopose.settings import CropConfig, PoseConfig


@dataclass(frozen=True)
class Reference:
    """The slice that all others are brought to.

    Args:
        case: id of the reference patient's case; shown to the user, never written into a model.
        slice: its index from the feet, after reorientation.
        chosen: ``by the user`` or ``automatically``.
        area_cm2: of the body in that slice; in coronal and sagittal slices of its silhouette.
        symmetry: agreement of the slice with its own mirror image, 1 is perfect.
        lean: radians by which it was turned upright; 0 if it was not turned.
        image: ``(1, 1, S, S)`` the slice in the homogenized frame.
        mask: ``(1, 1, S, S)`` its foreground in the homogenized frame (T in Eq. 1).
    """

    case: str
    slice: int
    chosen: str
    area_cm2: float
    symmetry: float
    lean: float
    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Candidate:
    """One patient's slice that may become the reference.

    Args:
        case: id.
        slice: index from the feet, after reorientation.
        image: ``(1, 1, N, N)`` normalized, in the frame.
        mask: ``(1, 1, N, N)`` its foreground.
        pixel_mm: side of a pixel.
    """

    case: str
    slice: int
    image: Tensor
    mask: Tensor
    pixel_mm: float


def check_reference(config: PoseConfig, cases: Sequence[str]) -> None:
    """Check that the reference patient's case, where one is named, is among the ids of the training cases.

    Raises:
        InputError: it is not.
    """
    if config.reference is not None and config.reference not in cases:
        raise InputError(
            f"pose.reference: case {config.reference!r} is not among the {len(cases)} training cases of this "
            "fold; name one of them or leave it out"
        )


def choose_reference(
    cases: Sequence[StoredCase], config: PoseConfig, air: float, plane: Plane = "axial"
) -> Reference:
    """Return the user's reference patient, or choose one among the training cases.

    The chosen one has about the median size and is the most upright and symmetric.

    Args:
        cases: training cases only.
        config: the named reference, if any, and the fraction of the frame that its body fills.
        air: value of air in the normalized images.
        plane: of the slices.

    Raises:
        InputError: the named case is not among the training cases.
    """
    check_reference(config, [case.record.id for case in cases])
    candidates = []
    for case in cases:
        if config.reference in (None, case.record.id):
            position = _middle_slice(case)
            image, mask = (torch.from_numpy(a)[:, None].float() for a in case.read([position])[:2])
            candidates.append(Candidate(case.record.id, position, image, mask, case.record.frame.pixel_mm))
    return reference_among(candidates, config, air, plane)


def reference_among(
    candidates: Sequence[Candidate], config: PoseConfig, air: float, plane: Plane = "axial"
) -> Reference:
    """Return the reference among one slice each of some patients.

    In coronal and sagittal slices the height of the outline is that of the field of view, and there is no
    roll: the patient is chosen whose width or depth is nearest to the median, and is not turned upright.

    Args:
        candidates: at least one; only the named one if the user chose it.
        config: size of the reference, and the fraction of the frame that its body fills.
        air: value of air in the normalized images.
        plane: of the slices.
    """
    axes = [symmetry_axis(c.image, c.mask) for c in candidates]
    areas = np.array([float(c.mask.sum()) * (c.pixel_mm / 10.0) ** 2 for c in candidates])
    has_usual_size = np.abs(np.log(areas / np.median(areas))) <= np.log(config.reference_within)
    merit = np.array([float(axis.score) - config.reference_lean * abs(float(axis.angle)) for axis in axes])
    best = int(np.lexsort((-merit, ~has_usual_size))[0])
    lean = float(axes[best].angle)
    if plane != "axial":
        widths = np.array([_spread_mm(c) for c in candidates])
        best, lean = int(np.abs(np.log(widths / np.median(widths))).argmin()), 0.0
    image, mask = candidates[best].image, candidates[best].mask

    if config.fill is None:
        lean, theta = 0.0, torch.eye(3)[None]
    else:
        theta = filling_matrix(mask, lean, config.fill * _outline_width(plane))
    size = (config.size, config.size)
    return Reference(
        case=candidates[best].case,
        slice=candidates[best].slice,
        chosen="automatically" if config.reference is None else "by the user",
        area_cm2=float(areas[best]),
        symmetry=float(axes[best].score),
        lean=lean,
        image=warp(image, theta, size, fill=air),
        mask=warp(mask, theta, size),
    )


def _outline_width(plane: Plane) -> float:
    """Return the width of :func:`isopose.data.plane.pose_outline` as a fraction of the body's width."""
    return 1.0 if plane == "axial" else OUTLINE_WIDTH


def _spread_mm(candidate: Candidate) -> float:
    """Return the standard deviation, in mm, of the x positions of the body's pixels."""
    outline = moments(candidate.mask)
    across = radii_along(outline, torch.zeros_like(outline.angle))[0, 0]
    return float(across) * 0.5 * candidate.mask.shape[3] * candidate.pixel_mm


def homogenizing_matrix(networks: Networks, batch: Batch) -> Tensor:
    """Return ``input_from_homogenized`` of a batch whose poses are known, ``(N, 3, 3)`` or ``(N, 4, 4)``."""
    assert batch.pose is not None, "poses are estimated first"
    return networks.input_from_homogenized(batch.pose, batch.stack_from_frame)


def crop_targets(
    labels: Tensor | tuple[Tensor, ...], input_from_homogenized: Tensor, config: CropConfig
) -> tuple[Tensor, Tensor]:
    """Return the target theta2 of the boxes around the labels in the homogenized frame (Eq. 2).

    Args:
        labels: of slices or volumes, see :class:`isopose.data.samples.Batch`.
        input_from_homogenized: ``(N, 3, 3)`` or ``(N, 4, 4)``, by which images are homogenized.
        config: on how many pixels the labels are homogenized, and the margin.

    Returns:
        ``(N, 3, 3)`` or ``(N, 4, 4)`` matrices, and ``(N,)`` whether a sample has labels at all, and so a
        target.
    """
    box, has_box = box_of_mask(where_labeled(labels, input_from_homogenized, config), margin=config.margin)
    return matrix_from_box(box), has_box


def where_labeled(
    labels: Tensor | tuple[Tensor, ...], input_from_homogenized: Tensor, config: CropConfig
) -> Tensor:
    """Return a mask of all labels in the homogenized frame, booleans ``(N, S, S)`` or ``(N, D, S, S)``.

    Voxels that were not annotated count neither as label nor as background.

    Args:
        labels: of slices or volumes, see :class:`isopose.data.samples.Batch`.
        input_from_homogenized: ``(N, 3, 3)`` or ``(N, 4, 4)``, by which images are homogenized.
        config: pixels along a side of the mask (``size``), and voxels along z of volumes (``depth``).
    """
    plane = (config.size, config.size)
    size = plane if input_from_homogenized.shape[-1] == 3 else (config.depth, *plane)
    masks = []
    for stack, matrices in each_stack(labels, input_from_homogenized):
        ignored = stack == IGNORED
        classes = torch.stack([(stack > 0) & ~ignored, ignored], dim=1).float()
        labeled_fraction, ignored_fraction = warp(classes, matrices, size).unbind(dim=1)
        # Thin structures count too; with sparse annotations the fraction is that of the annotated voxels.
        masks.append((labeled_fraction > 0.25 * (1.0 - ignored_fraction)) & (labeled_fraction > 0.01))
    return torch.cat(masks)


def _middle_slice(case: StoredCase) -> int:
    """Return the middle one of the slices with body and label; without any, of those with body."""
    body = np.asarray(case.record.body_fraction) > 0
    labeled = np.flatnonzero(body & np.asarray(case.record.presence, dtype=bool).any(axis=1))
    usable = labeled if len(labeled) else np.flatnonzero(body)
    return int(usable[len(usable) // 2])


def filling_matrix(mask: Tensor, lean: float, fill: float) -> Tensor:
    """Return the matrix that turns a mask upright, centers its box and scales it to fill the frame.

    Args:
        mask: ``(1, 1, N, N)`` foreground.
        lean: radians by which the body is rotated, from +x to +y.
        fill: fraction of the frame's side that the longer side of the box then has.

    Returns:
        ``(1, 3, 3)``, ``input_from_output``.
    """
    upright = matrix_from_pose(torch.tensor([[lean, 0.0, 0.0, 0.0, 0.0]]))
    upright_mask = warp(mask, upright, (mask.shape[2], mask.shape[3]))
    x0, y0, x1, y1 = box_of_mask(upright_mask[:, 0] >= 0.5)[0][0].tolist()
    log_scale = math.log(max(x1 - x0, y1 - y0) / 2.0 / fill)
    box_pose = torch.tensor([[0.0, log_scale, log_scale, (x0 + x1) / 2.0, (y0 + y1) / 2.0]])
    return compose(upright, matrix_from_pose(box_pose))


def normalized_outline(
    mask: Tensor, lean: float, config: PoseConfig, plane: Plane = "axial"
) -> tuple[Tensor, float]:
    """Return the outline of a body, turned upright, centered and scaled to fill its frame.

    Args:
        mask: ``(1, 1, N, N)`` foreground of one slice, soft or binary.
        lean: radians by which the body is rotated, from +x to +y.
        config: pixels of the outline (``size``), and the fraction of the frame that it fills (``fill``).
        plane: of the slice.

    Returns:
        The outline ``(1, 1, S, S)``, and the side of its frame as a fraction of the side of the mask's frame.
    """
    assert config.fill is not None, "without fill the outline keeps its frame"
    theta = filling_matrix(mask, lean, config.fill * _outline_width(plane))
    frame_fraction = float(pose_from_matrix(theta.double())[0, LOG_SCALE_X].exp())
    return warp(mask, theta, (config.size, config.size)), frame_fraction
