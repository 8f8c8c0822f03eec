"""A model on disk: ``weights.safetensors`` and ``model.json``; neither can execute code.

``model.json`` holds the whole configuration, labels, fingerprint, facts of the reference and of the training,
versions and the hash of the weights. It names no patient and no case.
"""

import copy
import math
import platform
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from isopose.choices import Modality
from isopose.config import Config
from isopose.data.fingerprint import Fingerprint
from isopose.data.modality import modality_of
from isopose.errors import InputError
from isopose.files import read_json, sha256, write_json
from isopose.isolation import named
from isopose.labels import Labels
from isopose.models.info import ModelInfo
from isopose.models.pipeline import Networks
from isopose.presets import validate_config
from isopose.renamed import present_weight
from isopose.tensors import write_tensors
from isopose.version import __version__

#: Increased when folders of older versions can no longer be read.
FORMAT = 2


@dataclass(frozen=True)
class Model:
    """A trained pipeline, with its configuration and facts of its training.

    Args:
        pipeline: the networks, in evaluation mode.
        config: settings of its training.
        labels: names and stored values of its labels.
        fingerprint: of its training cases; scans are normalized by it.
        info: its training cases, reference, stages and history.
        weights_sha256: hash of the weights, which identifies the model in the records of its predictions.
    """

    pipeline: Networks
    config: Config
    labels: Labels
    fingerprint: Fingerprint
    info: ModelInfo
    weights_sha256: str = ""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images of a scan, in the order in which it takes them."""
        return self.fingerprint.channel_names

    @property
    def modality(self) -> Modality:
        """Modality of its scans; with several channels, of the channel that shows the pose."""
        return modality_of(self.config.data, self.channels)


def airs_of(fingerprint: Fingerprint) -> tuple[float, ...]:
    """Return the normalized value of air in each channel; empty if there is only one channel."""
    channels = fingerprint.channels
    return tuple(channel.scale.air for channel in channels) if len(channels) > 1 else ()


def for_prediction(model: Model) -> Model:
    """Return a copy of a model with a fused U-Net, which is faster but can be neither trained nor saved."""
    unet = model.pipeline.unet.fused()
    if unet is model.pipeline.unet:
        return model
    pipeline = copy.deepcopy(model.pipeline)
    pipeline.unet = unet
    return replace(model, pipeline=pipeline)


def with_precision(model: Model, precision: str | None) -> Model:
    """Return a copy of a model that predicts in another precision; the model itself if that is None.

    Raises:
        InputError: no such precision.
    """
    if precision is None:
        return model
    values = model.config.model_dump()
    values["predict"]["precision"] = precision
    return replace(model, config=validate_config(values, "--precision"))


def versions() -> dict[str, str]:
    """Return the versions of isopose and its libraries on which a result depends."""
    return {
        "isopose": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "SimpleITK": sitk.Version_VersionString(),
    }


def save_model(folder: Path, model: Model) -> None:
    """Write the weights, then the manifest with their hash; a folder without a manifest is not a model."""
    weights = folder / "weights.safetensors"
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.pipeline.state_dict().items()}
    write_tensors(weights, tensors)
    write_json(
        folder / "model.json",
        {
            "format": FORMAT,
            "versions": versions(),
            "weights_sha256": sha256(weights),
            "labels": model.labels.to_json(),
            "air": model.pipeline.air,
            "top": model.pipeline.top,
            "config": _without_reference_name(model.config).model_dump(mode="json"),
            "fingerprint": model.fingerprint.to_json(),
            "info": model.info.to_json(),
        },
    )


def _without_reference_name(config: Config) -> Config:
    """Return the configuration without the id of the reference case, which may identify a patient."""
    return config.model_copy(update={"pose": config.pose.model_copy(update={"reference": None})})


def members_of(folder: Path) -> dict[str, str]:
    """Return the members of an ensemble: folder name to the SHA-256 of the weights; empty for a single model.

    Raises:
        InputError: no model, one of another format, or a damaged list of members.
    """
    values = _manifest(folder)
    if "members" not in values:
        return {}
    try:
        members = {str(member["folder"]): str(member["weights_sha256"]) for member in values["members"]}
    except (TypeError, KeyError):
        members = {}
    # ``fit`` writes members beside the manifest only; any other path is damage or an attack.
    if not members or any(PurePath(name).name != name or name == ".." for name in members):
        raise InputError(
            f"{folder / 'model.json'}: damaged model (its members are not folders beside it); copy it again "
            "or train again"
        )
    return members


def _manifest(folder: Path) -> dict[str, Any]:
    """Read ``model.json``.

    Raises:
        InputError: the file is missing, or of another format.
    """
    manifest = folder / "model.json"
    if not manifest.is_file():
        hint = (
            "; not all of its folds are trained; continue with --resume"
            if (folder / "fold-0").is_dir()
            else ""
        )
        raise InputError(
            f"{folder}: no model.json; expected the --model folder of a finished isopose fit{hint}"
        )
    values = read_json(manifest)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        version = values.get("format") if isinstance(values, dict) else None
        raise InputError(
            f"{manifest}: model format {version!r}, this isopose {__version__} reads {FORMAT}; use the "
            "isopose that made it, or train again"
        )
    return values


def load_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """Read the folder of one model.

    Raises:
        InputError: no model, one of a newer format, one whose files do not belong together, or one with
            several members.
    """
    manifest, values, members = folder / "model.json", _manifest(folder), members_of(folder)
    if members:
        raise InputError(
            f"{folder}: a model of {len(members)} folds, which only predict, serve and the Python API take "
            f"as one; give a fold, e.g. {folder / next(iter(members))}"
        )
    weights = folder / "weights.safetensors"
    if not weights.is_file() or sha256(weights) != values.get("weights_sha256"):
        raise InputError(
            f"{weights}: missing or not the weights that model.json names; copy the whole folder"
        )
    try:
        config = validate_config(values["config"], str(manifest))
        labels = Labels.from_json(values["labels"])
        fingerprint = Fingerprint.from_json(values["fingerprint"])
        air, top = float(values["air"]), float(values["top"])
        if not (math.isfinite(air) and math.isfinite(top) and air < top):
            raise ValueError(f"air is {air}, the largest value {top}")
        info = ModelInfo.from_json(values["info"])
        tensors = {present_weight(name): tensor for name, tensor in load_file(weights).items()}
        if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
            raise ValueError("weights that are not finite")
        # On the meta device: a damaged configuration may ask for any amount of memory. The weights are
        # assigned afterwards.
        with torch.device("meta"):
            mask = tensors["pose.reference_mask"]
            pipeline = Networks(config, labels.classes, mask, air, top, airs_of(fingerprint))
        pipeline.load_state_dict(tensors, assign=True)
    except InputError as error:
        raise InputError(named(str(error), str(manifest))) from None
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: damaged model ({reason}); copy it again or train again") from None
    pipeline.to(device).eval().requires_grad_(False)
    return Model(pipeline, config, labels, fingerprint, info, values["weights_sha256"])
