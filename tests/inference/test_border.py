import pytest
import torch

from isopose.inference.border import touches_border


def crop(scale, x, y):
    return torch.tensor([[[scale, 0.0, x], [0.0, scale, y], [0.0, 0.0, 1.0]]])


def marks(row, column, size=8):
    """Make probabilities with one pixel of class 2, else background."""
    values = torch.zeros(1, 3, size, size)
    values[:, 0] = 1.0
    values[0, :, row, column] = torch.tensor([0.1, 0.2, 0.7])
    return values


INSIDE = crop(0.5, 0.0, 0.0)
#: Crops that end at the frame's own edge on one side: left, right, front (top), back (bottom).
AT_EDGE = {
    "left": crop(0.5, -0.5, 0.0),
    "right": crop(0.5, 0.5, 0.0),
    "front": crop(0.5, 0.0, -0.5),
    "back": crop(0.5, 0.0, 0.5),
}
PIXEL = {"left": (4, 0), "right": (4, 7), "front": (0, 4), "back": (7, 4)}


@pytest.mark.parametrize("side", PIXEL)
def test_a_label_at_the_crops_edge_counts_as_cut_unless_the_frame_ends_there(side):
    assert touches_border(marks(*PIXEL[side]), INSIDE, 1).tolist() == [True]
    for edge, theta2 in AT_EDGE.items():
        assert touches_border(marks(*PIXEL[side]), theta2, 1).tolist() == [edge != side]
    assert touches_border(marks(*PIXEL[side]), torch.eye(3)[None], 1).tolist() == [False]


@pytest.mark.parametrize("side", PIXEL)
def test_the_border_has_the_configured_width(side):
    row, column = (min(max(p, 1), 6) for p in PIXEL[side])
    assert touches_border(marks(row, column), INSIDE, 1).tolist() == [False]
    assert touches_border(marks(row, column), INSIDE, 2).tolist() == [True]
    assert touches_border(marks(*PIXEL[side]), INSIDE, 0).tolist() == [False]


def test_each_crop_is_judged_by_itself_and_background_is_no_label():
    empty = torch.zeros(1, 3, 8, 8)
    empty[:, 0] = 1.0
    batch = torch.cat([marks(0, 3), marks(3, 3), empty, marks(3, 7)])
    theta2 = torch.cat([INSIDE, INSIDE, INSIDE, AT_EDGE["right"]])
    assert touches_border(batch, theta2, 1).tolist() == [True, False, False, False]
