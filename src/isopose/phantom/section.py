"""One transverse section through the patient: coordinates, windows, and the canvas to paint on."""

from dataclasses import dataclass

import numpy as np

from isopose.geometry.volume import PixelWindow
from isopose.phantom.anatomy import Anatomy
from isopose.phantom.outline import BINS, BodyOutline
from isopose.phantom.shapes import inside
from isopose.phantom.tones import CT, Tones


@dataclass(frozen=True)
class Section:
    """Canonical coordinates of the pixels of one plane, in mm, float32 ``(rows, columns)``.

    Args:
        x: canonical x.
        y: canonical y.
        z: canonical z.
        grown: where each pixel's tissue was before the tumor grew (for kidneys, which do not wobble).
        warped: where each pixel's soft tissue was before tumor growth and the organs' wobble.
        radius: distance from the canonical axis.
        bin: index into the outline's curves.
        outline: the trunk's curves at this height.
        canonical_from_index: ``(4, 4)``, the inverse of ``index_from_canonical``.
        index_from_canonical: ``(4, 4)`` to (column, row, plane) of these arrays; this plane is 0.
        pixel: pixel size in mm.
        plane_mm: distance between the planes of ``index_from_canonical``, in mm.
        edge: width of the soft edge of surfaces, in mm.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    grown: tuple[np.ndarray, np.ndarray, np.ndarray]
    warped: tuple[np.ndarray, np.ndarray, np.ndarray]
    radius: np.ndarray
    bin: np.ndarray
    outline: BodyOutline
    canonical_from_index: np.ndarray
    index_from_canonical: np.ndarray
    pixel: float
    plane_mm: float
    edge: float

    def windows(self, centers: np.ndarray, radii: np.ndarray) -> np.ndarray:
        """Return the pixel ranges of spheres.

        Args:
            centers: ``(n, 3)`` canonical mm.
            radii: ``(n,)`` mm.

        Returns:
            ``(n, 4)`` start and stop row, start and stop column; empty where a sphere misses the plane.
        """
        index = centers @ self.index_from_canonical[:3, :3].T + self.index_from_canonical[:3, 3]
        height = np.abs(index[:, 2]) * self.plane_mm
        reach = np.where(height < radii, radii, -1e9) / self.pixel
        rows, columns = self.x.shape
        low = np.floor(index[:, 1::-1] - reach[:, None]).clip(0, (rows, columns))
        high = np.ceil(index[:, 1::-1] + reach[:, None] + 1).clip(0, (rows, columns))
        return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1).astype(np.int64)

    def window(self, center: np.ndarray, radius: float) -> PixelWindow | None:
        """Return the pixel range of one sphere, or None if it misses the plane."""
        return union(self.windows(np.asarray(center)[None], np.array([radius])))

    def points(self, window: PixelWindow) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the canonical coordinates of a window's pixels."""
        return self.x[window], self.y[window], self.z[window]

    def tissue(self, window: PixelWindow) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the coordinates of a window's tissue before tumor growth and wobble."""
        return self.warped[0][window], self.warped[1][window], self.warped[2][window]

    def curve(self, table: np.ndarray, window: PixelWindow) -> np.ndarray:
        """Return an outline curve's radius in the direction of each pixel of a window."""
        return table[self.bin[window]]


def union(ranges: np.ndarray) -> PixelWindow | None:
    """Return the rectangle around pixel ranges ``(n, 4)``, or None if all are empty."""
    full = ranges[(ranges[:, 1] > ranges[:, 0]) & (ranges[:, 3] > ranges[:, 2])]
    if len(full) == 0:
        return None
    return slice(int(full[:, 0].min()), int(full[:, 1].max())), slice(
        int(full[:, 2].min()), int(full[:, 3].max())
    )


@dataclass(frozen=True)
class Canvas:
    """The image that is painted: float32 ``(rows, columns)`` each.

    Args:
        hu: HU, or the brightness that ``tones`` assigns to it.
        kidney: fraction of each pixel that is kidney.
        tumor: fraction of each pixel that is tumor.
        cavity: fraction of each pixel inside the abdominal cavity, which bounds soft organs.
        tones: brightness of the tissues; values are converted before they are mixed in a pixel.
    """

    hu: np.ndarray
    kidney: np.ndarray
    tumor: np.ndarray
    cavity: np.ndarray
    tones: Tones = CT

    def paint(self, window: PixelWindow, alpha: np.ndarray, value: np.ndarray | float) -> None:
        """Cover a fraction of each pixel with a value; former contents and labels are reduced by it.

        Args:
            window: the pixels.
            alpha: fraction that is covered, 0 to 1.
            value: HU.
        """
        hu = self.hu[window]
        hu += alpha * (self.tones.of(value) - hu)
        keep = 1.0 - alpha
        self.kidney[window] *= keep
        self.tumor[window] *= keep


