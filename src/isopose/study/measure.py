"""What a run costs: seconds by stage are in the model's history; here are memory, predictions and sizes."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from isopose.files import read_json, write_json
from isopose.heap import give_back_freed_memory
from isopose.models.pipeline import Pipeline
from isopose.progress import StageReport, Terminal

MB = 2.0**20


class Measuring(Terminal):
    """Reports as usual, and keeps each stage's peak of memory in a file, for runs that are broken off.

    On a CPU it is what the process held resident, on a GPU what was allocated on it. ``before`` is what the
    stage found, so that the rest is its own.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = read_json(path) if path.exists() else {"memory": {}, "predict": {}}

    @contextmanager
    def stage(self, name: str, epochs: int, iterations: int, done: int) -> Iterator[StageReport]:
        """Measure from here on."""
        before = reset_peak()
        with super().stage(name, epochs, iterations, done) as report:
            yield _Stage(self, report, name, before)

    def keep(self, part: str, key: str, value: Mapping[str, float]) -> None:
        """Put numbers down."""
        self.values[part][key] = dict(value)
        write_json(self.path, self.values)


class _Stage:
    def __init__(self, meter: Measuring, report: StageReport, name: str, before: float) -> None:
        self.meter, self.report, self.name, self.before = meter, report, name, before

    def step(self) -> None:
        self.report.step()

    def epoch(self, row: Mapping[str, Any]) -> None:
        known = self.meter.values["memory"].get(self.name, {"before_mb": self.before, "peak_mb": 0.0})
        peak = max(known["peak_mb"], peak_memory())
        self.meter.keep("memory", self.name, {"before_mb": known["before_mb"], "peak_mb": peak})
        self.report.epoch(row)


def reset_peak() -> float:
    """Forget the peak of memory so far where the system allows it; MB in use now.

    What earlier work freed is given back first: kept, it would take what comes next for nothing.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MB
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, KeyError):
        return peak_memory()


def peak_memory() -> float:
    """MB at the peak since the last reset: allocated on a GPU, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MB
    try:
        return _status("VmHWM")
    except (OSError, KeyError):
        # Bytes on macOS, kilobytes elsewhere.
        unit = 1.0 if sys.platform == "darwin" else 1024.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return float(values[key].split()[0]) / 1024.0


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Fill ``seconds`` of the clock and ``cpu_seconds`` of all cores."""
    out: dict[str, float] = {}
    started, cpu = time.monotonic(), time.process_time()
    yield out
    out["seconds"], out["cpu_seconds"] = time.monotonic() - started, time.process_time() - cpu


def size_of(pipeline: Pipeline) -> dict[str, float]:
    """Parameters of all networks and of the U-Net, and the U-Net's multiply-adds for one slice or volume."""
    config = pipeline.config
    shape = (config.unet.depth,) * (config.dims == 3) + (config.unet_size, config.unet_size)
    device = next(pipeline.unet.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        pipeline.unet(torch.zeros(1, 1, *shape, device=device))
    return {
        "parameters": float(sum(p.numel() for p in pipeline.parameters())),
        "unet_parameters": float(sum(p.numel() for p in pipeline.unet.parameters())),
        "unet_multiply_adds": counter.get_total_flops() / 2.0,
    }
