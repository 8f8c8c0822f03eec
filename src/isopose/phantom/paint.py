"""Paint soft organs on a canvas: blobs, tubes, liver, kidneys, tumor, lung bases."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.interpolate import make_interp_spline

from isopose.geometry.volume import PixelWindow
from isopose.phantom.anatomy import Anatomy
from isopose.phantom.organs import Blob, Kidney, Tube
from isopose.phantom.section import Canvas, Section, union
from isopose.phantom.shapes import Waves, capsule, inside, smooth_min
from isopose.phantom.tumor import Tumor

GAS_HU = -960.0
LUNG_HU = -840.0


@dataclass(frozen=True)
class Brush:
    """Parameters of all painting functions besides canvas and section.

    Args:
        up: ``(3,)`` unit vector against gravity, canonical.
        mottle: texture field of stool, spleen and pancreas.
        anatomy: the patient.
    """

    up: np.ndarray
    mottle: Waves
    anatomy: Anatomy

    def now(self, points: np.ndarray) -> np.ndarray:
        """Return where the tissue of resting points ``(n, 3)`` is after tumor growth and wobble."""
        mass = self.anatomy.tumor.mass
        place = mass.after(points)
        for _ in range(2):
            place = mass.after(points - self._wobble(place))
        return place

    def bound(self, centers: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return spheres that contain, after growth and wobble, the tissue that was in given spheres at rest.

        Args:
            centers: ``(n, 3)`` canonical mm.
            radii: ``(n,)`` mm.
        """
        mass = self.anatomy.tumor.mass
        # The wobble stretches by up to a third (amplitude times wave number); the rest allows for the error
        # of the inverse.
        shifted = centers - self._wobble(mass.after(centers))
        return mass.bound(shifted, 1.35 * radii + 0.25 * self.anatomy.wobble_mm)

    def _wobble(self, points: np.ndarray) -> np.ndarray:
        """Return the displacement ``(n, 3)`` in mm at points ``(n, 3)``."""
        fields = [field(*points.T) for field in self.anatomy.wobble]
        return self.anatomy.wobble_mm * np.stack(fields, axis=1)


@dataclass(frozen=True)
class Line:
    """A tube cut into short straight pieces, with the spheres that contain them after growth."""

    tube: Tube
    points: np.ndarray
    radii: np.ndarray
    centers: np.ndarray
    reaches: np.ndarray
    middles: np.ndarray


@dataclass(frozen=True)
class Lines:
    """Tubes in painting order, with the spheres of all their pieces in one array.

    ``owner`` is the tube of each sphere, ``first`` the index of each tube's first sphere.
    """

    lines: tuple[Line, ...]
    centers: np.ndarray
    reaches: np.ndarray
    owner: np.ndarray
    first: np.ndarray


def make_lines(brush: Brush, tubes: Sequence[Tube]) -> Lines:
    """Cut tubes into pieces; done once per patient."""
    lines = tuple(make_line(brush, tube) for tube in tubes)
    counts = np.array([len(line.reaches) for line in lines])
    return Lines(
        lines=lines,
        centers=np.concatenate([line.centers for line in lines]),
        reaches=np.concatenate([line.reaches for line in lines]),
        owner=np.repeat(np.arange(len(lines)), counts),
        first=np.cumsum(counts) - counts,
    )


def make_line(brush: Brush, tube: Tube) -> Line:
    """Cut a tube into pieces along its smoothed center line, and compute the sphere around each."""
    count = len(tube.points)
    length = float(np.linalg.norm(np.diff(tube.points, axis=0), axis=1).sum())
    pieces = int(np.clip(length / (2.5 * float(tube.radii.mean())), count - 1, 24))
    t, fine = np.linspace(0.0, 1.0, count), np.linspace(0.0, 1.0, pieces + 1)
    points = make_interp_spline(t, tube.points, k=min(3, count - 1))(fine)
    radii = np.interp(fine, t, tube.radii)
    middles = 0.5 * (points[1:] + points[:-1])
    halves = 0.5 * np.linalg.norm(np.diff(points, axis=0), axis=1) + np.maximum(radii[1:], radii[:-1])
    centers, reaches = brush.bound(middles, halves)
    return Line(tube, points, radii, centers, reaches, brush.now(middles))


