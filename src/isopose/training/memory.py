"""Estimate the memory of the U-Net's training, and choose settings that fit a limit."""

import math
import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from isopose.config import Config
from isopose.devices import choose_device, choose_precision
from isopose.errors import InputError
from isopose.models.planner import plan_unet
from isopose.models.unet import UNet
from isopose.progress import Reporter
from isopose.training.losses import deep_supervision_loss

#: Resident bytes of a process before training: Python, PyTorch, other libraries, prefetched slices.
PROCESS_BYTES = 1000e6
#: Peak memory of a training step beyond the activations stored for the backward pass, in units of a feature
#: map of the first level: gradients, copies in the memory layout of a convolution, fragmentation. More with
#: activation checkpointing, and again more for volumes. Measured (docs/measurements.md, "Memory of
#: training").
STEP_MAPS, CHECKPOINTED_STEP_MAPS, VOLUME_STEP_MAPS = 10, 16, 5
#: Bytes per weight: with its gradient and the optimizer's two moments; extra during gradient accumulation;
#: extra copies of mixed precision; the best epoch's weights, kept on the CPU.
WEIGHT_BYTES, ACCUMULATION_BYTES, MIXED_PRECISION_BYTES, BEST_EPOCH_BYTES = 16, 4, 4, 4


def parse_bytes(text: str) -> float:
    """Return the bytes of ``4GB`` or ``500 MB`` (powers of ten).

    Raises:
        InputError: another format.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB)\s*", text, re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise InputError(f"--memory: expected megabytes or gigabytes, e.g. 4GB or 800MB, got {text!r}")
    return float(match[1]) * {"MB": 1e6, "GB": 1e9}[match[2].upper()]


def training_bytes(config: Config, classes: int, device: str, channels: int = 1) -> float:
    """Return the peak memory in bytes of the U-Net's training.

    On a CPU it is that of the whole process, on a GPU that of the tensors. Activations stored for the
    backward pass are counted on meta tensors, so nothing is computed. With dims=3 the scans themselves come
    on top, since their depth is not known.

    Args:
        config: size, features, batch and its parts, precision.
        classes: including background.
        device: device type.
        channels: of the scans.
    """
    settings = config.unet.optimizer
    part = -(-settings.batch_size // settings.parts)
    mixed = choose_precision(config.train.precision, device) != "32-true"
    unet, stored, map_bytes = _stored_activations(config, classes, part, channels)
    maps = (CHECKPOINTED_STEP_MAPS if config.unet.recompute else STEP_MAPS) + (
        VOLUME_STEP_MAPS if config.dims == 3 else 0
    )
    step_bytes = maps * map_bytes
    # Mixed precision halves the inputs of convolutions, while the norms of volumes stay float32.
    low = (0.5 if config.dims == 2 else 0.75) if mixed else 1.0
    weights = sum(p.numel() for p in unet.parameters())
    bytes_per_weight = (
        WEIGHT_BYTES
        + (ACCUMULATION_BYTES if settings.parts > 1 else 0)
        + (MIXED_PRECISION_BYTES if mixed else 0)
    )
    bytes_per_weight += BEST_EPOCH_BYTES if device == "cpu" else 0
    # Image, mask, one-hot labels (integers, then floats) and their resampled copies.
    pixels = part * (config.data.size**2 if config.dims == 2 else 0)
    # A neighbor or further channel: its image, that less air, blurred.
    batch = pixels * (24 + 16 * classes + 12 * (unet.plan.channels - 1))
    process_bytes = PROCESS_BYTES if device == "cpu" else 0.0
    return process_bytes + low * (stored + step_bytes) + batch + bytes_per_weight * weights


def fit_into(
    config: Config,
    classes: int,
    memory: float,
    reporter: Reporter,
    *,
    shrink: bool = True,
    channels: int = 1,
) -> Config:
    """Return :func:`fitted` settings for the configured device, and report them."""
    device = choose_device(config.train.device).type
    chosen = fitted(config, classes, memory, device, shrink=shrink, channels=channels)
    needed = training_bytes(chosen, classes, device, channels)
    unet, batch = chosen.unet, chosen.unet.optimizer
    batches = f"batches of {batch.batch_size}" + (f" in {batch.parts} parts" if batch.parts > 1 else "")
    reporter.say(
        f"memory: about {needed / 1e9:.2f} of {memory / 1e9:.2f} GB for a "
        f"U-Net of {chosen.unet_size} pixels (unet.input={unet.input}), {batches}"
        + (", with activation checkpointing" if unet.recompute else "")
    )
    return chosen


def fitted(
    config: Config, classes: int, memory: float, device: str, *, shrink: bool = True, channels: int = 1
) -> Config:
    """Return settings whose training fits into a memory limit, as close to the given ones as possible.

    Tried in this order: the given settings; activation checkpointing, which changes no result; the batch in
    parts of at least four slices (gradient accumulation); a smaller input, if there is a crop; the batch in
    smaller parts.

    Args:
        config: the given settings.
        classes: including background.
        memory: limit in bytes, as counted by :func:`training_bytes`.
        device: device type.
        shrink: whether the input may be made smaller.
        channels: of the scans.

    Raises:
        InputError: not even the smallest settings fit; the message says how much they need.
    """
    smallest = math.inf
    for candidate in _candidates(config, shrink):
        needed = training_bytes(candidate, classes, device, channels)
        if needed <= memory:
            return candidate
        smallest = min(smallest, needed)
    raise InputError(
        f"--memory: {memory / 1e9:.2f} GB are not enough to train this U-Net, which needs at least "
        f"{smallest / 1e9:.2f} GB; give more, a smaller data.size or fewer unet.base_features"
    )


def _candidates(config: Config, shrink: bool) -> Iterator[Config]:
    batch = config.unet.optimizer.batch_size
    min_part = 4 if config.dims == 2 else 1
    parts = [n for n in range(2, batch + 1) if -(-batch // n) < -(-batch // (n - 1))]
    inputs = ["full", "half", "quarter"]
    smaller = config.crop.enabled and shrink
    inputs = inputs[inputs.index(config.unet.input) :] if smaller else [config.unet.input]
    yield config
    for size in inputs:
        yield from _with_checkpointing(config, size, 1)
        for n in parts:
            if -(-batch // n) >= min_part:
                yield from _with_checkpointing(config, size, n)
    for n in parts:
        yield from _with_checkpointing(config, inputs[-1], n)


def _with_checkpointing(config: Config, size: str, parts: int) -> Iterator[Config]:
    """Yield the configuration with activation checkpointing, input and parts of a batch, if it is valid."""
    values = config.model_dump()
    values["unet"] |= {"input": size, "recompute": True}
    values["unet"]["optimizer"]["parts"] = max(parts, config.unet.optimizer.parts)
    try:
        yield Config.model_validate(values)
    except ValueError:
        return


def _stored_activations(config: Config, classes: int, part: int, channels: int) -> tuple[UNet, float, float]:
    """Count the activations that one part of a batch stores for the backward pass.

    Returns:
        A U-Net without weights (on the meta device), the bytes stored in float32, and those of its first
            feature map.
    """
    plan = plan_unet(config.unet_size, config.unet_levels, config.unet, dims=config.dims, channels=channels)
    shape = (*plan.depths[:1], config.unet_size, config.unet_size)
    frame = (*plan.depths[:1], config.data.size, config.data.size)
    native = config.unet.loss_space == "native"
    storages: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages.setdefault(storage._cdata, (tensor, storage.nbytes()))
        return tensor

    with torch.device("meta"):
        unet = UNet(plan, classes, config.unet.output_norm, recompute=config.unet.recompute).train()
        weights = {p.untyped_storage()._cdata for p in unet.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            crop = torch.zeros(part, plan.channels, *shape)
            levels = []
            for level, logits in enumerate(unet(crop, deep=True)):
                probabilities = logits.float().softmax(dim=1)
                if native:
                    probabilities = F.interpolate(probabilities, [side >> level for side in frame])
                levels.append((probabilities, torch.zeros(probabilities.shape)))
            loss = deep_supervision_loss(levels)  # noqa: F841 - holds what the backward pass needs
    stored = sum(nbytes for key, (_, nbytes) in storages.items() if key not in weights)
    return unet, stored, 4.0 * part * plan.features[0] * math.prod(shape)
