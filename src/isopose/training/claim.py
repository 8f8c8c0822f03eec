"""Checks before a training begins, and the claim of a model folder by one run."""

from pathlib import Path

from isopose.config import Config
from isopose.data.store import Store
from isopose.errors import InputError
from isopose.files import hash_of, read_json, write_json
from isopose.io.datasets import Case, Dataset
from isopose.labels import Labels, mirrored_classes
from isopose.models.folder import Model
from isopose.training.by_hand import Corrections


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


def check_mirroring(config: Config, labels: Labels) -> None:
    """Refuse mirroring for labels with a side but no counterpart, before anything is trained."""
    for setting, off, wanted in (
        ("unet.mirror", "unet.mirror=0", config.unet.mirror > 0),
        ("predict.mirror", "predict.mirror=false", config.predict.mirror),
    ):
        if not wanted:
            continue
        try:
            mirrored_classes(labels.names)
        except InputError as error:
            raise InputError(f"{setting}: {error}; set {off}") from None


def check_claim(folder: Path, resume: bool) -> None:
    """Refuse a folder that is not empty, unless a run is resumed."""
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: not empty; add --resume to go on with it, or name another folder")


def claim(
    folder: Path,
    dataset: Dataset,
    config: Config,
    training: tuple[Case, ...],
    validation: tuple[Case, ...],
    resume: bool,
    source: Model | None,
    corrections: Corrections,
) -> None:
    """Mark a folder as this run's, so that another run or other settings never mix with it."""
    run = {
        "config": hash_of(config.model_dump(mode="json")),
        "labels": hash_of(dict(dataset.labels.values)),
        "cases": hash_of([[case.id for case in part] for part in (training, validation)]),
        "model to begin from": source.weights_sha256 if source else "",
        "corrections": hash_of(sorted(one.sha256 for one in corrections.values())),
    }
    marker = folder / "work" / "run.json"
    if not resume:
        write_json(marker, run)
    elif marker.exists():
        other = [name for name, value in read_json(marker).items() if value != run.get(name)]
        if other:
            raise InputError(
                f"{folder}: was started with another {' and '.join(other)}; give the same again "
                "to resume, or name another folder"
            )
    else:
        if folder.exists() and any(entry.name != "work" for entry in folder.iterdir()):
            raise InputError(f"{folder}: holds something that no isopose fit began here; name another folder")
        write_json(marker, run)


def claim_data(folder: Path, stored: Store) -> None:
    """Refuse to resume with other images or labels under the same names."""
    marker = folder / "work" / "data.json"
    sources = {"sources": hash_of([[case.record.id, case.record.sources] for case in stored.cases])}
    if marker.exists() and read_json(marker) != sources:
        raise InputError(
            f"{folder}: was started with other images or labels; bring them back to resume, "
            "or name another folder"
        )
    write_json(marker, sources)
