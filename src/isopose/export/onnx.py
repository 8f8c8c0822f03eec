"""Export a model as two ONNX graphs, which contain the networks and everything between them.

``poses.onnx`` takes all slices of a scan and returns theta1 · theta2 of each slice or of the scan;
``segment.onnx`` crops, segments and restores with it (``export/graphs.py``). Both take the scan's values and
normalize them, and the second returns stored label values, so that a caller cannot get these steps wrong. Of
a model that normalizes each scan by itself both take the scan's scale, too.
``export.json`` describes how a scan is turned into frames. The graphs compute in float32 what
:func:`isopose.inference.predict.predict` does, except that crops that cut a structure are not widened.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isopose.data.normalization import Intensity
from isopose.data.preprocess import common_fov
from isopose.errors import InputError
from isopose.export.graphs import PoseGraph, SegmentGraph, VolumePoseGraph, VolumeSegmentGraph
from isopose.files import output_folder, replacing, write_json
from isopose.models.folder import Model, for_prediction
from isopose.version import __version__

#: ONNX operator set: the first whose GridSample has PyTorch's modes.
OPSET = 20
#: Number of slices for tracing; the graphs take any number from 2.
TRACED_SLICES = 7
#: Largest number of slices of a graph.
MAX_SLICES = 65536


def export_onnx(model: Model, folder: Path) -> None:
    """Write ``poses.onnx``, ``segment.onnx`` and ``export.json``; files of these names are overwritten.

    Raises:
        InputError: the model sees neighbors of a slice or several channels, or the extra ``onnx`` is not
            installed.
    """
    if model.config.unet.context:
        raise InputError(
            f"export: the ONNX graphs see slices one by one, this model has unet.context="
            f"{model.config.unet.context}; use --format monai, or train with unet.context=0"
        )
    if model.config.data.plane != "axial":
        raise InputError(
            f"export: the ONNX graphs see axial slices, this model {model.config.data.plane} ones; use "
            "--format monai"
        )
    if len(model.channels) > 1:
        raise InputError(
            f"export: the ONNX graphs see one channel, this model {', '.join(model.channels)}; use --format "
            "monai"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("export needs the extra onnx: pip install 'isopose[onnx]'") from None
    output_folder(folder)
    # export.json is written last: if it exists, the graphs beside it are complete and belong to it.
    (folder / "export.json").unlink(missing_ok=True)
    size = model.config.data.size
    values, mask = torch.zeros(TRACED_SLICES, 1, size, size), torch.ones(TRACED_SLICES, 1, size, size)
    name = "hu" if model.modality == "ct" else "values"
    scale: dict[str, Tensor] = {}
    if not isinstance(model.fingerprint.channels[0].scale, Intensity):
        scale["scale"] = torch.tensor([0.0, 1.0, 0.5, 0.5])
    predicting = for_prediction(model)
    if model.config.dims == 3:
        theta, body_indices = torch.eye(4)[None], torch.arange(TRACED_SLICES - 2)
        _write(
            VolumePoseGraph(model),
            {name: values, "mask": mask, "shown": body_indices, "apart": torch.full((1,), 0.02), **scale},
            ("slices", "slices", "bodies", None),
            folder / "poses.onnx",
            ("stack_from_crop", "confidence"),
        )
        _write(
            VolumeSegmentGraph(predicting),
            {name: values, "shown": body_indices, "stack_from_crop": theta, **scale},
            ("slices", "bodies", None),
            folder / "segment.onnx",
            ("labels", "probabilities"),
        )
    else:
        theta = torch.eye(3).repeat(TRACED_SLICES, 1, 1)
        z_mm = torch.arange(TRACED_SLICES, dtype=torch.float32)
        _write(
            PoseGraph(model),
            {name: values, "mask": mask, "z_mm": z_mm, **scale},
            ("slices", "slices", "slices"),
            folder / "poses.onnx",
            ("frame_from_crop", "confidence"),
        )
        _write(
            SegmentGraph(predicting),
            {name: values, "frame_from_crop": theta, **scale},
            ("batch", "batch"),
            folder / "segment.onnx",
            ("labels", "probabilities"),
        )
    write_json(folder / "export.json", description(model))


def description(model: Model) -> dict[str, Any]:
    """Return how a scan is turned into frames, and what the labels mean; it identifies no patient."""
    scaling = model.fingerprint.channels[0].scale
    return {
        "isopose": __version__,
        "model_sha256": model.weights_sha256,
        "labels": dict(model.labels.values),
        "classes": ["background", *model.labels.names],
        "dims": model.config.dims,
        "modality": model.modality,
        "normalization": "ct"
        if isinstance(scaling, Intensity)
        else {"method": scaling.method, "percentiles": list(scaling.percentiles)},
        "frame": {
            "size": model.config.data.size,
            "fov_mm": common_fov(model.fingerprint, model.config.data),
            **({"body_threshold_hu": model.config.data.body_threshold_hu} if model.modality == "ct" else {}),
        },
    }


def _write(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: tuple[str | None, ...],
    path: Path,
    outputs: tuple[str, ...],
) -> None:
    """Trace a graph and write it atomically.

    Args:
        graph: the module to export.
        inputs: example inputs, by name.
        dynamic: name of the first axis of each input whose length is dynamic, else None; inputs beyond these
            have fixed shapes.
        path: of the file.
        outputs: names of the outputs.
    """
    dynamic = (*dynamic, *[None] * (len(inputs) - len(dynamic)))
    axes = {name: torch.export.Dim(name, min=2, max=MAX_SLICES) for name in dynamic if name is not None}
    with torch.no_grad(), replacing(path) as temporary, warnings.catch_warnings():
        # The exporter warns about its own internals, and about axes that share a name.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({} if name is None else {0: axes[name]} for name in dynamic),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(temporary)
