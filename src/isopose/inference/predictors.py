"""Predict one scan with one model: its poses and crops, and class probabilities on its own grid."""

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
WIDENING_FACTOR = 1.1
#: Fraction of the segmentation that may lie outside the body without a warning; borders differ by a pixel.
MAX_OUTSIDE_FRACTION = 0.05
#: Length in mm by which a scan may exceed the longest training scan without a warning.
MAX_BEYOND_MM = 20.0


class Predictor(ABC):
    """One model applied to one scan.

    Attributes:
        scan: pose and crop, of each slice or of the volume.
        crops: the predicted classes in the crops, if requested; see
            :class:`isopose.inference.predict.Prediction`.
        areas: ``(2,)`` sums over the slices predicted so far, see :func:`_foreground_areas`.
        beyond_mm: see :class:`isopose.inference.predict.Prediction`.

    Args:
        model: trained.
        prepared: the preprocessed scan.
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
        """Return the probabilities in some slices.

        Args:
            rows: ``(n,)`` indices of slices from the feet; each may be requested only once.
        """

    def warnings(self) -> tuple[str, ...]:
        """Return the warnings, one line each."""
        networks, settings = self.model.pipeline, self.model.config.predict
        lines = [
            *self.prepared.warnings,
            *pose_warnings(self.scan, networks.pose, settings, joint=networks.joint is not None),
            *crop_warnings(self.scan),
        ]
        if self.beyond_mm > MAX_BEYOND_MM:
            lines.append(
                f"the scan is {self.beyond_mm:.0f} mm longer than those the model was trained on; structures "
                "near its ends may be missed"
            )
        total, outside = self.areas.tolist()
        if outside > MAX_OUTSIDE_FRACTION * total:
            percent = 100.0 * outside / total
            lines.append(
                f"{percent:.0f} % of the segmentation lies outside the body: do not trust this result"
            )
        return tuple(lines)

    def _segment(
        self, image: Tensor, input_from_homogenized: Tensor, rows: np.ndarray, widen: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Crop and segment some rows of the scan, and record which crops cut a structure off.

        Args:
            image: slices ``(N, C, S, S)``, or a volume ``(1, C, Z, S, S)``.
            input_from_homogenized: ``(N, K, 3, 3)``, see :func:`isopose.scan.find.unet_channels`; of a volume
                ``(1, 4, 4)``.
            rows: ``(N,)`` rows of ``self.scan``.
            widen: widen crops that cut a structure.

        Returns:
            Probabilities in the crops ``(N, classes, M, M)`` or ``(1, classes, D, M, M)``, and theta2
                ``(N, 3, 3)`` or ``(1, 4, 4)`` of these crops.
        """
        border = self.model.config.predict.crop_border
        theta2 = torch.from_numpy(self.scan.theta2[rows]).to(image.device)

        def segment(images: Tensor, homogenizing: Tensor, crops: Tensor) -> Tensor:
            crops = crops[:, None] if homogenizing.ndim == 4 else crops
            cropped = self.model.pipeline.cut(images, compose(homogenizing, crops))
            return crop_probabilities(self.model, cropped, self.views)

        probabilities = segment(image, input_from_homogenized, theta2)
        cut_off = touches_border(probabilities, theta2, border)
        if not widen:
            self.scan.cut_off[rows] = cut_off.cpu()
        elif cut_off.any():
            wide_theta2, wide_probabilities = theta2.clone(), probabilities.clone()
            still_cut_off = cut_off.clone()
            # Ends at the whole frame, whose edges cut nothing.
            while still_cut_off.any():
                wide_theta2[still_cut_off] = enlarged(wide_theta2[still_cut_off], WIDENING_FACTOR)
                wide_probabilities[still_cut_off] = segment(
                    image[still_cut_off], input_from_homogenized[still_cut_off], wide_theta2[still_cut_off]
                )
                still_cut_off &= touches_border(wide_probabilities, wide_theta2, border)
            # In a wider crop, a structure that was cut off is larger. If it is not, the network lost it at
            # the unfamiliar scale, and the prediction in the first crop is better.
            area = _foreground_fraction(probabilities, theta2)
            widened = cut_off & (_foreground_fraction(wide_probabilities, wide_theta2) > area)
            selected = widened.reshape(-1, *[1] * (probabilities.ndim - 1))
            probabilities = torch.where(selected, wide_probabilities, probabilities)
            theta2 = torch.where(widened[:, None, None], wide_theta2, theta2)
            self.scan.widened[rows] = widened.cpu()
            self.scan.cut_off[rows] = (cut_off & ~widened).cpu()
            self.scan.theta2[rows] = theta2.cpu()
        return probabilities, theta2


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
        padded = self.values.new_zeros((*self.values.shape[:2], *sides))
        padded[:, 0] = background
        window = (
            slice(inner.start - outer.start, inner.stop - outer.start)
            for inner, outer in zip(self.region, region, strict=True)
        )
        padded[(slice(None), slice(None), *window)] = self.values
        return padded


