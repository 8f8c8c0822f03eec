"""From a scan to a label map on the scan's own grid."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isopose import scratch
from isopose.data.preprocess import Prepared, prepare
from isopose.devices import autocast, choose_precision
from isopose.geometry.box import widened
from isopose.geometry.pose import LOG_SCALES
from isopose.geometry.volume import Volume
from isopose.geometry.warp import compose, warp
from isopose.inference.border import touches_border
from isopose.labels import mirrored_classes
from isopose.models.folder import Model
from isopose.models.pipeline import frame_from_crop
from isopose.models.restore import marked, most_probable, reached, restore, restore_slices
from isopose.scan.correction import Correction
from isopose.scan.find import (
    batches_of,
    channels_of,
    find_crops,
    find_poses,
    find_volume_pose,
    frames,
    slice_poses_of,
)
from isopose.scan.pose import ScanPose
from isopose.scan.warnings import crop_warnings, pose_warnings

#: A crop that cuts grows by this factor until it cuts nothing. Small, for the network knows its crops' scale:
#: docs/measurements.md, "Choices".
WIDEN = 1.1
#: Part of what is marked that may lie outside the body before a warning; borders differ by a pixel.
OUTSIDE = 0.05
#: Warn of a scan that reaches further than the training scans by more than this.
BEYOND_MM = 20.0

#: Called with (slices done, slices).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """A label map and what it rests on.

    Args:
        labels: stored label values, uint8, on the input's exact grid.
        prepared: the scan as the networks saw it.
        scan_pose: pose and crop, of each slice or of the volume.
        probabilities: ``(classes, z, y, x)`` float32 on the input's grid, where asked for.
        warnings: one line each, for people.
        crops: the classes in the crops before they were restored, uint8, where asked for: ``(z, M, M)`` of
            slices, ``(D, M, M)`` of a volume.
        beyond_mm: of a volume, by how much it reaches further than the training scans, feet and head
            together.
    """

    labels: Volume
    prepared: Prepared
    scan_pose: ScanPose
    probabilities: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    crops: np.ndarray | None = None
    beyond_mm: float = 0.0


class _Found(NamedTuple):
    """What the networks found in a scan, in the reoriented axes; fields as those of :class:`Prediction`.

    Args:
        areas: ``(2,)``, see :func:`_areas`.
    """

    scan_pose: ScanPose
    values: np.ndarray
    crops: np.ndarray | None
    areas: Tensor
    beyond_mm: float = 0.0


@torch.inference_mode()
def predict(
    model: Model,
    volume: Volume,
    *,
    probabilities: bool = False,
    crops: bool = False,
    correction: Correction | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Segment one scan.

    Args:
        model: trained, of slices (``dims=2``) or of volumes (``dims=3``).
        volume: CT in Hounsfield units, any size, spacing and orientation.
        probabilities: keep them, restored on the native grid.
        crops: keep the classes in the crops.
        correction: poses and crops of slices that a person set; a crop set by hand is not widened where it
            cuts.
        progress: called with (slices done, slices).

    Raises:
        InputError: no body is found.
        FloatingPointError: the networks' answers are not finite.
    """
    prepared = prepare(volume, model.fingerprint, model.config.data)
    kept = None
    if probabilities:
        kept = scratch.zeros((model.pipeline.classes, *prepared.shape), np.float32)
        kept[0] = 1.0
    if model.config.dims == 3:
        found = _predict_volume(model, prepared, kept, crops, progress)
    else:
        found = _predict_slices(model, prepared, kept, crops, correction, progress)
    undo = prepared.reorientation.undo
    return Prediction(
        labels=volume.with_array(undo(found.values)),
        prepared=prepared,
        scan_pose=found.scan_pose,
        probabilities=None if kept is None else undo(kept),
        warnings=(*prepared.warnings, *_warnings(model, found)),
        crops=found.crops,
        beyond_mm=found.beyond_mm,
    )


