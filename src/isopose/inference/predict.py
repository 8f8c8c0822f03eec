"""From a scan to a label map on the scan's own grid."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from isopose import scratch
from isopose.data.preprocess import Prepared, prepare
from isopose.devices import autocast, choose_precision
from isopose.geometry.box import widened
from isopose.geometry.volume import Volume
from isopose.geometry.warp import compose, warp
from isopose.inference.border import touches_border
from isopose.labels import mirrored_classes
from isopose.models.folder import Model
from isopose.models.pipeline import frame_from_crop
from isopose.models.restore import marked, most_probable, reached, restore
from isopose.scan.correction import Correction
from isopose.scan.estimate import (
    PoseRecords,
    batches_of,
    find_crops,
    find_poses,
    frames,
    pose_warnings,
)

#: A crop that cuts grows by this factor until it cuts nothing. Small, for the network knows its crops' scale:
#: docs/pipeline.md, "Choices that were measured".
WIDEN = 1.1
#: Part of what is marked that may lie outside the body before a warning; borders differ by a pixel.
OUTSIDE = 0.05


@dataclass(kw_only=True)
class SliceRecords(PoseRecords):
    """What was decided for each slice of the reoriented volume, feet to head; NaN where no body is.

    Args:
        theta2: ``(z, 3, 3)``.
        widened: ``(z,)`` the crop cut something off and a larger one was used instead.
        cut_off: ``(z,)`` the prediction used still touches the crop's border.
    """

    theta2: np.ndarray
    widened: np.ndarray
    cut_off: np.ndarray

    @classmethod
    def empty(cls, slices: int) -> Self:
        """Records of so many slices without a body."""
        return cls(
            **vars(PoseRecords.empty(slices)),
            theta2=np.full((slices, 3, 3), np.nan, np.float32),
            widened=np.zeros(slices, bool),
            cut_off=np.zeros(slices, bool),
        )


@dataclass(frozen=True)
class Prediction:
    """A label map and what it rests on.

    Args:
        labels: stored label values, uint8, on the input's exact grid.
        prepared: the scan as the networks saw it.
        slices: decisions for each slice.
        probabilities: ``(classes, z, y, x)`` float32 on the input's grid, where asked for.
        warnings: one line each, for people.
        crops: ``(z, M, M)`` uint8, the classes in each slice's crop before they were restored, where asked
            for.
    """

    labels: Volume
    prepared: Prepared
    slices: SliceRecords
    probabilities: np.ndarray | None = None
    warnings: tuple[str, ...] = field(default=())
    crops: np.ndarray | None = None


@torch.inference_mode()
def predict(
    model: Model,
    volume: Volume,
    *,
    probabilities: bool = False,
    crops: bool = False,
    correction: Correction | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Segment one scan.

    Args:
        model: trained.
        volume: CT in Hounsfield units, any size, spacing and orientation.
        probabilities: keep them, restored on the native grid.
        crops: keep the classes in the crops.
        correction: poses and crops that a person set; a crop so set is not widened where it cuts.
        progress: called with (slices done, slices).

    Raises:
        InputError: no body is found.
        FloatingPointError: the networks' answers are no numbers.
    """
    prepared = prepare(volume, model.fingerprint, model.config.data)
    device = model.pipeline.pose.reference_mask.device
    slices, height, width = prepared.shape
    values = scratch.zeros((slices, height, width), np.uint8)
    kept = _background(model.pipeline.classes, values.shape) if probabilities else None
    records = SliceRecords.empty(slices)
    slice_from_frame = prepared.slice_from_frame.to(device)

    # Pose and crop of the whole scan first: a common crop is known only when all slices were looked at.
    batches = batches_of(prepared, model.config.predict.batch_size)
    find_poses(model.pipeline.pose, prepared, batches, model.config.predict, records, correction)
    shown = np.flatnonzero(records.shown)
    if batches:
        records.theta2[shown] = find_crops(model.pipeline, prepared, batches, records, correction).cpu()
    widen = correction is None or not correction.crops
    side = model.config.unet_size
    in_crops = np.zeros((slices, side, side), np.uint8) if crops else None
    areas = torch.zeros(2, dtype=torch.float64)
    for rows in batches:
        image, mask = frames(prepared, rows, device)
        crop, theta = _segment(model, image, rows, records, widen)
        if in_crops is not None:
            in_crops[rows] = most_probable(crop).cpu().numpy()
        areas += _areas(crop, mask, theta).cpu()
        slice_from_crop = compose(slice_from_frame, theta)
        region = reached(slice_from_crop, crop.shape[-1], (height, width))
        native = restore(crop, slice_from_crop, (height, width), region=region)
        values[(rows, *region)] = model.labels.to_values(most_probable(native).cpu().numpy())
        if kept is not None:
            kept[(slice(None), rows, *region)] = native.movedim(1, 0).cpu().numpy()
        if progress is not None:
            progress(int(np.searchsorted(shown, rows[-1])) + 1, len(shown))

    undo = prepared.reorientation.undo
    return Prediction(
        labels=volume.with_array(undo(values)),
        prepared=prepared,
        slices=records,
        probabilities=None if kept is None else undo(kept),
        warnings=(*prepared.warnings, *_warnings(records, model), *_outside(areas)),
        crops=in_crops,
    )


