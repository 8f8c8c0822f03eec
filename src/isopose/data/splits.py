"""Split cases into training and validation by patient, so that all scans of a patient are on one side."""

import hashlib
from collections.abc import Iterable

from isopose.errors import InputError
from isopose.io.cases import Case, Dataset
from isopose.settings import TrainConfig


def split(dataset: Dataset, config: TrainConfig) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return training and validation cases as ``train.fold`` says, without test cases.

    With ``train.fold=all`` every labeled case trains and none validates.

    Raises:
        InputError: no case to train on, or a patient on two sides.
    """
    if config.fold == "all":
        check_sides(dataset)
        labeled = tuple(c for c in dataset.cases if c.label is not None and c.split != "test")
        if not labeled:
            raise InputError(f"{dataset.root}: no case with a label to train on")
        return labeled, ()
    return split_patients(dataset, config.folds, config.fold, config.seed)


def measured_cases(
    training: tuple[Case, ...], validation: tuple[Case, ...], config: TrainConfig
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return the cases that determine normalization, frame and reference, and the other cases to preprocess.

    The first are the fold's training cases. With ``train.shared`` they are the cases of all folds, in the
    same order in each fold, so that one store serves all folds.

    Args:
        training: training cases of a fold.
        validation: validation cases of that fold.
        config: ``shared`` selects between the two.
    """
    if not config.shared:
        return training, validation
    return tuple(sorted((*training, *validation), key=lambda case: case.id)), ()


def split_patients(
    dataset: Dataset, folds: int, fold: int, seed: int
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return training and validation cases of one fold.

    Cases without label and test cases are left out. Folds are stratified by age: patients sorted by age are
    assigned in groups, one of each group to each fold (patients of unknown age come last). Within a group the
    order is a hash of seed and patient, so that it depends neither on the order of the listing nor on the
    machine.

    If the dataset names validation cases itself (a manifest's ``split``), these validate and all others
    train.

    Args:
        dataset: at least as many labeled patients as folds.
        folds: number of folds, at least 2.
        fold: which one validates, from 0.
        seed: of the random order within groups.

    Returns:
        Training and validation cases, each sorted by id, neither empty.

    Raises:
        InputError: an impossible fold, too few patients, a patient on two sides of the dataset's own split,
            or a fold above 0 of a dataset that has its own.
    """
    check_sides(dataset)
    usable = sorted(
        (c for c in dataset.cases if c.label is not None and c.split != "test"), key=lambda c: c.id
    )
    validation_patients = {c.patient for c in usable if c.split == "val"}
    if validation_patients:
        if fold != 0:
            raise InputError(
                f"{dataset.root}: the dataset has its own split, so there is no fold {fold}; use fold 0"
            )
    else:
        validation_patients = _validation_patients(dataset, usable, folds, seed, fold)
    training = tuple(c for c in usable if c.patient not in validation_patients)
    if not training:
        raise InputError(f"{dataset.root}: no labeled patient is left for training; mark some as train")
    return training, tuple(c for c in usable if c.patient in validation_patients)


def check_sides(dataset: Dataset) -> None:
    """Check that no patient is on two sides of the dataset's own split.

    Raises:
        InputError: one is; the message names two of the cases.
    """
    cases_by_side = {
        side: {c.patient: c for c in dataset.cases if c.split == side} for side in ("val", "test")
    }
    for case in dataset.cases:
        for side, patients in cases_by_side.items():
            other = patients.get(case.patient)
            # If validation cases are named, a case without a split trains.
            if other is not None and case.split != side:
                raise InputError(
                    f"{dataset.root}: cases {case.id!r} ({case.split or 'train'}) and {other.id!r} ({side}) "
                    "are scans of one patient; keep a patient on one side"
                )


def _validation_patients(
    dataset: Dataset, usable: Iterable[Case], folds: int, seed: int, fold: int
) -> set[str]:
    """Return the patients that validate in one fold; see :func:`split_patients`."""
    if folds < 2 or not 0 <= fold < folds:
        raise InputError(
            f"expected at least 2 folds and a fold from 0 to {max(folds, 2) - 1}, got {fold} of {folds}"
        )
    ages: dict[str, float] = {}
    for case in usable:
        age = float("inf") if case.age_years is None else case.age_years
        ages[case.patient] = min(age, ages.get(case.patient, float("inf")))
    if (patients := len(ages)) < folds:
        advice = f"use fewer, e.g. --set train.folds={patients} (study: --folds {patients})"
        raise InputError(
            f"{dataset.root}: {folds} folds need as many labeled patients, got {patients}; "
            + (advice if patients > 1 else "label at least two patients")
        )

    def random_key(patient: str) -> str:
        return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()

    by_age = sorted(ages, key=lambda p: (ages[p], random_key(p)))
    groups = [sorted(by_age[i : i + folds], key=random_key) for i in range(0, len(by_age), folds)]
    return {group[fold] for group in groups if fold < len(group)}
