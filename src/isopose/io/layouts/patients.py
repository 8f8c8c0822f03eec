"""Assign cases to patients by a ``patients.csv`` in the dataset's folder."""

from dataclasses import replace
from pathlib import Path

from isopose.errors import InputError
from isopose.files import composed
from isopose.io.cases import Dataset
from isopose.io.layouts.table import parse_age, read_table


def with_patients(dataset: Dataset, folder: Path) -> Dataset:
    """Return the dataset with the patients and ages of its ``patients.csv``; unchanged without that file.

    The file lies in ``folder`` or in the dataset's own folder. Columns: ``case``, ``patient`` and optionally
    ``age_years``. Cases that are not listed remain their own patient. Lines of absent cases are ignored,
    since a dataset may be a subset.

    Raises:
        InputError: the table is invalid, lists a case twice, or lists no case of the dataset.
    """
    path = next((p for p in (folder / "patients.csv", dataset.root / "patients.csv") if p.exists()), None)
    if path is None:
        return dataset
    listed: dict[str, tuple[str, float | None]] = {}
    for line, row in read_table(path, ("case", "patient"), ("age_years",)):
        if not row["case"] or not row["patient"]:
            raise InputError(f"{path}: line {line} needs both a case and a patient")
        case_id = composed(row["case"])
        if case_id in listed:
            raise InputError(f"{path}: line {line} lists case {case_id!r} again; each case once")
        listed[case_id] = (composed(row["patient"]), parse_age(path, line, row["age_years"]))
    if dataset.cases and not any(case.id in listed for case in dataset.cases):
        raise InputError(
            f"{path}: none of its cases is in the dataset, whose ids look like {dataset.cases[0].id!r}"
        )
    cases = []
    for case in dataset.cases:
        patient, age = listed.get(case.id, (case.patient, None))
        cases.append(replace(case, patient=patient, age_years=case.age_years if age is None else age))
    return replace(dataset, cases=tuple(cases))
