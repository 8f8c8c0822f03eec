"""The series that a label map belongs to, as DICOM objects have to refer to it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.archive import is_archive, unpacked
from isopose.io.dicom import ordered_frames
from isopose.io.quiet import quiet_pydicom

#: What the objects say of who made them; the standard wants a serial number, which software has not.
MANUFACTURER, MODEL_NAME, SERIAL = "isopose authors", "isopose", "0"
#: UTF-8: a label's name may be in another script than the patient's.
CHARACTERS = "ISO_IR 192"
#: By these a result is tied to its series.
_TIES = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
#: Of these the standard wants an entry, be it empty.
_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)


@dataclass(frozen=True, eq=False)
class Source:
    """A series' headers, and which of them shows which slice of the volume.

    Args:
        headers: one of each file, without pixels, in the order of the slices.
        files: for each slice ``(z,)`` which of the headers is its file's.
        frames: for each slice ``(z,)`` its place in that file, from 0.
        warnings: for the user, one line each.
    """

    headers: list[Dataset]
    files: np.ndarray
    frames: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def multi_frame(self) -> bool:
        """Whether one file holds several slices (enhanced CT)."""
        return len(self.headers) < len(self.files)


def open_source(path: Path, series: str | None, volume: Volume) -> Source:
    """The series that a volume was read from.

    Args:
        path: as given to ``read_series``.
        series: likewise.
        volume: what was read, or labels on its grid.

    Raises:
        InputError: as ``read_series``; the files lack their own identifiers, or changed.
    """
    if is_archive(path):
        with unpacked(path) as folder:
            return open_source(folder, series, volume)
    frames = ordered_frames(path, series)
    if len(frames) != len(volume.array):
        raise InputError(f"{path}: expected {len(volume.array)} slices, found {len(frames)}; it has changed")
    paths = list(dict.fromkeys(frame.path for frame in frames))
    headers = [_header(file) for file in paths]
    stripped = [name for name in _TIES if not headers[0].get(name)]
    if stripped:
        made_up = {name: uid_of([header.SOPInstanceUID for header in headers], name) for name in stripped}
        for header in headers:
            for name, uid in made_up.items():
                setattr(header, name, uid)
    warnings = [
        f"the series was stripped of its {name}: the DICOM results name one that was made up, by which no "
        "archive can file them with it"
        for name in stripped[:1]
    ]
    places = {file: number for number, file in enumerate(paths)}
    return Source(
        headers,
        np.array([places[frame.path] for frame in frames]),
        np.array([frame.index for frame in frames]),
        tuple(warnings),
    )


def _header(file: Path) -> Dataset:
    with quiet_pydicom():
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    for name in ("SOPClassUID", "SOPInstanceUID"):
        if not header.get(name):
            # Stripped from the header by some anonymisers, and left in the file's own.
            uid = header.file_meta.get(f"MediaStorage{name}") if hasattr(header, "file_meta") else None
            if not uid:
                raise InputError(
                    f"{file}: expected {name}, which a DICOM result has to name; write NIfTI, or export the "
                    "series from its archive again"
                )
            setattr(header, name, uid)
    for name in _EMPTY:
        if name not in header:
            setattr(header, name, "")
    return header


def uid_of(made_from: list[str], what: str) -> str:
    """An identifier that is the same for the same result, so that an archive does not keep it twice.

    Args:
        made_from: hashes of all that decides the result.
        what: which object, or which part of it.
    """
    uid: str = generate_uid(entropy_srcs=[*made_from, what])
    return uid