class SlicePredictor(Predictor):
    """A model of slices (``dims=2``) applied to one scan.

    Args:
        model: trained.
        prepared: the preprocessed scan.
        views: of each crop, see :attr:`isopose.inference.ensemble.Ensemble.views`.
        slice_poses: by :func:`isopose.scan.find.slice_poses_of`.
        crops: keep the predicted classes in the crops.
        correction: poses and crops set by hand; a crop set by hand is not widened.
    """

    def __init__(
        self,
        model: Model,
        prepared: Prepared,
        views: Views,
        slice_poses: SlicePoses | None,
        crops: bool,
        correction: Correction | None,
    ) -> None:
        super().__init__(model, prepared, views)
        # Pose and crop of the whole scan first: a common crop needs the crops of all slices.
        scan = find_poses(model.pipeline.pose, prepared, model.config.predict, slice_poses, correction)
        self.scan = find_crops(model.pipeline, prepared, scan, correction)
        self.widen = correction is None or not correction.crops
        if crops:
            self.crops = np.zeros((prepared.shape[0], *model.config.unet_shape), np.uint8)

    def restored(self, rows: np.ndarray) -> RestoredProbabilities:
        """See :meth:`Predictor.restored`."""
        networks, (height, width) = self.model.pipeline, self.prepared.shape[1:]
        with_body = self.scan.has_body[rows]
        if not with_body.any():
            background = torch.zeros(len(rows), networks.classes, 1, 1, device=self.device)
            background[:, 0] = 1.0
            return RestoredProbabilities((slice(0, 1), slice(0, 1)), background)
        body_rows = rows[with_body]
        image, theta1 = unet_channels(
            self.prepared, body_rows, self.scan, self.model.config.unet, self.device
        )
        mask = torch.from_numpy(self.prepared.covered[body_rows])[:, None].float().to(self.device)
        pose = torch.from_numpy(self.scan.pose[body_rows]).to(self.device)
        crop, theta2 = self._segment(image, theta1, body_rows, self.widen)
        theta = frame_from_crop(pose, theta2)
        self.areas += _foreground_areas(crop, mask, theta).cpu()
        if self.crops is not None:
            self.crops[body_rows] = most_probable(crop).cpu().numpy()
        slice_from_crop = compose(self.prepared.slice_from_frame.to(self.device), theta)
        region = reached(slice_from_crop, crop.shape[-1], (height, width))
        native = restore(crop, slice_from_crop, (height, width), region=region)
        if with_body.all():
            return RestoredProbabilities(region, native)
        # Slices without a body are background.
        values = native.new_zeros((len(rows), *native.shape[1:]))
        values[:, 0] = 1.0
        values[torch.from_numpy(with_body).to(self.device)] = native
        return RestoredProbabilities(region, values)


