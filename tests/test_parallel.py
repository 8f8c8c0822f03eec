"""Work in several processes: in order, told by name, in workers that begin quickly and safely."""

import os
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
