import json
from dataclasses import replace

import numpy as np
import pytest
from bodies import torso, write_cohort

from isopose.data.fingerprint import Fingerprint, describe, fingerprint_of
from isopose.data.normalization import ByScan, Channel, Window, normalizations_of, scale_of_scan
from isopose.data.preprocess import prepare
from isopose.errors import InputError
from isopose.io.images import read_volume
from isopose.labels import Labels
from isopose.presets import load_config
from isopose.settings import DataConfig

LABELS = Labels.create({"kidney": 1, "tumor": 2})
CONFIG = DataConfig(size=64, normalization="zscore")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 4)


@pytest.fixture(scope="module")
def fingerprint(cohort) -> Fingerprint:
    return fingerprint_of(cohort, LABELS, CONFIG, channels=("T2",))


@pytest.mark.parametrize(
    ("setting", "channels", "expected"),
    [
        ("auto", ("CT",), ("ct",)),
        ("auto", ("ct", "T2", "noNorm", "zscore"), ("ct", "zscore", "raw", "zscore")),
        ("auto", ("CT scan", "rescale_to_0_1"), ("zscore", "zscore")),
        ("raw", ("CT", "PET"), ("raw", "raw")),
        ('["zscore", "ct"]', ("CT", "CT"), ("zscore", "ct")),
    ],
)
def test_normalization_is_chosen_by_channel_name_or_setting(
    setting: str, channels: tuple, expected: tuple
) -> None:
    config = load_config(settings=[f"data.normalization={setting}"]).data
    assert normalizations_of(config, channels) == expected


def test_a_modality_that_is_set_applies_to_the_pose_channel_alone() -> None:
    """PET beside a CT that the dataset calls otherwise has no Hounsfield units for that."""
    config = load_config(settings=["data.modality=ct", "data.pose_channel=scan"]).data
    assert normalizations_of(config, ("PET", "scan")) == ("zscore", "ct")
    other = load_config(settings=["data.modality=mr"]).data
    assert normalizations_of(other, ("CT", "CT")) == ("zscore", "ct")


def test_a_list_of_another_length_is_refused() -> None:
    config = DataConfig(normalization=("ct",))
    with pytest.raises(InputError, match=r"lists 1, expected one for each of the 2 channels \(T1, T2\)"):
        normalizations_of(config, ("T1", "T2"))
    with pytest.raises(InputError, match=r"data\.normalization"):
        load_config(settings=["data.normalization=minmax"])


def test_only_values_inside_the_body_decide_the_scale() -> None:
    random = np.random.default_rng(0)
    array = random.normal(300.0, 50.0, (4, 40, 40))
    body = np.zeros(array.shape, dtype=bool)
    body[:, 10:30, 10:30] = True
    array[~body] = 7.0
    array[0, 10, 10] = 1e5
    scale = scale_of_scan("zscore", (0.5, 99.5), array, body)
    low, high = np.percentile(array[body], (0.5, 99.5))
    clipped = array[body].clip(low, high)
    assert scale == Window(low, high, clipped.mean(), clipped.std())
    out = scale.normalize(array)
    assert (out[body].mean(), out[body].std()) == pytest.approx((0.0, 1.0), abs=1e-5)
    # What lies around the patient is as dark as the darkest of the body, not darker and not brighter.
    assert out[~body].max() == out[body].min() == pytest.approx(scale.air)
    # Another unit of the scanner's and more air around the patient change nothing.
    wide = np.pad(array * 3.5 + 20.0, ((0, 0), (9, 9), (9, 9)), constant_values=0.0)
    inner = np.pad(body, ((0, 0), (9, 9), (9, 9)))
    again = scale_of_scan("zscore", (0.5, 99.5), wide, inner).normalize(wide)
    assert np.abs(again[inner] - out[body]).max() < 1e-4


def test_a_constant_body_and_unusable_values_are_refused() -> None:
    flat, body = np.full((3, 9, 9), 5.0), np.ones((3, 9, 9), dtype=bool)
    with pytest.raises(InputError, match="have the value 5, so they cannot be normalized"):
        scale_of_scan("zscore", (0.5, 99.5), flat, body)
    with pytest.raises(InputError, match=r"from 0 to 70000 are too large .* data\.normalization=zscore"):
        scale_of_scan("raw", (0.5, 99.5), np.array([[[0.0, 7e4]]]), body)
    assert scale_of_scan("raw", (0.5, 99.5), flat, body).normalize(flat) == pytest.approx(flat)


def test_the_fingerprint_records_the_darkest_and_brightest_values(cohort, fingerprint: Fingerprint) -> None:
    (channel,) = fingerprint.channels
    assert channel.name == "T2"
    assert isinstance(channel.scale, ByScan)
    assert channel.scale.method == "zscore"
    scales = [prepare(read_volume(case.image), fingerprint, CONFIG).scale for case in cohort]
    assert len({scale.mean for scale in scales}) == len(cohort)
    assert channel.scale.air == pytest.approx(min(scale.air for scale in scales), abs=1e-5)
    assert channel.scale.top == pytest.approx(max(scale.top for scale in scales), abs=1e-5)
    assert Fingerprint.from_json(json.loads(json.dumps(fingerprint.to_json()))) == fingerprint
    description = "z-score of each scan's body, clipped to its 0.5 and 99.5 percentile"
    assert ("normalization", description) in describe(fingerprint)


def test_each_scan_is_normalized_by_its_own_body(fingerprint: Fingerprint) -> None:
    # The frame is larger than the scan: what is added must look as what is around the body.
    volume = torso(180.0, arms=False, table=False, noise=5.0, fov=190.0, slices=6).volume
    wide, config = replace(fingerprint, fov_mm=320.0), DataConfig(size=256, normalization="zscore")
    prepared = prepare(volume, wide, config)
    inside = prepared.image[prepared.mask]
    assert (inside.mean(), inside.std()) == pytest.approx((0.0, 1.0), abs=0.05)
    corner, around = prepared.image[:, :4, :4], prepared.image[~prepared.mask]
    assert corner.min() == corner.max() == pytest.approx(prepared.scale.air, abs=1e-5)
    assert corner.max() <= np.median(around) + 1e-5
    # Contrast in another unit is the same to the networks.
    half = config.model_copy(update={"body_threshold_hu": 0.5 * config.body_threshold_hu})
    halved = prepare(volume.with_array(volume.array * 0.5), wide, half)
    assert halved.image == pytest.approx(prepared.image, abs=0.02)


def test_values_are_clipped_to_the_range_that_the_network_pads_with(fingerprint: Fingerprint) -> None:
    volume = torso(180.0, arms=False, table=False, fov=190.0, slices=6).volume
    bounded = ByScan("zscore", (0.5, 99.5), -0.5, 0.5)
    prepared = prepare(volume, replace(fingerprint, channels=(Channel("T2", bounded),)), CONFIG)
    assert (prepared.image.min(), prepared.image.max()) == (-0.5, 0.5)


def test_an_older_fingerprint_is_read_as_one_of_ct(cohort) -> None:
    result = fingerprint_of(cohort, LABELS, DataConfig(size=64))
    values = result.to_json()
    (channel,) = values.pop("channels")
    assert Fingerprint.from_json({**values, "intensity": channel["scale"]}) == result
