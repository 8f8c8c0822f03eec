"""The real scans, read once."""

from pathlib import Path

import pytest
from bodies import volume_of

from isopose.geometry.volume import Volume

REAL = Path(__file__).parents[3] / "shared" / "data" / "real-ct"


@pytest.fixture(scope="session")
def real_scans() -> dict[str, Volume]:
    """The two real scans, reoriented."""
    if not REAL.is_dir():
        pytest.skip(f"no real scans: {REAL} is absent")
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(REAL / "dicom-series")))
    images = {"dicom": reader.Execute(), "abdomen": sitk.ReadImage(str(REAL / "abdomen.nii.gz"))}
    return {name: volume_of(image).reoriented() for name, image in images.items()}
