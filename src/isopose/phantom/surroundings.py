"""Paint the patient's surroundings: table, mat, blanket, arms."""

import numpy as np

from isopose.geometry.volume import PixelWindow
from isopose.phantom.anatomy import Anatomy
from isopose.phantom.outline import COS, SIN
from isopose.phantom.pose import Pose
from isopose.phantom.scan import PhantomScan, rim
from isopose.phantom.section import coordinates
from isopose.phantom.shapes import inside
from isopose.phantom.tones import CT, Tones


def body_window(anatomy: Anatomy, pose: Pose, scan: PhantomScan) -> PixelWindow:
    """Return the pixels that the trunk can cover in any slice, with a margin."""
    unit = anatomy.size.level
    shift = np.array([0.0, 0.0, 4.0 * unit])
    skin = np.concatenate([rim(anatomy) + step * shift for step in (-1.0, 0.0, 1.0)])
    place = (skin @ pose.rotation.T + np.array(pose.offset))[:, :2] - np.array(scan.origin)[:2]
    low = np.clip(np.floor(place.min(axis=0) / scan.pixel) - 4, 0, scan.size).astype(int)
    high = np.clip(np.ceil(place.max(axis=0) / scan.pixel) + 5, 0, scan.size).astype(int)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def background(anatomy: Anatomy, pose: Pose, scan: PhantomScan) -> np.ndarray:
    """Return air with table, mat and blanket, HU float32 ``(rows, columns)``; the same for all slices."""
    axis = (np.arange(scan.size, dtype=np.float32) - 0.5 * (scan.size - 1)) * np.float32(scan.pixel)
    x, y = axis[None, :], axis[:, None]
    down, hu = pose.gravity_world, np.full((scan.size, scan.size), -1000.0, dtype=np.float32)
    # Coordinates along gravity and across it; gravity is along one of the world's axes.
    deep = np.float32(down[0]) * x + np.float32(down[1]) * y
    side = np.float32(down[1]) * x - np.float32(down[0]) * y
    skin = rim(anatomy) @ pose.rotation.T + np.array(pose.offset)
    skin_deep = skin[:, :2] @ down[:2]
    skin_side = skin[:, 0] * down[1] - skin[:, 1] * down[0]
    # The table is a shallow trough around the scanner's center; it touches the body at its lowest point.
    top = float((skin_deep + skin_side**2 / (2.0 * scan.table_radius)).max()) + scan.table_gap
    surface = deep - (top - side**2 / (2.0 * scan.table_radius))
    on = np.clip((215.0 - np.abs(side)) / scan.pixel + 0.5, 0.0, 1.0)
    soft = max(scan.pixel, 0.6)

    def layer(start: float, thick: float, value: float) -> None:
        alpha = np.clip(0.5 + (0.5 * thick - np.abs(surface - start - 0.5 * thick)) / soft, 0.0, 1.0) * on
        hu[...] += min(1.0, thick / soft) * alpha * (value - hu)

    layer(0.0, 42.0, -935.0)  # foam core
    layer(0.0, 1.6, 30.0)  # carbon shells
    layer(40.0, 1.8, 60.0)
    if scan.mattress:
        layer(-min(5.0, scan.table_gap + 1.0), min(5.0, scan.table_gap + 1.0), -880.0)
    if scan.blanket is not None:
        _blanket(hu, anatomy, pose, scan, x, y)
    return hu


def _blanket(
    hu: np.ndarray, anatomy: Anatomy, pose: Pose, scan: PhantomScan, x: np.ndarray, y: np.ndarray
) -> None:
    """Paint a thin, loose cloth over the upper side of the body."""
    matrix = pose.rotation[:2, :2]
    skin = anatomy.trunk.at(0.0).skin
    px, py = x - np.float32(pose.offset[0]), y - np.float32(pose.offset[1])
    cx = np.float32(matrix[0, 0]) * px + np.float32(matrix[1, 0]) * py
    cy = np.float32(matrix[0, 1]) * px + np.float32(matrix[1, 1]) * py
    angle = np.arctan2(cy, cx)
    smooth = np.float32(skin.max()) * 0.35 + 0.65 * np.interp(angle, np.arctan2(SIN, COS), skin)
    upper = -(pose.gravity_world[0] * px + pose.gravity_world[1] * py) > 0.1 * anatomy.size.depth
    d = np.abs(np.hypot(cx, cy) - smooth - scan.blanket - 1.5 * np.sin(9.0 * angle)) - 0.5
    hu += np.where(upper, np.clip(0.5 - d / max(scan.pixel, 0.6), 0.0, 1.0), 0.0) * (-620.0 - hu)


def paint_arms(
    anatomy: Anatomy,
    plane: np.ndarray,
    scan: PhantomScan,
    edge: float,
    hu: np.ndarray,
    tones: Tones = CT,
) -> None:
    """Paint arms beside the body: skin, fat, muscle, one bone above the elbow and two below it.

    Args:
        anatomy: the patient.
        plane: ``(4, 4)`` canonical from index of this slice.
        scan: pixel size and the gaps between arms and body.
        edge: width of the soft edge of surfaces, in mm.
        hu: ``(rows, columns)``, changed in place.
        tones: brightness of the tissues.
    """
    size = anatomy.size
    fat, muscle, shell, marrow = (tones.of(value) for value in (anatomy.fat_hu, 58.0, 900.0, 60.0))
    center_index = 0.5 * (scan.size - 1)
    middle = float(plane[2] @ [center_index, center_index, 0.0, 1.0])
    a, b = anatomy.trunk.half_axes(middle)
    radius = size.arm * float(np.clip(1.0 + 0.05 * middle / size.level, 0.75, 1.2))
    for side, gap in ((1.0, scan.arm_gap[0]), (-1.0, scan.arm_gap[1])):
        center = np.array([side * (1.04 * a + gap + radius), 0.30 * b, middle])
        index = np.linalg.solve(plane, [*center, 1.0])[:2]
        low = np.clip(np.floor(index - 1.3 * radius / scan.pixel), 0, scan.size).astype(int)
        high = np.clip(np.ceil(index + 1.3 * radius / scan.pixel) + 1, 0, scan.size).astype(int)
        if (low >= high).any():
            continue
        window = (slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0])))
        x, y, _ = coordinates(plane, window)
        part = hu[window]
        d = np.hypot((x - center[0]) * 1.05, (y - center[1]) * 0.95) - radius
        for inset, value in ((0.0, tones.skin), (1.6, fat), (1.6 + 0.6 * size.fat, muscle)):
            part += inside(d + inset, edge) * (value - part)
        upper = middle > 0.0
        thick = (0.26 if upper else 0.17) * radius
        for share in (0.0,) if upper else (0.3, -0.3):
            bone = np.hypot(x - center[0] - share * radius, y - center[1] + 0.5 * share * radius) - thick
            part += inside(bone, edge) * (shell - part)
            part += inside(bone + 0.45 * thick, edge) * (marrow - part)