def make_section(
    anatomy: Anatomy, canonical_from_index: np.ndarray, shape: tuple[int, int], pixel: float, edge: float
) -> Section:
    """Compute the coordinates of one plane.

    Args:
        anatomy: the patient.
        canonical_from_index: ``(4, 4)``; the plane is its plane 0.
        shape: rows and columns.
        pixel: pixel size, mm.
        edge: width of the soft edge of surfaces, mm.
    """
    m = canonical_from_index
    x, y, z = coordinates(m, (slice(0, shape[0]), slice(0, shape[1])))
    middle = float(m[2] @ [0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1), 0.0, 1.0])
    before = anatomy.tumor.mass.before(x, y, z)
    size = np.float32(anatomy.wobble_mm)
    warped = [p + size * field.on_plane(m, shape) for p, field in zip(before, anatomy.wobble, strict=True)]
    angle = (np.arctan2(y, x) + np.float32(np.pi)) * np.float32(BINS / (2.0 * np.pi))
    return Section(
        x=x,
        y=y,
        z=z,
        grown=before,
        warped=(warped[0], warped[1], warped[2]),
        radius=np.hypot(x, y),
        bin=np.minimum(angle.astype(np.int32), BINS - 1),
        outline=anatomy.trunk.at(middle),
        canonical_from_index=m,
        index_from_canonical=np.linalg.inv(m),
        pixel=pixel,
        plane_mm=float(np.linalg.norm(m[:3, 2])),
        edge=edge,
    )


def coordinates(
    canonical_from_index: np.ndarray, window: PixelWindow
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the canonical coordinates x, y, z of a window's pixels, float32."""
    m = canonical_from_index
    j = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
    i = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :]
    x, y, z = ((np.float32(m[a, 0]) * i + np.float32(m[a, 3])) + np.float32(m[a, 1]) * j for a in range(3))
    return x, y, z


def paint_trunk(anatomy: Anatomy, section: Section, hu: np.ndarray, tones: Tones = CT) -> Canvas:
    """Paint skin, fat, muscle wall and the cavity's fat over ``hu`` (air and table), in place."""
    whole = (slice(None), slice(None))
    fat, lean, inner = (tones.of(value) for value in (anatomy.fat_hu, 60.0, anatomy.fat_hu + 6.0))
    canvas = Canvas(hu, np.zeros_like(hu), np.zeros_like(hu), np.zeros_like(hu), tones)
    skin, muscle, cavity = (
        section.curve(table, whole)
        for table in (section.outline.skin, section.outline.muscle, section.outline.cavity)
    )
    thick = 1.0 + 0.012 * anatomy.size.width / 3.0
    hu += inside(section.radius - skin, section.edge) * (tones.skin - hu)
    hu += inside(section.radius - (skin - thick), section.edge) * (fat - hu)
    depth = (section.radius - cavity) / np.maximum(muscle - cavity, 0.5)
    # Thin fat planes between the three muscles of the flank; behind, streaks between the muscles of the back.
    flank = (np.abs(depth - 0.36) < 0.045) | (np.abs(depth - 0.68) < 0.045)
    lateral = np.clip(4.0 - 6.0 * np.abs(section.y) / np.maximum(section.radius, 1.0), 0.0, 1.0)
    planes = np.where(flank, 0.35 * anatomy.trunk.maturity * lateral, 0.0)
    planes = np.maximum(planes, _back_planes(anatomy, section))
    hu += inside(section.radius - muscle, section.edge) * (lean + planes * (fat - lean) - hu)
    canvas.cavity[...] = inside(section.radius - cavity, section.edge)
    hu += canvas.cavity * (inner - hu)
    return canvas


def _back_planes(anatomy: Anatomy, section: Section) -> np.ndarray:
    """Return the fraction of fat around and between the long muscles of the back, 0 to 1."""
    size = anatomy.size
    middle = float(section.z.mean())
    front = 1.04 * anatomy.trunk.back_wall(middle)
    back = float(section.outline.muscle[3 * BINS // 4])
    half = 0.5 * (back - front)
    width = 0.15 * size.width
    x = (np.abs(section.x) - 0.09 * size.width - 0.5 * width) / width
    y = (section.y - front - half) / max(half, 1.0)
    around = np.abs(np.sqrt(x * x + y * y) - 1.0) * half
    between = np.abs(x + 0.25 - 0.3 * y) * width
    line = np.clip(0.9 - around / 1.1, 0.0, 1.0) + 0.5 * np.clip(0.8 - between, 0.0, 1.0) * (np.abs(y) < 0.8)
    return np.where(section.y > front, line * (0.25 + 0.5 * anatomy.trunk.maturity), 0.0)
