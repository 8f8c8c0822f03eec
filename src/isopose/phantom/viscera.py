"""Liver, spleen, stomach, pancreas, adrenals and gall bladder, placed relative to the trunk."""

import numpy as np

from isopose.phantom.organs import Blob, Tube, frame_from
from isopose.phantom.outline import Trunk


def sample_liver(rng: np.random.Generator, trunk: Trunk) -> tuple[Blob, ...]:
    """Draw the liver: right lobe at the right wall, left lobe in front across the midline, by its volume."""
    size = trunk.size
    a, b = trunk.half_axes(3.0 * size.level)
    # The wall cuts off about a fifth of the two blobs; the height is chosen for the liver's volume.
    height = size.liver_ml * 1000.0 / (0.80 * (4.0 / 3.0) * np.pi * 0.55 * a * 0.78 * b * 1.18)
    right = np.array([-0.44 * a, 0.02 * b, 1.1 * size.level + 0.72 * height])
    left = np.array([0.02 * a, -0.42 * b, right[2] + 0.25 * height])
    tail = np.array([-0.62 * a, 0.10 * b, right[2] - 0.5 * height])
    lean = frame_from(np.array([1.0, 0.0, 0.0]), np.array([0.18, 0.05 + 0.03 * rng.normal(), 1.0]))
    return (
        Blob("liver right", right, np.array([0.55 * a, 0.78 * b, height]), 0.0, lean, 2.4),
        Blob("liver left", left, np.array([0.52 * a, 0.34 * b, 0.55 * height]), 0.0, power=2.2),
        Blob("liver tail", tail, np.array([0.30 * a, 0.55 * b, 0.62 * height]), 0.0),
    )


def sample_spleen(rng: np.random.Generator, trunk: Trunk) -> Blob:
    """Draw the spleen, behind under the left ribs, by its volume; the wall cuts off a part."""
    size = trunk.size
    c = float(np.cbrt(1.25 * size.spleen_ml * 1000.0 / ((4.0 / 3.0) * np.pi * 0.42 * 0.70)))
    z = size.level * (2.0 + 0.2 * rng.normal()) + 0.3 * c
    a, b = trunk.half_axes(z)
    axis = np.array([0.25, -0.35, 1.0])
    place = np.array([0.66 * a, 0.16 * b, z])
    hu = float(rng.uniform(105.0, 140.0))
    return Blob(
        "spleen",
        place,
        np.array([0.42, 0.70, 1.0]) * c,
        hu,
        frame_from(np.array([1.0, 0.45, 0.0]), axis),
        mottle=14.0,
    )


def sample_viscera(rng: np.random.Generator, trunk: Trunk) -> tuple[Blob | Tube, ...]:
    """Draw pancreas, adrenals, stomach with gas, and gall bladder, in painting order."""
    a, b = trunk.half_axes(2.0 * trunk.size.level)
    unit = np.array([a, b, trunk.size.level])
    full = rng.uniform(0.7, 1.15)
    content = float(rng.uniform(10.0, 40.0))
    stomach = Blob(
        "stomach",
        np.array([0.36, -0.36, 2.9]) * unit,
        np.array([0.30, 0.30 * b / a, 1.7 * trunk.size.level / a]) * a * full,
        content,
        frame_from(np.array([1.0, 0.2, 0.0]), np.array([0.35, 0.15, 1.0])),
        wall=0.02 * b + 1.5,
        gas=float(rng.uniform(0.25, 0.65)),
    )
    antrum = Tube(
        "antrum",
        np.array([[0.30, -0.40, 1.9], [0.05, -0.44, 1.4], [-0.20, -0.30, 1.7]]) * unit,
        np.array([0.15, 0.12, 0.09]) * b * full,
        content,
        wall=0.02 * b + 1.2,
        gas=float(rng.uniform(0.0, 0.4)),
    )
    pancreas = Tube(
        "pancreas",
        np.array([[-0.22, -0.10, 0.6], [-0.10, -0.16, 1.2], [0.15, -0.12, 1.5], [0.42, 0.06, 1.9]]) * unit,
        np.array([0.13, 0.09, 0.09, 0.07]) * b,
        float(rng.uniform(85.0, 115.0)),
        mottle=8.0,
    )
    gall = Blob(
        "gall bladder",
        np.array([-0.36, -0.42, 0.9]) * unit,
        np.array([0.09, 0.10, 0.20]) * a,
        8.0,
        wall=1.0,
        wall_hu=70.0,
    )
    limbs = np.array([[0.22, 0.10, 2.0], [0.26, 0.22, 2.1], [0.32, 0.30, 2.0]]) * unit
    adrenals = (
        Tube("adrenal", limbs * np.array([side, 1.0, 1.0]), np.full(3, 1.6 + 0.008 * a), 75.0)
        for side in (1, -1)
    )
    return (pancreas, *adrenals, antrum, stomach, gall)
