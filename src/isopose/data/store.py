"""A store of preprocessed cases: compressed, memory-mapped, verified by hashes, and resumable.

Layout: ``FOLDER/KEY/store.json`` and ``FOLDER/KEY/cases/CASE/{image,mask,labels}.b2nd`` with a
``record.json`` each, and ``image_1.b2nd`` and so on of further channels. The key names the configuration,
fingerprint and labels, so that stores of different settings never mix. A record is written after its arrays
and contains their hashes: a case is complete if they match, otherwise it is preprocessed again.
``store.json`` is written last. The same cases give the same bytes from any number of workers.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import blosc2
import numpy as np

from isopose.data.fingerprint import Fingerprint
from isopose.data.modality import modality_of
from isopose.data.normalization import pose_channel_of
from isopose.data.preprocess import prepare
from isopose.data.record import RECORD_ADAPTER, Record, StoredCase, image_name, read_stored_record, record_of
from isopose.devices import one_thread
from isopose.errors import InputError, IsoposeError
from isopose.files import hash_of, only_writer, read_json, replacing, write_json
from isopose.io.channels import hash_of_channels, read_channels
from isopose.io.datasets import Case
from isopose.io.images import read_labels
from isopose.io.masks import read_mask
from isopose.io.sources import hash_of_source
from isopose.labels import Labels
from isopose.outputs import damaged, hashes, remove, replacing_results, sweep
from isopose.parallel import Progress, all_of
from isopose.presets import validate_config
from isopose.settings import DataConfig

__all__ = ["Record", "Store", "StoredCase", "open_store", "write_store"]

#: Increases with every change of the layout or of the result of :func:`~isopose.data.preprocess.prepare`.
FORMAT = 1


@dataclass(frozen=True)
class Store:
    """A finished store, opened for reading."""

    folder: Path
    key: str
    config: DataConfig
    fingerprint: Fingerprint
    labels: Labels
    cases: tuple[StoredCase, ...]


def write_store(
    folder: Path,
    cases: Sequence[Case],
    fingerprint: Fingerprint,
    labels: Labels,
    config: DataConfig,
    workers: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Store:
    """Preprocess cases and write them; continue an interrupted run.

    Complete cases whose sources have not changed are kept; incomplete, damaged and changed ones are
    preprocessed again; files that belong to no case are removed. Only one run at a time writes to a folder,
    others wait.

    Args:
        folder: contains the store as a subfolder named by the first twelve digits of its key.
        cases: each with a label file.
        fingerprint: of the training cases.
        labels: names and stored values.
        config: settings of the preprocessing.
        workers: number of processes; the bytes do not depend on it.
        progress: called with the numbers of cases done and of all cases.
        say: called with a line for each case that cannot be used.

    Raises:
        InputError: two cases with one name; cases that cannot be used, after all others are preprocessed.
        IsoposeError: the disk is full or write-protected.
    """
    names = [folder_name(case.id) for case in cases]
    duplicate = next(
        (case.id for case, name in zip(cases, names, strict=True) if names.count(name) > 1), None
    )
    if not cases or duplicate is not None:
        raise InputError(
            f"store: case {duplicate!r} is given twice" if cases else "store: expected cases, got none"
        )
    head = store_head(fingerprint, labels, config)
    root = Path(folder) / hash_of(head)[:12]
    work = partial(write_case, root=root, fingerprint=fingerprint, labels=labels, config=config)
    try:
        (root / "cases").mkdir(parents=True, exist_ok=True)
        # Runs that share a store may start at the same time: the second uses the cases of the first.
        with only_writer(root, wait=True):
            # The folder is not a store until all cases are complete.
            (root / "store.json").unlink(missing_ok=True)
            remove(entry for entry in (root / "cases").iterdir() if entry.name not in names)
            sweep(root)
            all_of(work, cases, name=attrgetter("id"), workers=workers, progress=progress, say=say)
            write_json(root / "store.json", {**head, "key": hash_of(head), "cases": names})
            # Read it before another run takes the lock, which invalidates the store until that run is done.
            return open_store(root)
    except OSError as error:
        raise IsoposeError(
            f"{root}: cannot write the store ({error.strerror or error}); "
            "free some space or choose another folder"
        ) from None


def open_store(folder: Path) -> Store:
    """Open a finished store, the folder that contains ``store.json``.

    Raises:
        InputError: not a finished store, another version, or a damaged record.
    """
    folder = Path(folder)
    path = folder / "store.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: no finished store in here (store.json is missing); prepare the dataset again"
        )
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        version = values.get("format") if isinstance(values, dict) else "none"
        raise InputError(f"{path}: expected format {FORMAT}, got {version}; prepare the dataset again")
    try:
        head = {name: values[name] for name in ("format", "config", "fingerprint", "labels")}
        key, names = values["key"], [str(name) for name in values["cases"]]
        labels = Labels.from_json(head["labels"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{path}: an entry is missing or damaged; prepare the dataset again") from None
    try:
        hash_matches = hash_of(head) == key
    except ValueError:  # numbers that JSON does not have
        hash_matches = False
    if not hash_matches:
        raise InputError(f"{path}: the contents do not agree with their hash; prepare the dataset again")
    if not names:
        raise InputError(f"{path}: lists no case; prepare the dataset again")
    config = validate_config({"data": head["config"]}, str(path)).data
    fingerprint = Fingerprint.from_json(head["fingerprint"], str(path))
    cases = []
    for name in names:
        record = read_stored_record(folder / "cases" / name)
        if record is None:
            raise InputError(
                f"{folder / 'cases' / name}: its record is missing or damaged; prepare the store again"
            )
        cases.append(StoredCase(folder / "cases" / name, record))
    return Store(folder, key, config, fingerprint, labels, tuple(cases))


def folder_name(case_id: str) -> str:
    """Return a file name for a case id; the id itself if it is a valid file name."""
    name = quote(case_id, safe=" ") or "%"
    if name.startswith("."):
        name = "%2E" + name[1:]
    return name if len(name) <= 120 else f"{name[:100]}-{hash_of(case_id)[:16]}"


def store_head(fingerprint: Fingerprint, labels: Labels, config: DataConfig) -> dict[str, Any]:
    """Return the settings in ``store.json`` that all cases share; the store's key is their hash."""
    head = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint.to_json(),
        "labels": labels.to_json(),
    }
    return json.loads(json.dumps(head, allow_nan=False))


