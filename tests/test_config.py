"""The whole configuration: derived values, and settings that are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isopose.errors import InputError
from isopose.presets import load_config, validate_config


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
def test_a_joint_network_without_a_crop_is_refused(key):
    with pytest.raises(InputError) as error:
        load_config(settings=["stn=joint", f"crop.{key}=false"])
    assert str(error.value) == (
        f"configuration: stn=joint learns pose and crop together, but crop.{key} is false; set it to true, "
        "or stn=separate"
    )
    assert load_config(settings=[f"crop.{key}=false"]).stn == "separate"
    with pytest.raises(InputError, match="stn: Input should be 'separate' or 'joint', got 'both'"):
        load_config(settings=["stn=both"])


@pytest.mark.parametrize(
    ("setting", "err"),
    [
        ("data.modality=MR", "data.modality: Input should be 'auto' or 'ct' or 'mr', got 'MR'"),
        (
            "data.normalization=z",
            "data.normalization: Input should be 'auto' or 'ct', 'zscore' or 'raw' or a valid tuple, got 'z'",
        ),
        ("data.pixel_mm=-7", "data.pixel_mm: Input should be greater than 0.05 or 'median', got -7"),
        ("predict.mirror=both", "predict.mirror: Input should be a valid boolean or 'auto', got 'both'"),
        ("train.fold=first", "train.fold: Input should be a valid integer or 'all', got 'first'"),
        ("unet.optimizer.epochs=few", "unet.optimizer.epochs: Input should be a valid integer, got 'few'"),
    ],
)
def test_a_message_lists_all_alternatives_of_a_setting(setting, err):
    with pytest.raises(InputError) as error:
        load_config(settings=[setting])
    assert str(error.value) == f"configuration: {err}"


def test_settings_that_estimate_a_pose():
    def estimated(*settings):
        return load_config(settings=["pose.start=identity", *settings]).pose_estimated

    assert not estimated()
    assert estimated("pose.start=moments")
    assert estimated("pose.learned=true")
    assert estimated("stn=joint")
    assert load_config("paper", settings=["stn=joint"]).pose_estimated


@pytest.mark.parametrize(
    "settings", [["data.size=64", "unet.input=quarter", "unet.bottleneck=16"], ["unet.bottleneck=65"]]
)
def test_sizes_that_cannot_be_halved_name_the_setting(settings):
    with pytest.raises(InputError, match=r"change data\.size, unet\.input or unet\.bottleneck"):
        load_config(settings=settings)


@given(
    preset=st.sampled_from(["default", "paper"]),
    size=st.sampled_from([192, 256, 512]),
    pixel=st.none() | st.floats(0.06, 9),
    fold=st.integers(0, 4) | st.just("all"),
    oversample=st.none() | st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=2),
    rate=st.floats(1e-6, 1),
    reference=st.none() | st.text(max_size=8),
)
def test_json_round_trip_keeps_every_value(preset, size, pixel, fold, oversample, rate, reference):
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
def test_settings_that_volumes_do_not_support_are_refused_in_one_line(setting, message):
    with pytest.raises(InputError) as error:
        load_config(settings=["dims=3", setting])
    assert str(error.value) == f"configuration: {message}"


def test_dims_other_than_2_and_3_are_refused():
    with pytest.raises(InputError, match=r"dims: .*2 or 3.*got 4"):
        load_config(settings=["dims=4"])
