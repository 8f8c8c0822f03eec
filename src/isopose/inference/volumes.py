"""From a scan to a label map on the scan's own grid, as a whole volume: models with ``dims=3``."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isopose import scratch
from isopose.data.preprocess import Prepared, prepare
from isopose.geometry.box import widened
from isopose.geometry.pose import LOG_SCALES, POSE_SIZES, ROLL
from isopose.geometry.volume import Volume
from isopose.geometry.warp import compose, warp
from isopose.inference.border import volume_touches_border
from isopose.inference.predict import OUTSIDE, WIDEN, crop_probabilities
from isopose.models.folder import Model
from isopose.models.restore import marked, most_probable, restore_slices
from isopose.scan.estimate import batches_of, frames
from isopose.scan.poses import MIRRORED, TURNED, slice_poses
from isopose.scan.volume import places, volume_agreement, volume_pose

#: A scan that reaches further than the training scans by less than this is like them.
BEYOND_MM = 20.0


@dataclass
class VolumeRecord:
    """What was decided for one scan.

    Args:
        pose: ``(9,)``, see ``geometry/pose.py``.
        theta2: ``(4, 4)``, homogenized from crop.
        agreement: with the reference's outline, the mean of the homogenized slices.
        confidence: probability that the roll is right, see ``scan/poses.py: confidence``.
        mirrored: mean logit that the slices are shown as in a mirror.
        widened: the crop cut something off and a larger one was used instead.
        cut_off: the prediction used still touches the crop's border.
        reach: along z of the homogenized volume, half sides of the frame.
        beyond_mm: by how much the scan reaches further than the training scans, feet and head together.
        outside: part of what is marked that lies outside the body.
    """

    pose: np.ndarray
    theta2: np.ndarray
    agreement: float = 0.0
    confidence: float = 0.0
    mirrored: float = 0.0
    widened: bool = False
    cut_off: bool = False
    reach: float = 1.0
    beyond_mm: float = 0.0
    outside: float = 0.0


@dataclass(frozen=True)
class VolumePrediction:
    """A label map and what it rests on.

    Args:
        labels: stored label values, uint8, on the input's exact grid.
        prepared: the scan as the networks saw it.
        record: decisions.
        probabilities: ``(classes, z, y, x)`` float32 on the input's grid, where asked for.
        warnings: one line each, for people.
        crops: ``(D, M, M)`` uint8, the classes in the crop before they were restored, where asked for.
    """

    labels: Volume
    prepared: Prepared
    record: VolumeRecord
    probabilities: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    crops: np.ndarray | None = None


@torch.inference_mode()
def predict_volume(
    model: Model,
    volume: Volume,
    *,
    probabilities: bool = False,
    crops: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VolumePrediction:
    """Segment one scan whole.

    Args:
        model: trained with ``dims=3``.
        volume: CT in Hounsfield units, any size, spacing and orientation.
        probabilities: keep them, restored on the native grid.
        crops: keep the classes in the crop.
        progress: called with (slices done, slices).

    Raises:
        InputError: no body is found.
        FloatingPointError: the networks' answers are no numbers.
    """
    pipeline = model.pipeline
    prepared = prepare(volume, model.fingerprint, model.config.data)
    device = pipeline.pose.reference_mask.device
    slices, frame, spacing = prepared.shape[0], prepared.frame, prepared.spacing
    stack_from_frame = frame.stack_from_frame(slices, spacing[2]).to(device)
    volume_from_frame = frame.volume_from_frame(prepared.shape, spacing).to(device)
    image = torch.from_numpy(prepared.image)[None, None].to(device)
    mask = torch.from_numpy(prepared.mask)[None, None].to(device).float()

    record = _posed(model, prepared, stack_from_frame)
    pose = torch.from_numpy(record.pose)[None].to(device)
    stack_from_homogenized = pipeline.input_from_homogenized(pose, stack_from_frame)
    record.agreement = float(volume_agreement(pipeline, mask, stack_from_homogenized))
    record.reach = float(pipeline.reach)
    # Depth of the scan less that of the homogenized volume, in millimeters of the scan.
    seen = record.reach * math.exp(record.pose[LOG_SCALES][2])
    record.beyond_mm = max(slices * spacing[2] - seen * frame.fov_mm, 0.0)
    theta2 = pipeline.theta2(image, mask, stack_from_homogenized)
    crop, theta2 = _segmented(model, image, stack_from_homogenized, theta2, record)
    record.theta2 = theta2[0].cpu().numpy()
    shown_in_crop = marked(crop)[:, None]
    body = warp(mask, compose(stack_from_homogenized, theta2), tuple(crop.shape[2:])) >= 0.5
    record.outside = float((shown_in_crop & ~body).sum()) / max(int(shown_in_crop.sum()), 1)

    labels = scratch.zeros(prepared.shape, np.uint8)
    kept = scratch.zeros((pipeline.classes, *prepared.shape), np.float32) if probabilities else None
    theta = compose(pipeline.input_from_homogenized(pose, volume_from_frame), theta2)
    # Slices that show no body are background, as slice by slice.
    shown = torch.from_numpy(prepared.mask.any(axis=(1, 2))).to(device)
    for part, values in restore_slices(crop, theta, prepared.shape):
        values[0, ~shown[part]], values[1:, ~shown[part]] = 1.0, 0.0
        labels[part] = model.labels.to_values(most_probable(values[None])[0].cpu().numpy())
        if kept is not None:
            kept[:, part] = values.cpu().numpy()
        if progress is not None:
            progress(part.stop, slices)
    undo = prepared.reorientation.undo
    return VolumePrediction(
        labels=volume.with_array(undo(labels)),
        prepared=prepared,
        record=record,
        probabilities=None if kept is None else undo(kept),
        warnings=(*prepared.warnings, *_warnings(record, model)),
        crops=most_probable(crop)[0].cpu().numpy() if crops else None,
    )


def _posed(model: Model, prepared: Prepared, stack_from_frame: Tensor) -> VolumeRecord:
    """The scan's pose, from what its slices say."""
    settings, transformer = model.config.predict, model.pipeline.pose
    record = VolumeRecord(np.zeros(POSE_SIZES[3], np.float32), np.eye(4, dtype=np.float32))
    batches = batches_of(prepared, settings.batch_size)
    if batches:
        device = stack_from_frame.device
        single = slice_poses(
            transformer, lambda rows: frames(prepared, rows, device), batches, settings.min_pose_dice
        )
        z = places(np.concatenate(batches), prepared.shape[0], stack_from_frame.cpu()).to(device)
        found = volume_pose(transformer, single, z)
        record.pose = found.pose.cpu().numpy()
        record.confidence, record.mirrored = float(found.confidence), float(found.mirrored)
    return record


