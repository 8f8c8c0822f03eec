"""By which endings a file's name says that it is a volume."""

from pathlib import Path

#: Endings that can be read as one file; a DICOM series is a folder or one of its files.
READABLE = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def ending(path: Path) -> str:
    """The readable ending of a file name in lower case, ``.nii.gz`` as one; empty where there is none."""
    name = Path(path).name.lower()
    return next((e for e in READABLE if name.endswith(e)), "")
