"""Paint structures that a tumor does not displace: spine, ribs, iliac wings, the muscles beside the spine."""

import numpy as np

from isopose.phantom.anatomy import Anatomy
from isopose.phantom.outline import BINS
from isopose.phantom.section import Canvas, Section
from isopose.phantom.shapes import capsule, inside, smooth_min

#: Vertebral levels counted from the second lumbar: the twelfth rib is at 2.
RIBS = {12: 2, 11: 3, 10: 4, 9: 5, 8: 6, 7: 7, 6: 8}
#: End of a rib's bone, as a fraction of the half circumference from the back.
RIB_ENDS = {12: 0.30, 11: 0.52, 10: 0.68, 9: 0.72, 8: 0.76, 7: 0.80, 6: 0.82}


def paint_psoas(anatomy: Anatomy, section: Section, canvas: Canvas) -> None:
    """Paint psoas, which widens from the first to the fifth lumbar vertebra, and quadratus lumborum."""
    size = anatomy.size
    middle = float(section.z.mean())
    grown = float(np.clip(0.62 - 0.14 * middle / size.level, 0.0, 1.05))
    if grown < 0.15:
        return
    radius = size.psoas * grown
    for side in (1.0, -1.0):
        x = side * (0.52 * size.vertebra + 0.72 * radius)
        window = section.window(np.array([x, anatomy.spine_y, middle]), 1.9 * radius + 2.0)
        if window is not None:
            px, py, _ = section.points(window)
            d = np.hypot((px - x) / 0.86, (py - anatomy.spine_y - 0.12 * size.vertebra) / 1.12) - radius
            canvas.paint(window, inside(d, section.edge) * canvas.cavity[window], 63.0)
        wall = anatomy.trunk.back_wall(middle)
        x = side * (0.52 * size.vertebra + 2.15 * size.psoas)
        window = section.window(np.array([x, wall, middle]), 1.4 * size.psoas + 2.0)
        if window is not None and middle < 1.5 * size.level:
            px, py, _ = section.points(window)
            d = np.hypot((px - x) / 1.25, (py - wall) / 0.55) - 0.8 * size.psoas
            canvas.paint(window, inside(d, section.edge) * canvas.cavity[window], 61.0)


def paint_spine(anatomy: Anatomy, section: Section, canvas: Canvas) -> None:
    """Paint the spine: bodies, discs, canal with cord, arches, transverse and spinous processes."""
    size, edge = anatomy.size, section.edge
    w, level = size.vertebra, size.level
    middle = np.array([0.0, anatomy.spine_y + 0.5 * w, 0.0])
    middle[2] = float(section.z.mean())
    window = section.window(middle, 1.75 * w)
    if window is None:
        return
    x, y, z = section.points(window)
    y = y - np.float32(anatomy.spine_y)
    part = z / level
    part = part - np.round(part)  # -0.5 .. 0.5, 0 in the middle of a vertebral body
    half = 0.5 * w * (0.94 + 0.10 * (2.0 * part) ** 2)
    q = np.sqrt(np.sqrt((x / half) ** 4 + (y / (0.74 * half)) ** 4))
    length = np.hypot(x, y)
    outer = length - length / np.maximum(q, 0.05)
    # A newborn's vertebrae are ossified in the center only; the rest is cartilage.
    disc = 0.36 - 0.05 * anatomy.trunk.maturity
    plate = (np.abs(part) - disc) * level
    bone = anatomy.bone_hu
    body = bone + (260.0 + 0.6 * bone) * inside(np.abs(np.maximum(outer, plate) + 0.6) - 0.7, edge)
    canvas.paint(window, inside(outer, edge), 88.0)
    canvas.paint(window, inside(np.maximum(outer, plate), edge), body)

    canal = 2.8 + 0.155 * w
    back = 0.36 * w + canal
    ring = np.hypot(x / 1.12, y - back) - canal
    thick = 0.10 * w + 0.8
    arch = np.abs(ring - 0.5 * thick) - 0.5 * thick
    # The foramina open the arch beside the canal below each pedicle.
    open_ = (part < -0.12) & (y < back + 0.15 * canal)
    arch = np.where(open_, np.maximum(arch, 2.0), arch)
    low = np.abs(part + 0.12) - 0.34  # the processes hang a little below the middle of the body
    tip = min(0.86 * anatomy.trunk.half_axes(float(middle[2]))[1] - anatomy.spine_y, back + canal + 0.80 * w)
    flat = np.zeros_like(x)
    spike = capsule(x, y, flat, np.array([[0.0, back + canal, 0.0], [0.0, tip, 0.0]]), (0.10 * w, 0.065 * w))
    arch = smooth_min(arch, np.maximum(spike, low * level), 0.06 * w)
    thorax = float(middle[2]) > 1.5 * level
    far = np.array([0.80, 0.62]) if thorax else np.array([1.0, 0.30])
    for side in (1.0, -1.0):
        ends = np.array(
            [[side * 0.42 * w, back - 0.3 * canal, 0.0], [side * far[0] * w, far[1] * w + 0.2 * canal, 0.0]]
        )
        wing = np.maximum(capsule(x, y, flat, ends, (0.11 * w, 0.075 * w)), (np.abs(part) - 0.2) * level)
        facet = np.hypot(x - side * (canal + 0.17 * w), y - back - 0.55 * canal) - 0.13 * w
        arch = smooth_min(arch, np.minimum(wing, facet), 0.05 * w)
    value = bone + 60.0 + (250.0 + 0.5 * bone) * inside(np.abs(arch + 0.6) - 0.7, edge)
    canvas.paint(window, inside(arch, edge), value)
    canvas.paint(window, inside(ring, edge), 18.0)
    if middle[2] > -0.3 * level:
        canvas.paint(window, inside(np.hypot(x / 1.2, y - back) - 0.55 * canal, edge), 42.0)


