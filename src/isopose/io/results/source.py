"""The DICOM series of a label map, in the form in which results refer to it."""

import hashlib
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
from isopose.io.dicom_files import file_meta_of
from isopose.io.quiet import quiet_pydicom
from isopose.io.results.copied import COMPRESSION, PATIENT_AND_STUDY, TYPE_2, copy_valid, uid_in

#: Manufacturer, model and serial number of the results; the standard requires a serial number.
MANUFACTURER, MODEL_NAME, SERIAL_NUMBER = "isopose authors", "isopose", "0"
#: UIDs that connect a result to its series.
_LINKING_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
#: By modality: storage classes of single-frame and of multi-frame files.
_CLASSES = {
    "CT": (CTImageStorage, EnhancedCTImageStorage),
    "MR": (MRImageStorage, EnhancedMRImageStorage),
    "PT": (PositronEmissionTomographyImageStorage, EnhancedPETImageStorage),
}


@dataclass(frozen=True, eq=False)
class Source:
    """A DICOM series as its results refer to it, and the file of each slice.

    Args:
        shared: elements that a result has in common with its series: the valid elements of patient and study,
            and the UIDs of study and frame of reference.
        series: the series instance UID.
        headers: for each file, in the order of the slices, ``SOPClassUID`` and ``SOPInstanceUID`` only.
        files: for each slice ``(z,)`` the index of its file in ``headers``.
        frames: for each slice ``(z,)`` the index of its frame in that file, from 0.
        thickness: nominal slice thickness in mm.
        warnings: for the user, one line each; they name elements but never contain their values.
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
        """Return an item that refers to a file, or to the file and frame of a slice.

        Args:
            z: slice of the volume; None refers to ``file`` as a whole.
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
        """Return an item for each file."""
        return [self.instance(file=file) for file in range(len(self.headers))]


@quiet_pydicom()
def open_source(path: Path, series: str | None, volume: Volume) -> Source:
    """Return the series that a volume was read from.

    Only valid header elements that results need are copied; invalid ones are left out and named in a warning.

    Args:
        path: as given to ``read_series``.
        series: as given to ``read_series``.
        volume: the volume that was read, or labels on its grid.

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
    identified = [_read_uids(file, frames[0].modality, len(frames) > len(paths)) for file in paths]
    headers = [header for header, _ in identified]
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise InputError(
            f"{path}: expected a SOPInstanceUID of its own in each file, but several have one in common, by "
            "which no DICOM result can name a slice; write NIfTI, or export the series from its archive again"
        )
    missing = sorted({name for _, names in identified for name in names})
    first = _read(paths[0])
    shared, invalid = copy_valid(first, PATIENT_AND_STUDY)
    image, invalid_too = copy_valid(first, COMPRESSION)
    uids = {name: uid_in(first, name) for name in _LINKING_UIDS}
    generated = [name for name in _LINKING_UIDS if not uids[name]]
    for name in generated:
        uids[name] = uid_of([header.SOPInstanceUID for header in headers], name)
    nonstandard = [name for name in _LINKING_UIDS if not UID(uids[name]).is_valid]
    nonstandard += [one.keyword for header in headers for one in header if not UID(one.value).is_valid]
    for name in TYPE_2:
        if name not in shared:
            setattr(shared, name, "")
    shared.StudyInstanceUID = uids["StudyInstanceUID"]
    shared.FrameOfReferenceUID = uids["FrameOfReferenceUID"]
    file_indices, thickness = {file: number for number, file in enumerate(paths)}, frames[0].thickness
    return Source(
        shared,
        uids["SeriesInstanceUID"],
        headers,
        np.array([file_indices[frame.path] for frame in frames]),
        np.array([frame.index for frame in frames]),
        # The distance of the slices if the header has no thickness.
        thickness if thickness is not None and thickness > 0 else float(volume.spacing[2]),
        tuple(_warnings([*generated, *missing], dict.fromkeys(nonstandard), [*invalid, *invalid_too])),
        image,
    )


def _warnings(generated: Iterable[str], nonstandard: Iterable[str], invalid: Iterable[str]) -> Iterator[str]:
    if names := ", ".join(generated):
        yield (
            f"the series has no usable {names}: the DICOM results contain a generated one, so an archive "
            "cannot file them with the series"
        )
    if names := ", ".join(nonstandard):
        yield (
            "not valid in the series and kept unchanged in the DICOM results, which an archive may therefore "
            f"refuse: {names}"
        )
    if names := ", ".join(invalid):
        yield f"not valid in the series, and left empty or out in the DICOM results: {names}"


def _read(file: Path, names: list[str] | None = None) -> Dataset:
    try:
        return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=names)
    except Exception:  # pydicom raises many types of error for damaged elements
        raise InputError(
            f"{file}: its header cannot be read completely, as DICOM results require; write NIfTI, or "
            "export the series from its archive again"
        ) from None


def _read_uids(file: Path, modality: str, several: bool) -> tuple[Dataset, list[str]]:
    """Return a file's SOP class and instance UID, and the names of those missing or unusable in it."""
    header, uids, missing = _read(file, ["SOPClassUID", "SOPInstanceUID"]), Dataset(), []
    # Some anonymizers remove the UIDs from the data set but leave them in the file meta information.
    meta = file_meta_of(header)
    for name in ("SOPClassUID", "SOPInstanceUID"):
        uid = uid_in(header, name) or uid_in(meta, f"MediaStorage{name}")
        if not uid:
            missing.append(name)
            uid = _default_class(modality, several) if name == "SOPClassUID" else _generated_uid(file, header)
        setattr(uids, name, uid)
    return uids, missing


def _default_class(modality: str, several: bool) -> str:
    plain, enhanced = _CLASSES.get(modality, _CLASSES["CT"])
    return enhanced if several else plain


def _generated_uid(file: Path, header: Dataset) -> str:
    if not getattr(header.get_item("SOPInstanceUID"), "value", None):
        raise InputError(
            f"{file}: expected SOPInstanceUID, to which DICOM results refer; write NIfTI, or export the "
            "series from its archive again"
        )
    return uid_of([hashlib.sha256(file.read_bytes()).hexdigest()], "SOPInstanceUID")


def uid_of(made_from: list[str], what: str) -> str:
    """Return a UID that depends only on its arguments, so that an archive stores equal results once."""
    return generate_uid(entropy_srcs=[*made_from, what])
