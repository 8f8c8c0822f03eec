"""Find the patient's trunk in a CT, without the table, and without arms where they can be separated.

It works on slices resampled to square pixels of one or two millimeters. Thin structures (table, wires,
blankets) are removed by an opening; parts that are connected to the trunk by a narrow neck (arms) are cut
off. Both lengths scale with the body's diameter, so that the same rule holds for a newborn and for an adult.

Limits: an arm that touches the trunk over more than an eighth of the trunk's width stays; a table or pad
thicker than 8 mm and denser than the threshold stays where it touches the body; lungs or gas under a wall of
less than about four working pixels (4 to 8 mm) may be missing.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import ConvexHull

from isopose import scratch
from isopose.data.morphology import dilated, eroded, grow_until_meeting, opened
from isopose.data.runs import Runs, map_masks, merge, slice_chunks
from isopose.devices import one_thread
from isopose.errors import InputError
from isopose.geometry.volume import Volume

#: Side of the working pixel: a 256th of the field of view, within these bounds, in mm.
PIXEL_MM = (1.0, 2.0)
#: Half the thickness up to which a structure counts as table or cloth, as a fraction of the body's diameter,
#: and its bounds in mm. A newborn's chest wall is about 6 mm thick, a table's shell up to 8.
THIN_FRACTION, THIN_MM = 0.02, (2.0, 4.0)
#: Half the width of a neck at which an arm is cut off, as a fraction of the body's diameter.
NECK_FRACTION = 0.06
#: Smallest area of a further piece of trunk, as a fraction of the slice's largest: thighs pass, arms do not.
MIN_PIECE_AREA = 0.5
#: Fraction of a pocket of air that must lie in the trunk's convex hull, or in the trunk of nearby slices, to
#: count as gas.
MIN_GAS_INSIDE = 0.8
#: Distance along z up to which slices count as nearby, as a fraction of the body's diameter; at least one
#: slice.
NEARBY_FRACTION = 0.1
#: A trunk smaller than this fraction of the body with all its gas has lost its lungs.
MIN_TRUNK_AREA = 0.5
#: Fraction of voxels at the minimum from which a volume counts as clipped from below.
CLIPPED_FRACTION = 0.02
#: Differences to the threshold are clipped to this when a boundary is placed between pixels.
SOFT_HU = 400.0


def body_mask(volume: Volume, threshold_hu: float) -> np.ndarray:
    """Mark the trunk, lungs and gas included, table and separable arms excluded.

    Args:
        volume: reoriented (slices along z), Hounsfield units, any dtype; padding below air is taken as air.
        threshold_hu: denser voxels may be body. Where air was clipped to a value near or above it (a windowed
            image), a threshold between that value and fat is used instead.

    Returns:
        ``(z, y, x)`` booleans on the volume's grid; slices without a body are empty.

    Raises:
        InputError: no voxel is denser than the threshold, only thin structures are, or the values are not
            Hounsfield units.
    """
    threshold = _threshold(volume.array, threshold_hu)
    size, pixel = working_grid(volume)
    dense = (coarse(volume.array[part], size) > threshold for part in slice_chunks(volume.array.shape))
    tissue = Runs.of(dense, (len(volume.array), *size))
    if not len(tissue.starts):
        raise InputError(f"no body found above {threshold_hu:g} HU; is it a CT in Hounsfield units?")
    box = tissue.box()
    trunk = trunk_in(tissue.cropped(box), pixel, volume.spacing[2]).placed(box, tissue.shape)
    if not len(trunk.starts):
        raise InputError(
            f"no body found above {threshold_hu:g} HU, only thin structures; is it a CT in Hounsfield units?"
        )
    rows, columns = trunk.box()[1:]
    level_of = partial(_excess_hu, trunk, tissue, volume.array, threshold, rows, columns)
    return fine(level_of, volume.array.shape, size, rows, columns)


def _threshold(array: np.ndarray, threshold_hu: float) -> float:
    """Return the threshold, raised where air was clipped to a higher value; see :func:`body_mask`."""
    lowest = float(array.min())
    # "not >" instead of "<=": NaN passes here and is reported by the code that checks the values.
    if not lowest > 2.0 * threshold_hu or np.mean(array == lowest) < CLIPPED_FRACTION:
        return threshold_hu
    if lowest > -50.0:
        raise InputError(
            f"no body found above {threshold_hu:g} HU: air is expected near -1000 HU, but the lowest of all "
            f"values is {lowest:g}; is it a CT in Hounsfield units?"
        )
    # Halfway from clipped air to water, but not above fat (-100 HU).
    return max(threshold_hu, min(0.5 * lowest, max(0.75 * lowest, -120.0)))


def working_grid(volume: Volume) -> tuple[tuple[int, int], float]:
    """Return the rows and columns of the working grid, and the side of its pixels in mm."""
    height, width = volume.array.shape[1:]
    extent = (height * volume.spacing[1], width * volume.spacing[0])
    pixel = float(np.clip(max(extent) / 256.0, *PIXEL_MM))
    return (max(1, round(extent[0] / pixel)), max(1, round(extent[1] / pixel))), pixel


@one_thread()
def coarse(
    slices: np.ndarray,
    size: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> np.ndarray:
    """Average slices ``(n, y, x)`` over the working pixels, float32 ``(n, h, w)``.

    The values are those of ``F.adaptive_avg_pool2d``, in a third of its time. It runs on one thread: on a
    busy machine, starting threads for operations this short costs more than it saves.

    Args:
        slices: any dtype.
        size: rows and columns of the working grid.
        rows: rows of the working grid to compute.
        columns: columns of the working grid to compute.
    """
    y, covers_y = _windows(slices.shape[1], size[0], rows)
    x, covers_x = _windows(slices.shape[2], size[1], columns)
    out = torch.empty((len(slices), len(y), len(x)))
    heights, widths = covers_y.sum(dim=1)[:, None], covers_x.sum(dim=1)
    # Slice by slice, which then stays in the processor's cache.
    for source, target in zip(slices, out, strict=True):
        pixels = torch.from_numpy(np.ascontiguousarray(source, dtype=np.float32))
        summed = F.embedding_bag(y, pixels, mode="sum", per_sample_weights=covers_y)
        torch.index_select(summed, 1, x[:, 0].contiguous(), out=target)
        for columns_read, covers in zip(x.T[1:], covers_x.T[1:], strict=True):
            target.addcmul_(torch.index_select(summed, 1, columns_read.contiguous()), covers)
        target.div_(heights).div_(widths)
    return out.numpy()


def _windows(pixels: int, size: int, window: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels that each working pixel covers along an axis, as an index and a weight.

    Working pixels cover different numbers of pixels; shorter rows are padded with pixels of weight 0.

    Args:
        pixels: number of the scan's pixels along the axis.
        size: number of working pixels along the axis.
        window: the working pixels that are returned.

    Returns:
        Indices ``(n, K)`` int64, and weights ``(n, K)`` float32, 1 or 0.
    """
    number = torch.arange(size)[window, None]
    first, last = number * pixels // size, -((number + 1) * -pixels // size)
    covered = first + torch.arange(int((last - first).max()))
    return covered.clamp(max=pixels - 1), (covered < last).float()


