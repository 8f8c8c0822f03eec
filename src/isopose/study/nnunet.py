"""nnU-Net v2 itself as an arm: its own planner, trainer and predictor, on the study's patients and steps.

Needs the extra ``nnunet``. Its folders lie within the study's own. The changes to it are described in
``docs/study.md``: the length of training, the batch size (so that steps and slices seen are the study's), and
the split into training and validation.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from isopose.config import Config, OptimizerConfig
from isopose.data.splits import split_patients
from isopose.devices import choose_device
from isopose.errors import InputError
from isopose.files import read_json, replacing, write_json
from isopose.inference.files import Scan
from isopose.io.cases import Case
from isopose.io.datasets import Dataset
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.labels import IGNORE
from isopose.nnunet.plans import write_plans
from isopose.study.arms import Peer
from isopose.study.measure import Measuring, timed

#: nnU-Net's number and name of the study's dataset.
NUMBER, NAME = 1, "Dataset001_study"
#: Parts of a training after which it can be gone on from; its checkpoints are large.
CHECKPOINTS = 10


def available() -> bool:
    """Return whether nnU-Net v2 is installed."""
    return importlib.util.find_spec("nnunetv2") is not None


def versions() -> dict[str, str]:
    """Return the version of nnU-Net by its package's name."""
    return {"nnunetv2": importlib.metadata.version("nnunetv2")}


def precision(device: torch.device) -> str:
    """Return the precision that nnU-Net computes in."""
    return "16-mixed" if device.type == "cuda" else "32-true"


def require() -> None:
    """Check that nnU-Net v2 is installed.

    Raises:
        InputError: it is not; the message names the extra.
    """
    if not available():
        raise InputError("--arms: nnU-Net v2 is not installed; add the extra: pip install 'isopose[nnunet]'")


@dataclass
class Trained:
    """nnU-Net's trainer after training, and its recorded times and scores."""

    trainer: Any
    history: list[dict[str, Any]]
    size: dict[str, float]


def train(
    folder: Path, shared: Path, dataset: Dataset, config: Config, peer: Peer, workers: int, meter: Measuring
) -> Trained:
    """Plan, preprocess and train, or go on with what is there.

    Args:
        folder: of the run.
        shared: raw and preprocessed data, for all arms and seeds of a fold.
        dataset: with its test cases marked.
        config: whose U-Net says how many epochs, iterations and slices a batch, and whose ``train`` splits.
        peer: what nnU-Net is asked for.
        workers: processes for its preprocessing.
        meter: measures memory and reports progress.
    """
    require()
    assert config.train.fold != "all", "refused by config_of"
    training, validation = split_patients(dataset, config.train.folds, config.train.fold, config.train.seed)
    _set_environment(folder, shared)
    with _log_output(folder):
        plans = _make_plans(shared, dataset, peer, workers)
        trainer = _make_trainer(folder, shared, plans, training, validation, config, peer)
        optimizer = config.unet.optimizer
        # Augmentation in the training process from here on (planning takes the number for its threads): its
        # seconds are counted, and no worker outlives a run that is stopped.
        os.environ.update(nnUNet_n_proc_DA="0")
        with meter.stage("unet", optimizer.epochs, optimizer.iterations, trainer.current_epoch) as report:
            trainer.report = report
            if trainer.current_epoch < trainer.num_epochs:
                trainer.run_training()
        return Trained(trainer, trainer.rows, _measure_size(trainer))


def predict(
    trained: Trained, scans: Sequence[Scan], dataset: Dataset, folder: Path, meter: Measuring
) -> None:
    """Predict scans one by one as nnU-Net does, each timed, with the labels' stored values."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = trained.trainer
    output = folder / "predictions"
    output.mkdir(parents=True, exist_ok=True)
    trainer.set_deep_supervision_enabled(False)
    axes = trainer.inference_allowed_mirroring_axes
    with meter.counting("predict") as progress, _log_output(folder):
        predictor = nnUNetPredictor(
            use_mirroring=axes is not None,
            perform_everything_on_device=trainer.device.type == "cuda",
            device=trainer.device,
            allow_tqdm=False,
        )
        predictor.manual_initialization(
            trainer.network,
            trainer.plans_manager,
            trainer.configuration_manager,
            [trainer.network.state_dict()],
            trainer.dataset_json,
            type(trainer).__name__,
            axes,
        )
        for done, scan in enumerate(scans, start=1):
            target = output / f"{scan.name}.nii.gz"
            if scan.name not in meter.values["predict"] or not target.exists():
                sources = [
                    str(_as_nifti(path, folder / "inputs" / f"{scan.name}_{number:04d}.nii.gz"))
                    for number, path in enumerate(scan.paths)
                ]
                with timed() as seconds:
                    predictor.predict_from_files_sequential([sources], [str(output / scan.name)])
                classes = read_labels(target)
                write_labels(classes.with_array(dataset.labels.to_values(classes.array)), target)
                meter.keep("predict", scan.name, seconds)
            progress(done, len(scans))


def _set_environment(folder: Path, shared: Path) -> None:
    """Set the environment variables of nnU-Net's folders, which it reads on import."""
    os.environ.update(
        nnUNet_raw=str(shared / "raw"),
        nnUNet_preprocessed=str(shared / "preprocessed"),
        nnUNet_results=str(folder / "results"),
        nnUNet_n_proc_DA="1",
        nnUNet_compile="f",
    )


