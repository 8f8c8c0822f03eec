"""Which cases are scans of one patient: a ``patients.csv`` in the dataset's folder."""

from dataclasses import replace
from pathlib import Path

from isopose.errors import InputError
from isopose.files import composed
from isopose.io.cases import Dataset
from isopose.io.layouts.table import age_in, read_table


def with_patients(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset with patients and ages of its ``patients.csv``, unchanged where it has none.

    It lies in ``folder`` or where the cases are. Columns ``case`` and ``patient``, and if wanted
    ``age_years``. Cases that are not listed stay their own patient; lines of cases that are not there (a part
    of a dataset) are passed over.

    Raises:
        InputError: not such a table, a case twice, or no listed case that is in the dataset.
    """
    path = next((p for p in (folder / "patients.csv", dataset.root / "patients.csv") if p.exists()), None)
    if path is None:
        return dataset
    told: dict[str, tuple[str, float | None]] = {}
    for line, row in read_table(path, ("case", "patient"), ("age_years",)):
        if not row["case"] or not row["patient"]:
            raise InputError(f"{path}: line {line} needs both a case and a patient")
        case_id = composed(row["case"])
        if case_id in told:
            raise InputError(f"{path}: line {line} lists case {case_id!r} again; each case once")
        told[case_id] = (composed(row["patient"]), age_in(path, line, row["age_years"]))
    if not any(case.id in told for case in dataset.cases):
        raise InputError(
            f"{path}: none of its cases is in the dataset, whose ids look like {dataset.cases[0].id!r}"
        )
    cases = []
    for case in dataset.cases:
        patient, age = told.get(case.id, (case.patient, None))
        cases.append(replace(case, patient=patient, age_years=case.age_years if age is None else age))
    return replace(dataset, cases=tuple(cases))
