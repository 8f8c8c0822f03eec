"""Find the patient's trunk in MR, whose values have no unit, without arms where they can be separated.

The region around the bright part of the image is air; its level is the noise. Voxels that are brighter than
the noise and than a fraction of the tissue nearby may be body; comparing with tissue nearby follows the
coils' bias field. After that the trunk is found as in CT (:mod:`isopose.data.body`): holes (lungs, gas,
vessels) are filled, arms cut off at their neck. Its boundary lies where the brightness is halfway from air to
the rim.

Limits: those of the trunk in CT; a rim of fat that is suppressed down to the noise is lost; a ghost of motion
or of wrap-around brighter than an eighth of the tissue nearby stays where it touches the body broadly.
"""

from functools import partial

import numpy as np
from scipy import ndimage

from isopose.data.body import coarse, filled, fine, trunk_in, working_grid
from isopose.data.morphology import dilated, eroded
from isopose.data.runs import Runs, slice_chunks
from isopose.errors import InputError
from isopose.geometry.volume import Volume

#: Standard deviation of the smoothing before thresholds, in working pixels or in the scan's own pixels,
#: whichever are larger. It makes noise a narrow peak.
SMOOTHING_SIGMA = 0.7
#: Least brightness of body: this many standard deviations of the smoothed noise above its median.
NOISE_SIGMAS = 3.5
#: Upper bound of that brightness, as a multiple of the noise's median.
MAX_NOISE_FACTOR = 1.6
#: Least brightness of body, as a fraction of the tissue nearby. Suppressed fat is a tenth of it and more.
MIN_TISSUE_FRACTION = 0.08
#: Half the width of a neck at which an arm is cut off, as a fraction of the body's diameter: more than in CT,
#: as smoothing fills the wedge between arm and trunk.
NECK_FRACTION = 0.08
#: Standard deviation of "nearby", mm.
NEARBY_MM = 40.0
#: Values below this fraction of the brightest are raised to it before logarithms are taken.
FLOOR_FRACTION = 1e-3
#: Width of the rim inside the body by whose brightness the boundary is placed, and how far inside the
#: boundary may lie, in working pixels.
RIM_PIXELS, BAND_PIXELS = 4, 2
#: Width of the widest gap between arm and trunk that smoothing may have closed, in working pixels.
GAP_PIXELS = 7
#: How far such gaps are followed from the outside, in working pixels.
GAP_DEPTH_PIXELS = 60
#: These gaps are searched only where halfway from air to the rim is above this multiple of the noise.
MIN_CONTRAST = 3.0
#: Voxels farther than this from the bright region, as a fraction of the body's diameter, are air.
AIR_DISTANCE = 0.12
#: Structuring element of a voxel and its four neighbors in the slice.
CROSS = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)
#: Least fraction of the air's voxels that must be above 0 for them to be noise; scanners may set air to 0.
MIN_NOISE_SHARE = 0.1


def mr_body_mask(volume: Volume) -> np.ndarray:
    """Mark the trunk, lungs and gas included, separable arms excluded.

    Args:
        volume: reoriented (slices along z), values that grow with the signal, any unit and dtype.

    Returns:
        ``(z, y, x)`` booleans on the volume's grid; slices without a body are empty.

    Raises:
        InputError: all values are the same, or nothing but thin structures is brighter than the noise.
    """
    size, pixel = working_grid(volume)
    parts = slice_chunks(volume.array.shape)
    level = np.concatenate([coarse(volume.array[part], size) for part in parts])
    level -= min(float(level.min()), 0.0)
    # Working pixels finer than the scan's do not reduce the noise.
    sigma = [SMOOTHING_SIGMA * max(1.0, float(side) / pixel) for side in volume.spacing[1::-1]]
    smooth = ndimage.gaussian_filter(level, (0.0, *sigma))
    top = float(np.percentile(smooth, 99.0))
    if not top > 0.0 or level.min() == level.max():
        raise InputError(f"no body found: nearly all values are {level.min():g}; export the scan again")
    spacing = (float(volume.spacing[2]), pixel, pixel)
    # What the scanner set to 0 would be a third class beside noise and tissue.
    has_value = level > 0
    bright = smooth > _otsu_of_logarithms(smooth[has_value], top)
    areas = bright.sum(axis=(1, 2))
    noise, edge = _noise(smooth, has_value, bright, float(np.sqrt(np.median(areas[areas > 0]))))
    tissue = np.maximum(_nearby_brightness(smooth, bright, spacing), 0.0)
    tissue_mask = smooth > np.maximum(edge, MIN_TISSUE_FRACTION * tissue)
    tissue_mask &= ~_gaps(level, tissue_mask, noise)
    runs = Runs.of([tissue_mask], tissue_mask.shape)
    trunk = trunk_in(runs, pixel, spacing[0], NECK_FRACTION)
    if not len(trunk.starts):
        raise InputError("no body found, only thin structures are brighter than the noise; is it a trunk?")
    return fine(partial(_relative_brightness, level, trunk, noise), volume.array.shape, size)


