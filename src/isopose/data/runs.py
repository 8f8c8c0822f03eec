"""Run-length encoded masks: the first and last voxel of each run of marked voxels, row by row.

The trunk and its intermediate masks have a few runs per row, a tenth of the memory of a mask of bytes.
Connected components are found by joining runs instead of labeling voxels. On 300 slices of 256 x 256 pixels
that takes 0.05 s of CPU time, against 0.17 s with cc3d and 0.38 s with ``scipy.ndimage.label``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Box = tuple[slice, slice, slice]

#: Voxels processed at a time, to bound the memory (16 MB in float32).
CHUNK = 4_000_000

#: Runs whose components are found at a time, since the graph of their neighbors takes many times their
#: memory.
RUNS_PER_GRAPH = 250_000


@dataclass(frozen=True, eq=False)
class Runs:
    """A run-length encoded mask ``(z, y, x)``.

    Args:
        starts: ``(n,)`` ascending flat indices of the runs' first voxels, int32 where that suffices. Rows
            have x + 1 voxels, the last of which is never marked, so that no run continues in the next row.
        stops: ``(n,)`` flat indices, one beyond each run's last voxel.
        shape: ``(z, y, x)``.
    """

    starts: np.ndarray
    stops: np.ndarray
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, parts: Iterable[np.ndarray], shape: tuple[int, int, int]) -> "Runs":
        """Encode a mask that is given in parts.

        Args:
            parts: booleans ``(n, y, x)``, from the first slice to the last.
            shape: ``(z, y, x)`` of the whole mask.
        """
        height, width = shape[1:]
        starts, stops, first = [], [], 0
        for part in parts:
            # Each row ends with an unmarked voxel; one more precedes the first row.
            rows = np.zeros((len(part) * height + 1, width + 1), dtype=bool)
            rows[1:, :width] = part.reshape(-1, width)
            flat = rows.ravel()[width:]
            edges = np.flatnonzero(flat[1:] != flat[:-1]) + first * height * (width + 1)
            starts.append(edges[::2].astype(_index_type(shape)))
            stops.append(edges[1::2].astype(_index_type(shape)))
            first += len(part)
        return cls(np.concatenate(starts), np.concatenate(stops), shape)

    @property
    def per_slice(self) -> int:
        """Flat indices per slice."""
        return self.shape[1] * (self.shape[2] + 1)

    @property
    def slices(self) -> np.ndarray:
        """``(n,)`` slice of each run."""
        return self.starts // self.per_slice

    @property
    def lengths(self) -> np.ndarray:
        """``(n,)`` number of voxels of each run."""
        return self.stops - self.starts

    @property
    def areas(self) -> np.ndarray:
        """``(z,)`` number of marked voxels of each slice."""
        return np.bincount(self.slices, self.lengths, self.shape[0]).astype(np.int64)

    def only(self, selected: np.ndarray | slice) -> "Runs":
        """Select runs by ``(n,)`` booleans or by a slice of their indices."""
        return Runs(self.starts[selected], self.stops[selected], self.shape)

    def mask(self, part: slice) -> np.ndarray:
        """Decode a range of slices to booleans ``(n, y, x)``."""
        start, stop, _ = part.indices(self.shape[0])
        first, last = self._from_slice(start), self._from_slice(stop)
        edges = np.empty(2 * (last - first) + 2, dtype=np.int64)
        edges[0], edges[-1] = start * self.per_slice, stop * self.per_slice
        edges[1:-1:2], edges[2:-1:2] = self.starts[first:last], self.stops[first:last]
        marked = np.arange(len(edges) - 1) % 2 == 1
        # Many times faster than a cumulative sum over starts and stops.
        flat = np.repeat(marked, np.diff(edges))
        return flat.reshape(stop - start, self.shape[1], self.shape[2] + 1)[:, :, : self.shape[2]]

    def _from_slice(self, z: int) -> int:
        """Return the index of the first run in slice ``z`` or after it."""
        # A value of the array's dtype: otherwise searchsorted converts the whole array.
        return int(np.searchsorted(self.starts, self.starts.dtype.type(z * self.per_slice)))

    def points(self, runs: slice) -> np.ndarray:
        """Return the row and column, ``(voxels, 2)``, of each voxel of a range of runs."""
        lengths = self.lengths[runs]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows, columns = np.divmod(np.repeat(self.starts[runs], lengths) + within, self.shape[2] + 1)
        return np.stack([rows % self.shape[1], columns], axis=1)

    def box(self) -> Box:
        """Return the bounding box of a non-empty mask, enlarged by a voxel on each side."""
        rows = self.starts // (self.shape[2] + 1)
        lines = (rows // self.shape[1], rows % self.shape[1])
        ends = [(int(line.min()), int(line.max()) + 1) for line in lines]
        ends.append((int(self._columns().min()), int((self._columns() + self.lengths).max())))
        z, y, x = (
            slice(max(first - 1, 0), min(last + 1, side))
            for (first, last), side in zip(ends, self.shape, strict=True)
        )
        return z, y, x

    def cropped(self, box: Box) -> "Runs":
        """Return the mask cropped to a box that contains all of it."""
        shape = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
        return self._shifted([-axis.start for axis in box], shape)

    def placed(self, box: Box, shape: tuple[int, int, int]) -> "Runs":
        """Return the mask placed at a box of a larger, empty mask; the inverse of :meth:`cropped`."""
        return self._shifted([axis.start for axis in box], shape)

    def _shifted(self, by: list[int], shape: tuple[int, int, int]) -> "Runs":
        """Return the mask shifted by ``(z, y, x)`` voxels in a mask of another shape."""
        wide = np.promote_types(self.starts.dtype, _index_type(shape))
        rows = self.starts.astype(wide) // (self.shape[2] + 1)
        z, y = rows // self.shape[1] + by[0], rows % self.shape[1] + by[1]
        starts = (z * shape[1] + y) * (shape[2] + 1) + self._columns() + by[2]
        starts = starts.astype(_index_type(shape))
        return Runs(starts, starts + self.lengths.astype(_index_type(shape)), shape)

    def _columns(self) -> np.ndarray:
        return self.starts % (self.shape[2] + 1)

    def components(self, *, in_plane: bool = False) -> np.ndarray:
        """Label connected components; voxels are neighbors if they share a face.

        Args:
            in_plane: connect within slices only, not in 3D.

        Returns:
            ``(n,)`` label of each run, from 0.
        """
        numbers, count = np.empty(len(self.starts), dtype=np.int32), 0
        parts = self._graph_chunks()
        for part in parts:
            numbers[part] = self.only(part)._label_components(in_plane=in_plane) + count
            count = int(numbers[part].max()) + 1
        if in_plane or len(parts) < 2:
            return numbers
        pairs = []
        for part in parts[1:]:
            z = int(self.starts[part.start]) // self.per_slice
            two_slices = slice(self._from_slice(z - 1), self._from_slice(z + 1))
            runs = self.only(two_slices)
            pairs.append(
                numbers[two_slices][np.stack(runs._overlapping_runs(self.per_slice, runs.lengths > 0))]
            )
        first, second = np.concatenate(pairs, axis=1)
        return _label_graph(first, second, count)[numbers]

    def _graph_chunks(self) -> list[slice]:
        """Return parts of about :data:`RUNS_PER_GRAPH` runs that end at the end of a slice."""
        parts, start = [], 0
        while start < len(self.starts):
            last = int(self.starts[min(start + RUNS_PER_GRAPH, len(self.starts)) - 1]) // self.per_slice
            parts.append(slice(start, self._from_slice(last + 1)))
            start = parts[-1].stop
        return parts

    def _label_components(self, *, in_plane: bool) -> np.ndarray:
        """Label the components of all runs at once; see :meth:`components`."""
        width, count = self.shape[2] + 1, len(self.starts)
        # The row after a slice's last one is the first of the next slice: not a neighbor.
        pairs = [self._overlapping_runs(width, (self.starts // width + 1) % self.shape[1] != 0)]
        if not in_plane:
            pairs.append(self._overlapping_runs(self.per_slice, np.ones(count, dtype=bool)))
        first, second = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
        return _label_graph(first, second, count)

    def _overlapping_runs(self, offset: int, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of runs that overlap when the first is moved by an offset.

        Args:
            offset: flat index between neighbors, of the next row or the next slice.
            candidates: ``(n,)`` booleans, the runs that have such a neighbor.

        Returns:
            Indices of the first and of the second runs, int32.
        """
        first = np.searchsorted(self.stops, self.starts + offset, side="right").astype(np.int32)
        count = np.searchsorted(self.starts, self.stops + offset, side="left").astype(np.int32) - first
        count[~candidates] = 0
        first_runs = np.repeat(np.arange(len(count), dtype=np.int32), count)
        second_runs = np.arange(len(first_runs), dtype=np.int32)
        second_runs -= np.repeat(np.cumsum(count, dtype=np.int32) - count - first, count)
        return first_runs, second_runs


