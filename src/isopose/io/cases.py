"""Cases and datasets: what every layout on disk becomes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from isopose.errors import InputError
from isopose.files import as_stored, composed
from isopose.labels import Labels

#: What a manifest or a layout may say about a case.
SPLITS = ("train", "val", "test")
_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_LONGEST_ID = 150


@dataclass(frozen=True)
class Case:
    """One scan of one patient, not yet read.

    Args:
        id: unique in its dataset and safe as a file name on every system.
        image: file, or folder of a DICOM series; it may be missing, which ``isopose check`` reports.
        label: label file, or None where the case has none; it may be missing as well.
        patient: scans of one patient share it and stay on one side of every split.
        age_years: age at the scan, if known.
        split: ``train``, ``val`` or ``test`` where the dataset says so, else None.
    """

    id: str
    image: Path
    label: Path | None
    patient: str
    age_years: float | None = None
    split: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A named list of cases that share their labels.

    Args:
        name: for people, from the folder or ``dataset.json``.
        layout: ``nnunet``, ``decathlon``, ``kits19``, ``kits21`` (KiTS21 and KiTS23) or ``manifest``.
        root: folder that holds it.
        labels: names and stored values of its structures.
        cases: at least one, sorted by id.
    """

    name: str
    layout: str
    root: Path
    labels: Labels
    cases: tuple[Case, ...]


def dataset_of(name: str, layout: str, root: Path, labels: Labels, cases: Iterable[Case]) -> Dataset:
    """A dataset of sorted cases, once their ids are known to be unique and safe.

    Raises:
        InputError: no case, an id twice (upper and lower case do not differ on every system), or an id that
            cannot be a file name.
    """
    named = (replace(c, id=composed(c.id), patient=composed(c.patient)) for c in cases)
    ordered = tuple(sorted(named, key=lambda case: case.id))
    if not ordered:
        raise InputError(f"{root}: no cases here, expected the images of a {layout} dataset")
    seen: dict[str, str] = {}
    for case in ordered:
        _check_id(root, case.id)
        folded = case.id.casefold()
        if folded in seen:
            raise InputError(
                f"{root}: case ids must be unique, got {seen[folded]!r} and {case.id!r}; rename one"
            )
        seen[folded] = case.id
    return Dataset(name, layout, root, labels, ordered)


def inside(root: Path, listed: object, where: Path) -> Path:
    """A path that a JSON file lists, below the dataset's folder.

    Raises:
        InputError: not a path, absolute, or leaving the folder by ``..``.
    """
    if not isinstance(listed, str) or not listed.strip():
        raise InputError(f"{where}: expected a path of a file, got {listed!r}")
    path = Path(listed)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where}: path {listed!r} leaves the dataset's folder; list paths relative to it")
    return as_stored(root / path)


def _check_id(root: Path, name: str) -> None:
    odd = not name or name[0] in ".-~ " or name[-1] in ". " or len(name) > _LONGEST_ID
    if odd or _UNSAFE.search(name):
        raise InputError(
            f"{root}: case id {name!r} cannot be a file name; use letters, digits, dot, dash, underscore"
        )
