"""Draw the steps of one scan: input, body, homogenized, cropped, prediction in the crop, restored."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isopose.data.drawn import structures
from isopose.geometry.pose import ANGLE, LOG_SCALE_X, LOG_SCALE_Y, matrix_from_pose
from isopose.geometry.volume import Volume
from isopose.geometry.warp import compose, normalized_from_pixel, resize
from isopose.inference.ensemble import ensemble_of
from isopose.inference.predict import Prediction
from isopose.inference.predictors import crop_probabilities
from isopose.models.folder import Model
from isopose.models.restore import most_probable
from isopose.report.figure import Steps, draw_steps, window_of_scan
from isopose.scan.find import unet_channels

#: Slices of a scan that are drawn.
DRAWN_SLICES = 4
_CORNERS = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])


def write_steps(model: Model, volume: Volume, prediction: Prediction, path: Path) -> None:
    """Draw evenly spread slices of a scan."""
    draw_steps(steps_of(model, volume, prediction), path, model.labels.names)


@torch.inference_mode()
def steps_of(
    model: Model,
    volume: Volume,
    prediction: Prediction,
    *,
    truth: Volume | None = None,
    rows: int = DRAWN_SLICES,
) -> list[Steps]:
    """Return the steps of some slices, see :func:`write_steps`.

    ``truth`` are ground-truth labels on the scan's grid, stored values, where known.
    """
    plane = model.config.data.plane
    reoriented, apply = volume.reoriented(plane), volume.reorientation(plane).apply
    classes = model.labels.to_classes(apply(prediction.labels.array))
    true_classes = None if truth is None else model.labels.to_classes(apply(truth.array))
    if true_classes is not None:
        true_classes *= structures(true_classes)
    # Brightness of MR may differ along a scan, and must not differ between its pictures.
    display_range = None if model.modality == "ct" else window_of_scan(reoriented.array)
    return [
        _slice_steps(model, reoriented, prediction, classes, true_classes, int(z), display_range)
        for z in chosen_slices(prediction, classes, true_classes, rows)
    ]


def chosen_slices(
    prediction: Prediction, classes: np.ndarray, truth: np.ndarray | None, rows: int
) -> np.ndarray:
    """Return evenly spread slices that show a label (else the body), head first."""
    has_body = prediction.scan_pose.has_body
    has_label = (classes > 0).any(axis=(1, 2)) if truth is None else (truth > 0).any(axis=(1, 2))
    usable = np.flatnonzero(has_body & has_label)
    if len(usable) < rows:
        usable = np.flatnonzero(has_body)
    positions = (np.arange(rows) + 0.5) / rows * len(usable)
    return np.unique(usable[positions.astype(int)])[::-1]


def _slice_steps(
    model: Model,
    volume: Volume,
    prediction: Prediction,
    classes: np.ndarray,
    truth: np.ndarray | None,
    z: int,
    display_range: tuple[float, float] | None,
) -> Steps:
    pipeline, prepared, records = model.pipeline, prediction.prepared, prediction.scan_pose
    device = pipeline.pose.reference_mask.device
    image = torch.from_numpy(prepared.image[z])[None, None].to(device)
    mask = torch.from_numpy(prepared.mask[z])[None, None].float().to(device)
    pose = torch.from_numpy(records.pose[z])[None].to(device)
    theta2 = torch.from_numpy(records.theta2[z])[None].to(device)
    size = model.config.data.size
    homogenized, _ = pipeline.homogenized(image, mask, matrix_from_pose(pose), size)
    channels, homogenizing = unet_channels(prepared, np.array([z]), records, model.config.unet, device)
    crop = pipeline.cut(channels, compose(homogenizing, theta2[:, None]))
    neighbors = model.config.unet.context
    reference = resize(pipeline.pose.reference_mask, (size, size))
    slice_from_homogenized = compose(prepared.slice_from_frame.to(device), matrix_from_pose(pose)[0])
    warnings = []
    if model.config.pose_estimated and records.agreement[z] < model.config.predict.min_pose_dice:
        warnings.append("low agreement")
    if records.cut_off[z]:
        warnings.append("cut off by the crop")
    probabilities = crop_probabilities(model, crop, ensemble_of(model).views[0])
    return Steps(
        native=volume.array[z].astype(np.float32),
        native_spacing_yx=(float(volume.spacing[1]), float(volume.spacing[0])),
        frame_outline=_to_pixels(slice_from_homogenized, (volume.array.shape[1], volume.array.shape[2])),
        homogenized=_to_plane(homogenized),
        reference_mask=_to_plane(reference) >= 0.5,
        crop_outline=_to_pixels(theta2[0], (size, size)),
        cropped=_to_plane(crop.chunk(len(prepared.images), dim=1)[prepared.pose_channel][:, neighbors:]),
        crop_classes=most_probable(probabilities)[0].cpu().numpy(),
        native_classes=classes[z],
        native_truth=None if truth is None else truth[z],
        native_window=display_range,
        frame_image=prepared.image[z],
        frame_mask=prepared.mask[z],
        heading=f"slice {z}",
        lines=(
            f"roll {math.degrees(records.pose[z, ANGLE]):+.1f}°",
            "scale {:.2f} × {:.2f}".format(*np.exp(records.pose[z, [LOG_SCALE_X, LOG_SCALE_Y]])),
            f"agreement {records.agreement[z]:.2f}",
            f"pose: {records.source_of(z)}",
            f"crop: {float(theta2[0, 0, 0]):.2f} of the frame",
        ),
        warnings=tuple(warnings),
    )


def _to_pixels(input_from_output: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Return the corners of the output square in pixels of the input, ``(4, 2)`` as ``(x, y)``."""
    pixel_from_normalized = torch.linalg.inv(normalized_from_pixel(shape)).to(input_from_output.device)
    corners = compose(pixel_from_normalized, input_from_output) @ _CORNERS.T.to(input_from_output.device)
    return corners[:2].T.cpu().numpy()


def _to_plane(image: Tensor) -> np.ndarray:
    return image[0, 0].float().cpu().numpy()
