"""Homogenize small phantoms, and check the result."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from isopose.config import HomogenizeConfig
from isopose.data.check import check_dataset
from isopose.homogenize.dataset import homogenize, open_input
from isopose.io.datasets import open_dataset
from isopose.progress import Silent

SMALL = HomogenizeConfig(size=96)


def run(path, output, config=SMALL, **options):
    return homogenize(open_input(path), output, config, reporter=Silent(), **options)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def assert_nnunet(root: Path) -> None:
    """The rules of nnU-Net's ``verify_dataset_integrity``, and that isopose's own check finds no error."""
    content = json.loads((root / "dataset.json").read_text())
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= set(content)
    assert content["channel_names"] == {"0": "CT"}
    images = sorted(path.name for path in (root / "imagesTr").glob("*"))
    labels = sorted(path.name for path in (root / "labelsTr").glob("*"))
    assert images == [name.replace(".nii.gz", "_0000.nii.gz") for name in labels]
    assert content["numTraining"] == len(labels)
    stored = [value if isinstance(value, list) else [value] for value in content["labels"].values()]
    listed = {value for values in stored for value in values}
    assert sorted(listed) == list(range(len(listed)))
    assert content["labels"]["background"] == 0
    for name in labels:
        label = sitk.ReadImage(str(root / "labelsTr" / name))
        image = sitk.ReadImage(str(root / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz")))
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(label, get)(), getattr(image, get)(), rtol=0, atol=1e-6)
        assert set(np.unique(sitk.GetArrayFromImage(label))) <= listed
        assert image.GetPixelID() == sitk.sitkInt16
    assert [p for p in check_dataset(open_dataset(root)) if p.severity == "error"] == []