def paint_lines(brush: Brush, section: Section, canvas: Canvas, lines: Lines) -> None:
    """Paint all tubes that intersect the plane, in order."""
    ranges = section.windows(lines.centers, lines.reaches)
    meets = np.flatnonzero((ranges[:, 1] > ranges[:, 0]) & (ranges[:, 3] > ranges[:, 2]))
    owner = lines.owner[meets]
    for start in np.flatnonzero(np.diff(owner, prepend=-1)):
        line = lines.lines[owner[start]]
        pieces = meets[start : start + np.count_nonzero(owner == owner[start])]
        _paint_line(brush, section, canvas, line, ranges[pieces], pieces - lines.first[owner[start]])


def _paint_line(
    brush: Brush, section: Section, canvas: Canvas, line: Line, ranges: np.ndarray, active: np.ndarray
) -> None:
    """Paint the active pieces of one tube in the rectangle around their pixel ranges."""
    window = union(ranges)
    assert window is not None
    tissue = section.tissue(window)
    pieces = (
        capsule(*tissue, line.points[k : k + 2], (float(line.radii[k]), float(line.radii[k + 1])))
        for k in active
    )
    distance = reduce(np.minimum, pieces)
    center = line.middles[active].mean(axis=0)
    half = float(line.radii[active].mean()) - line.tube.wall
    fill(brush, section, canvas, window, distance, line.tube, center, half)


def paint_blob(brush: Brush, section: Section, canvas: Canvas, blob: Blob) -> None:
    """Paint a blob where it intersects the plane."""
    window = union(section.windows(*brush.bound(blob.center[None], np.array([1.1 * blob.axes.max()]))))
    if window is None:
        return
    half = float(np.linalg.norm(blob.axes * (blob.frame @ brush.up))) - blob.wall
    distance = blob.distance(*section.tissue(window))
    fill(brush, section, canvas, window, distance, blob, brush.now(blob.center[None])[0], half)


def fill(
    brush: Brush,
    section: Section,
    canvas: Canvas,
    window: PixelWindow,
    distance: np.ndarray,
    organ: Blob | Tube,
    center: np.ndarray,
    half_height: float,
) -> None:
    """Paint wall, content and gas of an organ; gas is above its content, with a level surface.

    Args:
        brush: direction of gravity and texture.
        section: the plane.
        canvas: changed in place.
        window: pixels to paint.
        distance: signed distance in mm to the organ's surface in the window.
        organ: densities, wall, gas and mottle.
        center: ``(3,)`` of the organ, canonical mm.
        half_height: of the organ along gravity, mm.
    """
    alpha = inside(distance, section.edge) * canvas.cavity[window]
    value: np.ndarray | float = organ.hu
    if organ.mottle > 0.0:
        value = organ.hu + organ.mottle * brush.mottle(*section.tissue(window))
    if organ.gas > 0.0:
        level = float(brush.up @ center) + (1.0 - 2.0 * organ.gas) * half_height
        x, y, z = section.points(window)
        height = float(brush.up[0]) * x + float(brush.up[1]) * y + float(brush.up[2]) * z
        value = value + inside(level - height, section.edge) * (GAS_HU - value)
    if organ.wall > 0.0:
        value = organ.wall_hu + inside(distance + organ.wall, section.edge) * (value - organ.wall_hu)
    canvas.paint(window, alpha, value)


def paint_liver(brush: Brush, section: Section, canvas: Canvas) -> None:
    """Paint the liver's lobes, joined smoothly."""
    anatomy = brush.anatomy
    centers = np.stack([lobe.center for lobe in anatomy.liver])
    reaches = np.array([1.2 * lobe.axes.max() for lobe in anatomy.liver])
    window = union(section.windows(*brush.bound(centers, reaches)))
    if window is None:
        return
    tissue = section.tissue(window)
    distance = anatomy.liver[0].distance(*tissue)
    for lobe in anatomy.liver[1:]:
        distance = smooth_min(distance, lobe.distance(*tissue), 0.10 * anatomy.size.width)
    canvas.paint(window, inside(distance, section.edge) * canvas.cavity[window], anatomy.liver_hu)


