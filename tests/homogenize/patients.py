"""Phantom patients in given poses, and datasets of them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from isopose.config import HomogenizeConfig
from isopose.geometry.volume import Volume
from isopose.homogenize.estimator import PoseEstimator, shipped_estimator
from isopose.io.images import write_image, write_labels
from isopose.phantom import render, sample_case, texture_generator
from isopose.phantom.case import PhantomCase
from isopose.phantom.scan import sample_scan

#: Labels as the phantoms have them, and as the datasets of these tests store them.
STORED = {"kidney": 1, "tumor": 7}


@dataclass(frozen=True)
class Patient:
    """A scan on axes L, P, S and its classes; ``left`` is +1 where the tumor grows on the patient's left."""

    volume: Volume
    classes: np.ndarray
    left: int

    @property
    def stored(self) -> np.ndarray:
        return np.array([0, *STORED.values()], np.uint8)[self.classes]


@cache
def patient(
    number: int = 1,
    degrees: float = 0.0,
    size: int = 128,
    slices: int = 6,
    *,
    pitch: float = 0.0,
    yaw: float = 0.0,
) -> Patient:
    """Make a patient rotated by ``degrees`` about the long axis, or tilted; the header says supine."""
    drawn = sample_case(11, number, size=size, slices=slices)
    pose = replace(
        drawn.pose,
        position="supine",
        header_right=True,
        roll=math.radians(degrees),
        pitch=math.radians(pitch),
        yaw=math.radians(yaw),
    )
    generator = np.random.Generator(np.random.Philox(number))
    scan = sample_scan(generator, drawn.anatomy, pose, size, slices)
    case = PhantomCase(drawn.anatomy, pose, scan, drawn.texture)
    image, classes = render(case.anatomy, pose, scan, texture_generator(case))
    return Patient(Volume(image, scan.world_from_index), classes, int(drawn.anatomy.tumor.side))


@cache
def estimator(per: str = "volume", size: int = 256) -> PoseEstimator:
    return shipped_estimator(HomogenizeConfig(per=per, size=size))


def write_dataset(
    root: Path, parts: Mapping[str, str], labels: Mapping[str, object] | None = None, **more: object
) -> Path:
    """An nnU-Net raw dataset of patients 0, 1, ... under these names, each with its part, Tr or Ts."""
    for number, (name, part) in enumerate(parts.items()):
        one = patient(number)
        write_image(one.volume, root / f"images{part}" / f"{name}_0000.nii.gz")
        write_labels(one.volume.with_array(one.stored), root / f"labels{part}" / f"{name}.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": labels or {"background": 0, **STORED},
        "numTraining": sum(part == "Tr" for part in parts.values()),
        "file_ending": ".nii.gz",
        **more,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root
