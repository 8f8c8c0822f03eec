"""A preprocessed case on disk: its record, and its arrays, whose slices can be read one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import blosc2
import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from isopose.data.drawn import structures
from isopose.data.preprocess import Prepared
from isopose.errors import InputError
from isopose.files import read_text
from isopose.geometry.frame import Frame
from isopose.io.datasets import Case
from isopose.labels import IGNORED, Labels
from isopose.strict import STRICT, Hash

#: Names of the arrays besides the images, uint8; each is ``NAME.b2nd`` in the case's folder.
_MASK_ARRAYS = ("mask", "labels")

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Record:
    """The metadata of one preprocessed case.

    Args:
        id: of the case.
        patient: of the dataset, for splits.
        age_years: age at the scan, None if unknown.
        frame: square in the plane of the slices, mm.
        shape: ``(z, N, N)`` of the arrays.
        lps_shape: ``(z, y, x)`` of the reoriented volume.
        spacing: ``(x, y, z)`` of the reoriented volume, mm.
        world_from_index: rows of the reoriented volume's matrix.
        axes: of the reorientation.
        flips: of the reorientation.
        native_shape: ``(z, y, x)`` as stored.
        native_world_from_index: rows of the stored volume's matrix.
        air: normalized value outside the scan.
        warnings: of the preprocessing.
        presence: for each slice, whether it shows each label (background left out).
        body_fraction: for each slice, the fraction of the frame that the body fills.
        undrawn: indices of the slices in which no voxel of the body was annotated, not even as background.
        channels: number of images.
        pose_channel: the channel that shows body and pose.
        arrays: SHA-256 of each array's file.
        sources: SHA-256 of the image (for several channels, see :func:`isopose.io.channels.hash_of_channels`)
            and of the label.
    """

    id: str
    patient: str
    age_years: float | None
    frame: Frame
    shape: Triple
    lps_shape: Triple
    spacing: tuple[float, float, float]
    world_from_index: tuple[tuple[float, ...], ...]
    axes: Triple
    flips: tuple[bool, bool, bool]
    native_shape: Triple
    native_world_from_index: tuple[tuple[float, ...], ...]
    air: float
    warnings: tuple[str, ...]
    presence: tuple[tuple[bool, ...], ...]
    body_fraction: tuple[float, ...]
    arrays: dict[str, Hash]
    sources: dict[str, Hash]
    undrawn: tuple[int, ...] = ()
    channels: Annotated[int, Field(ge=1)] = 1
    pose_channel: Annotated[int, Field(ge=0)] = 0
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


RECORD_ADAPTER = TypeAdapter(Record)


def image_name(channel: int) -> str:
    """Return the name of the array of a channel, float16."""
    return f"image_{channel}" if channel else "image"


def array_names(channels: int) -> tuple[str, ...]:
    """Return the names of all arrays of a case with this number of channels."""
    return (*map(image_name, range(channels)), *_MASK_ARRAYS)


@dataclass(frozen=True)
class StoredCase:
    """One case of a store; reads requested slices only, and is cheap to send to another process."""

    folder: Path
    record: Record

    def read(
        self, slices: Sequence[int], images: Sequence[int] | None = None, *, all_channels: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read slices, in the given order.

        Args:
            slices: ``(n,)`` indices from the feet.
            images: ``(m,)`` indices of the slices whose images are read; None: ``slices``.
            all_channels: read the images of all channels, not only of the one that shows the pose.

        Returns:
            Image ``(n, N, N)``, or ``(m, N, N)`` with ``images``, float32; with ``all_channels``
            ``(C, n, N, N)``. Mask and class labels ``(n, N, N)`` uint8.

        Raises:
            InputError: an array's file is missing or damaged.
            IndexError: no such slice.
        """
        channels = range(self.record.channels) if all_channels else [self.record.pose_channel]
        image_slices = slices if images is None else images
        images_read = [
            self._read(image_name(channel), image_slices).astype(np.float32) for channel in channels
        ]
        image = np.stack(images_read) if all_channels else images_read[0]
        return image, self._read("mask", slices), self._read("labels", slices)

    def _read(self, name: str, slices: Sequence[int]) -> np.ndarray:
        path = self.folder / f"{name}.b2nd"
        try:
            stored = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
            if not isinstance(stored, blosc2.NDArray) or stored.shape != self.record.shape:
                raise ValueError("another array than its record says")
            out = np.empty((len(slices), *stored.shape[1:]), dtype=stored.dtype)
            for row, z in enumerate(slices):
                if not 0 <= z < stored.shape[0]:
                    raise IndexError(f"slice {z} of {stored.shape[0]}")
                out[row] = stored[int(z)]
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.record.id}: {path} cannot be read ({error}); prepare the store again"
            ) from None
        return out


def record_of(
    case: Case, prepared: Prepared, labels: Labels, arrays: dict[str, str], sources: dict[str, str]
) -> Record:
    """Return the record of a case; ``arrays`` and ``sources`` are hashes by name."""
    classes = prepared.labels
    assert classes is not None, "a case of a store has labels"
    # Border pixels of the body may reach beyond the image, where labels are unknown: they do not count.
    annotated = ((classes != IGNORED) & prepared.mask).any(axis=(1, 2)) | structures(classes).any(axis=(1, 2))
    shows = [(classes == index).any(axis=(1, 2)) for index in range(1, labels.classes)]
    return Record(
        id=case.id,
        patient=case.patient,
        age_years=None if case.age_years is None else float(case.age_years),
        frame=prepared.frame,
        shape=(len(prepared.mask), prepared.frame.size, prepared.frame.size),
        lps_shape=prepared.shape,
        spacing=prepared.spacing,
        world_from_index=_rows(prepared.world_from_index),
        axes=prepared.reorientation.axes,
        flips=prepared.reorientation.flips,
        native_shape=prepared.native_shape,
        native_world_from_index=_rows(prepared.native_world_from_index),
        air=prepared.scale.air,
        warnings=prepared.warnings,
        presence=tuple(tuple(map(bool, shown_labels)) for shown_labels in zip(*shows, strict=True)),
        body_fraction=tuple(prepared.mask.mean(axis=(1, 2)).tolist()),
        arrays=arrays,
        sources=sources,
        undrawn=tuple(np.flatnonzero((classes == IGNORED).any(axis=(1, 2)) & ~annotated).tolist()),
        channels=len(prepared.images),
        pose_channel=prepared.pose_channel,
    )


def read_stored_record(folder: Path) -> Record | None:
    """Read the record in a case's folder; None if it is missing, of another version or damaged."""
    try:
        record = RECORD_ADAPTER.validate_json(read_text(folder / "record.json", "a record"))
    except (InputError, ValidationError):
        return None
    depth = record.shape[0]
    is_consistent = len({len(shows_labels) for shows_labels in record.presence}) == 1
    is_consistent &= record.arrays.keys() == {f"{name}.b2nd" for name in array_names(record.channels)}
    is_consistent &= record.pose_channel < record.channels
    return record if is_consistent and len(record.presence) == len(record.body_fraction) == depth else None


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))