def paint_kidney(brush: Brush, section: Section, canvas: Canvas, kidney: Kidney) -> None:
    """Paint perirenal fat, cortex, pyramids, sinus and pelvis; the parenchyma is labeled kidney."""
    anatomy = brush.anatomy
    halo = 0.8 + 0.022 * anatomy.size.depth * (0.3 + anatomy.trunk.maturity)
    reach = 1.25 * float(kidney.axes.max()) + halo
    window = union(section.windows(*anatomy.tumor.mass.bound(kidney.center[None], np.array([reach]))))
    if window is None:
        return
    u, v, w = kidney.own(*(p[window] for p in section.grown))
    surface, sinus = kidney.surface(u, v, w), kidney.sinus(u, v, w)
    room = canvas.cavity[window]
    canvas.paint(window, inside(surface - halo, section.edge) * room, anatomy.fat_hu + 8.0)
    a, b, c = (float(value) for value in kidney.axes)
    length = np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2) + 1e-3
    nearest = np.full(u.shape, -1.0, dtype=np.float32)
    for p, q, s in kidney.pyramids.tolist():
        nearest = np.maximum(nearest, (p * (u / a) + q * (v / b) + s * (w / c)) / length)
    cortex = 0.20 * b + 0.6
    # A pyramid is broad below the cortex and narrows to its papilla at the sinus.
    narrow = 0.855 + 0.09 * np.clip((-surface - cortex) / (0.6 * b), 0.0, 1.0)
    medulla = inside(surface + cortex, 1.5 * section.edge) * np.clip(
        (nearest - narrow) * 25.0 + 0.5, 0.0, 1.0
    )
    value = kidney.cortex_hu + medulla * (kidney.medulla_hu - kidney.cortex_hu)
    alpha = np.minimum(inside(surface, section.edge), inside(-sinus, section.edge)) * room
    canvas.paint(window, alpha, value)
    canvas.kidney[window] += alpha
    hollow = inside(sinus, section.edge) * inside(surface - 0.15 * a, section.edge) * room
    canvas.paint(window, hollow, anatomy.fat_hu + 25.0)
    pelvis = np.sqrt(((u - 0.72 * a) / (0.46 * a)) ** 2 + (v / (0.15 * b)) ** 2 + (w / (0.24 * c)) ** 2)
    canvas.paint(window, inside((pelvis - 1.0) * 0.2 * b, section.edge) * room, 12.0)


def paint_tumor(section: Section, canvas: Canvas, tumor: Tumor) -> None:
    """Paint a tumor: solid with texture, necrosis and a thin capsule, within the abdominal cavity."""
    mass = tumor.mass
    reach = mass.radius * float(mass.stretch.max()) * (1.0 + 3.0 * mass.lobulation)
    window = section.window(mass.center, reach + 2.0)
    if window is None:
        return
    x, y, z = section.points(window)
    distance = mass.distance(x, y, z)
    share = inside(distance, section.edge) * canvas.cavity[window]
    px, py, pz = (p - float(c) for p, c in zip((x, y, z), mass.center, strict=True))
    coarse = tumor.coarse(px, py, pz)
    # Necrosis is mostly central, where blood supply is poor.
    dead = coarse - 1.2 * np.clip(distance / mass.radius + 1.0, 0.0, 1.0) ** 2 + 0.5
    dead = np.clip((dead - tumor.necrosis) * 4.0 + 0.5, 0.0, 1.0) * inside(distance + 0.12 * mass.radius, 3.0)
    solid = tumor.hu + 6.0 * coarse + 5.0 * tumor.fine(px, py, pz)
    solid = solid + 22.0 * inside(np.abs(distance + 1.0) - 0.9, 1.5)
    value = solid + dead * (tumor.necrosis_hu + 3.0 * coarse - solid)
    if tumor.calcified:
        value = value + 500.0 * np.clip(tumor.fine(py, pz, px) - 2.1, 0.0, 0.6) * inside(distance + 3.0, 3.0)
    canvas.paint(window, share, value)
    canvas.tumor[window] += share


def paint_lung(anatomy: Anatomy, section: Section, canvas: Canvas) -> None:
    """Paint the lung bases, between the dome of the diaphragm and the chest wall."""
    unit = anatomy.size.level
    if float(section.z.max()) < 1.3 * unit:
        return
    whole = (slice(None), slice(None))
    share = np.clip(section.radius / section.curve(section.outline.cavity, whole), 0.0, 1.0)
    sine = section.y / np.maximum(section.radius, 1.0)
    low = (3.6 - 1.8 * sine) * unit
    dome = 7.5 * unit - (7.5 * unit - low) * share**2
    canvas.paint(whole, inside(dome - section.z, 2.0 * section.edge) * canvas.cavity, LUNG_HU)
