"""Files from before the spelling became American; ``old/`` holds some as they were written then."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bright import bright_model
from isopose.errors import InputError
from isopose.files import sha256
from isopose.homogenize.record import read_record
from isopose.homogenize.transform import Transform
from isopose.models.folder import load_model, save_model
from isopose.presets import load_config, validate_config
from isopose.scan.correction import read_corrections

OLD = Path(__file__).with_name("old")
CORRECTION = {
    "image_sha256": "a" * 64,
    "frame": {"centre_mm": [120.0, 101.5], "fov_mm": 230.0, "size": 256},
    "reference": {"centre": [0.0, 0.05], "spread": [0.4, 0.3]},
    "poses": [{"slice": 2, "pose": [0.1, 0.0, 0.0, 0.0, 0.0]}],
    "crops": [],
    "format": "isopose-correction/1",
}


def test_former_setting_names_are_read_from_file_and_command_line(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text("[unet.optimiser]\nepochs = 60\n[crop.optimiser]\nname = 'sgd'\n")
    config = load_config(file=tmp_path / "old.toml", settings=["pose.optimiser.batch_size=3"])
    assert (config.unet.optimizer.epochs, config.crop.optimizer.name) == (60, "sgd")
    assert config.pose.optimizer.batch_size == 3
    # What was not given keeps this stage's own defaults.
    assert config.unet.optimizer.learning_rate == load_config().unet.optimizer.learning_rate


def test_label_names_are_not_renamed() -> None:
    values = {"train": {"oversample": {"centre": 0.2, "optimiser": 0.1, "tumour": 0.3}}}
    oversample = {"centre": 0.2, "optimiser": 0.1, "tumour": 0.3}
    assert validate_config(values, "test").train.oversample == oversample


@pytest.mark.parametrize("section", ["data", "train", "predict"])
def test_an_old_name_elsewhere_is_unknown(section: str) -> None:
    with pytest.raises(InputError, match=rf"{section}\.optimiser: no such setting"):
        validate_config({section: {"optimiser": {}}}, "test")


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(InputError, match=r"unet\.optimiser: no such setting"):
        validate_config({"unet": {"optimiser": {"epochs": 60}, "optimizer": {"epochs": 70}}}, "test")


def test_a_model_folder_is_read_and_saved_with_present_names(tmp_path: Path) -> None:
    model_to_save = bright_model({"data": {"size": 64}}, real_unet=True)
    weights = {
        name.replace("localization", "localisation"): value.contiguous()
        for name, value in model_to_save.pipeline.state_dict().items()
    }
    assert any("localisation" in name for name in weights)
    folder = tmp_path / "old"
    folder.mkdir()
    save_file(weights, folder / "weights.safetensors")
    values = json.loads((OLD / "model.json").read_text())
    values["weights_sha256"] = sha256(folder / "weights.safetensors")
    (folder / "model.json").write_text(json.dumps(values))

    model = load_model(folder)
    assert model.config.unet.optimizer.epochs == values["config"]["unet"]["optimiser"]["epochs"] == 100
    assert model.labels.names == ("kidney", "tumour")
    for name, value in model_to_save.pipeline.state_dict().items():
        assert torch.equal(model.pipeline.state_dict()[name], value), name
    # Keys that came later have their defaults.
    assert "turning" not in values["info"]
    assert model.info.turning is None
    assert model.info.training.validation_images_sha256 == ()
    assert (model.info.training.images_sha256, model.info.stages["unet"].best_epoch) == (("b" * 64,), 1)
    assert model.info.reference.area_cm2 == 226.2

    save_model(tmp_path / "new", model)
    assert load_model(tmp_path / "new").config == model.config
    assert "optimiser" not in (tmp_path / "new" / "model.json").read_text()


def test_former_names_in_a_homogenized_record_are_read_after_the_hash_check(tmp_path: Path) -> None:
    record = read_record(OLD / "record.json")
    values = json.loads((OLD / "record.json").read_text())
    assert list(record.transform.frame.center_mm) == values["transform"]["frame"]["centre_mm"]
    values["transform"]["frame"]["centre_mm"][0] += 1.0
    (tmp_path / "changed.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="was changed since it was written"):
        read_record(tmp_path / "changed.json")


def test_former_names_in_a_transform_text_are_read() -> None:
    text = json.dumps(json.loads((OLD / "record.json").read_text())["transform"])
    assert Transform.from_text(text) == read_record(OLD / "record.json").transform


def test_former_names_in_corrections_are_read(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(CORRECTION))
    [correction] = read_corrections(tmp_path).values()
    assert correction.frame.center_mm == (120.0, 101.5)
    assert correction.reference.center == (0.0, 0.05)
    (tmp_path / "one.json").write_text(json.dumps(correction.to_json()))
    assert list(read_corrections(tmp_path).values()) == [correction]
