"""What the U-Net's training holds at its peak, beside what isopose fit --memory foresees.

    python benchmarks/memory.py --output /tmp/memory [--case "data.size=128 unet.input=full" ...]

Each line is a process of its own with two training steps of slices that show nothing, then a checkpoint. The
table goes to stdout and to OUTPUT/memory.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from isopose.config import Config
from isopose.data.samples import Batch
from isopose.devices import autocast, choose_precision
from isopose.files import write_text
from isopose.labels import Labels
from isopose.models.pipeline import Networks
from isopose.presets import load_config
from isopose.study.measure import peak_memory, reset_peak
from isopose.training.checkpoint import StageProgress, save_checkpoint
from isopose.training.memory import PROCESS_BYTES, training_bytes
from isopose.training.objectives import noise_size
from isopose.training.segmentation import SegmentationObjective

#: Loss of some rows of a batch.
Loss = Callable[[Tensor], Tensor]
#: Background included; slices of a volume.
CLASSES, DEPTH = 3, 20
OUTLINE = torch.zeros(1, 1, 128, 128)

#: What is measured: settings over the default preset.
CASES = (
    ("data.size=128", "unet.input=full", "train.precision=32-true"),
    ("data.size=128", "unet.input=half", "train.precision=32-true"),
    ("data.size=256", "unet.input=full", "unet.base_features=16", "train.precision=32-true"),
    ("data.size=256", "unet.input=half", "unet.base_features=16", "train.precision=32-true"),
    ("data.size=128", "unet.input=full"),
    ("data.size=128", "unet.input=half"),
    ("data.size=128", "unet.input=full", "unet.base_features=16"),
    ("data.size=256", "unet.input=full", "unet.base_features=16"),
    ("data.size=256", "unet.input=half", "unet.base_features=16"),
    ("data.size=256", "unet.input=full", "unet.optimizer.batch_size=6"),
    ("data.size=256", "unet.input=full", "unet.optimizer.parts=3"),
    ("data.size=256", "unet.input=full", "unet.optimizer.parts=3", "unet.recompute=true"),
    ("data.size=256", "unet.input=full", "unet.base_features=16", "unet.recompute=true"),
    ("data.size=256", "unet.input=full", "unet.base_features=16", "unet.loss_space=native"),
    ("data.size=512", "unet.input=full", "unet.optimizer.batch_size=2"),
    ("data.size=512", "unet.input=half", "unet.optimizer.batch_size=2"),
    ("data.size=128", "dims=3", "unet.depth=16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--case", action="append", help="settings over the default preset, in place of the table's; repeated"
    )
    parser.add_argument("--one", help="settings of one case, as JSON: measured here")
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(json.loads(given.one))))
        return
    lines = ["| settings | before, MB | peak, MB | training's own, MB | predicted, MB | ratio |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for case in [tuple(case.split()) for case in given.case or ()] or CASES:
        command = [sys.executable, __file__, "--output", str(given.output), "--one", json.dumps(case)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        own = found["peak"] - found["before"]
        lines.append(
            f"| {' '.join(case)} | {found['before']:.0f} | {found['peak']:.0f} | {own:.0f} "
            f"| {found['foreseen']:.0f} | {own / found['foreseen']:.2f} |"
        )
        print(lines[-1], flush=True)
    write_text(given.output / "memory.md", "\n".join(lines) + "\n")


def measure(settings: list[str]) -> dict[str, float]:
    """Megabytes before two steps and at their peak on a CPU, and what was foreseen of the training itself."""
    return peak_of(load_config(settings=settings), torch.device("cpu"))


def peak_of(config: Config, device: torch.device) -> dict[str, float]:
    """Megabytes before two steps and at their peak, and what was foreseen of the training itself.

    On a GPU the weights, which are part of what is foreseen, count as well.
    """
    precision = choose_precision(config.train.precision, device.type)
    optimizer = config.unet.optimizer
    before = reset_peak(device)
    objective, loss = volumes_of(config) if config.dims == 3 else slices_of(config, device)
    objective = objective.to(device)
    learning = torch.optim.AdamW(objective.parameters())
    if device.type == "cpu":
        before = reset_peak(device)
    best = {name: value.detach().cpu().clone() for name, value in objective.state_dict().items()}
    for _ in range(2):
        learning.zero_grad()
        for rows in torch.arange(optimizer.batch_size).tensor_split(optimizer.parts):
            with autocast(precision, device.type):
                part = loss(rows)
            part.backward()
        learning.step()
    learning.zero_grad()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "unet.safetensors"
        save_checkpoint(path, StageProgress(), objective.state_dict(), best, learning)
    process = PROCESS_BYTES if device.type == "cpu" else 0.0
    foreseen = (training_bytes(config, CLASSES, device.type) - process) / 2**20
    return {"before": before, "peak": peak_memory(device), "foreseen": foreseen}


def slices_of(config: Config, device: torch.device) -> tuple[torch.nn.Module, Loss]:
    """The U-Net's objective, and its loss on some rows of a batch of slices."""
    n, size = config.unet.optimizer.batch_size, config.data.size
    networks = Networks(config, CLASSES, OUTLINE, 0.0, 1.0).to(device)
    networks.unet = networks.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = SegmentationObjective(networks).train()
    channels = networks.unet.plan.channels
    image, labels = torch.zeros(n, channels, size, size), torch.zeros(n, size, size).byte()
    poses = torch.zeros(n, channels, 5)
    batch = Batch(
        *(torch.arange(n), image, image[:, :1], labels, poses[:, 0], torch.eye(3).repeat(n, 1, 1)),
        channel_pose=poses if channels > 1 else None,
    )
    batch, noise = batch.to(device), torch.zeros(n, noise_size(2), device=device)
    return objective, lambda rows: objective(batch.select(rows), noise[rows])


def volumes_of(config: Config) -> tuple[torch.nn.Module, Loss]:
    """The U-Net's objective, and its loss on some rows of a batch of volumes."""
    n, size = config.unet.optimizer.batch_size, config.data.size
    networks = Networks(config, CLASSES, OUTLINE, 0.0, 1.0)
    objective = SegmentationObjective(networks, Labels({"a": 1, "b": 2})).train()
    volumes = tuple(torch.zeros(1, 1, DEPTH, size, size) for _ in range(n))
    labels = tuple(torch.zeros(1, DEPTH, size, size).byte() for _ in range(n))
    eye = torch.eye(4).repeat(n, 1, 1)
    batch = Batch(torch.arange(n), volumes, volumes, labels, torch.zeros(n, 9), eye, eye)
    noise = torch.zeros(n, noise_size(3))
    return objective, lambda rows: objective(batch.select(rows), noise[rows])


if __name__ == "__main__":
    main()
