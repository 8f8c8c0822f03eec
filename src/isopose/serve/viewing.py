"""Files of a page for one prediction: scan and labels for NiiVue, and the steps of each slice.

``view/``, beside a job's results, holds

* ``scan.nii`` (int16; ``view.json`` has slope and intercept) and ``labels.nii`` (uint8, class indices),
  reoriented so that the model's slices lie along z; uncompressed, because compression costs more time;
* ``homogenized.npy``, ``crop.npy`` (int16) and ``crop_labels.npy`` (uint8), one image per slice; for models
  of volumes the planes of the homogenized volume through the centers of the slices;
* ``view.json``, everything else; it is written last.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contourpy import contour_generator
from torch import Tensor

from isopose.choices import Modality, Plane
from isopose.data.drawn import structures
from isopose.data.normalization import Scale
from isopose.files import read_json, replacing, write_json
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.volume import Volume
from isopose.geometry.warp import compose, warp
from isopose.inference.predict import Prediction
from isopose.io.images import read_volume, write_image
from isopose.labels import Labels, class_colors
from isopose.models.folder import Model
from isopose.scan.correction import outline_of
from isopose.serve.values import Shown, shown_values

#: Version of the files in ``view/``.
FORMAT = 4
#: Pixels along a side of a homogenized slice on the page.
HOMOGENIZED_PIXELS = 256
#: Slices homogenized at a time.
BATCH_SLICES = 32
#: Voxels that a browser without a graphics card draws quickly.
MAX_SHOWN_VOXELS = 1_500_000
#: Bytes before the voxels of a NIfTI file without extensions.
_NIFTI_HEADER = 352


def write_view(
    folder: Path,
    model: Model,
    volume: Volume,
    prediction: Prediction,
    record: dict[str, Any],
) -> None:
    """Write the files of a prediction's page.

    Args:
        folder: ``view/``; created, and its contents replaced.
        model: model that predicted.
        volume: scan as read.
        prediction: prediction of the scan, with crops.
        record: record of the prediction.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / "view.json", *folder.glob("reduced-*")):
        path.unlink(missing_ok=True)
    plane = model.config.data.plane
    reoriented, values = write_scan(folder, volume, model.modality, plane)
    write_label_map(folder, prediction.labels, model.labels, plane=plane)
    write_steps = _write_steps if model.config.dims == 2 else _write_planes
    steps = write_steps(folder, model, prediction, values)
    keys = ("volumes_ml", "warnings", "roll_degrees", "pitch_degrees", "yaw_degrees", "scales", "slices")
    write_json(
        folder / "view.json",
        {
            "format": FORMAT,
            **describe_scan(reoriented, model.labels, values),
            **{key: record[key] for key in (*keys, "frame", "confidence", "agreement") if key in record},
            "corrected": "correction_sha256" in record,
            "image_sha256": record["input_sha256"],
            "min_confidence": model.config.predict.min_confidence,
            "min_agreement": model.config.predict.min_pose_dice,
            "plane": plane,
            "steps": steps,
        },
    )


def describe_scan(volume: Volume, labels: Labels, values: Shown) -> dict[str, Any]:
    """Return grid, values and labels of a scan for a page.

    Args:
        volume: the reoriented scan.
        labels: their names and colors are listed by class.
        values: how its values are stored and shown.
    """
    return {
        "shape": list(volume.array.shape),
        "spacing": [float(value) for value in volume.spacing],
        "values": values.to_json(),
        "reduced": list(reduction((volume.array.shape[0], volume.array.shape[1], volume.array.shape[2]))),
        "labels": [
            {"name": name, "color": color}
            for name, color in zip(labels.names, class_colors(labels.names), strict=True)
        ],
    }


def write_scan(
    folder: Path, volume: Volume, modality: Modality | None, plane: Plane = "axial"
) -> tuple[Volume, Shown]:
    """Write ``scan.nii``; return the scan with the plane's slices along z, and how its values are shown."""
    reoriented = volume.reoriented(plane)
    values = shown_values(reoriented.array, modality)
    array = values.stored(reoriented.array)
    write_image(Volume(np.ascontiguousarray(array), reoriented.world_from_index), folder / "scan.nii")
    return reoriented, values


def write_label_map(
    folder: Path, predicted: Volume, labels: Labels, name: str = "labels.nii", plane: Plane = "axial"
) -> None:
    """Write a label map of stored values as class indices, slices along z; ignored voxels are 0."""
    reoriented = predicted.reoriented(plane)
    classes = labels.to_classes(reoriented.array)
    write_image(
        Volume(np.ascontiguousarray(classes * structures(classes)), reoriented.world_from_index),
        folder / name,
    )