def trunk_in(tissue: Runs, pixel: float, distance: float, neck_fraction: float = NECK_FRACTION) -> Runs:
    """Find the trunk in tissue on the working grid.

    Args:
        tissue: voxels above the threshold.
        pixel: side of the working pixels, mm.
        distance: between neighboring slices, mm.
        neck_fraction: half the width of a neck at which an arm is cut off, as a fraction of the body's
            diameter.
    """
    diameter = _diameter(filled(_largest(tissue)), pixel)
    thin = _steps(float(np.clip(THIN_FRACTION * diameter, *THIN_MM)), pixel)
    # The opening dilates by one step more than it eroded: this restores the skin's corners and at most a stub
    # of table.
    body = filled(_largest(_open_slices(tissue, thin)))
    if not len(body.starts):
        return body
    wall = _open_slices(tissue, max(1, thin // 3))
    air = map_masks(lambda whole, dense: whole & ~dense, filled(_largest(wall)), tissue)
    trunk = _without_arms(body, pixel, neck_fraction)
    nearby = _steps(NEARBY_FRACTION * diameter, distance)
    # If both lungs were lost under a thin chest wall, the rest is a small part of the body with its gas.
    whole = _with_gas(body, air, wall, thin, nearby)
    lost_lungs = trunk.areas < MIN_TRUNK_AREA * whole.areas
    if lost_lungs.any():
        recut = _without_arms(whole, pixel, neck_fraction)
        trunk = merge(trunk.only(~lost_lungs[trunk.slices]), recut.only(lost_lungs[recut.slices]))
    return _with_gas(filled(_open_slices(trunk, thin)), air, wall, thin, nearby)


def _without_arms(body: Runs, pixel: float, neck_fraction: float) -> Runs:
    """Cut off parts that are connected to each slice's largest part by a narrow neck.

    Args:
        body: mask of the body with its arms.
        pixel: side of the working pixels, mm.
        neck_fraction: half the width of a neck at which a part is cut off, as a fraction of the body's
            diameter.
    """
    neck = _steps(neck_fraction * _diameter(body, pixel), pixel)
    core = map_masks(partial(eroded, steps=neck), body)
    if not len(core.starts):
        return body
    # An opening takes 0.41 of the radius off a square corner; further steps restore it.
    steps = neck + round(0.4 * neck) + 1
    return map_masks(partial(grow_until_meeting, steps=steps), _trunk_cores(core), core, body)


def _with_gas(trunk: Runs, air: Runs, wall: Runs, thin: int, nearby: int) -> Runs:
    """Add gas under a wall that was removed as thin, together with that wall."""
    gas = _enclosed_gas(trunk, air, nearby)
    if not len(gas.starts):
        return trunk
    with_gas = map_masks(
        lambda trunk, gas, wall: trunk | dilated(gas, 2 * thin + 2, within=gas | wall),
        *(trunk, gas, wall),
    )
    return filled(with_gas)


def _enclosed_gas(trunk: Runs, air: Runs, nearby: int) -> Runs:
    """Return enclosed air that belongs to the trunk although the wall over it is as thin as a table.

    Gas under a child's belly wall lies within the convex hull of the trunk, or, where a broad pocket took the
    whole front with it, within the trunk of one of the ``nearby`` slices on each side. Air between back and
    table lies in neither.
    """
    gas = map_masks(lambda air, trunk: air & ~trunk, air, trunk)
    if not len(gas.starts):
        return gas
    slices, inside_counts = gas.slices, np.zeros(len(gas.starts))
    for part in slice_chunks(trunk.shape):
        first, last = np.searchsorted(slices, (part.start, part.stop))
        if first == last:
            continue
        around = slice(max(part.start - nearby, 0), min(part.stop + nearby, trunk.shape[0]))
        marked = trunk.mask(around)
        packed = np.packbits(marked, axis=2)
        for z in np.unique(slices[first:last]):
            runs, index = slice(*np.searchsorted(slices, (z, z + 1))), z - around.start
            nearby_trunks = np.bitwise_or.reduce(packed[max(index - nearby, 0) : index + nearby + 1], axis=0)
            nearby_trunk = np.unpackbits(nearby_trunks, axis=1, count=marked.shape[2]).view(bool)
            inside_counts[runs] = _count_inside(gas, runs, marked[index], nearby_trunk)
    numbers = gas.components(in_plane=True)
    inside_fractions = np.bincount(numbers, inside_counts) / np.maximum(np.bincount(numbers, gas.lengths), 1)
    return gas.only(inside_fractions[numbers] >= MIN_GAS_INSIDE)


def _count_inside(gas: Runs, runs: slice, trunk: np.ndarray, nearby_trunk: np.ndarray) -> np.ndarray:
    """Count, for runs of one slice, the voxels within the trunk's convex hull or within the nearby trunk.

    Args:
        gas: the runs.
        runs: which of them, all in one slice.
        trunk: ``(y, x)`` of that slice.
        nearby_trunk: ``(y, x)`` union over nearby slices.
    """
    if not trunk.any():
        return np.zeros(runs.stop - runs.start)
    points, lengths = gas.points(runs), gas.lengths[runs]
    rows = np.flatnonzero(trunk.any(axis=1))
    first, last = trunk.argmax(axis=1), trunk.shape[1] - 1 - trunk[:, ::-1].argmax(axis=1)
    outline = np.concatenate([np.stack([rows, side[rows]], 1) for side in (first - 0.5, last + 0.5)])
    hull = ConvexHull(outline).equations if len(rows) > 1 else np.array([[0.0, 0.0, 1.0]])
    inside = (points @ hull[:, :2].T + hull[:, 2] <= 0).all(axis=1) | nearby_trunk[tuple(points.T)]
    return np.add.reduceat(inside, np.cumsum(lengths) - lengths, dtype=np.float64)


def _trunk_cores(core: Runs) -> Runs:
    """Return the trunk's cores: in the largest 3D component, each slice's largest piece and similar ones."""
    largest = _largest(core)
    numbers, slices = largest.components(in_plane=True), largest.slices
    areas = np.bincount(numbers, largest.lengths)[numbers]
    largest_area = np.zeros(core.shape[0])
    np.maximum.at(largest_area, slices, areas)
    return largest.only(areas >= MIN_PIECE_AREA * largest_area[slices])


def _open_slices(runs: Runs, steps: int) -> Runs:
    """Remove structures that are at most ``2 * steps`` pixels wide, slice by slice."""
    return map_masks(partial(opened, steps=steps), runs)


def _largest(runs: Runs) -> Runs:
    """Return the largest component that is connected in three dimensions."""
    if not len(runs.starts):
        return runs
    numbers = runs.components()
    return runs.only(numbers == np.bincount(numbers, runs.lengths).argmax())


def filled(runs: Runs) -> Runs:
    """Fill holes slice by slice, including those that the image's border closes."""
    return map_masks(_filled_slices, runs)


def _filled_slices(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of slices ``(n, y, x)``."""
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
    empty = Runs.of([~padded], padded.shape)
    numbers, slices = empty.components(in_plane=True), empty.slices
    # The first run of a slice is its upper edge, so its component is the outside.
    outer = numbers[np.searchsorted(slices, np.arange(len(padded)))]
    return ~empty.only(numbers == outer[slices]).mask(slice(None))[:, 2:-2, 2:-2]


def _diameter(body: Runs, pixel: float) -> float:
    """Return the diameter (mm) of the circle with the median area of the body's slices."""
    areas = body.areas
    return float(2.0 * pixel * np.sqrt(np.median(areas[areas > 0]) / np.pi)) if areas.any() else 0.0


def _steps(radius_mm: float, pixel: float) -> int:
    """Convert a radius from mm to a number of pixels, at least 1."""
    return max(1, round(radius_mm / pixel))


def _excess_hu(
    trunk: Runs,
    tissue: Runs,
    array: np.ndarray,
    threshold: float,
    rows: slice,
    columns: slice,
    part: slice,
) -> np.ndarray:
    """Return by how much working pixels of some slices exceed the threshold, in HU; see :func:`fine`."""
    # Computed a second time: keeping the averages would take more memory than all masks.
    level = coarse(array[part], tissue.shape[1:], rows, columns)
    level = np.clip(level - threshold, -SOFT_HU, SOFT_HU, out=level)
    body, dense = trunk.mask(part)[:, rows, columns], tissue.mask(part)[:, rows, columns]
    # Gas inside, and arms or table outside, have the wrong sign and form no boundary.
    level[body & ~dense] = SOFT_HU
    level[~body & dense] = -SOFT_HU
    return level


@one_thread()
def fine(
    level_of: Callable[[slice], np.ndarray],
    shape: tuple[int, ...],
    size: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> np.ndarray:
    """Resample a mask to the volume's grid; its boundary between working pixels follows their levels.

    Levels are interpolated linearly, as ``F.interpolate`` does; on one thread, see :func:`coarse`.

    Args:
        level_of: returns the levels ``(n, h, w)`` float32 of a range of slices, above 0 inside the mask.
        shape: ``(z, y, x)`` of the volume.
        size: rows and columns of the working grid.
        rows: rows of the working grid for which there are levels. The mask does not touch the first and last
            of them, except at the border of the grid.
        columns: columns of the working grid for which there are levels, with the same condition.

    Returns:
        Booleans of that shape.
    """
    out = scratch.zeros(shape, bool)
    (y, pairs_y, shares_y), (x, pairs_x, shares_x) = (
        _pixels_between(*axis) for axis in zip(shape[1:], size, (rows, columns), strict=True)
    )
    (left, right), share = pairs_x.T.contiguous(), shares_x[:, 1]
    for part in slice_chunks(shape) if len(pairs_y) and len(pairs_x) else ():
        for level, target in zip(torch.from_numpy(level_of(part)), out[part, y, x], strict=True):
            wide = torch.lerp(level.index_select(1, left), level.index_select(1, right), share)
            finer = F.embedding_bag(pairs_y, wide, mode="sum", per_sample_weights=shares_y)
            np.greater(finer.numpy(), 0.0, out=target)
    return out


def _pixels_between(pixels: int, size: int, window: slice) -> tuple[slice, torch.Tensor, torch.Tensor]:
    """Return the weights of linear interpolation along an axis, from working pixels to the scan's pixels.

    Args:
        pixels: number of the scan's pixels along the axis.
        size: number of working pixels along the axis.
        window: the working pixels from which is interpolated.

    Returns:
        The scan's pixels that lie within the window; the two working pixels around each, ``(n, 2)`` indices
            into the window; and their weights ``(n, 2)``.
    """
    start, stop, _ = window.indices(size)
    # Beyond the outermost working pixels their level is continued.
    position = ((torch.arange(pixels) + 0.5) * (size / pixels) - 0.5).clamp(0.0, size - 1.0)
    before = position.floor().long()
    pair = torch.stack([before, (before + 1).clamp(max=size - 1)], dim=1)
    within = ((pair[:, 0] >= start) & (pair[:, 1] < stop)).nonzero()
    inside = slice(int(within[0]), int(within[-1]) + 1) if len(within) else slice(0, 0)
    next_share = (position - before)[inside]
    return inside, pair[inside] - start, torch.stack([1.0 - next_share, next_share], dim=1)


def body_box(mask: np.ndarray, spacing: np.ndarray) -> tuple[float, float, float, float]:
    """Return the outer edges in mm, ``(x0, y0, x1, y1)``, of the in-plane box around all slices of a mask.

    Args:
        mask: ``(z, y, x)``, not empty; millimeters are ``index * spacing`` at voxel centers.
        spacing: ``(x, y, ...)`` in mm.
    """
    columns, rows = np.flatnonzero(mask.any(axis=(0, 1))), np.flatnonzero(mask.any(axis=(0, 2)))
    (x0, x1), (y0, y1) = [
        ((line[0] - 0.5) * step, (line[-1] + 0.5) * step)
        for line, step in zip((columns, rows), spacing[:2], strict=True)
    ]
    return float(x0), float(y0), float(x1), float(y1)
