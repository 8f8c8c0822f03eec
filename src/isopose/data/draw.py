"""Choose the rows of training batches, and read batches ahead of the training step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor


def batches_of_rows(rows: int, batch_size: int) -> list[np.ndarray]:
    """Return the indices of all rows in order, a batch at a time; the last batch may be short."""
    return [np.arange(i, min(i + batch_size, rows)) for i in range(0, rows, batch_size)]


def draw_epoch(
    presence: np.ndarray,
    min_fractions: Mapping[int, float],
    batch_size: int,
    iterations: int,
    seed: Sequence[int],
) -> list[np.ndarray]:
    """Draw the rows of each batch of an epoch, with a minimum fraction of slices that show given labels.

    A slice that shows several labels counts for each. The result depends on the arguments only, so a resumed
    run draws the same batches.

    Args:
        presence: ``(rows, labels)`` booleans.
        min_fractions: maps a label's column to the minimum fraction of the epoch's slices that show the
            label; a label that no row shows is ignored.
        batch_size: slices per batch.
        iterations: number of batches.
        seed: numbers that identify run, stage and epoch.

    Returns:
        For each batch its rows ``(batch_size,)``.
    """
    random = np.random.default_rng(np.random.SeedSequence(list(seed)))
    total = batch_size * iterations
    drawn = _draw_evenly(np.arange(len(presence)), total, random)
    # Positions that count toward a label's minimum; only the others may be replaced for another label.
    is_reserved = np.zeros(total, dtype=bool)
    for label, fraction in sorted(min_fractions.items()):
        needed = int(np.ceil(fraction * total))
        candidates = np.flatnonzero(presence[:, label])
        shows_label = presence[drawn, label]
        reserved = np.concatenate(
            [np.flatnonzero(shows_label & is_reserved), np.flatnonzero(shows_label & ~is_reserved)]
        )[:needed]
        is_reserved[reserved] = True
        replaced = np.flatnonzero(~is_reserved)[: needed - len(reserved)]
        if len(candidates) and len(replaced):
            drawn[replaced] = _draw_evenly(candidates, len(replaced), random)
            is_reserved[replaced] = True
    random.shuffle(drawn)
    return list(drawn.reshape(iterations, batch_size))


def _draw_evenly(candidates: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Draw ``count`` candidates in random order, each equally often up to one."""
    rounds = [random.permutation(candidates) for _ in range(-(-count // len(candidates)))]
    return np.concatenate(rounds)[:count]


class _Movable(Protocol):
    """A batch; see :class:`isopose.data.samples.Batch`."""

    def to(self, device: torch.device) -> Self: ...

    def pinned(self) -> Self: ...

    def select(self, rows: Tensor) -> Self: ...


B = TypeVar("B", bound=_Movable)
B_co = TypeVar("B_co", bound=_Movable, covariant=True)


class Rows(Protocol[B_co]):
    """A source of batches: slices, or whole volumes."""

    def read(self, index: np.ndarray) -> B_co:
        """Read the batch of these rows."""
        ...


def read_ahead(
    source: Rows[B],
    rows: Sequence[np.ndarray],
    *,
    depth: int = 3,
    pin: bool = False,
    transform: Callable[[B, int], B] | None = None,
) -> Iterator[B]:
    """Read batches ahead in one background thread; decompression releases the GIL.

    Args:
        source: from which batches are read.
        rows: row indices of each batch.
        depth: number of batches to read ahead.
        pin: copy batches to pinned memory.
        transform: called with each batch and its index, in the background thread; returns the batch to yield.

    Yields:
        The batches in order.
    """

    def load(number: int) -> B:
        batch = source.read(rows[number])
        batch = transform(batch, number) if transform else batch
        return batch.pinned() if pin else batch

    with ThreadPoolExecutor(1, thread_name_prefix="slices") as pool:
        pending = [pool.submit(load, number) for number in range(min(depth, len(rows)))]
        try:
            for upcoming in range(depth, len(rows) + depth):
                batch = pending.pop(0).result()
                if upcoming < len(rows):
                    pending.append(pool.submit(load, upcoming))
                yield batch
        finally:
            for future in pending:
                future.cancel()
