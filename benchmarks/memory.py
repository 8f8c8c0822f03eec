"""What the U-Net's training holds at its peak, beside what isopose fit --memory foresees.

    python benchmarks/memory.py --output /tmp/memory

Each line is a process of its own with two training steps of slices that show nothing, then a checkpoint. The
table goes to stdout and to OUTPUT/memory.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from isopose.files import write_text

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
    ("data.size=256", "unet.input=full", "unet.optimiser.batch_size=6"),
    ("data.size=256", "unet.input=full", "unet.optimiser.parts=3"),
    ("data.size=256", "unet.input=full", "unet.optimiser.parts=3", "unet.recompute=true"),
    ("data.size=256", "unet.input=full", "unet.base_features=16", "unet.recompute=true"),
    ("data.size=256", "unet.input=full", "unet.base_features=16", "unet.loss_space=native"),
    ("data.size=512", "unet.input=full", "unet.optimiser.batch_size=2"),
    ("data.size=512", "unet.input=half", "unet.optimiser.batch_size=2"),
    ("data.size=128", "dims=3", "unet.depth=16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--one", help="settings of one case, as JSON: measured here")
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(json.loads(given.one))))
        return
    lines = ["| settings | before, MB | peak, MB | training's own, MB | foreseen, MB | measured / foreseen |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for case in CASES:
        command = [sys.executable, __file__, "--output", str(given.output), "--one", json.dumps(case)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        own = found["peak"] - found["before"]
        lines.append(
            f"| {' '.join(case)} | {found['before']:.0f} | {found['peak']:.0f} | {own:.0f} "
            f"| {found['foreseen']:.0f} | {own / found['foreseen']:.2f} |"
        )
        print(lines[-1], flush=True)
    write_text(given.output / "memory.md", "\n".join(lines) + "\n")


def measure(settings: list[str]) -> dict[str, float]:
    import torch

    from isopose.config import load_config
    from isopose.data.slices import Batch
    from isopose.data.volumes import VolumeBatch
    from isopose.devices import autocast, choose_precision
    from isopose.models.volume import VolumePipeline, pipeline_for
    from isopose.study.measure import peak_memory, reset_peak
    from isopose.training.checkpoint import Progress, save_checkpoint
    from isopose.training.memory import PROCESS, training_bytes
    from isopose.training.objectives import SegmentationObjective
    from isopose.training.volumes import NOISE3D, VolumeSegmentationObjective

    config = load_config(settings=settings)
    precision = choose_precision(config.train.precision, "cpu")
    pipeline = pipeline_for(config, 3, torch.zeros(1, 1, 128, 128), 0.0, 1.0)
    optimiser = config.unet.optimiser
    n, size = optimiser.batch_size, config.data.size
    if isinstance(pipeline, VolumePipeline):
        volumes = [torch.zeros(1, 1, 20, size, size) for _ in range(n)]
        labels = tuple(torch.zeros(1, 20, size, size).byte() for _ in range(n))
        eye = torch.eye(4).repeat(n, 1, 1)
        batch = VolumeBatch(
            torch.arange(n), tuple(volumes), tuple(volumes), labels, eye, torch.zeros(n, 9), eye
        )
        objective = VolumeSegmentationObjective(pipeline, ("a", "b")).train()
        noise = torch.zeros(n, NOISE3D)
    else:
        pipeline.unet = pipeline.unet.to(memory_format=torch.channels_last)
        image = torch.zeros(n, 1, size, size)
        labels = torch.zeros(n, size, size).byte()
        theta2 = torch.eye(3).repeat(n, 1, 1)
        batch = Batch(torch.arange(n), image, image, labels, torch.zeros(n, 5), theta2)
        objective = SegmentationObjective(pipeline).train()
        noise = torch.zeros(n, 9)
    learning = torch.optim.AdamW(objective.parameters())
    before = reset_peak()
    best = {name: value.clone() for name, value in objective.state_dict().items()}
    for _ in range(2):
        learning.zero_grad()
        for rows in torch.arange(n).tensor_split(optimiser.parts):
            with autocast(precision, "cpu"):
                loss = objective(batch.part(rows), noise[rows])
            loss.backward()
        learning.step()
    learning.zero_grad()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "unet.safetensors"
        save_checkpoint(path, Progress(), objective.state_dict(), best, learning)
    foreseen = (training_bytes(config, 3, "cpu") - PROCESS) / 2**20
    return {"before": before, "peak": peak_memory(), "foreseen": foreseen}


if __name__ == "__main__":
    sys.exit(main())
