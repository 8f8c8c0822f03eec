"""Batches of slices from a store: which slices, in which order, read ahead of the training step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from isopose.data.store import StoredCase


class Batch(NamedTuple):
    """Slices in the frame and, where already known, their transforms.

    Args:
        rows: ``(N,)`` of the :class:`Slices` they came from.
        image: ``(N, 1, S, S)`` float32, normalized.
        mask: ``(N, 1, S, S)`` float32, foreground.
        labels: ``(N, S, S)`` uint8 classes.
        pose: ``(N, 5)`` or none.
        theta2: ``(N, 3, 3)`` or none.
    """

    rows: Tensor
    image: Tensor
    mask: Tensor
    labels: Tensor
    pose: Tensor | None = None
    theta2: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, copied without waiting where memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The batch in pinned memory, from which a GPU copies without waiting."""
        return self._each(lambda tensor: tensor.pin_memory())

    def part(self, rows: Tensor) -> "Batch":
        """Some of its slices, by their place in the batch."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        known = {name: change(value) for name, value in self._asdict().items() if value is not None}
        return Batch(**known)


class Slices:
    """All slices of some cases that show a body, as rows.

    ``pose`` and ``theta2`` are filled in once STN1 and STN2 are trained.

    Args:
        cases: of one store.
    """

    def __init__(self, cases: Sequence[StoredCase]) -> None:
        self.cases = tuple(cases)
        rows = [
            (c, z) for c, case in enumerate(self.cases) for z in np.flatnonzero(case.record.body_fraction)
        ]
        self.rows = np.array(rows, dtype=np.int64).reshape(-1, 2)
        #: ``(rows, classes - 1)``: which labels a slice shows.
        self.presence = np.concatenate(
            [
                np.asarray(case.record.presence, dtype=bool)[self._of_case(c)]
                for c, case in enumerate(self.cases)
            ]
        )
        self.pose: Tensor | None = None
        self.theta2: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def _of_case(self, case: int) -> np.ndarray:
        return self.rows[self.rows[:, 0] == case, 1]

    @property
    def patients(self) -> list[str]:
        """The patient of each row."""
        return [self.cases[c].record.patient for c in self.rows[:, 0]]

    def read(self, index: np.ndarray) -> Batch:
        """Read rows; slices of one case are read together."""
        image: list[Tensor] = [torch.empty(0)] * len(index)
        mask, labels = image.copy(), image.copy()
        for case in np.unique(self.rows[index, 0]):
            places = np.flatnonzero(self.rows[index, 0] == case)
            arrays = self.cases[case].read(self.rows[index[places], 1].tolist())
            for row, place in enumerate(places):
                image[place], mask[place], labels[place] = (torch.from_numpy(a[row]) for a in arrays)
        rows = torch.from_numpy(np.asarray(index, dtype=np.int64))
        return Batch(
            rows,
            torch.stack(image)[:, None],
            torch.stack(mask)[:, None].float(),
            torch.stack(labels),
            None if self.pose is None else self.pose[rows],
            None if self.theta2 is None else self.theta2[rows],
        )

    def in_order(self, batch_size: int, first: int = 0, step: int = 1) -> Iterator[Batch]:
        """Every row once, in order; of the batches every so-many-th from the first."""
        yield from read_ahead(self, batches_in_order(len(self), batch_size)[first::step])

    def spread(self, most: int) -> "Slices":
        """At most so many rows, evenly spread, for validation."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int))
        return self.subset(chosen)

    def labeled(self) -> "Slices":
        """The rows that show any label."""
        return self.subset(np.flatnonzero(self.presence.any(axis=1)))

    def subset(self, rows: np.ndarray) -> "Slices":
        """Some rows only."""
        part = Slices.__new__(Slices)
        part.cases, part.rows, part.presence = self.cases, self.rows[rows], self.presence[rows]
        part.pose = None if self.pose is None else self.pose[torch.from_numpy(rows)]
        part.theta2 = None if self.theta2 is None else self.theta2[torch.from_numpy(rows)]
        return part


def batches_in_order(rows: int, batch_size: int) -> list[np.ndarray]:
    """Every row once, in order; the last batch may be short."""
    return [np.arange(i, min(i + batch_size, rows)) for i in range(0, rows, batch_size)]


def draw_epoch(
    presence: np.ndarray, least: Mapping[int, float], batch_size: int, iterations: int, seed: Sequence[int]
) -> list[np.ndarray]:
    """Rows of each batch of an epoch, with at least a part of slices that show given labels.

    A slice that shows several labels counts for each. The draw depends on nothing but the arguments, so a
    resumed run draws the same.

    Args:
        presence: ``(rows, labels)``.
        least: label column to the least fraction of an epoch's slices that must show it; labels that no
            slice shows are passed over.
        batch_size: slices a batch.
        iterations: batches.
        seed: numbers that name this epoch of this stage of this run.
    """
    random = np.random.default_rng(np.random.SeedSequence(list(seed)))
    total = batch_size * iterations
    drawn = _shuffled(np.arange(len(presence)), total, random)
    # Places that hold a label's part already; the others may be given to a label that is short of its own.
    kept = np.zeros(total, dtype=bool)
    for label, fraction in sorted(least.items()):
        needed = int(np.ceil(fraction * total))
        candidates = np.flatnonzero(presence[:, label])
        showing = presence[drawn, label]
        holding = np.concatenate([np.flatnonzero(showing & kept), np.flatnonzero(showing & ~kept)])[:needed]
        kept[holding] = True
        places = np.flatnonzero(~kept)[: needed - len(holding)]
        if len(candidates) and len(places):
            drawn[places] = _shuffled(candidates, len(places), random)
            kept[places] = True
    random.shuffle(drawn)
    return list(drawn.reshape(iterations, batch_size))


def _shuffled(candidates: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """So many of the candidates, each as often as any other give or take one, in random order."""
    rounds = [random.permutation(candidates) for _ in range(-(-count // len(candidates)))]
    return np.concatenate(rounds)[:count]


class _Movable(Protocol):
    def to(self, device: torch.device) -> Self: ...

    def pinned(self) -> Self: ...

    def part(self, rows: Tensor) -> Self: ...


B = TypeVar("B", bound=_Movable)
B_co = TypeVar("B_co", bound=_Movable, covariant=True)


class Rows(Protocol[B_co]):
    """What batches are read from by the numbers of rows: slices, or whole volumes."""

    def read(self, index: np.ndarray) -> B_co:
        """A batch of these rows."""
        ...


def read_ahead(
    slices: Rows[B],
    index: Sequence[np.ndarray],
    *,
    depth: int = 3,
    pin: bool = False,
    change: Callable[[B, int], B] | None = None,
) -> Iterator[B]:
    """Read batches in one background thread, ``depth`` ahead; decompression releases the GIL.

    ``change`` is made to each batch there, given with its number.
    """

    def load(number: int) -> B:
        batch = slices.read(index[number])
        batch = change(batch, number) if change else batch
        return batch.pinned() if pin else batch

    with ThreadPoolExecutor(1, thread_name_prefix="slices") as pool:
        queue = [pool.submit(load, number) for number in range(min(depth, len(index)))]
        try:
            for following in range(depth, len(index) + depth):
                if not queue:
                    return
                batch = queue.pop(0).result()
                if following < len(index):
                    queue.append(pool.submit(load, following))
                yield batch
        finally:
            for future in queue:
                future.cancel()
