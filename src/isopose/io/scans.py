"""Find and name the scans that files and folders hold."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from isopose.errors import InputError, printable
from isopose.files import composed
from isopose.io.cases import Case
from isopose.io.channels import group_channels
from isopose.io.dicom import holds_slices
from isopose.io.dicom_files import is_dicomdir, is_hidden
from isopose.io.endings import ending
from isopose.io.images import missing_message
from isopose.io.quiet import check_name


@dataclass(frozen=True)
class Scan:
    """One scan to predict, with the name of its results.

    Args:
        name: name of its results.
        path: its image; with several channels, the image of the first.
        series: number or instance UID, for DICOM that holds several series.
        further: images of the channels after the first.
        mask: file of the body's mask, in place of the automatic one.
        problem: why no results can be written under its name, in one line; None if they can.
    """

    name: str
    path: Path
    series: str | None = None
    further: tuple[Path, ...] = ()
    mask: Path | None = None
    problem: str | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images of all channels, in order."""
        return (self.path, *self.further)


def scan_of(case: Case) -> Scan:
    """Return a dataset's case as a scan to predict, with all its channels and its mask."""
    return Scan(case.id, case.image, further=case.further, mask=case.mask)


def find_scans(inputs: Sequence[Path], series: str | None = None) -> list[Scan]:
    """Find scans in files, folders of files and folders of one DICOM series.

    A scan has a problem if no results can be written under its name: another scan has the same name (on some
    file systems upper and lower case are the same), nothing is left of it, or it is not text. Such scans
    are returned too, so that each can be reported while the others are done; the names of all others are
    distinct.

    Images whose names differ in nnU-Net's channel alone (``CASE_0000``, ``CASE_0001``) are one scan.

    A folder that holds any NIfTI, NRRD or MetaImage file, or nothing but ZIP archives, is a folder of scans;
    any other folder is a DICOM series. A scan is named after its file, without the extension and nnU-Net's
    channel ``_0000``; a DICOMDIR after its folder.

    Args:
        inputs: files and folders.
        series: number or instance UID, for DICOM inputs that hold several series.

    Raises:
        InputError: no input exists, or a series is chosen of an input that is not DICOM. A missing path is
            kept as a scan, whose prediction then fails.
    """
    missing_paths = [path for path in inputs if not os.path.lexists(path)]
    if missing_paths and len(missing_paths) == len(inputs):
        raise InputError(missing_message(missing_paths[0]))
    paths: list[Path] = []
    for path in inputs:
        paths += (_scans_in(path) if path.is_dir() else []) or [path]
    scans = [
        Scan(scan_name(images[0]), images[0], series, tuple(images[1:]))
        for images in group_channels(paths, partial(scan_name, whole=True))
    ]
    for scan in scans:
        if series is not None and ending(scan.path) and not scan.path.is_dir():
            raise InputError(f"{scan.path}: --series chooses a DICOM series, got {ending(scan.path)}")
    by_folded_name: dict[str, list[Scan]] = {}
    for scan in scans:
        by_folded_name.setdefault(scan.name.casefold(), []).append(scan)
    return [
        replace(scan, problem=_name_problem(scan, by_folded_name[scan.name.casefold()])) for scan in scans
    ]


def _name_problem(scan: Scan, same: Sequence[Scan]) -> str | None:
    """Return why no results can be written under a scan's name; None if they can.

    Args:
        scan: the scan.
        same: all scans whose names differ from its name at most in case, itself among them.
    """
    try:
        check_name(scan.path)
    except InputError as error:
        return str(error)
    if not scan.name:
        return printable(f"{scan.path}: its name without extension and channel is empty; rename it")
    if len(same) == 1:
        return None
    number = "two" if len(same) == 2 else str(len(same))
    names = sorted({other.name for other in same})
    written = names[0] if len(names) == 1 else f"{names[0]} and {names[1]}, one name on some file systems"
    return printable(
        f"{scan.path}: {number} inputs would be written as {written}; rename one, or give each its own run "
        "and output folder"
    )


def check_names(scans: Sequence[Scan]) -> Sequence[Scan]:
    """Return scans if results can be written under all of their names.

    Raises:
        InputError: the first problem of those for which it is not so.
    """
    for scan in scans:
        if scan.problem is not None:
            raise InputError(scan.problem)
    return scans


def check_output_apart(inputs: Sequence[Path], output: Path) -> None:
    """Check that results are not written into a folder of scans, which the next run would take for scans.

    Args:
        inputs: as for :func:`find_scans`.
        output: folder for the results.

    Raises:
        InputError: the output is a folder of scans, or lies in one of a DICOM series.
    """
    target = output.resolve()
    for path in inputs:
        if not path.is_dir():
            continue
        folder = path.resolve()
        # Everything below the folder of a series is part of it.
        if target == folder or (folder in target.parents and not _scans_in(path)):
            raise InputError(
                f"{output}: is the folder of the scans, where the next run would take results for scans; "
                "choose another folder for --output"
            )


def _scans_in(folder: Path) -> list[Path]:
    """Return a folder's volumes, or its ZIP archives if it has nothing else; none of a DICOM series.

    A folder with both a DICOM series and volumes gives none either; reading it as one scan then raises an
    error.
    """
    files = sorted(p for p in folder.iterdir() if not is_hidden(p.relative_to(folder)))
    images = [p for p in files if is_image(p)]
    if images and holds_slices(folder):
        return []
    archives = files if files and all(p.suffix.lower() == ".zip" and not p.is_dir() for p in files) else []
    return images or archives


def is_image(path: Path) -> bool:
    """Return True if a path has the name of a volume; if it is a pipe or a broken link, reading reports it.

    A folder with such a name may hold a DICOM series.
    """
    return not path.name.startswith(".") and bool(ending(path))


def scan_name(path: Path, *, whole: bool = False) -> str:
    """Return the name of a scan's results; for a link its own name, not that of its target.

    Args:
        path: of the scan.
        whole: keep nnU-Net's number of the channel.
    """
    name = _name_of(path.parent if is_dicomdir(path) else path)
    suffix = ending(path)
    if not suffix and path.is_file() and not is_dicomdir(path) and path.suffix.lower() in (".dcm", ".zip"):
        suffix = path.suffix
    stem = name[: len(name) - len(suffix)]
    return composed(stem if whole else stem.removesuffix("_0000"))


def _name_of(path: Path) -> str:
    """Return the last part of a path; for ``.`` and ``..`` the name of that folder."""
    return path.name if path.name not in ("", "..") else path.resolve().name
