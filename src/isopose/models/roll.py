"""Which way is up: the roll of a slice, from what lies within the body.

An outline that is nearly round has no axis, and one turned by 180 degrees looks the same; the spine, the
muscles behind it, the organs and the gas do not. A small network looks at the body, centered and brought to
one size by its moments (which leaves only the roll unknown), and gives a direction and how sure it is of it.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isopose.geometry.moments import moments
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import block_means, warp

#: Pixels along a side of what the network sees, and half that side in radii of the disc of the body's area.
SIZE, REACH = 64, 1.6
#: Pixels along a side to which a frame is averaged before it is viewed, at least.
BEFORE_VIEW = 96
#: The window in which a scan is shown to the network where nothing else is known of it.
SOFT_TISSUE_HU = (-150.0, 300.0)
#: Channels after each halving of the picture.
FEATURES = (16, 32, 64, 96)
HIDDEN = 64
#: Concentration above which the network shall not claim to be: a standard deviation of 1.3 degrees.
MAX_CONCENTRATION = 2000.0


@dataclass(frozen=True)
class Roll:
    """What is seen of the roll of N slices.

    Args:
        angle: ``(N,)`` radians in (-pi, pi], positive from +x to +y: 0 where the patient's back is at +y.
        concentration: ``(N,)`` of the von Mises distribution of that angle; 1 / variance where it is large.
        mirrored: ``(N,)`` logit that the slice is shown as in a mirror: liver on the patient's left.
    """

    angle: Tensor
    concentration: Tensor
    mirrored: Tensor

    @property
    def evidence(self) -> Tensor:
        """``(N, 2)`` concentration times direction: sums of it are what independent slices say together."""
        return self.concentration[:, None] * torch.stack([self.angle.cos(), self.angle.sin()], dim=1)


class Shown(NamedTuple):
    """N slices from which views are taken, averaged once to a size that views need.

    Args:
        image: ``(N, 1, S, S)`` in [0, 1] within the body, 0 outside.
        mask: ``(N, 1, S, S)`` soft.
        place: ``(N, 4)`` of a pose: logarithms of the view's reach along both axes, and its center.
    """

    image: Tensor
    mask: Tensor
    place: Tensor


class RollNetwork(nn.Module):
    """From a view of a body to the direction of its left side, as concentration times direction.

    Halves the picture four times, keeps where things are (no pooling over the whole), two layers at the end.
    """

    calibration: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The first halving at once: what is wide and shallow costs most and shows least.
        layers = _block(2, FEATURES[0], size=5, stride=2)
        for before, after in pairwise(FEATURES):
            layers += [*_block(before, after, stride=2), *_block(after, after)]
        self.encoder = nn.Sequential(*layers)
        side = SIZE // 2 ** len(FEATURES)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(FEATURES[-1] * side**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
        )

        #: How the network's concentration is to be read: factor, power, and what neighboring slices share.
        self.register_buffer("calibration", torch.tensor([1.0, 1.0, 0.0]))

    def forward(self, views: Tensor) -> Tensor:
        """``(N, 3)`` float32: evidence x and y and the logit of a mirrored slice, of ``(N, 2, SIZE, SIZE)``.

        The evidence's length is bounded by :data:`MAX_CONCENTRATION`.
        """
        # Small enough for float32 always: theta is never made of rounded numbers.
        with torch.autocast(views.device.type, enabled=False):
            raw: Tensor = self.head(self.encoder(views.float().contiguous(memory_format=torch.channels_last)))
            length = raw[:, :2].norm(dim=1, keepdim=True)
            # The network's own unit is ten, so that usual concentrations are within the reach of its weights.
            scale = 10.0 * MAX_CONCENTRATION / (MAX_CONCENTRATION + 10.0 * length)
            return torch.cat([raw[:, :2] * scale, raw[:, 2:]], dim=1)

    def look(self, shown: Shown, angle: Tensor) -> Tensor:
        """Evidence and logit ``(N, 3)`` of slices turned back by an angle ``(N,)``, mirror images averaged.

        Averaged with what the mirror image says, mirrored: so that a patient and the patient's mirror image
        are leaned by exactly opposite angles, and an unequal liver and spleen lean nobody.
        """
        seen = view(shown, angle)
        both = self.forward(torch.cat([seen, seen.flip(3)]))
        here, there = both[: seen.shape[0]], both[seen.shape[0] :]
        sign = here.new_tensor([1.0, -1.0, -1.0])
        return 0.5 * (here + sign * there)

    def roll(self, shown: Shown, passes: int = 2, start: Tensor | None = None) -> Roll:
        """The roll of slices: a first look as they lie, then again, turned back by what was seen.

        Args:
            shown: the slices, see :func:`shown`.
            passes: looks, of which only the last is averaged with the mirror image.
            start: ``()`` or ``(N,)`` angle at which they are thought to lie; none: 0.
        """
        count = shown.mask.shape[0]
        angle = shown.place.new_zeros(count) if start is None else start.expand(count)
        for number in range(passes):
            last = number == passes - 1
            seen = self.look(shown, angle) if last else self.forward(view(shown, angle))
            angle = angle + torch.atan2(seen[:, 1], seen[:, 0])
        angle = torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi
        return Roll(angle, seen[:, :2].norm(dim=1), seen[:, 2])


def corrected(concentration: Tensor, calibration: Tensor) -> Tensor:
    """Calibrated concentration of what was seen, one slice or the mean of several.

    Args:
        concentration: ``(N,)`` length of the evidence.
        calibration: ``(3,)`` factor, power, shared part.
    """
    return calibration[0] * concentration.clamp(min=1e-6) ** calibration[1]


def worth_of(count: Tensor, calibration: Tensor) -> Tensor:
    """How many independent slices a number of one patient's slices are worth, for these err alike."""
    return count / (1.0 + (count - 1.0) * calibration[2])


