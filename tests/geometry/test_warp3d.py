"""Warps of volumes with anisotropic voxels; positions are compared in millimeters."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from isopose.geometry.frame import Frame
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import compose, invert, normalized_from_pixel, warp

SHAPE, SPACING = (18, 50, 70), (1.3, 1.9, 6.0)
FRAME = Frame((44.0, 50.0), 96.0, 64)


def blob(center_mm, radius=9.0) -> torch.Tensor:
    """A ball, soft by half a voxel, in a volume of :data:`SHAPE`, at in-volume mm ``(x, y, z)``."""
    z, y, x = (np.arange(n) * s for n, s in zip(SHAPE, SPACING[::-1], strict=True))
    distance = np.sqrt(
        (x - center_mm[0]) ** 2
        + ((y - center_mm[1]) ** 2)[:, None]
        + ((z - center_mm[2]) ** 2)[:, None, None]
    )
    return torch.from_numpy(np.clip((radius - distance) / 2.0 + 0.5, 0, 1)).float()[None, None]


def middle_of(volume: torch.Tensor) -> np.ndarray:
    """Center of mass in indices ``(x, y, z)``."""
    return np.array(ndimage.center_of_mass(volume[0, 0].numpy())[::-1])


def test_an_off_center_blob_has_its_position_in_millimeters():
    """A rotated, scaled, shifted isotropic frame of another number of voxels, worked out by hand in mm."""
    pose = torch.tensor([[0.5, -0.2, 0.15, math.log(0.8), math.log(0.7), math.log(0.9), 0.1, -0.05, 0.08]])
    volume_from_frame = FRAME.volume_from_frame(SHAPE, SPACING)
    expected_mm = np.array([52.0, 60.0, 66.0])
    size = (48, 64, 80)
    out = warp(blob(expected_mm), compose(volume_from_frame, matrix_from_pose(pose)), size)
    # By hand: mm to the isotropic frame, out of theta1, to output indices.
    scan_middle = (SHAPE[0] - 1) / 2 * SPACING[2]
    frame_point = (expected_mm - [*FRAME.center_mm, scan_middle]) / (FRAME.fov_mm / 2)
    homogenized = np.linalg.solve(matrix_from_pose(pose.double())[0].numpy(), [*frame_point, 1.0])[:3]
    expected = (homogenized + 1) / 2 * np.array(size[::-1]) - 0.5
    np.testing.assert_allclose(middle_of(out), expected, atol=0.25)


def test_a_blob_is_restored_to_within_half_a_voxel():
    pose = torch.tensor([[0.3, 0.15, -0.12, *(math.log(0.75),) * 3, 0.05, -0.1, 0.04]])
    matrix = compose(FRAME.volume_from_frame(SHAPE, SPACING), matrix_from_pose(pose))
    source = blob((50.0, 55.0, 48.0))
    back = warp(warp(source, matrix, (32, 96, 96)), invert(matrix), SHAPE)
    np.testing.assert_allclose(middle_of(back), middle_of(source), atol=0.3)
    both = ((back > 0.5) & (source > 0.5)).sum()
    assert 2 * both / ((back > 0.5).sum() + (source > 0.5).sum()) > 0.93


def test_a_rotation_of_anisotropic_voxels_does_not_shear():
    """A long bar along z is pitched by 30 degrees; its direction in mm is what the angle says."""
    _, y, x = np.indices(SHAPE) * np.array(SPACING[::-1]).reshape(3, 1, 1, 1)
    bar = (np.hypot(x - 44.0, y - 50.0) < 6).astype(np.float32)[None, None]
    pose = torch.zeros(1, 9)
    pose[0, 1] = math.radians(30)
    frame = FRAME.volume_from_frame(SHAPE, SPACING)
    # input_from_output turns +y to +z, so the picture of the bar turns the other way.
    out = warp(torch.from_numpy(bar), compose(frame, matrix_from_pose(pose)), (64, 64, 64))[0, 0]
    rows = [ndimage.center_of_mass(out[k].numpy())[0] for k in range(22, 42)]
    assert np.degrees(np.arctan(np.polyfit(range(20), rows, 1)[0])) == pytest.approx(30, abs=1.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shrinking_is_prefiltered_along_each_axis(axis):
    stripes = torch.zeros(1, 1, 32, 32, 32)
    index = [slice(None)] * 3
    index[axis] = slice(None, None, 4)
    stripes[(0, 0, *index)] = 1.0
    size = [32, 32, 32]
    size[axis] = 8
    inner = warp(stripes, torch.eye(4), tuple(size))[0, 0].narrow(axis, 2, 4)
    assert (inner - 0.25).abs().max() < 0.03
    raw = warp(stripes, torch.eye(4), tuple(size), prefilter=False)[0, 0].narrow(axis, 2, 4)
    assert (raw - 0.25).abs().max() > 0.2


def test_identity_whole_voxel_shifts_and_outside():
    volume = torch.rand(1, 2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(warp(volume, torch.eye(4), (5, 6, 7)), volume, atol=1e-6)
    shift = torch.eye(4)
    shift[2, 3] = 2 * 2 / 5
    moved = warp(volume, shift, (5, 6, 7), fill=-3.0)
    assert torch.allclose(moved[:, :, :3], volume[:, :, 2:], atol=1e-5)
    assert torch.allclose(moved[:, :, 3:], torch.full((1, 2, 2, 6, 7), -3.0))


def test_corner_voxels_have_the_coordinates_of_their_centers():
    matrix = normalized_from_pixel((4, 5, 10))
    point = matrix @ torch.tensor([0.0, 4.0, 3.0, 1.0])
    assert torch.allclose(point, torch.tensor([-0.9, 0.8, 0.75, 1.0]))


def test_gradients_of_warp_in_volumes():
    torch.manual_seed(0)
    volume = torch.rand(1, 1, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    pose = torch.full((1, 9), 0.07, dtype=torch.float64, requires_grad=True)

    def warped(v, p):
        return warp(v, matrix_from_pose(p), (3, 4, 4), prefilter=False)

    assert torch.autograd.gradcheck(warped, (volume, pose))


def test_float32_under_autocast():
    volume, pose = torch.rand(1, 1, 8, 8, 8), torch.full((1, 9), 0.123)
    expected = warp(volume, invert(matrix_from_pose(pose)), (8, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(volume, invert(matrix_from_pose(pose)), (8, 8, 8)), expected)
