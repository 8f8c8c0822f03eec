"""The queue of jobs."""

import sqlite3

import pytest

from isopose.errors import InputError
from isopose.serve.jobs import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Jobs


def queue(tmp_path, count=3):
    jobs = Jobs(tmp_path / "queue.sqlite")
    for number in range(count):
        jobs.add(jobs.reserve(), f"patient {number}.nii", "upload.nii")
    return jobs


def states(jobs):
    return {job.number: job.state for job in jobs.all()}


def test_scans_are_processed_in_order_of_arrival(tmp_path):
    jobs = queue(tmp_path)
    assert [jobs.take().number for _ in range(3)] == [1, 2, 3]
    assert jobs.take() is None
    assert states(jobs) == dict.fromkeys((1, 2, 3), RUNNING)


def test_a_repeated_job_is_queued_last(tmp_path):
    jobs = queue(tmp_path)
    jobs.finish(jobs.take().number, DONE, seconds=1.0)
    assert jobs.again(1, series="2", correction={"a": [1.5]})
    assert [jobs.take().number for _ in range(3)] == [2, 3, 1]
    job = jobs.get(1)
    assert (job.series, job.correction) == ("2", {"a": [1.5]})


def test_a_waiting_or_running_job_is_not_queued_twice(tmp_path):
    jobs = queue(tmp_path)
    jobs.take()
    assert not jobs.again(1, series=None, correction=None)
    assert not jobs.again(2, series=None, correction=None)
    assert not jobs.again(9, series=None, correction=None)


def test_after_a_restart_the_interrupted_job_runs_first(tmp_path):
    jobs = queue(tmp_path)
    jobs.finish(jobs.take().number, FAILED, problem="damaged")
    jobs.progress(jobs.take().number, 5, 9)
    jobs.close()
    jobs = Jobs(tmp_path / "queue.sqlite")
    assert states(jobs) == {1: FAILED, 2: QUEUED, 3: QUEUED}
    assert jobs.get(1).problem == "damaged"
    assert (jobs.take().number, jobs.get(2).done) == (2, 0)


def test_a_cancelled_job_stays_cancelled_when_its_result_arrives(tmp_path):
    jobs = queue(tmp_path)
    jobs.take()
    jobs.cancel(1)
    jobs.cancel(2)
    jobs.finish(1, DONE, seconds=3.0)
    assert states(jobs) == {1: CANCELLED, 2: CANCELLED, 3: QUEUED}
    assert jobs.take().number == 3
    jobs.finish(3, DONE, seconds=3.0)
    jobs.cancel(3)
    assert jobs.get(3).state == DONE


def test_job_numbers_are_never_reused(tmp_path):
    jobs = queue(tmp_path, 2)
    jobs.remove(2)
    jobs.close()
    jobs = Jobs(tmp_path / "queue.sqlite")
    assert jobs.reserve() == 3
    assert states(jobs) == {1: QUEUED}


def test_names_are_reported_only_on_request(tmp_path):
    job = queue(tmp_path).get(1)
    assert "patient" not in str(job.shown(names=False))
    assert job.shown(names=True)["filename"] == "patient 0.nii"


def test_a_queue_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "queue.sqlite"
    path.write_bytes(b"this is no database, and long enough to be read as one" * 20)
    with pytest.raises(InputError, match="expected isopose's queue"):
        Jobs(path)
    path.unlink()
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA user_version = 99")
    base.close()
    with pytest.raises(InputError, match="a queue of version 99, expected 1"):
        Jobs(path)
