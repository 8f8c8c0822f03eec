"""The position of a NIfTI volume by its header: sform, qform, and which of them is used."""

from itertools import product
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.quaternions import quat2mat

from isopose.errors import InputError
from isopose.geometry.volume import is_sheared

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Largest shift of a voxel, in mm, if the qform replaces a sform that is not orthogonal.
_MAX_QFORM_SHIFT_MM = 0.5
#: Largest excess of the quaternion's length over 1 that rounding may cause.
_QUATERNION_TOLERANCE = 1e-3
#: Below this, or below this multiple of the header's rounding error, the square of the quaternion's first
#: part is only rounding of the others: a rotation by 180 degrees. nifti1_io.c has the first limit, nibabel
#: the second.
_HALF_TURN, _HALF_TURN_ROUNDINGS = 1e-7, 3
#: Codes of ``xyzt_units`` for units other than millimeters.
_UNITS = {1: "meters", 3: "micrometers"}


@np.errstate(all="ignore")  # numbers of a damaged header may overflow; the grid is checked after
def world_from_index(path: Path, header: Nifti1Header, size: list[int]) -> np.ndarray:
    """Return ``lps_from_index`` ``(4, 4)`` in mm from a header's sform or qform; it may not be invertible.

    Args:
        path: what messages name.
        header: of NIfTI-1 or NIfTI-2.
        size: voxels along the first three axes.

    Raises:
        InputError: a unit other than mm, neither form, two that contradict each other, or a qform that
            readers interpret differently.
    """
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, 2):
        name = _UNITS.get(unit, f"unknown (code {unit})")
        raise InputError(
            f"{path}: expected millimeters, but the header's unit is {name}; "
            "set xyzt_units to mm and check the voxel size"
        )
    sform, qform = header["sform_code"] > 0, header["qform_code"] > 0
    if not sform and not qform:
        raise InputError(
            f"{path}: the header has no orientation (sform and qform codes are 0), so left and right are "
            "unknown; export it again with an orientation"
        )
    sform_matrix = header.get_sform()
    if not qform:
        return LPS_FROM_RAS @ sform_matrix
    if not sform:
        _check_qform(path, header)
        return LPS_FROM_RAS @ _qform(header)
    qform_matrix = _qform(header)
    if np.isfinite([sform_matrix, qform_matrix]).all():
        corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in size))])
        distance = np.linalg.norm(corners @ (sform_matrix - qform_matrix).T, axis=1).max()
        if distance > np.linalg.norm(sform_matrix[:3, :3], axis=0).max():
            raise InputError(
                f"{path}: the header's sform and qform place the volume up to {distance:.1f} mm apart; "
                "find out which one is right and set the other's code to 0"
            )
        if distance <= _MAX_QFORM_SHIFT_MM and is_sheared(sform_matrix) and not is_sheared(qform_matrix):
            return LPS_FROM_RAS @ qform_matrix
    return LPS_FROM_RAS @ sform_matrix


def _check_qform(path: Path, header: Nifti1Header) -> None:
    """Raise an InputError for a qform that readers interpret differently."""
    factor, sides = float(header["pixdim"][0]), header["pixdim"][1:4].astype(np.float64)
    if not (factor >= 0 or factor == -1) or (sides < 0).any():
        raise InputError(
            f"{path}: the header's qform has pixdim {header['pixdim'][:4].tolist()}, expected 1 or -1 and "
            "three positive sides, so left and right are unknown; export it again"
        )
    if np.square(_quaternion(header)).sum() > 1.0 + _QUATERNION_TOLERANCE:
        raise InputError(f"{path}: the header's qform is no rotation; export it again")


def _qform(header: Nifti1Header) -> np.ndarray:
    """Return the ``(4, 4)`` matrix ``ras_from_index`` of the qform.

    Unlike nibabel's ``get_qform`` it takes any number that is not negative for a ``pixdim[0]`` of 1, as the
    standard does, a quaternion that rounding made longer than 1, and in NIfTI-2 one rounded to float32.
    """
    vector = _quaternion(header)
    square = 1.0 - vector @ vector
    least = max(_HALF_TURN, _HALF_TURN_ROUNDINGS * float(np.finfo(header["quatern_b"].dtype).eps))
    scale = np.abs(header["pixdim"][1:4].astype(np.float64)) * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
    matrix = np.eye(4)
    matrix[:3, :3] = quat2mat([np.sqrt(square) if square >= least else 0.0, *vector]) * scale
    matrix[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return matrix


def _quaternion(header: Nifti1Header) -> np.ndarray:
    """Return the quaternion without its first component, ``(3,)`` float64."""
    return np.array([header[f"quatern_{part}"] for part in "bcd"], dtype=np.float64)
