"""Draw the pelvis and the thighs: hip bones, sacrum, femurs, bladder, bowel, buttocks."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.levels.sheet import Sheet, paint_arm_pair, paint_bone, paint_dots, paint_vertebra

#: Heights: 0 is the crotch, 1 the iliac crest, negative values are the thighs.
LOWEST, HIGHEST = -0.7, 1.15


@dataclass(frozen=True)
class Pelvis:
    """Parameters that all slices of one pelvis share.

    Args:
        arms: whether forearms or hands lie beside it.
        arm_gap: between trunk and arm, half widths.
        hips: how much wider it is than the trunk.
        flat: how far the buttocks are flattened, half depths.
        bladder: radius of the bladder, half widths.
        bladder_hu: urine, perhaps with contrast.
        apart: distance of the thighs' middles from the midline, half widths.
        foot: radians by which each leg is turned outward.
        womb: whether there is a uterus.
    """

    arms: bool
    arm_gap: float
    hips: float
    flat: float
    bladder: float
    bladder_hu: float
    apart: float
    foot: float
    womb: bool


def sample_pelvis(rng: np.random.Generator) -> Pelvis:
    """Draw the parameters that all slices of one pelvis share."""
    return Pelvis(
        arms=bool(rng.random() < 0.3),
        arm_gap=float(rng.uniform(-0.05, 0.15)),
        hips=float(rng.uniform(1.0, 1.15)),
        flat=float(rng.uniform(0.0, 0.25)),
        bladder=float(rng.uniform(0.1, 0.42)),
        bladder_hu=float(rng.uniform(-5.0, 25.0)) if rng.random() < 0.8 else float(rng.uniform(100.0, 600.0)),
        apart=float(rng.uniform(0.48, 0.62)),
        foot=float(rng.uniform(-0.2, 0.6)),
        womb=bool(rng.random() < 0.4),
    )


def paint_pelvis(sheet: Sheet, rng: np.random.Generator, pelvis: Pelvis, height: float) -> None:
    """Paint one slice.

    Args:
        sheet: of air, perhaps with a table.
        rng: source of the differences between slices.
        pelvis: parameters that all slices share.
        height: 0 at the crotch, 1 at the iliac crest, negative in the thighs.
    """
    if pelvis.arms:
        paint_arm_pair(sheet, rng, float(rng.uniform(-0.5, 0.3)), pelvis.arm_gap, bones=2)
    if height < 0.0:
        _paint_thighs(sheet, rng, pelvis, height)
        return
    person = sheet.person
    a, b = pelvis.hips, 1.0
    _paint_soft_wall(sheet, pelvis, height, a, b)
    _paint_cavity(sheet, rng, pelvis, height)
    if height > 0.35:
        _paint_wings(sheet, height, a)
        size = person.vertebra * (0.5 + 1.1 * min((height - 0.3) / 0.5, 1.0))
        if height > 0.95:
            paint_vertebra(sheet, 0.32, person.vertebra, 0.2, processes=True)
        else:
            whole = sheet.ellipse(0.0, 0.5, size, 0.17, power=2.4)
            paint_bone(sheet, whole, sheet.ellipse(0.0, 0.5, 0.9 * size, 0.13, power=2.4))
            sheet.paint(sheet.ellipse(0.0, 0.58, 0.25 * size, 0.04), person.fluid_hu)
    if height < 0.5:
        _paint_hips(sheet, height, a)


def _paint_soft_wall(sheet: Sheet, pelvis: Pelvis, height: float, a: float, b: float) -> None:
    """Paint fat, the muscles of buttock, thigh and belly, and the cleft between the buttocks."""
    person = sheet.person
    fat = max(person.fat, 0.08)
    outline = sheet.ellipse(0.0, 0.0, a, b, power=max(person.power, 2.3)) & (sheet.y < b - pelvis.flat)
    sheet.paint(outline, person.fat_hu)
    if height < 0.75:
        sheet.paint(sheet.bar((0.0, 0.75), (0.0, 1.3), 0.03 + 0.05 * (0.75 - height)), -1000.0)
    inner = sheet.ellipse(0.0, -0.03, a - 0.9 * fat, b - 1.1 * fat, power=2.2) & (sheet.y < 0.2)
    sheet.paint(inner & outline, person.muscle_hu)
    strong = 0.24 + 0.14 * (1.0 - height)
    for side in (-1.0, 1.0):
        buttock = sheet.ellipse(side * 0.5 * a, 0.42, 0.42 * a, strong + 0.1, lean=-side * 0.35)
        sheet.paint(buttock & outline & (sheet.y < b - pelvis.flat - 0.8 * fat), person.muscle_hu)
        groove = sheet.bar((side * 0.3 * a, 0.45), (side * 0.75 * a, 0.2), 0.015)
        sheet.paint(groove & buttock, person.fat_hu)


def _paint_cavity(sheet: Sheet, rng: np.random.Generator, pelvis: Pelvis, height: float) -> None:
    """Paint fat, bowel, bladder, uterus, rectum and vessels between the bones."""
    person = sheet.person
    wide = 0.3 + 0.4 * height
    cavity = sheet.ellipse(0.0, -0.1, wide, 0.45 + 0.1 * height, power=2.3)
    sheet.paint(cavity, person.fat_hu + 10.0)
    if height > 0.4:
        for hu in (person.organ_hu, person.fluid_hu, -700.0 if rng.random() < 0.5 else person.muscle_hu):
            paint_dots(sheet, rng, cavity & (sheet.y < 0.1), int(rng.integers(2, 6)), 0.09, hu)
        for side in (-1.0, 1.0):
            sheet.paint(sheet.ellipse(side * 0.3, 0.1, 0.13), person.muscle_hu)
    full = pelvis.bladder * float(np.clip(1.3 - abs(height - 0.3) / 0.35, 0.0, 1.0))
    if full > 0.05:
        place = (0.0, -0.3)
        sheet.paint(sheet.ellipse(*place, full + 0.03, 0.75 * full * sheet.round), person.muscle_hu)
        sheet.paint(sheet.ellipse(*place, full, 0.68 * full * sheet.round), pelvis.bladder_hu)
    if pelvis.womb and 0.2 < height < 0.7:
        sheet.paint(sheet.ellipse(float(rng.normal(0.0, 0.04)), 0.02, 0.17, 0.14), person.organ_hu + 15.0)
    if height < 0.85:
        sheet.paint(sheet.ellipse(0.0, 0.3, 0.12, 0.14), person.muscle_hu)
        filled = -900.0 if rng.random() < 0.5 else float(rng.uniform(-150.0, 80.0))
        sheet.paint(sheet.ellipse(0.0, 0.3, 0.07, 0.08), filled)
    for side in (-1.0, 1.0):
        x, y = side * (0.5 - 0.25 * height), -0.62 + 0.65 * height
        sheet.paint(sheet.ellipse(x, y, 0.045), person.blood_hu)
        sheet.paint(sheet.ellipse(x - side * 0.08, y + 0.05, 0.05), 0.6 * person.blood_hu + 15.0)


def _paint_wings(sheet: Sheet, height: float, a: float) -> None:
    """Paint the wings of the hip bones, from beside the sacrum outward and forward."""
    reach = 0.9 - 0.25 * abs(height - 0.8)
    for side in (-1.0, 1.0):
        start, stop = (side * 0.28 * a, 0.47), (side * 0.8 * reach * a, -0.28 * reach)
        sheet.paint(sheet.bar(start, stop, 0.06), sheet.person.cortex_hu)
        sheet.paint(sheet.bar(start, stop, 0.03), sheet.person.bone_hu)


def _paint_hips(sheet: Sheet, height: float, a: float) -> None:
    """Paint femoral heads or necks, sockets, pubic bones and ischia."""
    person = sheet.person
    for side in (-1.0, 1.0):
        x = side * 0.56 * a
        if height > 0.12:
            socket = sheet.ellipse(x - side * 0.03, -0.02, 0.21) & ~sheet.ellipse(x, -0.02, 0.165)
            sheet.paint(socket & (side * sheet.x < side * x + 0.1), person.cortex_hu)
            paint_bone(sheet, sheet.ellipse(x, -0.02, 0.155), sheet.ellipse(x, -0.02, 0.135))
        if height < 0.3:
            neck = sheet.bar((x, 0.0), (side * 0.82 * a, 0.08), 0.08)
            paint_bone(sheet, neck, sheet.bar((x, 0.0), (side * 0.82 * a, 0.08), 0.05))
            sheet.paint(sheet.bar((side * 0.03, -0.42), (side * 0.34 * a, -0.28), 0.05), person.bone_hu + 100)
            sheet.paint(sheet.ellipse(side * 0.36 * a, 0.34, 0.1, lean=side * 0.5), person.bone_hu + 100)


def _paint_thighs(sheet: Sheet, rng: np.random.Generator, pelvis: Pelvis, height: float) -> None:
    """Paint both thighs with the shafts of the femurs, fat planes and vessels."""
    person = sheet.person
    radius = (0.54 + 0.12 * height) * pelvis.hips
    fat = float(np.clip(0.5 * person.fat, 0.04, 0.3))
    for side in (-1.0, 1.0):
        x = side * max(pelvis.apart, radius - 0.04)
        leg = sheet.ellipse(x, 0.0, radius, 0.92 * radius * sheet.round, power=2.1)
        sheet.paint(leg & (sheet.y < radius * sheet.round * (0.95 - pelvis.flat)), person.fat_hu)
        muscle = sheet.ellipse(x, -0.02, radius - fat, (0.9 * radius - fat) * sheet.round)
        sheet.paint(muscle & leg, person.muscle_hu)

        def place(angle: float, part: float, x: float = x, side: float = side) -> tuple[float, float]:
            """Return a point of the leg; the angle counts outward from the front."""
            turned = angle + pelvis.foot
            return (
                x + side * part * radius * float(np.sin(turned)),
                -part * radius * sheet.round * float(np.cos(turned)),
            )

        for angle in (-1.0, 1.7, 2.9):
            sheet.paint(sheet.bar(place(0.6, 0.2), place(angle, 0.85), 0.018) & muscle, person.fat_hu)
        shaft = place(0.7, 0.25)
        thick = 0.2 * radius + 0.05
        sheet.paint(sheet.ellipse(*shaft, thick), person.cortex_hu)
        sheet.paint(sheet.ellipse(*shaft, 0.55 * thick), float(rng.uniform(-60.0, 120.0)))
        sheet.paint(sheet.ellipse(*place(-0.9, 0.45), 0.045), person.blood_hu)
        sheet.paint(sheet.ellipse(*place(-1.1, 0.35), 0.05), 0.6 * person.blood_hu + 15.0)
