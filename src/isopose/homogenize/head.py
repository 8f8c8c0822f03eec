"""The description of a homogenized dataset: ``homogenize.json``, ``dataset.json`` and ``patients.csv``."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from isopose.data.modality import modality_of
from isopose.errors import InputError
from isopose.files import composed, write_json, write_text
from isopose.homogenize.case import IMAGE_EXTENSION, CaseOutcome, HomogenizeSettings
from isopose.homogenize.estimator import PoseEstimator
from isopose.homogenize.record import FOLDER, FORMAT, HEAD
from isopose.io.cases import Case, Dataset
from isopose.models.folder import versions
from isopose.outputs import claim, sweep
from isopose.settings import DataConfig
from isopose.version import __version__


def head_of(dataset: Dataset, settings: HomogenizeSettings, estimator: PoseEstimator) -> dict[str, Any]:
    """Return the values of ``homogenize.json`` for all cases."""
    return {
        "format": FORMAT,
        "complete": False,
        "versions": versions(),
        "settings_sha256": settings.sha256,
        "modality": estimator.modality,
        "plane": estimator.data.plane,
        "per": settings.config.per,
        "crop": settings.config.crop,
        "scale_z": settings.config.scale_z,
        "poses_from": estimator.origin,
        "poses_sha256": estimator.sha256,
        "reference": {
            "kind": estimator.reference.kind,
            "sha256": estimator.reference.sha256,
            "case": estimator.reference.case,
            "size": estimator.config.size,
            "pixel_mm": estimator.pixel_mm,
            "side_mm": estimator.side_mm,
        },
        # nnU-Net requires consecutive values; restoring converts them to the dataset's own again.
        "labels": {
            name: {"value": value, "stored": dataset.labels.values[name]}
            for value, name in enumerate(dataset.labels.names, start=1)
        },
        "cases": [],
        "failed": [],
    }


def check_claim(settings: HomogenizeSettings, dataset: Dataset) -> None:
    """Check that the folder is absent, empty, or of a run with the same settings and cases."""
    earlier_head = claim(
        settings.root,
        settings.root / HEAD,
        {"settings_sha256": settings.sha256},
        other="was homogenized by another isopose or with another model, settings or labels",
        strange="is not empty and holds no homogenized dataset",
    )
    if earlier_head is None:
        return
    records = (path for path in (settings.root / FOLDER).glob("*.json") if not path.name.startswith("."))
    known = {case.id for case in dataset.cases} | {case.name for case in dataset.unusable}
    unknown = {composed(path.stem) for path in records} - known
    if unknown:
        raise InputError(
            f"{settings.root}: holds case {min(unknown)!r}, which {dataset.root} does not have; "
            "choose another folder"
        )


def begin(settings: HomogenizeSettings, head: dict[str, Any]) -> None:
    """Write the incomplete head, before any case; remove the partial files of interrupted runs."""
    sweep(settings.root)
    # Until all cases were tried this is not a dataset.
    (settings.root / "dataset.json").unlink(missing_ok=True)
    write_json(settings.root / HEAD, head)


def _channel_names(dataset: Dataset, head: dict[str, Any]) -> dict[str, str]:
    """Return the channels' names for ``dataset.json``; a single one is named by its modality."""
    names = dataset.channels
    if len(names) == 1 and modality_of(DataConfig(), names) != head["modality"]:
        names = (head["modality"].upper(),)
    return {str(number): name for number, name in enumerate(names)}


def finish(
    dataset: Dataset, settings: HomogenizeSettings, head: dict[str, Any], outcomes: Sequence[CaseOutcome]
) -> None:
    """Write ``dataset.json`` and ``patients.csv`` of all finished cases, then the complete head."""
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    failed = [outcome.name for outcome in outcomes if outcome.record is None]
    if records:
        ids = {record.case for record in records}
        patients = _patients_csv([case for case in dataset.cases if case.id in ids])
        if patients:
            write_text(settings.root / "patients.csv", patients)
        description = {
            "name": f"{dataset.name} in one pose and size",
            "description": f"homogenized by isopose {__version__}; see {HEAD}",
            "channel_names": _channel_names(dataset, head),
            **dataset.labels.for_nnunet(),
            "numTraining": sum(record.part == "Tr" for record in records),
            "file_ending": IMAGE_EXTENSION,
        }
        write_json(settings.root / "dataset.json", description)
    cases = [record.case for record in records]
    write_json(settings.root / HEAD, {**head, "complete": True, "cases": cases, "failed": failed})


def _patients_csv(cases: Sequence[Case]) -> str:
    """Return ``patients.csv`` with numbers instead of patients' ids; empty if it would add nothing."""
    if all(case.patient == case.id and case.age_years is None for case in cases):
        return ""
    numbers = {patient: number for number, patient in enumerate(sorted({case.patient for case in cases}))}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "age_years"])
    for case in cases:
        age = "" if case.age_years is None else case.age_years
        writer.writerow([case.id, f"patient_{numbers[case.patient]:03d}", age])
    return text.getvalue()
