"""Draw the chest and the shoulders: ribs, lungs, heart, great vessels, spine, shoulder blades, arms."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.levels.sheet import Sheet, paint_arm_pair, paint_bone, paint_dots, paint_vertebra

#: Height of the shoulder joints; 0 is the dome of the diaphragm, 1 the top of the lungs.
SHOULDERS = 0.85
LOWEST, HIGHEST = -0.1, 1.25


@dataclass(frozen=True)
class Chest:
    """Parameters that all slices of one chest share.

    Args:
        arms: ``"down"``, ``"up"`` or ``"none"`` (outside the field of view).
        arm_gap: between trunk and arm, half widths.
        heart: half the heart's width, half widths.
        heart_x: its center toward the left, half widths.
        spine_y: center of the vertebral bodies, half depths.
        effusion: height of fluid in the right and the left chest, of the cage's depth; 0: none.
        collapsed: side (-1 right, 1 left) of a lung without air; 0: none.
        mass: center x, y and radius of a mass, half widths; radius 0: none.
        blades: distance of the shoulder blades from the midline, half widths.
    """

    arms: str
    arm_gap: float
    heart: float
    heart_x: float
    spine_y: float
    effusion: tuple[float, float]
    collapsed: float
    mass: tuple[float, float, float]
    blades: float


def sample_chest(rng: np.random.Generator) -> Chest:
    """Draw the parameters that all slices of one chest share."""
    fluid = [float(rng.uniform(0.1, 0.7)) if rng.random() < 0.2 else 0.0 for _ in range(2)]
    return Chest(
        arms=str(rng.choice(["down", "up", "none"], p=[0.35, 0.45, 0.2])),
        arm_gap=float(rng.uniform(-0.08, 0.15)),
        heart=float(rng.uniform(0.3, 0.5)),
        heart_x=float(rng.uniform(0.1, 0.28)),
        spine_y=float(rng.uniform(0.36, 0.52)),
        effusion=(fluid[0], fluid[1]),
        collapsed=float(rng.choice([-1.0, 1.0])) if rng.random() < 0.08 else 0.0,
        mass=(
            float(rng.uniform(-0.6, 0.6)),
            float(rng.uniform(-0.6, 0.3)),
            float(rng.uniform(0.1, 0.4)) if rng.random() < 0.15 else 0.0,
        ),
        blades=float(rng.uniform(0.35, 0.55)),
    )


def paint_chest(sheet: Sheet, rng: np.random.Generator, chest: Chest, height: float) -> None:
    """Paint one slice.

    Args:
        sheet: of air, perhaps with a table.
        rng: source of the differences between slices.
        chest: parameters that all slices share.
        height: 0 at the dome of the diaphragm, 1 at the top of the lungs.
    """
    person = sheet.person
    if chest.arms == "down" and height < SHOULDERS:
        paint_arm_pair(sheet, rng, float(rng.uniform(0.05, 0.35)), chest.arm_gap, bones=1)
    _paint_shell(sheet, chest, height)
    narrow = 1.0 - 0.45 * float(np.clip((height - 0.45) / 0.6, 0.0, 1.0)) ** 1.5
    across = (1.0 - 0.7 * person.fat - person.wall) * narrow
    deep = (1.0 - 0.9 * person.fat - person.wall) * (0.6 + 0.4 * narrow)
    cage = sheet.ellipse(0.0, 0.0, across, deep, power=2.3)
    _paint_ribs(sheet, rng, across, deep)
    sheet.paint(sheet.ellipse(0.0, 0.0, 0.93 * across, 0.93 * deep, power=2.3), person.fat_hu + 20.0)
    if height < 1.05:
        _paint_lungs(sheet, rng, chest, height, across, deep)
    _paint_mediastinum(sheet, chest, height, across, deep)
    if chest.mass[2] > 0.0:
        cx, cy, radius = chest.mass
        sheet.paint(sheet.ellipse(cx * across, cy * deep, radius * across) & cage, person.organ_hu)
    paint_vertebra(
        sheet, chest.spine_y * deep, person.vertebra, float(rng.uniform(0.0, 0.8)),
        processes=bool(rng.random() < 0.7),
    )  # fmt: skip
    if height > 0.25:
        _paint_blades(sheet, chest, height, across, deep)
    if height > SHOULDERS:
        _paint_collar(sheet, height, across, deep)


def _paint_shell(sheet: Sheet, chest: Chest, height: float) -> None:
    """Paint fat and muscle of trunk, breasts and shoulders."""
    person = sheet.person
    above = float(np.clip((height - 0.6) / 0.6, 0.0, 1.0))
    a, b = 1.0 - 0.35 * above, 1.0 - 0.25 * above
    fat = person.fat * (1.0 - 0.4 * above)
    parts = [(0.0, 0.0, a, b, person.power)]
    if height > 0.55:
        wide = 0.42 * above + 0.12
        drop = 0.1 if chest.arms == "down" else -0.05
        far = (1.05 if chest.arms == "down" else 0.85) * (0.75 + 0.25 * above)
        parts += [(side * far, drop, wide, 0.75 * wide * sheet.round, 2.0) for side in (-1.0, 1.0)]
    for cx, cy, half_x, half_y, power in parts:
        sheet.paint(sheet.ellipse(cx, cy, half_x, half_y, power=power), person.fat_hu)
    if person.breast and 0.1 < height < 0.6:
        bulge = person.breast * (1.0 - abs(height - 0.35) / 0.25)
        for side in (-1.0, 1.0):
            place = (side * 0.48, -0.78 - 0.5 * bulge)
            sheet.paint(sheet.ellipse(*place, 0.4, 0.25 + 0.7 * bulge), person.fat_hu)
            sheet.paint(sheet.ellipse(*place, 0.2, 0.1 + 0.35 * bulge), person.muscle_hu - 15.0)
    for cx, cy, half_x, half_y, power in parts:
        shrunk = (max(half_x - 0.7 * fat, 0.5 * half_x), max(half_y - fat, 0.5 * half_y))
        sheet.paint(sheet.ellipse(cx, cy, *shrunk, power=power), person.muscle_hu)


def _paint_ribs(sheet: Sheet, rng: np.random.Generator, across: float, deep: float) -> None:
    """Paint arcs of ribs around the cage, and the sternum."""
    ring = sheet.ellipse(0.0, 0.0, 1.04 * across, 1.05 * deep, power=2.3)
    ring &= ~sheet.ellipse(0.0, 0.0, 0.95 * across, 0.94 * deep, power=2.3)
    angle = np.arctan2(sheet.y / deep, np.abs(sheet.x) / across)
    phase, count = float(rng.uniform(0.0, 2.0 * np.pi)), float(rng.uniform(6.0, 11.0))
    ribs = ring & (np.sin(count * angle + phase + 0.4 * np.sign(sheet.x)) > rng.uniform(-0.2, 0.4))
    sheet.paint(ribs & (np.abs(sheet.x) > 0.12), sheet.person.bone_hu + 150.0)
    breastbone = sheet.ellipse(0.0, -1.0 * deep, 0.16, 0.07)
    paint_bone(sheet, breastbone, sheet.ellipse(0.0, -1.0 * deep, 0.13, 0.045))


def _paint_lungs(
    sheet: Sheet, rng: np.random.Generator, chest: Chest, height: float, across: float, deep: float
) -> None:
    """Paint the lungs with their vessels, fluid behind them, and the liver under the right one."""
    person = sheet.person
    for side, fluid in zip((-1.0, 1.0), chest.effusion, strict=True):
        center = (side * 0.5 * across, 0.08 * deep)
        lung = sheet.ellipse(*center, 0.44 * across, 0.82 * deep, power=2.2) & (side * sheet.x > 0.1 * across)
        lung &= sheet.ellipse(0.0, 0.0, 0.93 * across, 0.92 * deep, power=2.3)
        empty = side == chest.collapsed
        sheet.paint(lung, person.organ_hu if empty else person.lung_hu)
        if not empty:
            paint_dots(sheet, rng, lung, int(rng.integers(4, 14)), 0.025, person.blood_hu)
        if fluid:
            sheet.paint(lung & (sheet.y > deep * (0.9 - 1.5 * fluid)), person.fluid_hu)
    dome = 0.25 - height
    if dome > 0.0:
        size = float(np.sqrt(dome / 0.35))
        cage = sheet.ellipse(0.0, 0.0, 0.92 * across, 0.92 * deep, power=2.3)
        liver = sheet.ellipse(-0.42 * across, -0.05 * deep, 0.55 * size * across, 0.7 * size * deep) & cage
        sheet.paint(liver, person.organ_hu + 10.0)
        if dome > 0.15:
            spleen = sheet.ellipse(0.6 * across, 0.25 * deep, 0.3 * size * across, 0.5 * size * deep) & cage
            sheet.paint(spleen, person.organ_hu)
            if rng.random() < 0.5:
                sheet.paint(sheet.ellipse(0.4 * across, -0.3 * deep, 0.2 * size, 0.15 * size), -900.0)


def _paint_mediastinum(sheet: Sheet, chest: Chest, height: float, across: float, deep: float) -> None:
    """Paint heart or great vessels, the aorta, the trachea and the esophagus."""
    person = sheet.person
    sheet.paint(sheet.ellipse(0.02, -0.15 * deep, 0.2 * across, 0.75 * deep), person.fat_hu + 40.0)
    size = float(np.clip(1.15 - abs(height - 0.22) / 0.4, 0.0, 1.0))
    if size > 0.2:
        heart = (chest.heart_x, -0.32 * deep, chest.heart * size * across, 0.42 * size * deep)
        sheet.paint(sheet.ellipse(*heart, lean=0.5), person.muscle_hu + 20.0)
        cx, cy, a, b = heart
        sheet.paint(sheet.ellipse(cx + 0.06, cy - 0.05, 0.5 * a, 0.5 * b), person.blood_hu)
        sheet.paint(sheet.ellipse(cx - 0.3 * a, cy + 0.2 * b, 0.4 * a, 0.4 * b), person.blood_hu - 20.0)
    if height > 0.4:
        for place, radius in (((-0.14, -0.3), 0.09), ((0.05, -0.35), 0.12), ((0.12, -0.05), 0.09)):
            sheet.paint(sheet.ellipse(place[0] * across, place[1] * deep, radius * across), person.blood_hu)
        sheet.paint(sheet.ellipse(-0.01, 0.05 * deep, 0.06 * across), -980.0)
    if height < 0.8:
        aorta = (0.19 * across, (chest.spine_y - 0.12) * deep)
        sheet.paint(sheet.ellipse(*aorta, 0.1 * across), person.blood_hu)
    sheet.paint(sheet.ellipse(0.06, (chest.spine_y - 0.28) * deep, 0.05 * across), person.muscle_hu)


def _paint_blades(sheet: Sheet, chest: Chest, height: float, across: float, deep: float) -> None:
    """Paint the shoulder blades behind the cage, with the muscles on both sides of them."""
    top = min(height, 1.0)
    outside = ~sheet.ellipse(0.0, 0.0, across, deep, power=2.3) & (sheet.hu > -500.0)
    for side in (-1.0, 1.0):
        start = (side * chest.blades, 0.98 * deep + 0.05)
        stop = (side * (0.75 + 0.25 * top), (0.62 - 0.35 * top) * deep)
        middle = (0.5 * (start[0] + stop[0]), 0.5 * (start[1] + stop[1]))
        sheet.paint(sheet.bar(start, stop, 0.1) & outside, sheet.person.muscle_hu)
        sheet.paint(sheet.bar(start, stop, 0.022) & outside, sheet.person.cortex_hu)
        if top > 0.6:
            spine = sheet.bar(middle, (stop[0], stop[1] + 0.35 * deep), 0.03)
            sheet.paint(spine & outside, sheet.person.bone_hu)


def _paint_collar(sheet: Sheet, height: float, across: float, deep: float) -> None:
    """Paint the heads of the upper arms and the clavicles."""
    far = 1.02 if height < 1.1 else 0.95
    for side in (-1.0, 1.0):
        head = sheet.ellipse(side * far, 0.05, 0.15)
        paint_bone(sheet, head, sheet.ellipse(side * far, 0.05, 0.115))
        collar = sheet.bar((side * 0.15 * across, -0.75 * deep), (side * 0.75, -0.3 * deep), 0.045)
        sheet.paint(collar, sheet.person.bone_hu + 200.0)
