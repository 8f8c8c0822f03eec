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


def _sum(parts: Iterable[RestoredProbabilities]) -> RestoredProbabilities:
    """Add the probabilities of several models, one at a time."""
    total = None
    for count, part in enumerate(parts):
        if total is None:
            total = part
            continue
        region = _around(total.region[0], part.region[0]), _around(total.region[1], part.region[1])
        total = RestoredProbabilities(region, total.within(region, float(count)).add_(part.within(region)))
    assert total is not None, "an ensemble has a member"
    return total


def _around(one: slice, other: slice) -> slice:
    return slice(min(one.start, other.start), max(one.stop, other.stop))


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
        InputError: no body is found, or another number of channels than the model sees.
        FloatingPointError: the networks' outputs are not finite.
    """
    ensemble = ensemble_of(model)
    volumes = [volume] if isinstance(volume, Volume) else list(volume)
    predictors = _predictors(ensemble, volumes, crops, correction, body)
    lead, shape = predictors[0], predictors[0].prepared.shape
    values = scratch.zeros(shape, np.uint8)
    kept = None
    if probabilities:
        kept = scratch.zeros((ensemble.labels.classes, *shape), np.float32)
        kept[0] = 1.0
    parts = _parts(predictors)
    done, slices = 0, sum(map(len, parts))
    for rows in parts:
        total = _sum(predictor.restored(rows) for predictor in predictors)
        most = most_probable(total.values).cpu().numpy()
        values[(rows, *total.region)] = ensemble.labels.to_values(most)
        if kept is not None:
            mean = total.values.movedim(1, 0) / len(predictors)
            kept[(slice(None), rows, *total.region)] = mean.cpu().numpy()
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
        probabilities=None if kept is None else undo(kept),
        warnings=_merged([predictor.warnings() for predictor in predictors]),
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
    prepared: dict[str, Prepared] = {}
    estimates: dict[str, SlicePoses | None] = {}
    predictors: list[SlicePredictor | VolumePredictor] = []
    for member, views, prepares, estimates_by in zip(
        ensemble.members, ensemble.views, ensemble.preparations, ensemble.estimates, strict=True
    ):
        if prepares not in prepared:
            prepared[prepares] = prepare(volumes, member.fingerprint, member.config.data, body=body)
        scan = prepared[prepares]
        if estimates_by not in estimates:
            estimates[estimates_by] = slice_poses_of(member.pipeline.pose, scan, member.config.predict)
        # Only those of the first member are shown.
        wanted = crops and not predictors
        if member.config.dims == 3:
            predictors.append(VolumePredictor(member, scan, views, estimates[estimates_by], wanted))
        else:
            predictors.append(
                SlicePredictor(member, scan, views, estimates[estimates_by], wanted, correction)
            )
    return predictors


def _parts(predictors: Sequence[Predictor]) -> list[np.ndarray]:
    """Return the slices in parts that are restored together.

    Models of slices predict slices with a body, in batches; a model of volumes predicts all slices.
    """
    shape, size = predictors[0].prepared.shape, predictors[0].model.config.predict.batch_size
    volumes = [predictor.model.config.dims == 3 for predictor in predictors]
    if all(volumes):
        return [np.arange(part.start, part.stop) for part in slice_chunks(shape)]
    wanted = np.full(shape[0], any(volumes))
    for predictor in predictors:
        wanted |= predictor.prepared.mask.any(axis=(1, 2))
    rows = np.flatnonzero(wanted)
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _merged(warnings: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the warnings of all members; one that only some members give is prefixed with their numbers."""
    lines = []
    for line in dict.fromkeys(line for of_member in warnings for line in of_member):
        who = [str(n) for n, of_member in enumerate(warnings, start=1) if line in of_member]
        alone = f"member{'s' if len(who) > 1 else ''} {', '.join(who)} of {len(warnings)}: "
        lines.append(line if len(who) == len(warnings) else alone + line)
    return tuple(lines)
