"""Curves in TensorBoard, and in the real MLflow and Weights & Biases, on this machine's disk."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from isopose.errors import InputError
from isopose.progress import Silent
from isopose.training import tracking
from isopose.training.tracking import Tracked, curves
from reporters import RecordingReporter

pytestmark = pytest.mark.long

ROWS = [
    {"stage": "crop", "epoch": 1, "loss": 0.5, "learning_rate": 0.1},
    {"stage": "unet", "epoch": 1, "loss": 2.0, "dice kidney (left)": 0.25},
    {"stage": "unet", "epoch": 2, "loss": 1.0, "dice kidney (left)": 0.75},
]


@pytest.fixture(autouse=True)
def on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("WANDB_MODE", "offline")


def report_rows(tracked, rows):
    for row in rows:
        with tracked.stage(row["stage"], 2, 1, row["epoch"] - 1) as report:
            report.step()
            report.epoch(row)


def mlflow_runs():
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("isopose")
    return client, client.search_runs([experiment.experiment_id])


def wandb_records(work):
    """All records of the runs on disk, files of less than a block in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    for path in sorted(work.glob("wandb/offline-run-*/run-*.wandb")):
        data, offset = path.read_bytes(), 7
        assert data.startswith(b":W&B")
        assert len(data) < 32768
        while offset < len(data):
            _, length, kind = struct.unpack_from("<IHB", data, offset)
            assert kind == 1, "a whole record"
            records.append(Record.FromString(data[offset + 7 : offset + 7 + length]))
            offset += 7 + length
    return records


def test_tensorboard_has_every_row_once_after_a_kill(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with curves(tmp_path, 0) as draw:
        draw(ROWS[1])
        draw(ROWS[2] | {"loss": 9.0})
    time.sleep(1.1)  # event files are ordered by the second in their names
    with curves(tmp_path, 1) as draw:
        draw(ROWS[2])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("unet/loss")] == [(1, 2.0), (2, 1.0)]


def test_mlflow_has_settings_rows_and_one_run_after_resuming(tmp_path, tiny):
    pytest.importorskip("mlflow")
    config = tiny("pose.reference=phantom_000:2")
    tracked = Tracked(Silent(), ["mlflow"], tmp_path, config)
    report_rows(tracked, ROWS[:2])
    # As a with statement does it when the training is stopped.
    stopped = KeyboardInterrupt()
    tracked.__exit__(KeyboardInterrupt, stopped, None)
    client, [run] = mlflow_runs()
    assert run.info.status == "KILLED"
    reporter = RecordingReporter()
    with Tracked(reporter, ["mlflow", "mlflow"], tmp_path, config) as tracked:
        report_rows(tracked, ROWS[2:])
    client, [run] = mlflow_runs()
    assert run.info.status == "FINISHED"
    dice = client.get_metric_history(run.info.run_id, "unet/dice kidney _left_")
    assert [(m.step, m.value) for m in dice] == [(1, 0.25), (2, 0.75)]
    assert client.get_metric_history(run.info.run_id, "crop/learning_rate")[0].value == 0.1
    assert run.data.params["unet.optimizer.epochs"] == str(config.unet.optimizer.epochs)
    # Nothing of who, where and from what.
    assert "phantom_000" not in str(run.to_dictionary())
    assert set(run.data.tags) == {"mlflow.runName"}
    # What else hears of it hears the same.
    assert reporter.rows == ROWS[2:]


def test_wandb_has_settings_and_rows_and_nothing_of_the_machine(tmp_path, tiny):
    pytest.importorskip("wandb")
    config = tiny("pose.reference=phantom_000:2")
    for rows in (ROWS[:2], ROWS[2:]):
        with Tracked(Silent(), ["wandb"], tmp_path, config) as tracked:
            report_rows(tracked, rows)
        # wandb names its files by the second, and would write the second part over the first.
        time.sleep(1.1)
    records = wandb_records(tmp_path)
    runs = [record.run for record in records if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["unet.optimizer.epochs"] == config.unet.optimizer.epochs
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    drawn = [(row.get("unet/epoch"), row["unet/loss"]) for row in history if "unet/loss" in row]
    assert drawn == [(1, 2.0), (2, 1.0)]
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"phantom_000" not in everything
    assert not any(record.HasField("environment") for record in records)


def test_an_unknown_or_missing_tracker_is_reported_before_training(tmp_path, tiny, monkeypatch):
    with pytest.raises(InputError, match="expected one of mlflow, wandb, got 'neptune'"):
        Tracked(Silent(), ["neptune"], tmp_path, tiny())
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"pip install 'isopose\[mlflow\]'"):
        Tracked(Silent(), ["mlflow"], tmp_path, tiny())
    assert not any(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_is_reported_in_one_line(tmp_path, tiny, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at/all")
    with (
        Tracked(Silent(), ["mlflow"], tmp_path, tiny()) as tracked,
        pytest.raises(InputError, match=r"^--track mlflow: [^\n]+$"),
        tracked.stage("unet", 1, 1, 0),
    ):
        pass


def test_a_tracker_that_fails_midway_does_not_stop_training(tmp_path, tiny, monkeypatch):
    @contextmanager
    def failing(*_):
        def draw(row):
            raise ConnectionError("the line is cut\nmore")

        yield "id", draw

    monkeypatch.setitem(tracking.TRACKERS, "json", failing)
    reporter = RecordingReporter()
    with Tracked(reporter, ["json"], tmp_path, tiny()) as tracked:
        report_rows(tracked, ROWS)
    assert reporter.rows == ROWS
    assert reporter.lines == ["json: the line is cut; the training continues without it"]


def test_a_tracker_that_fails_at_the_end_keeps_the_model_and_other_errors(tmp_path, tiny, monkeypatch):
    @contextmanager
    def failing(*_):
        try:
            yield "id", lambda row: None
        finally:
            raise ConnectionError("the line is cut")

    monkeypatch.setitem(tracking.TRACKERS, "json", failing)
    reporter = RecordingReporter()
    with Tracked(reporter, ["json"], tmp_path, tiny()) as tracked:
        report_rows(tracked, ROWS)
    assert reporter.lines == ["--track: the runs could not be ended (the line is cut)"]
    with pytest.raises(InputError, match="ours"), Tracked(reporter, ["json"], tmp_path, tiny()) as tracked:
        fail_after(tracked)


def fail_after(tracked):
    report_rows(tracked, ROWS)
    raise InputError("ours")


def test_without_a_tracker_nothing_is_recorded(tmp_path, tiny):
    with Tracked(RecordingReporter(), [], tmp_path, tiny()) as tracked:
        report_rows(tracked, ROWS)
    assert not any(tmp_path.iterdir())


def test_a_resumed_fit_continues_its_tracked_run(cohort: Path, tiny, tmp_path: Path) -> None:
    """The command itself, stopped and resumed: one run with each epoch once."""
    pytest.importorskip("mlflow")
    config = tmp_path / "tiny.json"
    config.write_text(tiny("unet.optimizer.epochs=3", "unet.optimizer.min_epochs=3").model_dump_json())
    command = [sys.executable, "-m", "isopose", "fit", str(cohort), "--model", str(tmp_path / "model")]
    command += ["--config", str(config), "--track", "mlflow", "--workers", "0"]
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train unet  epoch 1/"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    if process.returncode:
        finished = subprocess.run([*command, "--resume"], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
    client, [run] = mlflow_runs()
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "unet/loss")] == [1, 2, 3]
