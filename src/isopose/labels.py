"""The labels of a dataset: names, stored values, and the unions that are scored as well."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isopose.errors import InputError

#: Class of voxels that were not annotated: neither background nor a structure. No dataset has as many
#: structures.
IGNORED = 255
#: Name of these voxels in a dataset's labels, as in nnU-Net.
IGNORE = "ignore"
#: Values up to this one are counted one by one.
FEW_VALUES = 6
#: Words in a label's name that name a side of the body.
SIDES = {"left": "left", "lt": "left", "l": "left", "right": "right", "rt": "right", "r": "right"}
_GREEN, _YELLOW = "#3ddc84", "#ffd23f"
#: Okabe and Ito's color-blind-safe palette, without colors close to these and to the figures' lines.
_PALETTE = ("#cc79a7", "#0072b2", "#d55e00", "#f0e442", "#009e73", "#999999")


@dataclass(frozen=True)
class Labels:
    """Names and stored values of the structures of a dataset, background (0) left out.

    Args:
        values: name to stored value, for example ``{"kidney": 1, "tumor": 2}``; values from 1 to 255, not
            necessarily consecutive; empty for a dataset without labels.
        unions: name to the names it joins, scored in addition to the single labels. KiTS scores
            ``{"kidney+tumor": ("kidney", "tumor")}``, which :meth:`create` adds.
        ignore: stored value of voxels that were not annotated, the highest of all; None: all are annotated.
        regions: labels and unions that the U-Net's loss compares, each with the value that nnU-Net writes for
            it (``regions_class_order``), later ones over earlier ones; empty: it compares the labels.

    Raises:
        InputError: a value is used twice or out of range, a label is called background or ignore, a union
            names an unknown label or has a label's name, ``ignore`` is not the highest value, or the regions
            do not give every value back.
    """

    values: Mapping[str, int]
    unions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignore: int | None = None
    regions: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 255:
                raise InputError(f"labels: {name!r} has value {value!r}, expected an integer from 1 to 255")
            if name == "background":
                raise InputError(f"labels: 'background' must have the value 0, not {value}")
            if name == IGNORE:
                raise InputError(
                    f"labels: 'ignore' is for unannotated voxels, not a structure of value {value}"
                )
        if len(self.values) >= IGNORED:
            raise InputError(f"labels: expected at most {IGNORED - 1} labels, got {len(self.values)}")
        if len(set(self.values.values())) < len(self.values):
            raise InputError(f"labels: a value is used twice in {dict(self.values)}")
        for union, members in self.unions.items():
            unknown = set(members) - set(self.values)
            if unknown or union in self.values:
                raise InputError(
                    f"labels: union {union!r} of {sorted(members)} is not of {list(self.values)}"
                )
        self._check_ignore()
        self._check_regions()

    def _check_ignore(self) -> None:
        highest = max(self.values.values(), default=0)
        ignore = self.ignore
        if ignore is None:
            return
        if isinstance(ignore, bool) or not isinstance(ignore, int) or not highest < ignore <= 255:
            raise InputError(
                f"labels: 'ignore' has value {ignore!r}, expected the highest of all, a whole number from "
                f"{highest + 1} to 255"
            )

    def _check_regions(self) -> None:
        targets, written = self.targets(), dict[int, int]()
        for name, value in self.regions.items():
            if value not in targets.get(name, ()):
                raise InputError(
                    f"labels: regions_class_order writes {value!r} for region {name!r}, expected one of its "
                    f"values {sorted(targets.get(name, ()))}"
                )
            written |= dict.fromkeys(targets[name], value)
        lost = [value for value in sorted(self.values.values()) if written.get(value) != value]
        if self.regions and lost:
            raise InputError(
                f"labels: regions_class_order {list(self.regions.values())} writes {written.get(lost[0], 0)} "
                f"where the value is {lost[0]}; order the regions from large to small, one for each value"
            )

    @classmethod
    def create(
        cls,
        values: Mapping[str, int],
        unions: Mapping[str, tuple[str, ...]] | None = None,
        regions: Mapping[str, int] | None = None,
    ) -> "Labels":
        """Create labels; without given unions, add KiTS's union of kidney and tumor where both are labels.

        Args:
            values: name to stored value, at least one; ``ignore`` names voxels that were not annotated.
            unions: see the class; None: the default.
            regions: see the class; None: none.

        Raises:
            InputError: no label, or one of the errors of the class.
        """
        ignore = values.get(IGNORE)
        values = {name: value for name, value in values.items() if name != IGNORE}
        if not values:
            raise InputError("labels: expected at least one label besides background")
        if unions is None:
            tumor = next((name for name in ("tumor", "tumour") if name in values), None)
            unions = {f"kidney+{tumor}": ("kidney", tumor)} if tumor and "kidney" in values else {}
        return cls(values, dict(unions), ignore, dict(regions or {}))

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON holds exactly; ``ignore`` and ``regions`` only where there are."""
        unions = {union: list(members) for union, members in self.unions.items()}
        further: dict[str, Any] = {} if self.ignore is None else {IGNORE: self.ignore}
        if self.regions:
            further["regions"] = dict(self.regions)
        return {"values": dict(self.values), "unions": unions, **further}

    @classmethod
    def from_json(cls, values: Any) -> "Labels":
        """Return the labels that :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: other values.
            InputError: one of the errors of the class.
        """
        unions = {str(union): tuple(members) for union, members in values["unions"].items()}
        named = {str(name): int(value) for name, value in values["values"].items()}
        ignore, regions = values.get(IGNORE), values.get("regions", {})
        return cls(
            named,
            unions,
            None if ignore is None else int(ignore),
            {str(name): int(value) for name, value in regions.items()},
        )

    @property
    def stored(self) -> dict[str, int]:
        """Stored values by name, with ``ignore`` where there is such a value: what :meth:`create` takes."""
        return dict(self.values) | ({} if self.ignore is None else {IGNORE: self.ignore})

    @property
    def names(self) -> tuple[str, ...]:
        """Names in class order: class ``c`` (1, 2, ...) is ``names[c - 1]``, by ascending stored value."""
        return tuple(sorted(self.values, key=lambda name: self.values[name]))

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.values) + 1

    def targets(self) -> dict[str, tuple[int, ...]]:
        """Return the targets of scoring: name to stored values, single labels first."""
        single = {name: (self.values[name],) for name in self.names}
        return single | {u: tuple(self.values[m] for m in members) for u, members in self.unions.items()}

    def loss_targets(self) -> dict[str, tuple[int, ...]]:
        """Return the targets of the U-Net's loss: name to classes, the regions or else each label."""
        of_value = {self.values[name]: index for index, name in enumerate(self.names, start=1)}
        targets = self.targets()
        return {
            name: tuple(sorted(of_value[value] for value in targets[name]))
            for name in self.regions or self.names
        }

    def for_nnunet(self) -> dict[str, Any]:
        """Return ``labels`` of nnU-Net's ``dataset.json``, and ``regions_class_order`` if there are regions.

        Values are consecutive, in the order of the stored ones, as nnU-Net wants them.
        """
        ignore = {} if self.ignore is None else {IGNORE: self.classes}
        targets = {name: list(c) if len(c) > 1 else c[0] for name, c in self.loss_targets().items()}
        labels = {"background": 0, **targets, **ignore}
        if not self.regions:
            return {"labels": labels}
        order = [sorted(self.values.values()).index(value) + 1 for value in self.regions.values()]
        return {"labels": labels, "regions_class_order": order}

    def to_nnunet(self, array: np.ndarray) -> np.ndarray:
        """Convert stored values to those that :meth:`for_nnunet` describes, uint8.

        Args:
            array: stored values, any shape.

        Raises:
            InputError: a value is unknown or not a whole number.
        """
        classes = self.to_classes(array)
        if self.ignore is not None:
            classes[classes == IGNORED] = self.classes
        return classes

    def to_classes(self, array: np.ndarray) -> np.ndarray:
        """Convert stored values to class indices 0, 1, ..., uint8; the value to ignore to :data:`IGNORED`.

        Args:
            array: stored values, any shape.

        Raises:
            InputError: a value is unknown or not a whole number.
        """
        present = _present(array)
        allowed = sorted(self.stored.values())
        unknown = [v for v in present.tolist() if v not in {0, *allowed}]
        if unknown:
            raise InputError(f"unknown label value {unknown[0]}, expected 0 or one of {allowed}")
        table = np.zeros(256, dtype=np.uint8)
        for index, name in enumerate(self.names, start=1):
            table[self.values[name]] = index
        if self.ignore is not None:
            table[self.ignore] = IGNORED
        return table[array.astype(np.uint8, copy=False)]

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """Convert class indices to stored values, uint8; the array itself where both are the same.

        Args:
            classes: whole numbers from 0 to the number of labels, any shape.
        """
        table = np.array([0, *(self.values[name] for name in self.names)], dtype=np.uint8)
        if np.array_equal(table, np.arange(len(table))):
            return classes.astype(np.uint8, copy=False)
        return table[classes]


