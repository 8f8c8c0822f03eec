"""Clean up a label map: remove the connected components of a label that a rule takes for false positives.

Voxels are connected if they share a face. The rule of a label, if any, is chosen by cross-validation
(``evaluation/cleaning.py``) and saved with the model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from isopose.data.runs import Runs
from isopose.geometry.frame import Frame
from isopose.geometry.pose import POSE_SIZE, matrix_from_pose
from isopose.labels import Labels
from isopose.strict import STRICT, first_problem


@dataclass(frozen=True)
class Rule:
    """Which connected components of a label are kept.

    Args:
        label: its name.
        keep: ``largest``, the largest component; ``largest on each side``, the largest to the left of the
            body's midline and the largest to the right; ``volume``, every component of at least ``ml``.
        ml: smallest volume of a component in ml; 0 with the other rules.
    """

    label: str
    keep: Literal["largest", "largest on each side", "volume"]
    ml: float = 0.0
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __str__(self) -> str:
        """Return the rule's name, with the volume if it has one."""
        return f"{self.keep} {self.ml:g} ml" if self.ml else self.keep

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON holds exactly."""
        return {"label": self.label, "keep": self.keep, **({"ml": self.ml} if self.ml else {})}


def rules_from_json(values: Any) -> tuple[Rule, ...]:
    """Return the rules from values that :meth:`Rule.to_json` returns.

    Raises:
        ValueError: a rule is damaged.
    """
    try:
        return _RULES.validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError(f"clean_up.{first_problem(error)}") from None


_RULES = TypeAdapter(tuple[Rule, ...])


@dataclass(frozen=True, eq=False)
class Components:
    """The connected components of a mask.

    Args:
        runs: the mask, run-length encoded.
        component_of_run: ``(R,)`` index of the component to which each run belongs.
        voxels: ``(K,)`` number of voxels of each component.
        centers: ``(K, 3)`` mean index ``(z, y, x)`` of each component.
    """

    runs: Runs
    component_of_run: np.ndarray
    voxels: np.ndarray
    centers: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray, value: int) -> "Components":
        """Return the connected components of one value of a label map ``(z, y, x)``."""
        shape = (array.shape[0], array.shape[1], array.shape[2])
        runs = Runs.of((plane[None] == value for plane in array), shape)
        if not len(runs.starts):
            return cls(runs, np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 3)))
        component = runs.components()
        voxels = np.bincount(component, runs.lengths)
        rows, first = np.divmod(runs.starts.astype(np.int64), shape[2] + 1)
        middle = (rows // shape[1], rows % shape[1], first + (runs.lengths - 1) / 2.0)
        centers = [np.bincount(component, runs.lengths * index) / voxels for index in middle]
        return cls(runs, component, voxels, np.stack(centers, axis=1))

    def in_slices(self, selected: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of each slice that selected components reach, and their mask ``(y, x)`` in it.

        Args:
            selected: ``(K,)`` booleans.
        """
        runs = self.runs.only(selected[self.component_of_run])
        for z in np.unique(runs.slices).tolist():
            yield z, runs.mask(slice(z, z + 1))[0]


