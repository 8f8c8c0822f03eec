"""The segmentation network: the paper's U-Net (section "U-Net for segmentation")."""

import torch
from torch import Tensor, nn

from isopose.models.planner import UNetPlan


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """First block, and with stride 2 the encoder's second: convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _up(inputs: int, outputs: int) -> nn.Sequential:
    """The decoder's second block: transposed convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """2D U-Net with two blocks a level and an output at every level that has a skip connection.

    Args:
        plan: sizes, features and skips of the levels.
        classes: outputs, background included.
        output_norm: batch norm after the output's convolution, as the paper's words have it.
    """

    def __init__(self, plan: UNetPlan, classes: int, output_norm: bool = False) -> None:
        super().__init__()
        self.plan = plan
        features = plan.features
        depth = len(features) - 1
        self.first = nn.ModuleList(
            _block(1 if level == 0 else features[level], features[level]) for level in range(depth + 1)
        )
        self.down = nn.ModuleList(_block(features[n], features[n + 1], stride=2) for n in range(depth))
        self.up = nn.ModuleList(_up(features[n + 1], features[n]) for n in range(depth))
        self.decode = nn.ModuleList(
            _block(features[n] * (2 if plan.skips[n] else 1), features[n]) for n in range(depth)
        )
        self.outputs = nn.ModuleDict(
            {
                str(n): nn.Sequential(
                    nn.Conv2d(features[n], classes, 3, padding=1),
                    *([nn.BatchNorm2d(classes)] if output_norm else []),
                )
                for n in plan.supervised
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=1e-2)

    def forward(self, image: Tensor, *, deep: bool = False) -> list[Tensor]:
        """Logits of ``(N, 1, H, W)`` images: ``(N, classes, H / 2**n, W / 2**n)`` by level, finest first.

        With ``deep`` false only the finest is computed (n = 0), in a list of one.
        """
        skips: list[Tensor] = []
        x = image
        for first, down in zip(self.first, self.down, strict=False):
            x = first(x)
            skips.append(x)
            x = down(x)
        x = self.first[-1](x)
        logits = []
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)
            if self.plan.skips[level]:
                x = torch.cat([x, skips[level]], dim=1)
            x = self.decode[level](x)
            if str(level) in self.outputs and (deep or level == 0):
                logits.append(self.outputs[str(level)](x))
        return logits[::-1]
