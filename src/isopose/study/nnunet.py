"""nnU-Net v2 itself as an arm: its own planner, trainer and predictor, on the study's patients and steps.

Needs the extra ``nnunet``. Its folders lie within the study's own. The changes to it are described in
``docs/study.md``: the length of training, the batch size (so that steps and slices seen are the study's), and
the split into training and validation.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isopose.config import Config
from isopose.data.splits import split_patients
from isopose.errors import InputError
from isopose.files import read_json, write_json
from isopose.io.datasets import Dataset
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.io.scans import Scan
from isopose.nnunet.plans import write_plans
from isopose.study.arms import Peer
from isopose.study.homogenized import HomogenizedPatients, homogenize_patients
from isopose.study.measure import Measuring, timed
from isopose.study.nnunet_trainer import NAME, NUMBER, make_trainer, measure_size


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
    """nnU-Net's trainer after training, its recorded times and scores, and the patients it saw upright."""

    trainer: Any
    history: list[dict[str, Any]]
    size: dict[str, float]
    homogenized: HomogenizedPatients | None


def train(
    folder: Path, shared: Path, dataset: Dataset, config: Config, peer: Peer, workers: int, meter: Measuring
) -> Trained:
    """Plan, preprocess and train with nnU-Net; an interrupted run is continued.

    Args:
        folder: of the run.
        shared: folder of raw and preprocessed data, for all arms and seeds of a fold.
        dataset: with its test cases marked.
        config: its ``unet`` section gives epochs, iterations and slices per batch, its ``train`` section the
            split.
        peer: how nnU-Net is used.
        workers: processes for its preprocessing.
        meter: measures memory and reports progress.
    """
    require()
    assert config.train.fold != "all", "refused by config_of"
    training, validation = split_patients(dataset, config.train.folds, config.train.fold, config.train.seed)
    _set_environment(folder, shared)
    raw = shared / "raw" / NAME
    homogenized = None
    if peer.homogenized:
        homogenized = homogenize_patients(
            dataset, raw, config.data.size, meter, modality=config.data.modality
        )
    if homogenized is None:
        _write_raw(raw, dataset)
    with _log_output(folder):
        plans = _make_plans(shared, dataset, peer, workers)
        trainer = make_trainer(folder, shared, plans, training, validation, config, peer)
        optimizer = config.unet.optimizer
        # From here on, augment in the training process, so that its CPU seconds are counted and no worker
        # outlives a stopped run. Set only now, because planning uses the number for its threads.
        os.environ.update(nnUNet_n_proc_DA="0")
        with meter.stage("unet", optimizer.epochs, optimizer.iterations, trainer.current_epoch) as report:
            trainer.report = report
            if trainer.current_epoch < trainer.num_epochs:
                trainer.run_training()
        before = [homogenized.row] if homogenized else []
        return Trained(trainer, [*before, *trainer.rows], measure_size(trainer), homogenized)


def predict(
    trained: Trained, scans: Sequence[Scan], dataset: Dataset, folder: Path, meter: Measuring
) -> None:
    """Predict scans one by one as nnU-Net does, each timed, with the labels' stored values.

    A homogenized arm predicts the homogenized scan and restores the answer; both are in its time.
    """
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
                if trained.homogenized is not None:
                    seconds = trained.homogenized.predict(predictor, scan.name, folder / "upright", output)
                else:
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
    """Return nnU-Net's plans for its raw dataset; fingerprint and preprocessed data are made once.

    Raises:
        InputError: nnU-Net plans no such configuration, or poses inside nnU-Net would be found in another
            channel than CT.
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
        # Planners with the same preprocessing share its data; preprocessing again would first delete them.
        data = plans["configurations"][peer.configuration]["data_identifier"]
        whole = preprocessed / f"{data}.json"
        if not whole.exists():
            preprocess([NUMBER], identifier, [peer.configuration], [processes], show_progress_bar=False)
            write_json(whole, {"made by": identifier})
        # Written last: if it exists, the preprocessed data are complete.
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
