"""Masks of many slices as runs: where, row by row, what is marked begins and ends.

A trunk and most of what is computed on the way to it are a few runs a row: a tenth of what a mask of bytes
takes, and components are found by joining runs instead of numbering voxels, in half the time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Box = tuple[slice, slice, slice]

#: Runs among which components are found at a time: the graph that joins them takes many times their memory.
TOGETHER = 250_000


@dataclass(frozen=True, eq=False)
class Runs:
    """A mask ``(z, y, x)``.

    Args:
        starts: ``(n,)`` in order, int32 where that is enough; numbers count voxels in rows of x + 1, the last
            of which is never marked, so that no run goes on in the next row.
        stops: ``(n,)`` the same, one beyond each run's last voxel.
        shape: ``(z, y, x)``.
    """

    starts: np.ndarray
    stops: np.ndarray
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, parts: Iterator[np.ndarray], shape: tuple[int, int, int]) -> "Runs":
        """Of a mask that comes in parts ``(n, y, x)``, from its first slice to its last."""
        height, width = shape[1:]
        starts, stops, first = [], [], 0
        for part in parts:
            # Each row is followed by what is unmarked, and so is the one before the first.
            rows = np.zeros((len(part) * height + 1, width + 1), dtype=bool)
            rows[1:, :width] = part.reshape(-1, width)
            flat = rows.ravel()[width:]
            edges = np.flatnonzero(flat[1:] != flat[:-1]) + first * height * (width + 1)
            starts.append(edges[::2].astype(_whole(shape)))
            stops.append(edges[1::2].astype(_whole(shape)))
            first += len(part)
        return cls(np.concatenate(starts), np.concatenate(stops), shape)

    @property
    def per_slice(self) -> int:
        """What numbers of one slice differ by from those of the next."""
        return self.shape[1] * (self.shape[2] + 1)

    @property
    def slices(self) -> np.ndarray:
        """``(n,)`` in which slice each run lies."""
        return self.starts // self.per_slice

    @property
    def lengths(self) -> np.ndarray:
        """``(n,)`` voxels of each run."""
        return self.stops - self.starts

    @property
    def areas(self) -> np.ndarray:
        """``(z,)`` voxels of each slice."""
        return np.bincount(self.slices, self.lengths, self.shape[0]).astype(np.int64)

    def only(self, kept: np.ndarray) -> "Runs":
        """The runs ``(n,)`` that are marked."""
        return Runs(self.starts[kept], self.stops[kept], self.shape)

    def mask(self, part: slice) -> np.ndarray:
        """Slices as booleans ``(n, y, x)``."""
        start, stop, _ = part.indices(self.shape[0])
        first, last = self._from_slice(start), self._from_slice(stop)
        edges = np.empty(2 * (last - first) + 2, dtype=np.int64)
        edges[0], edges[-1] = start * self.per_slice, stop * self.per_slice
        edges[1:-1:2], edges[2:-1:2] = self.starts[first:last], self.stops[first:last]
        marked = np.arange(len(edges) - 1) % 2 == 1
        # Many times as fast as to add up where runs start and stop.
        flat = np.repeat(marked, np.diff(edges))
        return flat.reshape(stop - start, self.shape[1], self.shape[2] + 1)[:, :, : self.shape[2]]

    def _from_slice(self, z: int) -> int:
        """The first run that lies in a slice or in those after it."""
        # Of their own type, or all of them would be copied.
        return int(np.searchsorted(self.starts, self.starts.dtype.type(z * self.per_slice)))

    def points(self, runs: slice) -> np.ndarray:
        """``(voxels, 2)`` rows and columns of the voxels of some runs, one after the other."""
        lengths = self.lengths[runs]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows, columns = np.divmod(np.repeat(self.starts[runs], lengths) + within, self.shape[2] + 1)
        return np.stack([rows % self.shape[1], columns], axis=1)

    def box(self) -> Box:
        """The smallest box that holds the mask, which is not empty, and a voxel more on each side."""
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
        """The same within a box that holds it."""
        shape = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
        return self._moved([-axis.start for axis in box], shape)

    def placed(self, box: Box, shape: tuple[int, int, int]) -> "Runs":
        """The same in a larger mask of which it is a box."""
        return self._moved([axis.start for axis in box], shape)

    def _moved(self, by: list[int], shape: tuple[int, int, int]) -> "Runs":
        wide = np.promote_types(self.starts.dtype, _whole(shape))
        rows = self.starts.astype(wide) // (self.shape[2] + 1)
        z, y = rows // self.shape[1] + by[0], rows % self.shape[1] + by[1]
        starts = (z * shape[1] + y) * (shape[2] + 1) + self._columns() + by[2]
        starts = starts.astype(_whole(shape))
        return Runs(starts, starts + self.lengths.astype(_whole(shape)), shape)

    def _columns(self) -> np.ndarray:
        return self.starts % (self.shape[2] + 1)

    def components(self, *, in_plane: bool = False) -> np.ndarray:
        """``(n,)`` numbers from 0 on, equal for runs that are connected by faces: in 3D, or in each slice."""
        numbers, count = np.empty(len(self.starts), dtype=np.int32), 0
        parts = self._parts()
        for part in parts:
            numbers[part] = self._runs(part)._connected(in_plane=in_plane) + count
            count = int(numbers[part].max()) + 1
        if in_plane or len(parts) < 2:
            return numbers
        pairs = []
        for part in parts[1:]:
            z = int(self.starts[part.start]) // self.per_slice
            both = slice(self._from_slice(z - 1), self._from_slice(z + 1))
            beside = self._runs(both)
            pairs.append(numbers[both][np.stack(beside._meeting(self.per_slice, beside.lengths > 0))])
        one, other = np.concatenate(pairs, axis=1)
        return _joined(one, other, count)[numbers]

    def _runs(self, part: slice) -> "Runs":
        return Runs(self.starts[part], self.stops[part], self.shape)

    def _parts(self) -> list[slice]:
        """Of about so many runs, which end where a slice does."""
        parts, start = [], 0
        while start < len(self.starts):
            last = int(self.starts[min(start + TOGETHER, len(self.starts)) - 1]) // self.per_slice
            parts.append(slice(start, self._from_slice(last + 1)))
            start = parts[-1].stop
        return parts

    def _connected(self, *, in_plane: bool) -> np.ndarray:
        width, count = self.shape[2] + 1, len(self.starts)
        # The row after a slice's last is the next slice's first, and not beside it.
        pairs = [self._meeting(width, (self.starts // width + 1) % self.shape[1] != 0)]
        if not in_plane:
            pairs.append(self._meeting(self.per_slice, np.ones(count, dtype=bool)))
        first, second = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
        return _joined(first, second, count)

    def _meeting(self, further: int, those: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs, int32, of ``those`` runs and of runs beside them, which lie so much further on."""
        first = np.searchsorted(self.stops, self.starts + further, side="right").astype(np.int32)
        count = np.searchsorted(self.starts, self.stops + further, side="left").astype(np.int32) - first
        count[~those] = 0
        one = np.repeat(np.arange(len(count), dtype=np.int32), count)
        other = np.arange(len(one), dtype=np.int32)
        other -= np.repeat(np.cumsum(count, dtype=np.int32) - count - first, count)
        return one, other


