"""Label maps survive warp and restore."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from isopose.geometry.box import matrix_from_box
from isopose.geometry.frame import Frame
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import compose, invert, warp
from isopose.models.pipeline import frame_from_crop
from isopose.models.restore import restore


def labels_of(height: int, width: int, radius: float, cx: float, cy: float) -> torch.Tensor:
    """An off-center asymmetric object, a disc with a bite, and a second class touching it."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    disc = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
    bite = (x - cx - radius) ** 2 + (y - cy + radius) ** 2 < (0.7 * radius) ** 2
    second = (x - cx + 1.5 * radius) ** 2 + (y - cy) ** 2 < (0.6 * radius) ** 2
    labels = torch.zeros(height, width, dtype=torch.long)
    labels[disc & ~bite] = 1
    labels[second & ~disc] = 2
    return labels


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@settings(max_examples=40, deadline=None)
@given(
    angle=st.floats(-math.pi, math.pi),
    log_scale_x=st.floats(-0.5, 0.0),
    log_scale_y=st.floats(-0.5, 0.0),
    tx=st.floats(-0.1, 0.1),
    ty=st.floats(-0.1, 0.1),
    radius=st.floats(10, 18),
)
def test_labels_survive_a_round_trip(angle, log_scale_x, log_scale_y, tx, ty, radius):
    """Objects of 10 pixels and more, native to frame to crop of 128 pixels and back: Dice of 0.98."""
    height, width, spacing = 120, 150, (0.9, 1.1)
    labels = labels_of(height, width, radius, 70.0, 62.0)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 0)[None].float()
    frame = Frame((65.0, 66.0), 150.0, 128)
    pose = torch.tensor([[angle, log_scale_x, log_scale_y, tx, ty]])
    theta2 = matrix_from_box(torch.tensor([[-0.75, -0.75, 0.75, 0.75]]))
    slice_from_crop = compose(frame.slice_from_frame((height, width), spacing), frame_from_crop(pose, theta2))
    # What the crop cuts off cannot come back.
    held = warp(torch.ones(1, 1, 128, 128), invert(slice_from_crop), (height, width))[0, 0]
    assume(bool((held[labels > 0] > 0.99).all()))
    crop = warp(one_hot, slice_from_crop, (128, 128))
    back = restore(crop, slice_from_crop, (height, width)).argmax(1)[0]
    assert dice(back == 1, labels == 1) >= 0.98
    assert dice(back == 2, labels == 2) >= 0.95  # 12 to 21 pixels across
    assert ndimage.center_of_mass((back == 1).numpy()) == pytest.approx(
        ndimage.center_of_mass((labels == 1).numpy()), abs=0.15
    )


def test_outside_the_crop_is_background():
    theta = matrix_from_box(torch.tensor([[-0.5, -0.5, 0.0, 0.0]]))
    everything = torch.zeros(1, 3, 32, 32)
    everything[:, 2] = 1.0
    out = restore(everything, theta, (64, 64))
    assert torch.allclose(out.sum(1), torch.ones(1, 64, 64), atol=1e-5)
    marked = out.argmax(1)[0]
    assert (marked[16:32, 16:32] == 2).all()
    assert marked.bool().sum().item() == 16 * 16


def test_left_stays_left_through_the_inverse():
    """A blob on the patient's left (+x) of a turned patient is restored on that side."""
    pose = torch.tensor([[0.6, 0.1, 0.1, 0.05, 0.0]])
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 30:38, 44:54] = 1.0
    hom = warp(image, matrix_from_pose(pose), (64, 64))
    back = restore(torch.cat([1 - hom, hom], 1), matrix_from_pose(pose), (64, 64)).argmax(1)[0]
    _, x = ndimage.center_of_mass(back.numpy())
    assert x == pytest.approx(48.5, abs=0.3)