def _predict_slices(
    model: Model,
    prepared: Prepared,
    probabilities: np.ndarray | None,
    crops: bool,
    correction: Correction | None,
    progress: Progress | None,
) -> _Found:
    networks, settings = model.pipeline, model.config.predict
    device = networks.pose.reference_mask.device
    slices, height, width = prepared.shape
    # Pose and crop of the whole scan first: a common crop is known only when all slices were looked at.
    by_themselves = slice_poses_of(networks.pose, prepared, settings)
    scan = find_poses(networks.pose, prepared, settings, by_themselves, correction)
    scan = find_crops(networks, prepared, scan, correction)

    widen = correction is None or not correction.crops
    values = scratch.zeros((slices, height, width), np.uint8)
    in_crops = np.zeros((slices, *model.config.unet_shape), np.uint8) if crops else None
    slice_from_frame = prepared.slice_from_frame.to(device)
    areas, with_body = torch.zeros(2, dtype=torch.float64), np.flatnonzero(scan.has_body)
    for rows in batches_of(prepared, settings.batch_size):
        image, homogenizing = channels_of(prepared, rows, scan, model.config.unet, device)
        mask, pose = frames(prepared, rows, device)[1], torch.from_numpy(scan.pose[rows]).to(device)
        crop, theta2 = _segment(model, image, homogenizing, rows, scan, widen)
        theta = frame_from_crop(pose, theta2)
        areas += _areas(crop, mask, theta).cpu()
        slice_from_crop = compose(slice_from_frame, theta)
        region = reached(slice_from_crop, crop.shape[-1], (height, width))
        native = restore(crop, slice_from_crop, (height, width), region=region)
        values[(rows, *region)] = model.labels.to_values(most_probable(native).cpu().numpy())
        if in_crops is not None:
            in_crops[rows] = most_probable(crop).cpu().numpy()
        if probabilities is not None:
            probabilities[(slice(None), rows, *region)] = native.movedim(1, 0).cpu().numpy()
        if progress is not None:
            progress(int(np.searchsorted(with_body, rows[-1])) + 1, len(with_body))
    return _Found(scan, values, in_crops, areas)


def _predict_volume(
    model: Model,
    prepared: Prepared,
    probabilities: np.ndarray | None,
    crops: bool,
    progress: Progress | None,
) -> _Found:
    networks = model.pipeline
    device = networks.pose.reference_mask.device
    slices, frame, spacing = prepared.shape[0], prepared.frame, prepared.spacing
    stack_from_frame = frame.stack_from_frame(slices, spacing[2]).to(device)
    volume_from_frame = frame.volume_from_frame(prepared.shape, spacing).to(device)
    image = torch.from_numpy(prepared.image)[None, None].to(device)
    mask = torch.from_numpy(prepared.mask)[None, None].to(device).float()
    scan = find_volume_pose(networks, prepared, image, mask, stack_from_frame)
    pose = torch.from_numpy(scan.pose).to(device)
    stack_from_homogenized = networks.input_from_homogenized(pose, stack_from_frame)
    crop, theta2 = _segment(model, image, stack_from_homogenized, np.arange(1), scan)
    areas = _areas(crop, mask, compose(stack_from_homogenized, theta2)).cpu()
    # Depth of the scan less that of the homogenized volume, in millimeters of the scan.
    reach = float(networks.reach) * math.exp(scan.pose[0, LOG_SCALES][2])
    beyond_mm = max(slices * spacing[2] - reach * frame.fov_mm, 0.0)

    values = scratch.zeros(prepared.shape, np.uint8)
    volume_from_crop = compose(networks.input_from_homogenized(pose, volume_from_frame), theta2)
    # Slices that show no body are background, as they are slice by slice.
    has_body = torch.from_numpy(prepared.mask.any(axis=(1, 2))).to(device)
    for part, restored in restore_slices(crop, volume_from_crop, prepared.shape):
        restored[0, ~has_body[part]], restored[1:, ~has_body[part]] = 1.0, 0.0
        values[part] = model.labels.to_values(most_probable(restored[None])[0].cpu().numpy())
        if probabilities is not None:
            probabilities[:, part] = restored.cpu().numpy()
        if progress is not None:
            progress(part.stop, slices)
    in_crop = most_probable(crop)[0].cpu().numpy() if crops else None
    return _Found(scan, values, in_crop, areas, beyond_mm)


def _warnings(model: Model, found: _Found) -> list[str]:
    networks, scan = model.pipeline, found.scan_pose
    warnings = pose_warnings(
        scan, networks.pose, model.config.predict, joint=networks.joint is not None
    ) + crop_warnings(scan)
    if found.beyond_mm > BEYOND_MM:
        warnings.append(
            f"the scan reaches {found.beyond_mm:.0f} mm further than those the model was trained on; what "
            "lies near its ends may not be marked"
        )
    everything, outside = found.areas.tolist()
    if outside > OUTSIDE * everything:
        share = 100.0 * outside / everything
        warnings.append(f"{share:.0f} % of what is marked lies outside the body: do not trust this result")
    return warnings


