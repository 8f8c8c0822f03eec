"""A second channel: the uptake of a tracer, as in PET, in which tumors stand out."""

import numpy as np
from scipy.ndimage import gaussian_filter

from isopose.phantom.render import KIDNEY, TUMOR

#: Standardized uptake of air, fat, soft tissue, bone, kidney, and tumor that is alive or necrotic.
_AIR, _FAT, _SOFT, _BONE, _KIDNEY, _TUMOR, _NECROSIS = 0.0, 0.3, 1.0, 1.4, 2.5, 6.0, 1.5
#: Upper HU limits of air and lung, fat, and soft tissue; below the last a tumor is necrotic.
_LIMITS_HU, _DEAD_HU = (-400, -30, 250), 40
#: Resolution of the scanner (full width at half maximum, mm), and noise as a fraction of the uptake's root.
_FWHM_MM, _NOISE = 5.0, 0.15


def render_uptake(
    image: np.ndarray, labels: np.ndarray, spacing: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Return the standardized uptake of a rendered patient.

    Args:
        image: HU ``(z, y, x)``.
        labels: of the same shape.
        spacing: ``(x, y, z)`` mm.
        rng: random generator of the noise.

    Returns:
        float32 of the same shape, not negative.
    """
    tissue = np.array([_AIR, _FAT, _SOFT, _BONE], dtype=np.float32)
    # CT's noise would change the tissue of single voxels.
    smooth = gaussian_filter(image.astype(np.float32), [0.0, *(2.0 / side for side in spacing[1::-1])])
    uptake = tissue[np.digitize(smooth, _LIMITS_HU)]
    uptake[labels == KIDNEY] = _KIDNEY
    uptake[labels == TUMOR] = _TUMOR
    uptake[(labels == TUMOR) & (smooth < _DEAD_HU)] = _NECROSIS
    sigma = _FWHM_MM / (2.0 * np.sqrt(2.0 * np.log(2.0)))
    seen = gaussian_filter(uptake, [sigma / side for side in spacing[::-1]])
    seen += _NOISE * np.sqrt(seen) * rng.standard_normal(seen.shape, dtype=np.float32)
    return seen.clip(min=0.0).round(2)
