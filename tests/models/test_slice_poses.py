"""Two passes of the shipped roll network: a few slices give a common roll, from which all are estimated."""

import math

import numpy as np
import pytest
import torch

from isopose.data.body import body_mask
from isopose.geometry.pose import ANGLE, matrix_from_pose
from isopose.geometry.warp import warp
from isopose.models.pose import PoseTransformer
from isopose.models.roll import SOFT_TISSUE_HU
from isopose.models.shipped import load_shipped
from isopose.phantom.randomized import sample_slab
from isopose.scan.poses import INITIAL_SLICES, scan_poses, slice_poses
from isopose.settings import PoseConfig

#: A cohort that the network did not learn from.
UNSEEN, SLICES = 78, 12


def transformer(per: str = "smooth") -> PoseTransformer:
    line = (torch.arange(96) * 2 + 1) / 96 - 1
    disc = (line[None] ** 2 + (1.3 * line[:, None]) ** 2 < 0.6).float()[None, None]
    model = PoseTransformer(PoseConfig(per=per), disc, 0.0, 1.0)
    load_shipped(model.roll)
    return model.eval().requires_grad_(False)


class Reading:
    """Return slices by number and record which were read."""

    def __init__(self, image: torch.Tensor, mask: torch.Tensor) -> None:
        self.image, self.mask = image, mask
        self.read: list[list[int]] = []

    def __call__(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        self.read.append(rows.tolist())
        return self.image[rows], self.mask[rows]


@pytest.fixture(scope="module")
def patients() -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    result = []
    low, high = SOFT_TISSUE_HU
    for index in range(4):
        slab = sample_slab(UNSEEN, index, slices=SLICES, size=128)
        mask = torch.from_numpy(body_mask(slab.volume, -250.0)).float()[:, None]
        image = torch.from_numpy((slab.volume.array.astype(np.float32) - low) / (high - low)).clamp(0, 1)
        result.append((image[:, None] * mask, mask, slab.roll))
    return result


def wrapped(angle: torch.Tensor) -> torch.Tensor:
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi


def found(
    model: PoseTransformer, image: torch.Tensor, mask: torch.Tensor, size: int = 5
) -> tuple[torch.Tensor, ...]:
    rows = np.arange(len(image))
    batches = [rows[first : first + size] for first in range(0, len(rows), size)]
    single = slice_poses(model, Reading(image, mask), batches, 0.8)
    return scan_poses(model, single, torch.arange(len(image)) * 5.0)[:2]


@pytest.mark.parametrize("per", ["smooth", "volume"])
@pytest.mark.parametrize("degrees", [35, -100, 180])
def test_an_applied_roll_is_recovered(patients, per: str, degrees: int) -> None:
    model, angle = transformer(per), math.radians(degrees)
    pose = matrix_from_pose(torch.tensor([[-angle, 0.0, 0.0, 0.0, 0.0]]))
    for image, mask, roll in patients:
        straight, _ = found(model, image, mask)
        leant, _ = found(model, warp(image, pose, (128, 128)), warp(mask, pose, (128, 128)))
        follows = wrapped(leant[:, ANGLE] - straight[:, ANGLE] - angle).rad2deg().abs()
        assert follows.max() < 1.5
        assert wrapped(straight[:, ANGLE] - roll).rad2deg().abs().max() < 5.0


def test_pooled_roll_is_more_accurate_than_slice_by_slice(patients) -> None:
    angle = math.radians(40)
    pose = matrix_from_pose(torch.tensor([[-angle, 0.0, 0.0, 0.0, 0.0]]))
    median = {}
    for per in ("slice", "smooth"):
        model, off = transformer(per), []
        for image, mask, _ in patients:
            straight = found(model, image, mask)[0][:, ANGLE]
            leant = found(model, warp(image, pose, (128, 128)), warp(mask, pose, (128, 128)))[0][:, ANGLE]
            off.append(wrapped(leant - straight - angle).abs())
        median[per] = torch.cat(off).median()
    assert median["smooth"] < 0.7 * median["slice"]


def test_batches_of_any_size_give_the_same(patients) -> None:
    model = transformer()
    image, mask, _ = patients[1]
    for size in (1, 7, 12):
        torch.testing.assert_close(
            found(model, image, mask, size), found(model, image, mask), rtol=1e-3, atol=1e-4
        )


def test_a_subset_of_inner_slices_is_read_first(patients) -> None:
    image, mask, _ = patients[0]
    reading = Reading(image, mask)
    slice_poses(transformer(), reading, [np.arange(0, 6), np.arange(6, 12)], 0.8)
    first, *rest = reading.read
    assert first == [1, 3, 6, 8, 10]
    assert len(first) == INITIAL_SLICES
    assert rest == [list(range(6)), list(range(6, 12))]
    alone = Reading(image, mask)
    slice_poses(transformer("slice"), alone, [np.arange(12)], 0.8)
    assert alone.read == [list(range(12))]


def test_slices_that_contradict_their_scan_take_its_roll(patients) -> None:
    """Slices of lungs or shoulders may be estimated upside down with some confidence."""
    model = transformer("smooth")
    image, mask, _ = patients[0]
    z_mm = torch.arange(SLICES) * 5.0
    single = slice_poses(model, Reading(image, mask), [np.arange(SLICES)], 0.8)
    pose, sure, scan = scan_poses(model, single, z_mm)
    away = torch.tensor([7, 8, 9])
    evidence = single.evidence.clone()
    evidence[away] *= -150.0 / evidence[away].norm(dim=1, keepdim=True)
    off, unsure, other = scan_poses(model, single._replace(evidence=evidence), z_mm)
    assert scan is not None
    assert other is not None
    assert other.overrides_header
    assert float(other.odds) < float(scan.odds)
    assert wrapped(off[:, ANGLE] - pose[:, ANGLE]).rad2deg().abs().max() < 2.0
    assert off[:, ANGLE].diff().rad2deg().abs().max() < 1.0
    assert (unsure <= sure + 1e-3).all()


@pytest.mark.parametrize("per", ["slice", "smooth", "volume"])
def test_without_an_outline_pose_and_size_are_unchanged(patients, per: str) -> None:
    """The body fills the field of view, and the square border says nothing about pose and size."""
    model = transformer(per)
    image, _, _ = patients[3]
    cut = image[:, :, 44:84, 44:84]
    single = slice_poses(model, Reading(cut, torch.ones_like(cut)), [np.arange(SLICES)], 0.8)
    pose, sure, scan = scan_poses(model, single, torch.arange(SLICES) * 5.0)
    assert torch.equal(pose, torch.zeros(SLICES, 5))
    assert scan is not None
    assert not scan.outline_visible
    assert not scan.overrides_header
    assert (sure < 0.6).all(), "what the header alone says"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_poses_of_scans_of_few_slices(patients, count: int) -> None:
    image, mask, roll = patients[2]
    some, _ = found(transformer(), image[4 : 4 + count], mask[4 : 4 + count])
    assert some.shape == (count, 5)
    assert wrapped(some[:, ANGLE] - roll).rad2deg().abs().max() < 6.0


def test_slices_without_a_body_give_finite_numbers() -> None:
    blank = torch.zeros(3, 1, 64, 64)
    assert found(transformer(), blank, blank)[0].isfinite().all()
