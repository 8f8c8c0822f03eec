"""NIfTI as nibabel reads it, but for what it refuses and the standard lets a reader mend."""

import gzip
import io
import logging
from typing import Any

import nibabel as nib
import numpy as np
from planes import MustBeRefused, Truth, planes_of

_SILENT = logging.Logger("oracles", logging.CRITICAL + 1)


def nifti_truth(data: bytes) -> Truth:
    """By nibabel, but for what it refuses and the standard lets a reader mend."""
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    lengths = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    kind = nib.Nifti2Image if 540 in lengths else nib.Nifti1Image
    header = kind.header_class.from_fileobj(io.BytesIO(data), check=False)
    if not 1 <= int(header["dim"][0]) <= 7:
        raise MustBeRefused("it has no dimensions")
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
    return Truth([planes_of(values, lps @ np.asarray(affine, np.float64), scale) for affine in affines])


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
