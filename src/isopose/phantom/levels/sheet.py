"""The canvas of one slice in units of the body, and shapes used at several levels: bones, tubes, arms."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.levels.person import Person

AIR_HU = -1000.0


@dataclass(frozen=True)
class Sheet:
    """One slice in the patient's coordinates.

    Args:
        x: ``(rows, columns)``, toward the patient's left, in half widths of the trunk.
        y: the same shape, toward the back, in half depths of the trunk.
        hu: the same shape, painted in place.
        person: whose slice it is.
    """

    x: np.ndarray
    y: np.ndarray
    hu: np.ndarray
    person: Person

    @property
    def round(self) -> float:
        """Half depths in a half width: a disc of radius r along x has radius r times this along y."""
        return self.person.half_width_mm / self.person.half_depth_mm

    def ellipse(
        self, cx: float, cy: float, a: float, b: float | None = None, *, lean: float = 0.0, power: float = 2.0
    ) -> np.ndarray:
        """Return the pixels of a superellipse.

        Args:
            cx: center, half widths.
            cy: center, half depths.
            a: half axis along x, half widths.
            b: half axis along y, half depths; None: as long in mm as ``a``.
            lean: radians from +x to +y by which it is turned.
            power: exponent; 2 is an ellipse.
        """
        b = a * self.round if b is None else b
        u, v = self.x - cx, self.y - cy
        if lean:
            # Turned in units of half widths, in which angles are true.
            v = v / self.round
            u, v = np.cos(lean) * u + np.sin(lean) * v, np.cos(lean) * v - np.sin(lean) * u
            b = b / self.round
        inside: np.ndarray = np.abs(u / a) ** power + np.abs(v / b) ** power < 1.0
        return inside

    def bar(self, start: tuple[float, float], stop: tuple[float, float], thick: float) -> np.ndarray:
        """Return the pixels within ``thick`` (half widths) of a line between two points ``(x, y)``."""
        x, y = self.x, self.y / self.round
        (ax, ay), (bx, by) = start, stop
        ay, by = ay / self.round, by / self.round
        dx, dy = bx - ax, by - ay
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-9), 0.0, 1.0)
        inside: np.ndarray = np.hypot(x - ax - t * dx, y - ay - t * dy) < thick
        return inside

    def paint(self, where: np.ndarray, hu: float) -> None:
        """Set pixels to a value in HU."""
        self.hu[where] = hu


def paint_bone(sheet: Sheet, whole: np.ndarray, inner: np.ndarray) -> None:
    """Paint a bone: cortex, and cancellous bone where ``inner``."""
    sheet.paint(whole, sheet.person.cortex_hu)
    sheet.paint(inner, sheet.person.bone_hu)


def paint_vertebra(sheet: Sheet, y: float, size: float, lean: float, *, processes: bool) -> None:
    """Paint a vertebral body, the canal behind it, its arch and its processes.

    Args:
        sheet: the slice.
        y: of the body's center, half depths.
        size: half the body's width, half widths.
        lean: radians of the transverse processes behind the horizontal.
        processes: whether the slice meets them.
    """
    tall = 0.75 * size * sheet.round
    back = y + 1.75 * tall
    paint_bone(
        sheet, sheet.ellipse(0.0, y, size, tall, power=2.6), sheet.ellipse(0.0, y, 0.85 * size, 0.82 * tall)
    )
    arch = sheet.ellipse(0.0, back, 0.72 * size, 0.85 * tall)
    sheet.paint(arch, sheet.person.cortex_hu)
    sheet.paint(sheet.ellipse(0.0, back, 0.5 * size, 0.6 * tall), 0.5 * (sheet.person.fluid_hu + 40.0))
    if processes:
        sheet.paint(
            sheet.bar((0.0, back + 0.7 * tall), (0.0, back + 2.4 * tall), 0.14 * size), sheet.person.bone_hu
        )
        for side in (-1.0, 1.0):
            end = (side * 1.9 * size, back + (0.4 + lean) * tall)
            sheet.paint(sheet.bar((side * 0.6 * size, back), end, 0.2 * size), sheet.person.bone_hu)


def paint_arm_pair(sheet: Sheet, rng: np.random.Generator, y: float, gap: float, *, bones: int) -> None:
    """Paint an arm on each side of the trunk: skin, fat, muscle and one or two bones.

    Args:
        sheet: the slice.
        rng: of small differences between the sides.
        y: of their centers, half depths.
        gap: between trunk and arm, half widths.
        bones: 1 above the elbow, 2 below it.
    """
    person = sheet.person
    for side in (-1.0, 1.0):
        radius = person.arm * float(rng.uniform(0.85, 1.15))
        x = side * (1.0 + gap + radius)
        sheet.paint(sheet.ellipse(x, y, radius), person.fat_hu)
        sheet.paint(sheet.ellipse(x, y, (0.95 - 0.6 * min(person.fat, 0.5)) * radius), person.muscle_hu)
        for shift in (0.0,) if bones == 1 else (-0.35, 0.35):
            thick = (0.25 if bones == 1 else 0.17) * radius
            place = (x + shift * radius, y + shift * radius)
            paint_bone(sheet, sheet.ellipse(*place, thick), sheet.ellipse(*place, 0.5 * thick))


def paint_dots(
    sheet: Sheet, rng: np.random.Generator, where: np.ndarray, count: int, radius: float, hu: float
) -> None:
    """Paint small discs at random places within a region, such as vessels in the lung or bowel loops."""
    rows, columns = np.nonzero(where)
    if len(rows) == 0:
        return
    for number in rng.integers(0, len(rows), count):
        cx, cy = float(sheet.x[rows[number], columns[number]]), float(sheet.y[rows[number], columns[number]])
        size = radius * float(rng.uniform(0.5, 1.5))
        sheet.paint(
            sheet.ellipse(cx, cy, size, lean=float(rng.uniform(0.0, 3.0)), b=0.7 * size * sheet.round)
            & where,
            hu,
        )
