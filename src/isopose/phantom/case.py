"""One case of a cohort: its sampled parameters, and its ground truth as numbers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isopose.phantom.anatomy import Anatomy, sample_anatomy, sample_tumor_diameter
from isopose.phantom.growth import reference_size
from isopose.phantom.mr import MrScan, sample_mr
from isopose.phantom.outline import radius_at
from isopose.phantom.pose import Pose, sample_pose
from isopose.phantom.render import KIDNEY, TUMOR
from isopose.phantom.scan import PhantomScan, sample_scan

Population = Literal["child", "adult"]
OLDEST_YEARS = 16.0
#: Steps of two additive recurrences of low discrepancy (Roberts 2018, "R2"): ages and positions spread evenly
#: over any number of cases, while each case depends on its own index only.
STEPS = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True)
class PhantomCase:
    """A patient with pose and scan; ``texture`` seeds noise and mottle."""

    anatomy: Anatomy
    pose: Pose
    scan: PhantomScan
    texture: np.random.SeedSequence


def sample_case(
    seed: int, index: int, *, size: int, slices: int | None, population: Population = "child"
) -> PhantomCase:
    """Draw case ``index`` of the cohort ``seed``.

    Patient and pose do not depend on ``size`` and ``slices``, so a patient can be scanned on any grid.
    """
    age, pose, patient_seed, scan_seed, texture = _draw(seed, index, population)
    anatomy = sample_anatomy(_generator(patient_seed), age, pose.gravity_canonical)
    scan = sample_scan(_generator(scan_seed), anatomy, pose, size, slices)
    return PhantomCase(anatomy, pose, scan, texture)


def tumor_volume_ml(seed: int, index: int, population: Population = "child") -> float:
    """Return the volume in ml of the tumor sphere of case ``index`` of the cohort ``seed``.

    The rendered volume, see :func:`truth`, is smaller where the walls of the abdomen cut the tumor off.
    """
    age, pose, patient_seed, *_ = _draw(seed, index, population)
    diameter = sample_tumor_diameter(_generator(patient_seed), age, pose.gravity_canonical)
    return float(np.pi / 6.0 * diameter**3 / 1000.0)


def _draw(
    seed: int, index: int, population: Population
) -> tuple[float, Pose, np.random.SeedSequence, np.random.SeedSequence, np.random.SeedSequence]:
    """Draw age and pose of a case; return them, and the seeds of patient, scan and texture."""
    start = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed]))).random(2)
    age_share, position_share = ((start + (index + 1) * np.array(STEPS)) % 1.0).tolist()
    pose_seed, patient_seed, scan_seed, texture = np.random.SeedSequence([seed, index]).spawn(4)
    age = age_at(age_share, population)
    pose = sample_pose(_generator(pose_seed), position_share, reference_size(age).width)
    return age, pose, patient_seed, scan_seed, texture


def age_at(share: float, population: Population = "child") -> float:
    """Return the age in years at a quantile (0 to 1) of the cohort.

    Children: median 4 years, from birth to 16. Nephroblastoma is diagnosed at 3 to 4 years on average, mostly
    before 5; older children are frequent enough that all sizes occur. Adults: median 60 years, interquartile
    range 51 to 68, as in KiTS19.
    """
    if population == "adult":
        return float(np.interp(share, (0.0, 0.25, 0.5, 0.75, 1.0), (20.0, 51.0, 60.0, 68.0, 88.0)))
    return float(
        np.interp(share, (0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 1.0), (0.0, 0.8, 2.2, 4.0, 7.5, 11.5, OLDEST_YEARS))
    )


def texture_generator(case: PhantomCase) -> np.random.Generator:
    """Return a new random generator for ``render``, in its initial state."""
    return _generator(case.texture)


def mr_of(case: PhantomCase) -> MrScan:
    """Return the parameters of a case's MR scan, which depend on the case only."""
    return sample_mr(_generator(case.texture.spawn(1)[0]), case.anatomy.size.width)


def _generator(seed: np.random.SeedSequence) -> np.random.Generator:
    # Philox is a counter-based generator whose stream numpy guarantees.
    return np.random.Generator(np.random.Philox(seed))


def truth(
    case: PhantomCase, labels: np.ndarray, world_from_index: np.ndarray | None = None
) -> dict[str, Any]:
    """Return the ground truth of a case as JSON values; lengths in mm, volumes in ml, angles in radians.

    Args:
        case: the case.
        labels: ``(z, y, x)`` labels as they are stored, from which volumes are computed.
        world_from_index: ``(4, 4)`` of the labels; None: that of the case's axial scan.
    """
    anatomy, pose, scan, size = case.anatomy, case.pose, case.scan, case.anatomy.size
    outline = anatomy.trunk.at(0.5 * size.level)
    pixel, thickness = scan.pixel, scan.thickness
    if world_from_index is not None:
        pixel, _, thickness = (float(side) for side in np.linalg.norm(world_from_index[:3, :3], axis=0))
    voxel_ml = pixel**2 * thickness / 1000.0
    grid = scan.world_from_index if world_from_index is None else world_from_index
    left, right = _kidney_voxels(case, labels, grid)
    return {
        "age_years": round(anatomy.age_years, 4),
        "sex": anatomy.sex,
        "stature_mm": round(size.stature_mm, 1),
        "mass_kg": round(size.mass_kg, 2),
        "body_width_mm": round(radius_at(outline.skin, 1.0, 0.0) + radius_at(outline.skin, -1.0, 0.0), 1),
        "body_depth_mm": round(radius_at(outline.skin, 0.0, 1.0) + radius_at(outline.skin, 0.0, -1.0), 1),
        "body_height_mm": round(size.stature_mm, 1),
        "kidney_length_mm": round(size.kidney_length, 1),
        "kidney_left_ml": round(left * voxel_ml, 2),
        "kidney_right_ml": round(right * voxel_ml, 2),
        "tumor_side": "left" if anatomy.tumor.side > 0 else "right",
        "tumor_diameter_mm": round(anatomy.tumor.diameter_mm, 1),
        "tumor_ml": round(float((labels == TUMOR).sum()) * voxel_ml, 2),
        "position": pose.position,
        "header_position": pose.position if pose.header_right else "supine",
        "header_right": pose.header_right,
        "roll": pose.roll,
        "pitch": pose.pitch,
        "yaw": pose.yaw,
        "offset_mm": [round(value, 3) for value in pose.offset],
        "gravity_world": np.round(pose.gravity_world, 9).tolist(),
        "world_from_canonical": pose.world_from_canonical.tolist(),
        "arms": scan.arms,
        "noise_hu": round(scan.noise_hu, 2),
        "pixel_mm": pixel,
        "slice_mm": thickness,
        "shape_zyx": list(labels.shape),
        "table_gap_mm": round(scan.table_gap, 2),
    }


def _kidney_voxels(case: PhantomCase, labels: np.ndarray, world_from_index: np.ndarray) -> tuple[int, int]:
    """Count the kidney voxels of the left and of the right kidney.

    A large tumor may push its kidney across the midline, so voxels are assigned by the position of their
    tissue before the tumor grew.
    """
    z, y, x = np.nonzero(labels == KIDNEY)
    canonical_from_index = np.linalg.inv(case.pose.world_from_canonical) @ world_from_index
    points = (canonical_from_index @ np.stack([x, y, z, np.ones_like(x)]))[:3]
    rest = case.anatomy.tumor.mass.before(*points)
    left, right = (kidney.surface(*kidney.own(*rest)) for kidney in case.anatomy.kidneys)
    return int(np.count_nonzero(left < right)), int(np.count_nonzero(left >= right))
