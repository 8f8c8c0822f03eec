"""Read the true poses of phantoms from the file beside their dataset."""

from pathlib import Path

import numpy as np

from isopose.errors import InputError
from isopose.files import read_json

TRUTH_FILE = "phantom.json"


def true_poses(folder: Path) -> dict[str, np.ndarray]:
    """Return each case's true pose: ``(4, 4)``, from the patient's own frame to LPS mm.

    They are read from ``phantom.json``, see ``docs/phantom.md``. The result is empty if the folder is not a
    complete cohort of phantoms: the pose of real patients is unknown.
    """
    path = Path(folder) / TRUTH_FILE
    if not path.is_file():
        return {}
    try:
        values = read_json(path)
        if values["complete"] is not True:
            return {}
        return {str(c["case"]): np.array(c["world_from_canonical"], dtype=float) for c in values["cases"]}
    except (InputError, KeyError, TypeError, ValueError):
        return {}


def true_rolls(folder: Path) -> dict[str, float]:
    """Return each case's true roll in radians, from +x to +y (LPS), see :func:`true_poses`.

    The angle is that of the first axis, see :func:`isopose.phantom.randomized.roll_of`.
    """
    try:
        rolls = {case: float(np.arctan2(pose[1, 0], pose[0, 0])) for case, pose in true_poses(folder).items()}
    except IndexError:
        return {}
    return {case: angle for case, angle in rolls.items() if np.isfinite(angle)}
