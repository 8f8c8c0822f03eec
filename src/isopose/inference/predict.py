"""Predict a label map on a scan's own grid."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from isopose import scratch
from isopose.data.preprocess import Prepared, prepare
from isopose.data.runs import slice_chunks
from isopose.geometry.volume import Volume
from isopose.inference.ensemble import Ensemble, ensemble_of
from isopose.inference.postprocess import Midline, clean_up
from isopose.inference.predictors import Predictor, RestoredProbabilities, SlicePredictor, VolumePredictor
from isopose.models.folder import Model
from isopose.models.pose import SlicePoses
from isopose.models.restore import most_probable
from isopose.parallel import Progress
from isopose.scan.correction import Correction
from isopose.scan.find import slice_poses_of
from isopose.scan.pose import ScanPose


@dataclass(frozen=True)
class Prediction:
    """A label map, with the poses and crops that it is based on.

    Args:
        labels: stored label values, uint8, on the input's exact grid.
        prepared: the preprocessed scan, input of the networks.
        scan_pose: pose and crop, of each slice or of the volume; with several models those of the first.
        probabilities: ``(classes, z, y, x)`` float32 on the input's grid, if requested.
        warnings: one line each.
        crops: the predicted classes in the crops, uint8, if requested: ``(z, M, M)`` of slices, ``(D, M, M)``
            of a volume; with several models those of the first.
        beyond_mm: length by which a volume exceeds the longest training scan, at feet and head together.
        removed_ml: what was removed of each label that has a rule for cleaning up, ml.
    """

    labels: Volume
    prepared: Prepared
    scan_pose: ScanPose
    probabilities: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    crops: np.ndarray | None = None
    beyond_mm: float = 0.0
    removed_ml: Mapping[str, float] = field(default_factory=dict)


def _sum_probabilities(members: Iterable[RestoredProbabilities]) -> RestoredProbabilities:
    """Add the probabilities of several models, one at a time, in a region that contains all of theirs."""
    total = None
    for count, member in enumerate(members):
        if total is None:
            total = member
            continue
        rows, columns = (
            slice(min(a.start, b.start), max(a.stop, b.stop))
            for a, b in zip(total.region, member.region, strict=True)
        )
        region = rows, columns
        total = RestoredProbabilities(region, total.within(region, float(count)).add_(member.within(region)))
    assert total is not None, "an ensemble has a member"
    return total


@torch.inference_mode()
def predict(
    model: Model | Ensemble,
    volume: Volume | Sequence[Volume],
    *,
    probabilities: bool = False,
    crops: bool = False,
    correction: Correction | None = None,
    body: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Segment one scan.

    Args:
        model: trained, of slices (``dims=2``) or of volumes (``dims=3``); or an ensemble, whose probabilities
            are averaged on the scan's grid.
        volume: any size, spacing and orientation, CT in Hounsfield units or MR, as the model was trained; of
            several channels one each, on one grid, in the order in which the model was trained.
        probabilities: return them on the native grid, as they are before cleaning up.
        crops: return the predicted classes in the crops.
        correction: poses and crops set by hand; a crop set by hand is not widened where it cuts.
        body: ``(z, y, x)`` mask on the volume's grid, in place of the automatic one.
        progress: called with (slices done, slices).

    Raises:
        InputError: no body is found, or the number of channels is not the model's.
        FloatingPointError: the networks' outputs are not finite.
    """
    ensemble = ensemble_of(model)
    volumes = [volume] if isinstance(volume, Volume) else list(volume)
    predictors = _predictors(ensemble, volumes, crops, correction, body)
    lead, shape = predictors[0], predictors[0].prepared.shape
    values = scratch.zeros(shape, np.uint8)
    native_probabilities = None
    if probabilities:
        native_probabilities = scratch.zeros((ensemble.labels.classes, *shape), np.float32)
        native_probabilities[0] = 1.0
    batches = _slice_batches(predictors)
    done, slices = 0, sum(map(len, batches))
    for rows in batches:
        total = _sum_probabilities(predictor.restored(rows) for predictor in predictors)
        classes = most_probable(total.values).cpu().numpy()
        values[(rows, *total.region)] = ensemble.labels.to_values(classes)
        if native_probabilities is not None:
            mean = total.values.movedim(1, 0) / len(predictors)
            native_probabilities[(slice(None), rows, *total.region)] = mean.cpu().numpy()
        done += len(rows)
        if progress is not None:
            progress(done, slices)
    removed_ml: Mapping[str, float] = {}
    if ensemble.rules:
        sure = lead.scan.confidence >= lead.model.config.predict.min_confidence
        midline = Midline.of(lead.prepared.frame, shape, lead.prepared.spacing, lead.scan.pose, sure)
        removed_ml = clean_up(values, ensemble.rules, ensemble.labels, lead.prepared.spacing, midline)
    undo = lead.prepared.reorientation.undo
    return Prediction(
        labels=volumes[0].with_array(undo(values)),
        prepared=lead.prepared,
        scan_pose=lead.scan,
        probabilities=None if native_probabilities is None else undo(native_probabilities),
        warnings=_merge_warnings([predictor.warnings() for predictor in predictors]),
        crops=lead.crops,
        beyond_mm=lead.beyond_mm,
        removed_ml=removed_ml,
    )


