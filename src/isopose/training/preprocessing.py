"""Preprocess the cases of a training to slices."""

from collections.abc import Sequence
from pathlib import Path

from isopose.data.fingerprint import Fingerprint, fingerprint_of
from isopose.data.store import Store, write_store
from isopose.files import hash_of, read_json, write_json
from isopose.io.cases import CT, Case
from isopose.labels import Labels
from isopose.progress import Reporter
from isopose.settings import DataConfig
from isopose.version import __version__

Cases = tuple[Case, ...]


def preprocess(
    folder: Path,
    cases: tuple[Cases, Cases],
    labels: Labels,
    config: DataConfig,
    *,
    channels: Sequence[str] = CT,
    fingerprint: Fingerprint | None = None,
    workers: int,
    reporter: Reporter,
) -> tuple[Store, Fingerprint]:
    """Preprocess all cases to a store, normalized by a given fingerprint or by that of the training cases.

    Args:
        folder: for stores and fingerprints; existing ones are reused.
        cases: the cases from which the fingerprint is computed, and the other cases to preprocess, see
            :func:`isopose.data.splits.measured_cases`.
        labels: names and stored values.
        config: settings of the preprocessing.
        channels: names of the dataset's channels.
        fingerprint: fingerprint of a model to fine-tune; None: compute it.
        workers: number of processes.
        reporter: receives progress, warnings and the cases that cannot be used.

    Raises:
        InputError: cases that cannot be used, after all are reported; usable cases stay in the store.
    """
    training, validation = cases
    if fingerprint is None:
        fingerprint = _fingerprint(folder, training, labels, config, channels, workers, reporter)
    with reporter.counting("preprocess") as progress:
        store = write_store(
            folder,
            (*training, *validation),
            fingerprint,
            labels,
            config,
            workers=workers,
            progress=progress,
            say=reporter.say,
        )
    for case in store.cases:
        for warning in case.record.warnings:
            reporter.say(f"warning: {case.record.id}: {warning}")
    return store, fingerprint


def _fingerprint(
    folder: Path,
    training: Cases,
    labels: Labels,
    config: DataConfig,
    channels: Sequence[str],
    workers: int,
    reporter: Reporter,
) -> Fingerprint:
    """Return the fingerprint of training cases; it is computed once and kept beside the store."""
    path = fingerprint_path(folder, training, labels, config, channels)
    if path.exists():
        return Fingerprint.from_json(read_json(path))
    with reporter.counting("fingerprint") as progress:
        fingerprint = fingerprint_of(
            training,
            labels,
            config,
            workers=workers,
            progress=progress,
            say=reporter.say,
            channels=channels,
        )
    write_json(path, fingerprint.to_json())
    return fingerprint


def fingerprint_path(
    folder: Path, training: Cases, labels: Labels, config: DataConfig, channels: Sequence[str] = CT
) -> Path:
    """Return the path of a fingerprint beside the store, named after its inputs.

    A resumed run, and one that shares the store, then need not read every scan again.
    """
    stamps = [_stamp(path) for case in training for path in (*case.images, case.label, case.mask) if path]
    key = hash_of([stamps, config.model_dump(mode="json"), labels.stored, list(channels), __version__])
    return folder / f"fingerprint-{key[:12]}.json"


def _stamp(path: Path) -> list[str | int]:
    """Return path, size and modification time of a file, which change if the file does."""
    try:
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    except (OSError, RuntimeError):  # an unreadable file is reported later, when its case is read
        return [str(path)]
