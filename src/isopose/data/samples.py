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
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch[Stack]":
        """Return the batch in pinned memory, from which a GPU copies asynchronously."""
        return self._each(lambda tensor: tensor.pin_memory())

    def part(self, rows: Tensor) -> "Batch[Stack]":
        """Return some of the batch's samples, by their indices ``(n,)``."""
        chosen = rows.tolist()

        def select(value: Any) -> Any:
            return tuple(value[row] for row in chosen) if isinstance(value, tuple) else value[rows]

        return replace(self, **{k: select(v) for k, v in vars(self).items() if v is not None})

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch[Stack]":
        def changed(value: Any) -> Any:
            return tuple(map(change, value)) if isinstance(value, tuple) else change(value)

        return replace(self, **{k: changed(v) for k, v in vars(self).items() if v is not None})


SliceBatch = Batch[Tensor]
VolumeBatch = Batch[tuple[Tensor, ...]]


def each_stack(stacks: Tensor | tuple[Tensor, ...], *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield what can be computed at once: all slices of a batch together, or one volume at a time.

    Args:
        stacks: image, mask or labels of a :class:`Batch`.
        others: tensors with a row for each sample; with a volume, its row ``(1, ...)`` is yielded.
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
        """From now on return each row with its neighbors, in their known poses.

        If this is called before :meth:`subset`, a subset keeps the neighbors outside it.
        """
        if not config.context:
            return
        assert self.pose is not None, "neighbors are seen in their own poses"
        beside = np.empty((len(self), 2 * config.context + 1), dtype=np.int64)
        for number, case in enumerate(self.cases):
            rows = np.flatnonzero(self.rows[:, 0] == number)
            if len(rows):
                beside[rows] = rows[neighbors_of(self.rows[rows, 1], case.record.spacing[2], config)]
        self.channels, self.channel_pose = self.rows[beside, 1], self.pose[torch.from_numpy(beside)]

    def read(self, index: np.ndarray) -> SliceBatch:
        """Read the batch of the rows ``(N,)``; slices of one case are read together."""
        image: list[Tensor] = [torch.empty(0)] * len(index)
        mask, labels = image.copy(), image.copy()
        for case in np.unique(self.rows[index, 0]):
            places = np.flatnonzero(self.rows[index, 0] == case)
            channels = self.channels[index[places]]
            # Neighbors of neighboring rows are the same slices: each is read once.
            slices_read = np.unique(channels)
            arrays = self.cases[case].read(
                self.rows[index[places], 1].tolist(), slices_read.tolist(), all_channels=self.all_channels
            )
            images, *rest = map(torch.from_numpy, arrays)
            images = images if self.all_channels else images[None]
            for row, place in enumerate(places):
                positions = torch.from_numpy(np.searchsorted(slices_read, channels[row]))
                image[place] = images[:, positions].flatten(0, 1)
                mask[place], labels[place] = (one[row] for one in rest)
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

    def spread(self, most: int) -> "Slices":
        """Return at most ``most`` rows, evenly spread, for validation."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int))
        return self.subset(chosen)

    def labeled(self) -> "Slices":
        """Return the rows that show any label."""
        return self.subset(np.flatnonzero(self.presence.any(axis=1)))

    def annotated(self) -> "Slices":
        """Return the rows that were annotated, with labels or as background."""
        return self if self.drawn.all() else self.subset(np.flatnonzero(self.drawn))

    def subset(self, rows: np.ndarray) -> "Slices":
        """Return some rows only."""
        part = Slices.__new__(Slices)
        part.cases, part.rows, part.presence = self.cases, self.rows[rows], self.presence[rows]
        part.drawn, part.channels = self.drawn[rows], self.channels[rows]
        part.all_channels = self.all_channels
        for name in ("pose", "theta2", "channel_pose"):
            value = getattr(self, name)
            setattr(part, name, None if value is None else value[torch.from_numpy(rows)])
        return part


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
        matrices = [one.frame.stack_from_frame(one.shape[0], one.spacing[2]) for one in records]
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
            tuple(torch.from_numpy(one)[None] for one in kind) for kind in zip(*arrays, strict=True)
        )
        rows = torch.from_numpy(np.asarray(index, dtype=np.int64))
        return Batch(
            rows,
            image if self.all_channels else tuple(one[None] for one in image),
            tuple(one[None].float() for one in mask),
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
        """Return some rows only."""
        part = Volumes([self.cases[row] for row in rows])
        part.pose = None if self.pose is None else self.pose[torch.from_numpy(rows)]
        part.theta2 = None if self.theta2 is None else self.theta2[torch.from_numpy(rows)]
        part.all_channels = self.all_channels
        return part
