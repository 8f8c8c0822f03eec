"""Predict in a separate process, so that a scan that crashes it leaves the server running."""

import multiprocessing
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from isopose.isolation import line_of
from isopose.progress import Silent
from isopose.serve.jobs import CANCELLED, DONE, FAILED, RUNNING, Job, Jobs
from isopose.silence import silence

#: Name of a job's results; the name of the upload may be a patient's.
RESULT = "segmentation"
#: Seconds between checks whether the running scan was cancelled.
CANCEL_CHECK_SECONDS = 0.2
#: Seconds between attempts to write the queue on a full disk.
RETRY_SECONDS = 5.0
#: Seconds between two progress messages.
_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True)
class Settings:
    """Settings of the process that predicts."""

    model: Path
    device: str
    precision: str | None
    jobs: Path


class JobWorker:
    """Predict the queued scans one after the other, in a process that a thread supervises.

    Args:
        settings: model and folder of the jobs.
        jobs: the queue.
    """

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self.settings = settings
        self.jobs = jobs
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._wake, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="isopose-worker", daemon=True)

    def start(self) -> None:
        """Start; the model is loaded immediately, so that the first scan does not wait for it."""
        self._begin_process()
        self._thread.start()

    def wake(self) -> None:
        """Notify the worker that a scan was queued."""
        self._wake.set()

    def stop(self) -> None:
        """Stop immediately; the running scan is queued again at the next start."""
        self._ends.set()
        self._wake.set()
        # The thread checks for the end all the time; do not close the pipe while it reads.
        self._thread.join(timeout=10)
        self._end_process()

    def _watch(self) -> None:
        while not self._ends.is_set():
            job = self._take_next()
            if job is None:
                self._wake.wait(timeout=5)
                self._wake.clear()
                continue
            self._run(job)

    def _take_next(self) -> Job | None:
        """Mark the next scan as running and return it; None if none waits or the queue cannot be read now."""
        try:
            return self.jobs.take()
        except sqlite3.Error:
            return None

    def _run(self, job: Job) -> None:
        started = time.monotonic()
        try:
            if self._process is None or not self._process.is_alive():
                self._begin_process()
            assert self._pipe is not None, "made with the process"
            self._pipe.send(job)
            outcome = self._await_outcome(job)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            outcome = (FAILED, self._explain_exit())
        # This thread serves all scans; an error of one (no process can start, a full disk) must not end it.
        except Exception as error:
            self._end_process()
            outcome = (FAILED, str(line_of(error)))
        if self._ends.is_set():
            return
        state, problem = outcome
        seconds = time.monotonic() - started
        while not self._ends.is_set():
            try:
                self.jobs.finish(job.number, state, problem=problem, seconds=seconds)
            except sqlite3.Error:
                # Else it would be shown as running forever; the disk may have room later.
                self._ends.wait(timeout=RETRY_SECONDS)
            else:
                break

    def _await_outcome(self, job: Job) -> tuple[str, str | None]:
        assert self._pipe is not None, "made with the process"
        while not self._ends.is_set():
            if self._pipe.poll(CANCEL_CHECK_SECONDS):
                kind, *values = self._pipe.recv()
                if kind == "progress":
                    self.jobs.progress(job.number, *values)
                else:
                    return kind, values[0]
            now = self.jobs.get(job.number)
            if now is None or now.state != RUNNING:
                # Do not wait: it may read a file for minutes. Results are complete or absent.
                self._end_process()
                break
        return CANCELLED, None

    def _begin_process(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self.settings, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _explain_exit(self) -> str:
        code = None
        if self._process is not None:
            self._process.join(timeout=5)
            code = self._process.exitcode
        self._end_process()
        if code == -signal.SIGKILL:
            return (
                "the prediction process was killed, probably because memory ran out; use a machine with more"
            )
        return f"the prediction process crashed on this scan (code {code}); the file may be damaged"


def _work(settings: Settings, pipe: Connection) -> None:
    """Predict the scans that come through the pipe until it is closed."""
    silence()
    # The server handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    model, broken = _load(settings)
    while True:
        try:
            job: Job = pipe.recv()
        except (EOFError, OSError):
            return
        if model is None:
            # The cause of the failure, such as a lack of memory, may be gone.
            model, broken = _load(settings)
        answer = (FAILED, broken) if model is None else _predict(model, job, settings.jobs, pipe)
        try:
            pipe.send(answer)
        except OSError:
            return


def _load(settings: Settings) -> tuple[Any, str | None]:
    """Return the model, or the message that says why it cannot be loaded."""
    from isopose.devices import choose_device
    from isopose.inference.ensemble import load_ensemble
    from isopose.models.folder import for_prediction, with_precision

    try:
        loaded = load_ensemble([settings.model], choose_device(settings.device))
        return loaded.map_members(lambda m: for_prediction(with_precision(m, settings.precision))), None
    except Exception as error:
        return None, str(line_of(error))


def _predict(model: Any, job: Job, folder: Path, pipe: Connection) -> tuple[str, str | None]:
    from isopose.inference.ensemble import ensemble_of
    from isopose.inference.files import predict_scan, record_name
    from isopose.io.endings import ending
    from isopose.io.results.formats import FORMATS, NIFTI
    from isopose.io.scans import Scan
    from isopose.scan.correction import correction_from_json
    from isopose.serve.report import write_scan_report
    from isopose.serve.viewing import read_view, write_view

    lead, place = ensemble_of(model).lead, folder / str(job.number)
    upload, output, view = place / job.upload, place / "result", place / "view"
    try:
        corrections = {}
        if job.correction is not None:
            correction = correction_from_json(job.correction, "the pose set by hand")
            corrections = {correction.image_sha256: correction}
        if read_view(view) is None:
            # Else results without a view, e.g. of another version, would count as done.
            shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)

        def write_page_view(volume: Any, prediction: Any, record: dict[str, Any]) -> None:
            write_view(view, lead, volume, prediction, record)
            write_scan_report(output / "report.html", lead, volume, prediction, record)

        formats = (NIFTI,) if ending(upload) else tuple(FORMATS)
        outcome = predict_scan(
            model,
            Scan(RESULT, upload, job.series),
            output,
            formats,
            probabilities=False,
            steps=None,
            reporter=_Sender(pipe),
            corrections=corrections,
            write_more=write_page_view,
        )
        problem = outcome.problem
    # A full disk too: this scan has failed, and the page goes on.
    except Exception as error:
        problem = str(line_of(error))
    if problem is None:
        return DONE, None
    if not (output / record_name(RESULT)).exists():
        # Delete a partial result; with a record, the result is the earlier, complete one.
        for made in (output, view):
            shutil.rmtree(made, ignore_errors=True)
    return FAILED, _strip_folders(upload, problem)


def _strip_folders(upload: Path, problem: str) -> str:
    """Return a message without the server's folders and the stored scan's name."""
    return problem.replace(f"{upload}: ", "").replace(f"{upload.parent}/", "")


class _Sender(Silent):
    """Send progress to the server, at most every :data:`_PROGRESS_SECONDS` seconds."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:  # noqa: ARG002
        """Return a function that sends the number of predicted slices."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            if done == total or time.monotonic() - last > _PROGRESS_SECONDS:
                last = time.monotonic()
                self.pipe.send(("progress", done, total))

        yield report