@contextlib.contextmanager
def _log_output(folder: Path) -> Iterator[None]:
    """Redirect nnU-Net's output to a file of the run."""
    with open(folder / "nnunet.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


def _make_plans(shared: Path, dataset: Dataset, peer: Peer, workers: int) -> dict[str, Any]:
    """Return nnU-Net's plans; raw dataset, fingerprint and preprocessed data are made once.

    Raises:
        InputError: nnU-Net plans no such configuration, or its poses would be of another channel than CT.
    """
    if peer.posed and dataset.channels[0].casefold() != "ct":
        raise InputError(
            f"{dataset.root}: inside nnU-Net the pose is that of the first channel, expected CT, got "
            f"{dataset.channels[0]}; leave that arm out"
        )
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    processes = max(1, workers)
    _write_raw(shared / "raw" / NAME, dataset)
    preprocessed = shared / "preprocessed" / NAME
    posed = "-posed" if peer.posed else ""
    done = preprocessed / f"{peer.planner}-{peer.configuration}{posed}.json"
    if not done.exists():
        extract_fingerprints([NUMBER], num_processes=processes, clean=True, show_progress_bar=False)
        identifier = plan_experiments([NUMBER], peer.planner)
        plans = read_json(preprocessed / f"{identifier}.json")
        if peer.configuration not in plans["configurations"]:
            raise InputError(
                f"{dataset.root}: nnU-Net plans no configuration {peer.configuration} for this dataset; "
                "leave that arm out"
            )
        if peer.posed:
            identifier = write_plans(NAME, identifier).stem
            plans = read_json(preprocessed / f"{identifier}.json")
        # Planners share data that they preprocess alike; to do it again would first remove what another has.
        data = plans["configurations"][peer.configuration]["data_identifier"]
        whole = preprocessed / f"{data}.json"
        if not whole.exists():
            preprocess([NUMBER], identifier, [peer.configuration], [processes], show_progress_bar=False)
            write_json(whole, {"made by": identifier})
        # Last: where it lies, what it names is whole.
        write_json(done, {"plans": identifier})
    values: dict[str, Any] = read_json(preprocessed / f"{read_json(done)['plans']}.json")
    return values


def _write_raw(folder: Path, dataset: Dataset) -> None:
    """Write the training and validation cases as an nnU-Net raw dataset with classes 0, 1, ..."""
    done = folder / "dataset.json"
    if done.exists():
        return
    cases = [case for case in dataset.cases if case.label is not None and case.split != "test"]
    for case in cases:
        for number, image in enumerate(case.images):
            _as_nifti(image, folder / "imagesTr" / f"{case.id}_{number:04d}.nii.gz")
        target = folder / "labelsTr" / f"{case.id}.nii.gz"
        if not target.exists():
            assert case.label is not None, "of labeled cases"
            labels = read_labels(case.label)
            write_labels(labels.with_array(dataset.labels.to_nnunet(labels.array)), target)
    write_json(
        done,
        {
            "channel_names": {str(number): name for number, name in enumerate(dataset.channels)},
            **dataset.labels.for_nnunet(),
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        },
    )


def _as_nifti(source: Path, target: Path) -> Path:
    """Return a scan as the NIfTI file that nnU-Net reads: a link to it where it is one."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.name.endswith(".nii.gz"):
            target.unlink(missing_ok=True)
            target.symlink_to(source.resolve())
        else:
            write_image(read_volume(source), target)
    return target


def lengths(optimizer: OptimizerConfig, slices: int) -> tuple[int, int]:
    """Return iterations of training and of validation an epoch that show as many slices as other arms see.

    Validation is a fifth, as nnU-Net's own 50 are of 250.

    Args:
        optimizer: of the other arms' U-Net.
        slices: that a batch of nnU-Net's holds.
    """
    iterations = max(1, round(optimizer.iterations * optimizer.batch_size / slices))
    return iterations, max(1, round(iterations / 5))


def _make_trainer(
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
    # As many slices a step as the study's own arms; a volume's patch holds several.
    depth = part["patch_size"][0] if len(part["patch_size"]) == 3 else 1
    part["batch_size"] = max(2, round(optimizer.batch_size / depth)) if depth > 1 else optimizer.batch_size
    np.random.seed(config.train.seed)
    torch.manual_seed(config.train.seed)
    made = _make_trainer_class(peer)
    name = f"{made.__name__}__{plans['plans_name']}__{peer.configuration}"
    checkpoints = folder / "results" / NAME / name / "fold_0"
    known = [checkpoints / f"checkpoint_{which}.pth" for which in ("final", "latest")]
    found = next((path for path in known if path.exists()), None)
    trainer = made(
        plans | {"continue_training": found is not None},
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
    if found is not None:
        # Its own, written by this study: nnU-Net keeps its checkpoints as pickles.
        trainer.load_checkpoint(str(found))
    return trainer


def _make_trainer_class(peer: Peer) -> Any:
    """Return nnU-Net's class of trainers with the study's split, which records its times."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

    base: Any = nnUNetTrainer if peer.augmented else nnUNetTrainerNoDA
    if peer.posed:
        from isopose.nnunet.trainers.nnUNetTrainerIsopose import nnUNetTrainerIsopose

        base = nnUNetTrainerIsopose

    class StudyTrainer(base):
        rows: list[dict[str, Any]]

        def do_split(self) -> tuple[list[str], list[str]]:
            return self.split

        def save_checkpoint(self, filename: str) -> None:
            # Whole or not at all: one that was cut off would be taken for the last, and never read.
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
            # Before checkpoints are written and curves drawn, which the study's own arms do not count either.
            cpu_seconds = time.process_time() - self.cpu
            super().on_epoch_end()
            row = {"stage": "unet", "epoch": epoch + 1, **_read_last_epoch(self, cpu_seconds)}
            self.rows = [*(known for known in self.rows if known["epoch"] <= epoch), row]
            write_json(self.history, self.rows)
            self.report.epoch(row)

    return StudyTrainer


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


def _measure_size(trainer: Any) -> dict[str, float]:
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
