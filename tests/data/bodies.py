"""Simple bodies whose truth is known exactly: ellipse trunk, lungs, arms, table, all in millimeters."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isopose.geometry.volume import Volume
from isopose.io.datasets import Case
from isopose.io.images import write_image, write_labels


def volume_of(image) -> Volume:
    import SimpleITK as sitk

    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), matrix)


@dataclass(frozen=True)
class Torso:
    """A volume in HU, the true mask of the trunk, and true masks of what must not be part of it."""

    volume: Volume
    trunk: np.ndarray
    arms: np.ndarray
    table: np.ndarray


def torso(
    width: float,
    *,
    depth: float | None = None,
    pixel: tuple[float, float] = (1.0, 1.0),
    slices: int = 3,
    arms: bool = True,
    table: bool = True,
    overlap: float = 0.03,
    center: tuple[float, float] = (0.0, 0.0),
    noise: float = 20.0,
    fov: float | None = None,
) -> Torso:
    """Make a trunk of ``width`` mm on a table, with arms that touch its sides."""
    depth = depth or 0.75 * width
    fov = fov or 1.7 * width + 20
    shape = (round(fov / pixel[1]), round(fov / pixel[0]))
    y, x = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * p for n, p in zip(shape, pixel[::-1], strict=True)], indexing="ij"
    )
    x, y = x - center[0], y - center[1]
    radius = np.hypot(x / (width / 2), y / (depth / 2))
    trunk = radius <= 1
    wall = max(0.08 * width, 8.0)
    lungs = np.hypot(x / (width / 2 - wall), y / (depth / 2 - wall)) <= 1
    lungs &= np.abs(x) > 0.1 * width
    reach = width / 2 + 0.12 * width * (1 - 2 * overlap)
    arm = (np.hypot(np.abs(x) - reach, y) <= 0.12 * width) & ~trunk if arms else np.zeros_like(trunk)
    # A shell of 4 mm with the back's hollow over it: it touches the back and leaves air between at the sides.
    shell = np.abs(y - depth / 2 - 1.0 - x**2 * -0.2 / width) <= 2.0 if table else np.zeros_like(trunk)
    shell &= (np.abs(x) < 0.8 * width) & ~trunk & ~arm
    array = np.full(shape, -1000.0)
    array[trunk | arm] = 40.0
    array[lungs & trunk] = -850.0
    array[shell] = 100.0
    stack = np.repeat(array[None], slices, 0)
    stack = stack + np.random.default_rng(1).normal(0, noise, stack.shape)
    matrix = np.diag([*pixel, 5.0, 1.0])

    def deep(mask: np.ndarray) -> np.ndarray:
        return np.repeat(mask[None], slices, 0)

    return Torso(Volume(stack.astype(np.float32), matrix), deep(trunk), deep(arm), deep(shell))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2.0 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def volume_of_world(lps: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """Reorder the storage: stored axis ``a`` of (x, y, z) becomes LPS axis ``axes[a]``, or its flip."""
    order = [2 - axes[2 - index] for index in range(3)]
    array = lps.array.transpose(order)
    array = np.ascontiguousarray(np.flip(array, [2 - a for a in range(3) if flips[a]]))
    size = array.shape[::-1]
    lps_from_stored = np.zeros((4, 4))
    lps_from_stored[3, 3] = 1.0
    for stored, axis in enumerate(axes):
        lps_from_stored[axis, stored] = -1.0 if flips[stored] else 1.0
        lps_from_stored[axis, 3] = size[stored] - 1.0 if flips[stored] else 0.0
    return Volume(array, lps.world_from_index @ lps_from_stored)


def write_cohort(folder: Path, count: int, *, slices: int = 4, pixel: float = 3.0) -> tuple[Case, ...]:
    """Write small cases of growing width, two a patient; kidney (1) in all, tumor (2) in every other."""
    cases = []
    for number in range(count):
        case = torso(140 + 40 * number, pixel=(pixel, pixel), slices=slices + number, noise=15.0, table=False)
        depth, height, width = case.volume.array.shape
        marks = np.zeros((depth, height, width), np.uint8)
        marks[1:3, height // 2 - 6 : height // 2 + 2, width // 2 + 2 : width // 2 + 9] = 1
        if number % 2:
            marks[2, height // 2 - 4 : height // 2, width // 2 + 4 : width // 2 + 8] = 2
        array = case.volume.array.round().astype(np.int16)
        array[marks == 1] += 60
        array[marks == 2] += 150 + number
        volume = Volume(array, case.volume.world_from_index)
        name = f"case_{number:03d}"
        write_image(volume, folder / "images" / f"{name}.nii.gz")
        write_labels(volume.with_array(marks), folder / "labels" / f"{name}.nii.gz")
        paths = folder / "images" / f"{name}.nii.gz", folder / "labels" / f"{name}.nii.gz"
        cases.append(Case(name, *paths, patient=f"patient_{number // 2}", age_years=float(number)))
    return tuple(cases)
