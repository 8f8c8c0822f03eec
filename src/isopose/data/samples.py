"""Training samples from a store: slices, or whole volumes, as rows from which batches are read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from isopose.data.draw import batches_of_rows, read_ahead
from isopose.data.neighbors import neighbors_of
from isopose.data.store import StoredCase
from isopose.settings import UNetConfig

#: One tensor for slices; a tuple of tensors for volumes, whose depths differ.
Stack = TypeVar("Stack", Tensor, tuple[Tensor, ...])


# Not frozen: in mixed precision Lightning Fabric copies a module's inputs and sets each field.
@dataclass(eq=False)
class Batch(Generic[Stack]):
    """A batch of slices or volumes and, if already known, their transforms.

    Args:
        rows: ``(N,)`` indices into the :class:`Slices` or :class:`Volumes`.
        image: ``(N, C, S, S)`` float32, normalized: of the slice, or, channel after channel, of the slice in
            the middle of its neighbors; of volumes N tensors ``(1, C, Z, S, S)``. Before the U-Net is trained
            there is one channel, which shows the pose.
        mask: foreground, float32, ``(N, 1, S, S)``; of volumes as the image.
        labels: ``(N, S, S)`` uint8 classes, :data:`isopose.labels.IGNORED` where not annotated; of volumes N
            tensors ``(1, Z, S, S)``.
        pose: ``(N, 5)``, of volumes ``(N, 9)``; None before STN1 is trained.
        theta2: ``(N, 3, 3)``, of volumes ``(N, 4, 4)``; None before STN2 is trained.
        stack_from_frame: for volumes ``(N, 4, 4)``, see
            :meth:`isopose.geometry.frame.Frame.stack_from_frame`.
        channel_pose: ``(N, K, 5)`` poses of the slice and its neighbors; None where a slice stands alone.
    """

    rows: Tensor
    image: Stack
    mask: Stack
    labels: Stack
    pose: Tensor | None = None
    theta2: Tensor | None = None
    stack_from_frame: Tensor | None = None
    channel_pose: Tensor | None = None

    def to(self, device: torch.device) -> "Batch[Stack]":
        """Return the batch on a device, copied asynchronously where memory is pinned."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch[Stack]":
        """Return the batch in pinned memory, from which a GPU copies asynchronously."""
        return self._map_tensors(Tensor.pin_memory)

    def select(self, rows: Tensor) -> "Batch[Stack]":
        """Return the batch's samples with indices ``rows`` ``(n,)``, in that order."""
        indices = rows.tolist()
        return self._map_fields(
            lambda field: tuple(field[i] for i in indices) if isinstance(field, tuple) else field[rows]
        )

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Batch[Stack]":
        """Apply a function to every tensor, also to each of those of volumes."""
        return self._map_fields(
            lambda field: tuple(map(function, field)) if isinstance(field, tuple) else function(field)
        )

    def _map_fields(self, function: Callable[[Any], Any]) -> "Batch[Stack]":
        """Apply a function to every field that is not None."""
        return replace(self, **{k: function(v) for k, v in vars(self).items() if v is not None})


SliceBatch = Batch[Tensor]
VolumeBatch = Batch[tuple[Tensor, ...]]


