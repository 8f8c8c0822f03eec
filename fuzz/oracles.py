"""What independent readers find in a scan: pydicom and GDCM, nibabel, plain parsers and SimpleITK.

None of them is isopose's own code.
"""

import warnings
from pathlib import Path

from oracles_dicom import check_with_gdcm, dicom_planes
from oracles_itk import itk_planes
from oracles_nifti import nifti_truth
from planes import MustBeRefused, Note, Truth


def truth_of(folder: Path, note: Note) -> Truth:
    """The right readings of the scan that a note describes.

    Raises:
        Differs: independent readers do not agree with each other.
    """
    scan = folder / note.scan
    name = scan.name.lower()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name.endswith((".nii", ".nii.gz")):
                return nifti_truth(scan.read_bytes())
            if name.endswith((".mha", ".mhd", ".nrrd", ".nhdr")):
                return Truth([itk_planes(scan, note.kinds)])
            planes = dicom_planes(scan)
            if note.gdcm:
                check_with_gdcm(scan, planes, note.tolerance)
            return Truth([planes])
    except MustBeRefused as error:
        return Truth(refuse=str(error))