def mirrored_classes(names: Sequence[str]) -> tuple[int, ...]:
    """Return the class that each class becomes in a mirror image: left and right partners are exchanged.

    A side is the word left or right, or L, R, Lt, Rt, anywhere in a name: ``kidney_left``, ``left kidney``,
    ``KidneyLeft``, ``leftkidney``, ``kidney_L``. The partner's name has the same other words. Sides in other
    languages (``rein gauche``) are not recognized.

    Args:
        names: of the classes from 1, in class order (:attr:`Labels.names`).

    Returns:
        For each class from 0 (background) its partner; the class itself where its name has no side. The
        mapping is its own inverse.

    Raises:
        InputError: a name has a side and not exactly one partner.
    """
    words = [words_of(name) for name in names]
    partners = [0]
    for number, (name, name_words) in enumerate(zip(names, words, strict=True)):
        mirrored_words = [{"left": "right", "right": "left"}.get(word, word) for word in name_words]
        matches = (
            [number]
            if mirrored_words == name_words
            else [n for n, other in enumerate(words) if other == mirrored_words]
        )
        if not matches:
            matches = [
                n for n, other in enumerate(words) if n != number and sorted(other) == sorted(mirrored_words)
            ]
        if len(matches) != 1:
            raise InputError(
                f"label {name!r} names a side, expected one label that names its other side, got "
                f"{len(matches)} among {', '.join(names)}"
            )
        partners.append(matches[0] + 1)
    for name, partner in zip(names, partners[1:], strict=True):
        if partners[partner] != names.index(name) + 1:
            other = names[partner - 1]
            raise InputError(
                f"labels {name!r} and {other!r} are not each other's only partner on the other side"
            )
    return tuple(partners)


