"""The roll network that ships with the package, on phantoms and real scans that it has not seen."""

import math

import numpy as np
import pytest
import torch

from isopose.data.body import body_mask
from isopose.data.body_mr import mr_body_mask
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.volume import Volume
from isopose.geometry.warp import warp
from isopose.io.images import read_volume
from isopose.models.roll import (
    FORMER_ODDS,
    MAX_CONCENTRATION,
    SIZE,
    SOFT_TISSUE_HU,
    RollNetwork,
    calibrated_concentration,
    effective_count,
    log_odds_of,
    roll_input_by_own_body,
    roll_input_of,
    views_of_slices,
)
from isopose.models.shipped import compact_state, load_shipped
from isopose.phantom import render, sample_case, texture_generator
from isopose.phantom.mr import SEQUENCES, drawn_for_mr, sample_mr
from isopose.phantom.randomized import roll_of, sample_slab

#: A cohort that the network did not learn from.
UNSEEN = 77


@pytest.fixture(scope="module")
def network() -> RollNetwork:
    return load_shipped(RollNetwork()).eval().requires_grad_(False)


def window(hu: np.ndarray) -> torch.Tensor:
    low, high = SOFT_TISSUE_HU
    return ((torch.from_numpy(hu.astype(np.float32)) - low) / (high - low)).clamp(0.0, 1.0)[:, None]


@pytest.fixture(scope="module")
def of_any() -> RollNetwork:
    return load_shipped(RollNetwork(), "any").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def mr_patients() -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """A few slices of one patient in each contrast."""
    result = {}
    for index, sequence in enumerate(SEQUENCES):
        case = sample_case(UNSEEN, index, size=128, slices=6)
        mr = sample_mr(np.random.default_rng(index), case.anatomy.size.width, sequence)
        array, _ = render(drawn_for_mr(case.anatomy), case.pose, case.scan, texture_generator(case), mr=mr)
        upright = Volume(array, case.scan.world_from_index)
        mask = torch.from_numpy(mr_body_mask(upright)).float()[:, None]
        image = torch.from_numpy(array.astype(np.float32))[:, None]
        result[sequence] = image, mask, roll_of(case.pose)
    return result


@pytest.fixture(scope="module")
def patients() -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    result = []
    for index in range(8):
        slab = sample_slab(UNSEEN, index, slices=4, size=128)
        mask = torch.from_numpy(body_mask(slab.volume, -250.0)).float()[:, None]
        result.append((window(slab.volume.array), mask, slab.roll))
    return result


def squared(array: np.ndarray, fill: float) -> torch.Tensor:
    """Pad slices to squares on two sides."""
    height, width = array.shape[1:]
    room = max(height, width)
    filled = np.full((len(array), room, room), fill, np.float32)
    filled[:, :height, :width] = array
    return torch.from_numpy(filled)[:, None]


def wrapped(angle: torch.Tensor) -> torch.Tensor:
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi


def turned(image: torch.Tensor, angle: float) -> torch.Tensor:
    """Rotate the contents of an image by an angle."""
    pose = torch.tensor([[-angle, 0.0, 0.0, 0.0, 0.0]])
    return warp(image, matrix_from_pose(pose), (image.shape[2], image.shape[3]))


@pytest.mark.parametrize("degrees", [0, 50, -120, 180])
def test_roll_of_unseen_phantoms_at_any_angle(network, patients, degrees):
    angle = math.radians(degrees)
    errors = [
        wrapped(
            network.estimate(roll_input_of(turned(image * mask, angle), turned(mask, angle))).angle
            - roll
            - angle
        )
        for image, mask, roll in patients
    ]
    off = torch.cat(errors).rad2deg().abs()
    assert off.median() < 1.5
    assert off.max() < 10.0


def test_roll_of_real_scans_is_small_and_follows_an_applied_rotation(network, real_ct):
    for source in (real_ct / "abdomen.nii.gz", real_ct / "dicom-series"):
        volume = read_volume(source).reoriented()
        mask = squared(body_mask(volume, -250.0)[::3].astype(np.float32), 0.0)
        image = window(squared(volume.array[::3], -1000.0)[:, 0].numpy()) * mask
        straight = network.estimate(roll_input_of(image, mask))
        assert straight.angle.rad2deg().abs().median() < 3.0
        leant = network.estimate(
            roll_input_of(turned(image, math.radians(130)), turned(mask, math.radians(130)))
        )
        off = wrapped(leant.angle - straight.angle - math.radians(130)).rad2deg().abs()
        assert off.median() < 2.0


def test_the_mirror_image_has_exactly_the_opposite_roll(network, patients):
    image, mask, _ = patients[0]
    plain = network.estimate(roll_input_of(image, mask), passes=1)
    back = network.estimate(roll_input_of(image.flip(3), mask.flip(3)), passes=1)
    assert torch.allclose(plain.angle, -back.angle, atol=1e-4)
    assert torch.allclose(plain.concentration, back.concentration, rtol=1e-3)
    assert torch.allclose(plain.mirrored, -back.mirrored, atol=1e-3)


def test_roll_does_not_depend_on_size_and_position(network, patients):
    image, mask, _ = patients[1]
    pose = torch.tensor([[0.0, 0.4, 0.4, 0.15, -0.1]])
    moved = [warp(part, matrix_from_pose(pose), (256, 256)) for part in (image * mask, mask)]
    before, after = network.estimate(roll_input_of(image, mask)), network.estimate(roll_input_of(*moved))
    assert wrapped(before.angle - after.angle).rad2deg().abs().max() < 1.5


