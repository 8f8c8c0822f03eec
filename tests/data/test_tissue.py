"""Warnings about another body part or swapped head and feet; normal scans give none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bright import bright_model, make_scene
from isopose.data.body import body_mask
from isopose.data.fingerprint import Fingerprint
from isopose.data.tissue import Tissue, UsualTissue, composition_warnings, tissue_of, usual_tissue
from isopose.geometry.volume import Volume
from isopose.inference.predict import predict
from isopose.io.datasets import open_dataset
from isopose.phantom import write_cohort
from isopose.settings import DataConfig

USUAL = UsualTissue(
    gas_max=0.05, bone_max=0.08, rising_cases=20, rising_median=0.8, rising_min=0.1, rising_max=0.95
)
LIKE = Tissue(gas=0.03, bone=0.05, rising=0.7)


def measured(upright: Volume) -> Tissue:
    return tissue_of(upright, body_mask(upright, DataConfig().body_threshold_hu))


def chest(upright: Volume) -> Volume:
    """Paint two lungs into a volume."""
    array = upright.array.copy()
    y, x = (size / 2 for size in array.shape[1:])
    rows, columns = np.mgrid[: array.shape[1], : array.shape[2]]
    for side in (-1, 1):
        lung = np.hypot((columns - x - side * 0.19 * x * 2) / (0.24 * x), (rows - y) / (0.4 * y)) < 1
        array[:, lung] = -850
    return upright.with_array(array)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = write_cohort(
        tmp_path_factory.mktemp("tissue") / "cohort", cases=12, slices=14, size=96, seed=3, test_fraction=0.0
    )
    from isopose.io.images import read_volume

    return [read_volume(case.image).reoriented() for case in open_dataset(folder).cases]


def test_tissue_shares_count_the_body_alone() -> None:
    """Each tissue fills a quarter of the body; gas and bone outside the mask do not count."""
    array = np.full((10, 8, 8), -1000, np.int16)
    array[:, 0] = 1000
    body = np.zeros(array.shape, bool)
    body[:, 2:6, 2:6] = True
    for column, value in zip(range(2, 6), (-500, -100, 40, 600), strict=True):
        array[:, 2:6, column] = value
    # From the feet to the head one fat column after the other turns lean.
    for z in range(10):
        array[z, 2 : 2 + min(z, 4), 3] = 40
    result = tissue_of(Volume(array, np.diag([3.0, 3.0, 10.0, 1.0])), body)
    assert (result.gas, result.bone) == (0.25, 0.25)
    assert result.rising == pytest.approx(np.corrcoef(range(10), [min(z, 4) for z in range(10)])[0, 1])


@pytest.mark.parametrize(("slices", "thickness"), [(7, 20.0), (20, 3.0)], ids=["few", "short"])
def test_a_short_scan_does_not_tell_which_end_is_up(slices, thickness) -> None:
    array = np.full((slices, 8, 8), 40, np.int16)
    array[: slices // 2] = -100
    result = tissue_of(Volume(array, np.diag([3.0, 3.0, thickness, 1.0])), np.ones(array.shape, bool))
    assert result.rising is None
    assert list(composition_warnings(result, USUAL)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"gas": 0.149}, None),
        ({"gas": 0.4}, "40 % of the body is gas or lung, in the training scans at most 5 %"),
        ({"bone": 0.25}, "25 % of the body is bone or as bright, in the training scans at most 8 %"),
        ({"rising": -0.59}, None),
        ({"rising": -0.61}, "are feet and head exchanged"),
        ({"rising": None}, None),
    ],
)
def test_tissue_unlike_the_training_scans_is_reported(change, words) -> None:
    warnings = list(composition_warnings(replace(LIKE, **change), USUAL))
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


@pytest.mark.parametrize(
    "usual",
    [
        replace(USUAL, rising_cases=9),
        replace(USUAL, rising_median=0.5),
        # One of them was as much the other way round.
        replace(USUAL, rising_min=-0.7),
    ],
    ids=["few", "unclear", "both ways"],
)
def test_training_scans_without_a_trend_along_z_give_no_warning(usual) -> None:
    assert list(composition_warnings(replace(LIKE, rising=-0.8), usual)) == []


def test_a_trend_along_z_opposite_to_the_training_scans_is_reported() -> None:
    falls = replace(USUAL, rising_median=-0.8, rising_min=-0.95, rising_max=-0.1)
    assert list(composition_warnings(replace(LIKE, rising=-0.7), falls)) == []
    assert "exchanged" in next(composition_warnings(replace(LIKE, rising=0.7), falls))


def test_phantoms_give_no_warning_and_most_upside_down_ones_do(phantoms) -> None:
    scans = [measured(upright) for upright in phantoms]
    for number, scan in enumerate(scans):
        others = usual_tissue(scans[:number] + scans[number + 1 :])
        assert list(composition_warnings(scan, others)) == []
    turned = [measured(upright.with_array(upright.array[::-1].copy())) for upright in phantoms]
    result = [
        any("exchanged" in line for line in composition_warnings(scan, usual_tissue(scans)))
        for scan in turned
    ]
    assert np.mean(result) >= 0.75


def test_real_scans_give_a_warning_only_once_corrupted(phantoms, real_scans) -> None:
    usual = usual_tissue([measured(upright) for upright in phantoms])
    for upright in real_scans.values():
        assert list(composition_warnings(measured(upright), usual)) == []
    abdomen = real_scans["abdomen"]
    (warning,) = composition_warnings(measured(abdomen.with_array(abdomen.array[::-1].copy())), usual)
    assert "are feet and head exchanged" in warning
    assert any("gas or lung" in line for line in composition_warnings(measured(chest(abdomen)), usual))


def test_predict_reports_the_warnings() -> None:
    model = bright_model()
    assert model.fingerprint.tissue is None
    usual = make_scene(slices=4).volume
    known = replace(model, fingerprint=replace(model.fingerprint, tissue=usual_tissue([measured(usual)])))
    with torch.inference_mode():
        assert not [line for line in predict(known, usual).warnings if "gas or lung" in line]
        assert [line for line in predict(known, chest(usual)).warnings if "gas or lung" in line]


def test_a_model_without_tissue_statistics_is_read_and_gives_no_warning() -> None:
    fingerprint = bright_model().fingerprint
    old = fingerprint.to_json()
    old.pop("tissue")
    assert Fingerprint.from_json(old) == fingerprint
    new = replace(fingerprint, tissue=USUAL)
    assert Fingerprint.from_json(new.to_json()) == new
