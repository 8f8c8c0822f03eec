"""What the works on cases and on scans have in common, and the user's own body masks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isopose.cluster.places import Mirror, Place
from isopose.io.cases import Case
from isopose.io.masks import check_masks
from isopose.outputs import earlier_record, listed


def sources_of(case: Case) -> list[Path]:
    """Return the files of a single-channel case: the image, and label file and body mask if any."""
    return [path for path in (case.image, case.label, case.mask) if path is not None]


def case_with_paths(case: Case, paths: Sequence[Path]) -> Case:
    """Return a case with other paths to its files.

    Args:
        case: single-channel.
        paths: the new paths, in the order of :func:`sources_of`.
    """
    remaining = iter(paths)
    image = next(remaining)
    label = None if case.label is None else next(remaining)
    return replace(case, image=image, label=label, mask=None if case.mask is None else next(remaining))


class CaseItems:
    """Methods of a :class:`~isopose.cluster.cohort.CohortWork` whose items are single-channel cases."""

    def name(self, item: Case) -> str:
        return item.id

    def sources(self, item: Case) -> list[Path]:
        return sources_of(item)

    def with_paths(self, item: Case, paths: list[Path]) -> Case:
        return case_with_paths(item, paths)


class JsonRecords:
    """Methods of a :class:`~isopose.cluster.cohort.CohortWork` whose records are results' JSON files."""

    def read(self, path: Path) -> dict[str, Any] | None:
        record = earlier_record(path)
        return record if record is not None and isinstance(record.get("warnings"), list) else None

    def files(self, item: Any, record: dict[str, Any]) -> set[str]:
        return listed(record)

    def warnings(self, record: dict[str, Any]) -> list[str]:
        return [*record["warnings"]]


def mirror_of_masks(masks: Place | None, below: Path) -> Mirror | None:
    """Mirror the user's own body masks.

    Args:
        masks: folder with one file for each scan, or None.
        below: folder for the mirror of a URL.

    Raises:
        InputError: there is no such folder.
    """
    if masks is None:
        return None
    mirror = Mirror.make(masks, below / "masks")
    check_masks(mirror.folder)
    return mirror
