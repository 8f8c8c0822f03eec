from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isopose.data.splits import split_patients
from isopose.errors import InputError
from isopose.io.cases import Case, Dataset, dataset_of
from isopose.labels import Labels

ROOT = Path("data")


def cohort(scans, ages=None, splits=None):
    """``scans[p]`` scans of patient ``p``."""
    ages, splits = ages or {}, splits or {}
    cases = [
        Case(f"c{p}_{s}", ROOT / "i", ROOT / "l", f"p{p}", ages.get(p), splits.get((p, s)))
        for p, count in enumerate(scans)
        for s in range(count)
    ]
    return dataset_of("d", "manifest", ROOT, Labels.create({"kidney": 1}), cases)


@given(
    scans=st.lists(st.integers(1, 3), min_size=2, max_size=25),
    folds=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_folds_partition_the_patients(scans, folds, seed, data):
    known = data.draw(st.dictionaries(st.integers(0, 24), st.floats(0, 16)))
    dataset = cohort(scans, known)
    if folds > len(scans):
        with pytest.raises(InputError, match=f"use fewer, e.g. --set train.folds={len(scans)} "):
            split_patients(dataset, folds, 0, seed)
        return
    shuffled = replace(dataset, cases=tuple(data.draw(st.permutations(dataset.cases))))
    validated = []
    for fold in range(folds):
        training, validation = split_patients(dataset, folds, fold, seed)
        assert split_patients(shuffled, folds, fold, seed) == (training, validation)
        assert sorted({*training, *validation}, key=lambda c: c.id) == list(dataset.cases)
        assert not {c.patient for c in training} & {c.patient for c in validation}
        assert training
        assert validation
        validated.append({c.patient for c in validation})
    assert sum(len(v) for v in validated) == len(scans)  # every patient validates once
    assert max(map(len, validated)) - min(map(len, validated)) <= 1


def test_one_patient_cannot_be_split():
    with pytest.raises(InputError, match=r"2 folds need .* got 1; label at least two patients"):
        split_patients(cohort([3]), 2, 0, 0)


def test_folds_are_the_same_in_every_version():
    """A trained model's fold must mean the same in every version; change nothing here."""
    chosen = {c.patient for c in split_patients(cohort([1] * 10), 5, 0, 17)[1]}
    other = {c.patient for c in split_patients(cohort([1] * 10), 5, 0, 18)[1]}
    assert chosen == {"p1", "p8"}
    assert other != chosen


def test_every_fold_spans_the_ages():
    dataset = cohort([1] * 40, {p: p * 0.4 for p in range(40)})
    for fold in range(4):
        ages = sorted(c.age_years for c in split_patients(dataset, 4, fold, 3)[1])
        assert len(ages) == 10
        for group, age in enumerate(ages):
            assert group * 1.6 <= age < (group + 1) * 1.6


def test_cases_without_label_and_test_cases_are_left_out():
    dataset = cohort([1, 1, 1, 1], splits={(0, 0): "test"})
    cases = tuple(replace(c, label=None) if c.id == "c1_0" else c for c in dataset.cases)
    training, validation = split_patients(replace(dataset, cases=cases), 2, 0, 0)
    assert {c.id for c in (*training, *validation)} == {"c2_0", "c3_0"}


def test_the_datasets_own_split_is_kept():
    splits = {(0, 0): "val", (0, 1): "val", (1, 0): "train", (2, 0): None, (3, 0): "test"}
    dataset = cohort([2, 1, 1, 1], splits=splits)
    training, validation = split_patients(dataset, 5, 0, 0)
    assert [c.id for c in training] == ["c1_0", "c2_0"]
    assert [c.id for c in validation] == ["c0_0", "c0_1"]
    with pytest.raises(InputError, match="has its own split"):
        split_patients(dataset, 5, 1, 0)


@pytest.mark.parametrize(
    "two", [("val", None), ("val", "train"), ("test", "train"), ("test", "val"), ("test", None)]
)
def test_a_patient_on_two_sides_is_refused(two):
    dataset = cohort([2, 1, 1], splits={(0, 0): two[0], (0, 1): two[1]})
    with pytest.raises(InputError, match=r"'c0_[01]'.*'c0_[01]'.*one patient"):
        split_patients(dataset, 2, 0, 0)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (0, 0), (5, 5), (5, -1)])
def test_invalid_folds_are_refused(folds, fold):
    with pytest.raises(InputError, match="expected at least 2 folds"):
        split_patients(cohort([1] * 9), folds, fold, 0)


def test_a_split_without_training_cases_is_refused():
    dataset: Dataset = cohort([1, 1], splits={(0, 0): "val", (1, 0): "val"})
    with pytest.raises(InputError, match="left for training"):
        split_patients(dataset, 2, 0, 0)
