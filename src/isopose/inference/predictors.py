"""Predict one scan with one model: its poses and crops, and the probabilities in any of its slices."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isopose.data.preprocess import Prepared
from isopose.devices import autocast, choose_precision
from isopose.geometry.box import enlarged
from isopose.geometry.pose import LOG_SCALES
from isopose.geometry.warp import compose, warp
from isopose.inference.border import touches_border
from isopose.inference.ensemble import Views
from isopose.labels import mirrored_classes
from isopose.models.folder import Model
from isopose.models.pipeline import frame_from_crop
from isopose.models.pose import SlicePoses
from isopose.models.restore import marked, most_probable, reached, restore, restore_slab
from isopose.scan.correction import Correction
from isopose.scan.find import find_crops, find_poses, find_volume_pose, unet_channels
from isopose.scan.pose import ScanPose
from isopose.scan.warnings import crop_warnings, pose_warnings

#: A crop that cuts a structure grows by this factor until it cuts none. The factor is small, since the
#: network is trained at the scale of its crops: docs/measurements.md, "Choices".
WIDEN = 1.1
#: Fraction of the segmentation that may lie outside the body without a warning; borders differ by a pixel.
OUTSIDE = 0.05
#: Warn of a scan that is longer than the training scans by more than this.
BEYOND_MM = 20.0


class Predictor(ABC):
    """One model applied to one scan: its poses and crops, and its probabilities in any slices.

    Args:
        scan: pose and crop, of each slice or of the volume.
        crops: the predicted classes in the crops, if requested; see
            :class:`isopose.inference.predict.Prediction`.
        areas: ``(2,)``, see :func:`_areas`.
        beyond_mm: see :class:`isopose.inference.predict.Prediction`.
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
    def restored(self, rows: np.ndarray) -> "RestoredProbabilities":
        """Return the probabilities in some slices; each slice may be requested only once."""

    def warnings(self) -> tuple[str, ...]:
        """Return the warnings, one line each."""
        networks, predicting = self.model.pipeline, self.model.config.predict
        lines = [
            *self.prepared.warnings,
            *pose_warnings(self.scan, networks.pose, predicting, joint=networks.joint is not None),
            *crop_warnings(self.scan),
        ]
        if self.beyond_mm > BEYOND_MM:
            lines.append(
                f"the scan is {self.beyond_mm:.0f} mm longer than those the model was trained on; structures "
                "near its ends may be missed"
            )
        everything, outside = self.areas.tolist()
        if outside > OUTSIDE * everything:
            share = 100.0 * outside / everything
            lines.append(f"{share:.0f} % of the segmentation lies outside the body: do not trust this result")
        return tuple(lines)


class RestoredProbabilities(NamedTuple):
    """Probabilities on the scan's grid.

    Args:
        region: rows and columns of the slices; outside of them all is background.
        values: ``(n, classes, *region)``.
    """

    region: tuple[slice, slice]
    values: Tensor

    def within(self, region: tuple[slice, slice], background: float = 1.0) -> Tensor:
        """Return the values in a larger region, filled with background outside their own."""
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


class SlicePredictor(Predictor):
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
        # Pose and crop of the whole scan first: a common crop needs the crops of all slices.
        scan = find_poses(model.pipeline.pose, prepared, model.config.predict, estimates, correction)
        self.scan = find_crops(model.pipeline, prepared, scan, correction)
        self.widen = correction is None or not correction.crops
        if crops:
            self.crops = np.zeros((prepared.shape[0], *model.config.unet_shape), np.uint8)

    def restored(self, rows: np.ndarray) -> RestoredProbabilities:
        """See :meth:`Predictor.restored`."""
        networks, (height, width) = self.model.pipeline, self.prepared.shape[1:]
        with_body = self.scan.has_body[rows]
        if not with_body.any():
            nothing = torch.zeros(len(rows), networks.classes, 1, 1, device=self.device)
            nothing[:, 0] = 1.0
            return RestoredProbabilities((slice(0, 1), slice(0, 1)), nothing)
        shown = rows[with_body]
        context = self.model.config.unet
        image, homogenizing = unet_channels(self.prepared, shown, self.scan, context, self.device)
        mask = torch.from_numpy(self.prepared.covered[shown])[:, None].float().to(self.device)
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
            return RestoredProbabilities(region, native)
        # Slices that show no body are background.
        values = native.new_zeros((len(rows), *native.shape[1:]))
        values[:, 0] = 1.0
        values[torch.from_numpy(with_body).to(self.device)] = native
        return RestoredProbabilities(region, values)


