"""Train the roll network; a run can be resumed and is reproducible with the same version of PyTorch.

The loss is the negative log likelihood of the true angle under the von Mises distribution with the network's
direction and concentration, so that the network learns its uncertainty as well.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.utils.data import DataLoader, Subset

from isopose.models.roll import RollNetwork
from isopose.phantom.roll.pictures import Batches
from isopose.progress import Reporter
from isopose.training.checkpoint import StageProgress, load_checkpoint, save_checkpoint
from isopose.training.losses import von_mises_loss

#: Weight of the loss for mirrored slices; that of the angle is 1.
MIRROR_WEIGHT = 0.1
#: Decay of the exponential moving average of the weights per step.
RUNNING_MEAN = 0.998
#: Fraction of the steps with a rising learning rate; then it falls to 0 along a cosine.
WARM_UP = 0.1
WEIGHT_DECAY, MAX_NORM = 0.02, 5.0
#: Steps between checkpoints.
CHECKPOINT_STEPS = 250


def train(
    batches: Batches,
    *,
    start: dict[str, Tensor] | None = None,
    rate: float,
    seed: int,
    workers: int,
    work: Path,
    reporter: Reporter,
) -> nn.Module:
    """Train a network, and return it with the exponential moving average of its weights.

    Args:
        batches: one for each step.
        start: initial weights; None: random ones.
        rate: maximum learning rate.
        seed: of the initial weights.
        workers: processes that prepare batches ahead.
        work: folder of the checkpoint, from which an interrupted run is resumed.
        reporter: receives progress.
    """
    torch.manual_seed(seed)
    network = RollNetwork()
    if start is not None:
        network.load_state_dict(start)
    mean = swa_utils.AveragedModel(
        network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(RUNNING_MEAN), use_buffers=True
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    checkpoint, progress, steps = work / "checkpoint.safetensors", StageProgress(), len(batches)
    if checkpoint.exists():
        progress, last, running = load_checkpoint(checkpoint, optimizer)
        network.load_state_dict(last)
        mean.load_state_dict(running)
    done = min(progress.epoch * CHECKPOINT_STEPS, steps)
    loader = DataLoader(Subset(batches, range(done, steps)), batch_size=None, num_workers=workers)
    total = torch.zeros(())
    with reporter.stage(
        "roll", math.ceil(steps / CHECKPOINT_STEPS), CHECKPOINT_STEPS, progress.epoch
    ) as report:
        for step, (seen, angle, mirrored) in enumerate(loader, start=done):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step / steps)
            out = network(seen)
            loss = von_mises_loss(out[:, :2], angle)
            loss = loss + MIRROR_WEIGHT * F.binary_cross_entropy_with_logits(out[:, 2], mirrored)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
            optimizer.step()
            mean.update_parameters(network)
            total += loss.detach()
            report.step()
            if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
                progress.epoch += 1
                progress.history.append({"epoch": progress.epoch, "loss": float(total) / CHECKPOINT_STEPS})
                save_checkpoint(checkpoint, progress, network.state_dict(), mean.state_dict(), optimizer)
                report.epoch(progress.history[-1])
                total.zero_()
    return mean.module.eval()


def schedule(part: float) -> float:
    """Return the factor of the learning rate after a fraction (0 to 1) of all steps."""
    if part < WARM_UP:
        return 0.04 + 0.96 * part / WARM_UP
    return 0.5 * (1.0 + math.cos(math.pi * (part - WARM_UP) / (1.0 - WARM_UP)))
