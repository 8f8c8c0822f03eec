"""The segmentation network: the paper's U-Net (section "U-Net for segmentation")."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from isopose.models.norm import BatchNorm2d
from isopose.models.planner import UNetPlan

#: Convolution, its transpose and the norm of slices and of volumes. A batch holds one or two volumes, too few
#: for the statistics of batch norm; each is normed by itself, as in nnU-Net.
_LAYERS: dict[int, tuple[Any, Any, Any]] = {
    2: (nn.Conv2d, nn.ConvTranspose2d, BatchNorm2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, partial(nn.InstanceNorm3d, affine=True)),
}


def _block(inputs: int, outputs: int, strides: tuple[int, ...]) -> nn.Sequential:
    """First block, and with strides of 2 the encoder's second: convolution, norm, ReLU."""
    convolution, _, norm = _LAYERS[len(strides)]
    return nn.Sequential(
        convolution(inputs, outputs, 3, stride=strides, padding=1, bias=False),
        norm(outputs),
        nn.ReLU(inplace=True),
    )


def _up(inputs: int, outputs: int, strides: tuple[int, ...]) -> nn.Sequential:
    """The decoder's second block: transposed convolution, norm, ReLU."""
    _, transposed, norm = _LAYERS[len(strides)]
    # What lies at the end of an axis that is doubled would be missing.
    end = tuple(stride - 1 for stride in strides)
    return nn.Sequential(
        transposed(inputs, outputs, 3, stride=strides, padding=1, output_padding=end, bias=False),
        norm(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """U-Net of slices or volumes: two blocks a level, an output at every level that has a skip connection.

    Args:
        plan: sizes, features and skips of the levels.
        classes: outputs, background included.
        output_norm: batch norm after the output's convolution, as the paper's words have it.
        recompute: keep only what goes from block to block while training, and compute the rest again on the
            way back (Chen et al., 2016, "Training deep nets with sublinear memory cost").
    """

    def __init__(
        self, plan: UNetPlan, classes: int, output_norm: bool = False, *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.plan = plan
        self.recompute = recompute
        self.for_prediction = False
        self.frozen: tuple[nn.Module, ...] = ()
        features = plan.features
        depth = len(features) - 1
        strides = [plan.strides(n) for n in range(depth)]
        same = (1,) * len(strides[0])
        convolution, _, norm = _LAYERS[len(same)]
        self.first = nn.ModuleList(
            _block(1 if level == 0 else features[level], features[level], same) for level in range(depth + 1)
        )
        self.down = nn.ModuleList(_block(features[n], features[n + 1], strides[n]) for n in range(depth))
        self.up = nn.ModuleList(_up(features[n + 1], features[n], strides[n]) for n in range(depth))
        self.decode = nn.ModuleList(
            _block(features[n] * (2 if plan.skips[n] else 1), features[n], same) for n in range(depth)
        )
        self.outputs = nn.ModuleDict(
            {
                str(n): nn.Sequential(
                    convolution(features[n], classes, 3, padding=1),
                    *([norm(classes)] if output_norm else []),
                )
                for n in plan.supervised
            }
        )
        for module in self.modules():
            kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d
            # Nothing is drawn without memory: PyTorch would load its compiler, a second and 80 MB, for it.
            if isinstance(module, kinds) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, a=1e-2)

    def freeze(self, parts: str) -> None:
        """Let only some parts learn on; the others keep weights and statistics.

        Args:
            parts: as ``train.parts``. Levels of the encoder are counted from the input, those of the decoder
                from the output, each with all that works at its resolution (Table 1 of the paper).
        """
        depth = len(self.up)
        levels = range(min(2, depth)) if parts == "first2-last2" else range(depth)
        encoder = range(depth + 1) if parts == "all" else levels if parts == "first2-last2" else ()
        decoder = [self.up[n] for n in levels] + [self.decode[n] for n in levels]
        learning = decoder + [output for n, output in self.outputs.items() if int(n) in levels]
        learning += [self.first[n] for n in encoder] + [self.down[n] for n in encoder if n < depth]
        self.requires_grad_(False)
        for module in learning:
            module.requires_grad_(True)
        layers = {layer for module in learning for layer in module.modules()}
        frozen = (m for m in self.modules() if m not in layers and not list(m.children()))
        self.frozen = tuple(frozen)

    def train(self, mode: bool = True) -> "UNet":
        """As usual, but frozen layers stay in evaluation: a batch norm would follow the new data."""
        super().train(mode)
        for layer in self.frozen:
            layer.eval()
        return self

    def fused(self) -> "UNet":
        """For prediction alone: a copy whose batch norms are part of the convolutions before them."""
        if self.for_prediction:
            return self
        copied = copy.deepcopy(self).eval().requires_grad_(False)
        copied.for_prediction = True
        for block in (*copied.first, *copied.down, *copied.up, *copied.decode):
            layer, norm = block[0], block[1]
            if isinstance(norm, nn.BatchNorm2d):
                block[0] = fuse_conv_bn_eval(layer, norm, isinstance(layer, nn.ConvTranspose2d))
                block[1] = nn.Identity()
        if len(self.plan.strides(0)) == 2:
            copied = copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return copied

    def forward(self, image: Tensor, *, deep: bool = False) -> list[Tensor]:
        """Logits of ``(N, 1, H, W)`` images: ``(N, classes, H / 2**n, W / 2**n)`` by level, finest first.

        Of volumes ``(N, 1, D, H, W)`` likewise, along z by the plan's depths.

        With ``deep`` false only the finest is computed (n = 0), in a list of one.
        """
        run = _again if self.recompute and self.training else _at_once
        skips: list[Tensor] = []
        x = image
        for first, down in zip(self.first, self.down, strict=False):
            x = run(first, x)
            skips.append(x)
            x = run(down, x)
        x = run(self.first[-1], x)
        logits = []
        for level in reversed(range(len(self.up))):
            x = run(self.up[level], x)
            x = run(self.decode[level], *([x, skips[level]] if self.plan.skips[level] else [x]))
            if str(level) in self.outputs and (deep or level == 0):
                logits.append(self.outputs[str(level)](x))
        return logits[::-1]


def _at_once(block: nn.Module, *parts: Tensor) -> Tensor:
    """A block of the channels of all parts."""
    out: Tensor = block(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
    return out


def _again(block: nn.Module, *parts: Tensor) -> Tensor:
    """Likewise; what is between input and output is not kept for the way back, but computed again."""
    out: Tensor = checkpoint(
        _at_once,
        block,
        *parts,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _statistics_kept(block)),
    )
    return out


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms see the same batch twice; their running statistics follow it once."""
    # A frozen one follows no batch at all.
    norms = [each for each in block.modules() if isinstance(each, nn.BatchNorm2d) and each.training]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        assert norm.num_batches_tracked is not None, "of batch norms that track"
        norm.num_batches_tracked.sub_(1)
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
