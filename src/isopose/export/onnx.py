"""``isopose export``: a model's networks, and all that lies between them, as two ONNX graphs.

``poses.onnx`` sees all slices of a scan and gives theta1 · theta2, of each or of the scan; ``segment.onnx``
cuts, segments and restores by it (``export/graphs.py``). Both take Hounsfield units and normalize them,
the second gives labels as they are stored, so that none of that can be done wrongly outside. ``export.json``
says how a scan becomes the frames that they see. With them any runtime does what
:func:`isopose.inference.predict.predict` and :func:`isopose.inference.volumes.predict_volume` do, in float32,
but for the widening of crops that cut a structure.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isopose.data.preprocess import usual_fov
from isopose.errors import InputError
from isopose.export.graphs import PoseGraph, SegmentGraph, VolumePoseGraph, VolumeSegmentGraph
from isopose.files import output_folder, replacing, write_json
from isopose.models.folder import Model, for_prediction
from isopose.version import __version__

#: Of ONNX: the first that samples grids as PyTorch names the ways to.
OPSET = 20
#: Slices that graphs are traced with; they take any number from two on.
TRACED = 7
MOST = 65536


def export_onnx(model: Model, folder: Path) -> None:
    """Write ``poses.onnx``, ``segment.onnx`` and ``export.json``.

    Args:
        model: of slices or of volumes.
        folder: where to; files of these names in it are replaced.

    Raises:
        InputError: the extra ``onnx`` is not installed.
    """
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
    fast = for_prediction(model)
    if model.config.dims == 3:
        theta, numbers = torch.eye(4)[None], torch.arange(TRACED - 2)
        _write(
            VolumePoseGraph(model),
            {"hu": hu, "mask": mask, "shown": numbers, "apart": torch.full((1,), 0.02)},
            ("slices", "slices", "bodies", None),
            folder / "poses.onnx",
            ("stack_from_crop", "confidence"),
        )
        _write(
            VolumeSegmentGraph(fast),
            {"hu": hu, "shown": numbers, "stack_from_crop": theta},
            ("slices", "bodies", None),
            folder / "segment.onnx",
            ("labels", "probabilities"),
        )
    else:
        theta, z_mm = torch.eye(3).repeat(TRACED, 1, 1), torch.arange(TRACED, dtype=torch.float32)
        _write(
            PoseGraph(model),
            {"hu": hu, "mask": mask, "z_mm": z_mm},
            ("slices", "slices", "slices"),
            folder / "poses.onnx",
            ("frame_from_crop", "confidence"),
        )
        _write(
            SegmentGraph(fast),
            {"hu": hu, "frame_from_crop": theta},
            ("batch", "batch"),
            folder / "segment.onnx",
            ("labels", "probabilities"),
        )
    write_json(folder / "export.json", description(model))


def description(model: Model) -> dict[str, Any]:
    """How a scan becomes what the graphs see, and what their answers mean; names no patient."""
    return {
        "isopose": __version__,
        "model_sha256": model.weights_sha256,
        "labels": dict(model.labels.values),
        "classes": ["background", *model.labels.names],
        "dims": model.config.dims,
        "frame": {
            "size": model.config.data.size,
            "fov_mm": usual_fov(model.fingerprint, model.config.data),
            "body_threshold_hu": model.config.data.body_threshold_hu,
        },
    }


def _write(
    graph: nn.Module,
    given: dict[str, Tensor],
    free: tuple[str | None, ...],
    path: Path,
    outputs: tuple[str, ...],
) -> None:
    """Trace a graph and write it at once or not at all.

    Args:
        graph: what to write.
        given: what it takes, by name.
        free: for each of these, the name of its first axis if that may have any length.
        path: where to.
        outputs: names of what it gives.
    """
    axes = {name: torch.export.Dim(name, min=2, max=MOST) for name in free if name is not None}
    with torch.no_grad(), replacing(path) as temporary, warnings.catch_warnings():
        # Of the exporter about its own parts, and that axes of one length share a name.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph.eval(),
            tuple(given.values()),
            input_names=list(given),
            output_names=list(outputs),
            dynamic_shapes=tuple({} if name is None else {0: axes[name]} for name in free),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(temporary)