def _otsu_of_logarithms(values: np.ndarray, top: float) -> float:
    """Return Otsu's threshold, computed on logarithms, in which tissues are more alike than tissue and air.

    Args:
        values: brightness, any shape.
        top: about the largest brightness; values below :data:`FLOOR_FRACTION` of it are raised to that.
    """
    values = np.log(np.maximum(values, FLOOR_FRACTION * top))
    counts, edges = np.histogram(values, 256)
    centers = 0.5 * (edges[1:] + edges[:-1])
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centers)
    with np.errstate(invalid="ignore", divide="ignore"):
        between_class_variance = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(np.exp(edges[1 + int(np.nanargmax(between_class_variance))]))


def _noise(
    smooth: np.ndarray, has_value: np.ndarray, bright: np.ndarray, diameter: float
) -> tuple[float, float]:
    """Return the median brightness of the air around the body, and the least brightness of body.

    Args:
        smooth: brightness ``(z, h, w)``.
        has_value: ``(z, h, w)`` booleans, voxels whose value is above 0.
        bright: ``(z, h, w)`` booleans, voxels above Otsu's threshold.
        diameter: of the body, in working pixels.

    Returns:
        Both 0 where the scanner has set the air to 0.
    """
    runs = Runs.of([ndimage.binary_opening(bright, CROSS)], bright.shape)
    air = ~dilated(filled(runs).mask(slice(None)), round(AIR_DISTANCE * diameter))
    if not air.any():
        air = ~bright
    values = smooth[air & has_value]
    if len(values) <= MIN_NOISE_SHARE * np.count_nonzero(air):
        return 0.0, 0.0
    low, median = np.percentile(values, (16.0, 50.0))
    return float(median), float(min(median + NOISE_SIGMAS * (median - low), MAX_NOISE_FACTOR * median))


def _nearby_brightness(
    smooth: np.ndarray, bright: np.ndarray, spacing: tuple[float, float, float]
) -> np.ndarray:
    """Return the mean brightness ``(z, h, w)`` of the bright voxels nearby, which follows the bias field.

    Args:
        smooth: brightness ``(z, h, w)``.
        bright: ``(z, h, w)`` booleans, voxels above Otsu's threshold.
        spacing: of the voxels along ``(z, y, x)``, mm.
    """
    shrink = (1, 4, 4)
    sigma = [NEARBY_MM / (side * step) for side, step in zip(spacing, shrink, strict=True)]
    subsampled = tuple(slice(None, None, step) for step in shrink)
    weight = ndimage.gaussian_filter(bright[subsampled].astype(np.float32), sigma, mode="nearest")
    mean = ndimage.gaussian_filter((smooth * bright)[subsampled], sigma, mode="nearest")
    mean = mean / np.maximum(weight, 1e-6) * (weight > 1e-4)
    rows, columns = (
        np.minimum(np.arange(n) // 4, m - 1) for n, m in zip(smooth.shape[1:], mean.shape[1:], strict=True)
    )
    return mean[:, rows[:, None], columns]


def _gaps(smooth: np.ndarray, tissue_mask: np.ndarray, noise: float) -> np.ndarray:
    """Mark narrow valleys from the outside inward: air between arm and trunk, not muscle under bright fat."""
    half = _half_brightness(smooth, tissue_mask, noise)
    valley = ndimage.grey_closing(smooth, (1, GAP_PIXELS, GAP_PIXELS)) > 2.0 * smooth
    gaps = valley & (smooth < half) & (half > MIN_CONTRAST * noise)
    outside = ~filled(Runs.of([tissue_mask], tissue_mask.shape)).mask(slice(None))
    return dilated(dilated(outside, 2) & gaps, GAP_DEPTH_PIXELS, within=gaps)


def _half_brightness(level: np.ndarray, body: np.ndarray, noise: float) -> np.ndarray:
    """Return the mean ``(z, h, w)`` of the noise and of the brightness of the body's rim nearby."""
    rim = body & ~eroded(body, RIM_PIXELS)
    weight = ndimage.gaussian_filter(rim.astype(np.float32), (0.0, RIM_PIXELS, RIM_PIXELS))
    mean = ndimage.gaussian_filter(np.where(rim, level, 0.0), (0.0, RIM_PIXELS, RIM_PIXELS))
    return 0.5 * (noise + mean / np.maximum(weight, 1e-6))


def _relative_brightness(level: np.ndarray, trunk: Runs, noise: float, part: slice) -> np.ndarray:
    """Return how far working pixels lie above halfway from air to the rim nearby, from -1 to 1.

    Args:
        level: brightness ``(z, h, w)``.
        trunk: within which the rim is.
        noise: brightness of air.
        part: the slices.
    """
    body = trunk.mask(part)
    deep = eroded(body, BAND_PIXELS)
    half = _half_brightness(level[part], body, noise)
    relative = ((level[part] - half) / np.maximum(half - noise, 1e-6)).clip(-1.0, 1.0).astype(np.float32)
    # Only the boundary moves, and only by a pixel: dark tissue inside and noise outside stay where they are.
    relative[deep] = 1.0
    relative[~dilated(body, 1)] = -1.0
    return relative
