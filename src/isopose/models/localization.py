"""The localization network that both spatial transformers share."""

from typing import Any

import torch
from torch import Tensor, nn

#: Features of the two convolution blocks, from the authors' later public code.
FEATURES = (8, 10)
#: Of the hidden layer. Our choice: the authors' later code has 1024 before it; 32 learn faster here.
HIDDEN = 32


class Localization(nn.Module):
    """Two convolution blocks that shrink the image by a factor of 4, then two fully connected layers.

    The paper, section "STN to homogenize pose and size": convolutions with max-pooling and ReLU, an image
    concatenated with its foreground mask as input, a few numbers as output. The last layer starts at zero,
    so that a transformer starts at the identity.

    Args:
        size: pixels along a side of the square input, a multiple of 4.
        outputs: how many numbers are regressed: 5 for a pose, 4 for a box.
        depth: of volumes: voxels along z, a multiple of 4; kernels reach less far along it.
    """

    def __init__(self, size: int, outputs: int, depth: int | None = None) -> None:
        super().__init__()
        self.size = size
        volumes = depth is not None
        convolution: Any = nn.Conv3d if volumes else nn.Conv2d
        pool: Any = nn.MaxPool3d if volumes else nn.MaxPool2d

        def same(inputs: int, outputs: int, side: int) -> nn.Module:
            sides = (3, side, side) if volumes else (side, side)
            padding = tuple(n // 2 for n in sides)
            layer: nn.Module = convolution(inputs, outputs, kernel_size=sides, padding=padding)
            return layer

        self.encoder = nn.Sequential(
            same(2, FEATURES[0], 7),
            pool(2),
            nn.ReLU(inplace=True),
            same(FEATURES[0], FEATURES[1], 5),
            pool(2),
            nn.ReLU(inplace=True),
        )
        self.hidden = nn.Linear(FEATURES[1] * (size // 4) ** 2 * (1 if depth is None else depth // 4), HIDDEN)
        self.output = nn.Linear(HIDDEN, outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Regress ``(N, outputs)`` float32 from image and mask, each ``(N, 1, size, size)``.

        Of volumes each ``(N, 1, depth, size, size)``.
        """
        # Small enough to run in float32 always: theta is never made of rounded numbers.
        with torch.autocast(image.device.type, enabled=False):
            features = self.encoder(torch.cat([image.float(), mask.float()], dim=1)).flatten(1)
            output: Tensor = self.output(torch.relu(self.hidden(features)))
            return output
