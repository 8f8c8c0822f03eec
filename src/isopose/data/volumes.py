"""Whole cases from a store, for the networks of volumes; the counterpart of :mod:`isopose.data.slices`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isopose.data.slices import batches_in_order, read_ahead
from isopose.data.store import StoredCase


@dataclass(frozen=True)
class VolumeBatch:
    """Volumes of different depth and spacing, so each by itself, and their transforms where already known.

    Args:
        rows: ``(N,)`` of the :class:`Volumes` they came from.
        image: N of ``(1, 1, Z, S, S)`` float32, normalized.
        mask: N of ``(1, 1, Z, S, S)`` float32, foreground.
        labels: N of ``(1, Z, S, S)`` uint8 classes.
        stack_from_frame: ``(N, 4, 4)``, see :meth:`isopose.geometry.frame.Frame.stack_from_frame`.
        pose: ``(N, 9)`` or none.
        theta2: ``(N, 4, 4)`` or none.
    """

    rows: Tensor
    image: tuple[Tensor, ...]
    mask: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    stack_from_frame: Tensor
    pose: Tensor | None = None
    theta2: Tensor | None = None

    def to(self, device: torch.device) -> "VolumeBatch":
        """The batch on a device, copied without waiting where memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "VolumeBatch":
        """The batch in pinned memory, from which a GPU copies without waiting."""
        return self._each(lambda tensor: tensor.pin_memory())

    def part(self, rows: Tensor) -> "VolumeBatch":
        """Some of its volumes, by their place in the batch."""
        chosen = rows.tolist()

        def picked(value: Any) -> Any:
            return tuple(value[row] for row in chosen) if isinstance(value, tuple) else value[rows]

        known = {name: picked(value) for name, value in vars(self).items() if value is not None}
        return VolumeBatch(**known)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "VolumeBatch":
        def changed(value: Any) -> Any:
            return tuple(map(change, value)) if isinstance(value, tuple) else change(value)

        known = {name: changed(value) for name, value in vars(self).items() if value is not None}
        return VolumeBatch(**known)


class Volumes:
    """Cases that show a body, whole, as rows.

    ``pose`` and ``theta2`` are filled in once they are known.

    Args:
        cases: of one store.
    """

    def __init__(self, cases: Sequence[StoredCase]) -> None:
        self.cases = tuple(case for case in cases if any(case.record.body_fraction))
        #: ``(rows, classes - 1)``: which labels a case shows.
        self.presence = np.array(
            [np.asarray(case.record.presence, dtype=bool).any(axis=0) for case in self.cases]
        )
        records = [case.record for case in self.cases]
        matrices = [one.frame.stack_from_frame(one.shape[0], one.spacing[2]) for one in records]
        self.stack_from_frame = torch.stack(matrices) if matrices else torch.empty(0, 4, 4)
        self.pose: Tensor | None = None
        self.theta2: Tensor | None = None

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def patients(self) -> list[str]:
        """The patient of each row."""
        return [case.record.patient for case in self.cases]

    def read(self, index: np.ndarray) -> VolumeBatch:
        """Read whole cases."""
        arrays = [self.cases[row].read(range(self.cases[row].record.shape[0])) for row in index]
        image, mask, labels = (
            tuple(torch.from_numpy(one)[None] for one in kind) for kind in zip(*arrays, strict=True)
        )
        rows = torch.from_numpy(np.asarray(index, dtype=np.int64))
        return VolumeBatch(
            rows,
            tuple(one[None] for one in image),
            tuple(one[None].float() for one in mask),
            labels,
            self.stack_from_frame[rows],
            None if self.pose is None else self.pose[rows],
            None if self.theta2 is None else self.theta2[rows],
        )

    def in_order(self, batch_size: int, first: int = 0, step: int = 1) -> Iterator[VolumeBatch]:
        """Every row once, in order; of the batches every so-many-th from the first."""
        yield from read_ahead(self, batches_in_order(len(self), batch_size)[first::step], depth=1)

    def labeled(self) -> "Volumes":
        """The rows that show any label."""
        return self.subset(np.flatnonzero(self.presence.any(axis=1)))

    def subset(self, rows: np.ndarray) -> "Volumes":
        """Some rows only."""
        part = Volumes([self.cases[row] for row in rows])
        part.pose = None if self.pose is None else self.pose[torch.from_numpy(rows)]
        part.theta2 = None if self.theta2 is None else self.theta2[torch.from_numpy(rows)]
        return part
