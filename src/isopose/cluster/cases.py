"""Files of a case that are sent to a worker, and the user's own body masks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isopose.cluster.places import Mirror, Place
from isopose.io.cases import Case
from isopose.io.masks import check_masks


def sources_of(case: Case) -> list[Path]:
    """Return the files of a single-channel case: the image, and label file and body mask if any."""
    return [path for path in (case.image, case.label, case.mask) if path is not None]


def case_with_paths(case: Case, paths: Sequence[Path]) -> Case:
    """Return a case with other paths to its files.

    Args:
        case: single-channel.
        paths: the new paths, in the order of :func:`sources_of`.
    """
    places = iter(paths)
    image = next(places)
    label = None if case.label is None else next(places)
    return replace(case, image=image, label=label, mask=None if case.mask is None else next(places))


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