@torch.inference_mode()
def _write_steps(folder: Path, model: Model, prediction: Prediction, values: Shown) -> dict[str, Any]:
    pipeline, prepared, records = model.pipeline, prediction.prepared, prediction.scan_pose
    assert prediction.crops is not None, "the page shows the prediction in the crop"
    device, slices = pipeline.pose.reference_mask.device, len(records.pose)
    size, side = min(HOMOGENIZED_PIXELS, model.config.data.size), model.config.unet_size
    air = values.stored(np.array(prepared.scale.low))
    homogenized = np.full((slices, size, size), air, np.int16)
    crop = np.full((slices, side, side), air, np.int16)
    with_body = np.flatnonzero(records.has_body)
    for first in range(0, len(with_body), BATCH_SLICES):
        rows = with_body[first : first + BATCH_SLICES]
        image = torch.from_numpy(prepared.image[rows])[:, None].to(device)
        theta1 = matrix_from_pose(torch.from_numpy(records.pose[rows]).to(device))
        theta = compose(theta1, torch.from_numpy(records.theta2[rows]).to(device))
        for out, matrix, pixels in ((homogenized, theta1, size), (crop, theta, side)):
            resampled = warp(image, matrix, (pixels, pixels), fill=pipeline.air)
            out[rows] = _store(values, prepared.scale, resampled[:, 0])
    _write_arrays(folder, homogenized=homogenized, crop=crop, crop_labels=prediction.crops)
    outline = outline_of(pipeline.pose.reference_mask)
    return {
        **_describe_steps(model, prepared.scale, values),
        # A correction belongs to this reference outline.
        "reference": {"center": list(outline.center), "spread": list(outline.spread)},
    }


@torch.inference_mode()
def _write_planes(folder: Path, model: Model, prediction: Prediction, values: Shown) -> dict[str, Any]:
    """Write, for each slice of a volume, the homogenized plane that meets it in the frame's center."""
    pipeline, prepared, scan = model.pipeline, prediction.prepared, prediction.scan_pose
    assert prediction.crops is not None, "the page shows the prediction in the crop"
    device, slices = pipeline.pose.reference_mask.device, prepared.shape[0]
    size, side = min(HOMOGENIZED_PIXELS, model.config.data.size), model.config.unet_size
    stack_from_frame = prepared.frame.stack_from_frame(slices, prepared.spacing[2]).to(device)
    pose = torch.from_numpy(scan.pose).to(device)
    stack_from_homogenized = pipeline.input_from_homogenized(pose, stack_from_frame)
    # At x = y = 0, z of the stack is z' = m z + n; z' of each slice is known.
    m, n = (float(value) for value in stack_from_homogenized[0, 2, 2:])
    planes = torch.eye(4, device=device)
    planes[2, 2:] = torch.tensor([1.0 / m, -n / m], device=device)
    in_crop = torch.from_numpy(scan.theta2[0]).to(device)
    crop_planes = in_crop.clone()
    crop_planes[2] = planes[2]
    image = torch.from_numpy(prepared.image)[None, None].to(device)
    arrays = []
    for matrix, pixels in ((planes, size), (crop_planes, side)):
        theta = compose(stack_from_homogenized, matrix[None])
        resampled = warp(image, theta, (slices, pixels, pixels), fill=pipeline.air)
        arrays.append(_store(values, prepared.scale, resampled[0, 0]))
    z = ((2.0 * np.arange(slices) + 1.0) / slices - 1.0 - n) / m
    depth = len(prediction.crops)
    nearest = ((z - scan.theta2[0, 2, 3]) / scan.theta2[0, 2, 2] + 1.0) * depth / 2.0
    inside = (nearest >= 0) & (nearest < depth)
    classes = np.zeros((slices, side, side), np.uint8)
    classes[inside] = prediction.crops[nearest[inside].astype(int)]
    _write_arrays(folder, homogenized=arrays[0], crop=arrays[1], crop_labels=classes)
    to_frame = stack_from_homogenized[0].cpu().numpy().astype(float)
    square = scan.theta2[0].astype(float)[np.ix_([0, 1, 3], [0, 1, 3])].tolist()
    return {
        **_describe_steps(model, prepared.scale, values),
        "slices": [
            {
                "slice": int(row),
                "frame_from_homogenized": np.column_stack(
                    [to_frame[:2, :2], to_frame[:2, 2] * z[row] + to_frame[:2, 3]]
                ).tolist(),
                "homogenized_from_crop": square,
            }
            for row in np.flatnonzero(prepared.mask.any(axis=(1, 2)))
        ],
    }


def _describe_steps(model: Model, scale: Scale, values: Shown) -> dict[str, Any]:
    return {
        "outline": contours(model.pipeline.pose.reference_mask),
        "window": list(values.stored_range(scale.low, scale.high)),
        "crop_enabled": model.config.crop.enabled,
    }


