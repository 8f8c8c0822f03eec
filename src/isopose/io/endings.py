"""File name extensions of volumes."""

from pathlib import Path

#: Extensions of formats that are one file; a DICOM series is a folder or one of its files.
READABLE = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def ending(path: Path) -> str:
    """Return the readable extension of a file name in lower case (``.nii.gz`` as one), or an empty text."""
    name = Path(path).name.lower()
    return next((e for e in READABLE if name.endswith(e)), "")


def stem(path: Path) -> str:
    """Return a file name without its readable extension: ``scan`` of ``folder/scan.nii.gz``."""
    name = Path(path).name
    return name[: len(name) - len(ending(path))]
