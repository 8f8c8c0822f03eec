"""Presets, and how files and ``--set`` override them."""

import json

import pytest

from isopose.config import Config
from isopose.errors import InputError
from isopose.presets import homogenize_config, load_config


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


#: The defaults that documentation and saved models rest on: a change of one is a decision, not an accident.
DEFAULTS = {
    "preset": "default",
    "stn": "separate",
    "data.size": 256,
    "data.pixel_mm": None,
    "data.clip_percentiles": (0.5, 99.5),
    "data.body_threshold_hu": -250.0,
    "pose.start": "anatomy",
    "pose.learned": False,
    "pose.scales": 2,
    "pose.fill": 0.92,
    "pose.reference": None,
    "crop.enabled": True,
    "crop.learned": True,
    "crop.per": "volume",
    "crop.loss": "l1+rmse",
    "unet.input": "half",
    "unet.base_features": 32,
    "unet.max_features": 512,
    "unet.bottleneck": 8,
    "unet.smallest_skip": 32,
    "unet.output_norm": False,
    "unet.loss_space": "canonical",
    "unet.optimizer.name": "adamw",
    "unet.optimizer.learning_rate": 2e-3,
    "unet.optimizer.min_epochs": 50,
    "train.seed": 0,
    "train.folds": 5,
    "train.fold": 0,
    "train.oversample": None,
    "train.device": "auto",
    "predict.min_pose_dice": 0.8,
    "predict.crop_border": 1,
}


#: What the paper's text says (sections 4 and 5), by key.
OF_PAPER = {
    "preset": "paper",
    "data.size": 512,
    "data.clip_percentiles": (0.5, 99.5),
    "pose.start": "identity",
    "pose.scales": 2,
    "pose.optimizer.name": "sgd",
    "pose.optimizer.learning_rate": 0.01,
    "pose.optimizer.schedule": "constant",
    "pose.optimizer.epochs": 50,
    "pose.optimizer.momentum": 0.0,
    "crop.enabled": True,
    "crop.learned": True,
    "crop.per": "slice",
    "crop.jitter_shift": 0.0,
    "crop.optimizer.name": "sgd",
    "crop.optimizer.learning_rate": 0.01,
    "crop.optimizer.epochs": 50,
    "unet.input": "full",
    "unet.bottleneck": 8,
    "unet.smallest_skip": 32,
    "unet.loss_space": "native",
    "unet.output_norm": True,
    "unet.optimizer.name": "sgd",
    "unet.optimizer.learning_rate": 0.01,
    "unet.optimizer.schedule": "poly",
    "unet.optimizer.momentum": 0.99,
    "unet.optimizer.weight_decay": 3e-5,
    "unet.optimizer.min_epochs": 50,
    "unet.optimizer.batch_size": 12,
    "unet.pose_jitter": 0.0,
    "unet.mirror": 0.0,
    "predict.mirror": False,
}


@pytest.mark.parametrize(("preset", "expected"), [("default", DEFAULTS), ("paper", OF_PAPER)])
def test_presets_are_as_documented(preset, expected):
    given_values = dict(flat(load_config(preset).model_dump()))
    assert {key: given_values[key] for key in expected} == expected


def test_the_default_preset_is_the_default_configuration():
    assert load_config() == Config() == load_config("default")
    assert load_config("paper") != Config()


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_settings_override_a_file_and_a_file_overrides_a_preset(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    if suffix == ".toml":
        path.write_text(
            "[unet]\nbase_features = 8\n[unet.optimizer]\nbatch_size = 3\nlearning_rate = 0.5\n"
            "[train]\noversample = { tumor = 0.5 }\n"
        )
    else:
        content = {
            "unet": {"base_features": 8, "optimizer": {"batch_size": 3, "learning_rate": 0.5}},
            "train": {"oversample": {"tumor": 0.5}},
        }
        path.write_text(json.dumps(content))
    settings = ["unet.optimizer.batch_size=5", "unet.optimizer.batch_size=4", "data.pixel_mm=1.5"]
    config = load_config("paper", path, settings, base={"unet": {"base_features": 4, "max_features": 64}})
    expected = dict(flat(load_config("paper").model_dump()))
    del expected["train.oversample"]
    expected |= {
        "unet.max_features": 64,
        "unet.base_features": 8,
        "unet.optimizer.batch_size": 4,
        "unet.optimizer.learning_rate": 0.5,
        "data.pixel_mm": 1.5,
        "train.oversample.tumor": 0.5,
    }
    assert dict(flat(config.model_dump())) == expected


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("pose.fill=none", lambda c: c.pose.fill is None),
        ("pose.fill=null", lambda c: c.pose.fill is None),
        ("pose.learned=true", lambda c: c.pose.learned is True),
        ("train.fold=all", lambda c: c.train.fold == "all"),
        ("train.fold=4", lambda c: c.train.fold == 4),
        ("pose.reference=case_0003", lambda c: c.pose.reference == "case_0003"),
        ("pose.reference=a=b", lambda c: c.pose.reference == "a=b"),
        ("data.clip_percentiles=[1, 99]", lambda c: c.data.clip_percentiles == (1.0, 99.0)),
        ('train.oversample={"tumor": 0.25}', lambda c: c.train.oversample == {"tumor": 0.25}),
        ("unet.optimizer.learning_rate=1e-4", lambda c: c.unet.optimizer.learning_rate == 1e-4),
    ],
)
def test_settings_are_parsed_as_words_or_json(setting, read):
    assert not read(load_config())
    assert read(load_config(settings=[setting]))


