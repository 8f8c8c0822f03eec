"""Open Medical Segmentation Decathlon and nnU-Net v1 datasets (``dataset.json`` with lists of files)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isopose.errors import InputError
from isopose.io.cases import Case, Dataset, dataset_of, path_inside
from isopose.io.endings import stem
from isopose.labels import Labels


def open_decathlon(root: Path, content: dict[str, Any], labels: Labels | None) -> Dataset:
    """List the cases of a Decathlon or nnU-Net v1 dataset.

    nnU-Net v1 lists images without the channel number in their file names (``_0000``); if a listed file is
    absent, the file with the channel number is used. Resource forks of macOS (``._*``) are skipped.

    Args:
        root: folder of ``dataset.json``.
        content: the parsed ``dataset.json``.
        labels: replaces the labels in ``dataset.json``.

    Raises:
        InputError: a missing key, more than one modality, entries without path, paths outside the folder.
    """
    where = root / "dataset.json"
    for key in ("modality", "training") if labels else ("modality", "labels", "training"):
        if key not in content:
            raise InputError(f"{where}: the key {key!r} is missing; a Decathlon dataset needs it")
    modality = content["modality"]
    if not isinstance(modality, dict) or len(modality) != 1:
        raise InputError(f"{where}: expected one modality (CT), got {modality!r}; split the others off")
    cases = [
        *_entries(root, where, content["training"], "train"),
        *_entries(root, where, content.get("test") or [], "test"),
    ]
    name = str(content.get("name") or root.name)
    channels = tuple(map(str, modality.values()))
    return dataset_of(name, "decathlon", root, labels or _labels(where, content["labels"]), cases, channels)


def _labels(where: Path, described: object) -> Labels:
    """Return the labels of ``{"0": "background", "1": "kidney", ...}``."""
    if not isinstance(described, dict) or not all(str(v).isdigit() for v in described):
        raise InputError(f"{where}: expected 'labels' to map values to names, such as {{'1': 'kidney'}}")
    values: dict[str, int] = {}
    for value, name in described.items():
        if int(value) == 0:
            continue
        if str(name) in values:
            raise InputError(f"{where}: label name {str(name)!r} is used twice; names must be unique")
        values[str(name)] = int(value)
    try:
        return Labels.create(values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _entries(root: Path, where: Path, listed: object, split: str) -> Iterator[Case]:
    if not isinstance(listed, list):
        raise InputError(f"{where}: expected a list of {split} cases, got {type(listed).__name__}")
    for entry in listed:
        pair = isinstance(entry, dict)
        image = path_inside(root, entry.get("image") if pair else entry, where)
        label = path_inside(root, entry["label"], where) if pair and entry.get("label") else None
        if image.name.startswith("._"):
            continue
        if split == "train" and label is None:
            raise InputError(
                f"{where}: training case {image.name!r} has no 'label'; list it under 'test' or add it"
            )
        name = stem(image)
        numbered = image.with_name(f"{name}_0000{image.name[len(name) :]}")
        if not image.exists() and numbered.exists():
            image = numbered
        yield Case(name, image, label, patient=name, split=split)
