"""The slope of estimated against applied rotations, for estimators of known behavior."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from isopose.data.samples import Batch
from isopose.geometry.moments import moments
from isopose.geometry.pose import ANGLE, identity_pose, matrix_from_pose
from isopose.geometry.warp import invert, warp
from isopose.training.roll_check import (
    APPLIED_ROTATIONS,
    MIN_SLOPE,
    ROTATED_EVERY,
    RollCheck,
    axis_distance,
    check_roll,
    rotation_errors,
    rotation_warning,
    slopes,
    summarize,
    true_angles,
    wrapped,
)

SIZE, AIR = 64, -2.0


def lying_at(angles: list[float]) -> tuple[Tensor, Tensor]:
    """Return image and mask of ellipses wider than deep, rotated by angles in radians."""
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    mask = ((x / 0.7) ** 2 + (y / 0.4) ** 2 < 1).float()[None, None].expand(len(angles), 1, SIZE, SIZE)
    pose = identity_pose(len(angles))
    pose[:, ANGLE] = torch.tensor(angles)
    mask = warp(mask, invert(matrix_from_pose(pose)), (SIZE, SIZE))
    return torch.where(mask > 0.5, 0.0, AIR), mask


def axis(_: Tensor, mask: Tensor, *, part: float = 1.0, lean: float = 0.0) -> Tensor:
    """Estimate the principal axis of a mask, times a factor, plus an offset."""
    pose = identity_pose(len(mask))
    pose[:, ANGLE] = part * moments(mask).angle + lean
    return pose


def still(image: Tensor, _: Tensor) -> Tensor:
    """An estimator that always returns no roll, as STN1 before it has learned rotation."""
    return identity_pose(len(image))


@pytest.mark.parametrize(("part", "lean"), [(1.0, 0.0), (0.3, 0.0), (-0.5, 0.0), (0.8, 0.4)])
def test_the_slope_is_the_fraction_of_a_rotation_that_the_estimate_follows(part: float, lean: float) -> None:
    """The slope does not depend on the roll estimated for the slice as scanned."""
    image, mask = lying_at([0.0, 0.2, -0.3, 0.5])
    result = slopes(lambda i, m: axis(i, m, part=part, lean=lean), image, mask, AIR)
    torch.testing.assert_close(result, torch.full((4,), part), atol=0.03, rtol=0)


def test_a_constant_estimate_has_slope_0_and_wrapping_does_not_matter() -> None:
    image, mask = lying_at([0.1, 0.4])
    assert slopes(still, image, mask, AIR).tolist() == [0.0, 0.0]
    # At pi the angle jumps by a whole turn.
    result = slopes(lambda i, m: wrapped_pose(axis(i, m, lean=math.pi)), image, mask, AIR)
    torch.testing.assert_close(result, torch.ones(2), atol=0.03, rtol=0)


def wrapped_pose(pose: Tensor) -> Tensor:
    return torch.cat([wrapped(pose[:, :1]), pose[:, 1:]], dim=1)


def test_a_rotated_slice_is_padded_with_air_and_rotates_from_x_to_y() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def look(image: Tensor, mask: Tensor) -> Tensor:
        seen.append((image, mask))
        return still(image, mask)

    image, mask = lying_at([0.0])
    slopes(look, image + 5.0, mask, AIR)
    assert len(seen) == 1 + len(APPLIED_ROTATIONS)
    for (turned, outline), turn in zip(seen[1:], APPLIED_ROTATIONS, strict=True):
        assert float(moments(outline).angle) == pytest.approx(turn, abs=0.02)
        assert float(turned[0, 0, 0, 0]) == AIR
        assert float(turned[0, 0, SIZE // 2, SIZE // 2]) == pytest.approx(5.0)


def test_errors_of_axes_are_modulo_half_a_turn() -> None:
    a = torch.tensor([0.1, 3.0, -3.0, math.pi])
    assert axis_distance(a, a + math.pi).abs().max() < 1e-6
    assert axis_distance(torch.tensor([0.0]), torch.tensor([0.7 * math.pi])).item() == pytest.approx(
        0.3 * math.pi, abs=1e-5
    )
    assert wrapped(torch.tensor([1.5 * math.pi])).item() == pytest.approx(-0.5 * math.pi, abs=1e-5)


class Rows:
    """A stand-in for the slices of a store, with two patients."""

    def __init__(self, image: Tensor, mask: Tensor) -> None:
        self.image, self.mask = image, mask
        records = [SimpleNamespace(id=n, frame=SimpleNamespace(size=SIZE)) for n in ("one", "two")]
        self.cases = [SimpleNamespace(record=record) for record in records]
        self.rows = np.array([(n % 2, n) for n in range(len(image))])

    def __len__(self) -> int:
        return len(self.image)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        assert batch_size >= 1
        rows = torch.arange(len(self.image)).split(3)[rank::world_size]
        return [
            Batch(r, self.image[r], self.mask[r], torch.zeros(len(r), SIZE, SIZE, dtype=torch.uint8))
            for r in rows
        ]


def pipeline_of(estimate: Any, reference: Tensor) -> Any:
    """Make a pipeline with a stand-in for STN1's network."""

    class Pose:
        localization = object()
        reference_mask = reference

        def __call__(self, image: Tensor, mask: Tensor) -> Tensor:
            return estimate(image, mask)

    return SimpleNamespace(pose=Pose(), joint=None, air=AIR)