def paint_ribs(anatomy: Anatomy, section: Section, canvas: Canvas) -> None:
    """Paint ribs as oblique arcs in the chest wall, with cartilage that rises in front."""
    unit, edge = anatomy.size.level, section.edge
    if float(section.z.max()) < -2.0 * unit:
        return
    radius = section.outline.rib[section.bin]
    rows, columns = np.nonzero(np.abs(section.radius - radius) < 0.35 * unit + 2.0)
    if len(rows) == 0:
        return
    across = section.radius[rows, columns] - radius[rows, columns]
    z = section.z[rows, columns]
    angle = (section.bin[rows, columns] + 0.5) * (2.0 * np.pi / BINS) - np.pi
    share = np.abs(np.angle(np.exp(1j * (angle - np.pi / 2)))).astype(np.float32) / np.float32(np.pi)
    half = 0.5 * (0.9 + 0.185 * unit)
    distance = np.full(z.shape, 1e3, dtype=np.float32)
    gristle = distance.copy()
    for rib, height in RIBS.items():
        end = RIB_ENDS[rib]
        bone_z = (height + 0.05 - anatomy.rib_drop * np.minimum(share, end) / 0.7) * unit
        rise = bone_z + np.maximum(share - end, 0.0) * 4.5 * unit
        d = np.hypot(across / half, (z - rise) / (2.1 * half)) - 1.0
        distance = np.minimum(distance, np.where((share > 0.10) & (share < end), d * half, 1e3))
        if rib <= 10:
            gristle = np.minimum(gristle, np.where((share >= end) & (share < 0.96), d * half, 1e3))
    place = (rows, columns)
    for d, shell, core in ((gristle, 115.0, 110.0), (distance, 330.0 + anatomy.bone_hu, anatomy.bone_hu)):
        alpha = inside(d, edge)
        value = core + (shell - core) * inside(np.abs(d + 0.4) - 0.5, edge)
        canvas.hu[place] += alpha * (canvas.tones.of(value) - canvas.hu[place])
        canvas.kidney[place] *= 1.0 - alpha
        canvas.tumor[place] *= 1.0 - alpha


def paint_iliac_wings(anatomy: Anatomy, section: Section, canvas: Canvas) -> None:
    """Paint the iliac wings: plates from the sacroiliac joints, below the fourth lumbar vertebra."""
    size = anatomy.size
    middle = float(section.z.mean())
    down = (-2.2 * size.level - middle) / size.level
    if down < 0.0:
        return
    a, b = anatomy.trunk.half_axes(middle)
    reach = float(np.clip(0.35 + 0.35 * down, 0.0, 1.0))
    for side in (1.0, -1.0):
        mid = np.array([side * 0.62 * a, 0.28 * b])
        along = np.array([side * 0.22 * a, -0.36 * b])
        ends = np.zeros((2, 3))
        ends[0, :2], ends[1, :2] = mid - along * reach, mid + along * reach
        window = section.window(np.array([*mid, middle]), 0.6 * a)
        if window is None:
            continue
        x, y, _ = section.points(window)
        d = capsule(x, y, np.zeros_like(x), ends, (0.045 * a + 1.0, 0.025 * a + 0.8))
        value = anatomy.bone_hu + 350.0 * inside(np.abs(d + 0.6) - 0.8, section.edge)
        canvas.paint(window, inside(d, section.edge), value)
