"""One patient's anatomy as numbers, sampled from age; nothing here knows of a grid."""

from dataclasses import dataclass

import numpy as np

from isopose.data.phantom.bowel import sample_bowel, sample_mesentery
from isopose.data.phantom.growth import Size, sample_size
from isopose.data.phantom.organs import Blob, Kidney, Tube, frame_from
from isopose.data.phantom.outline import Trunk, radius_at
from isopose.data.phantom.shapes import Waves
from isopose.data.phantom.tumour import Tumour, grow, largest_diameter, sample_diameter


@dataclass(frozen=True)
class Anatomy:
    """Everything the renderer needs; painted in the order of the fields.

    Args:
        age_years: birth to 16.
        sex: ``"F"`` or ``"M"``.
        size: lengths and volumes before the tumour.
        trunk: outline.
        mesentery: small vessels and nodes in the fat.
        bowel: loops and colon.
        viscera: stomach, pancreas, adrenals, gall bladder.
        liver: blobs that are joined smoothly.
        liver_hu: early arterial.
        spleen: one blob.
        kidneys: left and right.
        cysts: simple cysts in the healthy kidney, often none.
        tumour: grows out of one kidney.
        vessels: aorta, vena cava and their branches; ``hu`` is their contrast.
        wobble: three fields that bend every soft organ.
        wobble_mm: their size.
        bone_hu: cancellous bone.
        rib_drop: levels by which a rib falls from back to front.
        fat_hu: visceral and subcutaneous fat, a little denser in infants.
    """

    age_years: float
    sex: str
    size: Size
    trunk: Trunk
    mesentery: tuple[Tube, ...]
    bowel: tuple[Tube, ...]
    viscera: tuple[Blob | Tube, ...]
    liver: tuple[Blob, ...]
    liver_hu: float
    spleen: Blob
    kidneys: tuple[Kidney, Kidney]
    cysts: tuple[Blob, ...]
    tumour: Tumour
    vessels: tuple[Tube, ...]
    wobble: tuple[Waves, Waves, Waves]
    wobble_mm: float
    bone_hu: float
    rib_drop: float
    fat_hu: float

    @property
    def spine_y(self) -> float:
        """How far behind the axis the middle of the vertebral bodies lies, in mm."""
        return spine_y(self.trunk)


def spine_y(trunk: Trunk) -> float:
    """Middle of the vertebral bodies behind the axis, in mm; the same at every height (supine)."""
    return 0.31 * trunk.half_axes(0.5 * trunk.size.level)[1]


def sample_anatomy(rng: np.random.Generator, age_years: float, gravity: np.ndarray) -> Anatomy:
    """One patient of an age in years.

    Args:
        rng: source of all variation.
        age_years: birth to 16.
        gravity: ``(3,)`` unit vector in the patient's frame in which things fall, for the flattened side.
    """
    size = sample_size(rng, age_years)
    maturity = float(np.clip((size.width / size.depth - 1.15) / 0.38, 0.0, 1.0))
    trunk = Trunk(
        size=size,
        maturity=maturity,
        harmonics=rng.normal(0.0, 1.0, (4, 2)) * np.array([[0.007], [0.009], [0.006], [0.004]]),
        gravity=gravity,
        sag=float(rng.uniform(0.03, 0.08)),
        groove=float(rng.uniform(0.03, 0.07)) * (0.35 + 0.65 * maturity),
    )
    kidneys = {side: sample_kidney(rng, trunk, side) for side in (1, -1)}
    sick = 1 if rng.random() < 0.5 else -1
    diameter = sample_diameter(rng, largest_diameter(trunk))
    trunk, kidneys[sick], tumour = grow(rng, trunk, kidneys[sick], diameter)
    liver, liver_hu = sample_liver(rng, trunk), float(rng.uniform(72.0, 100.0))
    spleen = sample_spleen(rng, trunk)
    shortest, longest = 0.35 * size.width, 1.2 * size.width
    return Anatomy(
        age_years=age_years,
        sex="F" if rng.random() < 0.5 else "M",
        size=size,
        trunk=trunk,
        mesentery=sample_mesentery(rng, trunk),
        bowel=sample_bowel(rng, trunk),
        viscera=sample_viscera(rng, trunk),
        liver=liver,
        liver_hu=liver_hu,
        spleen=spleen,
        kidneys=(kidneys[1], kidneys[-1]),
        cysts=sample_cysts(rng, kidneys[-sick]),
        tumour=tumour,
        vessels=sample_vessels(rng, trunk, kidneys, tumour),
        wobble=(
            Waves.sample(rng, 4, shortest, longest),
            Waves.sample(rng, 4, shortest, longest),
            Waves.sample(rng, 4, shortest, longest),
        ),
        wobble_mm=0.016 * size.width,
        bone_hu=float(rng.uniform(190.0, 270.0)),
        rib_drop=float(rng.uniform(1.5, 1.9) + 0.9 * maturity),
        fat_hu=float(rng.uniform(-112.0, -98.0) + 14.0 * (1.0 - maturity)),
    )