@dataclass(frozen=True, eq=False)
class Midline:
    """The body's midline in a scan: x = 0 in the reference's pose.

    Args:
        x_from_index: ``(z, 4)``, for each slice the row by which the index ``(x, y, z, 1)`` of a voxel of the
            reoriented volume is multiplied to give its normalized x in the homogenized frame.
    """

    x_from_index: np.ndarray

    @classmethod
    def of(
        cls,
        frame: Frame,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        pose: np.ndarray,
        sure: np.ndarray,
    ) -> "Midline | None":
        """Return the midline of a scan; None if no pose is reliable.

        Args:
            frame: of the scan.
            shape: ``(z, y, x)`` of the reoriented volume.
            spacing: ``(x, y, z)`` of it in mm.
            pose: ``(z, 5)``, or ``(1, 9)`` of the whole volume.
            sure: which of the poses are reliable, booleans ``(z,)`` or ``(1,)``.
        """
        reliable = np.flatnonzero(sure)
        if not len(reliable):
            return None
        by_slice = pose.shape[1] == POSE_SIZE
        if by_slice:
            input_from_frame = frame.slice_from_frame(shape[1:], spacing[:2])
        else:
            input_from_frame = frame.volume_from_frame(shape, spacing)
        theta1 = matrix_from_pose(torch.from_numpy(pose[reliable]).double())
        homogenized_from_input = torch.linalg.inv(input_from_frame.double() @ theta1)
        sides = shape[::-1][: theta1.shape[-1] - 1]
        input_from_index = torch.diag(torch.tensor([*(2.0 / n for n in sides), 1.0], dtype=torch.float64))
        input_from_index[:-1, -1] = torch.tensor([1.0 / n - 1.0 for n in sides], dtype=torch.float64)
        rows = (homogenized_from_input @ input_from_index)[:, 0].numpy()
        if not by_slice:
            return cls(np.repeat(rows, shape[0], axis=0))
        # A slice without a reliable pose gets that of the nearest slice with one.
        nearest = np.abs(np.arange(shape[0])[:, None] - reliable).argmin(axis=1)
        return cls(np.insert(rows, 2, 0.0, axis=1)[nearest])

    def left(self, centers: np.ndarray) -> np.ndarray:
        """Return which points lie on the patient's left of the midline, at homogenized x > 0.

        Args:
            centers: ``(n, 3)`` indices ``(z, y, x)`` in the reoriented volume.

        Returns:
            ``(n,)`` booleans.
        """
        z = np.clip(np.rint(centers[:, 0]).astype(int), 0, len(self.x_from_index) - 1)
        point = np.concatenate([centers[:, ::-1], np.ones((len(centers), 1))], axis=1)
        return (self.x_from_index[z] * point).sum(axis=1) > 0


def components_to_keep(
    components: Components, rule: Rule, voxel_ml: float, midline: Midline | None
) -> np.ndarray:
    """Return which components a rule keeps, ``(K,)`` booleans; all if it needs a midline and there is none.

    Args:
        components: of the rule's label.
        rule: which of them to keep.
        voxel_ml: volume of a voxel.
        midline: of the body; None if no pose is reliable.
    """
    if rule.keep == "volume":
        return components.voxels * voxel_ml >= rule.ml
    left, keep = np.zeros((2, len(components.voxels)), dtype=bool)
    if rule.keep == "largest on each side":
        if midline is None:
            return np.ones(len(components.voxels), dtype=bool)
        left = midline.left(components.centers)
    for side in (False, True):
        on_side = np.flatnonzero(left == side)
        if len(on_side):
            keep[on_side[components.voxels[on_side].argmax()]] = True
    return keep


def clean_up(
    values: np.ndarray,
    rules: Sequence[Rule],
    labels: Labels,
    spacing: tuple[float, float, float],
    midline: Midline | None,
) -> Mapping[str, float]:
    """Set the connected components that the rules do not keep to background, in place.

    Args:
        values: ``(z, y, x)`` uint8, stored label values in the axes of the reoriented volume.
        rules: at most one for each label.
        labels: names and stored values.
        spacing: ``(x, y, z)`` in mm.
        midline: of the body; None if no pose is reliable.

    Returns:
        The volume in ml that was removed of each label that has a rule.
    """
    voxel_ml = float(np.prod(spacing)) / 1000.0
    removed_ml = {}
    for rule in rules:
        components = Components.of(values, labels.values[rule.label])
        removed = ~components_to_keep(components, rule, voxel_ml, midline)
        for z, mask in components.in_slices(removed):
            values[z][mask] = 0
        removed_ml[rule.label] = float(components.voxels[removed].sum() * voxel_ml)
    return removed_ml
