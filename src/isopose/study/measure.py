"""What a run costs and on what: its stages' seconds are in the model's history, the rest is here."""

import platform
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
from isopose.models.folder import versions
from isopose.models.pipeline import Networks
from isopose.progress import StageReport, Terminal

MB = 2.0**20


class Measuring(Terminal):
    """Reports as usual, and keeps each stage's peak of memory in a file, for runs that are broken off.

    On a CPU it is what the process held resident, on a GPU what was allocated on it. ``before`` is what the
    stage found, so that the rest is its own.

    Args:
        path: of the file.
        device: that the run computes on.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.values: dict[str, Any] = read_json(path) if path.exists() else {"memory": {}, "predict": {}}

    @contextmanager
    def stage(self, name: str, epochs: int, iterations: int, done: int) -> Iterator[StageReport]:
        """Measure from here on."""
        before = reset_peak(self.device)
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
        now = {"before_mb": self.before, "peak_mb": peak_memory(self.meter.device)}
        # A run that was broken off has several processes, each with a peak over what it found itself.
        known = self.meter.values["memory"].get(self.name, now)
        most = max(known, now, key=lambda values: values["peak_mb"] - values["before_mb"])
        self.meter.keep("memory", self.name, most)
        self.report.epoch(row)


def circumstances(device: torch.device, precision: str) -> dict[str, str]:
    """On what a run computes and with which versions; seconds and memory compare where these are the same."""
    gpu = device.type == "cuda"
    return {
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if gpu else _name_processor(),
        "threads": str(torch.get_num_threads()),
        "precision": precision,
        **versions(),
    }


def _name_processor() -> str:
    """Return the processor's name, from Linux or from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _is_gpu(device: torch.device | None) -> bool:
    return torch.cuda.is_available() if device is None else device.type == "cuda"


def reset_peak(device: torch.device | None = None) -> float:
    """Forget the peak of memory so far where the system allows it; MB in use now.

    What earlier work freed is given back first: kept, it would take what comes next for nothing.

    Args:
        device: whose memory; none: a GPU's where there is one.
    """
    if _is_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / MB
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _read_status("VmRSS")
    except (OSError, KeyError):
        return peak_memory(device)


def peak_memory(device: torch.device | None = None) -> float:
    """MB at the peak since the last reset: allocated on a GPU, else resident."""
    if _is_gpu(device):
        return torch.cuda.max_memory_allocated(device) / MB
    try:
        return _read_status("VmHWM")
    except (OSError, KeyError):
        # Bytes on macOS, kilobytes elsewhere.
        unit = 1.0 if sys.platform == "darwin" else 1024.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def _read_status(key: str) -> float:
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


def size_of(pipeline: Networks) -> dict[str, float]:
    """Parameters of all networks and of the U-Net, and the U-Net's multiply-adds for one slice or volume."""
    config = pipeline.config
    shape = (config.unet.depth,) * (config.dims == 3) + (config.unet_size, config.unet_size)
    device = next(pipeline.unet.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        pipeline.unet(torch.zeros(1, pipeline.unet.plan.channels, *shape, device=device))
    return {
        "parameters": float(sum(p.numel() for p in pipeline.parameters())),
        "unet_parameters": float(sum(p.numel() for p in pipeline.unet.parameters())),
        "unet_multiply_adds": counter.get_total_flops() / 2.0,
    }