def _store(values: Shown, scale: Scale, normalized: Tensor) -> np.ndarray:
    """Return normalized values as stored numbers of the scan."""
    return values.stored((normalized * max(scale.sd, 1e-8) + scale.mean).cpu().numpy())


def _write_arrays(folder: Path, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        with replacing(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)


def contours(mask: Tensor) -> list[list[list[float]]]:
    """Return outlines of a soft mask ``(1, 1, S, S)`` at 0.5, as closed lines of normalized ``[x, y]``."""
    plane = mask[0, 0].float().cpu().numpy()
    size = plane.shape[0]
    # With a rim of zeros, so that an outline that reaches the edge is closed there.
    lines = contour_generator(z=np.pad(plane, 1)).lines(0.5)
    return [
        [
            [round((2.0 * float(x) - 1.0) / size - 1.0, 4), round((2.0 * float(y) - 1.0) / size - 1.0, 4)]
            for x, y in np.asarray(line)
        ]
        for line in lines
    ]


def read_view(folder: Path) -> dict[str, Any] | None:
    """Return ``view.json``; None if it is missing or of another version."""
    if not (folder / "view.json").exists():
        return None
    value: dict[str, Any] = read_json(folder / "view.json")
    return value if value.get("format") == FORMAT else None


def reduction(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the steps along ``(x, y, z)`` that reduce a volume to :data:`MAX_SHOWN_VOXELS` voxels."""
    steps = [1, 1, 1]
    while (
        math.prod(-(-size // step) for size, step in zip(shape, reversed(steps), strict=True))
        > MAX_SHOWN_VOXELS
    ):
        sizes = [size // step for size, step in zip(reversed(shape), steps, strict=True)]
        steps[int(np.argmax(sizes))] += 1
    return steps[0], steps[1], steps[2]


def reduced(path: Path, shape: tuple[int, int, int]) -> Path:
    """Return a subsampled copy of a view's NIfTI file; the file itself if it is small.

    Args:
        path: ``scan.nii`` or another file beside it.
        shape: ``(z, y, x)``.
    """
    x, y, z = reduction(shape)
    small = path.with_name(f"reduced-{path.name}")
    if (x, y, z) == (1, 1, 1):
        return path
    if not small.exists():
        whole = read_volume(path)
        matrix = whole.world_from_index.copy()
        matrix[:3, :3] *= [x, y, z]
        write_image(Volume(np.ascontiguousarray(whole.array[::z, ::y, ::x]), matrix), small)
    return small


def slice_bytes(folder: Path, shape: tuple[int, int, int], z: int) -> bytes:
    """Return all panels of one slice: four bytes with the length of a JSON text, the text, the arrays.

    The text is a list of ``{"name", "shape", "type", "offset"}``, offsets from the first array. Rows grow to
    the back and columns to the patient's left; numbers are little-endian.

    Args:
        folder: ``view/``, see :func:`write_view`.
        shape: ``(z, y, x)`` of the scan in the patient's axes.
        z: slice from the feet.

    Raises:
        IndexError: there is no such slice.
    """
    if not 0 <= z < shape[0]:
        raise IndexError(z)
    panels = [("native", _read_plane(folder / "scan.nii", np.dtype("<i2"), shape, z))]
    for name in ("labels", "truth", "against"):
        path = folder / f"{name}.nii"
        if path.exists():
            panels.append((name, _read_plane(path, np.dtype("u1"), shape, z)))
    for name in ("homogenized", "crop", "crop_labels"):
        path = folder / f"{name}.npy"
        if path.exists():
            panels.append((name, np.ascontiguousarray(np.load(path, mmap_mode="r", allow_pickle=False)[z])))
    head, offset = [], 0
    for name, plane in panels:
        kind = "int16" if plane.dtype.itemsize == 2 else "uint8"
        head.append({"name": name, "shape": list(plane.shape), "type": kind, "offset": offset})
        # Typed arrays of a browser begin at multiples of their numbers' size.
        offset += plane.nbytes + plane.nbytes % 2
    text = json.dumps(head).encode()
    text += b" " * (len(text) % 2)
    parts = [len(text).to_bytes(4, "little"), text]
    for _, plane in panels:
        parts += [plane.tobytes(), b"\0" * (plane.nbytes % 2)]
    return b"".join(parts)


def _read_plane(path: Path, dtype: np.dtype, shape: tuple[int, int, int], z: int) -> np.ndarray:
    pixels = math.prod(shape[1:])
    plane = np.fromfile(path, dtype, pixels, offset=_NIFTI_HEADER + z * pixels * dtype.itemsize)
    return plane.reshape(shape[1:])
