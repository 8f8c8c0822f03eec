"""Phantoms with randomized appearance, so that a network trained on them generalizes to real CT.

Body and pose are those of the cohorts; contrast phase, densities, tumor and field of view are randomized
beyond what occurs in patients. Only the anatomical arrangement stays valid, so that is what a network learns
(domain randomization: Tobin et al., IROS 2017; for segmentation Billot et al., SynthSeg, 2023).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from isopose.geometry.volume import Volume
from isopose.phantom.anatomy import Anatomy, sample_anatomy
from isopose.phantom.case import age_at
from isopose.phantom.growth import reference_size
from isopose.phantom.organs import Blob, Tube
from isopose.phantom.pose import Pose, sample_pose
from isopose.phantom.render import render
from isopose.phantom.scan import sample_scan

#: Range of the slices in levels (vertebrae with their discs) from the second lumbar vertebra: from the upper
#: pelvis to the lower chest.
LOWEST, HIGHEST = -6.0, 6.5
#: Fraction of the patients with a tumor of the cohorts' size; the others' tumors have a tenth of it.
FULL_TUMOR_SHARE = 0.5


@dataclass(frozen=True)
class Slab:
    """A few slices of one patient, with gaps between them.

    Args:
        volume: ``(z, y, x)`` HU; the spacing along z is the distance between the slices.
        roll: of the patient in these slices, radians, positive from +x to +y.
    """

    volume: Volume
    roll: float


def slabs(seed: int, indices: Iterator[int] | range, *, slices: int, size: int) -> Iterator[Slab]:
    """Yield the slabs of some patients of a cohort; each depends on seed and index only.

    Args:
        seed: of the cohort.
        indices: of the patients.
        slices: per patient.
        size: columns and rows.
    """
    for index in indices:
        yield sample_slab(seed, index, slices=slices, size=size)


def sample_slab(seed: int, index: int, *, slices: int, size: int) -> Slab:
    """Draw and render one patient's slices, from feet to head.

    Args:
        seed: of the cohort.
        index: of the patient.
        slices: number of slices.
        size: columns and rows.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    age = age_at(float(rng.random()))
    pose = sample_pose(rng, float(rng.random()), reference_size(age).width)
    sick = 1.0 if rng.random() < FULL_TUMOR_SHARE else 0.1
    anatomy = dense(rng, sample_anatomy(rng, age, pose.gravity_canonical, tumor_share=sick))
    scan = sample_scan(rng, anatomy, pose, size, 4)
    level = anatomy.size.level
    low = float(rng.uniform(LOWEST, -0.5))
    high = float(rng.uniform(low + 3.0, HIGHEST))
    scan = replace(
        scan,
        slices=slices,
        thickness=float(rng.uniform(1.0, 5.0)),
        distance=level * (high - low) / (slices - 1),
        origin=(scan.origin[0], scan.origin[1], pose.offset[2] + level * low),
    )
    image, _ = render(anatomy, pose, scan, rng)
    return Slab(Volume(image, scan.world_from_index), roll_of(pose))


def roll_of(pose: Pose) -> float:
    """Return the angle in the plane of the slices, radians, from +x (LPS) to the patient's left."""
    rotation = pose.rotation
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def dense(rng: np.random.Generator, anatomy: Anatomy) -> Anatomy:
    """Return a patient with densities randomized over all contrast phases and beyond."""
    soft, vessel = rng.uniform(20.0, 70.0), rng.uniform(20.0, 380.0)
    kidney = soft + rng.uniform(0.0, 180.0)

    def around(value: float, spread: float) -> float:
        return float(value + rng.normal(0.0, spread))

    def organ(part: Blob | Tube) -> Blob | Tube:
        return replace(part, hu=around(rng.uniform(-20.0, 120.0), 10.0), wall_hu=around(soft + 30.0, 25.0))

    return replace(
        anatomy,
        mesentery=tuple(replace(tube, hu=around(0.5 * (soft + vessel), 20.0)) for tube in anatomy.mesentery),
        bowel=tuple(
            replace(
                tube,
                hu=around(20.0, 20.0) if rng.random() < 0.8 else rng.uniform(100.0, 400.0),
                wall_hu=around(soft + 20.0, 20.0),
            )
            for tube in anatomy.bowel
        ),
        viscera=tuple(organ(part) for part in anatomy.viscera),
        liver_hu=around(soft + rng.uniform(0.0, 60.0), 15.0),
        spleen=replace(anatomy.spleen, hu=around(soft + rng.uniform(0.0, 80.0), 20.0)),
        kidneys=tuple(  # type: ignore[arg-type]
            replace(one, cortex_hu=kidney, medulla_hu=float(rng.uniform(soft - 10.0, kidney + 5.0)))
            for one in anatomy.kidneys
        ),
        tumor=replace(anatomy.tumor, hu=around(soft, 30.0), necrosis_hu=around(20.0, 15.0)),
        vessels=tuple(replace(tube, hu=around(vessel, 40.0)) for tube in anatomy.vessels),
        bone_hu=float(rng.uniform(110.0, 450.0)),
        fat_hu=float(rng.uniform(-120.0, -75.0)),
    )
