"""The symmetry axis of a slice, from the image and not from its outline alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.symmetry import symmetry_axis
from isopose.geometry.warp import warp

SIZE = 128
AIR = -2.0


def torso(width: float, depth: float, flank: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """An upright slice, image and mask: spine, ribs and a liver on one side; ``flank`` bulges one side."""
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    mask = (x / width) ** 2 + (y / depth) ** 2 < 1
    if flank:
        mask |= ((x + width * 0.75) / (0.2 + flank)) ** 2 + ((y + 0.1) / 0.22) ** 2 < 1
    image = torch.full((SIZE, SIZE), AIR)
    image[mask] = 0.0
    image[((x + 0.3 * width) / 0.2) ** 2 + ((y + 0.1) / 0.2) ** 2 < 1] = 0.6
    for side in (-1, 1):
        image[(x - side * 0.62 * width) ** 2 + (y - 0.45 * depth) ** 2 < 0.004] = 3.0
        image[(x - side * 0.2) ** 2 + (y - 0.55 * depth) ** 2 < 0.01] = 1.0
    image[(x / 0.09) ** 2 + ((y - 0.55 * depth) / 0.11) ** 2 < 1] = 3.0
    image[(x.abs() < 0.03) & (y > 0.55 * depth) & (y < 0.9 * depth)] = 3.0
    image[~mask] = AIR
    return image[None, None], mask.float()[None, None]


def lying(
    image: torch.Tensor, mask: torch.Tensor, roll: float, shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slice turned by ``roll`` radians from +x to +y, so that theta1 of its pose would undo it."""
    turn = matrix_from_pose(torch.tensor([[-roll, 0.0, 0.0, *shift]]))
    return warp(image, turn, (SIZE, SIZE), fill=AIR), (warp(mask, turn, (SIZE, SIZE)) > 0.5).float()


@pytest.mark.parametrize("degrees", [-36.0, -13.7, 0.0, 4.4, 22.5, 40.0])
@pytest.mark.parametrize("flank", [0.0, 0.08])
def test_a_known_roll_is_recovered(degrees: float, flank: float) -> None:
    roll = math.radians(degrees)
    result = symmetry_axis(*lying(*torso(0.7, 0.5, flank), roll, (0.06, -0.04)))
    assert math.degrees(result.angle.item()) == pytest.approx(degrees, abs=1.5)
    assert result.score.item() > 0.9


@settings(max_examples=12, deadline=None)
@given(degrees=st.floats(-40, 40), depth=st.floats(0.6, 0.66))
def test_the_spine_overrules_a_round_outline(degrees: float, depth: float) -> None:
    """The outline is nearly a circle and has no principal axis; the image has a symmetry axis."""
    image, mask = lying(*torso(0.63, depth), math.radians(degrees))
    result = symmetry_axis(image, mask)
    assert math.degrees(result.angle.item()) == pytest.approx(degrees, abs=1.5)


def test_the_image_overrules_an_outline_that_leans() -> None:
    """Outline turned by 20 degrees, spine and ribs upright within it."""
    image, _ = torso(0.66, 0.6)
    _, mask = lying(*torso(0.66, 0.6), math.radians(20))
    image = torch.where(mask > 0.5, image.clamp(min=0.0), AIR)
    assert abs(math.degrees(symmetry_axis(image, mask).angle.item())) < 4.0
    # With nothing inside, the same outline leans.
    empty = torch.where(mask > 0.5, 0.0, AIR)
    assert math.degrees(symmetry_axis(empty, mask).angle.item()) == pytest.approx(20.0, abs=1.5)


def test_slices_of_a_batch_are_independent_and_units_do_not_matter() -> None:
    rolls = [-0.3, 0.0, 0.25]
    parts = [lying(*torso(0.7, 0.5), roll) for roll in rolls]
    image, mask = (torch.cat(part) for part in zip(*parts, strict=True))
    result = symmetry_axis(image, mask)
    assert result.angle.tolist() == pytest.approx(rolls, abs=0.026)
    assert symmetry_axis(image * 100.0 + 40.0, mask).angle.tolist() == pytest.approx(
        result.angle.tolist(), abs=1e-4
    )


def test_the_score_tells_a_symmetric_slice_from_a_lopsided_one() -> None:
    upright, lopsided = torso(0.7, 0.5), torso(0.7, 0.5, flank=0.2)
    assert symmetry_axis(*upright).score.item() > symmetry_axis(*lopsided).score.item() + 0.01


def test_a_slice_without_a_body_gives_finite_numbers() -> None:
    result = symmetry_axis(torch.full((1, 1, SIZE, SIZE), AIR), torch.zeros(1, 1, SIZE, SIZE))
    assert torch.isfinite(result.angle).all()
    assert result.score.item() == 0.0
