import json
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
from bodies import write_cohort
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isopose.data.fingerprint import (
    CaseFacts,
    Fingerprint,
    describe,
    fingerprint_of,
    reduce_facts,
)
from isopose.data.normalization import Intensity, LabeledValues
from isopose.data.tissue import Tissue
from isopose.errors import InputError, IsoposeError
from isopose.files import hash_of
from isopose.io.images import read_volume, write_labels
from isopose.labels import Labels
from isopose.parallel import in_order
from isopose.settings import DataConfig

LABELS = Labels.create({"kidney": 1, "tumor": 2})
CONFIG = DataConfig(size=64)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 4)


@pytest.fixture(scope="module")
def fingerprint(cohort) -> Fingerprint:
    return fingerprint_of(cohort, LABELS, CONFIG)


def labeled(case) -> np.ndarray:
    return read_volume(case.image).array[read_volume(case.label).array > 0].astype(float)


def test_counts_sizes_and_labels(fingerprint: Fingerprint) -> None:
    assert (fingerprint.cases, fingerprint.patients) == (4, 2)
    assert fingerprint.spacing_median == pytest.approx((3.0, 3.0, 5.0))
    assert (fingerprint.slices_min, fingerprint.slices_median, fingerprint.slices_max) == (4, 5.5, 7)
    # Trunks 140, 180, 220 and 260 mm wide, three quarters as deep, on pixels of 3 mm.
    assert fingerprint.body_max_mm == pytest.approx((260, 195), abs=6.1)
    assert fingerprint.body_median_mm == pytest.approx((200, 150), abs=6.1)
    assert fingerprint.fov_mm == pytest.approx(1.04 * fingerprint.body_max_mm[0])
    kidney, tumor = fingerprint.labels
    voxel = 0.045
    assert (kidney.name, kidney.cases, kidney.slices) == ("kidney", 4, 8)
    assert (tumor.name, tumor.cases, tumor.slices) == ("tumor", 2, 2)
    assert tumor.volume_median_ml == pytest.approx(16 * voxel)
    assert kidney.volume_max_ml == pytest.approx(112 * voxel)
    assert kidney.volume_min_ml == pytest.approx(96 * voxel)


