"""Save and load a stage's state, in safetensors, after each epoch."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isopose.errors import InputError
from isopose.strict import STRICT
from isopose.tensors import write_tensors


@dataclass
class StageProgress:
    """The progress of a stage.

    Args:
        epoch: number of finished epochs.
        finished: no epoch is left.
        smoothed: running mean of the validation score.
        best: best smoothed score.
        best_epoch: its epoch (from 1).
        history: one row per epoch: stage, epoch, loss, learning rate, validation scores, and seconds (wall
            clock, CPU time of all cores, wall clock of validation).
        scaler: state of PyTorch's GradScaler in 16-mixed; empty in other precisions.
    """

    epoch: int = 0
    finished: bool = False
    smoothed: float | None = None
    best: float | None = None
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


def save_checkpoint(
    path: Path,
    progress: StageProgress,
    weights: dict[str, Tensor],
    best: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the stage's last weights, its best ones and the optimizer's state."""
    tensors = {f"last.{name}": value for name, value in weights.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    contiguous: dict[str, Tensor] = {}
    channels_last, storages = [], set()
    for name, value in tensors.items():
        # Saved without a contiguous copy: for small batches a copy of all weights would be the peak of
        # memory.
        on_cpu = value.detach().cpu()
        if on_cpu.ndim == 4 and not on_cpu.is_contiguous():
            channels_last.append(name)
            on_cpu = on_cpu.movedim(1, -1)
        on_cpu = on_cpu.contiguous()
        # Safetensors refuses tensors that share memory.
        storage = on_cpu.untyped_storage().data_ptr()
        contiguous[name] = on_cpu.clone() if storage in storages else on_cpu
        storages.add(storage)
    metadata = {"progress": json.dumps(asdict(progress)), "channels_last": json.dumps(channels_last)}
    write_tensors(path, contiguous, metadata)


def load_checkpoint(
    path: Path, optimizer: torch.optim.Optimizer
) -> tuple[StageProgress, dict[str, Tensor], dict[str, Tensor]]:
    """Load a stage's state, and restore the optimizer's.

    Returns:
        Progress, last weights, best weights.

    Raises:
        InputError: the file is damaged.
    """
    groups: dict[str, dict[str, Tensor]] = {"last": {}, "best": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            progress = TypeAdapter(StageProgress).validate_json(metadata["progress"])
            channels_last = set(json.loads(metadata.get("channels_last", "[]")))
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                group, _, name = key.partition(".")
                value = file.get_tensor(key)
                groups[group][name] = value.movedim(-1, 1) if key in channels_last else value
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["optimizer"].items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged_checkpoint(path, error) from None
    return progress, groups["last"], groups["best"]


def damaged_checkpoint(path: Path, error: Exception) -> InputError:
    """Return the error for a checkpoint that cannot be loaded."""
    return InputError(f"{path}: damaged checkpoint ({error}); remove it to train this stage again")
