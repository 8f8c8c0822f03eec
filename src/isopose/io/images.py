"""Read and write image files: NIfTI, NRRD, MetaImage and DICOM as validated volumes."""

import gzip
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike

from isopose import scratch
from isopose.choices import Modality
from isopose.errors import InputError, IsoposeError
from isopose.files import replacing
from isopose.geometry.volume import Volume
from isopose.io.archive import is_archive, unpacked
from isopose.io.dicom import read_series
from isopose.io.dicom_files import is_dicom
from isopose.io.endings import READABLE, ending
from isopose.io.header import check_grid, checked_volume
from isopose.io.itk_header import check_fields, check_files, read_text_header
from isopose.io.nifti import read_nifti
from isopose.io.nifti_place import LPS_FROM_RAS
from isopose.io.quiet import itk_name, quiet_itk, reports_damage

#: Extensions of formats that can be written; each is a single file, so a result is whole or absent.
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
#: Maximum distance from a whole number at which a label is rounded.
LABEL_TOLERANCE = 1e-3
#: Rounding error of float32 for values up to 255.
_EPSILON = 256 * float(np.finfo(np.float32).eps)
#: zlib's compression level: CT becomes as small as at higher levels, in a third of the time.
_COMPRESSION_LEVEL = 3
_DTYPES = {
    # A channel axis of length one is read as a vector with one component.
    getattr(sitk, f"sitk{vector}{name}"): dtype
    for vector in ("", "Vector")
    for name, dtype in (
        *(("UInt8", np.uint8), ("Int8", np.int8), ("UInt16", np.uint16), ("Int16", np.int16)),
        *(("UInt32", np.uint32), ("Int32", np.int32), ("UInt64", np.uint64), ("Int64", np.int64)),
        *(("Float32", np.float32), ("Float64", np.float32)),
    )
}
_READERS = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}


def read_volume(path: Path, series: str | None = None, *, modality: Modality | None = None) -> Volume:
    """Read a scan: NIfTI, NRRD, MetaImage, or DICOM (folder, ZIP archive, DICOMDIR or one file of a series).

    Args:
        path: file or folder.
        series: for DICOM, the series number or series instance UID, if a folder holds several series.
        modality: required modality, where the file states one (DICOM); None: any.

    Returns:
        Array ``(z, y, x)`` in stored order, integers in their own type (HU: int16), all else float32; with
            the affine in LPS millimeters.

    Raises:
        InputError: the input is missing, unreadable or truncated, is not one 3D volume with one number per
            voxel, is sheared, has no orientation, has values that are not finite, or (DICOM) is not one
            regular series or of another modality.
    """
    path = check_exists(path)
    if is_archive(path):
        with unpacked(path) as folder:
            return read_series(folder, series, modality)
    kind = ending(path)
    if path.is_dir() or (not kind and is_dicom(path)):
        return read_series(path, series, modality)
    if kind in (".nii", ".nii.gz"):
        return read_nifti(path)
    reader, shape, matrix, dtype = _open_reader(path)
    with quiet_itk() as messages:
        try:
            image = reader.Execute()
        except RuntimeError:
            # ITK's message may quote patient data from the header.
            raise InputError(f"{path}: truncated or corrupt; copy or export it again") from None
    if reports_damage(messages):
        raise InputError(f"{path}: truncated or corrupt (its voxels do not unpack); copy or export it again")
    array = scratch.zeros(shape, dtype)
    with np.errstate(over="ignore"):  # float32 overflow becomes infinite, which is refused below
        array[...] = sitk.GetArrayViewFromImage(image).reshape(shape)
    return checked_volume(path, array, matrix)


