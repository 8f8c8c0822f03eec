"""The model card agrees with the model."""

from dataclasses import replace

import pytest

from bright import bright_model
from isopose.choices import Plane
from isopose.data.fingerprint import describe
from isopose.data.normalization import Intensity
from isopose.data.plane import DIRECTIONS
from isopose.models.card import model_card
from isopose.models.folder import Model
from isopose.models.info import ModelInfo, StageInfo, TrainingInfo
from isopose.presets import load_config

TRAINING = TrainingInfo((), patients=3, cases=4, validation_cases=2)
HISTORY = (
    {"stage": "unet", "epoch": 1, "loss": 1.0, "dice": 0.4, "dice kidney": 0.8125, "dice tumor": 0.5},
    {"stage": "unet", "epoch": 2, "loss": 1.0, "dice": 0.3, "dice kidney": 0.25, "dice tumor": 0.125},
)


@pytest.fixture
def model() -> Model:
    card_model = bright_model(
        {"pose": {"reference": "Mustermann"}, "unet": {"base_features": 4}}, real_unet=True
    )
    info = ModelInfo(TRAINING, stages={"unet": StageInfo(2, best_epoch=1, best=0.4)}, history=HISTORY)
    return replace(card_model, info=info, weights_sha256="cd" * 32)


def test_the_card_describes_the_model_and_names_no_patient(model: Model) -> None:
    card = model_card(model)
    assert f"Segments {', '.join(model.labels.names)} in CT" in card
    assert f"`{'cd' * 32}`" in card
    assert "3 patients (4 scans), and 2 scans of others for validation." in card
    seen = model.fingerprint
    pixel = f"{seen.spacing_min[0]:.2f} | {seen.spacing_median[0]:.2f} | {seen.spacing_max[0]:.2f}"
    assert f"| pixel, across (mm) | {pixel} |" in card
    scale = seen.channels[0].scale
    assert isinstance(scale, Intensity)
    assert f"| {scale.low:.0f} | {scale.median:.0f} | {scale.high:.0f} |" in card
    # Of the epoch whose weights it has.
    assert "so it is optimistic: kidney 0.812, tumor 0.500." in card
    assert "Mustermann" not in card
    # Brackets for what only its maker knows.
    assert card.count("[ ]") == 10
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {5}


def test_the_card_of_an_mr_model_has_no_units_of_ct(model: Model) -> None:
    """No unit and no dose, even if intensities are pooled over scans as in CT."""
    seen = replace(model.fingerprint, channels=(replace(model.fingerprint.channels[0], name="T2"),))
    card = model_card(replace(model, fingerprint=seen))
    assert "HU" in model_card(model)
    assert "contrast phase, dose" in model_card(model)
    assert "in T2, on each scan" in card
    assert "| labeled voxels (percentiles 0.5 and 99.5) |" in card
    assert "sequences or scanners" in card
    assert not any(word in card for word in ("HU", "CT", "dose", "contrast phase"))


def test_the_card_lists_exactly_the_changed_settings(model: Model) -> None:
    usual = load_config().flat()
    changed = {key for key, value in model.config.flat().items() if value != usual[key]}
    assert {"unet.base_features", "pose.reference"} <= changed
    (line,) = [line for line in model_card(model).splitlines() if line.startswith("Preset `default`")]
    settings = {part.split("=")[0] for part in line.split("`")[3::2]}
    assert settings == changed - {"train.device", "pose.reference"}


def test_without_validation_the_card_gives_no_score(model: Model) -> None:
    card = model_card(replace(model, info=replace(model.info, history=())))
    assert "there were no validation scans" in card
    assert "0.812" not in card


def test_the_card_names_the_initial_weights(model: Model) -> None:
    training = replace(TRAINING, from_weights_sha256="ab" * 32)
    assert f"Fine-tuned from the weights `{'ab' * 32}`" in model_card(
        replace(model, info=replace(model.info, training=training))
    )


@pytest.mark.parametrize(
    ("plane", "sizes"),
    [("axial", "width x depth"), ("coronal", "width x height"), ("sagittal", "depth x height")],
)
def test_the_card_and_the_fingerprint_agree_on_directions(model: Model, plane: Plane, sizes: str) -> None:
    config = model.config.model_copy(update={"data": model.config.data.model_copy(update={"plane": plane})})
    # Another size in each direction, so that an exchange shows.
    seen = replace(
        model.fingerprint,
        spacing_min=(0.5, 0.75, 3.0),
        spacing_median=(0.5, 0.75, 3.0),
        spacing_max=(0.5, 0.75, 3.0),
        body_median_mm=(310.0, 210.0),
        body_max_mm=(330.0, 230.0),
    )
    card = model_card(replace(model, config=config, fingerprint=seen))
    columns, rows = DIRECTIONS[plane]
    assert f"| pixel, {columns} (mm) | 0.50 | 0.50 | 0.50 |" in card
    assert f"| pixel, {rows} (mm) | 0.75 | 0.75 | 0.75 |" in card
    assert f"| body, {columns} (mm) |  | 310 | 330 |" in card
    assert f"| body, {rows} (mm) |  | 210 | 230 |" in card
    assert dict(describe(seen, plane))[f"body, {sizes}"] == "310 x 210 mm (at most 330 x 230)"
