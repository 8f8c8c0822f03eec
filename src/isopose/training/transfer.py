"""Transfer learning: which models a run may fine-tune, and with which settings (Table 1 of the paper)."""

from typing import Any

from isopose.config import Config
from isopose.errors import InputError
from isopose.io.cases import Dataset
from isopose.models.folder import Model

#: Settings by section on which the meaning of a model's weights depends; fine-tuning may change all others.
MODEL_SETTINGS: dict[str, tuple[str, ...]] = {
    "data": (
        *("size", "pixel_mm", "clip_percentiles", "normalization", "pose_channel", "modality"),
        *("plane", "body_threshold_hu"),
    ),
    "pose": (
        *("start", "contrast", "learned", "scales", "size", "fill", "max_angle", "max_log_scale"),
        "max_shift",
    ),
    "crop": ("enabled", "learned", "size", "depth"),
    "unet": (
        *("input", "depth", "context", "context_mm", "base_features", "max_features", "bottleneck"),
        *("smallest_skip", "output_norm"),
    ),
}


def fine_tuning_settings(source: Model) -> dict[str, Any]:
    """Return the settings for fine-tuning a model: its own, except those of ``[train]``."""
    return source.config.model_dump(mode="json", exclude={"train"})


def check_source(source: Model | None, config: Config, dataset: Dataset) -> None:
    """Check that a run can fine-tune a model, before anything is written.

    Raises:
        InputError: parts of no model, another architecture or frame, other channels or labels, a reference of
            its own.
    """
    if source is None:
        if config.train.parts != "all":
            raise InputError(
                f"train.parts is {config.train.parts}, which needs a model to fine-tune; name it with "
                "--from, or set train.parts=all"
            )
        return
    if config.pose.reference is not None:
        raise InputError(
            "pose.reference: a fine-tuned model keeps its own reference; leave the setting out, or --from"
        )
    for name in ("dims", "stn"):
        _same(name, getattr(source.config, name), getattr(config, name))
    for section, keys in MODEL_SETTINGS.items():
        before, now = getattr(source.config, section), getattr(config, section)
        for key in keys:
            _same(f"{section}.{key}", getattr(before, key), getattr(now, key))
    if [name.casefold() for name in source.channels] != [name.casefold() for name in dataset.channels]:
        raise InputError(
            f"--from: that model has the channels {', '.join(source.channels)}, the dataset "
            f"{', '.join(dataset.channels)}; the same names in the same order are needed"
        )
    labels = dataset.labels
    if source.labels.names != labels.names:
        raise InputError(
            f"--from: that model has the labels {', '.join(source.labels.names)}, the dataset "
            f"{', '.join(labels.names)}; the same names in the same order are needed"
        )


def _same(name: str, before: Any, now: Any) -> None:
    if before != now:
        raise InputError(f"{name} is {now!r}, the model to fine-tune has {before!r}; leave it as it is")
