import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.geometry.frame import Frame
from isopose.geometry.warp import normalized_from_pixel, warp


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    sx=st.floats(0.3, 3.0),
    sy=st.floats(0.3, 3.0),
    cx=st.floats(-50, 150),
    cy=st.floats(-50, 150),
    fov=st.floats(20, 400),
)
def test_a_frame_pixel_has_its_position_in_millimeters(height, width, sx, sy, cx, cy, fov):
    """By hand in mm: pixel (i, j) of the frame lies at center + (i + 0.5) * pixel - fov / 2."""
    frame = Frame((cx, cy), fov, 64)
    matrix = frame.slice_from_frame((height, width), (sx, sy)).double()
    i, j = 10, 37
    in_frame = normalized_from_pixel((64, 64)).double() @ torch.tensor([i, j, 1.0]).double()
    in_slice = torch.linalg.inv(normalized_from_pixel((height, width)).double()) @ matrix @ in_frame
    assert in_slice[0].item() * sx == pytest.approx(cx + (i + 0.5) * fov / 64 - fov / 2, abs=2e-3)
    assert in_slice[1].item() * sy == pytest.approx(cy + (j + 0.5) * fov / 64 - fov / 2, abs=2e-3)


def test_anisotropic_pixels_become_isotropic_in_the_frame():
    """A circle in mm on pixels of 1 x 2 mm is a circle in the frame."""
    y, x = torch.meshgrid(torch.arange(50) * 2.0, torch.arange(100) * 1.0, indexing="ij")
    disc = (((x - 50) ** 2 + (y - 50) ** 2) < 30**2).float()[None, None]
    frame = Frame((50.0, 50.0), 100.0, 100)
    seen = warp(disc, frame.slice_from_frame((50, 100), (1.0, 2.0)), (100, 100))[0, 0] > 0.5
    assert seen.any(0).sum().item() == pytest.approx(60, abs=2)
    assert seen.any(1).sum().item() == pytest.approx(60, abs=2)
