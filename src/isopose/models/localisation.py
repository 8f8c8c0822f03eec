"""The localisation network that both spatial transformers share."""

import torch
from torch import Tensor, nn

#: Features of the two convolution blocks and of the hidden layer, from the authors' later public code.
FEATURES = (8, 10)
HIDDEN = 32


class Localisation(nn.Module):
    """Two convolution blocks that shrink the image by a factor of 4, then two fully connected layers.

    The paper, section "STN to homogenize pose and size": convolutions with max-pooling and ReLU, an image
    concatenated with its foreground mask as input, a few numbers as output. The last layer starts at zero,
    so that a transformer starts at the identity.

    Args:
        size: pixels along a side of the square input, a multiple of 4.
        outputs: how many numbers are regressed: 5 for a pose, 4 for a box.
    """

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.size = size
        self.encoder = nn.Sequential(
            nn.Conv2d(2, FEATURES[0], kernel_size=7, padding=3),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(FEATURES[0], FEATURES[1], kernel_size=5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
        )
        self.hidden = nn.Linear(FEATURES[1] * (size // 4) ** 2, HIDDEN)
        self.output = nn.Linear(HIDDEN, outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Regress ``(N, outputs)`` float32 from image and mask, each ``(N, 1, size, size)``."""
        # Small enough to run in float32 always: theta is never made of rounded numbers.
        with torch.autocast(image.device.type, enabled=False):
            features = self.encoder(torch.cat([image.float(), mask.float()], dim=1)).flatten(1)
            output: Tensor = self.output(torch.relu(self.hidden(features)))
            return output
