import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from isopose.config import Config
from isopose.errors import InputError
from isopose.presets import load_config, validate_config


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


def test_the_size_of_the_unet_follows_from_the_frame():
    sizes = {name: load_config(settings=[f"unet.input={name}"]) for name in ("full", "half", "quarter")}
    assert {name: config.unet_size for name, config in sizes.items()} == {
        "full": 256,
        "half": 128,
        "quarter": 64,
    }
    assert {name: config.unet_levels for name, config in sizes.items()} == {
        "full": 5,
        "half": 4,
        "quarter": 3,
    }
    # The paper: 512 pixels down to a bottleneck of 8.
    assert load_config("paper").unet_levels == 6
    # 96 halves to 12, the least that is not below 8.
    assert load_config(settings=["data.size=96", "unet.input=full"]).unet_levels == 3


@pytest.mark.parametrize("key", ["enabled", "learned"])
def test_a_joint_network_that_shall_not_crop_is_refused(key):
    with pytest.raises(InputError) as caught:
        load_config(settings=["stn=joint", f"crop.{key}=false"])
    assert str(caught.value) == (
        f"configuration: stn=joint learns pose and crop together, but crop.{key} is false; set it to true, "
        "or stn=separate"
    )
    assert load_config(settings=[f"crop.{key}=false"]).stn == "separate"
    with pytest.raises(InputError, match="stn: Input should be 'separate' or 'joint', got 'both'"):
        load_config(settings=["stn=both"])


def test_whether_a_pose_is_estimated():
    def estimated(*settings):
        return load_config(settings=["pose.start=identity", *settings]).pose_estimated

    assert not estimated()
    assert estimated("pose.start=moments")
    assert estimated("pose.learned=true")
    assert estimated("stn=joint")
    assert load_config("paper", settings=["stn=joint"]).pose_estimated


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_file_over_preset_and_settings_over_file(tmp_path, suffix):
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
def test_settings_are_words_or_json(setting, read):
    assert not read(load_config())
    assert read(load_config(settings=[setting]))


