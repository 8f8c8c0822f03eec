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

#: Convolution, transposed convolution and norm for 2D and 3D. A batch holds one or two volumes, too few for
#: the statistics of batch norm, so volumes use instance norm, as in nnU-Net.
_LAYERS: dict[int, tuple[Any, Any, Any]] = {
    2: (nn.Conv2d, nn.ConvTranspose2d, BatchNorm2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, partial(nn.InstanceNorm3d, affine=True)),
}


def _block(inputs: int, outputs: int, strides: tuple[int, ...], *, up: bool = False) -> nn.Sequential:
    """Return convolution, norm and ReLU; strides of 2 halve the resolution, or with ``up`` double it."""
    convolution, transposed, norm = _LAYERS[len(strides)]
    # Without output padding a doubled axis would be one pixel short.
    options = {"output_padding": tuple(stride - 1 for stride in strides)} if up else {}
    layer = transposed if up else convolution
    return nn.Sequential(
        layer(inputs, outputs, 3, stride=strides, padding=1, bias=False, **options),
        norm(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Segment slices or volumes with two blocks per level and deep supervision.

    Every level that has a skip connection has an output.

    Args:
        plan: sizes, features and skips of the levels, channels of the input.
        classes: outputs, background included.
        output_norm: add a norm after the output's convolution, as the paper describes it.
        recompute: train with activation checkpointing: only the inputs of blocks are kept, all other
            activations are recomputed in the backward pass (Chen et al., 2016, "Training deep nets with
            sublinear memory cost").
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
        unit_strides = (1,) * len(strides[0])
        convolution, _, norm = _LAYERS[len(unit_strides)]
        self.first = nn.ModuleList(
            _block(features[level] if level else plan.channels, features[level], unit_strides)
            for level in range(depth + 1)
        )
        self.down = nn.ModuleList(_block(features[n], features[n + 1], strides[n]) for n in range(depth))
        self.up = nn.ModuleList(
            _block(features[n + 1], features[n], strides[n], up=True) for n in range(depth)
        )
        self.decode = nn.ModuleList(
            _block(features[n] * (2 if plan.skips[n] else 1), features[n], unit_strides) for n in range(depth)
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
            convolutions = nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d
            # Skip meta tensors: drawing into one loads PyTorch's compiler (one second, 80 MB).
            if isinstance(module, convolutions) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, a=1e-2)

    def freeze(self, parts: str) -> None:
        """Train only some parts further; all others keep their weights and running statistics.

        Args:
            parts: value of ``train.parts``. Levels are counted from the input in the encoder and from the
                output in the decoder; a level holds all layers of its resolution (Table 1 of the paper).
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
        """Set training mode, but keep frozen layers in evaluation mode, so that their statistics stay."""
        super().train(mode)
        for layer in self.frozen:
            layer.eval()
        return self

    def fused(self) -> "UNet":
        """Return a copy for prediction whose batch norms are folded into the preceding convolutions."""
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
        """Compute logits at each supervised level, finest first.

        Args:
            image: ``(N, channels, H, W)``, or volumes ``(N, channels, D, H, W)``.
            deep: return all supervised levels; otherwise only the finest (n = 0), in a list of one.

        Returns:
            For level n ``(N, classes, H / 2**n, W / 2**n)``; for volumes ``(N, classes, D_n, H / 2**n,
            W / 2**n)``, with D_n from the plan.
        """
        run = _with_checkpointing if self.recompute and self.training else _run_block
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


def _run_block(block: nn.Module, *parts: Tensor) -> Tensor:
    """Run a block on tensors that are concatenated along channels."""
    return block(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])


def _with_checkpointing(block: nn.Module, *parts: Tensor) -> Tensor:
    """Run a block with activation checkpointing.

    Its activations are recomputed in the backward pass, which saves memory for a second forward pass.
    """
    return checkpoint(
        _run_block,
        block,
        *parts,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _frozen_running_statistics(block)),
    )


@contextmanager
def _frozen_running_statistics(block: nn.Module) -> Iterator[None]:
    """Leave running statistics unchanged in the block: recomputation passes the same batch a second time."""
    # Frozen norms are in evaluation mode and keep their statistics anyway.
    norms = [each for each in block.modules() if isinstance(each, nn.BatchNorm2d) and each.training]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        assert norm.num_batches_tracked is not None, "track_running_stats is on"
        norm.num_batches_tracked.sub_(1)
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