def read_labels(path: Path, like: Volume | None = None, note: Callable[[str], None] | None = None) -> Volume:
    """Read a label map as uint8.

    Args:
        path: a file of whole numbers from 0 to 255 in any type. Deviations up to 0.001 are rounded, because a
            scale factor in the header can turn 1 into 1.0000153.
        like: the image of the labels. The result then lies on exactly its grid: a difference up to a tenth of
            a voxel counts as rounding in the header, and a map stored in another axis order is reordered,
            which is exact.
        note: called with a message if numbers were rounded.

    Raises:
        InputError: see :func:`read_volume`; also values that are not whole or not in 0 to 255, or another
            grid.
    """
    volume = read_volume(path)
    low, high = volume.array.min(), volume.array.max()
    if np.rint(low) < 0 or np.rint(high) > 255:
        raise InputError(
            f"{path}: expected labels from 0 to 255, got values from {low} to {high}; is it the image?"
        )
    if volume.array.dtype.kind == "f":
        labels, max_distance = _round_labels(path, volume.array)
        if max_distance and note is not None:
            note(
                f"its labels are whole numbers only to within {max_distance:.2g} and were rounded; "
                "store them as integers without a scale factor"
            )
    else:
        labels = volume.array.astype(np.uint8)
    volume = volume.with_array(labels)
    return volume if like is None else on_image_grid(path, volume, like)


def _round_labels(path: Path, array: np.ndarray) -> tuple[np.ndarray, float]:
    """Return values from 0 to 255 as uint8, and the largest distance from a whole number."""
    labels, max_distance = scratch.zeros(array.shape, np.uint8), 0.0
    for plane, values in zip(labels, array, strict=True):
        rounded = np.rint(values)
        distance = np.abs(values - rounded)
        if distance.max() > LABEL_TOLERANCE + _EPSILON:
            example = values.flat[distance.argmax()]
            raise InputError(
                f"{path}: holds values that are not whole numbers, e.g. {example:g}: expected labels, which "
                "must be resampled by nearest neighbor"
            )
        plane[...] = rounded
        max_distance = max(max_distance, float(distance.max()))
    return labels, max_distance


def on_image_grid(path: Path, labels: Volume, image: Volume) -> Volume:
    """Return labels in the storage order and on the exact grid of their image; see :func:`read_labels`.

    Raises:
        InputError: the grids differ; the message names the labels' file.
    """
    tolerance = 0.1 * float(image.spacing.min())
    if labels.same_grid(image, tolerance):
        return image.with_array(labels.array)
    reoriented_labels, reoriented_image = labels.reoriented(), image.reoriented()
    if reoriented_labels.same_grid(reoriented_image, tolerance):
        return image.with_array(image.reorientation().undo(reoriented_labels.array))
    size, wanted = (" x ".join(map(str, v.array.shape[::-1])) for v in (labels, image))
    detail = f"{size} voxels, the image has {wanted}"
    if reoriented_labels.array.shape == reoriented_image.array.shape:
        distance = reoriented_labels.grid_distance(reoriented_image)
        detail = f"the same size, but voxels up to {distance:.2f} mm apart"
    raise InputError(f"{path}: does not lie on the image's grid ({detail}); export both on the same grid")


def write_labels(volume: Volume, path: Path) -> None:
    """Write a label map as compressed uint8 on the volume's exact grid; on failure no file is left.

    Args:
        volume: whole numbers 0 to 255.
        path: ends in one of :data:`WRITABLE`. NIfTI stores the geometry in float32, the others in float64.

    Raises:
        InputError: another extension.
        ValueError: values that uint8 cannot hold.
    """
    labels = volume.array.astype(np.uint8, copy=False)
    if labels is not volume.array and not np.array_equal(labels, volume.array):
        raise ValueError("labels to write must be whole numbers from 0 to 255")
    write_image(volume.with_array(labels), path)


def write_image(volume: Volume, path: Path) -> None:
    """Write a volume compressed, in its own type, on its exact grid; on failure no file is left.

    Raises:
        InputError: the extension is not in :data:`WRITABLE`.
        IsoposeError: the file cannot be written.
    """
    path = Path(path)
    if not path.name.lower().endswith(WRITABLE):
        raise InputError(f"{path}: cannot write this format, expected a name ending in {', '.join(WRITABLE)}")
    array = volume.array
    if array.dtype in (np.bool_, np.float16):
        array = array.astype(np.uint8 if array.dtype == np.bool_ else np.float32)
    volume = volume.with_array(array)
    try:
        with replacing(path) as temporary, quiet_itk():
            if ending(path) in (".nii", ".nii.gz"):
                _write_nifti(volume, temporary)
            else:
                sitk.WriteImage(to_sitk(volume), itk_name(temporary), useCompression=True)
    except (OSError, RuntimeError, HeaderDataError) as error:
        raise IsoposeError(f"{path}: cannot be written ({_last_line(error)})") from None