class VolumePredictor(Predictor):
    """A model of volumes (``dims=3``) applied to one scan; see :class:`SlicePredictor`."""

    def __init__(
        self, model: Model, prepared: Prepared, views: Views, slice_poses: SlicePoses | None, crops: bool
    ) -> None:
        super().__init__(model, prepared, views)
        networks, device = model.pipeline, self.device
        slices, frame, spacing = prepared.shape[0], prepared.frame, prepared.spacing
        stack_from_frame = frame.stack_from_frame(slices, spacing[2]).to(device)
        volume_from_frame = frame.volume_from_frame(prepared.shape, spacing).to(device)
        images = torch.from_numpy(prepared.images)[None].to(device)
        image = images[:, prepared.pose_channel : prepared.pose_channel + 1]
        mask = torch.from_numpy(prepared.mask)[None, None].to(device).float()
        self.scan = find_volume_pose(networks, prepared, image, mask, stack_from_frame, slice_poses)
        pose = torch.from_numpy(self.scan.pose).to(device)
        stack_from_homogenized = networks.input_from_homogenized(pose, stack_from_frame)
        self.crop, theta2 = self._segment(images, stack_from_homogenized, np.arange(1))
        self.areas = _foreground_areas(self.crop, mask, compose(stack_from_homogenized, theta2)).cpu()
        # Length of the scan minus that of the homogenized volume, in millimeters of the scan.
        reach = float(networks.reach) * math.exp(self.scan.pose[0, LOG_SCALES][2])
        self.beyond_mm = max(slices * spacing[2] - reach * frame.fov_mm, 0.0)
        self.volume_from_crop = compose(networks.input_from_homogenized(pose, volume_from_frame), theta2)
        if crops:
            self.crops = most_probable(self.crop)[0].cpu().numpy()

    def restored(self, rows: np.ndarray) -> RestoredProbabilities:
        """See :meth:`Predictor.restored`; the slices must be consecutive."""
        slab = slice(int(rows[0]), int(rows[-1]) + 1)
        native = restore_slab(self.crop, self.volume_from_crop, self.prepared.shape, slab)
        # Slices without a body are background, as with a model of slices.
        no_body = torch.from_numpy(~self.prepared.mask[slab].any(axis=(1, 2))).to(self.device)
        native[0, no_body], native[1:, no_body] = 1.0, 0.0
        height, width = self.prepared.shape[1:]
        return RestoredProbabilities((slice(0, height), slice(0, width)), native.movedim(1, 0))


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
    probabilities = []
    for mirrored in views:
        if mirrored:
            partners = list(mirrored_classes(model.labels.names))
            probabilities.append(_unet_probabilities(model, crop.flip(-1)).flip(-1)[:, partners])
        else:
            probabilities.append(_unet_probabilities(model, crop))
    if len(probabilities) == 1:
        return probabilities[0]
    return sum(probabilities[1:], probabilities[0]) / len(probabilities)


def _unet_probabilities(model: Model, crop: Tensor) -> Tensor:
    """Return the U-Net's probabilities in crops, in the precision that the model's settings choose.

    Raises:
        FloatingPointError: the output is not finite.
    """
    device_type = crop.device.type
    with autocast(choose_precision(model.config.predict.precision, device_type), device_type):
        layout = torch.channels_last if crop.ndim == 4 else torch.contiguous_format
        probabilities = model.pipeline.probabilities(crop.contiguous(memory_format=layout))
    # The argmax of values that are not finite would be the background, without a warning.
    if not probabilities.isfinite().all():
        raise FloatingPointError("the U-Net's output is not finite")
    return probabilities


def _foreground_fraction(probabilities: Tensor, theta2: Tensor) -> Tensor:
    """Return the foreground's area in each crop as a fraction of the homogenized frame, ``(N,)``."""
    crop_fraction = marked(probabilities).flatten(1).float().mean(dim=1)
    return crop_fraction * theta2.diagonal(dim1=-2, dim2=-1).prod(dim=1)


def _foreground_areas(probabilities: Tensor, mask: Tensor, input_from_crop: Tensor) -> Tensor:
    """Return the area of a batch's foreground, and of its part outside the body, in the input ``(2,)``.

    Args:
        probabilities: ``(N, classes, M, M)``, of volumes ``(N, classes, D, M, M)``.
        mask: ``(N, 1, S, S)``, of volumes ``(N, 1, Z, S, S)``, the body.
        input_from_crop: ``(N, 3, 3)`` or ``(N, 4, 4)``.
    """
    foreground = marked(probabilities)[:, None].float()
    outside = foreground * (warp(mask, input_from_crop, tuple(foreground.shape[2:])) < 0.5)
    pixel = torch.linalg.det(input_from_crop[:, :-1, :-1].float()).abs()
    return torch.stack([(area.flatten(1).sum(dim=1) * pixel).sum() for area in (foreground, outside)])
