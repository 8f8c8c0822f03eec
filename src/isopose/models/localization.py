"""The localization network, the same architecture for both spatial transformers (STN1 and STN2)."""

from typing import Any

import torch
from torch import Tensor, nn

#: Features of the two convolution blocks, from the authors' later public code.
FEATURES = (8, 10)
#: Hidden units. Our choice: the authors' later code has 1024, 32 learn faster here.
HIDDEN_UNITS = 32


class Localization(nn.Module):
    """Regress transform parameters from an image and its foreground mask.

    Two convolution blocks with max-pooling and ReLU shrink the image by a factor of 4, two fully connected
    layers follow (the paper, section "STN to homogenize pose and size"). The last layer is initialized to
    zero, so that a transformer starts at the identity.

    Args:
        size: pixels along a side of the square input, a multiple of 4.
        outputs: how many numbers are regressed: 5 for a pose, 4 for a box.
        depth: for volumes, voxels along z, a multiple of 4; kernels span 3 voxels along z. None for slices.
    """

    def __init__(self, size: int, outputs: int, depth: int | None = None) -> None:
        super().__init__()
        self.size = size
        is_3d = depth is not None
        convolution: Any = nn.Conv3d if is_3d else nn.Conv2d
        pool: Any = nn.MaxPool3d if is_3d else nn.MaxPool2d

        def same_convolution(inputs: int, outputs: int, side: int) -> nn.Module:
            sides = (3, side, side) if is_3d else (side, side)
            padding = tuple(n // 2 for n in sides)
            return convolution(inputs, outputs, kernel_size=sides, padding=padding)

        self.encoder = nn.Sequential(
            same_convolution(2, FEATURES[0], 7),
            pool(2),
            nn.ReLU(inplace=True),
            same_convolution(FEATURES[0], FEATURES[1], 5),
            pool(2),
            nn.ReLU(inplace=True),
        )
        self.hidden = nn.Linear(
            FEATURES[1] * (size // 4) ** 2 * (1 if depth is None else depth // 4), HIDDEN_UNITS
        )
        self.output = nn.Linear(HIDDEN_UNITS, outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Regress the outputs.

        Args:
            image: ``(N, 1, size, size)``, or volumes ``(N, 1, depth, size, size)``.
            mask: the same shape, foreground.

        Returns:
            ``(N, outputs)`` float32.
        """
        # Always float32, also under autocast: theta must not be rounded, and the network is small.
        with torch.autocast(image.device.type, enabled=False):
            features = self.encoder(torch.cat([image.float(), mask.float()], dim=1)).flatten(1)
            return self.output(torch.relu(self.hidden(features)))
