"""Work in several processes: in order, told by name, in workers that begin quickly and safely."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isopose.errors import InputError, IsoposeError
from isopose.parallel import in_order


def told(workers, work, items, **more):
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
    """What the worker's parent runs, and whether the worker had PyTorch at once."""
    return Path(f"/proc/{os.getppid()}/cmdline").read_text(), "torch" in sys.modules


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_whoever_is_first(workers):
    seen = []
    found = told(workers, slow_first, range(4), progress=lambda done, total: seen.append((done, total)))
    assert [item for item, _ in found] == [0, 1, 2, 3]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (os.getpid() in {pid for _, pid in found}) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_names_its_item(workers):
    with pytest.raises(InputError, match=r"^case_7: is broken$"):
        list(in_order(refused, [7], name=lambda item: f"case_{item}", workers=workers))
    with pytest.raises(IsoposeError, match=r"^5: No such file or directory"):
        told(workers, without_disk, [5])


def test_a_worker_that_dies_is_told():
    with pytest.raises(IsoposeError, match="3"):
        told(1, dies, [3])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")
def test_workers_are_forks_of_a_process_that_has_loaded_what_they_need():
    """And not of this one, whose threads a fork would leave behind with their locks held."""
    [(parent, ready)] = told(1, loaded, [0])
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
    """As by a scheduler, or for want of memory: nothing is left that holds memory or waits."""
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
