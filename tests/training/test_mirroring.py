"""Mirroring is decided by label names and by the sides on which labels lie in training patients."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from isopose.labels import Labels
from isopose.presets import load_config
from isopose.progress import Silent
from isopose.training.mirroring import decide_mirroring, one_sided
from reporters import RecordingReporter

SIDE = 40


class Rows:
    """A stand-in for :class:`isopose.data.samples.Slices` with one slice of each patient."""

    def __init__(self, patients: dict[str, dict[int, tuple[int, int]]], offset: int = 0) -> None:
        """Draw labels as blocks between two columns, on a body of 20 columns from column 10 on."""
        self.patients = list(patients)
        self.mask = torch.zeros(len(patients), 1, SIDE, SIDE)
        self.mask[..., 10 + offset : 30 + offset] = 1.0
        self.labels = torch.zeros(len(patients), SIDE, SIDE, dtype=torch.uint8)
        for row, blocks in enumerate(patients.values()):
            for label, (first, last) in blocks.items():
                self.labels[row, 15:20, first + offset : last + offset] = label
        classes = max(label for blocks in patients.values() for label in blocks)
        self.presence = np.array(
            [[(one == label).any() for label in range(1, classes + 1)] for one in self.labels.numpy()]
        )

    def labeled(self) -> "Rows":
        return self

    def spread(self, _: int) -> "Rows":
        return self

    def batches(self, _: int) -> Any:
        for row in range(len(self.patients)):
            yield SimpleNamespace(
                rows=torch.tensor([row]), mask=self.mask[row : row + 1], labels=self.labels[row : row + 1]
            )


LEFT, RIGHT, BOTH = (22, 27), (12, 17), (16, 24)


def test_one_sided_structures_are_recognized_for_any_body_position() -> None:
    """Sides are relative to the middle of the body mask, not of the image."""
    patients = {str(n): {1: BOTH, 2: LEFT, 3: LEFT if n % 2 else RIGHT} for n in range(10)}
    for offset in (-10, 0, 10):
        assert one_sided(Rows(patients, offset)) == [False, True, False]


def test_up_to_two_patients_in_ten_may_deviate() -> None:
    """A few scans may be mirrored or have a wrong header."""
    patients = {str(n): {1: LEFT if n > 1 else RIGHT, 2: LEFT if n > 2 else RIGHT} for n in range(10)}
    assert one_sided(Rows(patients)) == [True, False]


@pytest.mark.parametrize(
    ("names", "where", "mirrored"),
    [
        (("kidney", "tumor"), (BOTH, None), True),
        (("liver", "tumor"), (RIGHT, None), False),
        (("kidney left", "kidney right"), (LEFT, RIGHT), True),
        # Sides in another language, or as numbers: seen in the patients alone.
        (("rein gauche", "rein droit"), (LEFT, RIGHT), False),
        (("kidney left", "tumor"), (LEFT, None), False),
    ],
)
def test_auto_mirrors_only_without_one_sided_structures(names: Any, where: Any, mirrored: bool) -> None:
    def block(number: int, place: Any) -> tuple[int, int]:
        return place or (LEFT if number % 2 else RIGHT)

    patients = {
        str(n): {label: block(n, place) for label, place in enumerate(where, start=1)} for n in range(10)
    }
    labels = Labels.create({name: number for number, name in enumerate(names, start=1)})
    reporter = RecordingReporter()
    config = decide_mirroring(load_config(), labels, Rows(patients), reporter)  # type: ignore[arg-type]
    assert (config.unet.mirror, config.predict.mirror) == ((0.5, True) if mirrored else (0.0, False))
    assert (config.mirrored, config.averaged) == (config.unet.mirror, config.predict.mirror)
    assert [names[0] in line for line in reporter.lines] == ([] if mirrored else [True])


def test_a_mirroring_probability_that_is_set_is_kept() -> None:
    labels = Labels.create({"liver": 1})
    rows: Any = Rows({"a": {1: RIGHT}})
    configured = load_config(settings=["unet.mirror=0.25"])
    config = decide_mirroring(configured, labels, rows, Silent())
    assert (config.unet.mirror, config.predict.mirror) == (0.25, True)
    config = decide_mirroring(
        load_config(settings=["unet.mirror=0.25", "predict.mirror=false"]), labels, rows, Silent()
    )
    assert (config.unet.mirror, config.predict.mirror) == (0.25, False)
    baseline = ["unet.augmentation=nnunet", "pose.start=identity", "pose.learned=false", "crop.enabled=false"]
    config = decide_mirroring(load_config(settings=baseline), Labels.create({"kidney": 1}), rows, Silent())
    assert (config.unet.mirror, config.predict.mirror) == (0.0, False)
    # The paper does not mirror.
    config = decide_mirroring(load_config("paper"), Labels.create({"kidney": 1}), rows, Silent())
    assert (config.unet.mirror, config.predict.mirror) == (0.0, False)
