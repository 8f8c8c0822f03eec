"""``isopose export``: a model's networks, and all that lies between them, as two ONNX graphs.

``poses.onnx`` sees all slices of a scan and gives each one's theta1 · theta2; ``segment.onnx`` cuts, segments
and restores slices by it, any number at a time. Both take Hounsfield units and normalise them, and the second
gives labels as they are stored, so that none of that can be done wrongly outside. ``export.json`` says how a
scan becomes the frames that they see. With them any runtime does what
:func:`isopose.inference.predict.predict` does, in float32, but for the widening of crops that cut a
structure.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isopose import __version__
from isopose.data.fingerprint import Scale
from isopose.data.preprocess import usual_fov
from isopose.errors import InputError
from isopose.files import output_folder, replacing, write_json
from isopose.models.folder import Model, for_prediction
from isopose.models.pipeline import frame_from_crop, restore
from isopose.models.scan import FIRST, scan_poses, scan_transforms

#: Of ONNX: the first that samples grids as PyTorch names the ways to.
OPSET = 20
#: Slices that graphs are traced with; they take any number from two on.
TRACED = 7
MOST = 65536


class Normalise(nn.Module):
    """:meth:`isopose.data.fingerprint.Scale.normalise` of tensors."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, hu: Tensor) -> Tensor:
        """Of any shape."""
        return (hu.clamp(self.scale.low, self.scale.high) - self.scale.mean) / max(self.scale.sd, 1e-8)


class PoseGraph(nn.Module):
    """STN1 and STN2 of a whole scan.

    Args:
        model: of slices.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.normalise = Normalise(model.fingerprint.intensity)
        self.pipeline = model.pipeline
        self.config = model.config

    def forward(self, hu: Tensor, mask: Tensor, z_mm: Tensor) -> tuple[Tensor, Tensor]:
        """theta1 · theta2 ``(Z, 3, 3)`` and how sure the poses are ``(Z,)``.

        Args:
            hu: ``(Z, 1, S, S)`` float32 frames, feet to head, of slices that show a body.
            mask: ``(Z, 1, S, S)`` float32, foreground.
            z_mm: ``(Z,)`` places along the scan.
        """
        image = self.normalise(hu)
        transformer, start = self.pipeline.pose, None
        if transformer.roll is not None and transformer.config.per != "slice":
            few = (torch.arange(FIRST, device=image.device) * 2 + 1) * image.shape[0] // (2 * FIRST)
            start = transformer.first_roll(image[few], mask[few])
        slices = transformer.estimate(image, mask, self.config.predict.min_pose_dice, start)
        found = scan_poses(transformer, slices, z_mm)
        transforms = self.pipeline.transforms(image, mask, found.pose)
        pose, theta2 = scan_transforms(self.config, found.pose, transforms, z_mm)
        return frame_from_crop(pose, theta2), found.confidence


class SegmentGraph(nn.Module):
    """The cut, the U-Net and the way back to the frame.

    Args:
        model: of slices.
    """

    values: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.normalise = Normalise(model.fingerprint.intensity)
        self.pipeline = model.pipeline
        self.size = (model.config.data.size, model.config.data.size)
        classes = np.arange(model.labels.classes)
        self.register_buffer("values", torch.from_numpy(model.labels.to_values(classes)))

    def forward(self, hu: Tensor, frame_from_crop: Tensor) -> tuple[Tensor, Tensor]:
        """Label values ``(N, S, S)`` uint8 and probabilities ``(N, classes, S, S)``, both in the frame.

        Args:
            hu: ``(N, 1, S, S)`` float32 frames.
            frame_from_crop: ``(N, 3, 3)`` of them, by ``poses.onnx``.
        """
        crop = self.pipeline.cut(self.normalise(hu), frame_from_crop)
        probabilities = restore(self.pipeline.probabilities(crop), frame_from_crop, self.size)
        return self.values[probabilities.argmax(dim=1)], probabilities


def export_onnx(model: Model, folder: Path) -> None:
    """Write ``poses.onnx``, ``segment.onnx`` and ``export.json``.

    Args:
        model: of slices.
        folder: where to; files of these names in it are replaced.

    Raises:
        InputError: the model is of volumes, or the extra ``onnx`` is not installed.
    """
    if model.config.dims == 3:
        raise InputError("export: expected a model with dims=2, got dims=3, for which there is no graph yet")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("export needs the extra onnx: pip install 'isopose[onnx]'") from None
    output_folder(folder)
    # Last: where it lies, the graphs beside it are whole and its own.
    (folder / "export.json").unlink(missing_ok=True)
    size = model.config.data.size
    hu, mask = torch.zeros(TRACED, 1, size, size), torch.ones(TRACED, 1, size, size)
    theta, z_mm = torch.eye(3).repeat(TRACED, 1, 1), torch.arange(TRACED, dtype=torch.float32)
    _write(
        PoseGraph(model),
        (hu, mask, z_mm),
        folder / "poses.onnx",
        ("frame_from_crop", "confidence"),
        "slices",
    )
    _write(
        SegmentGraph(for_prediction(model)),
        (hu, theta),
        folder / "segment.onnx",
        ("labels", "probabilities"),
        "batch",
    )
    write_json(folder / "export.json", description(model))


def description(model: Model) -> dict[str, Any]:
    """How a scan becomes what the graphs see, and what their answers mean; names no patient."""
    return {
        "isopose": __version__,
        "model_sha256": model.weights_sha256,
        "labels": dict(model.labels.values),
        "classes": ["background", *model.labels.names],
        "frame": {
            "size": model.config.data.size,
            "fov_mm": usual_fov(model.fingerprint, model.config.data),
            "body_threshold_hu": model.config.data.body_threshold_hu,
        },
    }


def _write(
    graph: nn.Module, arguments: tuple[Tensor, ...], path: Path, outputs: tuple[str, ...], name: str
) -> None:
    """Trace a graph whose first axis may have any length, and write it at once or not at all."""
    axis = torch.export.Dim(name, min=2, max=MOST)
    names = list(graph.forward.__annotations__)[: len(arguments)]
    with torch.no_grad(), replacing(path) as temporary, warnings.catch_warnings():
        # Of the exporter about its own parts, and that axes of one length share a name.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph.eval(),
            arguments,
            input_names=names,
            output_names=list(outputs),
            dynamic_shapes=tuple({0: axis} for _ in arguments),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(temporary)
