"""Train one stage until its last epoch or early stopping; the same loop for all networks."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from isopose.data.draw import draw_epoch, read_ahead
from isopose.data.samples import SliceBatch, Slices, Volumes
from isopose.errors import IsoposeError
from isopose.progress import Reporter
from isopose.ranks import is_lost_rank, shares_of_rank, summed
from isopose.settings import OptimizerConfig
from isopose.training.checkpoint import StageProgress, damaged_checkpoint, load_checkpoint, save_checkpoint
from isopose.training.tracking import curves


@dataclass(frozen=True)
class Stage:
    """The training of one network.

    Args:
        name: ``pose``, ``crop``, ``joint`` or ``unet``.
        objective: see :mod:`isopose.training.objectives`.
        config: optimizer and length.
        training: slices or volumes to train on.
        validation: slices or volumes of the validation patients; None: no early stopping.
        least: maps a label's column to the minimum fraction of an epoch's slices that show the label.
        seed: numbers that identify this run and stage.
        section: configuration section of the optimizer; by default the stage's name.
        noise: number of random values that the objective needs per sample.
        augment: augments a training batch, given numbers that identify it and its samples' places in the
            whole batch.
    """

    name: str
    objective: nn.Module
    config: OptimizerConfig
    training: Slices | Volumes
    validation: Slices | Volumes | None
    least: Mapping[int, float]
    seed: tuple[int, ...]
    section: str = ""
    noise: int = 9
    augment: Callable[[SliceBatch, tuple[int, ...], Sequence[int]], SliceBatch] | None = None


def train_stage(stage: Stage, fabric: Fabric, work: Path, reporter: Reporter) -> StageProgress:
    """Train a stage, from its checkpoint if there is one; afterwards the objective has the best weights.

    Raises:
        IsoposeError: the loss or a weight is not finite, or another rank is lost; the last good checkpoint is
            kept.
    """
    try:
        return _train_stage(stage, fabric, work, reporter)
    except FloatingPointError as error:
        raise _diverged(stage, str(error)) from None
    except RuntimeError as error:
        if fabric.world_size == 1 or not is_lost_rank(error):
            raise
        raise IsoposeError(
            f"stage {stage.name}: another process of this training is lost, so this one ends; the last "
            "checkpoint is kept; the same command with --resume continues, with any number of processes"
        ) from None


def _diverged(stage: Stage, reason: str) -> IsoposeError:
    return IsoposeError(
        f"stage {stage.name}: {reason}; the last good checkpoint is kept; "
        f"lower {stage.section or stage.name}.optimizer.learning_rate"
    )


def _train_stage(stage: Stage, fabric: Fabric, work: Path, reporter: Reporter) -> StageProgress:
    config = stage.config
    objective = stage.objective.to(fabric.device)
    optimizer = _optimizer(objective, config)
    checkpoint = work / "checkpoints" / f"{stage.name}.safetensors"
    progress, best = _resume(checkpoint, objective, optimizer, fabric)
    if not progress.finished:
        module, wrapped_optimizer = fabric.setup(objective, optimizer)
        with (
            reporter.stage(stage.name, config.epochs, config.iterations, progress.epoch) as report,
            # Only the first rank draws.
            curves(work / "tensorboard" / stage.name, progress.epoch)
            if fabric.is_global_zero
            else nullcontext(lambda _: None) as draw,
        ):
            while not progress.finished:
                started, cpu_started = time.monotonic(), time.process_time()
                lr = _set_learning_rate(optimizer, config, progress.epoch)
                loss = _train_epoch(stage, fabric, module, wrapped_optimizer, progress.epoch, report)
                if not math.isfinite(loss) or not _is_finite(objective):
                    reason = "weights that are not finite" if math.isfinite(loss) else f"loss {loss}"
                    raise _diverged(stage, f"{reason} in epoch {progress.epoch + 1}")
                validation_started = time.monotonic()
                scores = _validate(stage, fabric, objective)
                times = {
                    "seconds": time.monotonic() - started,
                    "cpu_seconds": time.process_time() - cpu_started,
                    "validation_seconds": time.monotonic() - validation_started,
                }
                improved = _update_progress(progress, config, scores)
                if improved:
                    _copy_weights(objective, best)
                row = {"stage": stage.name, "epoch": progress.epoch, "loss": loss, "learning_rate": lr}
                progress.history.append(row | scores | times)
                progress.scaler = dict(fabric.strategy.precision.state_dict())
                if fabric.is_global_zero:
                    save_checkpoint(checkpoint, progress, objective.state_dict(), best, optimizer)
                draw(progress.history[-1])
                report.epoch(progress.history[-1])
    objective.load_state_dict(best)
    objective.eval().requires_grad_(False)
    return progress


def _resume(
    checkpoint: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, fabric: Fabric
) -> tuple[StageProgress, dict[str, Tensor]]:
    """Return a stage's progress and best weights; objective and optimizer get the checkpoint's state."""
    if not checkpoint.exists():
        return StageProgress(), _weights(objective)
    progress, last, best = load_checkpoint(checkpoint, optimizer)
    try:
        objective.load_state_dict(last)
        if progress.scaler:
            fabric.strategy.precision.load_state_dict(progress.scaler)
    except (RuntimeError, KeyError) as error:
        raise damaged_checkpoint(checkpoint, error) from None
    return progress, best


def _train_epoch(stage: Stage, fabric: Fabric, module: Any, optimizer: Any, epoch: int, report: Any) -> float:
    """Train one epoch; return the mean loss over its batches and over all ranks."""
    config = stage.config
    module.train()
    batches = draw_epoch(
        stage.training.presence, stage.least, config.batch_size, config.iterations, (*stage.seed, epoch)
    )
    generator = torch.Generator().manual_seed(_seed_of((*stage.seed, epoch)))
    noise = torch.rand(config.iterations, config.batch_size, stage.noise, generator=generator) * 2.0 - 1.0
    total = torch.zeros((), device=fabric.device)
    pin = fabric.device.type == "cuda"
    part_positions = shares_of_rank(config.batch_size, config.parts)
    positions = torch.cat(part_positions)
    sample_count = len(positions)

    def augment(batch: Any, number: int) -> Any:
        if stage.augment is None:
            return batch
        return stage.augment(batch, (*stage.seed, epoch, number), positions.tolist())

    rows_of_rank = [batch[positions.numpy()] for batch in batches]
    for step, batch in enumerate(read_ahead(stage.training, rows_of_rank, pin=pin, transform=augment)):
        batch, batch_noise = batch.to(fabric.device), noise[step, positions].to(fabric.device)
        optimizer.zero_grad()
        rows_of_parts = torch.arange(sample_count, device=fabric.device).split(list(map(len, part_positions)))
        for number, rows in enumerate(rows_of_parts, start=1):
            part = batch.select(rows) if config.parts > 1 else batch
            with fabric.no_backward_sync(module, enabled=number < config.parts):
                loss = module(part, batch_noise[rows]) * (len(rows) / sample_count)
                fabric.backward(loss)
            total += loss.detach()
        # Non-finite gradients: the scaler of 16-mixed skips that step, as it should. In any other precision
        # they reach the weights, which are checked at the end of the epoch.
        fabric.clip_gradients(module, optimizer, max_norm=config.max_norm, error_if_nonfinite=False)
        optimizer.step()
        report.step()
    # Free the gradients' memory for validation and the checkpoint.
    optimizer.zero_grad()
    return float(summed(total)) / fabric.world_size / config.iterations


@torch.no_grad()
def _validate(stage: Stage, fabric: Fabric, objective: Any) -> dict[str, float]:
    """Return the objective's validation scores by name, the deciding one first; empty without validation."""
    if stage.validation is None:
        return {}
    objective.eval()
    batches_of_rank = stage.validation.batches(stage.config.batch_size, fabric.global_rank, fabric.world_size)
    batches = (batch.to(fabric.device) for batch in batches_of_rank)
    with fabric.autocast():
        scores: dict[str, float] = objective.validate(stage.validation, batches)
    return scores


