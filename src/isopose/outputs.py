"""Results of a command: the record is written last, and complete results are not made again."""

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from shutil import rmtree
from typing import Any, Generic, TypeVar

from isopose.errors import InputError
from isopose.files import read_json, sha256

R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """Outcome of one scan or case.

    Args:
        name: of the scan or case.
        record: how its result was made; None if there is no result.
        problem: why there is no result, in one line; None if there is one.
        made: False if the result was there before.
    """

    name: str
    record: R | None
    problem: str | None
    made: bool = True


def earlier_record(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file holds, or None if it is missing or damaged."""
    try:
        record = read_json(path)
    except InputError:
        return None
    return record if isinstance(record, dict) else None


def made_from(record: Mapping[str, Any] | None, parameters: Mapping[str, Any]) -> bool:
    """Return True if a record names exactly these parameters; None stands for an entry that it lacks."""
    return record is not None and all(record.get(name) == value for name, value in parameters.items())


def listed(record: Mapping[str, Any] | None) -> set[str]:
    """Return the files that a record lists, as paths relative to its folder.

    A path that leads out of the folder is left out: someone may have edited the record, and listed files may
    be removed.
    """
    names = (record or {}).get("files")
    paths = {name: PurePath(name) for name in names or () if isinstance(name, str)}
    return {name for name, path in paths.items() if not path.is_absolute() and ".." not in path.parts}


def hashes(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of files by their paths relative to a folder, as a record keeps them."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def damaged(folder: Path, files: Iterable[str] | Mapping[str, str]) -> str | None:
    """Return the first file that is missing or was changed, or None if all are whole.

    Args:
        folder: of the results.
        files: relative paths, which must exist; or a mapping from relative paths to the files' SHA-256.
    """
    for name in files:
        path = folder / name
        if not path.is_file() or (isinstance(files, Mapping) and sha256(path) != files[name]):
            return name
    return None


def remove(paths: Iterable[Path]) -> None:
    """Remove the files and folders that exist, in the order given: first the record, then its files."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders in which no file lies, and all empty folders below them; missing ones are passed over.

    Only for the process that started a run, after its workers: a worker may be about to write to them.
    """
    for folder in folders:
        below = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
        for path in (*sorted(below, reverse=True), folder):
            with suppress(OSError):
                path.rmdir()


@contextmanager
def replacing_results(record: Path, files: Sequence[Path], stale: Iterable[Path] = ()) -> Iterator[None]:
    """Replace the results of a scan: the block writes the files and then the record, all or none of them.

    When the block raises, whatever it raises, the record and the files are removed.

    Args:
        record: its path. An old record is removed before the block runs.
        files: files (or folders) that the block writes; ones that are added while it runs count as well.
        stale: files (or folders) of older results, removed before the block runs.
    """
    remove([record, *stale])
    try:
        yield
    except BaseException:
        for path in (record, *files):
            with suppress(OSError):
                remove([path])
        raise


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the partial files of processes that were killed, see :func:`isopose.files.replacing`.

    Args:
        folder: searched with all folders below it.
        name: only partial files of this one; needed while other processes write to the folder.
    """
    remove([*folder.rglob(f".*.partial.{'*' if name is None else glob.escape(name)}")])


def earlier_mark(
    folder: Path, mark: Path, parameters: Mapping[str, Any], *, within: str | None = None, other: str
) -> dict[str, Any] | None:
    """Return the contents of an earlier run's mark, or None if there is no mark.

    Args:
        folder: of the results.
        mark: JSON file that a run writes before its results.
        parameters: of this run. One that the mark lacks is newer than the mark, and is not compared.
        within: entry of the mark that holds the parameters; None if they are its own entries.
        other: how a run with other parameters is described in the message, with ``{names}`` for their names.

    Raises:
        InputError: the earlier run had other parameters, or the mark is damaged.
    """
    if not mark.exists():
        return None
    content = read_json(mark)
    recorded = content.get(within) if within is not None and isinstance(content, dict) else content
    recorded = recorded if isinstance(recorded, dict) else {}
    shared = [name for name in parameters if name in recorded]
    names = [name for name in shared if recorded[name] != parameters[name]]
    if names or not shared:
        line = other.format(names=" and ".join(names or parameters))
        raise InputError(f"{folder}: {line}; use the same inputs and settings, or choose another folder")
    return dict(content)


def claim(
    folder: Path,
    mark: Path,
    parameters: Mapping[str, Any],
    *,
    within: str | None = None,
    other: str,
    strange: str,
) -> dict[str, Any] | None:
    """Check that a folder may take a run's results: absent, empty, or begun with the same parameters.

    Args:
        folder, mark, parameters, within, other: as for :func:`earlier_mark`.
        strange: how a folder that holds something else is described in the message.

    Returns:
        What the mark says, or None if the run is new; the caller then writes the mark.

    Raises:
        InputError: the folder was begun with other parameters or holds something else.
    """
    recorded = earlier_mark(folder, mark, parameters, within=within, other=other)
    if recorded is None and folder.is_dir():
        # The mark's folder may exist without the mark if a run was killed before it wrote the mark.
        mark_entry = mark.relative_to(folder).parts[0]
        if any(entry.name != mark_entry for entry in folder.iterdir()):
            raise InputError(f"{folder}: {strange}; choose another folder")
    return recorded
