import pytest
import torch

from isopose.geometry.box import (
    MIN_CROP,
    MIN_DEPTH,
    box_from_matrix,
    box_of_mask,
    jittered,
    matrix_from_box,
    whole_frame,
)


def test_square_in_plane_and_free_along_z():
    theta = matrix_from_box(torch.tensor([[-0.2, -0.1, -0.5, 0.6, 0.3, -0.1]]))
    point = theta[0] @ torch.tensor([1.0, -1.0, 1.0, 1.0])
    # Half a side of 0.4 around (0.2, 0.1), half a depth of 0.2 around -0.3.
    assert torch.allclose(point, torch.tensor([0.6, -0.3, -0.1, 1.0]), atol=1e-6)
    box = box_from_matrix(theta)
    assert torch.allclose(box, torch.tensor([[-0.2, -0.3, -0.5, 0.6, 0.5, -0.1]]), atol=1e-6)
    assert torch.allclose(matrix_from_box(box), theta)


def test_scales_and_shifts_are_bounded():
    tiny = matrix_from_box(torch.zeros(1, 6)).diagonal(dim1=1, dim2=2)[0]
    assert torch.allclose(tiny, torch.tensor([MIN_CROP, MIN_CROP, MIN_DEPTH, 1.0]))
    huge = matrix_from_box(3.0 * whole_frame(3)[None]).diagonal(dim1=1, dim2=2)[0]
    assert torch.equal(huge, torch.ones(4))
    assert torch.equal(matrix_from_box(whole_frame(3)[None]), torch.eye(4)[None])


def test_box_of_an_asymmetric_mask():
    mask = torch.zeros(2, 4, 8, 10)
    mask[0, 1:3, 2:7, 5:6] = 1
    box, has_box = box_of_mask(mask)
    assert has_box.tolist() == [True, False]
    assert torch.allclose(box[0], torch.tensor([0.0, -0.5, -0.5, 0.2, 0.75, 0.5]))
    assert box[1].tolist() == whole_frame(3).tolist()
    # The margin follows the longer side in plane (1.25), along z the depth (1).
    grown, _ = box_of_mask(mask, margin=0.1)
    assert torch.allclose(
        grown[0] - box[0], torch.tensor([-0.125, -0.125, -0.1, 0.125, 0.125, 0.1]), atol=1e-6
    )


def test_jitter_stays_within_its_bounds_and_zero_changes_nothing():
    theta = matrix_from_box(torch.tensor([[-0.5, -0.4, -0.6, 0.5, 0.4, 0.2]])).expand(64, 4, 4)
    assert torch.allclose(jittered(theta, torch.zeros(64, 5), shift=0.2, scale=0.2), theta)
    noise = torch.rand(64, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moved = jittered(theta, noise, shift=0.1, scale=0.2)
    change = (moved.diagonal(dim1=1, dim2=2) / theta.diagonal(dim1=1, dim2=2)).log()[:, :3]
    assert change[:, 0].tolist() == pytest.approx((0.2 * noise[:, 0]).tolist(), abs=1e-5)
    assert torch.equal(change[:, 0], change[:, 1])
    assert change[:, 2].tolist() == pytest.approx((0.2 * noise[:, 1]).tolist(), abs=1e-5)
    half = torch.tensor([0.5, 0.5, 0.4])
    assert torch.allclose(moved[:, :3, 3] - theta[:, :3, 3], 0.1 * half * noise[:, 2:], atol=1e-6)


def test_gradients_reach_the_box():
    box = torch.tensor([[-0.5, -0.4, -0.6, 0.5, 0.4, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(matrix_from_box, box)
