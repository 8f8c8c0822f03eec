"""A network that sees slices in one pose and size, and whose answers come back: the paper's H and H⁻¹.

Poses are found by the network and the reference that ship with the package, which is frozen; the wrapped
network learns what it sees then.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isopose.config import PoseConfig
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import Mode, compose, warp
from isopose.models.pose import PoseTransformer
from isopose.models.restore import restore
from isopose.models.roll import SOFT_TISSUE_HU
from isopose.models.shipped import load_reference, load_shipped

#: Half the side of a square, as a part of the image's longer side: what is thinner is a table, no body.
THIN = 0.01
#: What is brighter than the darkest value by this part of the soft-tissue window may be body.
ABOVE_AIR = 0.03
#: Probability of what is not known at all, so that its logarithm is one.
LEAST = 1e-6


class PosedNetwork(nn.Module):
    """Homogenize slices, segment them, restore the answers.

    Args:
        network: takes ``(N, C, S, S)`` and gives logits ``(N, classes, s, s)``, or a list of them at several
            resolutions; with background as class 0.
        mean: of the intensities in HU by which slices were normalized, as the next two.
        sd: standard deviation.
        low: lower bound in HU to which they were clipped, so that air has this value.
        seen_from: what the network is shown is clipped to this.
    """

    def __init__(
        self, network: nn.Module, *, mean: float, sd: float, low: float, seen_from: float | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.darkest = (max(low, low if seen_from is None else seen_from) - mean) / sd
        bottom, top = ((value - mean) / sd for value in SOFT_TISSUE_HU)
        self.air, self.threshold = (
            (low - mean) / sd,
            max(bottom, (low - mean) / sd) + ABOVE_AIR * (top - bottom),
        )
        self.pose = PoseTransformer(PoseConfig(per="slice"), load_reference().mask, bottom, top)
        assert self.pose.roll is not None
        load_shipped(self.pose.roll)
        self.pose.eval().requires_grad_(False)

    @property
    def decoder(self) -> nn.Module:
        """The wrapped network's, where nnU-Net switches deep supervision."""
        return self.network.get_submodule("decoder")

    def train(self, mode: bool = True) -> "PosedNetwork":
        """Of the wrapped network only: poses are found as they were shipped."""
        super().train(mode)
        self.pose.eval()
        return self

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logarithms of probabilities, which are logits, of slices ``(N, C, H, W)`` in their own pose.

        Outside of what the network saw nothing is known, and the missing mass is background's.
        """
        height, width = image.shape[2:]
        side = max(height, width)
        theta = self.input_from_homogenized(image)
        # The other channels are of no known unit.
        shown = torch.cat([image[:, :1].clamp(min=self.darkest), image[:, 1:]], dim=1)
        seen = warp(shown, theta, (side, side), fill=self.darkest)
        answers = self.network(seen)
        # As in SegmentationObjective: means of neighbors hide a chequered answer from the loss.
        mode: Mode = "nearest" if self.training else "bilinear"
        if isinstance(answers, Tensor):
            return _restored(answers, theta, (height, width), mode)
        sizes = [answer.shape[-1] / side for answer in answers]
        return [
            _restored(answer, theta, (round(height * part), round(width * part)), mode)
            for answer, part in zip(answers, sizes, strict=True)
        ]

    @torch.no_grad()
    def input_from_homogenized(self, image: Tensor) -> Tensor:
        """``(N, 3, 3)`` by which slices ``(N, C, H, W)`` are sampled, by their first channel."""
        height, width = image.shape[2:]
        side = max(height, width)
        # Poses are of square frames: the slice lies in the middle of one.
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
    """A rough foreground ``(N, 1, S, S)`` in {0, 1} of slices: what is bright and not thin, holes filled.

    Other than ``data/body.py`` it runs on any device, slice by slice, and keeps arms and thick tables. Where
    fat was clipped away (``plans.py`` keeps it) little of the outline is left to find.
    """
    bright = (image > threshold).float()
    radius = max(1, round(THIN * image.shape[-1]))
    window = 2 * radius + 1
    eroded = -F.max_pool2d(F.pad(-bright, (radius,) * 4, value=-1.0), window, stride=1)
    opened = F.max_pool2d(eroded, window, stride=1, padding=radius)
    return (_between(opened, 2) & _between(opened, 3)).float()


def _between(mask: Tensor, axis: int) -> Tensor:
    """What has something marked on both sides of it along an axis, or is marked."""
    before = mask.cumsum(axis) > 0
    return before & (mask.flip(axis).cumsum(axis).flip(axis) > 0)


def _restored(logits: Tensor, theta: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        back = restore(logits.float().softmax(dim=1), theta, size, mode=mode)
        return back.clamp(min=LEAST).log()
