"""Scans that make the server's worker process fail in any way are reported; the next scan is predicted."""

import os
import shutil
import signal
import sqlite3
import time

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from isopose.inference.files import predict_scans
from isopose.io.images import read_labels
from isopose.io.scans import find_scans
from isopose.isolation import line_of
from isopose.models.folder import for_prediction, load_model
from isopose.progress import Silent
from isopose.serve import worker as worker_module
from isopose.serve.guard import Access
from isopose.serve.jobs import Jobs
from isopose.serve.pages import add_guard
from isopose.serve.worker import RESULT, JobWorker, Settings, _predict, _work

#: What a library may quote, and nobody may read.
SECRET = "ROE^JANE"


class Unsendable(Exception):
    """One that is not the same once it was pickled."""

    def __init__(self, job_folder, line):
        super().__init__(f"{job_folder}: {line} {SECRET}")


RAISED = [
    MemoryError(SECRET),
    RecursionError(SECRET),
    KeyError(SECRET),
    SystemError(SECRET),
    RuntimeError(f"bad allocation for {SECRET}"),
    OSError(28, SECRET, "scan.nii"),
    Unsendable(SECRET, 3),
]


@pytest.fixture
def queue(tmp_path, scan):
    """A queue, and a function that adds the scan to it."""
    jobs = Jobs(tmp_path / "queue.sqlite")

    def give():
        number = jobs.reserve()
        (tmp_path / "jobs" / str(number)).mkdir(parents=True)
        shutil.copy(scan, tmp_path / "jobs" / str(number) / "upload.nii.gz")
        jobs.add(number, scan.name, "upload.nii.gz")
        return number

    jobs.give, jobs.folder = give, tmp_path / "jobs"
    yield jobs
    jobs.close()


@pytest.fixture(scope="module")
def expected(model_folder, scan, tmp_path_factory):
    """Results of the command line for the scan."""
    out = tmp_path_factory.mktemp("expected")
    model, scans = load_model(model_folder), find_scans([scan])
    predict_scans(model, scans, out, probabilities=False, reporter=Silent())
    return read_labels(out / scan.name).array


class Pipe:
    """A pipe that ignores reported progress."""

    def send(self, message):
        pass


@pytest.mark.parametrize("where", ["inference.files.read_channels", "serve.report.write_scan_report"])
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_error_of_a_scan_becomes_its_message(error, where, queue, model_folder, expected, monkeypatch):
    """Errors while reading, and while writing the last of the result files."""

    def fail(*args, **kwargs):
        raise error

    model = for_prediction(load_model(model_folder))
    queue.give()
    job = queue.take()
    with monkeypatch.context() as patched:
        patched.setattr(f"isopose.{where}", fail)
        state, problem = _predict(model, job, queue.folder, Pipe())
    assert state == "failed"
    assert SECRET not in problem
    assert "\n" not in problem
    assert problem.startswith(str(line_of(error))[:20])
    job_folder = queue.folder / str(job.number)
    assert [path.name for path in job_folder.rglob("*") if path.is_file()] == ["upload.nii.gz"]
    # The same process goes on, with the same scan even.
    assert _predict(model, job, queue.folder, Pipe()) == ("done", None)
    np.testing.assert_array_equal(read_labels(job_folder / "result" / f"{RESULT}.nii.gz").array, expected)


def work_that_dies(settings, pipe):
    """Work of the process: the first scan kills it, the second raises an error that cannot be pickled."""
    from isopose.io import channels

    def read(path, series=None, original=channels.read_volume, **more):
        if path.parent.name == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        if path.parent.name == "2":
            raise Unsendable(SECRET, 3)
        return original(path, series, **more)

    channels.read_volume = read
    _work(settings, pipe)


def test_a_scan_that_kills_the_process_is_reported_and_the_next_is_done(
    queue, model_folder, expected, monkeypatch
):
    monkeypatch.setattr(worker_module, "_work", work_that_dies)
    monkeypatch.setattr(worker_module, "RETRY_SECONDS", 0.1)
    finish, full = queue.finish, [sqlite3.OperationalError("database or disk is full")]

    def finish_later(*args, **kwargs):
        if full:
            raise full.pop()
        finish(*args, **kwargs)

    monkeypatch.setattr(queue, "finish", finish_later)
    for _ in range(3):
        queue.give()
    worker = JobWorker(Settings(model_folder, "cpu", None, queue.folder), queue)
    worker.start()
    try:
        deadline = time.monotonic() + 120
        while any(job.state in ("queued", "running") for job in queue.all()):
            assert time.monotonic() < deadline, queue.all()
            time.sleep(0.1)
    finally:
        worker.stop()
    third, second, first = queue.all()
    assert [first.state, second.state, third.state] == ["failed", "failed", "done"]
    assert "was killed, probably because memory ran out" in first.problem
    assert second.problem.startswith("failed unexpectedly by Unsendable at isopose.io.channels:")
    assert SECRET not in second.problem
    result = queue.folder / "3" / "result" / f"{RESULT}.nii.gz"
    np.testing.assert_array_equal(read_labels(result).array, expected)


def test_a_model_that_could_not_be_loaded_is_tried_again(queue, model_folder, monkeypatch):
    class Once:
        """A pipe through which one scan comes."""

        def __init__(self, job):
            self.jobs, self.sent = [job], []

        def recv(self):
            if not self.jobs:
                raise EOFError
            return self.jobs.pop()

        def send(self, message):
            self.sent.append(message)

    def hungry(*args):
        monkeypatch.undo()
        raise MemoryError(SECRET)

    queue.give()
    pipe = Once(queue.take())
    monkeypatch.setattr("isopose.inference.ensemble.load_ensemble", hungry)
    before = signal.getsignal(signal.SIGINT)
    try:
        _work(Settings(model_folder, "cpu", None, queue.folder), pipe)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pipe.sent[-1] == ("done", None)


def test_an_error_in_a_request_is_answered_in_one_line():
    app = FastAPI()

    @app.get("/fails")
    def fails():
        raise KeyError(SECRET)

    add_guard(app, Access("127.0.0.1", 8000))
    # A client that raises what the server's log would show.
    response = TestClient(app, base_url="http://127.0.0.1:8000").get("/fails")
    assert response.status_code == 500
    assert response.json()["detail"].startswith("failed unexpectedly by KeyError")
    assert SECRET not in response.text