def _update_progress(progress: StageProgress, config: OptimizerConfig, scores: dict[str, float]) -> bool:
    """Update the progress after an epoch: number, smoothed score, best epoch, and whether the stage ends.

    Returns:
        True if the smoothed score of this epoch is the best so far, always True without validation.
    """
    progress.epoch += 1
    if not scores:
        progress.finished = progress.epoch >= config.epochs
        progress.best_epoch = progress.epoch
        return True
    score = next(iter(scores.values()))
    smoothed = score if progress.smoothed is None else progress.smoothed
    progress.smoothed = config.smoothing * smoothed + (1.0 - config.smoothing) * score
    improved = progress.best is None or progress.smoothed > progress.best
    if improved:
        progress.best, progress.best_epoch = progress.smoothed, progress.epoch
    epochs_without_gain = progress.epoch - progress.best_epoch
    stopped = progress.epoch >= config.min_epochs and epochs_without_gain >= config.patience
    progress.finished = stopped or progress.epoch >= config.epochs
    return improved


def _optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, epoch: int) -> float:
    """Set the learning rate of an epoch by the poly policy of the paper and nnU-Net."""
    factor = (1.0 - epoch / config.epochs) ** 0.9 if config.schedule == "poly" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor
    return config.learning_rate * factor


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def _copy_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy a module's weights into the existing tensors of ``weights``, without a second copy in memory."""
    for name, value in module.state_dict().items():
        weights[name].copy_(value)


def _is_finite(module: nn.Module) -> bool:
    floating = [value for value in module.state_dict().values() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in floating]).all())


def _seed_of(seed: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0] >> 1)
