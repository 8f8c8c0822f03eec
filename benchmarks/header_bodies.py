"""Scans for ``header.py``: drawn bodies that are no trunk, crops without an outline, and turned scans."""

import numpy as np

from isopose.geometry.volume import Volume

#: Voxels along a side, their size in mm, slices and their distance in mm of drawn bodies.
SIDE, PIXEL_MM, SLICES, SLICE_MM = 192, 1.5, 12, 5.0
AIR, FAT, MUSCLE, BONE, MARROW = -1000.0, -90.0, 55.0, 1100.0, 60.0


def draw_head(rng: np.random.Generator) -> Volume:
    """Draw a skull with ventricles, a nose, orbits and an airway, tilted and shifted a little."""
    x, y = _points(rng, tilt=0.15)
    half_width, half_depth, nose = rng.uniform(55, 80), rng.uniform(70, 100), rng.uniform(5, 25)
    planes = []
    for number in range(SLICES):
        size = 1.0 - 0.03 * number
        radius = np.hypot(x / (half_width * size), y / (half_depth * size))
        plane = np.select([radius < 0.85, radius < 0.94, radius < 1.0], [35.0, BONE, MARROW], AIR)
        plane[_disc(x, y, 0, 0, 10 * size, 22 * size)] = 8.0
        if number < SLICES // 2:
            plane[_disc(x, y, 0, -half_depth * size - nose / 3, 8, nose)] = MUSCLE
            for side in (-30, 30):
                plane[_disc(x, y, side * size, -0.72 * half_depth * size, 14, 14)] = 20.0
            plane[_disc(x, y, 0, -0.6 * half_depth * size, 12, 15)] = -900.0
        planes.append(plane)
    return _volume(planes, rng)


def draw_neck(rng: np.random.Generator) -> Volume:
    """Draw a neck with fat, a vertebra, an airway and bright vessels."""
    x, y = _points(rng)
    half_width, half_depth, back = rng.uniform(45, 70), rng.uniform(45, 65), rng.uniform(0.1, 0.35)
    plane = np.where(np.hypot(x / half_width, y / half_depth) < 1.0, FAT, AIR)
    plane[np.hypot(x / half_width, y / half_depth) < 0.85] = MUSCLE
    plane[_disc(x, y, 0, half_depth * back, 16, 12)] = 500.0
    plane[_disc(x, y, 0, half_depth * back + 14, 8, 6)] = 30.0
    plane[_disc(x, y, 0, -0.35 * half_depth, 9, 9)] = -950.0
    for side in (-1, 1):
        plane[_disc(x, y, 24 * side, -2, 5, 5)] = 200.0
        plane[_disc(x, y, 30 * side, -5, 8, 8)] = 160.0
    return _volume([plane] * SLICES, rng)


def draw_limbs(rng: np.random.Generator) -> Volume:
    """Draw one limb or two, each with a bone off its middle."""
    x, y = _points(rng)
    radius = rng.uniform(35, 70)
    plane = np.full_like(x, AIR)
    for middle in (0.0,) if rng.random() < 0.5 else (-radius - 6, radius + 6):
        plane[_disc(x, y, middle, 0, radius, 1.05 * radius)] = FAT
        plane[_disc(x, y, middle, 0, 0.85 * radius, 0.9 * radius)] = MUSCLE
        plane[_disc(x, y, middle - 6, 4, 14, 14)] = BONE
        plane[_disc(x, y, middle - 6, 4, 7, 7)] = MARROW
    return _volume([plane] * SLICES, rng)


def draw_water(rng: np.random.Generator) -> Volume:
    """Draw a cylinder of water, round or not."""
    x, y = _points(rng)
    radius = rng.uniform(60, 130)
    plane = np.where(_disc(x, y, 0, 0, radius, radius * rng.uniform(0.8, 1.2)), rng.uniform(-20, 60), AIR)
    return _volume([plane] * SLICES, rng)


def crop(volume: Volume, side_mm: float) -> Volume:
    """Cut a square around the middle of the body out of a scan, so that no outline is left."""
    size = min(round(side_mm / volume.spacing[0]), *volume.array.shape[1:])
    _, rows, columns = np.nonzero(volume.array[::2, ::4, ::4] > -300)
    first = [
        int(np.clip(4 * place.mean() - size / 2, 0, extent - size))
        for place, extent in zip((rows, columns), volume.array.shape[1:], strict=True)
    ]
    cut = volume.array[:, first[0] : first[0] + size, first[1] : first[1] + size]
    return Volume(np.ascontiguousarray(cut), np.diag([*volume.spacing, 1.0]))


def turn(volume: Volume, quarters: int) -> Volume:
    """Turn a patient by quarter turns against the header, from +y to +x."""
    dx, dy, dz = volume.spacing
    spacing = (dx, dy, dz) if quarters % 2 == 0 else (dy, dx, dz)
    array = np.ascontiguousarray(np.rot90(volume.array, quarters, axes=(1, 2)))
    return Volume(array, np.diag([*spacing, 1.0]))


def _points(rng: np.random.Generator, tilt: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y in mm of a body that is shifted, and turned by a standard deviation (radians)."""
    axis = (np.arange(SIDE) - SIDE / 2 + 0.5) * PIXEL_MM
    x, y = np.meshgrid(axis, axis, indexing="xy")
    x, y, angle = x - rng.normal(0, 12), y - rng.normal(0, 12), rng.normal(0, tilt)
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _disc(x: np.ndarray, y: np.ndarray, cx: float, cy: float, a: float, b: float) -> np.ndarray:
    return np.hypot((x - cx) / a, (y - cy) / b) < 1.0


def _volume(planes: list[np.ndarray], rng: np.random.Generator) -> Volume:
    array = np.stack(planes) + rng.normal(0.0, rng.uniform(5, 25), (SLICES, SIDE, SIDE))
    return Volume(array.clip(-1024, 3000).astype(np.int16), np.diag([PIXEL_MM, PIXEL_MM, SLICE_MM, 1.0]))
