"""Work in several processes: in order, reported by name, in workers that begin quickly and safely."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isopose.errors import InputError, IsoposeError, RunError
from isopose.isolation import Failed
from isopose.parallel import all_of, attempts, in_order


def results(workers, work, items, **more):
    return list(in_order(work, items, name=str, workers=workers, **more))


def slow_first(item):
    time.sleep(0.3 if item == 0 else 0.0)
    return item, os.getpid()


def refused(item):
    raise InputError("is broken")


def without_disk(item):
    return Path("/no/such/folder").joinpath(str(item)).read_text()


def dies(item):
    os._exit(3)


def loaded(item):
    """Return the command line of the worker's parent, and whether the worker started with PyTorch loaded."""
    return Path(f"/proc/{os.getppid()}/cmdline").read_text(), "torch" in sys.modules


@pytest.mark.parametrize("workers", [0, 2])
def test_results_are_returned_in_order_of_the_items(workers):
    seen = []
    result = results(workers, slow_first, range(4), progress=lambda done, total: seen.append((done, total)))
    assert [item for item, _ in result] == [0, 1, 2, 3]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (os.getpid() in {pid for _, pid in result}) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_names_its_item(workers):
    with pytest.raises(InputError, match=r"^case_7: is broken$"):
        list(in_order(refused, [7], name=lambda item: f"case_{item}", workers=workers))
    with pytest.raises(IsoposeError, match=r"^5: No such file or directory"):
        results(workers, without_disk, [5])


def test_a_worker_that_dies_is_reported():
    with pytest.raises(IsoposeError, match=r"^3: a worker process died at this case"):
        results(1, dies, [3])


class Unsendable(Exception):
    """One that is not the same once it was pickled."""

    def __init__(self, place, line):
        super().__init__(f"{place} {line} DOE^JOHN")


def fails(item):
    if item in (2, 9):
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 4:
        raise Unsendable("itk", 3)
    if item == 5:
        return lambda: item
    if item == 7:
        raise MemoryError("DOE^JOHN")
    time.sleep(0.1)
    return item, os.getpid()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_item_that_fails_does_not_stop_the_others(workers):
    seen = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    result = list(attempts(fails, range(12), name=str, workers=workers, progress=progress))
    assert seen == [(n + 1, 12) for n in range(12)]
    failed = {n: one.why for n, one in enumerate(result) if isinstance(one, Failed)}
    assert failed.keys() == {2, 4, 5, 7, 9}
    assert [one[0] for n, one in enumerate(result) if n not in failed] == [0, 1, 3, 6, 8, 10, 11]
    assert failed[2] == failed[9].replace("9", "2", 1)
    assert failed[2].startswith("2: a worker process died at this case, probably because memory ran out; ")
    assert failed[4].startswith("4: failed unexpectedly by Unsendable")
    assert failed[7].startswith("7: out of memory: ")
    assert not any("DOE" in why for why in failed.values())


def full(item):
    if item == 1:
        raise OSError(28, "DOE^JOHN", "out")
    return item


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_that_concern_all_items_are_raised(workers):
    result = attempts(full, range(4), name=str, workers=workers)
    assert next(result) == 0
    with pytest.raises(RunError, match=r"^out: No space left on device; nothing was left half-written$"):
        next(result)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_failures_are_reported_before_one_is_raised(workers):
    messages, lines = [], [f"  error: {n}: is broken" for n in (1, 2)]
    with pytest.raises(InputError, match=r"^2 of 2 cases cannot be used, the first: 1: is broken; fix them"):
        all_of(refused, [1, 2], name=str, workers=workers, say=messages.append)
    assert messages == lines
    assert all_of(full, [0, 2], name=str, workers=workers) == [0, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")
def test_workers_are_forks_of_a_process_that_has_loaded_what_they_need():
    """A fork of this process would inherit locks held by its threads."""
    [(parent, ready)] = results(1, loaded, [0])
    assert "forkserver" in parent
    assert ready


PROGRAM = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import test_parallel as here
from isopose.parallel import in_order
if __name__ == "__main__":
    for pid in in_order(here.patient_worker, range(100), name=str, workers=2):
        print(pid, flush=True)
"""


def patient_worker(item):
    time.sleep(0.2)
    return os.getpid()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """No worker is left behind if a scheduler or the out-of-memory killer ends the parent."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = {int(process.stdout.readline()) for _ in range(6)}
    process.kill()
    process.wait()
    for _ in range(100):
        time.sleep(0.1)
        if not any(running(pid) for pid in workers):
            break
    assert not any(running(pid) for pid in workers)


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
