"""Folders and files on a disk that all machines share, or at a URL that fsspec supports."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from isopose.errors import InputError, IsoposeError
from isopose.files import replacing

#: Endings of files that describe a dataset, which are read when it is opened; all other files are scans.
DESCRIPTIONS = (".json", ".csv")


@dataclass(frozen=True)
class Place:
    """A folder or file.

    Args:
        url: ``s3://bucket/folder``, any other URL that fsspec supports, or a path.
    """

    url: str

    @property
    def local(self) -> Path | None:
        """Path of a place on a disk; None for object storage."""
        if self.url.startswith("file://"):
            return Path(self.url.removeprefix("file://"))
        return None if is_url(self.url) else Path(self.url)

    def __truediv__(self, relative: str) -> "Place":
        return Place(f"{self.url.rstrip('/')}/{relative}" if relative else self.url)

    def __str__(self) -> str:
        return self.url

    def files(self) -> dict[str, str]:
        """Return the files in a folder by relative path, each with a stamp that changes with the file.

        A place that is itself a file is returned under the empty name.
        """
        with self._reach() as (system, path):
            entries = system.find(path, detail=True)
            base = PurePosixPath(system._strip_protocol(path))
            names = {name: PurePosixPath(name) for name, info in entries.items() if info["type"] == "file"}
            return {
                "" if full == base else full.relative_to(base).as_posix(): _make_stamp(entries[name])
                for name, full in names.items()
            }

    def fetch(self, target: Path) -> None:
        """Copy the file to a path."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reach() as (system, path):
            system.get_file(path, str(target))

    def exists(self) -> bool:
        """Return whether the file or folder exists."""
        with self._reach() as (system, path):
            return bool(system.exists(path))

    def publish(self, source: Path) -> None:
        """Copy a file to this place, completely or not at all."""
        if self.local is not None:
            with replacing(self.local) as temporary:
                shutil.copyfile(source, temporary)
            return
        # Object storage shows an object only after all of it has been uploaded.
        with self._reach() as (system, path):
            system.put_file(str(source), path)

    def write_json(self, value: Any) -> None:
        """Write JSON to this place, completely or not at all."""
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        if self.local is not None:
            with replacing(self.local) as temporary:
                temporary.write_text(text, encoding="utf-8")
            return
        with self._reach() as (system, path):
            system.pipe_file(path, text.encode())

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of files in this folder by relative path, without those that do not exist."""
        if not names:
            return {}
        with self._reach() as (system, path):
            full = [f"{path.rstrip('/')}/{name}" for name in names]
            # Not cat(), which interprets brackets in a name as a pattern.
            contents = system.cat_ranges(full, None, None, on_error="return")
            for content in contents:
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
            return {n: c for n, c in zip(names, contents, strict=True) if not isinstance(c, Exception)}

    def remove(self) -> None:
        """Remove the file if it exists."""
        with self._reach() as (system, path), suppress(FileNotFoundError):
            system.rm_file(path)

    @contextmanager
    def _reach(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """Yield the file system and the path in it; errors of the storage become IsoposeErrors."""
        try:
            # Other machines write here too, so a cached listing would be wrong.
            system, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise InputError(f"{self.url}: {error}; install that package with pip") from None
        except ValueError as error:
            raise InputError(f"{self.url}: {error}") from None
        try:
            yield system, path
        except IsoposeError:
            raise
        except FileNotFoundError:
            raise IsoposeError(f"{self.url}: no such file or folder on this machine") from None
        # Each storage raises exceptions of its own.
        except Exception as error:
            raise IsoposeError(
                f"{self.url}: cannot be reached ({str(error) or type(error).__name__})"
            ) from None


def is_url(text: str) -> bool:
    """Return whether a text is a URL."""
    return "://" in text


def place_of(text: str) -> Place:
    """Return the place of a URL or path; paths become absolute, since workers have other current folders."""
    return Place(text.rstrip("/") if is_url(text) else str(Path(text).absolute()))


@dataclass(frozen=True)
class Mirror:
    """A local folder with the structure of a place: descriptions are copied, scans are empty files.

    Datasets and scans are listed in it as in a local folder; a scan's contents are fetched when it is read.

    Args:
        place: the place that is mirrored; a path on a disk is its own mirror.
        folder: the local folder.
        stamps: stamps of a URL's files by relative path.
    """

    place: Place
    folder: Path
    stamps: dict[str, str]

    @classmethod
    def make(cls, place: Place, below: Path) -> "Mirror":
        """Mirror a place; a URL is mirrored to a new folder in ``below``.

        Raises:
            InputError: the place does not exist, or a name in it leads out of the folder.
        """
        if place.local is not None:
            return cls(place, place.local, {})
        stamps = place.files()
        if not stamps:
            raise InputError(f"{place}: no such file or folder")
        folder = below / (PurePosixPath(place.url).name or "root")
        for name in stamps:
            if ".." in PurePosixPath(name).parts:
                raise InputError(f"{place / name}: a name with '..' leaves its folder; rename it")
            target = folder / name if name else folder
            if target.suffix.lower() in DESCRIPTIONS:
                (place / name).fetch(target)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
        return cls(place, folder, stamps)

    @classmethod
    def of_dataset(cls, place: Place, below: Path) -> tuple["Mirror", Path]:
        """Mirror a dataset; return the mirror and the path to open. A manifest's whole folder is mirrored."""
        folder, _, name = place.url.rpartition("/")
        if place.local is not None or not name.lower().endswith(DESCRIPTIONS):
            mirror = cls.make(place, below)
            return mirror, mirror.folder
        mirror = cls.make(Place(folder), below)
        return mirror, mirror.folder / name

    def origin(self, path: Path) -> Place | None:
        """Return the original place of a path in the mirror; None for a path outside of it."""
        if not path.is_relative_to(self.folder):
            return None
        relative = path.relative_to(self.folder).as_posix()
        return self.place / ("" if relative == "." else relative)

    def stamp(self, path: Path) -> dict[str, str]:
        """Return the stamps of a scan's file, or of all files of a series' folder, by relative path."""
        if self.place.local is not None:
            return Place(str(path)).files()
        relative = path.relative_to(self.folder).as_posix()
        if relative == ".":
            return self.stamps
        if relative in self.stamps:
            return {"": self.stamps[relative]}
        if path.is_dir():
            below = (p.relative_to(path).as_posix() for p in sorted(path.rglob("*")) if p.is_file())
            return {name: self.stamps[f"{relative}/{name}"] for name in below}
        return {}


def local_path_of(origin: Place, names: Sequence[str], target: Path) -> Path:
    """Return a path at which this machine can read a scan: its own on a disk, otherwise that of a copy.

    Args:
        origin: place of the scan's file or folder.
        names: relative paths of its files, or the empty name for a single file; listing them again would take
            longer than fetching a small scan.
        target: path for a copy.

    Raises:
        IsoposeError: this machine does not see the file or folder.
    """
    if origin.local is not None:
        if not origin.local.exists():
            raise IsoposeError(
                f"{origin}: is not visible on every machine; keep it on a disk that all share, or give a URL"
            )
        return origin.local
    for name in names:
        (origin / name).fetch(target / name if name else target)
    return target


def _make_stamp(info: dict[str, Any]) -> str:
    """Return a hash of a file's size and of its version or time, as fsspec reports them."""
    marks = (info.get(key) for key in ("ETag", "etag", "LastModified", "last_modified", "mtime"))
    stamp = next((str(value) for value in marks if value is not None), "")
    return hashlib.sha256(f"{info.get('size')} {stamp}".encode()).hexdigest()[:16]