def each_stack(stacks: Tensor | tuple[Tensor, ...], *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over a batch: all slices at once, or one volume at a time, since volumes differ in depth.

    Args:
        stacks: image, mask or labels of a :class:`Batch`.
        others: tensors whose first dimension is the sample.

    Yields:
        The stack, and for each of ``others`` the rows that belong to it: all rows with slices, one row
            ``(1, ...)`` with a volume.
    """
    if isinstance(stacks, Tensor):
        yield (stacks, *others)
    else:
        for number, stack in enumerate(stacks):
            yield (stack, *(other[number : number + 1] for other in others))


class Slices:
    """All slices with a body of some cases, as rows.

    ``pose`` and ``theta2`` are set once STN1 and STN2 are trained.

    Args:
        cases: of one store.
    """

    def __init__(self, cases: Sequence[StoredCase]) -> None:
        self.cases = tuple(cases)
        rows = [
            (c, z) for c, case in enumerate(self.cases) for z in np.flatnonzero(case.record.body_fraction)
        ]
        #: ``(rows, 2)``: index of the case, and of the slice from the feet.
        self.rows = np.array(rows, dtype=np.int64).reshape(-1, 2)
        #: ``(rows, classes - 1)`` booleans: which labels a slice shows.
        self.presence = np.concatenate(
            [
                np.asarray(case.record.presence, dtype=bool)[self.rows[self.rows[:, 0] == c, 1]]
                for c, case in enumerate(self.cases)
            ]
        )
        undrawn = {(c, z) for c, case in enumerate(self.cases) for z in case.record.undrawn}
        #: ``(rows,)`` booleans: whether any voxel of a slice is annotated, including background.
        self.drawn = np.array([row not in undrawn for row in rows], dtype=bool)
        self.pose: Tensor | None = None
        self.theta2: Tensor | None = None
        #: ``(rows, K)``: slices that a batch shows as channels of a row, and ``(rows, K, 5)`` their poses.
        self.channels = self.rows[:, 1:]
        self.channel_pose: Tensor | None = None
        #: Whether a batch shows all channels of the scans, or only that of the pose.
        self.all_channels = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def patients(self) -> list[str]:
        """The patient of each row."""
        return [self.cases[c].record.patient for c in self.rows[:, 0]]

    def set_neighbors(self, config: UNetConfig) -> None:
        """Add the neighbors of each slice as channels of the batches that are read from now on.

        ``pose`` must be set: each neighbor is resampled in its own pose. Subsets that are taken afterwards
        keep neighbors that are not among their rows.

        Args:
            config: ``context`` is the number of neighbors on each side; with 0 nothing changes.
        """
        if not config.context:
            return
        assert self.pose is not None, "neighbors are seen in their own poses"
        neighbors = np.empty((len(self), 2 * config.context + 1), dtype=np.int64)
        for case_index, case in enumerate(self.cases):
            rows = np.flatnonzero(self.rows[:, 0] == case_index)
            if len(rows):
                neighbors[rows] = rows[neighbors_of(self.rows[rows, 1], case.record.spacing[2], config)]
        self.channels, self.channel_pose = self.rows[neighbors, 1], self.pose[torch.from_numpy(neighbors)]

    def read(self, index: np.ndarray) -> SliceBatch:
        """Read the batch of the rows ``(N,)``; slices of one case are read together."""
        image: list[Tensor] = [torch.empty(0)] * len(index)
        mask, labels = image.copy(), image.copy()
        for case in np.unique(self.rows[index, 0]):
            positions = np.flatnonzero(self.rows[index, 0] == case)
            channels = self.channels[index[positions]]
            # Neighbors of neighboring rows are the same slices: each is read once.
            slices_read = np.unique(channels)
            arrays = self.cases[case].read(
                self.rows[index[positions], 1].tolist(), slices_read.tolist(), all_channels=self.all_channels
            )
            images, *rest = map(torch.from_numpy, arrays)
            images = images if self.all_channels else images[None]
            for row, position in enumerate(positions):
                channel_index = torch.from_numpy(np.searchsorted(slices_read, channels[row]))
                image[position] = images[:, channel_index].flatten(0, 1)
                mask[position], labels[position] = (array[row] for array in rest)
        rows = torch.from_numpy(np.asarray(index, dtype=np.int64))
        return Batch(
            rows,
            torch.stack(image),
            torch.stack(mask)[:, None].float(),
            torch.stack(labels),
            None if self.pose is None else self.pose[rows],
            None if self.theta2 is None else self.theta2[rows],
            channel_pose=None if self.channel_pose is None else self.channel_pose[rows],
        )

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[SliceBatch]:
        """Yield all rows in order; of several processes, each yields its share of the batches."""
        yield from read_ahead(self, batches_of_rows(len(self), batch_size)[rank::world_size])

    def spread(self, count: int) -> "Slices":
        """Return at most ``count`` rows, evenly spread, for validation."""
        return self.subset(
            np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        )

    def labeled(self) -> "Slices":
        """Return the rows that show any label."""
        return self.subset(np.flatnonzero(self.presence.any(axis=1)))

    def annotated(self) -> "Slices":
        """Return the rows that were annotated, with labels or as background."""
        return self if self.drawn.all() else self.subset(np.flatnonzero(self.drawn))

    def subset(self, rows: np.ndarray) -> "Slices":
        """Return the rows with indices ``rows`` ``(n,)``, in that order."""
        subset = Slices.__new__(Slices)
        subset.cases, subset.rows, subset.presence = self.cases, self.rows[rows], self.presence[rows]
        subset.drawn, subset.channels = self.drawn[rows], self.channels[rows]
        subset.all_channels = self.all_channels
        for name in ("pose", "theta2", "channel_pose"):
            value = getattr(self, name)
            setattr(subset, name, None if value is None else value[torch.from_numpy(rows)])
        return subset


class Volumes:
    """Whole cases with a body, as rows.

    ``pose`` and ``theta2`` are set once they are known.

    Args:
        cases: of one store.
    """

    def __init__(self, cases: Sequence[StoredCase]) -> None:
        self.cases = tuple(case for case in cases if any(case.record.body_fraction))
        #: ``(rows, classes - 1)`` booleans: which labels a case shows.
        self.presence = np.array(
            [np.asarray(case.record.presence, dtype=bool).any(axis=0) for case in self.cases]
        )
        records = [case.record for case in self.cases]
        matrices = [record.frame.stack_from_frame(record.shape[0], record.spacing[2]) for record in records]
        self.stack_from_frame = torch.stack(matrices) if matrices else torch.empty(0, 4, 4)
        self.pose: Tensor | None = None
        self.theta2: Tensor | None = None
        #: Whether a batch shows all channels of the scans, or only that of the pose.
        self.all_channels = False

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def patients(self) -> list[str]:
        """The patient of each row."""
        return [case.record.patient for case in self.cases]

    def read(self, index: np.ndarray) -> VolumeBatch:
        """Read the batch of the cases ``(N,)``."""
        arrays = [
            self.cases[row].read(range(self.cases[row].record.shape[0]), all_channels=self.all_channels)
            for row in index
        ]
        image, mask, labels = (
            tuple(torch.from_numpy(array)[None] for array in of_cases)
            for of_cases in zip(*arrays, strict=True)
        )
        rows = torch.from_numpy(np.asarray(index, dtype=np.int64))
        return Batch(
            rows,
            image if self.all_channels else tuple(volume[None] for volume in image),
            tuple(volume[None].float() for volume in mask),
            labels,
            None if self.pose is None else self.pose[rows],
            None if self.theta2 is None else self.theta2[rows],
            self.stack_from_frame[rows],
        )

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[VolumeBatch]:
        """Yield all rows in order; of several processes, each yields its share of the batches."""
        yield from read_ahead(self, batches_of_rows(len(self), batch_size)[rank::world_size], depth=1)

    def labeled(self) -> "Volumes":
        """Return the rows that show any label."""
        return self.subset(np.flatnonzero(self.presence.any(axis=1)))

    def annotated(self) -> "Volumes":
        """Return the rows with at least one annotated slice, with labels or as background."""
        drawn = [len(case.record.undrawn) < case.record.shape[0] for case in self.cases]
        return self if all(drawn) else self.subset(np.flatnonzero(drawn))

    def subset(self, rows: np.ndarray) -> "Volumes":
        """Return the rows with indices ``rows`` ``(n,)``, in that order."""
        subset = Volumes([self.cases[row] for row in rows])
        subset.pose = None if self.pose is None else self.pose[torch.from_numpy(rows)]
        subset.theta2 = None if self.theta2 is None else self.theta2[torch.from_numpy(rows)]
        subset.all_channels = self.all_channels
        return subset
