"""The files that another program wrote for homogenized scans: sort, recognize and restore them."""

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
from isopose.inference.record import volumes_ml
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
class CommandOutput:
    """The files that a program wrote for one scan, as paths relative to a folder.

    Args:
        folder: the folder.
        images: label maps and probability maps.
        npz_files: nnU-Net's probabilities of all classes.
        other_files: all other files, which are not restored.
    """

    folder: Path
    images: tuple[str, ...]
    npz_files: tuple[str, ...]
    other_files: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, names: Sequence[str]) -> "CommandOutput":
        """Sort the files of one scan by their extensions."""
        images = tuple(name for name in names if ending(Path(name)))
        npz_files = tuple(name for name in names if name.lower().endswith(NPZ_EXTENSION))
        # A data file that a header names is part of that image.
        data_files = {path.resolve() for name in images for path in companion_files(folder / name)}
        others = (name for name in names if name not in images and name not in npz_files)
        other_files = tuple(name for name in others if (folder / name).resolve() not in data_files)
        return cls(folder, images, npz_files, other_files)

    @property
    def has_several_images(self) -> bool:
        """Whether there are several maps, which keep the names of their files."""
        return len(self.images) > 1


@dataclass
class RestoredOutput:
    """Restored results of one scan that are not yet written to files.

    Args:
        labels: the label map on the scan's own grid; None if there is none, or more than one.
        label_map_count: number of label maps.
        volumes_ml: volume of each label in ml, by name.
        warnings: one line each.
    """

    labels: Volume | None = None
    label_map_count: int = 0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


#: Writes a restored map; called with the name of its file or class, and the map.
WriteVolume = Callable[[str, Volume], None]


def visible_files(folder: Path) -> list[str]:
    """Return the visible files of a folder and of all below it, as relative paths in order."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not any(part[0] == "." for part in path.parts))


def sort_by_case(names: Iterable[str], cases: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return files by case, and the files that belong to no case.

    A file belongs to a case if its name, or that of a folder around it, is the case's id or begins with it
    and an underscore or a dot. If this holds for several cases, the one with the longest id is taken.
    """
    by_case, unassigned = {case: list[str]() for case in cases}, list[str]()
    for name in names:
        parts = [composed(part) for part in PurePosixPath(name).parts]
        matches = [
            c for c in by_case if any(part == c or part.startswith((f"{c}_", f"{c}.")) for part in parts)
        ]
        if matches:
            by_case[max(matches, key=len)].append(name)
        else:
            unassigned.append(name)
    return by_case, unassigned


def restore_output(
    output: CommandOutput,
    transform: Transform,
    labels: Labels,
    write_map: WriteVolume,
    write_class: WriteVolume,
) -> RestoredOutput:
    """Restore the files that a program wrote for one scan to the scan's own grid.

    Maps of whole numbers are label maps: each value is interpolated linearly, and the label with the largest
    share is taken. Other maps with values from 0 to 1 are one class's probability and are restored linearly.
    If nnU-Net's probabilities of all classes lie beside a label map, the restored label map is their argmax.
    All other files are listed in the warnings.

    Args:
        output: files of the scan.
        transform: of the scan.
        labels: names of the label values; may be empty.
        write_map: called with the name of a file, without its extension, and its restored map, uint8 or
            float32. It is not called for a label map that is the only image.
        write_class: called with the name of a class and its restored probability, float32.

    Raises:
        InputError: nothing was written; a map is unreadable, not finite or on another grid; a label has no
            name; or two maps have the same name.
    """
    result = RestoredOutput()
    _check_unique_names(output.images)
    npz_by_stem, maps_used = {_name_without_extension(name): name for name in output.npz_files}, 0
    for name in output.images:
        stem, predicted = _name_without_extension(name), _read(output, name, transform, result.warnings)
        if predicted is None:
            continue
        maps_used += 1
        if predicted.array.dtype != np.uint8:
            write_map(stem, transform.to_native(restored_share(predicted, transform)))
            continue
        if not output.has_several_images:
            _check_values(name, predicted, labels)
        result.label_map_count += 1
        npz_name, restored = npz_by_stem.pop(stem, None), None
        if npz_name is not None:
            restored = _restore_npz(
                output.folder / npz_name, npz_name, predicted, transform, labels, write_class, result.warnings
            )
        if restored is None:
            restored = restored_labels(predicted, transform)
        result.labels = restored if result.label_map_count == 1 else None
        result.volumes_ml |= _volumes(restored, labels, stem if output.has_several_images else None)
        if output.has_several_images:
            write_map(stem, restored)
    for name in npz_by_stem.values():
        result.warnings.append(
            f"{name}: left out: no label map beside it, by which its axes could be checked"
        )
    if output.other_files:
        names = printable_names(output.other_files)
        result.warnings.append(f"left out, neither label maps nor probabilities: {names}")
    if not maps_used:
        why = f" ({'; '.join(result.warnings)})" if result.warnings else ""
        raise InputError(f"the command wrote no label map or probabilities{why}")
    return result