class VolumePredictor(Predictor):
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

    def restored(self, rows: np.ndarray) -> RestoredProbabilities:
        """See :meth:`Predictor.restored`; the slices follow each other."""
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        native = restore_slab(self.crop, self.volume_from_crop, self.prepared.shape, part)
        # Slices that show no body are background, as they are slice by slice.
        without = torch.from_numpy(~self.prepared.mask[part].any(axis=(1, 2))).to(self.device)
        native[0, without], native[1:, without] = 1.0, 0.0
        height, width = self.prepared.shape[1:]
        return RestoredProbabilities((slice(0, height), slice(0, width)), native.movedim(1, 0))


def _segment(
    predictor: Predictor, image: Tensor, input_from_homogenized: Tensor, rows: np.ndarray, widen: bool = True
) -> tuple[Tensor, Tensor]:
    """Return probabilities in the crop, and theta2, of some rows of a scan; a crop that cuts is widened.

    For slices ``image`` is ``(N, C, S, S)`` and ``input_from_homogenized`` ``(N, K, 3, 3)``, see
    :func:`isopose.scan.find.unet_channels`; for a volume ``(1, C, Z, S, S)`` and ``(1, 4, 4)``.
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
            wider[still] = enlarged(wider[still], WIDEN)
            again[still] = seen_through(image[still], input_from_homogenized[still], wider[still])
            still &= touches_border(again, wider, border)
        # In a wider crop, a structure that was cut off is larger. If it is not, the network lost it at the
        # unfamiliar scale, and the prediction in the first crop is better.
        used = cut & (_size_of_marked(again, wider) > _size_of_marked(probabilities, theta2))
        chosen = used.reshape(-1, *[1] * (probabilities.ndim - 1))
        probabilities = torch.where(chosen, again, probabilities)
        theta2 = torch.where(used[:, None, None], wider, theta2)
        scan.widened[rows] = used.cpu()
        scan.cut_off[rows] = (cut & ~used).cpu()
        scan.theta2[rows] = theta2.cpu()
    return probabilities, theta2


def crop_probabilities(model: Model, crop: Tensor, views: Views) -> Tensor:
    """Return the mean of the U-Net's probabilities over the views of crops.

    The mirrored patient in the mirrored crop is the crop with its columns reversed
    (:func:`isopose.geometry.box.mirrored`), so nothing is resampled twice. Its output is flipped back, and
    left and right labels are exchanged.

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
        raise FloatingPointError("the U-Net's output is not finite")
    return answer


def _size_of_marked(probabilities: Tensor, theta2: Tensor) -> Tensor:
    """Return the foreground's area in each crop as a fraction of the homogenized frame, ``(N,)``."""
    share = marked(probabilities).flatten(1).float().mean(dim=1)
    return share * theta2.diagonal(dim1=-2, dim2=-1).prod(dim=1)


def _areas(probabilities: Tensor, mask: Tensor, input_from_crop: Tensor) -> Tensor:
    """Return the area of a batch's foreground in the input, and of its part outside the body, ``(2,)``."""
    foreground = marked(probabilities)[:, None].float()
    outside = foreground * (warp(mask, input_from_crop, tuple(foreground.shape[2:])) < 0.5)
    pixel = torch.linalg.det(input_from_crop[:, :-1, :-1].float()).abs()
    return torch.stack([(one.flatten(1).sum(dim=1) * pixel).sum() for one in (foreground, outside)])
