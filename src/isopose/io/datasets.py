"""Datasets on disk as one list of cases: nnU-Net v2 raw, KiTS, Decathlon, CSV manifest."""

from collections.abc import Mapping
from pathlib import Path

from isopose.errors import InputError
from isopose.files import read_json
from isopose.io.cases import Case, Dataset, check_all_usable
from isopose.io.layouts.decathlon import open_decathlon
from isopose.io.layouts.kits import kits_folder, open_kits
from isopose.io.layouts.manifest import open_manifest
from isopose.io.layouts.nnunet import open_nnunet
from isopose.io.layouts.patients import with_patients
from isopose.labels import Labels

__all__ = ["Case", "Dataset", "is_dataset", "open_dataset"]


def is_dataset(path: Path) -> bool:
    """Return whether :func:`open_dataset` can open a path (as opposed to a scan or a DICOM series)."""
    path = Path(path)
    if path.is_file():
        return path.suffix.lower() == ".csv" or path.name == "dataset.json"
    return path.is_dir() and ((path / "dataset.json").exists() or kits_folder(path) is not None)


def open_dataset(
    path: Path, labels: Mapping[str, int] | None = None, *, allow_unusable: bool = False
) -> Dataset:
    """List the cases of a dataset; the layout is detected from the files.

    * nnU-Net v2 raw: ``dataset.json`` with ``channel_names``, ``imagesTr``, ``labelsTr``, ``imagesTs``
    * Decathlon and nnU-Net v1: ``dataset.json`` with ``modality`` and lists of files
    * KiTS19, KiTS21, KiTS23: ``case_*/imaging.nii.gz``
    * a CSV manifest: columns ``image``, ``label``, and optionally ``case``, ``patient``, ``age``, ``split``

    An optional ``patients.csv`` (columns ``case``, ``patient``, ``age_years``) in the dataset's folder
    assigns cases to patients. Without it each case is its own patient.

    Args:
        path: the dataset's folder, its ``dataset.json``, or a ``.csv`` file.
        labels: label name to stored value; replaces the labels of the layout.
        allow_unusable: list cases that no results can be named after as unusable, instead of raising an
            error; their problems are then the caller's to report.

    Returns:
        The dataset. Images are not opened and need not exist; ``isopose check`` verifies them.

    Raises:
        InputError: the path does not exist, the layout is unknown, the dataset's description is invalid or
            not supported, or a case id is used twice or cannot be a file name.
    """
    found = _open(path, labels)
    return found if allow_unusable else check_all_usable(found)


def _open(path: Path, labels: Mapping[str, int] | None) -> Dataset:
    path = Path(path)
    own_labels = None if labels is None else Labels.create(labels)
    if not path.exists():
        raise InputError(f"{path}: no such dataset; expected a folder or a CSV manifest")
    if path.is_file() and path.suffix.lower() == ".csv":
        return open_manifest(path, own_labels)
    root = path.parent if path.name == "dataset.json" else path
    if root.is_dir() and (root / "dataset.json").exists():
        return with_patients(_open_by_json(root, own_labels), root)
    if root.is_dir() and (folder := kits_folder(root)) is not None:
        return with_patients(open_kits(folder, own_labels), root)
    raise InputError(
        f"{path}: not a known dataset; expected a folder with dataset.json (nnU-Net, Decathlon) or "
        "with case_*/imaging.nii.gz (KiTS), or a .csv manifest"
    )


def _open_by_json(root: Path, labels: Labels | None) -> Dataset:
    """Open a dataset that has a ``dataset.json``, of nnU-Net v2 or of the Decathlon and nnU-Net v1."""
    where = root / "dataset.json"
    content = read_json(where)
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(content).__name__}")
    if "channel_names" in content or "file_ending" in content:
        return open_nnunet(root, content, labels)
    if "modality" in content or "training" in content:
        return open_decathlon(root, content, labels)
    raise InputError(
        f"{where}: expected the key 'channel_names' (nnU-Net v2) or 'modality' (Decathlon), got "
        f"{', '.join(map(str, content)) or 'none'}"
    )
