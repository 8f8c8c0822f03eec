"""Cases and datasets: the common form of every dataset layout on disk."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from isopose.errors import InputError
from isopose.files import as_stored, composed
from isopose.labels import Labels

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
class Dataset:
    """A named list of cases with common labels.

    Args:
        name: display name, from the folder or ``dataset.json``.
        layout: ``nnunet``, ``decathlon``, ``kits19``, ``kits21`` (KiTS21 and KiTS23),
            ``manifest``, or ``scans`` (scans without labels).
        root: the dataset's folder.
        labels: names and stored values of the structures.
        cases: at least one, sorted by id.
        channels: names of the images of each case, in order.
    """

    name: str
    layout: str
    root: Path
    labels: Labels
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = CT


def dataset_of(
    name: str,
    layout: str,
    root: Path,
    labels: Labels,
    cases: Iterable[Case],
    channels: tuple[str, ...] = CT,
) -> Dataset:
    """Return a dataset with sorted cases after checking that their ids are unique and usable as file names.

    Raises:
        InputError: there is no case, an id is used twice (case-insensitively, as some file systems compare
            names), or an id cannot be a file name.
    """
    named = (replace(c, id=composed(c.id), patient=composed(c.patient)) for c in cases)
    ordered = tuple(sorted(named, key=lambda case: case.id))
    if not ordered:
        raise InputError(f"{root}: no cases here, expected the images of a {layout} dataset")
    by_folded_id: dict[str, str] = {}
    for case in ordered:
        _check_id(root, case.id)
        folded = case.id.casefold()
        if folded in by_folded_id:
            raise InputError(
                f"{root}: case ids must be unique, got {by_folded_id[folded]!r} and {case.id!r}; rename one"
            )
        by_folded_id[folded] = case.id
    return Dataset(name, layout, root, labels, ordered, channels)


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


def _check_id(root: Path, name: str) -> None:
    """Raise an InputError for a case id that cannot be a file name on every system."""
    is_odd = not name or name[0] in ".-~ " or name[-1] in ". " or len(name) > _MAX_ID_LENGTH
    if is_odd or _UNSAFE_CHARACTERS.search(name):
        raise InputError(
            f"{root}: case id {name!r} cannot be a file name; rename it: letters, digits, dots, dashes and "
            f"underscores, the first and the last a letter or digit, at most {_MAX_ID_LENGTH} of them"
        )