def _label_graph(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Label the connected components of a graph.

    Returns:
        ``(count,)`` labels from 0, in the order of each component's first node.
    """
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _index_type(shape: tuple[int, int, int]) -> type[np.signedinteger]:
    """Return the integer type for flat indices of a mask, with room for an offset of one slice."""
    most = (shape[0] + 1) * shape[1] * (shape[2] + 1)
    return np.int32 if most <= np.iinfo(np.int32).max else np.int64


def map_masks(function: Callable[..., np.ndarray], *masks: Runs, voxels: int = CHUNK) -> Runs:
    """Apply a function to masks, a part of the slices at a time.

    Args:
        function: takes decoded masks ``(n, y, x)`` and returns one; it treats slices independently.
        masks: masks of one shape.
        voxels: largest number of voxels at a time, to bound the memory.
    """
    parts = slice_chunks(masks[0].shape, voxels)
    return Runs.of((function(*(runs.mask(part) for runs in masks)) for part in parts), masks[0].shape)


def slice_chunks(shape: tuple[int, ...], voxels: int = CHUNK) -> list[slice]:
    """Split a stack of slices ``(z, y, x)`` into parts of at most ``voxels`` voxels, or of one slice."""
    step = max(1, voxels // (shape[1] * shape[2]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def merge(first: Runs, second: Runs) -> Runs:
    """Join two masks of one shape that have no slice in common."""
    starts = np.concatenate([first.starts, second.starts])
    order = np.argsort(starts, kind="stable")
    return Runs(starts[order], np.concatenate([first.stops, second.stops])[order], first.shape)
