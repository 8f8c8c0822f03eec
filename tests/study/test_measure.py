"""Time, memory and environment of a run."""

import os
from pathlib import Path

import pytest
import torch

from isopose.study import measure
from isopose.study.measure import Measuring, circumstances

CPU = torch.device("cpu")


def test_peak_memory_of_a_resumed_stage_is_the_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed process may start with more memory, so its peak is compared with its own start."""
    path = tmp_path / "measures.json"
    for before, peak in ((100.0, 500.0), (300.0, 600.0)):
        monkeypatch.setattr(measure, "reset_peak", lambda device, value=before: value)
        monkeypatch.setattr(measure, "peak_memory", lambda device, value=peak: value)
        meter = Measuring(path, CPU)
        with meter.stage("unet", 1, 1, 0) as report:
            report.epoch({"stage": "unet", "epoch": 1, "loss": 1.0})
    assert Measuring(path, CPU).values["memory"]["unet"] == {"before_mb": 100.0, "peak_mb": 500.0}


def test_memory_is_measured_on_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on the CPU of a machine with a GPU must not measure the memory of the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measure.reset_peak(CPU) > 50
    assert measure.peak_memory(CPU) > 50


def test_the_environment_of_a_run_is_recorded() -> None:
    result = circumstances(CPU, "32-true")
    assert (result["device"], result["precision"]) == ("cpu", "32-true")
    assert result["threads"] == str(torch.get_num_threads())
    assert result["torch"] == torch.__version__
    assert result["processor"]
    assert os.uname().nodename not in result.values(), "a machine's name is nobody's business"