def sample_kidney(rng: np.random.Generator, trunk: Trunk, side: int) -> Kidney:
    """A kidney beside the spine, upper pole inwards and backwards, hilum inwards and forwards."""
    size = trunk.size
    z = size.level * ((0.85 if side > 0 else 0.45) + rng.normal(0.0, 0.2))
    c = 0.5 * size.kidney_length
    axes = np.array([0.54 * c, 0.44 * c, c])
    tilt = rng.normal(np.deg2rad([12.0, 9.0]), np.deg2rad(4.0))
    third = np.array([-side * np.sin(tilt[0]), np.sin(tilt[1]), 1.0])
    turn = np.deg2rad(rng.normal(35.0, 8.0))
    frame = frame_from(np.array([-side * np.cos(turn), -np.sin(turn), 0.0]), third)
    pyramids = np.concatenate(
        [_ring(rng, height, count) for height, count in ((-0.62, 4), (0.0, 5), (0.62, 4))]
    )
    kidney = Kidney(
        side, np.zeros(3), axes, frame, pyramids, rng.uniform(165.0, 225.0), rng.uniform(62.0, 92.0)
    )
    # Length is given by KIM2010, volume by ICRP89: the two shorter axes take up what is left.
    short = float(np.sqrt(size.kidney_ml / kidney.volume_ml()))
    axes = axes * np.array([short, short, 1.0])
    wall = trunk.back_wall(z)
    x = side * (0.5 * size.vertebra + 0.95 * size.psoas + 0.92 * axes[0] + 0.012 * size.width)
    y = wall - axes[1] - 0.02 * size.depth - 0.1 * abs(x) * trunk.maturity
    limit = radius_at(trunk.at(z).cavity, x, y) / float(np.hypot(x, y))
    x = side * min(abs(x), abs(x) * limit - 0.95 * float(axes[0]))
    return Kidney(side, np.array([x, y, z]), axes, frame, pyramids, kidney.cortex_hu, kidney.medulla_hu)


def _ring(rng: np.random.Generator, height: float, count: int) -> np.ndarray:
    """Directions of pyramids at one height, fanning away from the hilum (u is towards it)."""
    angle = np.linspace(-1.75, 1.75, count) + rng.normal(0.0, 0.12, count)
    w = height + rng.normal(0.0, 0.06, count)
    flat = np.sqrt(np.maximum(1.0 - w * w, 0.05))
    return np.stack([-flat * np.cos(angle), flat * np.sin(angle), w], axis=1)


def sample_liver(rng: np.random.Generator, trunk: Trunk) -> tuple[Blob, ...]:
    """Right lobe against the right wall, left lobe in front across the midline; sized by volume."""
    size = trunk.size
    a, b = trunk.half_axes(3.0 * size.level)
    # The wall cuts off about a fifth of the two blobs; the height takes up what the width leaves.
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
    """Under the left ribs, behind; of the reference volume, part of it cut off by the wall."""
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
    """Stomach with gas, pancreas, adrenals, gall bladder."""
    u = trunk.size.level
    a, b = trunk.half_axes(2.0 * u)
    full = rng.uniform(0.7, 1.15)
    lean = frame_from(np.array([1.0, 0.2, 0.0]), np.array([0.35, 0.15, 1.0]))
    stomach = Blob(
        "stomach", np.array([0.36 * a, -0.36 * b, 2.9 * u]), np.array([0.30 * a, 0.30 * b, 1.7 * u]) * full,
        float(rng.uniform(10.0, 40.0)), lean, wall=0.02 * b + 1.5, gas=float(rng.uniform(0.25, 0.65)),
    )  # fmt: skip
    antrum = Tube(
        "antrum", np.array([[0.3 * a, -0.40 * b, 1.9 * u], [0.05 * a, -0.44 * b, 1.4 * u], [-0.2 * a, -0.30 * b, 1.7 * u]]),
        np.array([0.15, 0.12, 0.09]) * b * full, stomach.hu, wall=0.02 * b + 1.2, gas=float(rng.uniform(0.0, 0.4)),
    )  # fmt: skip
    pancreas = Tube(
        "pancreas", np.array([[-0.22 * a, -0.10 * b, 0.6 * u], [-0.10 * a, -0.16 * b, 1.2 * u], [0.15 * a, -0.12 * b, 1.5 * u], [0.42 * a, 0.06 * b, 1.9 * u]]),
        np.array([0.13, 0.09, 0.09, 0.07]) * b, float(rng.uniform(85.0, 115.0)), mottle=8.0,
    )  # fmt: skip
    gall = Blob("gall bladder", np.array([-0.36 * a, -0.42 * b, 0.9 * u]), np.array([0.09, 0.10, 0.20]) * a, 8.0,
                wall=1.0, wall_hu=70.0)  # fmt: skip
    adrenals = tuple(
        Tube("adrenal", np.array([[s * 0.22 * a, 0.10 * b, 2.0 * u], [s * 0.26 * a, 0.22 * b, 2.1 * u], [s * 0.32 * a, 0.30 * b, 2.0 * u]]),
             np.full(3, 1.6 + 0.008 * a), 75.0)
        for s in (1, -1)
    )  # fmt: skip
    return (pancreas, *adrenals, antrum, stomach, gall)


