"""Great vessels in the early arterial phase: a bright aorta, a vena cava with little contrast."""

from collections.abc import Mapping

import numpy as np

from isopose.phantom.organs import Kidney, Tube
from isopose.phantom.outline import Trunk


def sample_vessels(rng: np.random.Generator, trunk: Trunk, kidneys: Mapping[int, Kidney]) -> tuple[Tube, ...]:
    """Draw aorta, vena cava, renal and mesenteric vessels, and the crura of the diaphragm.

    Args:
        rng: source of randomness.
        trunk: of the patient, for the position of the spine.
        kidneys: by side (+1 left, -1 right), before tumor growth.
    """
    size = trunk.size
    u, r = size.level, size.aorta
    front = trunk.spine_y - 0.36 * size.vertebra
    bright = float(rng.uniform(240.0, 340.0))
    z = np.arange(-6.0, 9.0) * u
    sway = rng.normal(0.0, 0.04 * size.vertebra, len(z))
    aorta_x, cava_x = 0.16 * size.vertebra, -0.40 * size.vertebra - 0.4 * r
    aorta = np.stack([aorta_x + sway, np.full(len(z), front - r), z], axis=1)
    # The vena cava leaves the spine for the liver as it rises.
    cava = np.stack([cava_x + sway, front - r - np.clip(z, 0.0, 8.0 * u) * 0.25, z], axis=1)
    artery = [
        [aorta_x, front - 2.6 * r, 1.2 * u],
        [aorta_x, front - 4.2 * r, 0.2 * u],
        [0.0, front - 5.5 * r, -3.0 * u],
    ]
    vein = [
        [-0.9 * r, front - 4.0 * r, 1.4 * u],
        [-1.2 * r, front - 5.0 * r, 0.0],
        [-r, front - 6.0 * r, -3.0 * u],
    ]
    vessels = [
        Tube("vena cava", cava, np.full(len(z), 1.30 * r), float(rng.uniform(60.0, 120.0))),
        Tube("superior mesenteric artery", np.array(artery), np.array([0.42, 0.38, 0.25]) * r, 0.95 * bright),
        Tube("superior mesenteric vein", np.array(vein), np.array([0.65, 0.60, 0.40]) * r, 0.45 * bright),
    ]
    root, stem = np.array([aorta_x, front - r, 0.7 * u]), np.array([cava_x, front - 1.2 * r, 0.5 * u])
    lift = np.array([0.0, -1.2 * r, 0.0])
    for side, kidney in kidneys.items():
        name = "left" if side > 0 else "right"
        middle = 0.5 * (root + kidney.hilum)
        veins = np.stack([stem, middle + 1.5 * lift, kidney.hilum])
        arteries = np.stack([root, middle + 0.4 * lift, kidney.hilum])
        vessels.append(Tube(f"{name} renal vein", veins, np.array([0.60, 0.55, 0.45]) * r, 0.6 * bright))
        vessels.append(
            Tube(f"{name} renal artery", arteries, np.array([0.38, 0.34, 0.28]) * r, 0.95 * bright)
        )
        crus = [
            [side * 0.30 * size.vertebra, front - 1.6 * r, 4.0 * u],
            [side * 0.42 * size.vertebra, front - 0.2 * r, -u],
        ]
        vessels.insert(0, Tube("crus", np.array(crus), np.array([0.75, 0.45]) * r, 60.0))
    return (*vessels, Tube("aorta", aorta, np.full(len(z), r), bright))
