"""From a scan to a label map on the scan's own grid."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from isopose.inference.ensemble import Ensemble, Views, ensemble_of
from isopose.inference.postprocess import Midline, clean_up
from isopose.labels import mirrored_classes
from isopose.models.folder import Model
from isopose.models.pipeline import frame_from_crop
from isopose.models.pose import SlicePoses
from isopose.models.restore import marked, most_probable, reached, restore, restore_slab, slabs_of
from isopose.scan.correction import Correction
from isopose.scan.find import (
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
        scan_pose: pose and crop, of each slice or of the volume; of several models those of the first.
        probabilities: ``(classes, z, y, x)`` float32 on the input's grid, where asked for.
        warnings: one line each, for people.
        crops: the classes in the crops before they were restored, uint8, where asked for: ``(z, M, M)`` of
            slices, ``(D, M, M)`` of a volume; of several models those of the first.
        beyond_mm: of a volume, by how much it reaches further than the training scans, feet and head
            together.
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


class _Predictor(ABC):
    """One model and one scan: its poses and crops, and its answer in any slices.

    Args:
        scan: pose and crop, of each slice or of the volume.
        crops: the classes in the crops, where asked for; see :class:`Prediction`.
        areas: ``(2,)``, see :func:`_areas`.
        beyond_mm: see :class:`Prediction`.
        views: of each crop, see :attr:`isopose.inference.ensemble.Ensemble.views`.
    """

    scan: ScanPose
    crops: np.ndarray | None = None
    beyond_mm: float = 0.0

    def __init__(self, model: Model, prepared: Prepared, views: Views) -> None:
        self.model, self.prepared, self.views = model, prepared, views
        self.areas = torch.zeros(2, dtype=torch.float64)
        self.device = model.pipeline.pose.reference_mask.device

    @abstractmethod
    def restored(self, rows: np.ndarray) -> "_Restored":
        """Return the probabilities in some slices, of which each is asked for once."""

    def warnings(self) -> tuple[str, ...]:
        """Return one line each, for people."""
        networks, predicting = self.model.pipeline, self.model.config.predict
        lines = [
            *self.prepared.warnings,
            *pose_warnings(self.scan, networks.pose, predicting, joint=networks.joint is not None),
            *crop_warnings(self.scan),
        ]
        if self.beyond_mm > BEYOND_MM:
            lines.append(
                f"the scan reaches {self.beyond_mm:.0f} mm further than those the model was trained on; what "
                "lies near its ends may not be marked"
            )
        everything, outside = self.areas.tolist()
        if outside > OUTSIDE * everything:
            share = 100.0 * outside / everything
            lines.append(f"{share:.0f} % of what is marked lies outside the body: do not trust this result")
        return tuple(lines)


class _Restored(NamedTuple):
    """Probabilities on the scan's grid.

    Args:
        region: rows and columns of the slices; outside of them all is background.
        values: ``(n, classes, *region)``.
    """

    region: tuple[slice, slice]
    values: Tensor

    def within(self, region: tuple[slice, slice], background: float = 1.0) -> Tensor:
        """Return the values in a region around their own, with what background has outside."""
        if region == self.region:
            return self.values
        sides = [axis.stop - axis.start for axis in region]
        wider = self.values.new_zeros((*self.values.shape[:2], *sides))
        wider[:, 0] = background
        own = (
            slice(mine.start - axis.start, mine.stop - axis.start)
            for mine, axis in zip(self.region, region, strict=True)
        )
        wider[(slice(None), slice(None), *own)] = self.values
        return wider


def _sum(parts: Iterable[_Restored]) -> _Restored:
    """Add the probabilities of several models, one at a time."""
    total = None
    for count, part in enumerate(parts):
        if total is None:
            total = part
            continue
        region = _around(total.region[0], part.region[0]), _around(total.region[1], part.region[1])
        total = _Restored(region, total.within(region, float(count)).add_(part.within(region)))
    assert total is not None, "an ensemble has a member"
    return total


def _around(one: slice, other: slice) -> slice:
    return slice(min(one.start, other.start), max(one.stop, other.stop))


class _SlicePredictor(_Predictor):
    """A model of slices and a scan."""

    def __init__(
        self,
        model: Model,
        prepared: Prepared,
        views: Views,
        estimates: SlicePoses | None,
        crops: bool,
        correction: Correction | None,
    ) -> None:
        super().__init__(model, prepared, views)
        # Pose and crop of the whole scan first: a common crop is known only when all slices were looked at.
        scan = find_poses(model.pipeline.pose, prepared, model.config.predict, estimates, correction)
        self.scan = find_crops(model.pipeline, prepared, scan, correction)
        self.widen = correction is None or not correction.crops
        if crops:
            self.crops = np.zeros((prepared.shape[0], *model.config.unet_shape), np.uint8)

    def restored(self, rows: np.ndarray) -> _Restored:
        """See :meth:`_Predictor.restored`."""
        networks, (height, width) = self.model.pipeline, self.prepared.shape[1:]
        with_body = self.scan.has_body[rows]
        if not with_body.any():
            nothing = torch.zeros(len(rows), networks.classes, 1, 1, device=self.device)
            nothing[:, 0] = 1.0
            return _Restored((slice(0, 1), slice(0, 1)), nothing)
        shown = rows[with_body]
        context = self.model.config.unet
        image, homogenizing = channels_of(self.prepared, shown, self.scan, context, self.device)
        mask = frames(self.prepared, shown, self.device)[1]
        pose = torch.from_numpy(self.scan.pose[shown]).to(self.device)
        crop, theta2 = _segment(self, image, homogenizing, shown, self.widen)
        theta = frame_from_crop(pose, theta2)
        self.areas += _areas(crop, mask, theta).cpu()
        if self.crops is not None:
            self.crops[shown] = most_probable(crop).cpu().numpy()
        slice_from_crop = compose(self.prepared.slice_from_frame.to(self.device), theta)
        region = reached(slice_from_crop, crop.shape[-1], (height, width))
        native = restore(crop, slice_from_crop, (height, width), region=region)
        if with_body.all():
            return _Restored(region, native)
        # Slices that show no body are background.
        values = native.new_zeros((len(rows), *native.shape[1:]))
        values[:, 0] = 1.0
        values[torch.from_numpy(with_body).to(self.device)] = native
        return _Restored(region, values)


class _VolumePredictor(_Predictor):
    """A model of volumes and a scan."""

    def __init__(
        self, model: Model, prepared: Prepared, views: Views, estimates: SlicePoses | None, crops: bool
    ) -> None:
        super().__init__(model, prepared, views)
        networks, device = model.pipeline, self.device
        slices, frame, spacing = prepared.shape[0], prepared.frame, prepared.spacing
        stack_from_frame = frame.stack_from_frame(slices, spacing[2]).to(device)
        volume_from_frame = frame.volume_from_frame(prepared.shape, spacing).to(device)
        images = torch.from_numpy(prepared.images)[None].to(device)
        image = images[:, prepared.pose_channel : prepared.pose_channel + 1]
        mask = torch.from_numpy(prepared.mask)[None, None].to(device).float()
        self.scan = find_volume_pose(networks, prepared, image, mask, stack_from_frame, estimates)
        pose = torch.from_numpy(self.scan.pose).to(device)
        stack_from_homogenized = networks.input_from_homogenized(pose, stack_from_frame)
        self.crop, theta2 = _segment(self, images, stack_from_homogenized, np.arange(1))
        self.areas = _areas(self.crop, mask, compose(stack_from_homogenized, theta2)).cpu()
        # Depth of the scan less that of the homogenized volume, in millimeters of the scan.
        reach = float(networks.reach) * math.exp(self.scan.pose[0, LOG_SCALES][2])
        self.beyond_mm = max(slices * spacing[2] - reach * frame.fov_mm, 0.0)
        self.volume_from_crop = compose(networks.input_from_homogenized(pose, volume_from_frame), theta2)
        if crops:
            self.crops = most_probable(self.crop)[0].cpu().numpy()

    def restored(self, rows: np.ndarray) -> _Restored:
        """See :meth:`_Predictor.restored`; the slices follow each other."""
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        native = restore_slab(self.crop, self.volume_from_crop, self.prepared.shape, part)
        # Slices that show no body are background, as they are slice by slice.
        without = torch.from_numpy(~self.prepared.mask[part].any(axis=(1, 2))).to(self.device)
        native[0, without], native[1:, without] = 1.0, 0.0
        height, width = self.prepared.shape[1:]
        return _Restored((slice(0, height), slice(0, width)), native.movedim(1, 0))


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
        model: trained, of slices (``dims=2``) or of volumes (``dims=3``); or several, whose probabilities are
            averaged on the scan's grid.
        volume: any size, spacing and orientation, CT in Hounsfield units or MR, as the model was trained; of
            several channels one each, on one grid, in the order in which the model was trained.
        probabilities: keep them, restored on the native grid, as they are before the cleaning up.
        crops: keep the classes in the crops.
        correction: poses and crops of slices that a person set; a crop set by hand is not widened where it
            cuts.
        body: ``(z, y, x)`` mask on the volume's grid, in place of the one that is found.
        progress: called with (slices done, slices).

    Raises:
        InputError: no body is found, or another number of channels than the model sees.
        FloatingPointError: the networks' answers are not finite.
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
) -> list[_SlicePredictor | _VolumePredictor]:
    """Return a predictor of each member; what they have in common is prepared and estimated once."""
    prepared: dict[str, Prepared] = {}
    estimates: dict[str, SlicePoses | None] = {}
    predictors: list[_SlicePredictor | _VolumePredictor] = []
    for member, views, prepares, estimates_by in zip(
        ensemble.members, ensemble.views, ensemble.preparations, ensemble.estimates, strict=True
    ):
        if prepares not in prepared:
            prepared[prepares] = prepare(volumes, member.fingerprint, member.config.data, body=body)
        scan = prepared[prepares]
        if estimates_by not in estimates:
            estimates[estimates_by] = slice_poses_of(member.pipeline.pose, scan, member.config.predict)
        # Those of the first member alone are shown.
        wanted = crops and not predictors
        if member.config.dims == 3:
            predictors.append(_VolumePredictor(member, scan, views, estimates[estimates_by], wanted))
        else:
            predictors.append(
                _SlicePredictor(member, scan, views, estimates[estimates_by], wanted, correction)
            )
    return predictors


def _parts(predictors: Sequence[_Predictor]) -> list[np.ndarray]:
    """Return the slices in parts that are restored together.

    Models of slices answer in those with a body, in batches; one of volumes in all slices.
    """
    shape, size = predictors[0].prepared.shape, predictors[0].model.config.predict.batch_size
    volumes = [predictor.model.config.dims == 3 for predictor in predictors]
    if all(volumes):
        return [np.arange(part.start, part.stop) for part in slabs_of(shape)]
    wanted = np.full(shape[0], any(volumes))
    for predictor in predictors:
        wanted |= predictor.prepared.mask.any(axis=(1, 2))
    rows = np.flatnonzero(wanted)
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _merged(warnings: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the warnings of all members; what not all say is said with who says it."""
    lines = []
    for line in dict.fromkeys(line for of_member in warnings for line in of_member):
        who = [str(n) for n, of_member in enumerate(warnings, start=1) if line in of_member]
        alone = f"member{'s' if len(who) > 1 else ''} {', '.join(who)} of {len(warnings)}: "
        lines.append(line if len(who) == len(warnings) else alone + line)
    return tuple(lines)


