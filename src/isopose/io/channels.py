"""The images of one scan: one for each channel, all on one grid."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from isopose.choices import Modality
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.geometry.volume import Volume
from isopose.io.images import read_volume
from isopose.io.sources import hash_of_source

#: A scan's name, and nnU-Net's channel number.
_NUMBERED = re.compile(r"(.+)_(\d{4})")


def read_channels(
    paths: Sequence[Path],
    names: Sequence[str],
    series: str | None = None,
    modality: Modality | None = None,
) -> list[Volume]:
    """Read the image of each channel of a scan.

    Args:
        paths: one for each channel.
        names: of the channels, for messages.
        series: number or instance UID, for DICOM that holds several series.
        modality: expected modality of a scan with one channel, if its file states one; with several channels,
            those named CT must be CT.

    Raises:
        InputError: another number of images than channels, an image that cannot be read, or images on
            different grids.
    """
    check_count(len(paths), names)
    kinds: list[Modality | None] = [modality]
    if len(names) > 1:
        kinds = ["ct" if name.casefold() == "ct" else None for name in names]
    volumes = [read_volume(path, series, modality=kind) for path, kind in zip(paths, kinds, strict=True)]
    check_one_grid(volumes, names)
    return volumes


def check_count(images: int, names: Sequence[str]) -> None:
    """Check that a scan has one image for each channel.

    Args:
        images: number of images.
        names: of the channels.

    Raises:
        InputError: the numbers differ.
    """
    if images == len(names):
        return
    remedy = "give each channel as an image of its own, in this order (CASE_0000, CASE_0001, ...)"
    if len(names) == 1:
        remedy = "NAME_0000, NAME_0001, ... are channels of one scan; if they are scans, rename them"
    expected = f"{_counted(len(names), 'channel')} ({', '.join(names)})"
    raise InputError(f"expected {expected}, got {_counted(images, 'image')}; {remedy}")


def check_one_grid(volumes: Sequence[Volume], names: Sequence[str]) -> None:
    """Check that all images of a scan lie on the grid of the first one.

    Args:
        volumes: one for each channel.
        names: of the channels, for the message.

    Raises:
        InputError: an image has another shape or position.
    """
    for volume, name in zip(volumes[1:], names[1:], strict=True):
        if not volume.same_grid(volumes[0]):
            raise InputError(
                f"channel {name}: {_describe_grid(volume, volumes[0])} does not lie on the grid of channel "
                f"{names[0]}, {_describe_grid(volumes[0])}; resample it to that grid"
            )


def group_channels(paths: Sequence[Path], name: Callable[[Path], str]) -> list[list[Path]]:
    """Group images into scans: the names of a scan's images differ only in nnU-Net's channel number.

    Args:
        paths: of images.
        name: returns a path's name, with the channel number and without extension.

    Returns:
        For each scan its images, in the order of the channels. If a name's numbers are not 0000, 0001, ...
        without gaps, each of its images is a scan of its own.
    """
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    for path in paths:
        numbered = _NUMBERED.fullmatch(name(path))
        if numbered is not None:
            groups.setdefault((path.parent, numbered[1]), {}).setdefault(int(numbered[2]), path)
    scans = {path: [path] for path in paths}
    for images in groups.values():
        if sorted(images) == list(range(len(images))):
            first, *others = (images[number] for number in sorted(images))
            scans[first] = [first, *others]
            for other in others:
                del scans[other]
    return list(scans.values())


def hash_of_channels(paths: Sequence[Path], series: str | None = None) -> str:
    """Return the SHA-256 of a scan: of its one image, or of the images of all its channels in order.

    Args:
        paths: one for each channel.
        series: the choice among several DICOM series that they hold, which is hashed too.

    Raises:
        InputError: a path does not exist, is neither a file nor a folder, or an empty file.
    """
    hashes = [hash_of_source(path) for path in paths]
    return hash_with_series(hashes[0] if len(hashes) == 1 else hash_of(hashes), series)


def hash_with_series(files: str, series: str | None) -> str:
    """Return the hash of files and of the DICOM series chosen from them; of the files alone if none was."""
    return files if series is None else hash_of([files, series])


def _describe_grid(volume: Volume, other: Volume | None = None) -> str:
    """Return a grid's size and spacing as text, and how far it lies from another grid of the same shape."""
    size = " x ".join(map(str, volume.array.shape[::-1]))
    text = f"{size} voxels of {' x '.join(f'{side:.3g}' for side in volume.spacing)} mm"
    if other is not None and volume.array.shape == other.array.shape:
        text += f", up to {volume.grid_distance(other):.2f} mm away,"
    return text


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
