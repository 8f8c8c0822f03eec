"""Anatomy, pose and scan to arrays: HU and labels on the scanner's grid."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from isopose.data.phantom.anatomy import Anatomy
from isopose.data.phantom.paint import (
    Brush,
    Line,
    make_line,
    paint_blob,
    paint_kidney,
    paint_line,
    paint_liver,
    paint_lung,
    paint_tumour,
)
from isopose.data.phantom.organs import Blob, Tube
from isopose.data.phantom.pose import Pose
from isopose.data.phantom.scan import Scan, background
from isopose.data.phantom.section import Canvas, Section, make_section, paint_trunk
from isopose.data.phantom.shapes import Waves, inside
from isopose.data.phantom.skeleton import paint_pelvis, paint_psoas, paint_ribs, paint_spine

KIDNEY, TUMOUR = 1, 2


@dataclass(frozen=True)
class _Plan:
    """What is prepared once per patient: tubes cut into pieces, in painting order."""

    brush: Brush
    early: tuple[Line, ...]
    viscera: tuple[Blob | Line, ...]
    vessels: tuple[Line, ...]


def render(
    anatomy: Anatomy, pose: Pose, scan: Scan, rng: np.random.Generator, *, noise: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Render one patient.

    Args:
        anatomy: the patient.
        pose: how the patient lies.
        scan: the grid.
        rng: noise and fine texture.
        noise: whether to add noise.

    Returns:
        HU as int16 and labels (0, 1 kidney, 2 tumour) as uint8, both ``(z, y, x)`` on ``scan``'s grid.
    """
    unit = anatomy.size.level
    brush = Brush(-pose.gravity_canonical, Waves.sample(rng, 6, 0.25 * unit, 0.8 * unit), anatomy)
    plan = _Plan(
        brush=brush,
        early=tuple(make_line(brush, tube) for tube in (*anatomy.mesentery, *anatomy.bowel)),
        viscera=tuple(make_line(brush, o) if isinstance(o, Tube) else o for o in anatomy.viscera),
        vessels=tuple(make_line(brush, tube) for tube in anatomy.vessels),
    )
    back = background(anatomy, pose, scan)
    canonical_from_world = np.linalg.inv(pose.world_from_canonical)
    image = np.empty((scan.slices, scan.size, scan.size), dtype=np.int16)
    labels = np.zeros(image.shape, dtype=np.uint8)
    # Thick slices are the mean of thinner ones; a surface is as wide as the rest of the averaging.
    subs = int(np.clip(np.ceil(scan.thickness / 3.0), 1, 3))
    edge = max(1.1 * scan.pixel, 0.7)
    for k in range(scan.slices):
        hu = np.zeros((scan.size, scan.size), dtype=np.float32)
        kidney, tumour = np.zeros_like(hu), np.zeros_like(hu)
        for sub in range(subs):
            plane = scan.world_from_index.copy()
            plane[2, 3] += (k + (sub + 0.5) / subs - 0.5) * scan.thickness
            section = make_section(
                anatomy, canonical_from_world @ plane, (scan.size, scan.size), scan.pixel, edge
            )
            canvas = _paint(plan, section, scan, back.copy())
            hu += canvas.hu
            kidney += canvas.kidney
            tumour += canvas.tumour
        hu /= subs
        labels[k][(kidney + tumour) >= 0.5 * subs] = KIDNEY
        labels[k][((kidney + tumour) >= 0.5 * subs) & (tumour > kidney)] = TUMOUR
        if noise:
            hu += _noise(rng, anatomy, scan, section)
        np.clip(np.rint(hu), -1024, 3071, out=hu)
        image[k] = hu.astype(np.int16)
    return image, labels


def _paint(plan: _Plan, section: Section, scan: Scan, hu: np.ndarray) -> Canvas:
    """Everything in one plane, from the outside to the inside and from the soft to the hard."""
    brush, anatomy = plan.brush, plan.brush.anatomy
    if scan.arms == "beside":
        _paint_arms(anatomy, section, scan, hu)
    canvas = paint_trunk(anatomy, section, hu)
    for line in plan.early:
        paint_line(brush, section, canvas, line)
    for organ in plan.viscera:
        if isinstance(organ, Line):
            paint_line(brush, section, canvas, organ)
        else:
            paint_blob(brush, section, canvas, organ)
    paint_blob(brush, section, canvas, anatomy.spleen)
    paint_liver(brush, section, canvas)
    paint_psoas(anatomy, section, canvas)
    for kidney in anatomy.kidneys:
        paint_kidney(brush, section, canvas, kidney)
    for cyst in anatomy.cysts:
        paint_blob(brush, section, canvas, cyst)
    for line in plan.vessels:
        paint_line(brush, section, canvas, line)
    paint_tumour(brush, section, canvas, anatomy.tumour)
    paint_lung(brush, section, canvas)
    paint_spine(anatomy, section, canvas)
    paint_ribs(anatomy, section, canvas)
    paint_pelvis(anatomy, section, canvas)
    return canvas


def _paint_arms(anatomy: Anatomy, section: Section, scan: Scan, hu: np.ndarray) -> None:
    """Arms beside the body: skin, fat, muscle, one bone above the elbow and two below it."""
    size = anatomy.size
    middle = float(section.z.mean())
    a, b = anatomy.trunk.half_axes(middle)
    radius = size.arm * float(np.clip(1.0 + 0.05 * middle / size.level, 0.75, 1.2))
    for side, gap in ((1.0, scan.arm_gap[0]), (-1.0, scan.arm_gap[1])):
        centre = np.array([side * (a + gap + radius), 0.30 * b, middle])
        window = section.window(centre, 1.3 * radius)
        if window is None:
            continue
        x, y, _ = section.points(window)
        part = hu[window]
        d = np.hypot((x - centre[0]) * 1.05, (y - centre[1]) * 0.95) - radius
        for inset, value in ((0.0, 25.0), (1.6, anatomy.fat_hu), (1.6 + 0.6 * size.fat, 58.0)):
            part += inside(d + inset, section.edge) * (value - part)
        bones = (
            [(0.0, 0.0)]
            if middle > 0.0
            else [(0.30 * radius, -0.15 * radius), (-0.30 * radius, 0.15 * radius)]
        )
        thick = (0.26 if middle > 0.0 else 0.17) * radius
        for dx, dy in bones:
            bone = np.hypot(x - centre[0] - dx, y - centre[1] - dy) - thick
            part += inside(bone, section.edge) * (900.0 - part)
            part += inside(bone + 0.45 * thick, section.edge) * (60.0 - part)


def _noise(rng: np.random.Generator, anatomy: Anatomy, scan: Scan, section: Section) -> np.ndarray:
    """CT noise of one slice: not white (the kernel), stronger in the middle of the body than in air."""
    white = rng.standard_normal((scan.size, scan.size), dtype=np.float32)
    sigma = float(np.clip(0.75 / scan.pixel, 0.45, 1.4))
    # Filtered back projection suppresses both the finest and the coarsest noise: a band.
    band = gaussian_filter(white, sigma) - 0.6 * gaussian_filter(white, 2.2 * sigma)
    band /= np.float32(band.std())
    skin = section.curve(section.outline.skin, (slice(None), slice(None)))
    depth = np.clip(section.radius / skin, 0.0, 2.0)
    level = np.where(depth < 1.0, 1.15 - 0.35 * depth, np.maximum(0.8 - 0.5 * (depth - 1.0), 0.35))
    return band * (level * np.float32(scan.noise_hu))
