"""Simple bodies whose truth is known exactly: ellipse trunk, lungs, arms, table, all in millimetres."""

from dataclasses import dataclass

import numpy as np

from isopose.geometry.volume import Volume


def volume_of(image) -> Volume:
    import SimpleITK as sitk

    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), matrix)


@dataclass(frozen=True)
class Torso:
    """HU volume, the trunk's true mask, and the true masks of what must not be in it."""

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
    centre: tuple[float, float] = (0.0, 0.0),
    noise: float = 20.0,
    fov: float | None = None,
) -> Torso:
    """A trunk of ``width`` mm with arms that sink into its sides and a table that it lies on."""
    depth = depth or 0.75 * width
    fov = fov or 1.7 * width + 20
    shape = (round(fov / pixel[1]), round(fov / pixel[0]))
    y, x = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * p for n, p in zip(shape, pixel[::-1], strict=True)], indexing="ij"
    )
    x, y = x - centre[0], y - centre[1]
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