def _segment(
    model: Model, image: Tensor, rows: np.ndarray, records: SliceRecords, widen: bool
) -> tuple[Tensor, Tensor]:
    """Probabilities in the crop, and frame from crop, of a batch of frames; a crop that cuts is widened."""
    pipeline, settings = model.pipeline, model.config.predict
    pose = torch.from_numpy(records.pose[rows]).to(image.device)
    theta2 = torch.from_numpy(records.theta2[rows]).to(image.device)
    theta = frame_from_crop(pose, theta2)
    probabilities = crop_probabilities(model, pipeline.cut(image, theta))

    cut = touches_border(probabilities, theta2, settings.crop_border)
    if not widen:
        records.cut_off[rows] = cut.cpu()
    elif cut.any():
        wider, again, still = theta2.clone(), probabilities.clone(), cut.clone()
        # Ends at the whole frame, whose edges cut nothing.
        while still.any():
            wider[still] = widened(wider[still], WIDEN)
            theta = frame_from_crop(pose[still], wider[still])
            again[still] = crop_probabilities(model, pipeline.cut(image[still], theta))
            still &= touches_border(again, wider, settings.crop_border)
        # Seen wider, a structure that was cut off is larger. Where it is not, the network lost it at the
        # unfamiliar size, and the crop's own answer is the better one.
        used = cut & (
            _part(again) * wider[:, 0, 0].square() > _part(probabilities) * theta2[:, 0, 0].square()
        )
        probabilities = torch.where(used[:, None, None, None], again, probabilities)
        theta2 = torch.where(used[:, None, None], wider, theta2)
        theta = frame_from_crop(pose, theta2)
        records.widened[rows] = used.cpu()
        records.cut_off[rows] = (cut & ~used).cpu()
    records.theta2[rows] = theta2.cpu()
    return probabilities, theta


def crop_probabilities(model: Model, crop: Tensor) -> Tensor:
    """What the U-Net says of crops; with ``predict.mirror`` the mean with that of their mirror images.

    The mirrored patient in the mirrored crop is the crop with its columns in reverse
    (:func:`isopose.geometry.box.mirrored`), so nothing is resampled twice. The answer to it is turned back,
    and what it calls left is right.

    Args:
        model: trained.
        crop: ``(N, 1, M, M)``, of volumes ``(N, 1, D, M, M)``.

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
        laid_out = torch.channels_last if crop.ndim == 4 else torch.contiguous_format
        answer = model.pipeline.probabilities(crop.contiguous(memory_format=laid_out))
    # The largest of what is no number is the background, without a word.
    if not answer.isfinite().all():
        raise FloatingPointError("the U-Net's answer is not finite")
    return answer


def _part(probabilities: Tensor) -> Tensor:
    """What part of each crop ``(N,)`` is marked."""
    return marked(probabilities).flatten(1).float().mean(dim=1)


def _areas(probabilities: Tensor, mask: Tensor, theta: Tensor) -> Tensor:
    """Areas in the frame of what a batch marks, and of the part of it that lies outside the body."""
    shown = marked(probabilities)[:, None].float()
    outside = shown * (warp(mask, theta, (shown.shape[2], shown.shape[3])) < 0.5)
    pixel = (theta[:, 0, 0] * theta[:, 1, 1] - theta[:, 0, 1] * theta[:, 1, 0]).abs()
    return torch.stack([(x.sum(dim=(1, 2, 3)) * pixel).sum() for x in (shown, outside)])


def _outside(areas: Tensor) -> list[str]:
    marked, outside = areas.tolist()
    if outside <= OUTSIDE * marked:
        return []
    share = 100.0 * outside / marked
    return [f"{share:.0f} % of what is marked lies outside the body: do not trust this result"]


def _background(classes: int, shape: tuple[int, ...]) -> np.ndarray:
    values = scratch.zeros((classes, *shape), np.float32)
    values[0] = 1.0
    return values


def _warnings(records: SliceRecords, model: Model) -> list[str]:
    """One line for each kind of doubt."""
    pipeline = model.pipeline
    joint = pipeline.joint is not None
    lines = pose_warnings(records, pipeline.pose, model.config.predict, joint=joint)
    if records.widened.any():
        lines.append(f"the crop cut a structure in {int(records.widened.sum())} slices and was widened there")
    if records.cut_off.any():
        lines.append(f"a structure may be cut off by the crop in {int(records.cut_off.sum())} slices")
    return lines
