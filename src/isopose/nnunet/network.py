"""Wrap a segmentation network between homogenization and its inverse: the paper's H and H⁻¹.

Poses are estimated by the roll network and the reference that ship with the package, which stay frozen; only
the wrapped network is trained.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import Mode, compose, warp
from isopose.models.pose import PoseTransformer
from isopose.models.restore import restore
from isopose.models.roll import SOFT_TISSUE_HU
from isopose.models.shipped import load_reference, load_shipped
from isopose.settings import PoseConfig

#: Radius of the opening that removes the table, as a fraction of the image's longer side.
TABLE_FRACTION = 0.01
#: Threshold of the body above the darkest value, as a fraction of the soft-tissue window.
BODY_THRESHOLD = 0.03
#: Lower bound of probabilities, so that their logarithms are finite.
MIN_PROBABILITY = 1e-6


class PosedNetwork(nn.Module):
    """Homogenize slices, segment them, and restore the segmentations.

    Args:
        network: maps ``(N, C, S, S)`` to logits ``(N, classes, s, s)``, or a list of them at several
            resolutions; with background as class 0.
        mean: mean in HU by which slices were z-scored.
        sd: standard deviation in HU by which slices were z-scored.
        low: lower bound in HU to which slices were clipped, the value of air.
        seen_from: higher lower bound in HU for the wrapped network's input; None: ``low``.
    """

    def __init__(
        self, network: nn.Module, *, mean: float, sd: float, low: float, seen_from: float | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.darkest = (max(low, low if seen_from is None else seen_from) - mean) / sd
        bottom, top = ((value - mean) / sd for value in SOFT_TISSUE_HU)
        self.air = (low - mean) / sd
        self.threshold = max(bottom, self.air) + BODY_THRESHOLD * (top - bottom)
        self.pose = PoseTransformer(PoseConfig(per="slice"), load_reference().mask, bottom, top)
        assert self.pose.roll is not None
        load_shipped(self.pose.roll)
        self.pose.eval().requires_grad_(False)

    @property
    def decoder(self) -> nn.Module:
        """The wrapped network's decoder, whose deep supervision nnU-Net turns on and off."""
        return self.network.get_submodule("decoder")

    def train(self, mode: bool = True) -> "PosedNetwork":
        """Set training mode of the wrapped network; the pose transformer stays in evaluation mode."""
        super().train(mode)
        self.pose.eval()
        return self

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment slices in their own pose.

        Pixels outside of the homogenized image become background.

        Args:
            image: ``(N, C, H, W)``, CT in the first channel.

        Returns:
            Log probabilities (valid logits) ``(N, classes, H, W)``, or a list of them at several resolutions.
        """
        height, width = image.shape[2:]
        side = max(height, width)
        theta = self.input_from_homogenized(image)
        # Only the first channel is clipped, because the units of the others are not known.
        clipped = torch.cat([image[:, :1].clamp(min=self.darkest), image[:, 1:]], dim=1)
        homogenized = warp(clipped, theta, (side, side), fill=self.darkest)
        logits = self.network(homogenized)
        # As in SegmentationObjective: bilinear restoration hides a checkerboard pattern from the loss.
        mode: Mode = "nearest" if self.training else "bilinear"
        if isinstance(logits, Tensor):
            return _restored(logits, theta, (height, width), mode)
        scales = [level.shape[-1] / side for level in logits]
        return [
            _restored(level, theta, (round(height * scale), round(width * scale)), mode)
            for level, scale in zip(logits, scales, strict=True)
        ]

    @torch.no_grad()
    def input_from_homogenized(self, image: Tensor) -> Tensor:
        """Estimate the matrices ``(N, 3, 3)`` that homogenize slices ``(N, C, H, W)``, from channel 0."""
        height, width = image.shape[2:]
        side = max(height, width)
        # Poses are defined for square frames: the slice is centered in one.
        slice_from_square = torch.diag(
            image.new_tensor([side / width, side / height, 1.0], dtype=torch.float32)
        )
        with torch.autocast(image.device.type, enabled=False):
            square = warp(
                image[:, :1].float(), slice_from_square, (side, side), fill=self.air, prefilter=False
            )
            pose = self.pose.estimate(square, body(square, self.threshold), 0.0).pose
        return compose(slice_from_square, matrix_from_pose(pose))


def body(image: Tensor, threshold: float) -> Tensor:
    """Return a rough foreground of slices: threshold, opening, holes filled.

    Unlike ``data/body.py`` it runs on any device, slice by slice, and includes arms and thick tables. It
    needs images whose fat was not clipped (see ``plans.py``).

    Args:
        image: ``(N, 1, S, S)``.
        threshold: brighter pixels may be body.

    Returns:
        ``(N, 1, S, S)`` float in {0, 1}.
    """
    bright = (image > threshold).float()
    radius = max(1, round(TABLE_FRACTION * image.shape[-1]))
    window = 2 * radius + 1
    eroded = -F.max_pool2d(F.pad(-bright, (radius,) * 4, value=-1.0), window, stride=1)
    opened = F.max_pool2d(eroded, window, stride=1, padding=radius)
    return (_span(opened, 2) & _span(opened, 3)).float()


def _span(mask: Tensor, axis: int) -> Tensor:
    """Return the pixels from the first to the last marked pixel along an axis."""
    before = mask.cumsum(axis) > 0
    return before & (mask.flip(axis).cumsum(axis).flip(axis) > 0)


def _restored(logits: Tensor, theta: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    """Restore logits to the image's pose as log probabilities ``(N, classes, *size)``."""
    with torch.autocast(logits.device.type, enabled=False):
        probabilities = restore(logits.float().softmax(dim=1), theta, size, mode=mode)
        return probabilities.clamp(min=MIN_PROBABILITY).log()
