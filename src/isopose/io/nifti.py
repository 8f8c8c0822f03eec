"""NIfTI-1 and NIfTI-2 files, read by their own header.

SimpleITK writes NIfTI well but reads it leniently: a truncated file comes back filled with whatever was in
memory, without an error, and the voxel size is taken from ``pixdim`` even where the sform says otherwise.
Both would be a silent error here, so the header, the affine and the length of the voxel data are read and
checked by us. Field names and rules are those of the NIfTI-1 and NIfTI-2 standards (nifti1.h, nifti2.h);
where readers disagree about a field (``vox_offset`` inside the header, a negative ``pixdim``), what nibabel
takes is taken, or the file is refused.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from isopose import scratch
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.header import Header, all_finite, on_file
from isopose.io.limits import largest_bytes
from isopose.io.nifti_place import world_from_index

#: Name, format and byte offset of the fields in use.
_Layout = list[tuple[str, Any, int]]
_NIFTI1: _Layout = [
    ("size", "i4", 0),
    ("dim", ("i2", 8), 40),
    ("type", "i2", 70),
    ("pixdim", ("f4", 8), 76),
    ("offset", "f4", 108),
    ("slope", "f4", 112),
    ("inter", "f4", 116),
    ("units", "u1", 123),
    ("qcode", "i2", 252),
    ("scode", "i2", 254),
    ("quatern", ("f4", 3), 256),
    ("qoffset", ("f4", 3), 268),
    ("srow", ("f4", (3, 4)), 280),
    ("magic", "S4", 344),
]
_NIFTI2: _Layout = [
    ("size", "i4", 0),
    ("magic", "S4", 4),
    ("type", "i2", 12),
    ("dim", ("i8", 8), 16),
    ("pixdim", ("f8", 8), 104),
    ("offset", "i8", 168),
    ("slope", "f8", 176),
    ("inter", "f8", 184),
    ("qcode", "i4", 344),
    ("scode", "i4", 348),
    ("quatern", ("f8", 3), 352),
    ("qoffset", ("f8", 3), 376),
    ("srow", ("f8", (3, 4)), 400),
    ("units", "i4", 500),
]
_LENGTHS = {348: _NIFTI1, 540: _NIFTI2}
#: Bytes after a header that say whether extensions follow, and the least that one has: its length and code.
_MARK, _EXTENSION = 4, 16
_MOST_EXTENSIONS = 10_000
#: Codes of extensions that are known or will be (nifti1.h); they are even.
_CODES = range(0, 100, 2)
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
#: A deflated byte can stand for no more than this many bytes; a header that claims more is damaged.
_DEFLATE_LIMIT = 1032


@dataclass(frozen=True, eq=False)
class _Fields:
    """The part of a NIfTI header that is needed, whatever its version and byte order."""

    shape: tuple[int, int, int]
    stored: np.dtype
    offset: int
    slope: float
    inter: float
    world_from_index: np.ndarray

    @property
    def scaled(self) -> bool:
        """Whether the stored numbers are not the values themselves (a slope of 0 means: no scaling)."""
        return self.slope != 0 and (self.slope != 1 or self.inter != 0)

    @property
    def dtype(self) -> np.dtype:
        """Type after scaling: integers stay what they are, all else becomes float32."""
        return (
            np.dtype(np.float32) if self.scaled or self.stored.kind == "f" else self.stored.newbyteorder("=")
        )


def peek_nifti(path: Path) -> Header:
    """Grid and type of a ``.nii`` or ``.nii.gz`` file, without its voxels.

    Raises:
        InputError: as :func:`read_nifti`, except for what only the voxels can show.
    """
    with _opened(path) as file:
        fields = _fields(path, file)
    return Header(fields.shape, fields.world_from_index, fields.dtype).checked(path)


def read_nifti(path: Path) -> Volume:
    """Read a ``.nii`` or ``.nii.gz`` file of three dimensions.

    The grid comes from the sform where its code is set, else from the qform, as the standard and nibabel have
    it; where both are set they must agree to within a voxel. A sform that is not at right angles is passed
    over where the qform puts every voxel within 0.5 mm of it. Integers keep their type, all else is float32.

    Raises:
        InputError: not NIfTI, truncated or corrupt, not 3D, colour or complex voxels, no orientation in the
            header or two that contradict each other, a unit other than mm, sheared, voxels that begin inside
            the header or an extension, a slope without an intercept, or non-finite values.
    """
    try:
        with _opened(path) as file:
            fields = _fields(path, file)
            Header(fields.shape, fields.world_from_index, fields.dtype).checked(path)
            stored = _voxels(path, file, fields)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from None
    array = stored
    if fields.scaled or stored.dtype != fields.dtype:
        array, as_stored = scratch.zeros(fields.shape, fields.dtype), not fields.scaled
        # What float32 cannot hold becomes infinite and is refused.
        with np.errstate(over="ignore", invalid="ignore"):
            for plane, source in zip(array, stored, strict=True):
                # In float64 and back: float32 products of large integers would lose whole units.
                plane[...] = source if as_stored else source.astype(np.float64) * fields.slope + fields.inter
    if not all_finite(array):
        raise InputError(
            f"{path}: holds values that are not finite (NaN or infinity); repair or export it again"
        )
    return on_file(path, array, fields.world_from_index)


def is_whole(path: Path) -> bool:
    """Whether a NIfTI file holds every voxel that its header promises, with the right checksum if packed.

    ITK's NIfTI writer tells its caller nothing when the disk is full, so whoever writes has to look.
    """
    try:
        with _opened(path) as file:
            fields = _fields(path, file)
            wanted = int(np.prod(fields.shape, dtype=np.int64)) * fields.stored.itemsize
            file.seek(fields.offset)
            while part := file.read(1 << 20):
                wanted -= len(part)
            return wanted <= 0
    except (OSError, EOFError, zlib.error, InputError):
        return False


def _damaged(path: Path, error: Exception) -> InputError:
    """The line for a file that cannot be read to its end, without the bytes that the library quotes."""
    if isinstance(error, gzip.BadGzipFile) and str(error).startswith("Not a gzipped file"):
        error = EOFError("bytes that are not gzip's follow its packed data")
    return InputError(f"{path}: truncated or corrupt ({error}); copy or download it again")


def _opened(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]


def _fields(path: Path, file: IO[bytes]) -> _Fields:
    try:
        raw = file.read(max(_LENGTHS))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from None
    found = _header(raw)
    if found is None:
        raise InputError(f"{path}: expected a NIfTI file, but its header is not one; copy or export it again")
    header, order = found
    if not header["magic"].startswith((b"n+1", b"n+2")):
        raise InputError(
            f"{path}: expected a single NIfTI file (.nii), but its header is not one's; export it as .nii.gz"
        )
    rank = int(header["dim"][0])
    extent = [int(n) for n in header["dim"][1 : rank + 1]] if 1 <= rank <= 7 else []
    if any(n < 1 for n in extent) or not extent:
        raise InputError(
            f"{path}: dimensions {header['dim'].tolist()} are not possible; the header is damaged"
        )
    if len(extent) < 3 or any(n > 1 for n in extent[3:]):
        raise InputError(
            f"{path}: expected one 3D volume, got {' x '.join(map(str, extent))}; "
            "split time points or channels into one file each"
        )
    kind = _TYPES.get(int(header["type"]))
    if kind is None:
        raise InputError(
            f"{path}: expected one real number per voxel, got NIfTI type {int(header['type'])} "
            "(colour, complex or extended); export it as int16 or float32"
        )
    slope, inter = _scaling(path, header)
    return _Fields(
        shape=(extent[2], extent[1], extent[0]),
        stored=np.dtype(kind).newbyteorder(order),
        offset=_offset(path, file, header, raw, order),
        slope=slope,
        inter=inter,
        world_from_index=world_from_index(path, header, tuple(extent[:3])),
    )


def _scaling(path: Path, header: np.void) -> tuple[float, float]:
    """Slope and intercept, ``(1, 0)`` where the header has no valid slope: 0, NaN or infinity.

    Raises:
        InputError: a slope whose intercept is no number, of which no reader can know what was meant.
    """
    slope, inter = float(header["slope"]), float(header["inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise InputError(
            f"{path}: the header scales its values by {slope:g}, but what it adds (scl_inter) is not a "
            "number; export it again"
        )
    return slope, inter


def _offset(path: Path, file: IO[bytes], header: np.void, raw: bytes, order: Literal["<", ">"]) -> int:
    """The byte at which the voxels begin, behind the header and its extensions.

    An offset of 0 is one that was never set: the voxels follow the header.

    Raises:
        InputError: it is no whole number, or lies inside the header or an extension.
    """
    stated = float(header["offset"])
    if not np.isfinite(stated) or stated != int(stated):
        raise InputError(
            f"{path}: the voxels' place in the file (vox_offset) is not a whole number; the header is damaged"
        )
    least = int(header["size"]) + _MARK
    extended = len(raw) >= least and raw[least - _MARK] != 0
    if stated == 0 and not extended:
        return least
    offset = int(header["offset"])
    if offset < least:
        raise InputError(
            f"{path}: its voxels are said to begin at byte {offset}, inside the header of {least} bytes; "
            "export it again"
        )
    if extended:
        _check_extensions(path, file, least, offset, order)
    return offset


def _check_extensions(path: Path, file: IO[bytes], start: int, end: int, order: Literal["<", ">"]) -> None:
    """Refuse extensions that reach beyond the byte where the voxels are said to begin."""
    place = start
    for _ in range(_MOST_EXTENSIONS):
        if place + _EXTENSION > max(end, start + _EXTENSION):
            return
        try:
            file.seek(place)
            found = np.frombuffer(file.read(8), f"{order}i4")
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, error) from None
        length, code = (int(n) for n in found) if len(found) == 2 else (0, 0)
        if length == 0:
            return  # zeros up to the voxels
        if start == end and (length < _EXTENSION or length % 16 or code not in _CODES):
            return  # voxels, behind a mark that some tools set without an extension
        if length < _EXTENSION or place + length > end:
            break
        place += length
    raise InputError(
        f"{path}: the header's extensions reach beyond byte {end}, where its voxels are said to begin; "
        "export it again"
    )


def _header(raw: bytes) -> tuple[np.void, Literal["<", ">"]] | None:
    """The fields and their byte order, told from the header's own length, its first field."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        for length, layout in _LENGTHS.items():
            if len(raw) >= length and int(np.frombuffer(raw, f"{order}i4", 1)[0]) == length:
                names, formats, offsets = zip(*layout, strict=True)
                packed = np.dtype(
                    {"names": names, "formats": formats, "offsets": offsets, "itemsize": length}
                ).newbyteorder(order)
                return np.frombuffer(raw, packed, 1)[0], order
    return None


def _voxels(path: Path, file: IO[bytes], fields: _Fields) -> np.ndarray:
    count = int(np.prod(fields.shape, dtype=np.int64))
    wanted = count * fields.stored.itemsize
    last = fields.offset + wanted
    if fields.offset < 0 or last > path.stat().st_size * _DEFLATE_LIMIT:
        raise EOFError(f"the header promises {wanted} bytes of voxels")
    file.seek(fields.offset)
    array = scratch.zeros(fields.shape, fields.stored)
    view = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    filled = 0
    while filled < wanted:
        got = file.readinto(view[filled : filled + (1 << 24)])  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"{filled} of {wanted} bytes of voxels are there")
        filled += got
    # To the end, where gzip keeps its checksum.
    left = largest_bytes()
    while part := file.read(1 << 20):
        left -= len(part)
        if left < 0:
            raise EOFError("more follows its voxels than the largest scan has")
    return array