LYING = [math.radians(d) for d in (0.0, 10.0, -20.0, 10.0, 30.0, 10.0)]
TRUTH = {"one": math.radians(0.0), "two": math.radians(10.0)}


def test_a_trained_stn1_is_compared_with_rotations_moments_and_truth() -> None:
    slices, reference = Rows(*lying_at(LYING)), lying_at([0.0])[1]
    fabric = Fabric(accelerator="cpu", devices=1)
    follows = check_roll(pipeline_of(axis, reference), slices, fabric, TRUTH, "validation")
    assert follows is not None
    assert follows.learned
    assert (follows.slices, follows.patients) == (6, "validation")
    assert follows.slope == pytest.approx(1.0, abs=0.03)
    assert follows.degrees_from_moments < 3.0
    # Of patient one the true roll is 0, and slices lie at 0, -20 and 30; two lies at 10 in all.
    assert follows.degrees_from_truth == pytest.approx(0.0, abs=1.0)
    stuck = check_roll(pipeline_of(still, reference), slices, fabric, TRUTH, "training")
    assert stuck is not None
    assert not stuck.learned
    assert (stuck.slope, stuck.patients) == (0.0, "training")
    assert stuck.degrees_from_truth == pytest.approx(0.0, abs=10.1)
    assert stuck.moments_from_truth == pytest.approx(follows.moments_from_truth)
    unknown = check_roll(pipeline_of(axis, reference), slices, fabric, {}, "validation")
    assert unknown is not None
    assert unknown.degrees_from_truth is None
    assert unknown.moments_from_truth is None
    assert unknown.slope == follows.slope


def test_without_a_trained_roll_network_nothing_is_measured() -> None:
    shipped = SimpleNamespace(pose=SimpleNamespace(localization=None, roll=object()), joint=object(), air=AIR)
    assert check_roll(shipped, Rows(*lying_at(LYING)), Fabric(accelerator="cpu"), {}, "validation") is None


def test_each_epoch_rotates_a_subset_and_compares_all_slices() -> None:
    slices, reference = Rows(*lying_at(LYING)), lying_at([0.0])[1]
    looked: list[int] = []

    def look(image: Tensor, mask: Tensor) -> Tensor:
        looked.append(len(image))
        return axis(image, mask)

    [batch] = [
        Batch(torch.arange(6), slices.image, slices.mask, torch.zeros(6, SIZE, SIZE, dtype=torch.uint8))
    ]
    part = rotation_errors(look, reference, AIR, {"two": TRUTH["two"]}, slices, batch)
    few = math.ceil(6 / ROTATED_EVERY)
    assert looked == [6, few, few, few]
    assert [len(values) for values in part] == [few, 6, 3, 3]
    summary = summarize([part])
    assert list(summary) == ["roll slope", "degrees from moments", "degrees from the true roll"]
    assert summary["roll slope"] == pytest.approx(1.0, abs=0.03)
    assert summary["degrees from the true roll"] == pytest.approx(0.0, abs=1.0)
    without = summarize([rotation_errors(look, reference, AIR, {}, slices, batch)])
    assert list(without) == ["roll slope", "degrees from moments"]


def test_true_angles_are_looked_up_by_case_and_nan_if_unknown() -> None:
    slices = Rows(*lying_at(LYING))
    result = true_angles({"two": 0.5}, slices, torch.tensor([3, 0, 1]))
    assert result[[0, 2]].tolist() == [0.5, 0.5]
    assert result[1].isnan()


def test_the_warning_names_the_measurement_and_the_settings() -> None:
    stuck = RollCheck(0.04, 11.5, 11.1, 3.2, 180, "validation")
    line = rotation_warning(stuck, "pose")
    assert "\n" not in line
    for word in (
        "slope 0.04",
        f"at least {MIN_SLOPE}",
        "pose.optimizer.epochs",
        "pose.optimizer.momentum=0.9",
    ):
        assert word in line
    assert not RollCheck(MIN_SLOPE - 0.01, 0.0, None, None, 1, "validation").learned
    assert RollCheck(MIN_SLOPE, 0.0, None, None, 1, "validation").learned
