"""Cases and datasets: the common form of every dataset layout on disk."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isopose.errors import InputError, printable
from isopose.files import as_stored, composed
from isopose.labels import Labels
from isopose.outputs import Outcome

#: The values of ``Case.split``.
SPLITS = ("train", "val", "test")
#: Default names of the channels of a dataset.
CT = ("CT",)
_UNSAFE_CHARACTERS = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_MAX_ID_LENGTH = 150


@dataclass(frozen=True)
class Case:
    """One scan of one patient, not yet read.

    Args:
        id: unique in its dataset and usable as a file name on every system.
        image: image file, or folder of a DICOM series; may be missing, which ``isopose check`` reports.
        label: label file, or None if the case has no label; may be missing as well.
        patient: identifier shared by all scans of one patient, which stay in the same split.
        age_years: age at the scan, if known.
        split: ``train``, ``val`` or ``test`` if the dataset defines it, else None.
        further: images of the channels after the first, in the dataset's order.
        mask: file of the body's mask, in place of the automatic one; may be missing.
    """

    id: str
    image: Path
    label: Path | None
    patient: str
    age_years: float | None = None
    split: str | None = None
    further: tuple[Path, ...] = ()
    mask: Path | None = None

    @property
    def images(self) -> tuple[Path, ...]:
        """The images of all channels, in the dataset's order."""
        return (self.image, *self.further)


@dataclass(frozen=True)
class UnusableCase:
    """A case that no results can be named after.

    Args:
        name: as its files name it, printable; not unique, and perhaps not usable as a file name.
        problem: why it cannot be used and what to do, in one line.
    """

    name: str
    problem: str


@dataclass(frozen=True)
class Dataset:
    """A named list of cases with common labels.

    Args:
        name: display name, from the folder or ``dataset.json``.
        layout: ``nnunet``, ``decathlon``, ``kits19``, ``kits21`` (KiTS21 and KiTS23),
            ``manifest``, or ``scans`` (scans without labels).
        root: the dataset's folder.
        labels: names and stored values of the structures.
        cases: sorted by id; at least one, unless some are unusable.
        channels: names of the images of each case, in order.
        unusable: cases that are not among ``cases``, because no results can be named after them.
    """

    name: str
    layout: str
    root: Path
    labels: Labels
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = CT
    unusable: tuple[UnusableCase, ...] = ()


def dataset_of(
    name: str,
    layout: str,
    root: Path,
    labels: Labels,
    cases: Iterable[Case],
    channels: tuple[str, ...] = CT,
    unusable: Iterable[UnusableCase] = (),
) -> Dataset:
    """Return a dataset with sorted cases, whose ids are unique and usable as file names.

    Cases whose id cannot be a file name, or is used twice (case-insensitively, as some file systems compare
    names), are listed as unusable.

    Args:
        name, layout, root, labels, channels: see :class:`Dataset`.
        cases: in any order.
        unusable: cases that are known to be unusable.

    Raises:
        InputError: there is no case.
    """
    named = (replace(c, id=composed(c.id), patient=composed(c.patient)) for c in cases)
    ordered, refused = sorted(named, key=lambda case: case.id), [*unusable]
    if not ordered and not refused:
        raise InputError(f"{root}: no cases here, expected the images of a {layout} dataset")
    ids_by_folded_id: dict[str, list[str]] = {}
    for case in ordered:
        ids_by_folded_id.setdefault(case.id.casefold(), []).append(case.id)
    usable = []
    for case in ordered:
        same = ids_by_folded_id[case.id.casefold()]
        if not is_usable_id(case.id):
            problem = (
                f"{root}: case id {case.id!r} cannot be a file name; rename it: letters, digits, dots, "
                "dashes and underscores, the first and the last a letter or digit, at most "
                f"{_MAX_ID_LENGTH} of them"
            )
        elif len(same) > 1:
            problem = f"{root}: case ids must be unique, got {same[0]!r} and {same[1]!r}; rename one"
        else:
            usable.append(case)
            continue
        refused.append(unusable_case(case.id, problem))
    return Dataset(name, layout, root, labels, tuple(usable), channels, tuple(refused))


def unusable_case(name: str, problem: str) -> UnusableCase:
    """Return an unusable case; unprintable characters of its name and problem are escaped."""
    return UnusableCase(printable(name), printable(problem))


def check_all_usable(dataset: Dataset) -> Dataset:
    """Return a dataset if all of its cases can be used.

    Raises:
        InputError: the first problem of those that cannot.
    """
    if dataset.unusable:
        raise InputError(dataset.unusable[0].problem)
    return dataset


def report_unusable(unusable: Iterable[UnusableCase], say: Callable[[str], None]) -> list[Outcome[Any]]:
    """Report the cases that no results can be named after, and return their outcomes.

    Args:
        unusable: the cases.
        say: called with each line.
    """
    outcomes = []
    for case in unusable:
        say(case.name)
        say(f"  error: {case.problem}")
        outcomes.append(Outcome[Any](case.name, None, case.problem))
    return outcomes


def check_one_channel(dataset: Dataset, command: str) -> None:
    """Refuse a dataset with several channels.

    Args:
        dataset: the user's dataset.
        command: name of the command or option that supports one channel only, for the message.

    Raises:
        InputError: the dataset has several channels.
    """
    if len(dataset.channels) > 1:
        raise InputError(
            f"{dataset.root}: has {len(dataset.channels)} channels ({', '.join(dataset.channels)}), and "
            f"{command} takes one; give a dataset with one of them"
        )


def path_inside(root: Path, listed: object, where: Path) -> Path:
    """Return the path of a file that a JSON file lists relative to the dataset's folder.

    Raises:
        InputError: the entry is not a path, is absolute, or leaves the folder by ``..``.
    """
    if not isinstance(listed, str) or not listed.strip():
        raise InputError(f"{where}: expected a path of a file, got {listed!r}")
    path = Path(listed)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where}: path {listed!r} leaves the dataset's folder; list paths relative to it")
    return as_stored(root / path)


def is_usable_id(name: str) -> bool:
    """Return whether a case id can be a file name on every system."""
    is_odd = not name or name[0] in ".-~ " or name[-1] in ". " or len(name) > _MAX_ID_LENGTH
    # A name that is not UTF-8 has surrogates.
    is_text = not any("\ud800" <= character <= "\udfff" for character in name)
    return is_text and not is_odd and not _UNSAFE_CHARACTERS.search(name)