def _check_unique_names(names: Sequence[str]) -> None:
    """Raise an InputError if two files have the same name but for the extension."""
    by_stem: dict[str, str] = {}
    for name in names:
        other = by_stem.setdefault(_name_without_extension(name), name)
        if other != name:
            raise InputError(f"the command wrote both {other} and {name}, expected one map of each name")


def printable_names(names: Sequence[str]) -> str:
    """Return names of files, which may hold any character, for a printed line: at most the first five."""
    return first_names([printable(name) for name in names], MAX_NAMED_FILES)


def _name_without_extension(name: str) -> str:
    suffix = ending(Path(name)) or (NPZ_EXTENSION if name.lower().endswith(NPZ_EXTENSION) else "")
    return composed(name[: len(name) - len(suffix)])


def _read(output: CommandOutput, name: str, transform: Transform, warnings: list[str]) -> Volume | None:
    """Return a map on the homogenized grid: labels as uint8, or one class's probability as float32.

    None, and a warning, if its values are neither labels nor probabilities.
    """
    path = output.folder / name
    try:
        volume = on_image_grid(path, read_volume(path), transform.homogenized)
        low, high = float(volume.array.min()), float(volume.array.max())
        if volume.array.dtype.kind != "f":
            if low >= 0 and high <= 255:
                return volume.with_array(volume.array.astype(np.uint8))
        elif _is_label_map(volume.array, high) and np.rint(low) >= 0 and np.rint(high) <= 255:
            return read_labels(path, like=transform.homogenized, note=warnings.append)
        elif low >= -PROBABILITY_TOLERANCE and high <= 1.0 + PROBABILITY_TOLERANCE:
            return volume
    except InputError as error:
        # The file is in a temporary folder, whose path would not help the user.
        raise InputError(str(error).replace(str(path), f"the command's output {name}")) from None
    warnings.append(
        f"{name}: left out: values from {low:g} to {high:g} are neither labels (0 to 255) nor probabilities "
        "(0 to 1)"
    )
    return None


def _is_label_map(array: np.ndarray, high: float) -> bool:
    """Return True if all values are whole within the tolerance for labels, and not small probabilities.

    Args:
        array: ``(z, y, x)`` floating point.
        high: its maximum.
    """
    if np.rint(high) < 1:
        return not array.any()
    return all(float(np.abs(plane - np.rint(plane)).max()) <= LABEL_TOLERANCE for plane in array)


def _check_values(name: str, volume: Volume, labels: Labels) -> None:
    """Raise an InputError if the labels have names, and a label map has another value."""
    expected = set(labels.values.values())
    unknown = [value for value in values_in(volume.array) if value not in expected]
    if expected and unknown:
        raise InputError(
            f"the command's output {name}: label value {unknown[0]}, expected 0 or one of "
            f"{sorted(expected)}; name it too (--label NAME={unknown[0]}), or give no names"
        )


