"""Configurations: the presets, and how a file and ``--set`` change them.

A configuration consists of a preset, changed by a file (TOML or JSON), then by ``--set section.key=value``.
The changes of ``dims=3`` come after the preset and before the file. Later values replace earlier ones.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isopose.config import Config, HomogenizeConfig
from isopose.errors import InputError
from isopose.files import read_json, read_text
from isopose.renamed import SETTINGS, with_present_names
from isopose.strict import first_problem

_PAPER_STN_OPTIMIZER = {
    "name": "sgd",
    "learning_rate": 0.01,
    "schedule": "constant",
    "epochs": 50,
    "min_epochs": 50,
    "iterations": 250,
    "batch_size": 12,
}

#: The paper's settings where it gives them, its authors' later code where it does not (docs/paper.md).
PAPER: dict[str, Any] = {
    "preset": "paper",
    "data": {"size": 512, "pixel_mm": "median"},
    "pose": {
        "start": "identity",
        "size": 512,
        "fill": None,
        "learned": True,
        "per": "slice",
        "max_angle": 3.2,
        "max_shift": 1.0,
        "optimizer": _PAPER_STN_OPTIMIZER,
    },
    "crop": {
        "per": "slice",
        "size": 512,
        "margin": 0.0,
        "jitter_shift": 0.0,
        "jitter_scale": 0.0,
        "optimizer": _PAPER_STN_OPTIMIZER,
    },
    "unet": {
        "input": "full",
        "output_norm": True,
        "loss_space": "native",
        "pose_jitter": 0.0,
        "mirror": 0.0,
        "optimizer": {
            "name": "sgd",
            "learning_rate": 0.01,
            "momentum": 0.99,
            "weight_decay": 3e-5,
            "epochs": 200,
            "min_epochs": 50,
            "patience": 30,
            "iterations": 250,
            "batch_size": 12,
        },
    },
    "predict": {"mirror": False},
}

#: Changes of dims=3: one pose and crop for a scan, and batches and networks that fit into memory.
VOLUME_SETTINGS: dict[str, Any] = {
    "pose": {"per": "volume"},
    "crop": {"per": "volume", "size": 64, "optimizer": {"batch_size": 4}},
    "unet": {"base_features": 16, "smallest_skip": 16, "optimizer": {"batch_size": 2}},
}


def load_config(
    preset: str = "default", file: Path | None = None, settings: Sequence[str] = (), base: dict | None = None
) -> Config:
    """Build a configuration.

    Args:
        preset: ``default`` or ``paper``; a preset named in the file or the settings takes precedence.
        file: TOML or JSON with any of the sections.
        settings: ``section.key=value``, values as JSON or plain words.
        base: changes made to the preset before the file and the settings.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of range, an unreadable file.
    """
    changes = [base or {}, read_settings(file) if file else {}, *(_setting(setting) for setting in settings)]
    preset = next((change["preset"] for change in reversed(changes) if "preset" in change), preset)
    if preset not in ("default", "paper"):
        raise InputError(f"preset {preset!r} is unknown; expected default or paper")
    dims = next((change["dims"] for change in reversed(changes) if "dims" in change), 2)
    # Start from a dump of the defaults: a section that is given in part keeps its other defaults.
    values = Config().model_dump()
    for change in (PAPER if preset == "paper" else {}, VOLUME_SETTINGS if dims == 3 else {}, *changes):
        _merge(values, change)
    return validate_config(values, str(file) if file else "configuration")


def validate_config(values: Any, where: str) -> Config:
    """Return the configuration of plain values, for example those saved with a model.

    Args:
        values: by section and key.
        where: their source, for messages.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of range.
    """
    try:
        return Config.model_validate(with_present_names(values, SETTINGS))
    except ValidationError as error:
        raise _refused(error, where) from None


def homogenize_config(**values: Any) -> HomogenizeConfig:
    """Return the options of ``isopose homogenize``.

    Args:
        values: by name; None stands for the default.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of range.
    """
    try:
        return HomogenizeConfig(**{key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise _refused(error, "homogenize") from None


def _refused(error: ValidationError, where: str) -> InputError:
    """Return the first of a validation's problems in one line, with the value that was given."""
    problem = first_problem(error)
    if problem.kind == "extra_forbidden":
        return InputError(f"{where}: {problem.key}: no such setting; see docs/configuration.md")
    return InputError(f"{where}: {problem}" + (f", got {problem.value!r}" if problem.key else ""))


def read_settings(file: Path) -> dict[str, Any]:
    """Return the contents of a configuration file, TOML or JSON.

    Raises:
        InputError: the file is missing, unreadable, or has no sections.
    """
    if file.suffix == ".json":
        values = read_json(file)
    else:
        try:
            values = tomllib.loads(read_text(file, "TOML (or JSON in a .json file)"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: expected TOML (or JSON in a .json file): {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected sections such as [unet], got {type(values).__name__}")
    return with_present_names(values, SETTINGS)


def _setting(setting: str) -> dict[str, Any]:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise InputError(f"--set {setting!r}: expected section.key=value, e.g. unet.base_features=16")
    nested: Any = _value(text)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return with_present_names(nested, SETTINGS)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None if text in ("none", "None") else text


def _merge(values: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
