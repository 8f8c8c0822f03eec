"""What a reader finds in a file, slice by slice, and how another reader's volume differs from it.

Nothing here imports isopose. Voxels are matched by where they lie in the patient, so that any order of axes,
slices and files may be chosen by a reader.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

#: Millimeters by which places may differ where the header is not rounded: float32 affines and cosines of six
#: decimals.
PLACES = 1e-3
#: Share of a value by which it may differ: its own and its summands' rounding to float32.
SHARE = 2.0**-22
#: HU that air has at most, where the file says that a pixel is padding.
AIR = -900.0
#: Name of the description that a generator leaves beside the scan.
NOTE = "unusual.json"


@dataclass(frozen=True)
class Note:
    """What a generator says about its file.

    Args:
        scan: path below the input's folder that isopose is given.
        kinds: what is unusual about it.
        valid: conforms to its standard, or is what common tools write, so that it should be read.
        tolerance: mm by which places may differ.
        gdcm: that SimpleITK's series reader understands it as well.
        hu: that its values are HU, without which a prediction may be refused.
    """

    scan: str
    kinds: list[str]
    valid: bool = True
    tolerance: float = PLACES
    gdcm: bool = False
    hu: bool = True

    def write(self, folder: Path) -> None:
        """Leave it beside the scan."""
        (folder / NOTE).write_text(json.dumps(vars(self)))


def note_of(folder: Path) -> Note | None:
    """The description in an input's folder, if it has one."""
    place = folder / NOTE
    return Note(**json.loads(place.read_text())) if place.is_file() else None


@dataclass(frozen=True, eq=False)
class Plane:
    """A slice: its values, and where its pixels lie in LPS millimeters.

    Args:
        values: ``(rows, columns)`` float64.
        origin: ``(3,)`` center of the first pixel.
        column: ``(3,)`` from a pixel to the next one in its row.
        row: ``(3,)`` from a pixel to the next one in its column.
        air: ``(rows, columns)``: padding, so that the values do not count.
        scale: largest magnitude that took part in a value.
    """

    values: np.ndarray
    origin: np.ndarray
    column: np.ndarray
    row: np.ndarray
    air: np.ndarray | None = None
    scale: float = 0.0


@dataclass(frozen=True)
class Truth:
    """Readings of a file, any of which is right; without one the file must be refused."""

    readings: list[list[Plane]] = field(default_factory=list)
    refuse: str = ""


class MustBeRefused(Exception):
    """There is no right reading."""


class Differs(Exception):
    """What was read is not what independent readers find, or these do not agree with each other."""


def difference(array: np.ndarray, world_from_index: np.ndarray, truth: Truth, tolerance: float) -> str:
    """How a volume ``(z, y, x)`` differs from every right reading; empty where it agrees with one."""
    if not truth.readings:
        return f"should have been refused: {truth.refuse}"
    found = [from_reading(array, world_from_index, planes, tolerance) for planes in truth.readings]
    return "" if "" in found else "; or ".join(found)


def from_reading(
    array: np.ndarray, world_from_index: np.ndarray, planes: list[Plane], tolerance: float
) -> str:
    """How a volume differs from one reading; empty where values and places agree."""
    size = np.array(array.shape[::-1])
    if array.size != sum(plane.values.size for plane in planes):
        rows, columns = planes[0].values.shape
        return f"{array.shape} voxels, expected {len(planes)} slices of {rows} x {columns}"
    seen = np.zeros(array.shape, dtype=bool)
    index_from_world = np.linalg.inv(world_from_index)
    for number, plane in enumerate(planes):
        rows, columns = plane.values.shape
        ends = np.array([(r, c) for r in (0, rows - 1) for c in (0, columns - 1)])
        world = plane.origin + ends[:, :1] * plane.row + ends[:, 1:] * plane.column
        near = np.rint(world @ index_from_world[:3, :3].T + index_from_world[:3, 3])
        apart = np.linalg.norm(near @ world_from_index[:3, :3].T + world_from_index[:3, 3] - world, axis=1)
        if (near < 0).any() or (near >= size).any():
            return f"places: slice {number} has a corner at {world[0].round(3)} that is outside of the volume"
        if apart.max() > tolerance:
            return f"places: slice {number} lies {apart.max():.5f} mm away (may be {tolerance:g})"
        steps = (near[2] - near[0]) / max(rows - 1, 1), (near[1] - near[0]) / max(columns - 1, 1)
        places = near[0] + np.arange(rows)[:, None, None] * steps[0] + np.arange(columns)[:, None] * steps[1]
        x, y, z = np.moveaxis(np.rint(places).astype(int), -1, 0)
        seen[z, y, x] = True
        text = _from_values(array[z, y, x].astype(np.float64), plane)
        if text:
            return f"values: slice {number} {text}"
    return "" if seen.all() else f"places: {int((~seen).sum())} voxels belong to no slice"


def _from_values(got: np.ndarray, plane: Plane) -> str:
    air = np.zeros(got.shape, dtype=bool) if plane.air is None else plane.air
    if air.any() and got[air].max() > AIR:
        return f"has padding of {got[air].max():g} HU"
    allowed = SHARE * np.maximum(np.abs(plane.values), plane.scale)
    apart = np.where(air, 0.0, np.abs(got - plane.values) - allowed)
    worst = np.unravel_index(int(np.argmax(apart)), apart.shape)
    wrong = int((apart > 0).sum())
    return f"has {wrong} other values, e.g. {got[worst]:g} for {plane.values[worst]:g}" if wrong else ""


def planes_of(values: np.ndarray, affine: np.ndarray, scale: float) -> list[Plane]:
    """Return the planes along z of an array ``(x, y, z)`` with its affine to LPS millimeters."""
    return [
        Plane(values[:, :, k].T, affine[:3, 3] + k * affine[:3, 2], affine[:3, 0], affine[:3, 1], scale=scale)
        for k in range(values.shape[2])
    ]


def places_only(truth: Truth) -> Truth:
    """Return a truth with the planes' positions and directions kept, and all values set to 0."""
    readings = [
        [Plane(np.zeros(plane.values.shape), plane.origin, plane.column, plane.row) for plane in planes]
        for planes in truth.readings
    ]
    return Truth(readings, truth.refuse)
