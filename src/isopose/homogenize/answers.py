"""Assign the files that another program wrote to scans, recognize their kind, and restore them."""

import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from isopose.errors import InputError, first_names, printable
from isopose.files import composed
from isopose.geometry.volume import Volume
from isopose.homogenize.restore import PROBABILITY_TOLERANCE, restore_classes
from isopose.homogenize.transform import Transform
from isopose.homogenize.warping import restored_labels, restored_share, values_in
from isopose.io.endings import ending
from isopose.io.images import LABEL_TOLERANCE, on_image_grid, read_labels, read_volume
from isopose.io.sources import companion_files
from isopose.labels import Labels, voxels_of
from isopose.outputs import earlier_record

#: Extension of nnU-Net's files of probabilities, and the array's name in its versions.
NPZ_EXTENSION, NPZ_KEYS = ".npz", ("probabilities", "softmax")
#: Largest deviation of a sum of probabilities from 1 that rounding to 16 bits may cause.
SUM_TOLERANCE = 0.02
#: Fraction of the foreground in which a label map must equal the argmax, if both have the same axis order.
MIN_ARGMAX_AGREEMENT = 0.99
#: Number of files named in a message.
MAX_NAMED_FILES = 5
#: nnU-Net's readers, by their names in its plans, that keep the axis order of a file.
FILE_ORDER_READERS = ("SimpleITKIO", "NibabelIO")


@dataclass(frozen=True)
class Answer:
    """The files that a program wrote for one scan, as paths relative to a folder.

    Args:
        folder: the folder.
        images: label maps and probability maps.
        packed: nnU-Net's probabilities of all classes (``.npz``).
        others: all other files, which are not restored.
    """

    folder: Path
    images: tuple[str, ...]
    packed: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether there are several maps, which keep the names of their files."""
        return len(self.images) > 1


@dataclass
class RestoredAnswer:
    """Restored results of one scan that are not yet written to files.

    Args:
        labels: the label map on the scan's own grid; None if there is none, or more than one.
        label_maps: number of label maps.
        volumes_ml: volume of each label in ml, by name.
        notes: warnings, one line each.
    """

    labels: Volume | None = None
    label_maps: int = 0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


#: Writes a restored map; called with the name of its file or class, and the map.
Write = Callable[[str, Volume], None]


def visible_files(folder: Path) -> list[str]:
    """Return the visible files of a folder and of all below it, as relative paths in order."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not any(part[0] == "." for part in path.parts))


def answer_of(folder: Path, names: Sequence[str]) -> Answer:
    """Sort the files of one scan by their extensions into images, packed probabilities and others."""
    images = tuple(name for name in names if ending(Path(name)))
    packed = tuple(name for name in names if name.lower().endswith(NPZ_EXTENSION))
    # A data file that a header names is part of that image.
    parts = {path.resolve() for name in images for path in companion_files(folder / name)}
    others = (name for name in names if name not in images and name not in packed)
    return Answer(folder, images, packed, tuple(n for n in others if (folder / n).resolve() not in parts))


