"""Folders and files anywhere that fsspec reaches: a path on a disk that all machines see, or a URL."""

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

#: Files of a dataset's description, which are read where the dataset is opened; all others are scans.
DESCRIPTIONS = (".json", ".csv")


@dataclass(frozen=True)
class Place:
    """A folder or file.

    Args:
        url: ``s3://bucket/folder``, any other URL that fsspec knows, or a path.
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
        """All files below it by their relative names, each with a stamp that changes when the file does.

        A file itself is the one under the empty name.
        """
        with self._reach() as (system, path):
            found = system.find(path, detail=True)
            base = PurePosixPath(system._strip_protocol(path))
            names = {name: PurePosixPath(name) for name, info in found.items() if info["type"] == "file"}
            return {
                "" if full == base else full.relative_to(base).as_posix(): _make_stamp(found[name])
                for name, full in names.items()
            }

    def fetch(self, target: Path) -> None:
        """Copy the file to a path."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reach() as (system, path):
            system.get_file(path, str(target))

    def exists(self) -> bool:
        """Return whether a file or folder is there."""
        with self._reach() as (system, path):
            return bool(system.exists(path))

    def publish(self, source: Path) -> None:
        """Copy a file here, whole or not at all."""
        if self.local is not None:
            with replacing(self.local) as temporary:
                shutil.copyfile(source, temporary)
            return
        # An object appears when all of it has arrived.
        with self._reach() as (system, path):
            system.put_file(str(source), path)

    def write_json(self, value: Any) -> None:
        """Write JSON here, whole or not at all."""
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        if self.local is not None:
            with replacing(self.local) as temporary:
                temporary.write_text(text, encoding="utf-8")
            return
        with self._reach() as (system, path):
            system.pipe_file(path, text.encode())

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of those of some files below it that are there, read side by side."""
        if not names:
            return {}
        with self._reach() as (system, path):
            full = [f"{path.rstrip('/')}/{name}" for name in names]
            # Not cat, which takes brackets in a name for a pattern.
            found = system.cat_ranges(full, None, None, on_error="return")
            for content in found:
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
            return {n: c for n, c in zip(names, found, strict=True) if not isinstance(c, Exception)}

    def remove(self) -> None:
        """Remove the file, if it is there."""
        with self._reach() as (system, path), suppress(FileNotFoundError):
            system.rm_file(path)

    @contextmanager
    def _reach(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        try:
            # Other machines write here too, so a remembered listing would be wrong.
            system, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise InputError(f"{self.url}: {error}; pip install what it names") from None
        except ValueError as error:
            raise InputError(f"{self.url}: {error}") from None
        try:
            yield system, path
        except IsoposeError:
            raise
        except FileNotFoundError:
            raise IsoposeError(f"{self.url}: no such file or folder, seen from this machine") from None
        # Each storage has errors of its own.
        except Exception as error:
            raise IsoposeError(
                f"{self.url}: cannot be reached ({str(error) or type(error).__name__})"
            ) from None


def is_url(text: str) -> bool:
    """Return whether a text names a place by a protocol."""
    return "://" in text


def place_of(text: str) -> Place:
    """Return a URL, or a path from the root on, as other machines begin elsewhere."""
    return Place(text.rstrip("/") if is_url(text) else str(Path(text).absolute()))


@dataclass(frozen=True)
class Mirror:
    """What a place holds, as a folder here: descriptions whole, scans as empty files.

    Datasets and scans are found in it as anywhere else; where one is read, it is fetched.

    Args:
        place: that is mirrored; a path on a disk is its own mirror.
        folder: here.
        stamps: by relative name, of a URL's files.
    """

    place: Place
    folder: Path
    stamps: dict[str, str]

    @classmethod
    def make(cls, place: Place, below: Path) -> "Mirror":
        """Mirror a place, a URL's in a folder below a given one.

        Raises:
            InputError: nothing is there.
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
        """Mirror a dataset, and say where it is opened; with a manifest its whole folder is mirrored."""
        folder, _, name = place.url.rpartition("/")
        if place.local is not None or not name.lower().endswith(DESCRIPTIONS):
            mirror = cls.make(place, below)
            return mirror, mirror.folder
        mirror = cls.make(Place(folder), below)
        return mirror, mirror.folder / name

    def origin(self, path: Path) -> Place | None:
        """Where something in the mirror comes from; None of what is not in it."""
        if not path.is_relative_to(self.folder):
            return None
        relative = path.relative_to(self.folder).as_posix()
        return self.place / ("" if relative == "." else relative)

    def stamp(self, path: Path) -> dict[str, str]:
        """Changes when a file of a scan (or a series' folder) in the mirror does; by names below it."""
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


def bring(origin: Place, names: Sequence[str], target: Path) -> Path:
    """Return a scan's file or folder, where it can be read: itself on a disk, else a copy.

    Args:
        origin: the scan's.
        names: of its files below it, or the empty one if it is a file; looking them up again would cost more
            than a small scan does.
        target: of a copy.

    Raises:
        IsoposeError: it is not to be seen from this machine.
    """
    if origin.local is not None:
        if not origin.local.exists():
            raise IsoposeError(
                f"{origin}: is not to be seen from every machine; keep it on a disk that all share, or give "
                "a URL"
            )
        return origin.local
    for name in names:
        (origin / name).fetch(target / name if name else target)
    return target


def _make_stamp(info: dict[str, Any]) -> str:
    known = (info.get(key) for key in ("ETag", "etag", "LastModified", "last_modified", "mtime"))
    stamp = next((str(value) for value in known if value is not None), "")
    return hashlib.sha256(f"{info.get('size')} {stamp}".encode()).hexdigest()[:16]
