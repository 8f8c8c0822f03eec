"""The position and pose of a phantom patient, and whether the header knows the position.

Frames: ``canonical`` is the patient's own frame (x to the left, y to the back, z to the head, mm; origin in
the middle of the trunk at the second lumbar vertebra); ``world`` is LPS according to the file's header.
"""

from dataclasses import dataclass

import numpy as np

#: Rotation about z from supine to each position, radians, positive from +x to +y.
POSITIONS = {"supine": 0.0, "prone": np.pi, "left decubitus": np.pi / 2, "right decubitus": -np.pi / 2}

ROLL_SD = np.deg2rad(15.0)
ROLL_LIMIT = np.deg2rad(60.0)
TILT_SD = np.deg2rad(3.0)
TILT_LIMIT = np.deg2rad(9.0)


@dataclass(frozen=True)
class Pose:
    """Position, angles (radians, right-handed: roll x to y, pitch y to z, yaw z to x) and offset in world mm.

    ``header_right`` says whether the header has the right position. Then LPS are the patient's own axes, and
    table and gravity are on another side. Otherwise the header says supine, and the patient appears rotated.
    """

    position: str
    header_right: bool
    roll: float
    pitch: float
    yaw: float
    offset: tuple[float, float, float]

    @property
    def turn(self) -> float:
        """Rotation about z from a supine patient to this one in the file's world, radians."""
        return 0.0 if self.header_right else POSITIONS[self.position]

    @property
    def rotation(self) -> np.ndarray:
        """``(3, 3)`` rotation of ``world_from_canonical``: position, then roll, yaw and pitch innermost."""
        return about_z(self.turn + self.roll) @ about_y(self.yaw) @ about_x(self.pitch)

    @property
    def world_from_canonical(self) -> np.ndarray:
        """``(4, 4)`` matrix from the canonical patient frame to LPS millimeters."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation
        matrix[:3, 3] = self.offset
        return matrix

    @property
    def gravity_world(self) -> np.ndarray:
        """``(3,)`` unit vector of gravity in world; +y in a supine scan."""
        return about_z(self.turn - POSITIONS[self.position]) @ np.array([0.0, 1.0, 0.0])

    @property
    def gravity_canonical(self) -> np.ndarray:
        """``(3,)`` unit vector of gravity in the patient's frame."""
        return self.rotation.T @ self.gravity_world


def about_x(angle: float) -> np.ndarray:
    """Return the ``(3, 3)`` rotation about x by an angle in radians, positive from +y to +z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def about_y(angle: float) -> np.ndarray:
    """Return the ``(3, 3)`` rotation about y by an angle in radians, positive from +z to +x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def about_z(angle: float) -> np.ndarray:
    """Return the ``(3, 3)`` rotation about z by an angle in radians, positive from +x to +y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def truncated_normal(rng: np.random.Generator, sd: float, limit: float) -> float:
    """Draw from a normal distribution of mean 0 that is truncated at ±limit, by rejection."""
    while True:
        value = float(rng.normal(0.0, sd))
        if abs(value) <= limit:
            return value


def sample_pose(rng: np.random.Generator, share: float, width_mm: float) -> Pose:
    """Draw a pose; 5 % lie prone and 5 % on a side, half of these with a header that says so.

    Args:
        rng: source of randomness, except of the position.
        share: 0 to 1, evenly spread over a cohort; it determines the position, so that small cohorts contain
            rare ones as well.
        width_mm: the body's width; the offset is at most a tenth of it, and at most 30 mm.
    """
    position = "supine"
    if share < 0.05:
        position = "prone"
    elif share < 0.10:
        position = "left decubitus" if rng.random() < 0.5 else "right decubitus"
    reach = min(30.0, 0.10 * width_mm)
    return Pose(
        position=position,
        header_right=position == "supine" or bool(rng.random() < 0.5),
        roll=truncated_normal(rng, ROLL_SD, ROLL_LIMIT),
        pitch=truncated_normal(rng, TILT_SD, TILT_LIMIT),
        yaw=truncated_normal(rng, TILT_SD, TILT_LIMIT),
        offset=(
            truncated_normal(rng, 0.5 * reach, reach),
            truncated_normal(rng, 0.5 * reach, reach),
            float(rng.uniform(-400.0, 400.0)),
        ),
    )
