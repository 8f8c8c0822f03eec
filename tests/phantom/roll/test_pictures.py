import math

import numpy as np
import pytest
import torch

from isopose.models.roll import SIZE
from isopose.phantom.roll.pictures import DEFORMED_SIZE, VIEWS, Batches, batch, picture, turned_pictures
from isopose.phantom.roll.slabs import (
    LOWEST_HU,
    STEP_HU,
    STORED_REACH,
    STORED_SIZE,
    Slabs,
    draw_slabs,
    hounsfield,
)


def leaning(*degrees: float) -> Slabs:
    """Draw discs with a bright spine at the back and a mark on the left, each with its roll."""
    line = ((2.0 * torch.arange(STORED_SIZE) + 1.0) / STORED_SIZE - 1.0) * STORED_REACH
    x, y = line[None, :], line[:, None]
    hu, masks = [], []
    for angle in degrees:
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        own_x, own_y = c * x + s * y, -s * x + c * y
        mask = own_x**2 + own_y**2 < 1.0
        plane = torch.where(mask, 20.0, LOWEST_HU)
        plane = torch.where((own_x**2 + (own_y - 0.6) ** 2) < 0.04, 500.0, plane)
        plane = torch.where(((own_x - 0.5) ** 2 + own_y**2) < 0.04, 200.0, plane)
        hu.append(((plane - LOWEST_HU) / STEP_HU).round().clamp(0, 255).to(torch.uint8))
        masks.append(mask)
    roll = torch.tensor([math.radians(a) for a in degrees])
    return Slabs(torch.stack(hu), torch.stack(masks), roll, torch.arange(len(degrees)))


def middle(image: torch.Tensor, above: float) -> tuple[float, float]:
    """Centroid ``(x, y)`` in radii of what is bright."""
    side = image.shape[-1]
    line = (2.0 * torch.arange(side) + 1.0) / side - 1.0
    bright = (image > above).float()
    return float((bright * line[None, :]).sum() / bright.sum()), float(
        (bright * line[:, None]).sum() / bright.sum()
    )


def test_bytes_are_converted_back_to_hounsfield_units():
    assert hounsfield(torch.tensor([0, 75, 255], dtype=torch.uint8)).tolist() == [-300.0, 0.0, 720.0]


def test_views_are_upright_for_any_roll():
    slabs = leaning(0, 35, -60, 150)
    results = []
    for seed in range(12):
        image, mask = picture(slabs, torch.arange(4), torch.Generator().manual_seed(seed))
        assert image.shape == mask.shape == (4, 1, DEFORMED_SIZE, DEFORMED_SIZE)
        assert 0.0 <= image.min() <= image.max() <= 1.0
        assert not image[mask == 0].any()
        for one in image[:, 0]:
            peak = one[:, DEFORMED_SIZE // 3 : -DEFORMED_SIZE // 3]
            if float(peak.max()) > 0.9:
                results.append(middle(one, 0.9)[1])
    # The spine is the brightest: at the back, in most of the disturbed pictures.
    assert np.median(results) > 0.15


def test_alike_disturbs_all_slices_in_the_same_way():
    slabs = leaning(20, 20, 20)
    for seed in range(6):
        image, mask = picture(slabs, torch.arange(3), torch.Generator().manual_seed(seed), alike=True)
        assert torch.equal(mask[0], mask[1])
        assert torch.equal(mask[0], mask[2])
        # Noise alone differs.
        assert (image[0] - image[1]).abs().mean() < 0.25
    masks = [picture(slabs, torch.arange(3), torch.Generator().manual_seed(s))[1] for s in range(6)]
    assert any(not torch.equal(mask[0], mask[1]) for mask in masks)


def test_the_truth_of_a_view_is_its_angle():
    """A view rotated back by its true angle shows the spine at the back."""
    slabs = leaning(0, 0, 0, 0)
    seen, angle, mirrored = batch(slabs, torch.arange(4), torch.Generator().manual_seed(1))
    assert seen.shape == (4 * VIEWS, 2, SIZE, SIZE)
    assert mirrored.tolist() == ([0.0] * 4 + [1.0] * 4) * (VIEWS // 2)
    assert angle[: 2 * VIEWS].abs().max() > 1.0
    assert angle[2 * VIEWS :].abs().max() < 1.0
    image, _, lies = turned_pictures(slabs, torch.arange(4), randomized=False, seed=3)
    x, y = middle(image[0, 0], 0.99)
    # At the back means at +y turned by the truth.
    off = math.degrees(math.atan2(-x, y) - float(lies[0]))
    assert (off + 180) % 360 - 180 == pytest.approx(0, abs=25)


def test_a_batch_depends_on_its_number_alone():
    slabs = leaning(0, 40, 80)
    one, other = Batches(slabs, 5, 10, 3), Batches(slabs, 5, 10, 3)
    for a, b in zip(one[7], other[7], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one[7][1], one[8][1])


def test_slabs_are_cached_and_equal_the_phantoms(tmp_path):
    slabs = draw_slabs(tmp_path, 5, range(2), 3, 0)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = draw_slabs(tmp_path, 5, range(2), 3, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert torch.equal(slabs.hu, again.hu)
    assert slabs.patient.unique().tolist() == [0, 1]
    # A body of one size in the middle: a disc of its area has a radius of half the kept reach.
    area = slabs.mask.float().mean(dim=(1, 2)) * (2.0 * STORED_REACH) ** 2
    assert area.numpy() == pytest.approx(math.pi, rel=0.03)
    line = (2.0 * torch.arange(STORED_SIZE) + 1.0) / STORED_SIZE - 1.0
    center = (slabs.mask * line).sum(dim=(1, 2)) / slabs.mask.sum(dim=(1, 2))
    assert center.abs().max() < 0.02


def test_of_any_contrast_the_brightness_of_tissues_changes_and_the_outline_does_not():
    slabs = leaning(0, 35, -60, 150).of(torch.tensor([0] * 24))
    rows = torch.arange(24)
    spine_is_brightest = []
    for seed in range(4):
        plain, mask = picture(slabs, rows, torch.Generator().manual_seed(seed))
        image, same = picture(slabs, rows, torch.Generator().manual_seed(seed), contrast="any")
        torch.testing.assert_close(same, mask, atol=0.0, rtol=0.0)
        assert 0.0 <= image.min() <= image.max() <= 1.0
        assert not image[mask == 0].any()
        for one, of_ct in zip(image[:, 0], plain[:, 0], strict=True):
            if float(of_ct.max()) > 0.9 and middle(of_ct, 0.9)[1] > 0.15 and float(one.max()) > 0.9:
                spine_is_brightest.append(middle(one, 0.9)[1] > 0.15)
    # In CT it always is, of those chosen; with tissues of any brightness in a part of the pictures only.
    assert 0.1 < np.mean(spine_is_brightest) < 0.9


def test_alike_in_any_contrast_gives_all_slices_the_same_tissues():
    slabs, rows = leaning(0, 0, 0), torch.arange(3)

    def difference(seed: int, alike: bool) -> float:
        generator = torch.Generator().manual_seed(seed)
        image, _ = picture(slabs, rows, generator, contrast="any", alike=alike)
        return float((image[0] - image[1]).abs().mean())

    # Alike but for their noise.
    assert np.mean([difference(seed, True) for seed in range(8)]) < 0.03
    assert np.mean([difference(seed, False) for seed in range(8)]) > 0.06
