"""How one patient is scanned: field of view, slices, dose, table, arms, blanket."""

from dataclasses import dataclass

import numpy as np

from isopose.data.phantom.anatomy import Anatomy
from isopose.data.phantom.outline import COS, SIN
from isopose.data.phantom.pose import Pose

#: Pixel sizes in mm of a 512 matrix, as in the paper's cohort.
FINEST_MM, COARSEST_MM = 0.35, 0.95
THINNEST_MM, THICKEST_MM = 1.0, 5.0
LEAST_MARGIN_MM = 5.0


@dataclass(frozen=True)
class Scan:
    """The grid and what lies on it besides the patient.

    Args:
        size: columns and rows.
        slices: number of slices.
        pixel: mm.
        thickness: mm, also the distance between slices.
        origin: ``(3,)`` LPS mm of the first voxel's centre; the axes are LPS.
        arms: ``"beside"`` the body (in the field) or ``"above"`` (out of it).
        arm_gap: mm between body and arm, left and right.
        noise_hu: sd of the noise in the patient's middle.
        table_gap: mm between the lowest point of the body and the table.
        table_radius: mm, how strongly the table is curved.
        mattress: whether a thin mat lies on the table.
        blanket: mm that a blanket lies above the body, None for none.
    """

    size: int
    slices: int
    pixel: float
    thickness: float
    origin: tuple[float, float, float]
    arms: str
    arm_gap: tuple[float, float]
    noise_hu: float
    table_gap: float
    table_radius: float
    mattress: bool
    blanket: float | None

    @property
    def world_from_index(self) -> np.ndarray:
        """``(4, 4)`` from (x, y, z) indices to LPS mm."""
        matrix = np.diag([self.pixel, self.pixel, self.thickness, 1.0])
        matrix[:3, 3] = self.origin
        return matrix


def sample_scan(
    rng: np.random.Generator, anatomy: Anatomy, pose: Pose, size: int, slices: int | None
) -> Scan:
    """Choose field, slices and surroundings so that both kidneys and the tumour are covered.

    Args:
        rng: source of all variation.
        anatomy: the patient.
        pose: how the patient lies.
        size: matrix; pixel sizes of 0.35 to 0.95 mm hold at 512 and grow by 512 / size.
        slices: number of slices, or None to let thickness (1 to 5 mm) and range decide. When given, the margins
            above and below are trimmed to 5 mm before the thickness exceeds 5 mm, and the thickness exceeds it
            only where even that does not cover the kidneys; the range is never cut into them.
    """
    corners = rim(anatomy) @ pose.rotation.T + np.array(pose.offset)
    half = float(np.abs(corners[:, :2]).max())
    field = 2.0 * half * rng.uniform(1.04, 1.30)
    arms = "beside" if rng.random() < 0.4 else "above"
    if arms == "beside":
        field = max(field, 2.0 * half + 2.0 * anatomy.size.arm * rng.uniform(0.5, 2.2))
    pixel = float(np.clip(field / 512.0, FINEST_MM, COARSEST_MM)) * 512.0 / size
    points = landmarks(anatomy) @ pose.rotation.T + np.array(pose.offset)
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    margins = anatomy.size.level * rng.uniform(0.7, 2.0, 2) + LEAST_MARGIN_MM
    thickness = float(rng.uniform(THINNEST_MM, THICKEST_MM))
    if slices is None:
        count = int(np.ceil((high - low + margins.sum()) / thickness))
    else:
        count = slices
        spare = max(THICKEST_MM * count - (high - low), 2.0 * LEAST_MARGIN_MM)
        margins = margins * min(1.0, spare / float(margins.sum()))
        thickness = max(THINNEST_MM, (high - low + float(margins.sum())) / count)
    middle = 0.5 * (low - margins[0] + high + margins[1])
    # Quantum noise: thin slices and large bodies are noisier at a given dose; the scanner makes up for part.
    noise = float(np.exp(rng.uniform(np.log(6.0), np.log(15.0)))) * (2.5 / thickness) ** 0.25
    edge = -0.5 * (size - 1) * pixel
    return Scan(
        size=size,
        slices=count,
        pixel=pixel,
        thickness=thickness,
        origin=(edge, edge, middle - 0.5 * (count - 1) * thickness),
        arms=arms,
        arm_gap=(float(rng.uniform(1.0, 25.0)), float(rng.uniform(1.0, 25.0))),
        noise_hu=float(np.clip(noise * (anatomy.size.width / 200.0) ** 0.4, 5.0, 24.0)),
        table_gap=float(rng.uniform(0.0, 6.0) if rng.random() < 0.6 else rng.uniform(6.0, 20.0)),
        table_radius=float(rng.uniform(320.0, 600.0)),
        mattress=bool(rng.random() < 0.5),
        blanket=float(rng.uniform(2.0, 10.0)) if rng.random() < 0.25 else None,
    )


def rim(anatomy: Anatomy) -> np.ndarray:
    """``(n, 3)`` points of the skin around the kidneys, canonical mm."""
    rings = []
    for z in np.linspace(-2.0, 3.0, 6) * anatomy.size.level:
        skin = anatomy.trunk.at(z).skin[::16]
        rings.append(np.stack([skin * COS[::16], skin * SIN[::16], np.full(len(skin), z)], axis=1))
    return np.concatenate(rings)


def landmarks(anatomy: Anatomy) -> np.ndarray:
    """``(n, 3)`` points on the surfaces of kidneys (after growth) and tumour, canonical mm."""
    rng = np.random.default_rng(0)  # directions on a sphere; fixed, so it is no source of variation
    unit = rng.standard_normal((200, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mass = anatomy.tumour.mass
    points = [mass.centre + unit * mass.radius * mass.stretch * (1.0 + mass.lobulation)]
    for kidney in anatomy.kidneys:
        own = unit * kidney.axes
        own[:, 0] += 0.30 * kidney.axes[0] * (own[:, 2] / kidney.axes[2]) ** 2
        points.append(np.stack([mass.after(p) for p in kidney.centre + own @ kidney.frame]))
    return np.concatenate(points)


def background(anatomy: Anatomy, pose: Pose, scan: Scan) -> np.ndarray:
    """Air with table, mat and blanket, HU float32 ``(rows, columns)``; the same in every slice."""
    axis = (np.arange(scan.size, dtype=np.float32) - 0.5 * (scan.size - 1)) * np.float32(scan.pixel)
    x, y = axis[None, :], axis[:, None]
    down, hu = pose.gravity_world, np.full((scan.size, scan.size), -1000.0, dtype=np.float32)
    # Along the table and across it: "down" is one of the four axis directions of world.
    deep = np.float32(down[0]) * x + np.float32(down[1]) * y
    side = np.float32(down[1]) * x - np.float32(down[0]) * y
    skin = rim(anatomy) @ pose.rotation.T + np.array(pose.offset)
    skin_deep = skin[:, :2] @ down[:2]
    skin_side = skin[:, 0] * down[1] - skin[:, 1] * down[0]
    # The table is a shallow trough about the scanner's middle; it touches the body where that is lowest in it.
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


def _blanket(hu: np.ndarray, anatomy: Anatomy, pose: Pose, scan: Scan, x: np.ndarray, y: np.ndarray) -> None:
    """A thin cloth over the upper side of the body, lying loosely."""
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
