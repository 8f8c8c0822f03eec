"""Small bowel, colon and mesentery: bent tubes that fill the space between the other organs."""

import numpy as np

from isopose.phantom.organs import Tube
from isopose.phantom.outline import Trunk, radius_at

#: The colon's course: x and y as fractions of the cavity's radius, height in vertebral levels.
COLON_PATH = (
    (-0.62, 0.10, -5.0),
    (-0.68, 0.08, -2.8),
    (-0.70, 0.10, -0.8),
    (-0.62, -0.22, 0.2),
    (-0.36, -0.66, -0.3),
    (0.0, -0.78, -0.6),
    (0.34, -0.66, 0.5),
    (0.62, -0.22, 1.6),
    (0.76, 0.18, 1.6),
    (0.78, 0.26, -0.6),
    (0.74, 0.26, -2.8),
    (0.58, 0.20, -5.0),
)


def sample_bowel(rng: np.random.Generator, trunk: Trunk) -> tuple[Tube, ...]:
    """Draw loops of small bowel on a jittered lattice, and the colon around them."""
    return (*small_bowel(rng, trunk), *colon(rng, trunk))


def small_bowel(rng: np.random.Generator, trunk: Trunk) -> list[Tube]:
    """Draw short arcs of bowel, with fluid, gas or oral contrast."""
    u, depth = trunk.size.level, trunk.size.depth
    radius = 0.048 * depth + 1.2
    contrast = rng.random() < 0.2
    # Children have little fat between the loops, infants next to none.
    lattice = (1.75 + 0.6 * trunk.maturity) * radius
    empty = 0.03 + 0.17 * trunk.maturity
    loops = []
    for z in np.arange(-6.0 * u, 2.2 * u, lattice):
        outline = trunk.at(z)
        a, b = trunk.half_axes(z)
        for x in np.arange(-0.75 * a, 0.76 * a, 1.12 * lattice):
            for y in np.arange(-0.85 * b, 0.30 * b, 1.05 * lattice):
                place = np.array([x, y, z]) + rng.uniform(-0.7, 0.7, 3) * radius
                own = radius * rng.uniform(0.65, 1.2)
                free = radius_at(outline.cavity, place[0], place[1]) - 1.3 * own
                if np.hypot(place[0], place[1]) > free or rng.random() < empty:
                    continue
                loops.append(_loop(rng, place, own, contrast))
    order = rng.permutation(len(loops))
    return [loops[i] for i in order]


def _loop(rng: np.random.Generator, place: np.ndarray, radius: float, contrast: bool) -> Tube:
    """Draw one arc of bowel at a place."""
    length = radius * rng.uniform(2.0, 4.5)
    axis, bend = rng.standard_normal((2, 3))
    axis /= np.linalg.norm(axis)
    bend -= axis * float(axis @ bend)
    bend /= np.linalg.norm(bend)
    t = np.linspace(-0.5, 0.5, 4)[:, None]
    points = place + axis * t * length + bend * (t * t - 0.08) * length * rng.uniform(0.5, 1.6)
    filled = rng.random()
    gas = float(rng.uniform(0.3, 0.9)) if filled < 0.22 else 0.0
    hu = (
        float(rng.uniform(150.0, 300.0))
        if contrast and rng.random() < 0.6
        else float(rng.uniform(15.0, 55.0))
    )
    wall = 0.9 + 0.08 * radius
    if filled > 0.75:  # collapsed: wall only
        hu, radius = 75.0, 0.7 * radius
    radii = radius * rng.uniform(0.85, 1.1, 4)
    return Tube("small bowel", points, radii, hu, wall, float(rng.uniform(80.0, 125.0)), gas)


def colon(rng: np.random.Generator, trunk: Trunk) -> list[Tube]:
    """Draw the ascending, transverse and descending colon, in pieces that each have their own content."""
    u = trunk.size.level
    path = []
    for x, y, t in COLON_PATH:
        height = t * u
        rim = radius_at(trunk.at(height).cavity, x, y) / float(np.hypot(x, y))
        path.append([0.93 * x * rim, 0.93 * y * rim, height])
    points = np.array(path) + rng.normal(0.0, 0.10 * u, (len(path), 3))
    calibre = 0.062 * trunk.size.depth + 1.5
    pieces = []
    for start in range(len(points) - 1):
        ends = points[start : start + 2]
        n = max(3, int(np.linalg.norm(ends[1] - ends[0]) / (1.3 * calibre)))
        line = np.linspace(ends[0], ends[1], n)
        # Haustra: the calibre swells and narrows; the descending part is mostly collapsed.
        bore = calibre * (0.62 if start >= 8 else 1.0) * rng.uniform(0.75, 1.15)
        radii = bore * (1.0 + 0.16 * np.cos(np.pi * np.arange(n)))
        stool = rng.random() < 0.5
        pieces.append(
            Tube(
                "colon",
                line,
                radii,
                float(rng.uniform(-60.0, 10.0) if stool else rng.uniform(10.0, 40.0)),
                wall=0.9 + 0.06 * calibre,
                wall_hu=85.0,
                gas=float(rng.uniform(0.15, 0.75)),
                mottle=60.0 if stool else 0.0,
            )
        )
    return pieces


def sample_mesentery(rng: np.random.Generator, trunk: Trunk) -> tuple[Tube, ...]:
    """Draw fine vessels that fan out from the root of the mesentery."""
    u = trunk.size.level
    a, b = trunk.half_axes(0.0)
    tubes = []
    for _ in range(36):
        start = np.array([0.05 * a, -0.05 * b, rng.uniform(-2.0, 1.0) * u])
        angle = rng.uniform(-np.pi, 0.0) + 0.3 * rng.normal()
        far = np.array([np.cos(angle) * 0.62 * a, np.sin(angle) * 0.62 * b, rng.uniform(-5.0, 1.5) * u])
        bend = rng.normal(0.0, 0.08 * a, 3)
        points = np.stack([start, 0.5 * (start + far) + bend, far])
        tubes.append(
            Tube(
                "mesenteric vessel",
                points,
                np.array([1.8, 1.3, 0.8]) * (0.5 + 0.005 * a),
                float(rng.uniform(90.0, 200.0)),
            )
        )
    return tuple(tubes)


def out_of_the_way(tubes: tuple[Tube, ...], center: np.ndarray, radius: float) -> tuple[Tube, ...]:
    """Remove the tubes that reach into a ball, in mm, from which a mass grows.

    Growth stretches the tissue next to the mass's origin into a thin film around it; bowel would become
    shells there, while in a patient it slides aside.
    """
    return tuple(t for t in tubes if (np.linalg.norm(t.points - center, axis=1) - t.radii).min() > radius)