def test_a_preset_named_in_a_file_or_setting_is_that_preset(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('preset = "paper"\n[unet]\nbase_features = 8\n')
    expected = load_config("paper", settings=["unet.base_features=8"])
    assert load_config(file=path) == expected
    assert load_config(settings=["preset=paper", "unet.base_features=8"]) == expected
    assert load_config("default", path, ["preset=default"]) == load_config(settings=["unet.base_features=8"])


WRONG = {
    "unet.color=3": "unet.color",
    "color=3": "color",
    "unet=3": "unet",
    "unet.optimizer=fast": "unet.optimizer",
    "unet.optimizer.learning_rate=0": "unet.optimizer.learning_rate",
    "unet.optimizer.learning_rate=fast": "unet.optimizer.learning_rate",
    "unet.optimizer.learning_rate=NaN": "unet.optimizer.learning_rate",
    "unet.optimizer.learning_rate=Infinity": "unet.optimizer.learning_rate",
    "unet.optimizer.learning_rate.x=1": "unet.optimizer.learning_rate",
    "unet.optimizer.momentum=1": "unet.optimizer.momentum",
    "unet.optimizer.epochs=0": "unet.optimizer.epochs",
    "unet.optimizer.epochs=1.5": "unet.optimizer.epochs",
    "unet.optimizer.name=lbfgs": "unet.optimizer.name",
    "unet.base_features=none": "unet.base_features",
    "data.size=100": "data.size",
    "data.size=[256]": "data.size",
    "data.pixel_mm=0": "data.pixel_mm",
    "data.clip_percentiles=[99.5, 0.5]": "data.clip_percentiles",
    "data.clip_percentiles=[0, 101]": "data.clip_percentiles",
    "data.clip_percentiles=[0]": "data.clip_percentiles",
    "pose.start=guess": "pose.start",
    "pose.scales=3": "pose.scales",
    "pose.fill=1.5": "pose.fill",
    "crop.margin=-1": "crop.margin",
    "predict.min_pose_dice=2": "predict.min_pose_dice",
    "predict.batch_size=0": "predict.batch_size",
    "train.seed=-1": "train.seed",
    "train.seed=4294967296": "train.seed",
    "train.fold=some": "train.fold",
    "train.fold=5": "train.fold",
    "train.fold=-1": "train.fold",
    "train.folds=1": "train.folds",
    'train.oversample={"tumor": 2}': "train.oversample",
    'train.oversample={"tumor": "much"}': "train.oversample",
    "train.precision=64": "train.precision",
    "preset=best": "preset",
}


@pytest.mark.parametrize(("setting", "key"), WRONG.items())
def test_what_is_wrong_is_named(setting, key):
    with pytest.raises(InputError) as caught:
        load_config(settings=[setting])
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "settings", [["data.size=64", "unet.input=quarter", "unet.bottleneck=16"], ["unet.bottleneck=65"]]
)
def test_sizes_that_do_not_halve_name_what_to_change(settings):
    with pytest.raises(InputError, match=r"change data\.size, unet\.input or unet\.bottleneck"):
        load_config(settings=settings)


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
    with pytest.raises(InputError) as caught:
        load_config(file=path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_as_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected TOML"):
        load_config(file=tmp_path)


def test_nothing_of_it_can_be_changed():
    config = Config()
    for target, name in (
        (config, "preset"),
        (config.unet, "base_features"),
        (config.unet.optimizer, "name"),
        (config.predict, "batch_size"),
    ):
        before = getattr(target, name)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(target, name, before)


def test_merging_leaves_the_presets_alone():
    before = load_config("paper").model_dump()
    load_config("paper", settings=["unet.optimizer.batch_size=1", "pose.optimizer.epochs=3"])
    assert load_config("paper").model_dump() == before
    # The two transformers' settings are written once and must not be one object.
    changed = load_config("paper", settings=["pose.optimizer.epochs=3"])
    assert changed.crop.optimizer.epochs == 50


@given(
    preset=st.sampled_from(["default", "paper"]),
    size=st.sampled_from([192, 256, 512]),
    pixel=st.none() | st.floats(0.06, 9),
    fold=st.integers(0, 4) | st.just("all"),
    oversample=st.none() | st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=2),
    rate=st.floats(1e-6, 1),
    reference=st.none() | st.text(max_size=8),
)
def test_json_keeps_every_value(preset, size, pixel, fold, oversample, rate, reference):
    base = {
        "data": {"size": size, "pixel_mm": pixel},
        "train": {"fold": fold, "oversample": oversample},
        "unet": {"optimizer": {"learning_rate": rate}},
        "pose": {"reference": reference},
    }
    config = load_config(preset, base=base)
    again = validate_config(json.loads(json.dumps(config.model_dump(mode="json"))), "test")
    assert again == config
    assert again.train.oversample == oversample
    assert again.unet.optimizer.learning_rate == rate


def test_a_saved_configuration_is_a_file_that_gives_it_again(tmp_path):
    config = load_config("paper", settings=["unet.base_features=8", "train.fold=all"])
    (tmp_path / "c.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert load_config(file=tmp_path / "c.json") == config


def test_messages_are_ours_and_not_the_librarys():
    with pytest.raises(InputError, match=r"^configuration: train\.fold is 9, expected 0 to 4 or all$"):
        load_config(settings=["train.fold=9"])
    with pytest.raises(InputError, match=r"^configuration: unet\.foo: no such setting; see docs/"):
        load_config(settings=["unet.foo=9"])


def test_dims_3_brings_its_own_settings_which_others_may_change(tmp_path):
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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pose.per=slice", 'pose.per is "slice", with dims=3 only "volume" is possible'),
        ("pose.per=smooth", 'pose.per is "smooth", with dims=3 only "volume" is possible'),
        ("crop.per=slice", 'crop.per is "slice", with dims=3 only "volume" is possible'),
        ("pose.learned=true", "pose.learned is true, with dims=3 only false is possible"),
        ("stn=joint", 'stn is "joint", with dims=3 only "separate" is possible'),
        ("unet.loss_space=native", 'unet.loss_space is "native", with dims=3 only "canonical" is possible'),
        ("unet.output_norm=true", "unet.output_norm is true, with dims=3 only false is possible"),
        ("unet.context=1", "unet.context is 1, with dims=3 only 0 is possible"),
    ],
)
def test_what_volumes_cannot_do_is_refused_in_one_line(setting, message):
    with pytest.raises(InputError) as error:
        load_config(settings=["dims=3", setting])
    assert str(error.value) == f"configuration: {message}"


def test_dims_other_than_2_and_3_are_refused():
    with pytest.raises(InputError, match=r"dims: .*2 or 3.*got 4"):
        load_config(settings=["dims=4"])
