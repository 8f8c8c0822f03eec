import errno
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from isopose.cluster.pool import MAX_TRIES, Pool, Worker, cluster
from isopose.errors import InputError, IsoposeError, RunError
from isopose.isolation import Failed

pytestmark = pytest.mark.long

ray = pytest.importorskip("ray")
# Workers have no way to import a test.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Squares:
    """Squares numbers; those in ``dies`` kill the worker, ``once`` at first try, others raise."""

    notes: Path
    dies: tuple[int, ...] = ()
    once: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()
    full: tuple[int, ...] = ()

    def __call__(self):
        with open(self.notes / "opened", "a") as file:
            file.write(f"{os.getpid()}\n")
        return self.square

    def square(self, number):
        with open(self.notes / str(number), "a") as file:
            file.write("tried\n")
        tried = len((self.notes / str(number)).read_text().splitlines())
        if number in self.dies or (number in self.once and tried == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if number in self.raises:
            raise OSError(f"no disk for {number}")
        if number in self.full:
            raise OSError(errno.ENOSPC, "", "out")
        return number * number


@pytest.fixture(scope="module")
def pool():
    before = signal.getsignal(signal.SIGTERM)
    with cluster("local") as workers:
        assert signal.getsignal(signal.SIGTERM) is before, "a run is stopped as without Ray"
        yield workers


def run(pool, set_up, count):
    lines = []
    numbers = [3 * n for n in range(count)]
    return dict(pool.run(set_up, numbers, lines.append)), lines


def tries(folder, number):
    return len((folder / str(number)).read_text().splitlines())


def test_each_item_is_processed_once(pool, tmp_path):
    results, lines = run(pool, Squares(tmp_path), 40)
    assert results == {n: 9 * n * n for n in range(40)}
    assert all(tries(tmp_path, 3 * n) == 1 for n in range(40))
    assert len((tmp_path / "opened").read_text().split()) <= pool.capacity()
    assert lines == []


def test_an_item_of_a_dead_worker_is_processed_by_another(pool, tmp_path):
    results, lines = run(pool, Squares(tmp_path, once=(6, 15)), 10)
    assert results == {n: 9 * n * n for n in range(10)}
    assert [tries(tmp_path, 3 * n) for n in range(10)] == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1]
    assert all("the worker died" in line for line in lines)
    assert len(lines) == 2


def test_an_item_that_kills_every_worker_is_reported_and_the_others_finish(pool, tmp_path):
    results, _ = run(pool, Squares(tmp_path, dies=(6,)), 10)
    failed = results.pop(2)
    assert isinstance(failed, Failed)
    assert "the worker died, 3 times, probably because memory ran out" in failed.why
    assert tries(tmp_path, 6) == MAX_TRIES
    assert results == {n: 9 * n * n for n in range(10) if n != 2}


def test_a_temporary_error_is_retried_and_then_reported(pool, tmp_path):
    results, _ = run(pool, Squares(tmp_path, raises=(6,)), 4)
    why = "failed unexpectedly by OSError; please report it, 3 times"
    assert results.pop(2) == Failed(why, internal=True), "without the words of what raised it"
    assert results == {0: 0, 1: 9, 3: 81}


def test_an_unwritable_output_ends_the_run(pool, tmp_path):
    """The run ends when three workers report it; a single worker may have a problem of its own."""
    with pytest.raises(RunError, match=r"^out: No space left on device; nothing was left half-written$"):
        run(pool, Squares(tmp_path, full=(6,)), 4)
    assert tries(tmp_path, 6) == MAX_TRIES


def test_when_everything_fails_the_run_ends_with_the_reason(pool, monkeypatch, tmp_path):
    monkeypatch.setattr("isopose.cluster.pool.MAX_FAILED_ITEMS", 2)
    monkeypatch.setattr("isopose.cluster.pool.MAX_TRIES", 1)
    with pytest.raises(IsoposeError, match=r"the last 2 items all failed 1 times, .*by OSError"):
        run(pool, Squares(tmp_path, raises=tuple(range(0, 60, 3))), 20)


def refuse():
    raise InputError("model: no such folder")


def test_a_refused_worker_setup_ends_the_run_with_its_message(pool):
    with pytest.raises(InputError, match="model: no such folder"):
        run(pool, refuse, 4)


def test_a_machine_with_another_isopose_is_named(tmp_path):
    with pytest.raises(InputError, match=rf"{os.uname().nodename}: has isopose .*expected 0.0.1; install"):
        Worker(Squares(tmp_path), "0.0.1", 1).ready()


def test_a_cluster_without_workers_ends_the_run(pool, monkeypatch, tmp_path):
    monkeypatch.setattr("isopose.cluster.pool.WORKER_TIMEOUT", 1.0)
    started = time.monotonic()
    with pytest.raises(IsoposeError, match="no machine has had 1000 CPU"):
        list(Pool(cpus=1000).run(Squares(tmp_path), [1], print))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:1", "nothing answers there"), ("there", "expected auto, local or HOST:PORT")],
)
def test_an_address_without_a_cluster_is_reported_at_once(address, message):
    with pytest.raises(InputError, match=message), cluster(address):
        pass


@pytest.mark.parametrize("device", ["cuda:1", "mps", "tpu"])
def test_an_unknown_device_is_refused(device):
    """An unknown device was once silently treated as a CPU."""
    message = f"--device {device}: .*expected auto, cpu, cuda"
    with pytest.raises(InputError, match=message), cluster("127.0.0.1:1", device):
        pass
