"""The command that trains the shipped network, with the smallest training."""

import json

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from isopose.models.roll import RollNetwork
from isopose.models.shipped import WEIGHTS
from isopose.phantom.roll import __main__ as command
from isopose.phantom.roll import train as training

SMALL = ("--patients", "3", "--held-out", "2", "--slices", "3", "--pictures", "2", "--workers", "0")


def run(output, steps, *more):
    app = typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, [str(output), *SMALL, "--steps", str(steps), *map(str, more)])
    assert result.exit_code == 0, result.output
    return result.output


def test_training_writes_loadable_weights_and_prints_their_error(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    assert "roll.json" in run(tmp_path / "one", 4)
    tensors = load_file(tmp_path / "one" / WEIGHTS["ct"])
    RollNetwork().load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    report = json.loads((tmp_path / "one" / "roll.json").read_text())
    assert set(report["held_out_plain"]) == {"abdomen", "chest", "pelvis"}
    assert report["held_out_plain"]["abdomen"]["slices"] == 6
    assert 0.0 <= report["held_out_plain"]["chest"]["median_degrees"] <= 180.0
    # Started from these weights, a training goes elsewhere than from random ones.
    run(tmp_path / "on", 1, "--start", tmp_path / "one" / WEIGHTS["ct"])
    on = json.loads((tmp_path / "on" / "roll.json").read_text())
    assert on["parameters"]["start_sha256"] == report["weights_sha256"]
    key = "encoder.0.weight"
    further = load_file(tmp_path / "on" / WEIGHTS["ct"])[key].float()
    assert (further - tensors[key].float()).abs().max() < 0.02
    assert report["parameters"]["patients"] == 3
    # Undisturbed, and stopped after half of it: the same weights.
    slabs = (tmp_path / "one" / "slabs").rename(tmp_path / "slabs")
    stopped = tmp_path / "two"
    stopped.mkdir()
    slabs.rename(stopped / "slabs")
    steps = []

    def interrupted(*arguments, **named):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    original = training.von_mises_loss
    monkeypatch.setattr(training, "von_mises_loss", interrupted)
    with pytest.raises(AssertionError):
        run(stopped, 4)
    monkeypatch.setattr(training, "von_mises_loss", original)
    run(stopped, 4)
    for name, value in load_file(stopped / WEIGHTS["ct"]).items():
        assert torch.equal(value, tensors[name]), name
