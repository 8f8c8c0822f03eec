"""Write a model's card: the facts known to the software, and brackets for those that its author must add."""

from collections.abc import Iterator

from jinja2 import Environment, PackageLoader, StrictUndefined

from isopose.config import Config
from isopose.data.normalization import Intensity
from isopose.data.plane import DIRECTIONS
from isopose.models.folder import Model, versions
from isopose.models.info import Row, TrainingInfo
from isopose.presets import load_config

#: File name in the model's folder.
CARD = "MODEL_CARD.md"


def model_card(model: Model) -> str:
    """Return the card in Markdown; it names no patient and no case."""
    environment = Environment(
        loader=PackageLoader("isopose.models", "."), undefined=StrictUndefined, autoescape=False
    )
    return environment.get_template("card.md.jinja").render(
        versions=versions(),
        names=", ".join(model.labels.names),
        channels=" and ".join(model.channels),
        ct=model.modality == "ct",
        how=_pipeline_summary(model),
        sha=model.weights_sha256,
        patients=_patients(model.info.training),
        rows=list(_rows(model)),
        validation=_validation(model),
        settings=_settings(model.config),
    )


def _pipeline_summary(model: Model) -> str:
    config, unet = model.config, model.pipeline.unet
    parameters = sum(weight.numel() for weight in unet.parameters())
    extent = f"{config.unet.depth} slices of " if config.dims == 3 else ""
    size = f"{extent}{config.unet_size} × {config.unet_size} pixels"
    if config.unet.context:
        size += f", with {config.unet.context} neighboring slices on each side"
    steps = [
        {
            "anatomy": "the roll from the network that ships with isopose, position and size from moments",
            "header": "the roll from the file's header, position and size from "
            + ("moments" if config.data.plane == "axial" else "the body's width in the slices"),
            "moments": "pose and size from moments",
            "identity": "pose and size unchanged",
        }[config.pose.start]
        + (", refined by a trained network" if config.pose.learned else ""),
        *(["a crop around the labels"] if config.crop.enabled else []),
        f"a U-Net of {parameters:,} parameters on {size}",
    ]
    plane = config.data.plane
    slices = "Slice by slice" if plane == "axial" else f"{plane.capitalize()} slice by slice"
    whole = "Whole volumes" if config.dims == 3 else slices
    return f"{whole}: {'; '.join(steps)}; then restored to the scan's own grid."


def _patients(training: TrainingInfo) -> str:
    cases = (
        f"{training.patients} patients ({training.cases} scans), and {training.validation_cases} "
        "scans of others for validation."
    )
    source = training.from_weights_sha256
    return f"{cases} Fine-tuned from the weights `{source}` and their training patients." if source else cases


def _rows(model: Model) -> Iterator[tuple[str, ...]]:
    data = model.fingerprint
    directions = DIRECTIONS[model.config.data.plane]
    pixels = (f"pixel, {direction} (mm)" for direction in directions)
    for axis, name in enumerate((*pixels, "slice distance (mm)")):
        numbers = (data.spacing_min[axis], data.spacing_median[axis], data.spacing_max[axis])
        yield (name, *(f"{value:.2f}" for value in numbers))
    yield "slices", str(data.slices_min), f"{data.slices_median:.0f}", str(data.slices_max)
    for axis, name in enumerate(f"body, {direction} (mm)" for direction in directions):
        yield name, "", f"{data.body_median_mm[axis]:.0f}", f"{data.body_max_mm[axis]:.0f}"
    for label in data.labels:
        numbers = (label.volume_min_ml, label.volume_median_ml, label.volume_max_ml)
        yield (f"{label.name} (ml, in {label.cases} scans)", *(f"{value:.1f}" for value in numbers))
    for channel in data.channels:
        scale = channel.scale
        if isinstance(scale, Intensity):
            numbers = (scale.low, scale.median, scale.high)
            low, high = scale.percentiles
            unit = ["HU"] if _is_ct(model, channel.name) else []
            channel_note = ", ".join([*([] if data.channels == (channel,) else [channel.name]), *unit])
            percentiles = f"percentiles {low:g} and {high:g}"
            name = f"labeled voxels ({channel_note}{', ' if channel_note else ''}{percentiles})"
            yield (name, *(f"{value:.0f}" for value in numbers))


def _is_ct(model: Model, channel: str) -> bool:
    """Return whether a channel's values are Hounsfield units."""
    return model.modality == "ct" if len(model.channels) == 1 else channel.casefold() == "ct"


def _validation(model: Model) -> str:
    stage = model.info.stages.get("unet")
    rows = [row for row in model.info.history if row["stage"] == "unet"]
    best: Row = next((row for row in rows if stage and row["epoch"] == stage.best_epoch), {})
    dice = [f"{name[5:]} {value:.3f}" for name, value in best.items() if name.startswith("dice ")]
    if not dice:
        return "Not measured in training: there were no validation scans."
    return (
        "Validation Dice in the frame. The epoch of these weights was chosen by it, so it is optimistic: "
        f"{', '.join(dice)}."
    )


def _settings(config: Config) -> str:
    usual = load_config(config.preset, base={"dims": config.dims}).flat()
    # The training device does not characterize the model, and cases are not named.
    changed = [
        f"`{key}={value}`"
        for key, value in config.flat().items()
        if value != usual[key] and key not in ("pose.reference", "train.device")
    ]
    return f"Preset `{config.preset}`{', with ' + ', '.join(changed) if changed else ''}."