def _segmented(
    model: Model, image: Tensor, stack_from_homogenized: Tensor, theta2: Tensor, record: VolumeRecord
) -> tuple[Tensor, Tensor]:
    """Probabilities in the crop, and the crop that was used; one that cuts is widened as for slices."""
    border = model.config.predict.crop_border

    def seen_through(crop: Tensor) -> Tensor:
        return crop_probabilities(model, model.pipeline.cut(image, compose(stack_from_homogenized, crop)))

    probabilities = seen_through(theta2)
    if not volume_touches_border(probabilities, theta2, border):
        return probabilities, theta2
    again, wider = probabilities, theta2
    while volume_touches_border(again, wider, border):
        wider = widened(wider, WIDEN)
        again = seen_through(wider)
    record.widened = _marked(again, wider) > _marked(probabilities, theta2)
    record.cut_off = not record.widened
    return (again, wider) if record.widened else (probabilities, theta2)


def _marked(probabilities: Tensor, theta2: Tensor) -> float:
    """Volume in the homogenized frame of what is marked."""
    part = marked(probabilities).float().mean()
    return float(part * theta2[0].diagonal().prod())


def _warnings(record: VolumeRecord, model: Model) -> list[str]:
    """One line for each kind of doubt."""
    settings = model.config.predict
    roll, lines = float(record.pose[ROLL]), []
    if abs(roll) > TURNED:
        lines.append(
            f"lies turned by {math.degrees(roll):+.0f} degrees against what the file's header says: "
            "turned back; check the sides"
        )
    if model.pipeline.pose.roll is not None:
        if record.confidence < settings.min_confidence:
            lines.append("it is not sure which way up the patient lies")
        if record.mirrored > MIRRORED:
            lines.append("looks like its own mirror image (liver on the left); check the sides in the header")
    if record.agreement < settings.min_pose_dice and model.config.pose.start != "identity":
        lines.append("low pose confidence: the outline resembles no reference")
    if record.beyond_mm > BEYOND_MM:
        lines.append(
            f"the scan reaches {record.beyond_mm:.0f} mm further than those the model was trained on; what "
            "lies near its ends may not be marked"
        )
    if record.widened:
        lines.append("the crop cut a structure and was widened")
    if record.cut_off:
        lines.append("a structure may be cut off by the crop")
    if record.outside > OUTSIDE:
        share = 100.0 * record.outside
        lines.append(f"{share:.0f} % of what is marked lies outside the body: do not trust this result")
    return lines