def _joined(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """``(count,)`` numbers from 0 on, equal for what pairs join, in the order in which each first comes."""
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers


def _whole(shape: tuple[int, int, int]) -> type[np.signedinteger]:
    """Whole numbers that count all voxels of a mask in rows of one more, and a slice besides."""
    most = (shape[0] + 1) * shape[1] * (shape[2] + 1)
    return np.int32 if most <= np.iinfo(np.int32).max else np.int64


def mapped(function: Callable[..., np.ndarray], *given: Runs, voxels: int) -> Runs:
    """What a function makes of masks ``(n, y, x)``, so many voxels at a time; slices are for themselves."""
    parts = parts_of(given[0].shape, voxels)
    return Runs.of((function(*(runs.mask(part) for runs in given)) for part in parts), given[0].shape)


def parts_of(shape: tuple[int, ...], voxels: int) -> list[slice]:
    """Parts of a stack of slices that have so many voxels, or are one slice."""
    step = max(1, voxels // (shape[1] * shape[2]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def merged(one: Runs, other: Runs) -> Runs:
    """Both together, which have no slice in common."""
    starts = np.concatenate([one.starts, other.starts])
    order = np.argsort(starts, kind="stable")
    return Runs(starts[order], np.concatenate([one.stops, other.stops])[order], one.shape)
