"""Estimate the roll of a slice (the patient's rotation in its plane) from the anatomy inside the body.

The outline is not enough: a nearly round one has no axis, and one turned by 180 degrees looks the same.
Spine, back muscles, organs and gas tell the direction. The body is centered and scaled to one size by its
moments, which leaves only the roll unknown; a small network then estimates the roll and its concentration.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isopose.geometry.moments import moments
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import block_means, warp

#: Pixels along a side of the network's input, and half that side in radii of the disc of the body's area.
SIZE, REACH = 64, 1.6
#: Fewest pixels along a side to which a frame is averaged before the network's input is sampled from it.
AVERAGED_SIZE = 96
#: Intensity window in HU for scans without a window of their own.
SOFT_TISSUE_HU = (-150.0, 300.0)
#: Percentiles of a slice's body to which a network of any contrast has its values scaled.
OWN_PERCENTILES = (2.0, 98.5)
#: Channels after each halving of the image.
FEATURES = (16, 32, 64, 96)
HIDDEN = 64
#: Offset and slope of :func:`log_odds_of` before calibration: any evidence is certain to show the roll.
UNCALIBRATED_ODDS = (20.0, 0.0)
#: Offset and slope for models whose saved calibration has none; their weights are those of the network that
#: was shipped then.
FORMER_ODDS = (-0.7246, 0.4514)
#: Upper bound of the concentration: a standard deviation of 1.3 degrees.
MAX_CONCENTRATION = 2000.0


@dataclass(frozen=True)
class RollEstimate:
    """Roll of N slices as the network estimates it.

    Args:
        angle: ``(N,)`` radians in [-pi, pi), positive from +x to +y: 0 where the patient's back is at +y.
        concentration: ``(N,)`` of the von Mises distribution of that angle, not calibrated; 1 / variance
            (radians) where it is large.
        mirrored: ``(N,)`` logit that the slice is mirrored: liver on the patient's left.
    """

    angle: Tensor
    concentration: Tensor
    mirrored: Tensor

    @property
    def evidence(self) -> Tensor:
        """``(N, 2)`` concentration times unit direction.

        For independent slices the sum gives the most likely common angle (its direction) and its
        concentration (its length).
        """
        return self.concentration[:, None] * torch.stack([self.angle.cos(), self.angle.sin()], dim=1)


class RollInput(NamedTuple):
    """N slices prepared for the roll network, at reduced resolution; views are sampled from them.

    Args:
        image: ``(N, 1, S, S)`` in [0, 1] within the body, 0 outside.
        mask: ``(N, 1, S, S)`` in [0, 1], soft.
        view_pose: ``(N, 4)``, the view's pose without its angle: log scales along x and y, then its center in
            normalized coordinates.
    """

    image: Tensor
    mask: Tensor
    view_pose: Tensor


class RollNetwork(nn.Module):
    """Estimate the roll of a body from a view of it, as concentration times direction.

    An encoder halves the view four times; its features are flattened, not pooled, so that positions are kept;
    two fully connected layers follow.
    """

    calibration: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The first layer halves the view: full resolution would cost most and adds least.
        layers = _block(2, FEATURES[0], size=5, stride=2)
        for before, after in pairwise(FEATURES):
            layers += [*_block(before, after, stride=2), *_block(after, after)]
        self.encoder = nn.Sequential(*layers)
        side = SIZE // 2 ** len(FEATURES)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(FEATURES[-1] * side**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
        )

        #: Calibration: factor and power of the concentration, the share of error common to a patient's
        #: slices, offset and slope of the odds that it shows the roll.
        self.register_buffer("calibration", torch.tensor([1.0, 1.0, 0.0, *UNCALIBRATED_ODDS]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Add the former network's odds to a calibration that was saved without any."""
        saved = state_dict.get(prefix + "calibration")
        if saved is not None and saved.shape == (3,):
            state_dict[prefix + "calibration"] = torch.cat([saved, saved.new_tensor(FORMER_ODDS)])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, views: Tensor) -> Tensor:
        """Estimate the remaining roll of views.

        Args:
            views: ``(N, 2, SIZE, SIZE)``, image and mask, see :func:`views_at_angle`.

        Returns:
            ``(N, 3)`` float32: x and y of the evidence, whose length is bounded by
            :data:`MAX_CONCENTRATION`, and the logit that the slice is mirrored.
        """
        # Always float32, also under autocast: theta must not be rounded, and the network is small.
        with torch.autocast(views.device.type, enabled=False):
            raw: Tensor = self.head(self.encoder(views.float().contiguous(memory_format=torch.channels_last)))
            length = raw[:, :2].norm(dim=1, keepdim=True)
            # One unit of the network's output is a concentration of 10, so that usual values are of order 1.
            scale = 10.0 * MAX_CONCENTRATION / (MAX_CONCENTRATION + 10.0 * length)
            return torch.cat([raw[:, :2] * scale, raw[:, 2:]], dim=1)

    def forward_symmetric(self, slices: RollInput, angle: Tensor) -> Tensor:
        """Average the outputs for slices and for their mirror images.

        A patient and the patient's mirror image then get exactly opposite angles, so that the asymmetry of
        liver and spleen causes no bias.

        Args:
            slices: see :func:`roll_input_of`.
            angle: ``(N,)`` radians by which the slices are turned back first.

        Returns:
            ``(N, 3)``, see :meth:`forward`.
        """
        views = views_at_angle(slices, angle)
        outputs = self.forward(torch.cat([views, views.flip(3)]))
        plain, mirrored = outputs[: views.shape[0]], outputs[views.shape[0] :]
        sign = plain.new_tensor([1.0, -1.0, -1.0])
        return 0.5 * (plain + sign * mirrored)

    def estimate(
        self, slices: RollInput, passes: int = 2, initial_angle: Tensor | None = None
    ) -> RollEstimate:
        """Estimate the roll of slices in several passes; each turns them back by the angle found so far.

        Args:
            slices: see :func:`roll_input_of`.
            passes: number of passes; only the last is averaged with the mirror image.
            initial_angle: ``()`` or ``(N,)`` radians by which the first pass turns them back; None: 0.
        """
        count = slices.mask.shape[0]
        angle = slices.view_pose.new_zeros(count) if initial_angle is None else initial_angle.expand(count)
        for number in range(passes):
            last = number == passes - 1
            output = (
                self.forward_symmetric(slices, angle) if last else self.forward(views_at_angle(slices, angle))
            )
            angle = angle + torch.atan2(output[:, 1], output[:, 0])
        return RollEstimate(wrapped(angle), output[:, :2].norm(dim=1), output[:, 2])


