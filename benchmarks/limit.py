"""How near the U-Net's training step comes to what this machine can do, and where the rest goes.

    python benchmarks/limit.py --output /tmp/limit [--sizes 128 256] [--batches 12 6] [--precision bf16-mixed]
        [--compile]

The machine's peak is a large matrix product's and a large copy's, measured in the same run, in turn with what
is held against it. Medians of ROUNDS. With --compile the same step is also made with a U-Net that
went through torch.compile, in turn. The tables go to stdout and to OUTPUT/limit.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from isopose.config import Config
from isopose.data.samples import Batch
from isopose.devices import autocast
from isopose.files import write_text
from isopose.geometry.warp import warp
from isopose.heap import keep_freed_memory
from isopose.models.pipeline import Networks
from isopose.presets import load_config
from isopose.training.segmentation import SegmentationObjective

#: Operators of the profile by what they are; the first whose name is in the operator's.
GROUPS = {
    "convolution": ("conv",),
    "batch norm": ("batch_norm",),
    "ReLU": ("threshold", "clamp", "relu"),
    "resampling": ("grid", "affine"),
    "concatenation": ("cat",),
    "optimizer": ("_foreach", "fused", "addcmul", "addcdiv"),
    "copies": ("copy_", "contiguous", "clone", "fill_", "zero"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[12, 6], help="slices a step, by size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base-features", type=int, default=32)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--compile", action="store_true", help="also a step whose U-Net is compiled")
    given = parser.parse_args()
    keep_freed_memory()
    lines = [f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, {given.precision}", ""]
    lines += ["| U-Net input | slices a step | step, s | GFLOP a step | GFLOP/s | product's | part of it |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    profiles, compilations = [], []
    for size, batch in zip(given.sizes, given.batches, strict=True):
        step = training_step(size, batch, given.base_features, given.precision)
        with FlopCounterMode(display=False) as counter:
            step()
        work = counter.get_total_flops() / 1e9
        steps, products = [], []
        for _ in range(given.rounds):
            products.append(product())
            steps.append(seconds(step))
        took, peak = statistics.median(steps), statistics.median(products)
        lines.append(
            f"| {size} | {batch} | {took:.2f} | {work:.0f} | {work / took:.0f} | {peak:.0f} "
            f"| {work / took / peak:.2f} |"
        )
        profiles.append((size, shares(step)))
        if given.compile:
            compiled = partial(
                training_step, size, batch, given.base_features, given.precision, compiled=True
            )
            compilations.append(f"| {size} | {compared(step, compiled, given.rounds)} |")
    if compilations:
        lines += ["", "| U-Net input | step, s | compiled | part of it | the first, with compiling |"]
        lines += ["| --- | --- | --- | --- | --- |", *compilations]
    lines += ["", "| part of a step, % | " + " | ".join(str(size) for size, _ in profiles) + " |"]
    lines += ["| --- |" + " --- |" * len(profiles)]
    for group in (*GROUPS, "other"):
        lines.append(f"| {group} | " + " | ".join(f"{100 * p[group]:.1f}" for _, p in profiles) + " |")
    lines += [
        "",
        "| resampling, 12 slices | ms | GB/s | copy's | part of it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for size in given.sizes:
        took, rate, peak = resampling(size, given.rounds)
        lines.append(f"| {size} | {1e3 * took:.0f} | {rate:.1f} | {peak:.1f} | {rate / peak:.2f} |")
    print("\n".join(lines))
    write_text(given.output / "limit.md", "\n".join(lines) + "\n")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def product(side: int = 3072) -> float:
    """GFLOP/s of a matrix product."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    a @ b
    return 2 * side**3 / 1e9 / min(seconds(lambda: a @ b) for _ in range(2))


def compared(step: Callable[[], None], compiled: Callable[[], Callable[[], None]], rounds: int) -> str:
    """Cells of a row: the step in turn with one whose U-Net goes through torch.compile."""
    started = time.perf_counter()
    other = compiled()
    first = time.perf_counter() - started
    eager, faster = [], []
    for _ in range(rounds):
        eager.append(seconds(step))
        faster.append(seconds(other))
    before, after = statistics.median(eager), statistics.median(faster)
    return f"{before:.2f} | {after:.2f} | {after / before:.2f} | {first:.0f}"


def training_step(
    size: int, n: int, base_features: int, precision: str, *, compiled: bool = False
) -> Callable[[], None]:
    """The whole of a step on n slices as isopose fit makes it, but for reading; it is made once."""
    settings = [f"data.size={size}", "unet.input=full", f"unet.base_features={base_features}"]
    step = training(load_config(settings=settings), n, precision, compiled=compiled)[1]
    step()
    return step


def training(
    config: Config, n: int, precision: str, *, device: str = "cpu", compiled: bool = False
) -> tuple[SegmentationObjective, Callable[[], None]]:
    """The U-Net's objective, and a function that makes a step on n slices; weights and slices are drawn."""
    size = config.data.size
    pipeline = Networks(config, 3, torch.zeros(1, 1, size, size), 0.0, 1.0).to(device)
    pipeline.unet = pipeline.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = SegmentationObjective(pipeline).train()
    if compiled:
        pipeline.unet.compile()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    labels = torch.randint(0, 3, (n, size, size), dtype=torch.uint8)
    image, mask = torch.randn(n, 1, size, size), torch.ones(n, 1, size, size)
    batch = Batch(torch.arange(n), image, mask, labels, torch.zeros(n, 5), torch.eye(3).repeat(n, 1, 1))
    batch, noise = batch.to(torch.device(device)), (torch.rand(n, 9) * 2 - 1).to(device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision, torch.device(device).type):
            loss = objective(batch, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 12.0)
        optimizer.step()

    return objective, step


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Part of a step's time by kind of operator."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    times = dict.fromkeys((*GROUPS, "other"), 0.0)
    for event in profiled.key_averages():
        name = event.key.lower()
        group = next((g for g, words in GROUPS.items() if any(word in name for word in words)), "other")
        times[group] += event.self_cpu_time_total
    total = sum(times.values())
    return {group: value / total for group, value in times.items()}


def resampling(size: int, rounds: int, slices: int = 12) -> tuple[float, float, float]:
    """Seconds of a warp, its GB/s (image, grid and result once each), and those of a copy."""
    image = torch.randn(slices, 1, size, size)
    theta = torch.eye(3).repeat(slices, 1, 1) * 0.99
    moved = 4 * (2 + 2 + 2) * image.numel()  # image in and out, the grid written and read
    large = torch.randn(32_000_000)
    target = torch.empty_like(large)
    times, copies = [], []
    for _ in range(rounds + 1):
        times.append(seconds(lambda: warp(image, theta, (size, size))))
        copies.append(8 * large.numel() / 1e9 / seconds(lambda: target.copy_(large)))
    took = statistics.median(times[1:])
    return took, moved / 1e9 / took, statistics.median(copies[1:])


if __name__ == "__main__":
    main()
