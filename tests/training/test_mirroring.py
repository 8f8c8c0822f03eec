"""Whether a model mirrors: by the sides of its labels, as their names or the training patients tell them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from isopose.labels import Labels
from isopose.presets import load_config
from isopose.progress import Silent
from isopose.training.mirroring import decide_mirroring, one_sided

SIDE = 40


class Said(Silent):
    """A reporter that keeps its messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Rows:
    """As :class:`isopose.data.samples.Slices`, of pictures: one slice of each patient."""

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


def test_a_structure_of_one_side_is_found_wherever_the_body_lies() -> None:
    """The mask's middle decides, not the picture's."""
    patients = {str(n): {1: BOTH, 2: LEFT, 3: LEFT if n % 2 else RIGHT} for n in range(10)}
    for offset in (-10, 0, 10):
        assert one_sided(Rows(patients, offset)) == [False, True, False]


def test_two_patients_in_ten_may_differ() -> None:
    """Their scans may be mirrored or wrong in their header; a side is not given up for that."""
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
def test_auto_mirrors_only_what_may_lie_on_either_side(names: Any, where: Any, mirrored: bool) -> None:
    def block(number: int, place: Any) -> tuple[int, int]:
        return place or (LEFT if number % 2 else RIGHT)

    patients = {
        str(n): {label: block(n, place) for label, place in enumerate(where, start=1)} for n in range(10)
    }
    labels = Labels.create({name: number for number, name in enumerate(names, start=1)})
    said = Said()
    config = decide_mirroring(load_config(), labels, Rows(patients), said)  # type: ignore[arg-type]
    assert (config.unet.mirror, config.predict.mirror) == ((0.5, True) if mirrored else (0.0, False))
    assert (config.mirrored, config.averaged) == (config.unet.mirror, config.predict.mirror)
    assert [names[0] in line for line in said.lines] == ([] if mirrored else [True])


def test_what_was_set_is_kept_and_nnunets_own_augmentation_mirrors_by_itself() -> None:
    labels = Labels.create({"liver": 1})
    rows: Any = Rows({"a": {1: RIGHT}})
    given = load_config(settings=["unet.mirror=0.25"])
    config = decide_mirroring(given, labels, rows, Silent())
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
