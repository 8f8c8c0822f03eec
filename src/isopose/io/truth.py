"""What is known of phantoms and of no patient: the file that stands beside their dataset."""

from pathlib import Path

import numpy as np

from isopose.errors import InputError
from isopose.files import read_json

TRUTH_FILE = "phantom.json"


def true_rolls(folder: Path) -> dict[str, float]:
    """Case to the angle in the plane of the slices at which its phantom lies, radians from +x to +y (LPS).

    From ``phantom.json``, as :func:`isopose.phantom.randomized.roll_of` has it. Empty where the folder
    is no whole cohort of phantoms: real patients have no known roll, and none is made up.
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
