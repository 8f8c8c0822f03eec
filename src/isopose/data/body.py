"""The patient's trunk in a CT: without the table, without arms where they can be told apart.

The work is done on slices of square pixels of one or two millimetres. What is thin is not body (table, wires,
blankets); what hangs on the trunk by a neck narrower than a part of its own width is not trunk (arms). Both
parts are lengths that grow with the body, so that the same rule holds for a newborn and for an adult.

Limits: an arm that is pressed to the trunk over more than an eighth of the trunk's width stays; a table or
pad thicker than 8 mm and denser than the threshold stays where it touches; lungs or gas under a wall of less
than about four working pixels (4 to 8 mm) may be left out.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial import ConvexHull

from isopose.errors import InputError
from isopose.geometry.volume import Volume

#: Side of the working pixel: a 256th of the field of view, within these bounds, in mm.
PIXEL_MM = (1.0, 2.0)
#: Half the thickness up to which something is table or cloth, as a part of the body's diameter, and its
#: bounds in mm. A newborn's chest wall is about 6 mm thick, a table's shell up to 8.
THIN, THIN_MM = 0.02, (2.0, 4.0)
#: Half the width of a neck at which an arm is cut off, as a part of the body's diameter.
NECK = 0.06
#: Part of a slice's largest piece that another piece must have to be trunk too: thighs are, arms are not.
PIECE = 0.5
#: Part of a piece of air that must lie in the trunk's convex hull, or be trunk nearby, to be gas in it.
WITHIN = 0.8
#: How far along the patient nearby slices are, as a part of the body's diameter; the next ones always are.
NEARBY = 0.1
#: Part of the body with all its gas below which a trunk has lost its lungs.
LOST = 0.5
#: Part of voxels at the very minimum from which a volume counts as clipped from below.
CLIPPED = 0.02
#: Values further than this from the threshold say nothing more about where a boundary runs between pixels.
SOFT_HU = 400.0
#: Voxels that are worked on at a time, to bound the memory; of masks that grow step by step, so many as a
#: core's cache holds a few times over.
CHUNK, CACHED = 4_000_000, 250_000

IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def body_mask(volume: Volume, threshold_hu: float) -> np.ndarray:
    """Mark the trunk, lungs and gas included, table and separable arms excluded.

    Args:
        volume: reoriented (slices along z), Hounsfield units, any dtype; padding below air is taken as air.
        threshold_hu: what is denser may be body. Where air was clipped to a value near it or above (a
            windowed image), a threshold between that value and fat takes its place.

    Returns:
        ``(z, y, x)`` booleans on the volume's grid; slices without a body are empty.

    Raises:
        InputError: nothing is denser than the threshold, or the values are not Hounsfield units.
    """
    threshold = _threshold(volume.array, threshold_hu)
    size, pixel = _working_grid(volume)
    tissue = np.empty((len(volume.array), *size), dtype=bool)
    for part in _parts(volume.array):
        tissue[part] = _coarse(volume.array[part], size) > threshold
    if not tissue.any():
        raise InputError(f"no body found above {threshold_hu:g} HU; is it a CT in Hounsfield units?")
    box = tuple(
        slice(max(s.start - 1, 0), s.stop + 1) for s in ndimage.find_objects(tissue.astype(np.uint8))[0]
    )
    trunk = np.zeros_like(tissue)
    trunk[box] = _trunk(tissue[box], pixel, volume.spacing[2])
    if not trunk.any():
        raise InputError(
            f"no body found above {threshold_hu:g} HU, only thin structures; is it a CT in Hounsfield units?"
        )
    return _fine(trunk, tissue, volume.array, threshold)


def _threshold(array: np.ndarray, threshold_hu: float) -> float:
    lowest = float(array.min())
    # Written so that NaN, which compares with nothing, is left to whoever reads the values.
    if not lowest > 2.0 * threshold_hu or np.mean(array == lowest) < CLIPPED:
        return threshold_hu
    if lowest > -50.0:
        raise InputError(
            f"no body found above {threshold_hu:g} HU: air is expected near -1000 HU, but the lowest of all "
            f"values is {lowest:g}; is it a CT in Hounsfield units?"
        )
    # Half way from clipped air to water, as far as fat (-100 HU) stays above.
    return max(threshold_hu, min(0.5 * lowest, max(0.75 * lowest, -120.0)))


def _working_grid(volume: Volume) -> tuple[tuple[int, int], float]:
    """Rows and columns of the working pixels, and their side in mm."""
    height, width = volume.array.shape[1:]
    extent = (height * volume.spacing[1], width * volume.spacing[0])
    pixel = float(np.clip(max(extent) / 256.0, *PIXEL_MM))
    return (max(1, round(extent[0] / pixel)), max(1, round(extent[1] / pixel))), pixel


def _coarse(slices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means of slices over the working pixels, float32 ``(n, h, w)``."""
    block = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32))
    return F.adaptive_avg_pool2d(block[:, None], size)[:, 0].numpy()


