"""Read the true roll of phantoms from the file beside their dataset."""

from pathlib import Path

import numpy as np

from isopose.errors import InputError
from isopose.files import read_json

TRUTH_FILE = "phantom.json"


def true_rolls(folder: Path) -> dict[str, float]:
    """Return each case's true roll in radians, from +x to +y (LPS).

    The angles are read from ``phantom.json``, see :func:`isopose.phantom.randomized.roll_of`. The result is
    empty if the folder is not a complete cohort of phantoms: the roll of real patients is unknown.
    """
    path = Path(folder) / TRUTH_FILE
    if not path.is_file():
        return {}
    try:
        values = read_json(path)
        if values["complete"] is not True:
            return {}
        matrices = {str(c["case"]): np.array(c["world_from_canonical"], dtype=float) for c in values["cases"]}
        found = {case: float(np.arctan2(matrix[1, 0], matrix[0, 0])) for case, matrix in matrices.items()}
    except (InputError, KeyError, TypeError, ValueError, IndexError):
        return {}
    return {case: angle for case, angle in found.items() if np.isfinite(angle)}
