"""The series that a label map belongs to, as DICOM objects have to refer to it."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.archive import is_archive, unpacked
from isopose.io.dicom import ordered_frames
from isopose.io.dicom_results.copied import EMPTY, IMAGE, SHARED, copied, uid_in
from isopose.io.quiet import quiet_pydicom

#: What the objects say of who made them; the standard wants a serial number, which software has not.
MANUFACTURER, MODEL_NAME, SERIAL = "isopose authors", "isopose", "0"
#: By these a result is tied to its series.
_TIES = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
#: By modality: the classes of one slice, and of several in one file.
_CLASSES = {
    "CT": (CTImageStorage, EnhancedCTImageStorage),
    "MR": (MRImageStorage, EnhancedMRImageStorage),
    "PT": (PositronEmissionTomographyImageStorage, EnhancedPETImageStorage),
}


@dataclass(frozen=True, eq=False)
class Source:
    """What results say of their series, and which of its files shows which slice of the volume.

    Args:
        shared: what a result has in common with its series: the valid elements of patient and study, and the
            identifiers of study and frame of reference.
        series: the series instance UID.
        headers: for each file, in the order of the slices, ``SOPClassUID`` and ``SOPInstanceUID`` alone.
        files: for each slice ``(z,)`` which of the headers is its file's.
        frames: for each slice ``(z,)`` its place in that file, from 0.
        thickness: nominal thickness of a slice in mm.
        warnings: for the user, one line each; they name elements, and never hold what is in them.
        image: valid elements of the first file's image that a segmentation repeats.
    """

    shared: Dataset
    series: str
    headers: list[Dataset]
    files: np.ndarray
    frames: np.ndarray
    thickness: float
    warnings: tuple[str, ...] = ()
    image: Dataset = field(default_factory=Dataset)

    @property
    def multi_frame(self) -> bool:
        """Whether one file holds several slices (enhanced CT)."""
        return len(self.headers) < len(self.files) or bool(self.frames.any())

    def instance(self, z: int | None = None, *, file: int = 0) -> Dataset:
        """An item that refers to a file, or to the file and the frame that show a slice.

        Args:
            z: slice of the volume; None: ``file`` as a whole.
            file: index among the headers.
        """
        header = self.headers[file if z is None else self.files[z]]
        item = Dataset()
        item.ReferencedSOPClassUID = header.SOPClassUID
        item.ReferencedSOPInstanceUID = header.SOPInstanceUID
        if z is not None and self.multi_frame:
            item.ReferencedFrameNumber = int(self.frames[z]) + 1
        return item

    def instances(self) -> list[Dataset]:
        """An item for each file."""
        return [self.instance(file=file) for file in range(len(self.headers))]


@quiet_pydicom()
def open_source(path: Path, series: str | None, volume: Volume) -> Source:
    """The series that a volume was read from.

    Of a file's header only what results need is taken, and only where it is valid; what is not is left out
    and named in a warning.

    Args:
        path: as given to ``read_series``.
        series: likewise.
        volume: what was read, or labels on its grid.

    Raises:
        InputError: as ``read_series``; the files lack their own identifiers, share one, or changed.
    """
    if is_archive(path):
        with unpacked(path) as folder:
            return open_source(folder, series, volume)
    frames = ordered_frames(path, series)
    if len(frames) != len(volume.array):
        raise InputError(f"{path}: expected {len(volume.array)} slices, found {len(frames)}; it has changed")
    paths = list(dict.fromkeys(frame.path for frame in frames))
    identified = [_identified(file, frames[0].modality, len(frames) > len(paths)) for file in paths]
    headers = [header for header, _ in identified]
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise InputError(
            f"{path}: expected a SOPInstanceUID of its own in each file, but several have one in common, by "
            "which no DICOM result can name a slice; write NIfTI, or export the series from its archive again"
        )
    missing = sorted({name for _, names in identified for name in names})
    first = _read(paths[0])
    shared, invalid = copied(first, SHARED)
    image, invalid_too = copied(first, IMAGE)
    ties = {name: uid_in(first, name) for name in _TIES}
    stripped = [name for name in _TIES if not ties[name]]
    for name in stripped:
        ties[name] = uid_of([header.SOPInstanceUID for header in headers], name)
    odd = [name for name in _TIES if not UID(ties[name]).is_valid]
    odd += [one.keyword for header in headers for one in header if not UID(one.value).is_valid]
    for name in EMPTY:
        if name not in shared:
            setattr(shared, name, "")
    shared.StudyInstanceUID, shared.FrameOfReferenceUID = (
        ties["StudyInstanceUID"],
        ties["FrameOfReferenceUID"],
    )
    places = {file: number for number, file in enumerate(paths)}
    return Source(
        shared,
        ties["SeriesInstanceUID"],
        headers,
        np.array([places[frame.path] for frame in frames]),
        np.array([frame.index for frame in frames]),
        _thickness(frames[0].thickness, volume),
        tuple(_warnings([*stripped, *missing], dict.fromkeys(odd), [*invalid, *invalid_too])),
        image,
    )


def _warnings(made_up: Iterable[str], kept: Iterable[str], invalid: Iterable[str]) -> Iterator[str]:
    if names := ", ".join(made_up):
        yield (
            f"the series has no usable {names}: the DICOM results name one that was made up, by which no "
            "archive can file them with it"
        )
    if names := ", ".join(kept):
        yield (
            "not valid in the series, and kept as it is in the DICOM results, which an archive may therefore "
            f"refuse: {names}"
        )
    if names := ", ".join(invalid):
        yield f"not valid in the series, and left empty or out in the DICOM results: {names}"


def _thickness(nominal: float | None, volume: Volume) -> float:
    """Of a slice in mm; where the header gives none, the distance between slices."""
    if nominal is not None and math.isfinite(nominal) and nominal > 0:
        return float(nominal)
    return float(volume.spacing[2])


def _read(file: Path, names: list[str] | None = None) -> Dataset:
    try:
        return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=names)
    except Exception:  # pydicom raises whatever a damaged element leads to
        raise InputError(
            f"{file}: its header cannot be read as a whole, which a DICOM result needs; write NIfTI, or "
            "export the series from its archive again"
        ) from None


def _identified(file: Path, modality: str, several: bool) -> tuple[Dataset, list[str]]:
    """A file's class and identifier, and the names of those that it does not give in a way to refer to."""
    header, out, missing = _read(file, ["SOPClassUID", "SOPInstanceUID"]), Dataset(), []
    # Stripped from the header by some anonymisers, and left in the file's own.
    meta = getattr(header, "file_meta", None) or Dataset()
    for name in ("SOPClassUID", "SOPInstanceUID"):
        uid = uid_in(header, name) or uid_in(meta, f"MediaStorage{name}")
        if not uid:
            missing.append(name)
            uid = _class_of(modality, several) if name == "SOPClassUID" else _instance_of(file, header)
        setattr(out, name, uid)
    return out, missing


def _class_of(modality: str, several: bool) -> str:
    plain, enhanced = _CLASSES.get(modality, _CLASSES["CT"])
    return enhanced if several else plain


def _instance_of(file: Path, header: Dataset) -> str:
    if not getattr(header.get_item("SOPInstanceUID"), "value", None):
        raise InputError(
            f"{file}: expected SOPInstanceUID, which a DICOM result has to name; write NIfTI, or export the "
            "series from its archive again"
        )
    return uid_of([hashlib.sha256(file.read_bytes()).hexdigest()], "SOPInstanceUID")


def uid_of(made_from: list[str], what: str) -> str:
    """An identifier that is the same for the same result, so that an archive does not keep it twice.

    Args:
        made_from: hashes of all that decides the result.
        what: which object, or which part of it.
    """
    uid: str = generate_uid(entropy_srcs=[*made_from, what])
    return uid
