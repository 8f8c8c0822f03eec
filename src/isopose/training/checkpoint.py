"""A stage's state on disk: safetensors only, written whole after each epoch."""

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
class Progress:
    """How far a stage has come.

    Args:
        epoch: epochs done.
        finished: no epoch is left to do.
        smoothed: running mean of the validation score.
        best: best smoothed score.
        best_epoch: epoch (from 1) that had it.
        history: a row an epoch: stage, epoch, loss, learning rate, the validation's numbers, and seconds: by
            the clock, of all CPU cores, and those by the clock that validation took.
        scaler: of the loss in 16-mixed, as PyTorch's GradScaler tells it; empty in any other precision.
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
    progress: Progress,
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
    whole: dict[str, Tensor] = {}
    turned, places = [], set()
    for name, value in tensors.items():
        # As it lies in memory: where a batch is small, a copy of all would be the most that training holds.
        plain = value.detach().cpu()
        if plain.ndim == 4 and not plain.is_contiguous():
            turned.append(name)
            plain = plain.movedim(1, -1)
        plain = plain.contiguous()
        # Safetensors refuses what shares memory.
        place = plain.untyped_storage().data_ptr()
        whole[name] = plain.clone() if place in places else plain
        places.add(place)
    about = {"progress": json.dumps(asdict(progress)), "channels_last": json.dumps(turned)}
    write_tensors(path, whole, about)


def load_checkpoint(
    path: Path, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
    """Read a stage's state; the optimizer is brought to where it was.

    Returns:
        Progress, last weights, best weights.

    Raises:
        InputError: the file is damaged.
    """
    groups: dict[str, dict[str, Tensor]] = {"last": {}, "best": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            progress = TypeAdapter(Progress).validate_json(about["progress"])
            turned = set(json.loads(about.get("channels_last", "[]")))
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                group, _, name = key.partition(".")
                value = file.get_tensor(key)
                groups[group][name] = value.movedim(-1, 1) if key in turned else value
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["optimizer"].items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from None
    return progress, groups["last"], groups["best"]


def damaged(path: Path, error: Exception) -> InputError:
    """What is said of a checkpoint that cannot be gone on from."""
    return InputError(f"{path}: damaged checkpoint ({error}); remove it to train this stage again")
