"""Open nnU-Net v2 raw datasets; see nnU-Net's ``dataset_format.md`` and ``region_based_training.md``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isopose.errors import InputError
from isopose.files import composed
from isopose.io.cases import Case, Dataset, dataset_of, inside
from isopose.io.images import READABLE
from isopose.labels import IGNORE, Labels


def open_nnunet(root: Path, content: dict[str, Any], labels: Labels | None) -> Dataset:
    """List the cases of an nnU-Net v2 raw dataset.

    Cases of ``imagesTr`` and ``labelsTr`` are training cases, those of ``imagesTs`` (with optional labels in
    ``labelsTs``) test cases. A ``dataset`` key with explicit paths replaces the training folders.

    Args:
        root: folder of ``dataset.json``.
        content: the parsed ``dataset.json``.
        labels: replaces the labels in ``dataset.json``.

    Raises:
        InputError: a missing key, more than one channel, unusable labels, paths outside the folder.
    """
    where = root / "dataset.json"
    for key in ("channel_names", "labels", "file_ending"):
        if key not in content:
            raise InputError(f"{where}: the key {key!r} is missing; nnU-Net v2 needs it")
    channels = content["channel_names"]
    if not isinstance(channels, dict) or len(channels) != 1:
        raise InputError(f"{where}: expected one channel (CT), got {channels!r}; split the others off")
    end = content["file_ending"]
    if not isinstance(end, str) or end.lower() not in READABLE:
        raise InputError(
            f"{where}: file ending {end!r} cannot be read, expected one of {', '.join(READABLE)}"
        )
    # A dataset of scans to predict may have no labels.
    empty = isinstance(content["labels"], dict) and set(content["labels"]) <= {"background"}
    named = labels or (Labels({}) if empty else region_labels(where, content))
    if content.get("dataset"):
        training = list(_explicit(root, where, content["dataset"]))
    else:
        training = list(_folder(root, "imagesTr", "labelsTr", end, "train"))
    test = list(_folder(root, "imagesTs", "labelsTs", end, "test"))
    if not named.values and any(case.label for case in (*training, *test)):
        raise InputError(f"{where}: labels: expected at least one label besides background")
    name = str(content.get("name") or root.name)
    named_channels = tuple(map(str, channels.values()))
    return dataset_of(name, "nnunet", root, named, [*training, *test], named_channels)


def region_labels(where: Path, content: dict[str, Any]) -> Labels:
    """Return the labels that ``labels`` describes, with values or regions (lists of values).

    A region with one value is a label, a region with several values a union. A value that occurs only in
    larger regions is named ``label_<value>``. With regions, ``regions_class_order`` is needed.

    Args:
        where: ``dataset.json``, for messages.
        content: what it says.

    Raises:
        InputError: the object is invalid, has impossible values or an "ignore" that is not the highest, or
            regions whose ``regions_class_order`` is missing or does not give their values back.
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
            raise InputError(f"{where}: 'ignore' has value {value!r}, expected one whole number, no region")
        if set(listed) == {0} and name != IGNORE:
            continue
        if 0 in listed and len(listed) > 1:
            raise InputError(f"{where}: region {name!r} holds 0, which is background; leave it out")
        if len(set(listed)) == 1:
            values[str(name)] = listed[0]
        else:
            regions[str(name)] = listed
    shown = [name for name in map(str, described) if name != IGNORE and (name in values or name in regions)]
    order = _class_order(where, content, shown) if regions else None
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
        content: what it says.
        names: of the labels and regions, in the order of ``labels``, without background.

    Raises:
        InputError: it is no list of whole numbers, one for each region.
    """
    order = content.get("regions_class_order")
    whole = isinstance(order, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in order)
    if not isinstance(order, list) or not whole or len(order) != len(names):
        raise InputError(
            f"{where}: expected 'regions_class_order' to list {len(names)} values, one for each of the "
            f"regions {', '.join(names)}, as nnU-Net v2 needs it; got {order!r}"
        )
    return dict(zip(names, order, strict=True))


def _folder(root: Path, images: str, labels: str, end: str, split: str) -> Iterator[Case]:
    """Yield the cases of an image and a label folder, also if one of the two files is missing."""
    found: dict[str, Path] = {}
    marked: dict[str, Path] = {}
    for path in _files(root / images, end):
        stem = path.name[: -len(end)]
        if len(stem) < 6 or stem[-5] != "_" or not stem[-4:].isdigit():
            raise InputError(f"{path}: expected a name that ends in _0000{end}, as nnU-Net has it")
        if stem[-4:] != "0000":
            raise InputError(f"{path}: expected one channel (_0000), got another; one channel is supported")
        _add(found, composed(stem[:-5]), path)
    for path in _files(root / labels, end):
        _add(marked, composed(path.name[: -len(end)]), path)
    for name in sorted({*found, *marked}):
        image = found.get(name, root / images / f"{name}_0000{end}")
        expected = marked.get(name, root / labels / f"{name}{end}" if split == "train" else None)
        yield Case(name, image, expected, patient=name, split=split)


def _add(files: dict[str, Path], name: str, path: Path) -> None:
    if name in files:
        raise InputError(f"{path}: another file beside it has the name {name!r} too; keep one")
    files[name] = path


def _files(folder: Path, end: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith(end) and not p.name.startswith("."))


def _explicit(root: Path, where: Path, listed: object) -> Iterator[Case]:
    if not isinstance(listed, dict):
        raise InputError(f"{where}: expected 'dataset' to be an object of case names")
    for name, entry in listed.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list) or "label" not in entry:
            raise InputError(f"{where}: case {name!r} needs 'images' (a list) and 'label'")
        if len(entry["images"]) != 1:
            raise InputError(
                f"{where}: case {name!r} has {len(entry['images'])} images, expected one channel"
            )
        image, label = inside(root, entry["images"][0], where), inside(root, entry["label"], where)
        yield Case(str(name), image, label, patient=str(name), split="train")