def sort_by_case(names: Iterable[str], cases: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return files by case, and the files that belong to no case.

    A file belongs to a case if its name, or that of a folder around it, is the case's id or begins with it
    and an underscore or a dot. If this holds for several cases, the one with the longest id is taken.
    """
    by_case, unassigned = {case: list[str]() for case in cases}, list[str]()
    for name in names:
        parts = [composed(part) for part in PurePosixPath(name).parts]
        fitting = [
            c for c in by_case if any(part == c or part.startswith((f"{c}_", f"{c}.")) for part in parts)
        ]
        if fitting:
            by_case[max(fitting, key=len)].append(name)
        else:
            unassigned.append(name)
    return by_case, unassigned


def restore_answer(
    answer: Answer, transform: Transform, labels: Labels, write_map: Write, write_class: Write
) -> RestoredAnswer:
    """Restore the files that a program wrote for one scan to the scan's own grid.

    Maps of whole numbers are label maps: each value is interpolated linearly, and the label with the largest
    share is taken. Other maps with values from 0 to 1 are one class's probability and are restored linearly.
    If nnU-Net's probabilities of all classes lie beside a label map, the restored label map is their argmax.
    All other files are listed in the notes.

    Args:
        answer: files of the scan.
        transform: of the scan.
        labels: names of the label values; may be empty.
        write_map: called with the name of a file, without its extension, and its restored map, uint8 or
            float32. It is not called for a label map that is the only image.
        write_class: called with the name of a class and its restored probability, float32.

    Raises:
        InputError: nothing was written; a map is unreadable, not finite or on another grid; a label has no
            name; or two maps have the same name.
    """
    result = RestoredAnswer()
    _check_apart(answer.images)
    packed, maps_used = {_stem(name): name for name in answer.packed}, 0
    for name in answer.images:
        predicted = _read(answer, name, transform, result.notes)
        if predicted is None:
            continue
        maps_used += 1
        if predicted.array.dtype != np.uint8:
            probability_map = transform.reorientation.undo(restored_share(predicted, transform))
            write_map(_stem(name), transform.native.with_array(probability_map))
            continue
        if not answer.several:
            _check_named(name, predicted, labels)
        result.label_maps += 1
        packed_name = packed.pop(_stem(name), None)
        restored = None
        if packed_name is not None:
            restored = _from_packed(
                answer.folder / packed_name, packed_name, predicted, transform, labels, write_class, result
            )
        if restored is None:
            restored = restored_labels(predicted, transform)
        result.labels = restored if result.label_maps == 1 else None
        result.volumes_ml |= _volumes(restored, labels, _stem(name) if answer.several else None)
        if answer.several:
            write_map(_stem(name), restored)
    for name in packed.values():
        result.notes.append(f"{name}: left out: no label map beside it, by which its axes could be checked")
    if answer.others:
        result.notes.append(f"left out, neither label maps nor probabilities: {listed_names(answer.others)}")
    if not maps_used:
        why = f" ({'; '.join(result.notes)})" if result.notes else ""
        raise InputError(f"the command wrote no label map or probabilities{why}")
    return result


def _check_apart(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_stem(name), name)
        if other != name:
            raise InputError(f"the command wrote both {other} and {name}, expected one map of each name")


def listed_names(names: Sequence[str]) -> str:
    """Return names of files, which may be any bytes, for a line that is printed."""
    return first_names([printable(name) for name in names], MAX_NAMED_FILES)


def _stem(name: str) -> str:
    suffix = ending(Path(name)) or (NPZ_EXTENSION if name.lower().endswith(NPZ_EXTENSION) else "")
    return composed(name[: len(name) - len(suffix)])


def _read(answer: Answer, name: str, transform: Transform, notes: list[str]) -> Volume | None:
    """Return a map on the homogenized grid: labels as uint8, or one class's probability as float32.

    None, and a note, if its values are neither kind's.
    """
    path = answer.folder / name
    try:
        volume = on_image_grid(path, read_volume(path), transform.homogenized)
        low, high = float(volume.array.min()), float(volume.array.max())
        if volume.array.dtype.kind != "f":
            if low >= 0 and high <= 255:
                return volume.with_array(volume.array.astype(np.uint8))
        elif _are_whole(volume.array, high) and np.rint(low) >= 0 and np.rint(high) <= 255:
            return read_labels(path, like=transform.homogenized, note=notes.append)
        elif low >= -PROBABILITY_TOLERANCE and high <= 1.0 + PROBABILITY_TOLERANCE:
            return volume
    except InputError as error:
        # The file is in a temporary folder, whose path would not help the user.
        raise InputError(str(error).replace(str(path), f"the command's output {name}")) from None
    notes.append(
        f"{name}: left out: values from {low:g} to {high:g} are neither labels (0 to 255) nor probabilities "
        "(0 to 1)"
    )
    return None


def _are_whole(array: np.ndarray, high: float) -> bool:
    """Return True if all values are whole within the tolerance for labels, and not small probabilities."""
    if np.rint(high) < 1:
        return not array.any()
    return all(float(np.abs(plane - np.rint(plane)).max()) <= LABEL_TOLERANCE for plane in array)


def _check_named(name: str, volume: Volume, labels: Labels) -> None:
    known = set(labels.values.values())
    unknown = [value for value in values_in(volume.array) if value not in known]
    if known and unknown:
        raise InputError(
            f"the command's output {name}: label value {unknown[0]}, expected 0 or one of "
            f"{sorted(known)}; name it too (--label NAME={unknown[0]}), or give no names"
        )


def _volumes(restored: Volume, labels: Labels, file: str | None) -> dict[str, float]:
    """Return volumes in ml by label, or by file if there are several (with the value unless that is 1)."""
    voxel_ml = float(np.prod(restored.spacing)) / 1000.0
    voxels = voxels_of(restored.array) * voxel_ml
    if file is None and labels.values:
        return {name: float(voxels[list(values)].sum()) for name, values in labels.targets().items()}
    values = values_in(restored.array)
    if file is None:
        return {str(value): float(voxels[value]) for value in values}
    if set(values) <= {1}:
        return {file: float(voxels[1])}
    return {f"{file} {value}": float(voxels[value]) for value in values}


def _from_packed(
    path: Path,
    name: str,
    label_map: Volume,
    transform: Transform,
    labels: Labels,
    write: Write,
    restored: RestoredAnswer,
) -> Volume | None:
    """Restore nnU-Net's probabilities and return their label map; None, with a note, if they are not valid.

    Some of nnU-Net's readers store arrays in the patient's axes and not in the file's. The order is found by
    comparison with the label map beside them or, if that is empty, from nnU-Net's plans: with the wrong axes
    left and right would be exchanged.
    """
    array = _unpacked(path)
    if array is None or array.ndim != 4 or array.shape[1:] != label_map.array.shape:
        restored.notes.append(
            f"{name}: left out: not nnU-Net's probabilities of each class on the scan's grid"
        )
        return None
    if not _add_up_to_one(array):
        restored.notes.append(f"{name}: left out: its classes do not add up to 1 (nnU-Net's regions do not)")
        return None
    best = array.argmax(axis=0)
    # In the file's axes, or in nibabel's, which point to the patient's right and front.
    fits = [_agree(turned, label_map.array) for turned in (best, best[:, ::-1, ::-1])]
    if all(fits) and _reader_of(path.parent) in FILE_ORDER_READERS:
        fits[1] = False
    if sum(fits) != 1:
        why = "any order of the axes fits" if all(fits) else "it shows other labels than"
        restored.notes.append(f"{name}: left out: {why} the label map beside it")
        return None
    array = array if fits[0] else array[:, :, ::-1, ::-1]
    named = {value: label for label, value in labels.values.items()}
    names = [named.get(value, str(value)) for value in range(1, len(array))]
    classes = (
        (class_name, label_map.with_array(np.ascontiguousarray(values, dtype=np.float32)))
        for class_name, values in zip(names, array[1:], strict=True)
    )
    numbers = {class_name: value for value, class_name in enumerate(names, start=1)}
    return restore_classes(classes, numbers, transform, write)


def _agree(best: np.ndarray, labels: np.ndarray) -> bool:
    """Return True if two label maps agree within the union of their foregrounds, or both are empty."""
    marked = (best > 0) | (labels > 0)
    return not marked.any() or bool(np.mean(best[marked] == labels[marked]) >= MIN_ARGMAX_AGREEMENT)


def _reader_of(folder: Path) -> str | None:
    """Return the name of the reader in nnU-Net's plans, which it writes beside its results."""
    plans = earlier_record(folder / "plans.json") or {}
    name = plans.get("image_reader_writer")
    return name if isinstance(name, str) else None


def _unpacked(path: Path) -> np.ndarray | None:
    """Return the array ``(class, z, y, x)`` of an NPZ file; None if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            key = next((key for key in NPZ_KEYS if key in file), None)
            array = None if key is None else file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return array if array is not None and array.dtype.kind == "f" else None


def _add_up_to_one(array: np.ndarray) -> bool:
    """Return whether probabilities ``(class, z, y, x)`` are finite and add up to 1, slice by slice."""
    sums = (array[:, z].sum(axis=0, dtype=np.float32) for z in range(array.shape[1]))
    return all(bool((np.abs(one - 1.0) <= SUM_TOLERANCE).all()) for one in sums)