def test_intensity_statistics_weigh_all_cases_equally(cohort, fingerprint: Fingerprint) -> None:
    # What nnU-Net estimates: as many voxels of every case, drawn with replacement, then pooled.
    random = np.random.RandomState(1234)
    pooled = np.concatenate([random.choice(labeled(case), 400_000) for case in cohort])
    i = fingerprint.channels[0].scale
    assert i.mean == pytest.approx(pooled.mean(), abs=0.2)
    assert i.sd == pytest.approx(pooled.std(), rel=0.005)
    expected = np.percentile(pooled, (0.5, 50, 99.5))
    assert (i.low, i.median, i.high) == pytest.approx(tuple(expected), abs=1.0)
    assert (i.minimum, i.maximum) == (pooled.min(), pooled.max())


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(-200, 400), min_size=1, max_size=30), min_size=1, max_size=5))
def test_mean_and_deviation_of_a_mixture(groups: list[list[int]]) -> None:
    facts = [facts_of(np.array(group, dtype=float)) for group in groups]
    assume(len({value for group in groups for value in group}) > 1)
    i = reduce_facts(facts, LABELS, CONFIG).channels[0].scale
    # Each case repeated until all have as many voxels: exact equal weights.
    many = int(np.lcm.reduce([len(group) for group in groups]))
    if many > 200_000:
        return
    pooled = np.concatenate([np.repeat(group, many // len(group)) for group in groups]).astype(float)
    assert i.mean == pytest.approx(pooled.mean(), abs=1e-9)
    assert i.sd == pytest.approx(pooled.std(), abs=1e-6)
    for value, q in ((i.low, 0.5), (i.median, 50), (i.high, 99.5)):
        assert value == np.percentile(pooled, q, method="inverted_cdf")


def facts_of(values: np.ndarray) -> CaseFacts:
    distinct, counts = np.unique(values.astype(int), return_counts=True)
    one = (1.0, 1.0, 1.0)
    return CaseFacts(
        "p",
        one,
        1,
        (1.0, 1.0),
        (LabeledValues(distinct, counts, values.mean(), values.var()),),
        (1.0, 0.0),
        (1, 0),
        Tissue(0, 0, None),
    )


def test_any_number_of_workers_gives_the_same(cohort, fingerprint: Fingerprint) -> None:
    seen: list[tuple[int, int]] = []
    other = fingerprint_of(cohort, LABELS, CONFIG, workers=2, progress=lambda *n: seen.append(n))
    assert hash_of(other.to_json()) == hash_of(fingerprint.to_json())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_normalization_is_clip_and_score() -> None:
    i = Intensity((0.5, 99.5), -50.0, 0.0, 250.0, 100.0, 50.0, -99.0, 999.0)
    assert i.normalize(np.array([-1000, 0, 100, 900], np.int16)).tolist() == [-3.0, -2.0, 0.0, 3.0]
    assert (i.air, i.top) == (-3.0, 3.0)
    flat = replace(i, low=7.0, high=7.0, mean=7.0, sd=0.0)
    assert flat.normalize(np.array([7.0])).tolist() == [0.0]


def test_json_round_trip(fingerprint: Fingerprint) -> None:
    assert Fingerprint.from_json(json.loads(json.dumps(fingerprint.to_json()))) == fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": "4"}, "cases"),
        ({"fov_mm": -1.0}, "fov_mm"),
        ({"extra": 1}, "extra"),
        ({"spacing_median": [1.0, 1.0]}, "spacing_median"),
        ({"channels": []}, "channels"),
        ({"channels": None}, "channels"),
        ({"intensity": None}, "channels"),
    ],
)
def test_damaged_json_is_refused(fingerprint: Fingerprint, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"^model.json: {message}") as error:
        Fingerprint.from_json({**fingerprint.to_json(), **change}, "model.json")
    assert "\n" not in str(error.value)


def test_crossed_clip_is_refused(fingerprint: Fingerprint) -> None:
    values = fingerprint.to_json()
    scale = values["channels"][0]["scale"]
    scale["low"], scale["high"] = 300.0, -80.0
    with pytest.raises(InputError, match="low is above high"):
        Fingerprint.from_json(values)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_case_is_named(cohort, tmp_path, workers: int) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    cases = [cohort[0], replace(cohort[1], image=broken), cohort[2]]
    with pytest.raises(InputError, match=r"^case_001: .*broken.nii.gz") as error:
        fingerprint_of(cases, LABELS, CONFIG, workers=workers)
    assert "\n" not in str(error.value)


def test_unknown_label_no_label_and_no_case(cohort) -> None:
    with pytest.raises(InputError, match=r"^case_001: unknown label value 2"):
        fingerprint_of(cohort[:2], Labels({"kidney": 1}), CONFIG)
    with pytest.raises(InputError, match=r"^case_000: expected a label file"):
        fingerprint_of([replace(cohort[0], label=None)], LABELS, CONFIG)
    with pytest.raises(InputError, match="at least one training case"):
        fingerprint_of([], LABELS, CONFIG)


def test_no_labeled_voxel_anywhere(cohort, tmp_path) -> None:
    blank = read_volume(cohort[0].label)
    write_labels(blank.with_array(np.zeros_like(blank.array)), tmp_path / "blank.nii.gz")
    cases = [replace(cohort[0], label=tmp_path / "blank.nii.gz")]
    with pytest.raises(InputError, match="no training case has a labeled voxel"):
        fingerprint_of(cases, LABELS, CONFIG)


def test_constant_values_are_refused() -> None:
    """Z-scoring would divide by a standard deviation of zero."""
    with pytest.raises(InputError, match="nearly all labeled voxels have the value 200"):
        reduce_facts([facts_of(np.full(9, 200.0))], LABELS, CONFIG)


def test_a_case_without_labeled_voxels_has_no_weight(cohort, tmp_path) -> None:
    blank = read_volume(cohort[2].label)
    write_labels(blank.with_array(np.zeros_like(blank.array)), tmp_path / "blank.nii.gz")
    with_blank = fingerprint_of(
        [cohort[0], replace(cohort[2], label=tmp_path / "blank.nii.gz")], LABELS, CONFIG
    )
    assert with_blank.channels == fingerprint_of(cohort[:1], LABELS, CONFIG).channels
    assert with_blank.cases == 2


def test_the_description_has_the_numbers_and_names_no_patient(fingerprint: Fingerprint) -> None:
    rows = dict(describe(fingerprint))
    assert rows["cases"] == "4 of 2 patients"
    assert rows["slices"] == "5.5 (4 to 7)"
    assert rows["tumor"].startswith("2 cases, 2 slices, 0.7 ml")
    assert "patient_" not in str(rows)


def test_a_dead_worker_is_reported_in_one_line(cohort, monkeypatch) -> None:
    with pytest.raises(IsoposeError, match=r"^case_000: a worker process died") as error:
        list(in_order(die, cohort[:2], name=attrgetter("id"), workers=1))
    assert "\n" not in str(error.value)


def die(case) -> None:
    import os

    os._exit(9)
