"""Measure memory, prediction time, network size and hardware of a run; its history has the training times."""

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
    """A reporter that also writes the peak memory of each stage to a file, so that interrupted runs keep it.

    On a CPU this is the resident memory of the process, on a GPU the memory allocated on it. ``before_mb`` is
    the memory in use when the stage began; the stage itself used the difference.

    Args:
        path: of the file.
        device: device of the run.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.values: dict[str, Any] = read_json(path) if path.exists() else {"memory": {}, "predict": {}}

    @contextmanager
    def stage(self, name: str, epochs: int, iterations: int, done: int) -> Iterator[StageReport]:
        """Report a training stage and measure its memory."""
        before = reset_peak(self.device)
        with super().stage(name, epochs, iterations, done) as report:
            yield _Stage(self, report, name, before)

    def keep(self, part: str, key: str, value: Mapping[str, float]) -> None:
        """Store numbers in the file."""
        self.values[part][key] = dict(value)
        write_json(self.path, self.values)


class _Stage:
    def __init__(self, meter: Measuring, report: StageReport, name: str, before: float) -> None:
        self.meter, self.report, self.name, self.before = meter, report, name, before

    def step(self) -> None:
        self.report.step()

    def epoch(self, row: Mapping[str, Any]) -> None:
        now = {"before_mb": self.before, "peak_mb": peak_memory(self.meter.device)}
        # An interrupted run has several processes, each with its own initial memory and peak.
        known = self.meter.values["memory"].get(self.name, now)
        most = max(known, now, key=lambda values: values["peak_mb"] - values["before_mb"])
        self.meter.keep("memory", self.name, most)
        self.report.epoch(row)


def circumstances(device: torch.device, precision: str) -> dict[str, str]:
    """Return hardware, precision and versions of a run; time and memory compare only where these agree."""
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
    """Reset the peak memory, where the system allows it, and return the MB in use now.

    Freed memory is returned to the system first; otherwise later allocations would reuse it unnoticed.

    Args:
        device: whose memory is measured; None: a GPU's if there is one.
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
    """Return the peak memory in MB since the last reset: allocated on a GPU, otherwise resident."""
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
    """Yield a dictionary that receives the block's ``seconds`` (wall clock) and ``cpu_seconds``."""
    out: dict[str, float] = {}
    started, cpu = time.monotonic(), time.process_time()
    yield out
    out["seconds"], out["cpu_seconds"] = time.monotonic() - started, time.process_time() - cpu


def size_of(pipeline: Networks) -> dict[str, float]:
    """Return the parameters of all networks and of the U-Net, and its multiply-adds per slice or volume."""
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
