"""Read NIfTI-1 and NIfTI-2 files.

nibabel unpacks the header. Its own check is not used, because it changes fields and logs their former values.
SimpleITK reads truncated files without an error, filled with uninitialized memory, and takes the voxel size
from ``pixdim`` even if the sform differs. Therefore what nibabel unpacks and the length of the voxel data are
checked here, after the NIfTI-1 and NIfTI-2 standards (nifti1.h, nifti2.h). If readers disagree about a field
(``vox_offset`` inside the header, a negative ``pixdim``), nibabel's reading is used, or the file is refused.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from isopose import scratch
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.header import check_grid, checked_volume
from isopose.io.limits import largest_bytes
from isopose.io.nifti_place import world_from_index

#: Length in bytes of the mark after a header that announces extensions, and minimum length of an extension
#: (its own length and code).
_EXTENDER_BYTES, _MIN_EXTENSION_BYTES = 4, 16
_MAX_EXTENSIONS = 10_000
#: Possible codes of extensions (nifti1.h); they are even.
_EXTENSION_CODES = range(0, 100, 2)
#: A deflated byte can stand for no more than this many bytes; a header that claims more is damaged.
_DEFLATE_LIMIT = 1032


@dataclass(frozen=True, eq=False)
class _Layout:
    """Grid and type of a file's voxels, and how they are stored.

    Args:
        shape: array shape ``(z, y, x)``.
        world_from_index: ``lps_from_index`` ``(4, 4)``, mm.
        dtype: of the voxels after scaling.
        stored: of the voxels in the file, with its byte order.
        offset: byte at which the voxels begin.
        scaling: slope and intercept; None if the values are used as stored.
    """

    shape: tuple[int, int, int]
    world_from_index: np.ndarray
    dtype: np.dtype
    stored: np.dtype
    offset: int
    scaling: tuple[float, float] | None


def read_nifti(path: Path) -> Volume:
    """Read a ``.nii`` or ``.nii.gz`` file with three dimensions.

    The grid comes from the sform if its code is set, else from the qform, as in the standard and nibabel. If
    both are set they must agree to within a voxel. A sheared sform is replaced by the qform if no voxel moves
    by more than 0.5 mm. Integers keep their type, all else becomes float32.

    Raises:
        InputError: the file is not NIfTI, truncated, corrupt or not 3D; has color or complex voxels; has no
            orientation or a contradictory one; has a unit other than mm; is sheared; its voxels begin inside
            the header or an extension; it has a slope without an intercept; or values are not finite.
    """
    with _open(path) as file:
        layout = _read_layout(path, file)
        array = stored = _read_voxels(path, file, layout)
    if stored.dtype != layout.dtype or layout.scaling:
        array = scratch.zeros(stored.shape, layout.dtype)
        # Overflow of float32 becomes infinite, which is refused below.
        with np.errstate(over="ignore", invalid="ignore"):
            for plane, source in zip(array, stored, strict=True):
                if layout.scaling:
                    # In float64, since float32 products of large integers would be off by whole units.
                    source = source.astype(np.float64) * layout.scaling[0] + layout.scaling[1]
                plane[...] = source
    return checked_volume(path, array, layout.world_from_index)


def is_complete(path: Path) -> bool:
    """Return whether a NIfTI file holds all voxels announced by its header, with a valid checksum if packed.

    ITK's NIfTI writer reports no error if the disk is full, so written files have to be checked.
    """
    try:
        with _open(path) as file:
            _read_voxels(path, file, _read_layout(path, file))
    except (OSError, InputError):
        return False
    return True


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed if it is gzip.

    Raises:
        InputError: the file is truncated or corrupt; the message omits the bytes that gzip's message quotes.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        why = str(error)
        if isinstance(error, gzip.BadGzipFile) and why.startswith("Not a gzipped file"):
            why = "bytes that are not gzip's follow its compressed data"
        raise InputError(f"{path}: truncated or corrupt ({why}); copy or download it again") from None


def _read_layout(path: Path, file: IO[bytes]) -> _Layout:
    raw = file.read(Nifti2Header.single_vox_offset)
    header = _parse_header(raw)
    if header is None:
        raise InputError(f"{path}: expected a NIfTI file, but its header is not one; copy or export it again")
    if not header["magic"].item().startswith((b"n+1", b"n+2")):
        raise InputError(
            f"{path}: expected a single NIfTI file (.nii), but its header is not one's; export it as .nii.gz"
        )
    # Not nibabel's get_data_shape, which interprets some sizes as FreeSurfer surfaces.
    rank, *extent = header["dim"].tolist()
    extent = extent[: max(rank, 0)]
    if not 1 <= rank <= 7 or min(extent) < 1:
        raise InputError(
            f"{path}: dimensions {header['dim'].tolist()} are not possible; the header is damaged"
        )
    if rank < 3 or max(extent[3:], default=1) > 1:
        raise InputError(
            f"{path}: expected one 3D volume, got {' x '.join(map(str, extent))}; "
            "split time points or channels into one file each"
        )
    stored, scaling = _stored_dtype(path, header), _scaling(path, header)
    # Integers keep their type, all else becomes float32.
    dtype = np.dtype(np.float32) if scaling or stored.kind == "f" else stored.newbyteorder("=")
    offset = _voxel_offset(path, file, header, raw)
    matrix = world_from_index(path, header, extent[:3])
    shape = (extent[2], extent[1], extent[0])
    check_grid(path, shape, matrix, dtype)
    return _Layout(shape, matrix, dtype, stored, offset, scaling)


def _parse_header(raw: bytes) -> Nifti1Header | None:
    """Return the header that bytes begin with, if its first field is its own length.

    nibabel would guess the byte order from the number of dimensions, which may be damaged.
    """
    for kind, order in product((Nifti1Header, Nifti2Header), "<>"):
        if len(raw) >= kind.sizeof_hdr:
            header = kind(raw[: kind.sizeof_hdr], order, check=False)
            if header["sizeof_hdr"] == kind.sizeof_hdr:
                return header
    return None


def _stored_dtype(path: Path, header: Nifti1Header) -> np.dtype:
    """Return the type of the stored numbers, in their byte order."""
    try:
        stored = header.get_data_dtype()
    except KeyError:  # a code that the standard does not have
        stored = np.dtype(np.void)
    if stored.kind not in "iuf" or stored.itemsize > 8:
        raise InputError(
            f"{path}: expected one real number per voxel, got NIfTI type {header['datatype']} "
            "(color, complex or extended); export it as int16 or float32"
        )
    return stored


def _scaling(path: Path, header: Nifti1Header) -> tuple[float, float] | None:
    """Return slope and intercept; None if they change nothing or the slope is 0, NaN or infinity."""
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError:
        raise InputError(
            f"{path}: the header scales its values by {header['scl_slope']:g}, but its intercept (scl_inter) "
            "is not a number; export it again"
        ) from None
    return None if slope is None or (slope, inter) == (1, 0) else (slope, inter)


def _voxel_offset(path: Path, file: IO[bytes], header: Nifti1Header, raw: bytes) -> int:
    """Return the byte at which the voxels begin, behind the header and its extensions.

    An offset of 0 means that it was never set: the voxels then follow the header.

    Raises:
        InputError: the offset is not a whole number, or lies inside the header or an extension.
    """
    stated = header["vox_offset"].item()
    if not np.isfinite(stated) or stated != int(stated):
        raise InputError(
            f"{path}: the voxels' place in the file (vox_offset) is not a whole number; the header is damaged"
        )
    offset, least = int(stated), header.single_vox_offset
    extended = raw[least - _EXTENDER_BYTES : least - _EXTENDER_BYTES + 1] not in (b"", b"\0")
    if offset == 0 and not extended:
        return least
    if offset < least:
        raise InputError(
            f"{path}: its voxels are said to begin at byte {offset}, inside the header of {least} bytes; "
            "export it again"
        )
    if extended:
        _check_extensions(path, file, least, offset, header.endianness)
    return offset


def _check_extensions(path: Path, file: IO[bytes], start: int, end: int, order: str) -> None:
    """Refuse extensions that reach beyond the byte where the voxels begin."""
    position = start
    for _ in range(_MAX_EXTENSIONS):
        if position + _MIN_EXTENSION_BYTES > max(end, start + _MIN_EXTENSION_BYTES):
            return
        file.seek(position)
        numbers = np.frombuffer(file.read(8), f"{order}i4")
        length, code = (int(n) for n in numbers) if len(numbers) == 2 else (0, 0)
        if length == 0:
            return  # only zeros before the voxels
        if start == end and (length < _MIN_EXTENSION_BYTES or length % 16 or code not in _EXTENSION_CODES):
            return  # voxels: some tools set the mark without an extension
        if length < _MIN_EXTENSION_BYTES or position + length > end:
            break
        position += length
    raise InputError(
        f"{path}: the header's extensions reach beyond byte {end}, where its voxels are said to begin; "
        "export it again"
    )


def _read_voxels(path: Path, file: IO[bytes], layout: _Layout) -> np.ndarray:
    """Return the voxels ``(z, y, x)`` as stored, after reading the file to its end to verify the checksum.

    Raises:
        EOFError: fewer bytes than the header announces, or far more.
    """
    size = math.prod(layout.shape) * layout.stored.itemsize
    if layout.offset + size > path.stat().st_size * _DEFLATE_LIMIT:
        raise EOFError(f"the header promises {size} bytes of voxels")
    file.seek(layout.offset)
    array = scratch.zeros(layout.shape, layout.stored)
    view = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    filled = 0
    while filled < size:
        read = file.readinto(view[filled : filled + (1 << 24)])  # type: ignore[attr-defined]
        if not read:
            raise EOFError(f"{filled} of {size} bytes of voxels are there")
        filled += read
    # Read to the end, where gzip stores its checksum.
    bytes_left = largest_bytes()
    while part := file.read(1 << 20):
        bytes_left -= len(part)
        if bytes_left < 0:
            raise EOFError("more follows its voxels than the largest scan has")
    return array
