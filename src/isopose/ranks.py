"""Training on several processes, one a device: which slices each takes, and what they add up together.

Everything here does nothing where there is one process, as in all that is not started by ``torchrun``.
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

#: How long a rank waits for another, which may preprocess a dataset; a lost one is noticed at once.
PATIENCE = timedelta(days=7)


def launched() -> tuple[int, int]:
    """Processes on this machine and machines, by ``torchrun``'s environment; 1 and 1 without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1, 1
    here, all_of_them = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if all_of_them % here:
        raise InputError(f"torchrun: expected as many processes on each machine, got {all_of_them} in all")
    return here, all_of_them // here


def strategy_for(device: str) -> Any:
    """Lightning Fabric's strategy: DDP under ``torchrun``, else what it chooses itself."""
    if launched() == (1, 1):
        return "auto"
    # Imported here: prediction has no need of it.
    from lightning_fabric.strategies import DDPStrategy

    backend = "nccl" if device == "cuda" else "gloo"
    return DDPStrategy(process_group_backend=backend, timeout=PATIENCE)


def rank() -> int:
    """This process's number; 0 is the one that writes and tells."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mine(count: int, parts: int = 1) -> list[Tensor]:
    """This rank's places in a batch, part by part, so that a part holds what it holds for one process.

    Args:
        count: slices in the whole batch; a multiple of parts times ranks.
        parts: that the batch is gone through in.
    """
    return [part.tensor_split(ranks())[rank()] for part in torch.arange(count).tensor_split(parts)]


class _Sum(torch.autograd.Function):
    """Sum over ranks; on the way back each rank's gradient is what all ranks' losses ask for."""

    @staticmethod
    def forward(_ctx: Any, own: Tensor) -> Tensor:
        whole = own.detach().clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole


def summed(own: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, differentiable."""
    if ranks() == 1:
        return own
    out: Tensor = _Sum.apply(own)
    return out


def gathered(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """What ranks found in every so-many-th batch, in the order of the batches, on all ranks, and joined.

    Args:
        parts: a tensor for each of this rank's batches; of all, batch ``n`` is rank ``n % ranks``'s.
        dim: along which they are joined.
    """
    if ranks() == 1:
        return torch.cat(list(parts), dim)
    every: list[Any] = [None] * ranks()
    dist.all_gather_object(every, [part.cpu() for part in parts])
    return torch.cat([part for part in chain(*zip_longest(*every)) if part is not None], dim)


def lost(error: RuntimeError) -> bool:
    """Whether an error is of a rank that others wait for in vain."""
    told = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in told or "nccl" in told
