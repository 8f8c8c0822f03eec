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
    presence: np.ndarray, least: Mapping[int, float], batch_size: int, iterations: int, seed: Sequence[int]
) -> list[np.ndarray]:
    """Draw the rows of each batch of an epoch, with a minimum fraction of slices that show given labels.

    A slice that shows several labels counts for each. The result depends on the arguments only, so a resumed
    run draws the same batches.

    Args:
        presence: ``(rows, labels)`` booleans.
        least: column of a label to the minimum fraction of the epoch's slices that show it; a label that no
            row shows is ignored.
        batch_size: slices per batch.
        iterations: number of batches.
        seed: numbers that identify run, stage and epoch.

    Returns:
        For each batch its rows ``(batch_size,)``.
    """
    random = np.random.default_rng(np.random.SeedSequence(list(seed)))
    total = batch_size * iterations
    shuffled = _shuffled(np.arange(len(presence)), total, random)
    # Positions that a label needs for its minimum; only the others may be replaced for another label.
    is_drawn = np.zeros(total, dtype=bool)
    for label, fraction in sorted(least.items()):
        needed = int(np.ceil(fraction * total))
        candidates = np.flatnonzero(presence[:, label])
        showing = presence[shuffled, label]
        holding = np.concatenate([np.flatnonzero(showing & is_drawn), np.flatnonzero(showing & ~is_drawn)])[
            :needed
        ]
        is_drawn[holding] = True
        places = np.flatnonzero(~is_drawn)[: needed - len(holding)]
        if len(candidates) and len(places):
            shuffled[places] = _shuffled(candidates, len(places), random)
            is_drawn[places] = True
    random.shuffle(shuffled)
    return list(shuffled.reshape(iterations, batch_size))


def _shuffled(candidates: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Draw ``count`` candidates in random order, each equally often up to one."""
    rounds = [random.permutation(candidates) for _ in range(-(-count // len(candidates)))]
    return np.concatenate(rounds)[:count]


class _Movable(Protocol):
    def to(self, device: torch.device) -> Self: ...

    def pinned(self) -> Self: ...

    def part(self, rows: Tensor) -> Self: ...


B = TypeVar("B", bound=_Movable)
B_co = TypeVar("B_co", bound=_Movable, covariant=True)


class Rows(Protocol[B_co]):
    """A source of batches: slices, or whole volumes."""

    def read(self, index: np.ndarray) -> B_co:
        """Read the batch of these rows."""
        ...


def read_ahead(
    slices: Rows[B],
    index: Sequence[np.ndarray],
    *,
    depth: int = 3,
    pin: bool = False,
    change: Callable[[B, int], B] | None = None,
) -> Iterator[B]:
    """Read batches ahead in one background thread; decompression releases the GIL.

    Args:
        slices: where batches are read from.
        index: rows of each batch.
        depth: batches to read ahead.
        pin: copy batches to pinned memory.
        change: applied to each batch and its number in that thread.

    Yields:
        The batches in order.
    """

    def load(number: int) -> B:
        batch = slices.read(index[number])
        batch = change(batch, number) if change else batch
        return batch.pinned() if pin else batch

    with ThreadPoolExecutor(1, thread_name_prefix="slices") as pool:
        queue = [pool.submit(load, number) for number in range(min(depth, len(index)))]
        try:
            for following in range(depth, len(index) + depth):
                batch = queue.pop(0).result()
                if following < len(index):
                    queue.append(pool.submit(load, following))
                yield batch
        finally:
            for future in queue:
                future.cancel()