def _segment(
    model: Model,
    image: Tensor,
    input_from_homogenized: Tensor,
    rows: np.ndarray,
    scan: ScanPose,
    widen: bool = True,
) -> tuple[Tensor, Tensor]:
    """Probabilities in the crop and theta2 of some rows of a scan; a crop that cuts is widened.

    Of slices ``image`` is ``(N, C, S, S)`` and ``input_from_homogenized`` ``(N, C, 3, 3)``, see
    :func:`isopose.scan.find.channels_of`; of a volume ``(1, 1, Z, S, S)`` and ``(1, 4, 4)``.
    """
    border = model.config.predict.crop_border
    theta2 = torch.from_numpy(scan.theta2[rows]).to(image.device)

    def seen_through(images: Tensor, homogenizing: Tensor, crops: Tensor) -> Tensor:
        crops = crops[:, None] if homogenizing.ndim == 4 else crops
        return crop_probabilities(model, model.pipeline.cut(images, compose(homogenizing, crops)))

    probabilities = seen_through(image, input_from_homogenized, theta2)
    cut = touches_border(probabilities, theta2, border)
    if not widen:
        scan.cut_off[rows] = cut.cpu()
    elif cut.any():
        wider, again, still = theta2.clone(), probabilities.clone(), cut.clone()
        # Ends at the whole frame, whose edges cut nothing.
        while still.any():
            wider[still] = widened(wider[still], WIDEN)
            again[still] = seen_through(image[still], input_from_homogenized[still], wider[still])
            still &= touches_border(again, wider, border)
        # Seen wider, a structure that was cut off is larger. Where it is not, the network lost it at the
        # unfamiliar size, and the crop's own answer is the better one.
        used = cut & (_size_of_marked(again, wider) > _size_of_marked(probabilities, theta2))
        chosen = used.reshape(-1, *[1] * (probabilities.ndim - 1))
        probabilities = torch.where(chosen, again, probabilities)
        theta2 = torch.where(used[:, None, None], wider, theta2)
        scan.widened[rows] = used.cpu()
        scan.cut_off[rows] = (cut & ~used).cpu()
        scan.theta2[rows] = theta2.cpu()
    return probabilities, theta2


def crop_probabilities(model: Model, crop: Tensor) -> Tensor:
    """Return the U-Net's answer to crops; with ``predict.mirror`` the mean with that to their mirror images.

    The mirrored patient in the mirrored crop is the crop with its columns reversed
    (:func:`isopose.geometry.box.mirrored`), so nothing is resampled twice. The answer to it is turned back,
    and what it calls left is right.

    Args:
        model: trained.
        crop: ``(N, C, M, M)``, of volumes ``(N, 1, D, M, M)``.

    Returns:
        Probabilities ``(N, classes, M, M)`` or ``(N, classes, D, M, M)`` float32.
    """
    plain = _answer(model, crop)
    if not model.config.predict.mirror:
        return plain
    partners = list(mirrored_classes(model.labels.names))
    return 0.5 * (plain + _answer(model, crop.flip(-1)).flip(-1)[:, partners])


def _answer(model: Model, crop: Tensor) -> Tensor:
    kind = crop.device.type
    with autocast(choose_precision(model.config.predict.precision, kind), kind):
        layout = torch.channels_last if crop.ndim == 4 else torch.contiguous_format
        answer = model.pipeline.probabilities(crop.contiguous(memory_format=layout))
    # The largest of values that are not finite would be the background, without a warning.
    if not answer.isfinite().all():
        raise FloatingPointError("the U-Net's answer is not finite")
    return answer


def _size_of_marked(probabilities: Tensor, theta2: Tensor) -> Tensor:
    """How much of the homogenized frame is marked in each crop, ``(N,)``."""
    share = marked(probabilities).flatten(1).float().mean(dim=1)
    return share * theta2.diagonal(dim1=-2, dim2=-1).prod(dim=1)


def _areas(probabilities: Tensor, mask: Tensor, input_from_crop: Tensor) -> Tensor:
    """What a batch marks in its input, and the part of it that lies outside the body; sums ``(2,)``."""
    foreground = marked(probabilities)[:, None].float()
    outside = foreground * (warp(mask, input_from_crop, tuple(foreground.shape[2:])) < 0.5)
    pixel = torch.linalg.det(input_from_crop[:, :-1, :-1].float()).abs()
    return torch.stack([(one.flatten(1).sum(dim=1) * pixel).sum() for one in (foreground, outside)])
