"""What a run costs, and on what."""

import os
from pathlib import Path

import pytest
import torch

from isopose.study import measure
from isopose.study.measure import Measuring, circumstances

CPU = torch.device("cpu")


def test_of_a_stage_in_two_processes_the_one_that_took_more_counts(
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


def test_memory_is_of_the_device_that_the_run_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU of a machine that has a GPU, too: nothing is allocated there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measure.reset_peak(CPU) > 50
    assert measure.peak_memory(CPU) > 50


def test_what_a_run_was_made_on() -> None:
    found = circumstances(CPU, "32-true")
    assert (found["device"], found["precision"]) == ("cpu", "32-true")
    assert found["threads"] == str(torch.get_num_threads())
    assert found["torch"] == torch.__version__
    assert found["processor"]
    assert os.uname().nodename not in found.values(), "a machine's name is nobody's business"
