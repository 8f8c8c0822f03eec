"""Distributed training: processes (ranks) that ``torchrun`` starts, one per device, and their collectives.

With one process, which is the case for everything not started by ``torchrun``, sums and gathers return their
input.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isopose.errors import InputError

#: Timeout of collectives. Long, because one rank may preprocess a dataset while the others wait; a rank that
#: dies is noticed at once.
COLLECTIVE_TIMEOUT = timedelta(days=7)


def launched() -> tuple[int, int]:
    """Return the number of processes on this machine and of machines; 1 and 1 without ``torchrun``.

    Raises:
        InputError: machines run different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1, 1
    local_processes, processes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if processes % local_processes:
        raise InputError(f"torchrun: expected as many processes on each machine, got {processes} in all")
    return local_processes, processes // local_processes


def strategy_for(device: str) -> Any:
    """Return Lightning Fabric's strategy: DDP under ``torchrun``, otherwise Fabric's own choice."""
    if launched() == (1, 1):
        return "auto"
    # Imported late: prediction does not need it.
    from lightning_fabric.strategies import DDPStrategy

    backend = "nccl" if device == "cuda" else "gloo"
    return DDPStrategy(process_group_backend=backend, timeout=COLLECTIVE_TIMEOUT)


def rank() -> int:
    """Return this process's rank; rank 0 writes files and reports progress."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Return the number of processes that train together (the world size)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shares_of_rank(count: int, parts: int = 1) -> list[Tensor]:
    """Return the indices of a batch that this rank takes, one tensor for each part of the batch.

    A part consists of the same samples for any number of ranks.

    Args:
        count: samples in the whole batch, a multiple of parts times ranks.
        parts: number of parts whose gradients are accumulated.
    """
    return [part.tensor_split(ranks())[rank()] for part in torch.arange(count).tensor_split(parts)]


def summed(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, differentiable."""
    if ranks() == 1:
        return value
    # Imported late: it loads much that one process does not need.
    from torch.distributed.nn.functional import all_reduce

    # Without a group it takes the one of this moment.
    return all_reduce(value, group=None)


def gathered(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Gather the ranks' results for their batches and concatenate them in the order of the batches.

    Args:
        parts: a tensor for each of this rank's batches; batch ``n`` belongs to rank ``n % ranks``.
        dim: dimension along which they are concatenated.

    Returns:
        The same tensor on all ranks.
    """
    if ranks() == 1:
        return torch.cat(list(parts), dim)
    parts_of_ranks: list[Any] = [None] * ranks()
    dist.all_gather_object(parts_of_ranks, [part.cpu() for part in parts])
    return torch.cat([part for part in chain(*zip_longest(*parts_of_ranks)) if part is not None], dim)


def leave() -> None:
    """Leave the group of ranks; its threads may otherwise still run when the process ends, and abort it."""
    # NCCL may wait here for a rank that is lost, and ends by itself.
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def is_lost_rank(error: RuntimeError) -> bool:
    """Return True if a collective operation failed because another rank is gone."""
    message = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in message or "nccl" in message