def _predictors(
    ensemble: Ensemble,
    volumes: Sequence[Volume],
    crops: bool,
    correction: Correction | None,
    body: np.ndarray | None = None,
) -> list[SlicePredictor | VolumePredictor]:
    """Return a predictor of each member; preprocessing and poses that members share are computed once."""
    prepared_by_hash: dict[str, Prepared] = {}
    poses_by_hash: dict[str, SlicePoses | None] = {}
    predictors: list[SlicePredictor | VolumePredictor] = []
    for member, views, preprocessing, slice_pose in zip(
        ensemble.members,
        ensemble.views,
        ensemble.preprocessing_hashes,
        ensemble.slice_pose_hashes,
        strict=True,
    ):
        if preprocessing not in prepared_by_hash:
            prepared_by_hash[preprocessing] = prepare(
                volumes, member.fingerprint, member.config.data, body=body
            )
        prepared = prepared_by_hash[preprocessing]
        if slice_pose not in poses_by_hash:
            poses_by_hash[slice_pose] = slice_poses_of(member.pipeline.pose, prepared, member.config.predict)
        poses = poses_by_hash[slice_pose]
        # Crops are returned for the first member only.
        keep_crops = crops and not predictors
        if member.config.dims == 3:
            predictors.append(VolumePredictor(member, prepared, views, poses, keep_crops))
        else:
            predictors.append(SlicePredictor(member, prepared, views, poses, keep_crops, correction))
    return predictors


def _slice_batches(predictors: Sequence[Predictor]) -> list[np.ndarray]:
    """Return the indices of the slices to predict, in batches that are restored together.

    Models of slices predict slices with a body; a model of volumes predicts all slices.
    """
    shape, size = predictors[0].prepared.shape, predictors[0].model.config.predict.batch_size
    of_volumes = [predictor.model.config.dims == 3 for predictor in predictors]
    if all(of_volumes):
        return [np.arange(chunk.start, chunk.stop) for chunk in slice_chunks(shape)]
    predicted = np.full(shape[0], any(of_volumes))
    for predictor in predictors:
        predicted |= predictor.prepared.mask.any(axis=(1, 2))
    rows = np.flatnonzero(predicted)
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _merge_warnings(warnings: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the warnings of all members; one that only some members give is prefixed with their numbers."""
    lines = []
    for line in dict.fromkeys(line for member_lines in warnings for line in member_lines):
        members = [str(n) for n, member_lines in enumerate(warnings, start=1) if line in member_lines]
        prefix = f"member{'s' if len(members) > 1 else ''} {', '.join(members)} of {len(warnings)}: "
        lines.append(line if len(members) == len(warnings) else prefix + line)
    return tuple(lines)