def test_views_center_the_body_and_normalize_its_size():
    line = (torch.arange(96) * 2 + 1) / 96 - 1
    seen = []
    for x, y, radius in ((0.0, 0.0, 0.5), (0.3, -0.2, 0.25)):
        disc = ((line[None] - x) ** 2 + (line[:, None] - y) ** 2 < radius**2).float()[None, None]
        seen.append(views_of_slices(torch.ones(1, 1, 96, 96), disc, torch.zeros(1)))
    assert seen[0].shape == (1, 2, SIZE, SIZE)
    assert (seen[0] - seen[1]).abs().mean() < 0.02
    # The disc of the body's area has a radius of 1 / 1.6 of half the side.
    assert seen[1][:, 1].mean().item() == pytest.approx(math.pi / 4 / 1.6**2, rel=0.02)
    # Nothing outside the body is seen, whatever the image holds there.
    assert torch.equal(seen[0][:, 0] > 0, seen[0][:, 1] > 0)


def test_an_empty_disc_gives_finite_numbers_of_low_confidence(network):
    """A uniform disc has no roll, so the network must not be confident."""
    line = (torch.arange(96) * 2 + 1) / 96 - 1
    disc = ((line[None]) ** 2 + (line[:, None]) ** 2 < 0.4).float()[None, None]
    roll = network.estimate(roll_input_of(0.5 * disc, disc))
    assert log_odds_of(roll.concentration, network.calibration).item() < math.log(5.0)
    assert calibrated_concentration(roll.concentration, network.calibration).item() < 100.0
    empty = network.estimate(roll_input_of(torch.zeros(1, 1, 96, 96), torch.zeros(1, 1, 96, 96)))
    assert empty.angle.isfinite().all()
    assert empty.concentration.isfinite().all()


def test_concentration_is_bounded():
    torch.manual_seed(0)
    untrained = RollNetwork().eval()
    torch.nn.init.normal_(untrained.head[-1].weight, std=1e4)
    out = untrained(torch.rand(4, 2, SIZE, SIZE))
    assert out[:, :2].norm(dim=1).max() <= 10.0 * MAX_CONCENTRATION
    assert out.isfinite().all()


def test_calibration_is_a_power_law_and_discounts_similar_slices():
    calibration = torch.tensor([0.5, 2.0, 0.25, -1.0, 0.5])
    assert calibrated_concentration(torch.tensor([4.0]), calibration).item() == pytest.approx(8.0)
    assert effective_count(torch.tensor([1.0]), calibration).item() == 1.0
    assert effective_count(torch.tensor([13.0]), calibration).item() == pytest.approx(13.0 / 4.0)
    assert effective_count(torch.tensor([1e6]), calibration).item() == pytest.approx(4.0, rel=1e-3)
    assert log_odds_of(torch.tensor([16.0]), calibration).item() == pytest.approx(1.0)


def test_a_network_saved_without_odds_gets_the_former_defaults(network):
    old = {name: value.float() for name, value in compact_state(network).items()}
    old["calibration"] = torch.tensor([0.001, 2.0, 0.6])
    again = RollNetwork()
    again.load_state_dict(old)
    assert torch.equal(again.calibration, torch.tensor([0.001, 2.0, 0.6, *FORMER_ODDS]))


def test_the_shipped_weights_are_small_and_load_unchanged(network):
    stored = compact_state(network)
    assert sum(value.numel() * value.element_size() for value in stored.values()) < 4e6
    again = RollNetwork()
    again.load_state_dict({name: value.float() for name, value in stored.items()}, strict=False)
    for name, value in network.named_parameters():
        assert torch.equal(value, dict(again.named_parameters())[name]), "float16 holds what was shipped"


def test_the_network_of_any_contrast_ignores_unit_and_gain(patients) -> None:
    image, mask, _ = patients[0]
    seen = roll_input_by_own_body(image, mask)
    # Each slice has a scale of its own.
    gain = torch.tensor([1.0, 3.0, 250.0, 0.02])[:, None, None, None]
    louder = roll_input_by_own_body(gain * image - 40.0, mask)
    # Of squares, since a root enlarges what rounding leaves of dark values.
    torch.testing.assert_close(louder.image.square(), seen.image.square(), atol=4e-4, rtol=0.0)
    assert not seen.image[seen.mask == 0].any()
    inside = seen.image[seen.mask > 0.99]
    # Between the 2nd and 98.5th percentile nothing is cut.
    assert float(inside.min()) == 0.0
    assert float(inside.max()) == 1.0
    assert 0.01 < float((inside == 0.0).float().mean() + (inside == 1.0).float().mean()) < 0.4


def test_a_slice_without_a_body_or_of_one_value_is_finite_in_any_contrast() -> None:
    nothing = torch.zeros(1, 1, 96, 96)
    for mask in (nothing, nothing + 1.0):
        seen = roll_input_by_own_body(nothing + 7.0, mask)
        assert not seen.image.any()
        assert seen.view_pose.isfinite().all()


@pytest.mark.parametrize("degrees", [0, 50, -120, 180])
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_roll_of_unseen_mr_phantoms_at_any_angle(of_any, mr_patients, sequence, degrees) -> None:
    angle = math.radians(degrees)
    image, mask, roll = mr_patients[sequence]
    seen = roll_input_by_own_body(turned(image * mask, angle), turned(mask, angle))
    result = of_any.estimate(seen)
    common = result.evidence.sum(dim=0)
    error = wrapped(torch.atan2(common[1], common[0]) - roll - angle)
    assert abs(math.degrees(float(error))) < 5.0