def _segment(
    predictor: _Predictor, image: Tensor, input_from_homogenized: Tensor, rows: np.ndarray, widen: bool = True
) -> tuple[Tensor, Tensor]:
    """Probabilities in the crop and theta2 of some rows of a scan; a crop that cuts is widened.

    Of slices ``image`` is ``(N, C, S, S)`` and ``input_from_homogenized`` ``(N, K, 3, 3)``, see
    :func:`isopose.scan.find.channels_of`; of a volume ``(1, C, Z, S, S)`` and ``(1, 4, 4)``.
    """
    model, scan = predictor.model, predictor.scan
    border = model.config.predict.crop_border
    theta2 = torch.from_numpy(scan.theta2[rows]).to(image.device)

    def seen_through(images: Tensor, homogenizing: Tensor, crops: Tensor) -> Tensor:
        crops = crops[:, None] if homogenizing.ndim == 4 else crops
        cut = model.pipeline.cut(images, compose(homogenizing, crops))
        return crop_probabilities(model, cut, predictor.views)

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


def crop_probabilities(model: Model, crop: Tensor, views: Views) -> Tensor:
    """Return the mean of the U-Net's answers to the views of crops.

    The mirrored patient in the mirrored crop is the crop with its columns reversed
    (:func:`isopose.geometry.box.mirrored`), so nothing is resampled twice. The answer to it is turned back,
    and what it calls left is right.

    Args:
        model: trained.
        crop: ``(N, C, M, M)``, of volumes ``(N, C, D, M, M)``.
        views: see :attr:`isopose.inference.ensemble.Ensemble.views`.

    Returns:
        Probabilities ``(N, classes, M, M)`` or ``(N, classes, D, M, M)`` float32.
    """
    answers = []
    for mirrored in views:
        if mirrored:
            partners = list(mirrored_classes(model.labels.names))
            answers.append(_answer(model, crop.flip(-1)).flip(-1)[:, partners])
        else:
            answers.append(_answer(model, crop))
    return answers[0] if len(answers) == 1 else sum(answers[1:], answers[0]) / len(answers)


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
