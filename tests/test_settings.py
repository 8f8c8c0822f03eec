"""Single settings: their bounds, and that they are frozen."""

import pytest
from pydantic import ValidationError

from isopose.config import Config
from isopose.errors import InputError
from isopose.presets import load_config

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
def test_invalid_settings_are_named(setting, key):
    with pytest.raises(InputError) as error:
        load_config(settings=[setting])
    assert key in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_settings_are_immutable():
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
