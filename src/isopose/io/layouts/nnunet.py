"""Open nnU-Net v2 raw datasets; see nnU-Net's ``dataset_format.md`` and ``region_based_training.md``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from isopose.errors import InputError
from isopose.files import composed
from isopose.io.cases import Case, Dataset, dataset_of, path_inside
from isopose.io.endings import READABLE
from isopose.labels import IGNORE, Labels

#: Key of a file: the case, or the channel number.
Key = TypeVar("Key", str, int)


def open_nnunet(root: Path, content: dict[str, Any], labels: Labels | None) -> Dataset:
    """List the cases of an nnU-Net v2 raw dataset.

    Cases of ``imagesTr`` and ``labelsTr`` are training cases, those of ``imagesTs`` (with optional labels in
    ``labelsTs``) test cases. A ``dataset`` key with explicit paths replaces the training folders.

    Args:
        root: folder of ``dataset.json``.
        content: the parsed ``dataset.json``.
        labels: replaces the labels in ``dataset.json``.

    Raises:
        InputError: a missing key, unusable channels or labels, paths outside the folder.
    """
    where = root / "dataset.json"
    for key in ("channel_names", "labels", "file_ending"):
        if key not in content:
            raise InputError(f"{where}: the key {key!r} is missing; nnU-Net v2 needs it")
    channels = _channels(where, content["channel_names"])
    file_ending = content["file_ending"]
    if not isinstance(file_ending, str) or file_ending.lower() not in READABLE:
        raise InputError(
            f"{where}: file ending {file_ending!r} cannot be read, expected one of {', '.join(READABLE)}"
        )
    # A dataset of scans to predict may have no labels.
    empty = isinstance(content["labels"], dict) and set(content["labels"]) <= {"background"}
    dataset_labels = labels or (Labels({}) if empty else region_labels(where, content))
    if content.get("dataset"):
        training = list(_listed_cases(root, where, content["dataset"], channels))
    else:
        training = list(_cases_in_folders(root, "imagesTr", "labelsTr", file_ending, "train", channels))
    test = list(_cases_in_folders(root, "imagesTs", "labelsTs", file_ending, "test", channels))
    if not dataset_labels.values and any(case.label for case in (*training, *test)):
        raise InputError(f"{where}: labels: expected at least one label besides background")
    name = str(content.get("name") or root.name)
    return dataset_of(name, "nnunet", root, dataset_labels, [*training, *test], channels)


def _channels(where: Path, described: object) -> tuple[str, ...]:
    """Return the names of the channels in the order of their numbers."""
    numbered = described if isinstance(described, dict) else {}
    numbers = [str(number) for number in range(len(numbered))]
    if not numbers or set(map(str, numbered)) != set(numbers):
        raise InputError(
            f"{where}: expected 'channel_names' to name the channels 0, 1, ..., such as "
            f"{{'0': 'CT'}}, got {described!r}"
        )
    names = tuple(str(numbered[number]) for number in numbers)
    if len(set(names)) < len(names):
        raise InputError(f"{where}: channel names must be unique, got {', '.join(names)}; rename one")
    return names


def region_labels(where: Path, content: dict[str, Any]) -> Labels:
    """Return the labels that ``labels`` describes, with values or regions (lists of values).

    A region with one value is a label, a region with several values a union. A value that occurs only in
    larger regions is named ``label_<value>``. With regions, ``regions_class_order`` is needed.

    Args:
        where: ``dataset.json``, for messages.
        content: its contents.

    Raises:
        InputError: the object is invalid, has impossible values or an "ignore" that is not the highest, or
            regions whose ``regions_class_order`` is missing or does not reproduce their values.
    """
    described = content["labels"]
    if not isinstance(described, dict):
        raise InputError(f"{where}: expected 'labels' to be an object of names and values")
    values: dict[str, int] = {}
    regions: dict[str, list[int]] = {}
    for name, value in described.items():
        listed = list(value) if isinstance(value, list) else [value]
        if not listed or any(isinstance(v, bool) or not isinstance(v, int) for v in listed):
            raise InputError(
                f"{where}: label {name!r} has value {value!r}, expected a whole number or a list"
            )
        if name == IGNORE and isinstance(value, list):
            raise InputError(
                f"{where}: 'ignore' has value {value!r}, expected one whole number, not a region"
            )
        if set(listed) == {0} and name != IGNORE:
            continue
        if 0 in listed and len(listed) > 1:
            raise InputError(f"{where}: region {name!r} holds 0, which is background; leave it out")
        if len(set(listed)) == 1:
            values[str(name)] = listed[0]
        else:
            regions[str(name)] = listed
    structure_names = [
        name for name in map(str, described) if name != IGNORE and (name in values or name in regions)
    ]
    order = _class_order(where, content, structure_names) if regions else None
    for value in sorted({v for region in regions.values() for v in region} - set(values.values())):
        values[f"label_{value}"] = value
    names = {value: name for name, value in values.items()}
    unions = {region: tuple(names[v] for v in sorted(set(m))) for region, m in regions.items()}
    try:
        return Labels.create(values, unions or None, order)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _class_order(where: Path, content: dict[str, Any], names: list[str]) -> dict[str, int]:
    """Return the value that nnU-Net writes for each region (``regions_class_order``).

    Args:
        where: ``dataset.json``, for messages.
        content: its contents.
        names: of the labels and regions, in the order of ``labels``, without background.

    Raises:
        InputError: it is not a list of whole numbers, one for each region.
    """
    order = content.get("regions_class_order")
    all_whole = isinstance(order, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in order)
    if not isinstance(order, list) or not all_whole or len(order) != len(names):
        raise InputError(
            f"{where}: expected 'regions_class_order' to list {len(names)} values, one for each of the "
            f"regions {', '.join(names)}, as nnU-Net v2 needs it; got {order!r}"
        )
    return dict(zip(names, order, strict=True))


def _cases_in_folders(
    root: Path, images: str, labels: str, end: str, split: str, channels: tuple[str, ...]
) -> Iterator[Case]:
    """Yield the cases of an image and a label folder, also if one of the files is missing."""
    images_by_case: dict[str, dict[int, Path]] = {}
    labels_by_case: dict[str, Path] = {}
    for path in _files(root / images, end):
        stem = path.name[: -len(end)]
        if len(stem) < 6 or stem[-5] != "_" or not stem[-4:].isdigit():
            raise InputError(f"{path}: expected a name that ends in _0000{end}, as nnU-Net has it")
        name, number = composed(stem[:-5]), int(stem[-4:])
        if number >= len(channels):
            raise InputError(
                f"{path}: expected {len(channels)} channel{'s' * (len(channels) > 1)} "
                f"({', '.join(channels)}), as dataset.json names them, got _{number:04d}"
            )
        _add(images_by_case.setdefault(name, {}), number, path)
    for path in _files(root / labels, end):
        _add(labels_by_case, composed(path.name[: -len(end)]), path)
    for name in sorted({*images_by_case, *labels_by_case}):
        case_images = images_by_case.get(name, {})
        image, *further = (
            case_images.get(number, root / images / f"{name}_{number:04d}{end}")
            for number in range(len(channels))
        )
        expected = labels_by_case.get(name, root / labels / f"{name}{end}" if split == "train" else None)
        yield Case(name, image, expected, patient=name, split=split, further=tuple(further))


def _add(files: dict[Key, Path], key: Key, path: Path) -> None:
    if key in files:
        raise InputError(
            f"{path}: another file in its folder is also named {composed(path.name)!r}; keep one"
        )
    files[key] = path


def _files(folder: Path, end: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith(end) and not p.name.startswith("."))


def _listed_cases(root: Path, where: Path, listed: object, channels: tuple[str, ...]) -> Iterator[Case]:
    if not isinstance(listed, dict):
        raise InputError(f"{where}: expected 'dataset' to be an object of case names")
    for name, entry in listed.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list) or "label" not in entry:
            raise InputError(f"{where}: case {name!r} needs 'images' (a list) and 'label'")
        if len(entry["images"]) != len(channels):
            raise InputError(
                f"{where}: case {name!r} has {len(entry['images'])} images, expected "
                f"{len(channels)} ({', '.join(channels)})"
            )
        image, *further = (path_inside(root, one, where) for one in entry["images"])
        label = path_inside(root, entry["label"], where)
        yield Case(str(name), image, label, patient=str(name), split="train", further=tuple(further))