def words_of(name: str) -> list[str]:
    """Split a label's name into lower-case words; words for a side become ``left`` or ``right``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    words = []
    for word in filter(None, re.split(r"[\W_]+", spaced)):
        # A side may be joined to a word of three letters or more; bright, cleft and upright contain none.
        joined = re.fullmatch(r"(left|right)(\w{3,})|(\w{3,})(left|right)", word)
        words += [part for part in joined.groups() if part] if joined else [word]
    return [SIDES.get(word, word) for word in words]


def _present(array: np.ndarray) -> np.ndarray:
    """Return the values that occur; uint8 values are counted, since sorting a scan takes a second."""
    if array.dtype != np.uint8 or array.ndim < 2:
        return np.unique(array)
    return np.flatnonzero(voxels_of(array))


def voxels_of(labels: np.ndarray) -> np.ndarray:
    """Count the voxels of each value.

    Args:
        labels: uint8, at least two dimensions.

    Returns:
        ``(256,)`` counts of the values 0 to 255.
    """
    counts = np.zeros(256, dtype=np.int64)
    # Plane by plane, because bincount converts its input to eight bytes per voxel. A comparison takes a tenth
    # of its time.
    for plane in labels:
        highest = int(plane.max(initial=0))
        if highest > FEW_VALUES:
            counts += np.bincount(plane.ravel(), minlength=256)
            continue
        class_counts = [np.count_nonzero(plane == value) for value in range(1, highest + 1)]
        counts[: highest + 1] += [plane.size - sum(class_counts), *class_counts]
    return counts


def class_colors(label_names: Sequence[str]) -> tuple[str, ...]:
    """Return a color for each class from 1: kidney green and tumor yellow, as in the paper.

    Args:
        label_names: in class order.

    Returns:
        Hexadecimal RGB colors.
    """
    others = iter(range(len(label_names)))
    colors = []
    for name in label_names:
        lowered = name.lower()
        if "tumor" in lowered or "tumour" in lowered:
            colors.append(_YELLOW)
        elif "kidney" in lowered and _GREEN not in colors:
            colors.append(_GREEN)
        else:
            colors.append(_PALETTE[next(others) % len(_PALETTE)])
    return tuple(colors)
