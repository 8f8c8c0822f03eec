"""Draw slices of one person at a level from the thighs to the shoulders, or of a body without a roll."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from isopose.geometry.volume import Volume
from isopose.phantom.levels import chest, pelvis, unknown
from isopose.phantom.levels.person import Person, sample_person
from isopose.phantom.levels.sheet import AIR_HU, Sheet
from isopose.phantom.randomized import Slab
from isopose.phantom.shapes import Waves

Level = Literal["chest", "pelvis", "unknown"]
#: For each level: function that draws the shared parameters, function that paints a slice, range of heights.
LEVELS: dict[str, tuple[Callable[..., Any], Callable[..., None], float, float]] = {
    "chest": (chest.sample_chest, chest.paint_chest, chest.LOWEST, chest.HIGHEST),
    "pelvis": (pelvis.sample_pelvis, pelvis.paint_pelvis, pelvis.LOWEST, pelvis.HIGHEST),
    "unknown": (unknown.sample_unknown, unknown.paint_unknown, 0.0, 1.0),
}
#: Vertebrae with their discs in one unit of height.
UNIT = 9.0
#: Standard deviation (radians) of the roll of most people; one in ten has any roll.
ROLL_SD, ANY_ROLL_SHARE = np.deg2rad(12.0), 0.1
#: Half the side of the picture, in half widths of the trunk.
VIEW = 1.6
#: Amplitude of the smooth random deformation, of half the trunk's width.
WOBBLE = 0.045


def sample_level_slab(seed: int, index: int, *, level: Level, slices: int, size: int) -> Slab:
    """Draw one person's slices at a level, from feet to head.

    Args:
        seed: of the cohort.
        index: of the person.
        level: ``chest`` (with shoulders), ``pelvis`` (with thighs), or ``unknown``, whose roll is arbitrary.
        slices: number of slices.
        size: columns and rows.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    person = sample_person(rng)
    sample, paint, lowest, highest = LEVELS[level]
    alike = sample(rng)
    any_roll = level == "unknown" or rng.random() < ANY_ROLL_SHARE
    roll = float(rng.uniform(-np.pi, np.pi) if any_roll else rng.normal(0.0, ROLL_SD))
    low = float(rng.uniform(lowest, highest - 0.35))
    heights = np.linspace(low, float(rng.uniform(low + 0.3, highest)), slices)
    pixel = 2.0 * VIEW * person.half_width_mm / size
    distance = float(heights[1] - heights[0]) * UNIT * person.level_mm
    wobble = [Waves.sample(rng, 4, person.half_width_mm, 4.0 * person.half_width_mm) for _ in range(2)]
    noise = float(rng.uniform(3.0, 25.0))
    table = _sample_table(rng, person, roll) if rng.random() < 0.7 else None
    planes = []
    for number, height in enumerate(heights):
        sheet = _blank(person, roll, pixel, size, number * distance, wobble)
        if table is not None:
            table(sheet, pixel)
        paint(sheet, rng, alike, float(height))
        planes.append(sheet.hu + rng.normal(0.0, noise, sheet.hu.shape))
    array = np.stack(planes).clip(-1024.0, 3000.0).astype(np.int16)
    return Slab(Volume(array, np.diag([pixel, pixel, distance, 1.0])), roll)


def _blank(person: Person, roll: float, pixel: float, size: int, z: float, wobble: list[Waves]) -> Sheet:
    """Return a slice of air, with smoothly deformed coordinates of the person."""
    axis = (np.arange(size) - 0.5 * (size - 1)) * pixel
    x, y = np.meshgrid(axis, axis)
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    plane = np.full_like(x, z)
    moved = [WOBBLE * person.half_width_mm * field(x, y, plane) for field in wobble]
    # Symmetric in x on average; the midline itself may bend a little.
    x, y = x + 0.5 * moved[0], y + moved[1]
    return Sheet(x / person.half_width_mm, y / person.half_depth_mm, np.full((size, size), AIR_HU), person)


def _sample_table(rng: np.random.Generator, person: Person, roll: float) -> Callable[[Sheet, float], None]:
    """Draw a table (two shells with foam between them); return the function that paints it."""
    gap, bend = float(rng.uniform(0.0, 20.0)), float(rng.uniform(0.0, 0.0015))
    thick, shell_hu = float(rng.uniform(20.0, 50.0)), float(rng.uniform(-100.0, 300.0))

    def paint(sheet: Sheet, pixel: float) -> None:
        size = len(sheet.hu)
        axis = (np.arange(size) - 0.5 * (size - 1)) * pixel
        across, down = np.meshgrid(axis, axis)
        reach = np.hypot(person.half_width_mm * np.sin(roll), person.half_depth_mm * np.cos(roll))
        depth = down + bend * across**2 - reach - gap
        sheet.hu[(depth > 0.0) & (depth < thick)] = -930.0
        for start in (0.0, thick):
            sheet.hu[(depth > start) & (depth < start + max(3.0, pixel))] = shell_hu

    return paint