def wrapped(angle: Tensor) -> Tensor:
    """Return angles in radians wrapped to [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi


def turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """Return vectors ``(N, 2)`` rotated by an angle ``()`` in radians, from +x to +y."""
    cos, sin = angle.cos(), angle.sin()
    x, y = vectors[:, 0], vectors[:, 1]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=1)


def log_odds_of(length: Tensor, calibration: Tensor) -> Tensor:
    """Return the log odds that evidence shows the roll at all: offset + slope · sqrt(length).

    Evidence that does not show it (from an organ that the network does not know, a head, or a field of view
    that cuts the outline) has an arbitrary direction.

    Args:
        length: of the evidence, any shape.
        calibration: ``(5,)`` factor, power, share of common error; offset and slope of the odds.
    """
    return calibration[3] + calibration[4] * length.sqrt()


def calibrated_concentration(concentration: Tensor, calibration: Tensor) -> Tensor:
    """Return factor · concentration ** power.

    Args:
        concentration: ``(N,)`` length of the evidence, of one slice or of the mean over several.
        calibration: ``(5,)``, see :func:`log_odds_of`.
    """
    return calibration[0] * concentration.clamp(min=1e-6) ** calibration[1]


def effective_count(count: Tensor, calibration: Tensor) -> Tensor:
    """Return the number of independent slices that a number of one patient's slices are worth.

    Slices of one patient share part of their error, so n of them count as n / (1 + (n - 1) · shared).

    Args:
        count: ``(N,)`` slices, from 1; not necessarily whole.
        calibration: ``(5,)``, see :func:`log_odds_of`.
    """
    return count / (1.0 + (count - 1.0) * calibration[2])


def roll_input_of(image: Tensor, mask: Tensor, air: float = 0.0, top: float = 1.0) -> RollInput:
    """Prepare slices for the roll network: average them to a small size and scale them to [0, 1].

    Args:
        image: ``(N, 1, S, S)``, a window of soft tissue.
        mask: ``(N, 1, S, S)`` foreground.
        air: value of air in the image, mapped to 0.
        top: upper end of the window in the image, mapped to 1.
    """
    mask = mask.to(image.dtype)
    inside, mask = block_means(image * mask, AVERAGED_SIZE), block_means(mask, AVERAGED_SIZE)
    return roll_input_of_masked((inside - air * mask) / (top - air) * mask, mask)


def roll_input_by_own_body(image: Tensor, mask: Tensor) -> RollInput:
    """Prepare slices without a unit, such as MR, for a roll network of any contrast.

    Each slice is scaled to [0, 1] by its own body, so that neither the scan's normalization nor a change of
    brightness along the scan matters.

    Args:
        image: ``(N, 1, S, S)``, any scale.
        mask: ``(N, 1, S, S)`` foreground.
    """
    mask = mask.to(image.dtype)
    inside, mask = block_means(image * mask, AVERAGED_SIZE), block_means(mask, AVERAGED_SIZE)
    return roll_input_of_masked(scaled_by_own_body(inside / mask.clamp(min=1e-6), mask) * mask.square(), mask)


def scaled_by_own_body(image: Tensor, mask: Tensor) -> Tensor:
    """Scale each slice to [0, 1] between :data:`OWN_PERCENTILES` of its body, and take the root.

    The root shows differences between dark tissues, where fluid is much brighter than all else (T2).

    Args:
        image: ``(N, 1, S, S)``.
        mask: the same shape, in [0, 1]; the body is where it is above 0.5.
    """
    # Every other pixel is enough for percentiles.
    subsampled, inside = (values[..., ::2, ::2].flatten(1) for values in (image, mask > 0.5))
    low, high = (_quantile(subsampled, inside, p / 100.0)[:, :, None, None] for p in OWN_PERCENTILES)
    return ((image - low) / (high - low).clamp(min=1e-6)).clamp(0.0, 1.0).sqrt()


def _quantile(values: Tensor, inside: Tensor, fraction: float) -> Tensor:
    """Return a quantile of the marked values of each row, interpolated linearly.

    It equals :func:`torch.nanquantile`, which cannot be exported to ONNX.

    Args:
        values: ``(N, K)``.
        inside: ``(N, K)`` booleans, the marked values; a row without any has the quantile 0.
        fraction: the quantile, from 0 to 1.

    Returns:
        ``(N, 1)``.
    """
    count = inside.sum(dim=1, keepdim=True)
    ascending = torch.where(inside, values, torch.inf).sort(dim=1).values
    rank = fraction * (count - 1).clamp(min=0).to(values.dtype)
    below, above = (ascending.gather(1, neighbor.long()) for neighbor in (rank.floor(), rank.ceil()))
    quantile = torch.lerp(below, above, rank - rank.floor())
    return torch.where(count > 0, quantile, torch.zeros_like(quantile))


def roll_input_of_masked(image: Tensor, mask: Tensor) -> RollInput:
    """Find where each body lies and how large it is, for views that are centered on it.

    A view reaches :data:`REACH` radii of the disc of the body's area, the same along both axes, so that views
    of a body at different rolls differ by a rotation only.

    Args:
        image: ``(N, 1, S, S)`` in [0, 1], 0 outside the body; S is free.
        mask: the same shape, foreground.
    """
    outline = moments(mask)
    area = mask.float().mean(dim=(1, 2, 3)) * 4.0
    log_reach = torch.where(outline.empty, 1.0, REACH * (area.clamp(min=1e-6) / math.pi).sqrt()).log()
    return RollInput(image, mask, torch.cat([log_reach[:, None], log_reach[:, None], outline.center], dim=1))


def views_at_angle(slices: RollInput, angle: Tensor) -> Tensor:
    """Sample views: bodies centered, scaled to one size and turned back by an angle.

    Args:
        slices: see :func:`roll_input_of`.
        angle: ``(N,)`` radians.

    Returns:
        ``(N, 2, SIZE, SIZE)``: the image within the body, 0 outside, and the mask.
    """
    pose = torch.cat([angle[:, None], slices.view_pose], dim=1)
    channels = torch.cat([slices.image, slices.mask], dim=1)
    return warp(channels, matrix_from_pose(pose), (SIZE, SIZE), prefilter=False)


def views_of_slices(image: Tensor, mask: Tensor, angle: Tensor) -> Tensor:
    """Sample views from slices at full resolution.

    Args:
        image: ``(N, 1, S, S)`` in [0, 1].
        mask: the same shape, foreground.
        angle: ``(N,)`` radians by which bodies are turned back.

    Returns:
        ``(N, 2, SIZE, SIZE)``, see :func:`views_at_angle`.
    """
    return views_at_angle(roll_input_of_masked(image * mask, mask), angle)


def _block(before: int, after: int, *, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return convolution, batch norm and ReLU."""
    return [
        nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]