def test_a_preset_named_in_a_file_or_setting_is_that_preset(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('preset = "paper"\n[unet]\nbase_features = 8\n')
    expected = load_config("paper", settings=["unet.base_features=8"])
    assert load_config(file=path) == expected
    assert load_config(settings=["preset=paper", "unet.base_features=8"]) == expected
    assert load_config("default", path, ["preset=default"]) == load_config(settings=["unet.base_features=8"])


@pytest.mark.parametrize("setting", ["unet", "=3", "unet.base_features", ""])
def test_a_setting_without_key_or_value_is_refused(setting):
    with pytest.raises(InputError, match=r"expected section\.key=value, e\.g\. unet\.base_features=16"):
        load_config(settings=[setting])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.toml", None, "no such file"),
        ("none.json", None, "no such file"),
        ("bad.toml", b"[unet\n", "expected TOML"),
        ("bad.json", b"{", "expected a JSON file"),
        ("list.json", b"[1]", "expected sections such as"),
        ("binary.toml", b"\xff\xfe\x00", "expected TOML"),
        ("key.toml", b"[unet]\ncolor = 1\n", "unet.color: no such setting"),
        ("section.json", b'{"unet": null}', "unet: "),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_config(file=path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_a_folder_as_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected TOML"):
        load_config(file=tmp_path)


def test_merging_does_not_change_the_presets():
    before = load_config("paper").model_dump()
    load_config("paper", settings=["unet.optimizer.batch_size=1", "pose.optimizer.epochs=3"])
    assert load_config("paper").model_dump() == before
    # The two transformers' settings are written once and must not be one object.
    changed = load_config("paper", settings=["pose.optimizer.epochs=3"])
    assert changed.crop.optimizer.epochs == 50


def test_a_saved_configuration_is_read_back(tmp_path):
    config = load_config("paper", settings=["unet.base_features=8", "train.fold=all"])
    (tmp_path / "c.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert load_config(file=tmp_path / "c.json") == config


def test_messages_do_not_quote_the_validation_library():
    with pytest.raises(InputError, match=r"^configuration: train\.fold is 9, expected 0 to 4 or all$"):
        load_config(settings=["train.fold=9"])
    with pytest.raises(InputError, match=r"^configuration: unet\.foo: no such setting; see docs/"):
        load_config(settings=["unet.foo=9"])
    with pytest.raises(InputError, match=r"^homogenize: reference: Expected text that is not empty, got ''$"):
        homogenize_config(reference="")


def test_dims_3_has_its_own_defaults_that_can_be_overridden(tmp_path):
    three = load_config(settings=["dims=3"])
    assert (three.pose.per, three.crop.per) == ("volume", "volume")
    assert (three.unet.base_features, three.unet.optimizer.batch_size) == (16, 2)
    # What it does not name keeps its default.
    assert three.unet.optimizer.learning_rate == Config().unet.optimizer.learning_rate
    path = tmp_path / "three.toml"
    path.write_text("dims = 3\n[unet]\ndepth = 64\nbase_features = 8\n")
    from_file = load_config(file=path, settings=["unet.base_features=4"])
    assert (from_file.dims, from_file.unet.depth, from_file.unet.base_features) == (3, 64, 4)
    assert load_config(file=path, settings=["dims=2", "unet.base_features=32", "unet.depth=32"]) == Config()
    assert Config().dims == 2
