"""Small cohorts for training: written once, quick to read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trunks import patient

from isopose.config import Config
from isopose.io.images import read_labels, write_image, write_labels
from isopose.presets import load_config

#: Everything as small as it goes: two epochs of two or three batches a stage.
TINY: dict[str, Any] = {
    "data": {"size": 64},
    "pose": {
        "size": 32,
        "optimizer": {"epochs": 2, "min_epochs": 1, "iterations": 2, "batch_size": 4},
    },
    "crop": {"size": 32, "optimizer": {"epochs": 2, "min_epochs": 1, "iterations": 2, "batch_size": 4}},
    "unet": {
        "base_features": 4,
        "mirror": 0.5,
        "optimizer": {"epochs": 3, "min_epochs": 1, "iterations": 3, "batch_size": 4},
    },
    "train": {"folds": 3, "device": "cpu"},
}


#: By default there is nothing to train in STN1: here there is, for each stage has to run.
STN1 = {"default": ("pose.start=moments", "pose.learned=true"), "paper": ()}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """The tiny configuration of a preset, with settings."""

    def build(*settings: str, preset: str = "default") -> Config:
        return load_config(preset, base=TINY, settings=(*STN1[preset], *settings))

    return build


@pytest.fixture(scope="session")
def sparse(cohort: Path, tmp_path_factory) -> Path:
    """The cohort with regions, of which slices 0, 2 and 5 and half of slice 3 were not labeled (value 3)."""
    import json
    import shutil

    folder = tmp_path_factory.mktemp("sparse") / cohort.name
    shutil.copytree(cohort, folder)
    for path in sorted((folder / "labelsTr").glob("*")):
        labels = read_labels(path)
        array = labels.array.copy()
        array[[0, 2, 5]] = 3
        array[3, :, :36] = 3
        write_labels(labels.with_array(array), path)
    facts = json.loads((folder / "dataset.json").read_text())
    facts["labels"] = {"background": 0, "kidney and tumor": [1, 2], "tumor": 2, "ignore": 3}
    (folder / "dataset.json").write_text(json.dumps(facts | {"regions_class_order": [1, 2]}))
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Six patients and a test patient as an nnU-Net raw dataset; the names must not show in any model."""
    import json

    folder = tmp_path_factory.mktemp("training") / "Dataset001_Muster"
    for number in range(6):
        image, labels = patient(number)
        write_image(image, folder / "imagesTr" / f"Muster_Erika_{number}_0000.nii.gz")
        write_labels(labels, folder / "labelsTr" / f"Muster_Erika_{number}.nii.gz")
    image, _ = patient(6)
    write_image(image, folder / "imagesTs" / "Muster_Erika_6_0000.nii.gz")
    facts = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": 1, "tumor": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder
