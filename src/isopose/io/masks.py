"""The user's own body masks, one file for each scan, which replace the automatic ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.cases import Dataset
from isopose.io.endings import READABLE
from isopose.io.images import missing_message, read_labels


def mask_path(folder: Path, name: str) -> Path:
    """Return the path of a scan's mask; whether it exists is checked when it is read.

    Args:
        folder: folder of masks.
        name: name of the scan's results.
    """
    paths = [folder / f"{name}{ending}" for ending in READABLE]
    return next((path for path in paths if path.exists()), paths[0])


def check_masks(folder: Path) -> None:
    """Check that the user's folder of masks exists.

    Raises:
        InputError: the path does not exist, or is not a folder.
    """
    if not folder.is_dir():
        raise InputError(
            f"--masks {folder}: not a folder" if folder.exists() else f"--masks: {missing_message(folder)}"
        )


def with_masks(dataset: Dataset, folder: Path | None) -> Dataset:
    """Return a dataset whose cases have the masks ``FOLDER/CASE.nii.gz``; unchanged without a folder.

    Raises:
        InputError: there is no such folder.
    """
    if folder is None:
        return dataset
    check_masks(folder)
    cases = tuple(replace(case, mask=mask_path(folder, case.id)) for case in dataset.cases)
    return replace(dataset, cases=cases)


def read_mask(path: Path, like: Volume) -> np.ndarray:
    """Read a body mask on a scan's grid.

    Args:
        path: a label file; every value except 0 is body.
        like: the scan.

    Returns:
        Booleans ``(z, y, x)`` in the scan's stored order.

    Raises:
        InputError: missing, unreadable, on another grid, or empty.
    """
    mask: np.ndarray = read_labels(path, like=like).array > 0
    if not mask.any():
        raise InputError(f"{path}: is empty, expected the body's mask; draw it, or leave --masks out")
    return mask
