"""The scan of one phantom: field of view, slices, dose, table, arms, blanket."""

from dataclasses import dataclass

import numpy as np

from isopose.phantom.anatomy import Anatomy
from isopose.phantom.outline import COS, SIN
from isopose.phantom.pose import Pose

#: Pixel sizes in mm of a 512 matrix, as in the paper's cohort.
FINEST_MM, COARSEST_MM = 0.35, 0.95
THINNEST_MM, THICKEST_MM = 1.0, 5.0
MIN_MARGIN_MM = 5.0


@dataclass(frozen=True)
class PhantomScan:
    """The grid of a scan, its noise, and the objects around the patient.

    Args:
        size: columns and rows.
        slices: number of slices.
        pixel: mm.
        thickness: of the slices, mm.
        origin: ``(3,)`` LPS mm of the first voxel's center; the axes are LPS.
        arms: ``"beside"`` the body (in the field) or ``"above"`` (out of it).
        arm_gap: mm between body and arm, left and right.
        noise_hu: standard deviation of the noise in the patient's center.
        table_gap: mm between the lowest point of the body and the table.
        table_radius: radius of the table's curvature, mm.
        mattress: whether a thin mat lies on the table.
        blanket: distance of a blanket above the body, mm; None: no blanket.
        distance: between the centers of neighboring slices, mm; None: their thickness.
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
    distance: float | None = None

    @property
    def world_from_index(self) -> np.ndarray:
        """``(4, 4)`` matrix from (x, y, z) indices to LPS mm."""
        matrix = np.diag([self.pixel, self.pixel, self.distance or self.thickness, 1.0])
        matrix[:3, 3] = self.origin
        return matrix

    def slice_matrix(self, index: int, part: float = 0.0) -> np.ndarray:
        """Return ``world_from_index`` with plane 0 moved to a slice.

        Args:
            index: of the slice.
            part: offset above its center, as a fraction of its thickness.
        """
        matrix = self.world_from_index
        matrix[2, 3] += index * matrix[2, 2] + part * self.thickness
        return matrix


def sample_scan(
    rng: np.random.Generator, anatomy: Anatomy, pose: Pose, size: int, slices: int | None
) -> PhantomScan:
    """Draw a scan whose field of view and slices cover both kidneys and the tumor.

    Args:
        rng: source of randomness.
        anatomy: the patient.
        pose: of the patient.
        size: columns and rows; pixels of 0.35 to 0.95 mm at 512, scaled by 512 / size.
        slices: number of slices; None: as many as thickness (1 to 5 mm) and range need. If given, the margins
            above and below the kidneys are trimmed down to 5 mm first; the thickness exceeds 5 mm only where
            the kidneys would not be covered otherwise.
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
    margins = anatomy.size.level * rng.uniform(0.7, 2.0, 2) + MIN_MARGIN_MM
    thickness = float(rng.uniform(THINNEST_MM, THICKEST_MM))
    if slices is None:
        count = int(np.ceil((high - low + margins.sum()) / thickness))
    else:
        count = slices
        spare = max(THICKEST_MM * count - (high - low), 2.0 * MIN_MARGIN_MM)
        extra = margins - MIN_MARGIN_MM
        trim = (spare - 2.0 * MIN_MARGIN_MM) / float(extra.sum())
        margins = MIN_MARGIN_MM + extra * min(1.0, trim)
        thickness = max(THINNEST_MM, (high - low + float(margins.sum())) / count)
    middle = 0.5 * (low - margins[0] + high + margins[1])
    # Quantum noise: thin slices and large bodies are noisier at a given dose; the scanner compensates in
    # part.
    noise = float(np.exp(rng.uniform(np.log(6.0), np.log(15.0)))) * (2.5 / thickness) ** 0.25
    edge = -0.5 * (size - 1) * pixel
    return PhantomScan(
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
    """Return points ``(n, 3)`` of the skin around the kidneys, canonical mm."""
    rings = []
    for z in np.linspace(-2.0, 3.0, 6) * anatomy.size.level:
        skin = anatomy.trunk.at(z).skin[::16]
        rings.append(np.stack([skin * COS[::16], skin * SIN[::16], np.full(len(skin), z)], axis=1))
    return np.concatenate(rings)


def landmarks(anatomy: Anatomy) -> np.ndarray:
    """Return points ``(n, 3)`` on the surfaces of kidneys (after tumor growth) and tumor, canonical mm."""
    rng = np.random.default_rng(0)  # fixed directions on a sphere
    unit = rng.standard_normal((200, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mass = anatomy.tumor.mass
    points = [mass.center + unit * mass.radius * mass.stretch * (1.0 + mass.lobulation)]
    for kidney in anatomy.kidneys:
        own = unit * kidney.axes
        own[:, 0] += 0.30 * kidney.axes[0] * (own[:, 2] / kidney.axes[2]) ** 2
        points.append(mass.after(kidney.center + own @ kidney.frame))
    return np.concatenate(points)
