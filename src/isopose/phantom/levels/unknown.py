"""Draw bodies without a visible roll: closed shapes with random contents, rings of bone, one or two limbs."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.levels.sheet import Sheet, paint_bone, paint_dots


@dataclass(frozen=True)
class Unknown:
    """Parameters that all slices of one body without a visible roll share.

    Args:
        parts: center x, y and half axes of each part, half widths.
        skull: thickness of a shell of bone, of the part's half axes; 0: none.
        bones: center x, y and radius of bones in each part, of its half axes.
        cavity: center x, y and radius of an airway; radius 0: none.
        blobs: number of random contents.
    """

    parts: tuple[tuple[float, float, float, float], ...]
    skull: float
    bones: tuple[tuple[float, float, float], ...]
    cavity: tuple[float, float, float]
    blobs: int


def sample_unknown(rng: np.random.Generator) -> Unknown:
    """Draw the parameters that all slices of one body without a visible roll share."""
    a, b = float(rng.uniform(0.35, 0.9)), float(rng.uniform(0.35, 0.9))
    parts: tuple[tuple[float, float, float, float], ...] = ((0.0, 0.0, a, b),)
    if rng.random() < 0.25:
        far = 0.55 * a + float(rng.uniform(0.0, 0.1))
        parts = ((-far, 0.0, 0.55 * a, 0.55 * b), (far, 0.0, 0.55 * a, 0.55 * b))

    def place(radius: float) -> tuple[float, float, float]:
        return float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5)), radius

    return Unknown(
        parts=parts,
        skull=float(rng.uniform(0.05, 0.15)) if rng.random() < 0.3 else 0.0,
        bones=tuple(place(float(rng.uniform(0.1, 0.35))) for _ in range(int(rng.integers(0, 3)))),
        cavity=place(float(rng.uniform(0.08, 0.3)) if rng.random() < 0.4 else 0.0),
        blobs=int(rng.integers(0, 6)),
    )


def paint_unknown(sheet: Sheet, rng: np.random.Generator, unknown: Unknown, height: float) -> None:
    """Paint one slice.

    Args:
        sheet: of air, perhaps with a table.
        rng: source of the differences between slices.
        unknown: parameters that all slices share.
        height: along the body, 0 to 1; it tapers by a fifth.
    """
    person, taper = sheet.person, 1.0 - 0.2 * height
    for cx, cy, a, b in unknown.parts:
        a, b = taper * a, taper * b * sheet.round
        shell = 1.0 - min(0.5 * person.fat, 0.3)
        whole = sheet.ellipse(cx, cy, shell * a, shell * b)
        sheet.paint(sheet.ellipse(cx, cy, a, b), person.fat_hu)
        sheet.paint(whole, person.muscle_hu)
        if unknown.skull:
            inner = shell - unknown.skull
            sheet.paint(whole, person.cortex_hu)
            sheet.paint(sheet.ellipse(cx, cy, inner * a, inner * b), 35.0)
        for hu in (person.organ_hu, person.fluid_hu, person.blood_hu, person.fat_hu):
            paint_dots(sheet, rng, whole, unknown.blobs, 0.15 * a, hu)
        for x, y, radius in unknown.bones:
            place = (cx + x * a, cy + y * b)
            paint_bone(sheet, sheet.ellipse(*place, radius * a), sheet.ellipse(*place, 0.6 * radius * a))
        x, y, radius = unknown.cavity
        if radius:
            sheet.paint(sheet.ellipse(cx + x * a, cy + y * b, radius * a), -950.0)