def probability_within(concentration: Tensor, limit: float) -> Tensor:
    """Probability that a von Mises distributed angle lies within a limit (radians) of its direction."""
    # The normal distribution of the same concentration is near enough where it matters, and the uniform one
    # where nothing is known.
    normal = torch.erf(limit * (concentration / 2.0).sqrt())
    return normal.clamp(min=limit / math.pi)


def shown(image: Tensor, mask: Tensor, air: float = 0.0, top: float = 1.0) -> Shown:
    """Slices ready to be viewed.

    Args:
        image: ``(N, 1, S, S)`` over a window of soft tissue.
        mask: ``(N, 1, S, S)`` foreground.
        air: the image's value of air, which is shown as 0.
        top: the window's upper end, which is shown as 1.
    """
    mask = mask.to(image.dtype)
    inside, mask = block_means(image * mask, BEFORE_VIEW), block_means(mask, BEFORE_VIEW)
    return placed((inside - air * mask) / (top - air) * mask, mask)


def placed(image: Tensor, mask: Tensor) -> Shown:
    """Slices of any size, the image within the body alone, with the place and the reach of a view of each.

    The reach is that of the disc of the body's area, the same along both axes, so that nothing but the roll
    is lost or gained by it.
    """
    of = moments(mask)
    area = mask.float().mean(dim=(1, 2, 3)) * 4.0
    radius = torch.where(of.empty, 1.0, REACH * (area.clamp(min=1e-6) / math.pi).sqrt()).log()
    return Shown(image, mask, torch.cat([radius[:, None], radius[:, None], of.center], dim=1))


def view(shown: Shown, angle: Tensor) -> Tensor:
    """Bodies centered, brought to one size and turned back by an angle ``(N,)``: ``(N, 2, SIZE, SIZE)``.

    Channels are the image within the body, 0 outside, and the mask.
    """
    pose = torch.cat([angle[:, None], shown.place], dim=1)
    both = torch.cat([shown.image, shown.mask], dim=1)
    return warp(both, matrix_from_pose(pose), (SIZE, SIZE), prefilter=False)


def views(image: Tensor, mask: Tensor, angle: Tensor) -> Tensor:
    """Likewise, straight from slices ``(N, 1, S, S)`` as :func:`shown` takes them."""
    return view(placed(image * mask, mask), angle)


def _block(before: int, after: int, *, size: int = 3, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]
