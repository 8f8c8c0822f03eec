"""Checks before a training begins, and the lock of a model folder by one run."""

from pathlib import Path

from isopose import outputs
from isopose.config import Config
from isopose.data.store import Store
from isopose.errors import InputError
from isopose.files import hash_of, write_json
from isopose.io.datasets import Case, Dataset
from isopose.models.folder import Model
from isopose.training.manual_targets import Corrections


def check_batches(config: Config, processes: int) -> None:
    """Refuse batch sizes that cannot be divided evenly, before anything is trained."""
    if processes == 1:
        return
    for name in ("unet", "pose", "crop"):
        optimizer = getattr(config, name).optimizer
        if optimizer.batch_size % (optimizer.parts * processes):
            raise InputError(
                f"{name}.optimizer.batch_size: expected a multiple of {optimizer.parts * processes} "
                f"({name}.optimizer.parts times processes), got {optimizer.batch_size}"
            )


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that is not empty, unless a run is resumed."""
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: not empty; add --resume to continue it, or choose another folder")


def claim_folder(
    folder: Path,
    dataset: Dataset,
    config: Config,
    training: tuple[Case, ...],
    validation: tuple[Case, ...],
    resume: bool,
    source: Model | None,
    corrections: Corrections,
) -> None:
    """Record this run's settings in the folder, so that it is not mixed with another run."""
    run = {
        "config": hash_of(config.model_dump(mode="json")),
        "channels": hash_of(list(dataset.channels)),
        "labels": hash_of([dataset.labels.stored, dict(dataset.labels.regions)]),
        "cases": hash_of([[case.id for case in cases] for cases in (training, validation)]),
        "model to begin from": source.weights_sha256 if source else "",
        "corrections": hash_of(sorted(correction.sha256 for correction in corrections.values())),
    }
    mark = folder / "work" / "run.json"
    other = "was started with another {names}, or by an isopose with other settings"
    strange = "is not a training folder of isopose fit"
    if not resume or outputs.claim(folder, mark, run, other=other, strange=strange) is None:
        write_json(mark, run)


def claim_data(folder: Path, stored: Store) -> None:
    """Refuse to resume with other images or labels of the same names: stages would differ in their data."""
    mark = folder / "work" / "data.json"
    sources = {"sources": hash_of([[case.record.id, case.record.sources] for case in stored.cases])}
    if outputs.earlier_mark(folder, mark, sources, other="was started with other images or labels") is None:
        write_json(mark, sources)
