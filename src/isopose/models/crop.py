"""STN2: from a homogenised slice to theta2, the square region of interest."""

import torch
from torch import Tensor, nn

from isopose.config import CropConfig
from isopose.geometry.crop import BOX_SIZE, matrix_from_box
from isopose.models.localisation import Localisation


class CropTransformer(nn.Module):
    """Regress the corners of a box and make the square crop's matrix of them.

    The network is STN1's with four outputs, added to the corners of ``start``; Eq. 2 trains it. Without a
    network every slice gets the box ``start``.

    Args:
        config: whether the box is learned, and the network's size.
        start: ``(4,)`` box that the regression starts from; the paper's identity is the whole frame.
        joint: the corners come from the network that also poses, see ``models/pipeline.py``; so none here.
    """

    start: Tensor

    def __init__(self, config: CropConfig, start: Tensor | None = None, *, joint: bool = False) -> None:
        super().__init__()
        self.config = config
        whole = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        self.register_buffer("start", whole if start is None else start.float())
        alone = config.enabled and config.learned and not joint
        self.localisation = Localisation(config.size, BOX_SIZE) if alone else None

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """theta2 ``(N, 3, 3)`` of homogenised images and masks ``(N, 1, size, size)``."""
        if self.localisation is None:
            return matrix_from_box(self.start.expand(image.shape[0], BOX_SIZE))
        return self.square(self.localisation(image, mask))

    def square(self, raw: Tensor) -> Tensor:
        """theta2 ``(N, 3, 3)`` of what a network regressed, ``(N, 4)``: changes of the start's corners."""
        return matrix_from_box(self.start + raw)