@one_thread()
def write_case(
    case: Case, *, root: Path, fingerprint: Fingerprint, labels: Labels, config: DataConfig
) -> None:
    """Preprocess one case and write its folder, unless it is complete already."""
    if case.label is None:
        raise InputError("expected a label file for a training case, got none")
    folder = root / "cases" / folder_name(case.id)
    sources = {"image": hash_of_channels(case.images), "label": hash_of_source(case.label)}
    if case.mask is not None:
        sources["mask"] = hash_of_source(case.mask)
    earlier = read_stored_record(folder)
    if earlier is not None:
        inputs = (earlier.id, earlier.patient, earlier.age_years, earlier.sources)
        if inputs == (case.id, case.patient, case.age_years, sources) and not damaged(folder, earlier.arrays):
            return
    with replacing_results(folder / "record.json", [folder], stale=[folder]):
        modality = modality_of(config, fingerprint.channel_names)
        volumes = read_channels(case.images, fingerprint.channel_names, modality=modality)
        like = volumes[pose_channel_of(config, fingerprint.channel_names)]
        body = None if case.mask is None else read_mask(case.mask, like)
        notes: list[str] = []
        stored = read_labels(case.label, like=like, note=notes.append)
        prepared = prepare(volumes, fingerprint, config, stored, labels, body)
        prepared = replace(prepared, warnings=(*prepared.warnings, *(f"label: {note}" for note in notes)))
        assert prepared.labels is not None
        contents: dict[str, np.ndarray] = {
            **{image_name(n): image.astype(np.float16) for n, image in enumerate(prepared.images)},
            "mask": prepared.mask.astype(np.uint8),
            "labels": prepared.labels,
        }
        for name, array in contents.items():
            with replacing(folder / f"{name}.b2nd") as temporary:
                temporary.write_bytes(_compressed(array))
        arrays = hashes(folder, (folder / f"{name}.b2nd" for name in contents))
        record = record_of(case, prepared, labels, arrays, sources)
        write_json(folder / "record.json", RECORD_ADAPTER.dump_python(record, mode="json"))


def _compressed(array: np.ndarray) -> bytes:
    """Compress an array, one chunk per slice for separate reading, on one thread for identical bytes."""
    chunk = (1, *array.shape[1:])
    cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1, "filters": [blosc2.Filter.SHUFFLE]}
    compressed = blosc2.asarray(np.ascontiguousarray(array), chunks=chunk, blocks=chunk, cparams=cparams)
    return compressed.to_cframe()
