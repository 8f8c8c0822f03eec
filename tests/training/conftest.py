"""Small cohorts for training: written once, quick to read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isopose.config import Config, load_config
from isopose.geometry.volume import Volume
from isopose.io.images import read_labels, write_image, write_labels

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


def patient(number: int) -> tuple[Volume, Volume]:
    """A trunk of six slices with spine, two kidneys and a tumor, each patient of another size and roll."""
    random = np.random.default_rng(number)
    pixel, (slices, side) = 4.0, (6, 72)
    y, x = (np.indices((side, side)) - (side - 1) / 2) * pixel
    roll = np.radians([0.0, 14.0, -9.0, 6.0, -18.0, 3.0][number % 6])
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    width = 80.0 + 8.0 * number
    body = (x / width) ** 2 + (y / (0.68 * width)) ** 2 < 1
    spine = (x / 14) ** 2 + ((y - 0.36 * width) / 14) ** 2 < 1
    kidneys = ((np.abs(x) - 0.45 * width) / (0.2 * width)) ** 2 + ((y - 0.25 * width) / 22) ** 2 < 1
    tumor = ((x + 0.4 * width) / 20) ** 2 + ((y - 0.05 * width) / 20) ** 2 < 1
    marks = np.zeros((slices, side, side), np.uint8)
    marks[1:5][:, kidneys & body] = 1
    marks[2:4][:, tumor & body] = 2
    plane = np.where(body, 40.0, -1000.0)
    plane[spine & body] = 400.0
    array = plane[None] + 110.0 * (marks == 1) + 60.0 * (marks == 2)
    array += np.where(body, random.normal(0.0, 12.0, array.shape), 0.0)
    matrix = np.diag([pixel, pixel, 5.0, 1.0])
    matrix[:3, 3] = (-140.0, -150.0, 30.0 * number)
    return Volume(array.round().astype(np.int16), matrix), Volume(marks, matrix)


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