def _write_nifti(volume: Volume, path: Path) -> None:
    """Write a NIfTI file slice by slice.

    ITK and nibabel would copy the whole volume in memory, and ITK reports no error if the disk is full.
    """
    slices, most = len(volume.array), np.iinfo(np.int16).max
    if slices > most:
        raise OSError(f"NIfTI holds at most {most} slices, got {slices}; write .nrrd")
    header = Nifti1Header()
    header.set_data_shape(volume.array.shape[::-1])
    header.set_data_dtype(volume.array.dtype)
    ras_from_index = LPS_FROM_RAS @ volume.world_from_index  # its own inverse
    # Readers take the sform, which holds a slightly sheared scan too: its labels must lie on it.
    header.set_sform(ras_from_index, code=1)
    header.set_qform(ras_from_index, code=1)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(1, 0)
    header["regular"], header["pixdim"][4:] = b"r", 0  # as ITK writes them
    with (
        open(path, "wb") as raw,
        # Without a time stamp, the same volume always gives the same bytes.
        gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, raw, mtime=0)
        if ending(path) == ".nii.gz"
        else nullcontext(raw) as file,
    ):
        header.write_to(file)
        for plane in volume.array:
            file.write(np.ascontiguousarray(plane).data)


def to_sitk(volume: Volume) -> sitk.Image:
    """Return a volume as a SimpleITK image with its own type and exact grid."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array))
    image.SetSpacing(volume.spacing.tolist())
    image.SetOrigin(volume.origin.tolist())
    image.SetDirection(volume.direction.ravel().tolist())
    return image


def sitk_lps_from_index(header: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Return the ``(4, 4)`` matrix from the first three indices of an image to LPS millimeters.

    Args:
        header: an image, or a reader that has read the image's header; of at least three dimensions.
    """
    rank = header.GetDimension()
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(header.GetDirection()).reshape(rank, rank)[:3, :3] * header.GetSpacing()[:3]
    matrix[:3, 3] = header.GetOrigin()[:3]
    return matrix


def missing_message(path: Path) -> str:
    """Return the message for a path that does not exist."""
    if path.is_symlink():
        return f"{path}: is a broken link; fetch its file (git annex get, dvc pull) or repair the link"
    return f"{path}: no such file or folder"


def check_exists(path: Path) -> Path:
    """Return the path of a file or folder.

    Raises:
        InputError: the path does not exist, is neither a file nor a folder, or an empty file.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(missing_message(path))
    if not path.is_file() and not path.is_dir():  # a pipe or a device has no end, or never begins
        raise InputError(f"{path}: is neither a file nor a folder; give the scan's own file")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy or export it again")
    return path


def _open_reader(path: Path) -> tuple[sitk.ImageFileReader, tuple[int, int, int], np.ndarray, DTypeLike]:
    """Open a NRRD or MetaImage file and check its header.

    Returns:
        A reader of the voxels, the array shape ``(z, y, x)``, ``lps_from_index`` ``(4, 4)`` in mm, and the
        type of the volume's array.
    """
    kind = ending(path)
    if kind not in _READERS:
        raise InputError(
            f"{path}: not a format that can be read; expected a DICOM folder, ZIP or file, or "
            f"{', '.join(READABLE)}"
        )
    fields, rest = read_text_header(path, kind)
    check_files(path, fields, rest)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[kind])
    reader.SetFileName(itk_name(path))
    with quiet_itk():
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            raise InputError(
                f"{path}: its header or the files that it names cannot be read; copy or export it again"
            ) from None
    size, pixel = reader.GetSize(), reader.GetPixelID()
    single = pixel in _DTYPES and reader.GetNumberOfComponents() == 1
    if len(size) < 3 or any(n > 1 for n in size[3:]) or not single:
        raise InputError(
            f"{path}: expected one 3D volume with one number per voxel, got {' x '.join(map(str, size))} "
            f"with {reader.GetNumberOfComponents()} per voxel; split time points or channels apart"
        )
    check_fields(path, kind, fields)
    matrix = sitk_lps_from_index(reader)
    shape, dtype = (size[2], size[1], size[0]), _DTYPES[pixel]
    check_grid(path, shape, matrix, dtype)
    return reader, shape, matrix, dtype


def _last_line(error: Exception) -> str:
    """Return the last line of an ITK message; the lines before it name places in C++ files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][-200:] if lines else type(error).__name__
