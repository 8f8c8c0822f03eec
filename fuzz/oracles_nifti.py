"""NIfTI as nibabel reads it, but for what it refuses and the standard lets a reader mend.

isopose unpacks headers with nibabel as well, so SimpleITK must find the same where it reads by the standard.
"""

import gzip
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError
from planes import PLACES, Differs, MustBeRefused, Truth, from_reading, planes_of

_SILENT = logging.Logger("oracles", logging.CRITICAL + 1)


def nifti_truth(data: bytes) -> Truth:
    """By nibabel, but for what it refuses and the standard lets a reader mend.

    Raises:
        Differs: SimpleITK finds other values or places.
    """
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    lengths = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    kind = nib.Nifti2Image if 540 in lengths else nib.Nifti1Image
    header = kind.header_class.from_fileobj(io.BytesIO(data), check=False)
    if not 1 <= int(header["dim"][0]) <= 7:
        raise MustBeRefused("it has no dimensions")
    as_stated = header.copy()
    # What nibabel mends as it opens a file: signs of voxel sizes, qfac, voxels within the header.
    codes = int(header["sform_code"]), int(header["qform_code"])
    header.check_fix(_SILENT, error_level=1000)
    # Not codes that are not in the standard's list, which nifti1_io.c takes for what is set.
    header["sform_code"], header["qform_code"] = codes
    header["vox_offset"] = max(float(header["vox_offset"]), header.single_vox_offset)
    factor = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)
    shape = [int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1]]
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise MustBeRefused("it is not one volume")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        slope, inter = 1.0, 0.0
    elif not np.isfinite(inter):
        inter = 0.0  # nibabel refuses; half of the scaling would be worse than either
    else:
        assert header.get_slope_inter() == (slope, inter), "nibabel scales otherwise"
    stored = np.ndarray(
        shape[:3], header.get_data_dtype(), data, int(header["vox_offset"]), order="F"
    ).astype(np.float64)
    values = stored * slope + inter
    if not np.isfinite(values).all():
        raise MustBeRefused("it holds values that are not finite")
    scale = max(float(np.abs(stored).max() * abs(slope)), abs(inter))
    affines = [header.get_sform()] if header["sform_code"] > 0 else _qforms(header)
    if not affines:
        raise MustBeRefused("it has no orientation")
    if header["sform_code"] > 0:
        # Where the sform is sheared, a sound qform may be taken instead.
        axes = affines[0][:3, :3] / np.linalg.norm(affines[0][:3, :3], axis=0)
        if np.abs(axes.T @ axes - np.eye(3)).max() > 5e-4:
            affines += _qforms(header)
    lps = np.diag([-factor, -factor, factor, 1.0])
    truth = Truth([planes_of(values, lps @ np.asarray(affine, np.float64), scale) for affine in affines])
    if _itk_reads_alike(as_stated, header):
        _check_with_itk(data, lps @ affines[0], truth)
    return truth


def _itk_reads_alike(stated: Any, header: Any) -> bool:
    """Whether SimpleITK follows the standard for a header as the file states it and as nibabel mended it.

    It does not read NIfTI-2, adds an intercept where the slope is 0, takes sizes and their signs from
    ``pixdim`` even where it takes axes from the sform, makes axes orthogonal, and decides by its own rules
    between a sform and a qform that differ.
    """
    slope, inter = float(stated["scl_slope"]), float(stated["scl_inter"])
    sizes = stated["pixdim"][1:4].astype(np.float64)
    if (
        header.single_magic != b"n+1"
        or stated["vox_offset"] < header.single_vox_offset
        or int(stated["xyzt_units"]) & 7 not in (0, 2)
        or ((slope == 0 or not np.isfinite(slope)) and np.isfinite(inter) and inter != 0)
        or not (sizes > 0).all()
    ):
        return False
    forms = [header.get_sform()] if header["sform_code"] > 0 else []
    try:
        forms += _qforms(header)
    except (ValueError, HeaderDataError):  # no rotation, beside a sform that counts
        return False
    squares = np.diag(sizes**2)
    return all(
        np.allclose(form, forms[0], rtol=0, atol=PLACES / 100)
        and np.allclose(form[:3, :3].T @ form[:3, :3], squares, rtol=0, atol=1e-5 * squares.max())
        for form in forms
    )


def _check_with_itk(data: bytes, affine: np.ndarray, truth: Truth) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "scan.nii"  # by whose ending ITK tells what is packed
        path.write_bytes(data)
        shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            image = sitk.ReadImage(str(path), sitk.sitkFloat64, "NiftiImageIO")
        except RuntimeError:  # of damaged headers
            return
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    rank = image.GetDimension()
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (rank, rank))[:3, :3] * image.GetSpacing()[:3]
    matrix[:3, 3] = image.GetOrigin()[:3]
    array = sitk.GetArrayFromImage(image)
    array = array.reshape(array.shape[-3:])
    tolerance = max(2 * PLACES, 1e-6 * float(np.abs(affine).max()) * max(array.shape))
    found = from_reading(array, matrix, truth.readings[0], tolerance)
    if found:
        raise Differs(f"nibabel and SimpleITK do not agree: {found}")


def _qforms(header: Any) -> list[np.ndarray]:
    """The qform, in both ways of completing a quaternion to unit length where that is in doubt.

    nifti1_io.c takes a first part of 0 where its square is below 1e-7, nibabel where it is below 3.6e-7.
    """
    if header["qform_code"] <= 0:
        return []
    b, c, d = (float(header[f"quatern_{name}"]) for name in "bcd")
    square = 1 - b * b - c * c - d * d
    header.quaternion_threshold = -1e-5 if square < 1e-7 else 0.0
    found = [header.get_qform()]
    if 1e-7 <= square < 4e-7:
        header.quaternion_threshold = -1e-5
        found.append(header.get_qform())
    return found
