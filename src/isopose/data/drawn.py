"""Find which voxels and slices of a scan were not annotated."""

import numpy as np

from isopose.choices import Undrawn
from isopose.labels import IGNORED, Labels

#: Fewest labeled slices whose distances can be called regular.
_MIN_LABELED_SLICES = 3


def classes_of(array: np.ndarray, labels: Labels, undrawn: Undrawn) -> np.ndarray:
    """Convert a label map to classes; voxels that were not annotated become :data:`isopose.labels.IGNORED`.

    With ``undrawn="ignore"`` this includes all slices without any label, if the scan is sparsely annotated:
    if it has an unlabeled slice between two labeled ones, or a single labeled slice. All other scans count as
    completely annotated, also those without any label.

    Args:
        array: stored values ``(z, y, x)``, reoriented: z are the slices.
        labels: names and stored values.
        undrawn: meaning of slices without any label, ``background`` or ``ignore``.

    Returns:
        uint8 of the same shape.

    Raises:
        InputError: a value is unknown or not a whole number.
    """
    classes = labels.to_classes(array)
    if undrawn == "ignore":
        is_labeled = np.asarray((classes > 0).any(axis=(1, 2)))
        labeled = np.flatnonzero(is_labeled)
        if len(labeled) == 1 or (len(labeled) and not is_labeled[labeled[0] : labeled[-1]].all()):
            classes[~is_labeled] = IGNORED
    return classes


def structures(classes: np.ndarray) -> np.ndarray:
    """Return booleans of the same shape: True for structures, False for background and :data:`IGNORED`."""
    return (classes > 0) & (classes != IGNORED)


def interval_of(is_labeled: np.ndarray) -> int | None:
    """Return n if every n-th slice is labeled and those between are not.

    A structure that ends and begins again leaves a gap of several intervals, so every distance must be a
    multiple of the smallest, and most must be the smallest itself.

    Args:
        is_labeled: ``(z,)`` booleans, whether a slice shows a label.

    Returns:
        2 or more; None where labeled slices are neighbors, irregular, or fewer than three.
    """
    distances = np.diff(np.flatnonzero(is_labeled))
    if len(distances) + 1 < _MIN_LABELED_SLICES or distances.min() < 2:
        return None
    smallest = int(distances.min())
    regular = not (distances % smallest).any() and 2 * np.count_nonzero(distances == smallest) > len(
        distances
    )
    return smallest if regular else None


def undrawn_warning(classes: np.ndarray) -> str | None:
    """Return a warning where every n-th slice is labeled and those between are background, else None.

    Args:
        classes: ``(z, y, x)`` class indices, z are the slices.
    """
    is_labeled = np.asarray(structures(classes).any(axis=(1, 2)))
    interval = interval_of(is_labeled)
    if interval is None or (classes[~is_labeled] == IGNORED).any():
        return None
    return (
        f"only one slice in {interval} is labeled, those between are background; if these were not "
        "annotated, set data.undrawn=ignore (docs/guides/sparse.md)"
    )