def sample_cysts(rng: np.random.Generator, kidney: Kidney) -> tuple[Blob, ...]:
    """Now and then a simple cyst in the kidney without tumour."""
    if rng.random() > 0.15:
        return ()
    toward = rng.normal(0.0, 1.0, 3) * np.array([0.4, 0.6, 1.0]) - np.array([0.8, 0.0, 0.0])
    toward /= np.linalg.norm(toward)
    place = kidney.centre + kidney.frame.T @ (toward / np.linalg.norm(toward / kidney.axes))
    return (Blob("cyst", place, np.full(3, rng.uniform(0.12, 0.35) * kidney.axes[0]), 6.0),)


def sample_vessels(
    rng: np.random.Generator, trunk: Trunk, kidneys: dict[int, Kidney], tumour: Tumour
) -> tuple[Tube, ...]:
    """Aorta left of the midline, vena cava right of it, renal arteries and veins to the hila, mesenteric root."""
    size = trunk.size
    u, r = size.level, size.aorta
    front = spine_y(trunk) - 0.36 * size.vertebra
    bright = float(rng.uniform(240.0, 340.0))
    cava_hu = float(rng.uniform(60.0, 120.0))
    z = np.arange(-6.0, 9.0, 1.0) * u
    sway = rng.normal(0.0, 0.04 * size.vertebra, len(z))
    aorta_x, cava_x = 0.16 * size.vertebra, -0.40 * size.vertebra - 0.4 * r
    aorta = np.stack([aorta_x + sway, np.full(len(z), front - r), z], axis=1)
    cava = np.stack([cava_x + sway, front - 1.0 * r - np.clip(z, 0.0, 8 * u) * 0.25, z], axis=1)
    vessels = [
        Tube("vena cava", cava, np.full(len(z), 1.30 * r), cava_hu),
        Tube("superior mesenteric artery",
             np.array([[aorta_x, front - 2.6 * r, 1.2 * u], [aorta_x, front - 4.2 * r, 0.2 * u], [0.0, front - 5.5 * r, -3.0 * u]]),
             np.array([0.42, 0.38, 0.25]) * r, 0.95 * bright),
        Tube("superior mesenteric vein",
             np.array([[-0.9 * r, front - 4.0 * r, 1.4 * u], [-1.2 * r, front - 5.0 * r, 0.0], [-1.0 * r, front - 6.0 * r, -3.0 * u]]),
             np.array([0.65, 0.60, 0.4]) * r, 0.45 * bright),
    ]  # fmt: skip
    for side, kidney in kidneys.items():
        hilum = tumour.mass.after(kidney.hilum)
        root = np.array([aorta_x, front - r, 0.7 * u])
        lift = np.array([0.0, -1.2 * r, 0.0])
        vessels.append(Tube(f"renal vein {side}", np.stack([
            np.array([cava_x, front - 1.2 * r, 0.5 * u]), 0.5 * (root + hilum) + 1.5 * lift, hilum,
        ]), np.array([0.60, 0.55, 0.45]) * r, 0.6 * bright))  # fmt: skip
        vessels.append(Tube(f"renal artery {side}", np.stack([root, 0.5 * (root + hilum) + 0.4 * lift, hilum]),
                            np.array([0.38, 0.34, 0.28]) * r, 0.95 * bright))  # fmt: skip
    return (*vessels, Tube("aorta", aorta, np.full(len(z), r), bright))
