"""``isopose fit --folds all``: train the folds one after the other, shared among several processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from isopose.config import Config
from isopose.data.splits import measured_cases, split
from isopose.errors import BusyError, InputError
from isopose.files import only_writer, output_folder
from isopose.io.datasets import Dataset
from isopose.models.folder import Model
from isopose.progress import Reporter, Silent
from isopose.ranks import launched
from isopose.training.claim import check_folder, claim_folder
from isopose.training.fit import check_fit, fit
from isopose.training.manual_targets import Corrections
from isopose.training.preprocessing import preprocess

#: Returns the reporter of a fold's training, given its folder and settings.
Tracking = Callable[[Path, Config], AbstractContextManager[Reporter]]


def fold_folder(folder: Path, fold: int) -> Path:
    """Return the folder of one fold's model."""
    return folder / f"fold-{fold}"


def of_fold(config: Config, fold: int) -> Config:
    """Return the settings of one fold's training; normalization, frame and reference are shared by all."""
    return config.model_copy(update={"train": config.train.model_copy(update={"fold": fold, "shared": True})})


def check_folds(dataset: Dataset, config: Config) -> None:
    """Refuse settings and datasets that have no folds to train one after the other.

    Raises:
        InputError: a single fold is chosen, the dataset has its own split, or too few patients.
    """
    if config.train.fold != 0:
        raise InputError(
            f"--folds all trains a model of each fold, train.fold={config.train.fold} (--fold) a single "
            "model; give one of them"
        )
    if launched() != (1, 1):
        raise InputError(
            "--folds all: torchrun trains one fold on several devices; start the command itself several "
            "times, with --resume, and each takes another fold"
        )
    if any(case.split == "val" for case in dataset.cases):
        raise InputError(
            f"{dataset.root}: the dataset names its validation cases, so there are no folds; leave out "
            "--folds all, or the split"
        )
    split(dataset, config.train)


def fit_folds(
    dataset: Dataset,
    folder: Path,
    config: Config,
    *,
    source: Model | None = None,
    resume: bool = False,
    store: Path | None = None,
    corrections: Corrections | None = None,
    workers: int = 0,
    reporter: Reporter | None = None,
    tracking: Tracking | None = None,
) -> bool:
    """Train the unfinished folds that no other process trains, one after the other.

    The model of each fold has its own folder, ``folder/fold-0`` and so on. Normalization, frame and reference
    are computed from the training patients of all folds, so that one store serves all folds.

    Args:
        dataset: cases with labels; those of split ``test`` are not used.
        folder: of all folds; ``folder/work`` holds the store.
        config: all settings; ``train.folds`` is the number of folds.
        source: model to fine-tune in its ``train.parts``.
        resume: continue the trainings in ``folder``, or share them with other processes.
        store: folder for preprocessed slices, which runs may share; default ``folder/work/store``.
        corrections: poses and crops set by hand, by a scan's hash.
        workers: number of processes for preprocessing; 0 uses this process.
        reporter: receives progress.
        tracking: receives the progress of each fold's training; None: ``reporter``.

    Returns:
        True if all folds are trained, False if others still train some.

    Raises:
        InputError: the dataset or a setting is not valid, or the folder holds another run.
    """
    reporter = reporter or Silent()
    check_folds(dataset, config)
    common = of_fold(config, 0)
    cases, no_validation = measured_cases(*split(dataset, common.train), common.train)
    check_fit(common, dataset, cases, source, corrections or {}, 1)
    with only_writer(output_folder(folder), wait=True):
        check_folder(folder, resume)
        claim_folder(folder, dataset, common, cases, no_validation, resume, source, corrections or {})
    store = store or folder / "work" / "store"
    if _untrained_folds(folder, config):
        # Processes started at the same time wait here, and then find the store.
        with only_writer(folder / "work", wait=True):
            preprocess(
                store,
                (cases, no_validation),
                dataset.labels,
                config.data,
                channels=dataset.channels,
                fingerprint=source.fingerprint if source else None,
                workers=workers,
                reporter=reporter,
            )
    while untrained := _untrained_folds(folder, config):
        for fold in untrained:
            settings, fold_model = of_fold(config, fold), fold_folder(folder, fold)
            reporting = tracking(fold_model, settings) if tracking else nullcontext(reporter)
            try:
                with reporting as fold_reporter:
                    fold_reporter.say(f"fold {fold} of {config.train.folds}")
                    fit(
                        dataset,
                        fold_model,
                        settings,
                        source=source,
                        resume=True,
                        store=store,
                        corrections=corrections,
                        workers=workers,
                        reporter=fold_reporter,
                    )
                break
            except BusyError:
                reporter.say(f"fold {fold} is trained by another process")
        else:
            reporter.say(
                f"{len(untrained)} of {config.train.folds} folds are left, all trained by other processes"
            )
            return False
    return True


def _untrained_folds(folder: Path, config: Config) -> list[int]:
    """Return the folds without a finished model."""
    folds = range(config.train.folds)
    return [fold for fold in folds if not (fold_folder(folder, fold) / "model.json").is_file()]