def _trunk(tissue: np.ndarray, pixel: float, apart: float) -> np.ndarray:
    """The trunk in coarse slices of ``tissue``, ``apart`` mm, whose pixels have a side of ``pixel`` mm."""
    diameter = _diameter(_filled(_largest(tissue)), pixel)
    thin = _steps(float(np.clip(THIN * diameter, *THIN_MM)), pixel)
    # One step more than was taken off gives the skin's corners back, and no more than a stub of table.
    body = _filled(_largest(_opened(tissue, thin)))
    if not body.any():
        return body
    wall = _opened(tissue, max(1, thin // 3))
    air = _filled(_largest(wall)) & ~tissue
    trunk = _without_arms(body, pixel)
    nearby = _steps(NEARBY * diameter, apart)
    # Where a chest's wall is so thin that both lungs were lost, what is left is a small part of the whole.
    whole = _with_gas(body, air, wall, thin, nearby)
    lost = _areas(trunk) < LOST * _areas(whole)
    if lost.any():
        trunk[lost] = _without_arms(whole, pixel)[lost]
    return _with_gas(_filled(_opened(trunk, thin)), air, wall, thin, nearby)


def _without_arms(body: np.ndarray, pixel: float) -> np.ndarray:
    """Cut off what hangs on each slice's largest part by a narrow neck."""
    neck = _steps(NECK * _diameter(body, pixel), pixel)
    core = _erode(body, neck)
    if not core.any():
        return body.copy()
    kept, other = _pieces(core)
    # A square corner loses 0.41 of the radius to an opening, which the further steps give back.
    steps = neck + round(0.4 * neck) + 1
    for part in _parts(body, CACHED):
        kept[part] = _meeting(kept[part], other[part], body[part], steps)
    return kept


def _meeting(kept: np.ndarray, other: np.ndarray, body: np.ndarray, steps: int) -> np.ndarray:
    """``kept`` grown one step at a time against ``other``, so that both meet in the neck between them."""
    for step in range(steps):
        kept = _grown(kept, step) & body & ~other
        other = _grown(other, step) & body & ~kept
    return kept


def _with_gas(trunk: np.ndarray, air: np.ndarray, wall: np.ndarray, thin: int, nearby: int) -> np.ndarray:
    """Add gas that lies under a wall too thin to have stayed, and the wall with it."""
    gas = _gas(trunk, air, nearby)
    return _filled(trunk | _dilate(gas, 2 * thin + 2, within=gas | wall)) if gas.any() else trunk


def _gas(trunk: np.ndarray, air: np.ndarray, nearby: int) -> np.ndarray:
    """Enclosed air that is the trunk's although the wall over it is as thin as a table.

    Gas under a child's belly wall lies within the convex hull of what was found, or, where a broad pocket has
    taken the whole front with it, where the trunk is in one of so many slices before or behind. Air between
    a back and a table is in neither.
    """
    gas = np.zeros_like(trunk)
    near = ndimage.maximum_filter1d(trunk, 2 * nearby + 1, axis=0)
    for part in _parts(trunk):
        labels, count = ndimage.label(air[part] & ~trunk[part], IN_PLANE)
        within = np.zeros(count + 1)
        for plane, body, beside in zip(labels, trunk[part], near[part], strict=True):
            if not (plane.any() and body.any()):
                continue
            points = np.argwhere(plane)
            rows = np.flatnonzero(body.any(axis=1))
            first, last = body.argmax(axis=1), body.shape[1] - 1 - body[:, ::-1].argmax(axis=1)
            outline = np.concatenate([np.stack([rows, side[rows]], 1) for side in (first - 0.5, last + 0.5)])
            hull = ConvexHull(outline).equations if len(rows) > 1 else np.array([[0.0, 0.0, 1.0]])
            inside = (points @ hull[:, :2].T + hull[:, 2] <= 0).all(axis=1) | beside[tuple(points.T)]
            within += np.bincount(plane[tuple(points.T)], weights=inside, minlength=count + 1)
        enough = within / np.maximum(_sizes(labels, count), 1) >= WITHIN
        enough[0] = False
        gas[part] = enough[labels]
    return gas


def _pieces(core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split cores into those of the trunk and all others."""
    kept = _largest(core)
    for part in _parts(core):
        labels, count = ndimage.label(kept[part], IN_PLANE)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        areas[0] = 0
        for plane, shown in zip(labels, kept[part], strict=True):
            sizes = areas[plane]
            shown &= sizes >= PIECE * sizes.max()
    return kept, core & ~kept


def _opened(mask: np.ndarray, steps: int) -> np.ndarray:
    return _dilate(_erode(mask, steps), steps + 1, within=mask)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest of the components connected in three dimensions, as an array of its own."""
    try:
        labels, count = ndimage.label(mask, output=np.uint16)
    except RuntimeError:
        # More components than that, in noise.
        labels, count = ndimage.label(mask)
    if count < 2:
        return mask.copy()
    sizes = _sizes(labels, count)
    sizes[0] = 0
    return labels == sizes.argmax()


def _sizes(labels: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each of so many components, background first."""
    sizes = np.zeros(count + 1, dtype=np.int64)
    # In parts, for bincount widens what it counts to eight bytes a voxel.
    for part in _parts(labels):
        sizes += np.bincount(labels[part].ravel(), minlength=count + 1)
    return sizes


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill holes slice by slice, those included that the image's border closes."""
    padded = np.pad(mask, ((0, 0), (2, 2), (2, 2)))
    for side, line in (
        ((slice(None), 1, slice(2, -2)), mask[:, 0]),
        ((slice(None), -2, slice(2, -2)), mask[:, -1]),
        ((slice(None), slice(2, -2), 1), mask[:, :, 0]),
        ((slice(None), slice(2, -2), -2), mask[:, :, -1]),
    ):
        after = np.logical_or.accumulate(line, axis=1)
        before = np.logical_or.accumulate(line[:, ::-1], axis=1)[:, ::-1]
        padded[side] = after & before
    filled = np.empty_like(mask)
    for part in _parts(mask):
        labels, _ = ndimage.label(~padded[part], IN_PLANE)
        filled[part] = (labels != labels[:, :1, :1])[:, 2:-2, 2:-2]
    return filled


def _parts(stack: np.ndarray, voxels: int = CHUNK) -> list[slice]:
    """Parts of a stack of slices that are worked on together where each slice is for itself."""
    step = max(1, voxels // (stack.shape[1] * stack.shape[2]))
    return [slice(start, start + step) for start in range(0, len(stack), step)]


def _diameter(body: np.ndarray, pixel: float) -> float:
    """Of the circle with the area of a typical slice of the body, in mm."""
    areas = _areas(body)
    return float(2.0 * pixel * np.sqrt(np.median(areas[areas > 0]) / np.pi)) if areas.any() else 0.0


def _areas(mask: np.ndarray) -> np.ndarray:
    return np.count_nonzero(mask, axis=(1, 2))


def _steps(radius_mm: float, pixel: float) -> int:
    return max(1, round(radius_mm / pixel))


def _erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erode slices by an octagon; the image's border takes nothing off, for there the body goes on."""
    out = np.empty_like(mask)
    for part in _parts(mask, CACHED):
        out[part] = ~_dilate(~mask[part], steps)
    return out


def _dilate(mask: np.ndarray, steps: int, *, within: np.ndarray | None = None) -> np.ndarray:
    """Dilate slices by an octagon, geodesic if ``within`` is given."""
    out = np.empty_like(mask)
    for part in _parts(mask, CACHED):
        now = mask[part]
        for step in range(steps):
            now = _grown(now, step)
            if within is not None:
                now &= within[part]
        out[part] = now
    return out


def _grown(mask: np.ndarray, step: int) -> np.ndarray:
    """One step further: crosses and squares in turn, together an octagon."""
    rows = mask.copy()
    rows[:, 1:] |= mask[:, :-1]
    rows[:, :-1] |= mask[:, 1:]
    source = rows if step % 2 else mask
    grown = rows.copy()
    grown[:, :, 1:] |= source[:, :, :-1]
    grown[:, :, :-1] |= source[:, :, 1:]
    return grown


def _fine(trunk: np.ndarray, tissue: np.ndarray, array: np.ndarray, threshold: float) -> np.ndarray:
    """Bring the trunk back to the volume's grid, its boundary placed between pixels by their values."""
    out = np.empty(array.shape, dtype=bool)
    height, width = tissue.shape[1:]
    for part in _parts(out):
        # Made again, for to keep them would take more memory than all masks.
        level = np.clip(_coarse(array[part], (height, width)) - threshold, -SOFT_HU, SOFT_HU)
        # Gas inside and arms or table outside have the wrong sign, and no boundary is theirs.
        level[trunk[part] & ~tissue[part]] = SOFT_HU
        level[~trunk[part] & tissue[part]] = -SOFT_HU
        block = torch.from_numpy(level[:, None])
        fine = F.interpolate(block, size=array.shape[1:], mode="bilinear", align_corners=False)
        out[part] = (fine[:, 0] > 0).numpy()
    return out


def body_box(mask: np.ndarray, spacing: np.ndarray) -> tuple[float, float, float, float]:
    """Outer edges in mm, ``(x0, y0, x1, y1)``, of the in-plane box that holds a mask in all its slices.

    Args:
        mask: ``(z, y, x)``, not empty; millimetres are ``index * spacing`` at voxel centres.
        spacing: ``(x, y, ...)`` in mm.
    """
    columns, rows = np.flatnonzero(mask.any(axis=(0, 1))), np.flatnonzero(mask.any(axis=(0, 2)))
    (x0, x1), (y0, y1) = [
        ((line[0] - 0.5) * step, (line[-1] + 0.5) * step)
        for line, step in zip((columns, rows), spacing[:2], strict=True)
    ]
    return float(x0), float(y0), float(x1), float(y1)