def _volumes(restored: Volume, labels: Labels, file: str | None) -> dict[str, float]:
    """Return the volume of each label in ml.

    Args:
        restored: the label map.
        labels: names of the values; may be empty.
        file: name of the label map if there are several: volumes are then named by it and by the value, or
            by it alone if its only label is 1.
    """
    if file is None and labels.values:
        return volumes_ml(restored, labels)
    values = values_in(restored.array)
    ml = voxels_of(restored.array) * restored.voxel_ml
    if file is not None and set(values) <= {1}:
        return {file: float(ml[1])}
    return {str(value) if file is None else f"{file} {value}": float(ml[value]) for value in values}


def _restore_npz(
    path: Path,
    name: str,
    label_map: Volume,
    transform: Transform,
    labels: Labels,
    write: WriteVolume,
    warnings: list[str],
) -> Volume | None:
    """Restore nnU-Net's probabilities and return their label map; None, with a warning, if they are invalid.

    Some of nnU-Net's readers store arrays in the patient's axes and not in the file's. The order is found by
    comparison with the label map beside them or, if that is empty, from nnU-Net's plans: with the wrong axes
    left and right would be exchanged.
    """
    array = _read_npz(path)
    if array is None or array.ndim != 4 or array.shape[1:] != label_map.array.shape:
        warnings.append(f"{name}: left out: not nnU-Net's probabilities of each class on the scan's grid")
        return None
    if not _sums_to_one(array):
        warnings.append(f"{name}: left out: its classes do not add up to 1 (nnU-Net's regions do not)")
        return None
    argmax = array.argmax(axis=0)
    file_order = _labels_agree(argmax, label_map.array)
    # nibabel's axes point to the patient's right and front.
    nibabel_order = _labels_agree(argmax[:, ::-1, ::-1], label_map.array)
    ambiguous = file_order and nibabel_order
    if ambiguous and _nnunet_reader(path.parent) in FILE_ORDER_READERS:
        nibabel_order = False
    if file_order == nibabel_order:
        why = "any order of the axes fits" if ambiguous else "it shows other labels than"
        warnings.append(f"{name}: left out: {why} the label map beside it")
        return None
    array = array if file_order else array[:, :, ::-1, ::-1]
    names_by_value = {value: label for label, value in labels.values.items()}
    values = {names_by_value.get(value, str(value)): value for value in range(1, len(array))}
    classes = (
        (class_name, label_map.with_array(np.ascontiguousarray(array[value], dtype=np.float32)))
        for class_name, value in values.items()
    )
    return restore_classes(classes, values, transform, write)


def _labels_agree(first: np.ndarray, second: np.ndarray) -> bool:
    """Return True if two label maps agree within the union of their foregrounds, or both are empty."""
    foreground = (first > 0) | (second > 0)
    agreement = first[foreground] == second[foreground]
    return not foreground.any() or bool(np.mean(agreement) >= MIN_ARGMAX_AGREEMENT)


def _nnunet_reader(folder: Path) -> str | None:
    """Return the name of the reader in nnU-Net's plans, which it writes beside its results."""
    plans = earlier_record(folder / "plans.json") or {}
    name = plans.get("image_reader_writer")
    return name if isinstance(name, str) else None


def _read_npz(path: Path) -> np.ndarray | None:
    """Return the array ``(class, z, y, x)`` of an NPZ file; None if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            array = next((file[key] for key in NPZ_KEYS if key in file), None)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return array if array is not None and array.dtype.kind == "f" else None


def _sums_to_one(array: np.ndarray) -> bool:
    """Return whether probabilities ``(class, z, y, x)`` are finite and add up to 1, slice by slice."""
    sums = (array[:, z].sum(axis=0, dtype=np.float32) for z in range(array.shape[1]))
    return all(bool((np.abs(plane - 1.0) <= SUM_TOLERANCE).all()) for plane in sums)
