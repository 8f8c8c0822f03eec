"""The closed form of a volume's pose, from slices of known poses."""

import math

import pytest
import torch

from bright import ellipse
from isopose.geometry.moments import moments
from isopose.geometry.pose import LOG_SCALES, PITCH, ROLL, SHIFTS, YAW, matrix_from_pose
from isopose.geometry.warp import warp
from isopose.models.pose import PoseTransformer, SlicePoses
from isopose.scan.volume import slice_positions, volume_pose
from isopose.settings import PoseConfig

REFERENCE = ellipse(96, (0.86, 0.6))


def transformer(**changes) -> PoseTransformer:
    config = PoseConfig(**{"start": "moments", "per": "volume", "size": 32, **changes})
    return PoseTransformer(config, REFERENCE, -2.0, 3.0).eval()


def stack(pose: torch.Tensor, slices: int = 16, depth: float = 0.8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return masks ``(slices, 1, 96, 96)`` of the posed reference outline and the z positions of slices."""
    z = slice_positions(range(slices), slices, torch.diag(torch.tensor([1.0, 1.0, 1.0 / depth, 1.0])))
    line = (torch.arange(96) + 0.5) / 48 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    masks = []
    for w in z:
        points = torch.stack([x, y, torch.full_like(x, float(w)), torch.ones_like(x)], dim=-1)
        canonical = points @ torch.linalg.inv(matrix_from_pose(pose)).T
        masks.append(((canonical[..., 0] / 0.86) ** 2 + (canonical[..., 1] / 0.6) ** 2 <= 1).float())
    return torch.stack(masks)[:, None], z


def estimated(model: PoseTransformer, mask: torch.Tensor) -> SlicePoses:
    return model.estimate(mask, mask, 0.8)


@pytest.mark.parametrize(
    "pose",
    [
        (0.2, 0.1, -0.08, -0.4, -0.3, 0.0, 0.1, -0.05, 0.0),
        (-0.3, -0.12, 0.1, -0.5, -0.5, 0.0, -0.08, 0.06, 0.0),
        (0.0, 0.0, 0.0, -0.2, -0.4, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_pose_of_a_cylinder_is_recovered(pose):
    true = torch.tensor(pose)
    model = transformer()
    mask, z = stack(true)
    result, *_ = volume_pose(model, estimated(model, mask), z)
    angles = torch.rad2deg(result[[ROLL, PITCH, YAW]] - true[[ROLL, PITCH, YAW]])
    assert angles[1:].abs().tolist() == pytest.approx([0, 0], abs=0.6)
    # The section of a body that is both pitched and yawed is sheared by the product of their tangents, which
    # moments take for roll: up to 2 degrees here.
    assert angles[0].item() == pytest.approx(0, abs=2.0)
    assert result[LOG_SCALES][:2].tolist() == pytest.approx(list(pose[3:5]), abs=0.02)
    assert result[LOG_SCALES][2].item() == pytest.approx(sum(pose[3:5]) / 2, abs=0.02)
    assert result[SHIFTS].tolist() == pytest.approx(list(pose[6:]), abs=0.01)


def test_the_pose_brings_the_outline_onto_the_reference():
    """Homogenized, every slice between the ends is the reference's outline."""
    true = torch.tensor([0.25, 0.1, -0.1, -0.4, -0.5, -0.45, 0.05, -0.08, 0.0])
    model = transformer()
    mask, z = stack(true, slices=24)
    pose = volume_pose(model, estimated(model, mask), z)[0]
    stack_from_frame = torch.diag(torch.tensor([1.0, 1.0, 1.0 / 0.8, 1.0]))
    reach = torch.diag(torch.tensor([1.0, 1.0, 0.8, 1.0]))
    volume = mask[:, 0][None, None]
    out = warp(volume, stack_from_frame @ matrix_from_pose(pose) @ reach, (16, 96, 96))[0, 0]
    for row in out[4:12]:
        overlap = 2 * (row * REFERENCE[0, 0]).sum() / (row.square().sum() + REFERENCE.square().sum())
        assert overlap > 0.97


def test_the_similarity_option_gives_equal_scales():
    model = transformer(scales=1)
    mask, z = stack(torch.tensor([0.0, 0.0, 0.0, -0.2, -0.4, 0.0, 0.0, 0.0, 0.0]))
    scales = volume_pose(model, estimated(model, mask), z)[0][LOG_SCALES]
    assert scales.tolist() == pytest.approx([-0.3] * 3, abs=0.02)


def test_the_roll_is_pooled_over_confident_slices():
    model = transformer()
    mask, z = stack(torch.tensor([0.2, 0.0, 0.0, -0.3, -0.3, 0.0, 0.0, 0.0, 0.0]))
    slices = estimated(model, mask)
    wrong = slices.evidence.clone()
    wrong[:5] = 0.05 * torch.tensor([-1.0, 0.3])
    plain = volume_pose(model, slices, z)[0][ROLL]
    assert volume_pose(model, slices._replace(evidence=wrong), z)[0][ROLL] == pytest.approx(
        plain.item(), abs=0.02
    )


def test_slice_positions_are_in_half_sides_of_the_frame():
    """Four slices of 10 mm in a frame of 100 mm: 15 and 5 mm from the middle, in units of 50 mm."""
    stack_from_frame = torch.diag(torch.tensor([1.0, 1.0, 100.0 / 40.0, 1.0]))
    assert slice_positions(range(4), 4, stack_from_frame).tolist() == pytest.approx([-0.3, -0.1, 0.1, 0.3])


def test_an_off_center_reference_is_aligned():
    off = torch.roll(REFERENCE, 6, dims=3)
    model = PoseTransformer(PoseConfig(start="moments", per="volume"), off, -2.0, 3.0).eval()
    mask, z = stack(torch.tensor([0.3, 0.0, 0.0, -0.3, -0.3, -0.3, 0.0, 0.0, 0.0]))
    pose = volume_pose(model, estimated(model, mask), z)[0]
    expected = matrix_from_pose(pose) @ torch.cat([moments(off).center[0], torch.tensor([0.0, 1.0])])
    assert expected[:2].tolist() == pytest.approx([0.0, 0.0], abs=0.01)
    assert math.degrees(pose[ROLL]) == pytest.approx(math.degrees(0.3), abs=1.0)
