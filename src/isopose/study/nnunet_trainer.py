"""nnU-Net's trainer with the study's split, steps and slices, which records its times and scores."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from isopose.config import Config
from isopose.devices import choose_device
from isopose.files import read_json, replacing, write_json
from isopose.io.cases import Case
from isopose.labels import IGNORE
from isopose.settings import OptimizerConfig
from isopose.study.arms import Peer

#: nnU-Net's number and name of the study's dataset.
NUMBER, NAME = 1, "Dataset001_study"
#: Number of checkpoints in a training; few, because nnU-Net's checkpoints are large.
CHECKPOINTS = 10


def lengths(optimizer: OptimizerConfig, slices: int) -> tuple[int, int]:
    """Return training and validation iterations per epoch, so that nnU-Net sees as many slices as other arms.

    Validation has a fifth of the iterations, like nnU-Net's own 50 of 250.

    Args:
        optimizer: of the other arms' U-Net.
        slices: number of slices in one of nnU-Net's batches.
    """
    iterations = max(1, round(optimizer.iterations * optimizer.batch_size / slices))
    return iterations, max(1, round(iterations / 5))


def make_trainer(
    folder: Path,
    shared: Path,
    plans: dict[str, Any],
    training: Sequence[Case],
    validation: Sequence[Case],
    config: Config,
    peer: Peer,
) -> Any:
    """Return nnU-Net's trainer for the study's patients and steps, at its last checkpoint if there is one."""
    optimizer = config.unet.optimizer
    part = plans["configurations"][peer.configuration]
    # As many slices per step as in the study's own arms; a 3D patch contains several.
    depth = part["patch_size"][0] if len(part["patch_size"]) == 3 else 1
    part["batch_size"] = max(2, round(optimizer.batch_size / depth)) if depth > 1 else optimizer.batch_size
    np.random.seed(config.train.seed)
    torch.manual_seed(config.train.seed)
    trainer_class = make_trainer_class(peer)
    name = f"{trainer_class.__name__}__{plans['plans_name']}__{peer.configuration}"
    checkpoints = folder / "results" / NAME / name / "fold_0"
    candidates = [checkpoints / f"checkpoint_{which}.pth" for which in ("final", "latest")]
    checkpoint = next((path for path in candidates if path.exists()), None)
    trainer = trainer_class(
        plans | {"continue_training": checkpoint is not None},
        peer.configuration,
        0,
        read_json(shared / "raw" / NAME / "dataset.json"),
        choose_device(config.train.device),
    )
    trainer.slices_per_batch = part["batch_size"] * depth
    trainer.num_epochs = optimizer.epochs
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = lengths(
        optimizer, trainer.slices_per_batch
    )
    trainer.save_every = max(1, optimizer.epochs // CHECKPOINTS)
    trainer.split = [case.id for case in training], [case.id for case in validation]
    trainer.history = folder / "history.json"
    trainer.rows = read_json(trainer.history) if trainer.history.exists() else []
    if checkpoint is not None:
        # Its own, written by this study: nnU-Net keeps its checkpoints as pickles.
        trainer.load_checkpoint(str(checkpoint))
    return trainer


def make_trainer_class(peer: Peer) -> Any:
    """Return nnU-Net's class of trainers with the study's split, which records its times."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

    base: Any = nnUNetTrainer if peer.augmented else nnUNetTrainerNoDA
    if peer.posed:
        from isopose.nnunet.trainers.nnUNetTrainerIsopose import nnUNetTrainerIsopose

        base = nnUNetTrainerIsopose

    class StudyTrainer(base):
        rows: list[dict[str, Any]]

        @staticmethod
        def get_training_transforms(*args: Any, **named: Any) -> Any:
            transforms = base.get_training_transforms(*args, **named)
            return transforms if peer.turned else _hold_still(transforms)

        def do_split(self) -> tuple[list[str], list[str]]:
            return self.split

        def save_checkpoint(self, filename: str) -> None:
            # Completely or not at all: an incomplete checkpoint would be taken for the last one.
            with replacing(Path(filename)) as temporary:
                super().save_checkpoint(str(temporary))

        def plot_network_architecture(self) -> None:
            """Draw nothing; nnU-Net's drawing needs Graphviz."""

        def on_epoch_start(self) -> None:
            self.cpu = time.process_time()
            super().on_epoch_start()

        def train_step(self, batch: dict) -> dict:
            out: dict = super().train_step(batch)
            self.report.step()
            return out

        def on_validation_epoch_start(self) -> None:
            self.trained = time.time()
            super().on_validation_epoch_start()

        def on_epoch_end(self) -> None:
            epoch = self.current_epoch
            # Measured before checkpoints and curves are written, which other arms do not count either.
            cpu_seconds = time.process_time() - self.cpu
            super().on_epoch_end()
            row = {"stage": "unet", "epoch": epoch + 1, **_read_last_epoch(self, cpu_seconds)}
            self.rows = [*(earlier for earlier in self.rows if earlier["epoch"] <= epoch), row]
            write_json(self.history, self.rows)
            self.report.epoch(row)

    return StudyTrainer


def _hold_still(transforms: Any) -> Any:
    """Remove rotation and scaling from nnU-Net's augmentation; everything else stays, including mirroring.

    Raises:
        RuntimeError: the augmentation of this version of nnU-Net is organized differently.
    """
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    found = [each for each in transforms.transforms if isinstance(each, SpatialTransform)]
    if len(found) != 1 or not hasattr(found[0], "p_rotation") or not hasattr(found[0], "p_scaling"):
        raise RuntimeError("nnU-Net's augmentation has no single SpatialTransform; expected that of v2.8")
    found[0].p_rotation = found[0].p_scaling = 0
    return transforms


def _read_last_epoch(trainer: Any, cpu_seconds: float) -> dict[str, Any]:
    """Return losses, Dice and times of the last epoch, from nnU-Net's own logger."""

    def last(key: str) -> Any:
        return trainer.logger.get_value(key, step=-1)

    end = last("epoch_end_timestamps")
    names = [name for name in trainer.dataset_json["labels"] if name not in ("background", IGNORE)]
    return {
        "loss": float(last("train_losses")),
        **_average_dice(names, last("dice_per_class_or_region")),
        "seconds": end - last("epoch_start_timestamps"),
        "cpu_seconds": cpu_seconds,
        "validation_seconds": end - trainer.trained,
        "slices_a_batch": trainer.slices_per_batch,
    }


def _average_dice(names: Sequence[str], values: Sequence[float]) -> Mapping[str, float]:
    """Return nnU-Net's validation Dice by label, over all slices of its validation batches."""
    known = {f"dice {n}": float(v) for n, v in zip(names, values, strict=True) if np.isfinite(v)}
    return {"dice": float(np.mean(list(known.values()))), **known} if known else {}


def measure_size(trainer: Any) -> dict[str, float]:
    """Return the number of parameters, and the multiply-adds of one patch."""
    if not trainer.was_initialized:
        trainer.initialize()
    patch = trainer.configuration_manager.patch_size
    parameters = float(sum(p.numel() for p in trainer.network.parameters()))
    network = trainer.network.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, trainer.num_input_channels, *patch, device=trainer.device))
    return {
        "parameters": parameters,
        "unet_parameters": parameters,
        "unet_multiply_adds": counter.get_total_flops() / 2.0,
    }
