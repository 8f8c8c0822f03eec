"""Render anatomy, pose and scan to HU and labels on the scanner's grid."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from isopose.phantom.anatomy import Anatomy
from isopose.phantom.mr import MrScan, acquire
from isopose.phantom.organs import Blob, Tube
from isopose.phantom.paint import (
    Brush,
    Lines,
    make_lines,
    paint_blob,
    paint_kidney,
    paint_lines,
    paint_liver,
    paint_lung,
    paint_tumor,
)
from isopose.phantom.pose import Pose
from isopose.phantom.scan import PhantomScan
from isopose.phantom.section import Canvas, Section, coordinates, make_section, paint_trunk
from isopose.phantom.shapes import Waves
from isopose.phantom.skeleton import paint_iliac_wings, paint_psoas, paint_ribs, paint_spine
from isopose.phantom.surroundings import background, body_window, paint_arms
from isopose.phantom.tones import CT, Tones

KIDNEY, TUMOR = 1, 2


@dataclass(frozen=True)
class _Plan:
    """Data prepared once per patient: tubes cut into pieces, in painting order."""

    brush: Brush
    early: Lines
    viscera: tuple[Blob | Lines, ...]
    vessels: Lines


def render(
    anatomy: Anatomy,
    pose: Pose,
    scan: PhantomScan,
    rng: np.random.Generator,
    *,
    noise: bool = True,
    mr: MrScan | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Render one patient.

    Args:
        anatomy: the patient.
        pose: of the patient.
        scan: grid, noise and surroundings.
        rng: random generator of noise and fine texture.
        noise: whether to add noise.
        mr: parameters of an MR scan, for a patient from :func:`isopose.phantom.mr.drawn_for_mr`; None: CT.

    Returns:
        HU (MR: stored values) as int16 and labels (0, 1 kidney, 2 tumor) as uint8, both ``(z, y, x)`` on
        ``scan``'s grid.
    """
    unit = anatomy.size.level
    brush = Brush(-pose.gravity_canonical, Waves.sample(rng, 6, 0.25 * unit, 0.8 * unit), anatomy)
    plan = _Plan(
        brush=brush,
        early=make_lines(brush, (*anatomy.mesentery, *anatomy.bowel)),
        viscera=tuple(make_lines(brush, [o]) if isinstance(o, Tube) else o for o in anatomy.viscera),
        vessels=make_lines(brush, anatomy.vessels),
    )
    tones = CT if mr is None else mr.tones
    back = background(anatomy, pose, scan) if mr is None else np.zeros((scan.size, scan.size), np.float32)
    canonical_from_world = np.linalg.inv(pose.world_from_canonical)
    image = np.empty((scan.slices, scan.size, scan.size), dtype=np.int16)
    labels = np.zeros(image.shape, dtype=np.uint8)
    # A thick slice is the mean of thinner ones; the soft edge of surfaces covers the rest of the averaging.
    subs = int(np.clip(np.ceil(scan.thickness / 4.0), 1, 3))
    edge = max(1.1 * scan.pixel, 0.7)
    body = body_window(anatomy, pose, scan)
    shape = (body[0].stop - body[0].start, body[1].stop - body[1].start)
    for k in range(scan.slices):
        hu = np.zeros_like(back)
        kidney, tumor = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        for sub in range(subs):
            plane = canonical_from_world @ scan.slice_matrix(k, (sub + 0.5) / subs - 0.5)
            whole = back.copy()
            if scan.arms == "beside":
                paint_arms(anatomy, plane, scan, edge, whole, tones)
            plane[:, 3] += plane[:, 0] * body[1].start + plane[:, 1] * body[0].start
            section = make_section(anatomy, plane, shape, scan.pixel, edge)
            canvas = _paint(plan, section, whole[body], tones)
            hu += whole
            kidney += canvas.kidney
            tumor += canvas.tumor
        hu /= subs
        found = (kidney + tumor) >= 0.5 * subs
        labels[k][body][found] = np.where(tumor[found] > kidney[found], TUMOR, KIDNEY)
        if mr is not None:
            image[k] = acquire(mr, hu, scan.slice_matrix(k), rng, noise=noise)
            continue
        if noise:
            hu += _noise(rng, anatomy, scan, canonical_from_world @ scan.slice_matrix(k))
        np.clip(np.rint(hu), -1024, 3071, out=hu)
        image[k] = hu.astype(np.int16)
    return image, labels


def _paint(plan: _Plan, section: Section, hu: np.ndarray, tones: Tones) -> Canvas:
    """Paint everything in one plane, from outside to inside and from soft to hard tissue."""
    brush, anatomy = plan.brush, plan.brush.anatomy
    canvas = paint_trunk(anatomy, section, hu, tones)
    paint_lines(brush, section, canvas, plan.early)
    for organ in plan.viscera:
        if isinstance(organ, Lines):
            paint_lines(brush, section, canvas, organ)
        else:
            paint_blob(brush, section, canvas, organ)
    paint_blob(brush, section, canvas, anatomy.spleen)
    paint_liver(brush, section, canvas)
    paint_psoas(anatomy, section, canvas)
    for kidney in anatomy.kidneys:
        paint_kidney(brush, section, canvas, kidney)
    for cyst in anatomy.cysts:
        paint_blob(brush, section, canvas, cyst)
    paint_lines(brush, section, canvas, plan.vessels)
    paint_tumor(section, canvas, anatomy.tumor)
    paint_lung(anatomy, section, canvas)
    paint_spine(anatomy, section, canvas)
    paint_ribs(anatomy, section, canvas)
    paint_iliac_wings(anatomy, section, canvas)
    return canvas


def _noise(rng: np.random.Generator, anatomy: Anatomy, scan: PhantomScan, plane: np.ndarray) -> np.ndarray:
    """Draw the noise of one slice in HU.

    It is band-limited, as by a reconstruction kernel, and stronger in the body's center than in air.

    Args:
        rng: source of randomness.
        anatomy: the patient, for the distance of pixels to the body's center.
        scan: noise and pixel size.
        plane: ``(4, 4)`` canonical from index of this slice.
    """
    white = rng.standard_normal((scan.size, scan.size), dtype=np.float32)
    sigma = float(np.clip(0.75 / scan.pixel, 0.45, 1.4))
    # Filtered back projection suppresses both the finest and the coarsest noise: a band.
    band = gaussian_filter(white, sigma) - 0.6 * gaussian_filter(white, 2.2 * sigma)
    band /= np.float32(band.std())
    x, y, _ = coordinates(plane, (slice(0, scan.size), slice(0, scan.size)))
    depth = np.hypot(x * np.float32(2.0 / anatomy.size.width), y * np.float32(2.0 / anatomy.size.depth))
    level = np.where(depth < 1.0, 1.15 - 0.35 * depth, np.maximum(0.8 - 0.5 * (depth - 1.0), 0.35))
    return band * (level * np.float32(scan.noise_hu))
