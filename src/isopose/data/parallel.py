"""The same work for many cases, in this process or in several, with the same results in the same order."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

import torch

from isopose.errors import InputError, IsoposeError
from isopose.io.datasets import Case

Result = TypeVar("Result")

#: Called with the number of cases done and of all cases.
Progress = Callable[[int, int], None]


def for_each_case(
    work: Callable[[Case], Result],
    cases: Sequence[Case],
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Yield ``work(case)`` in the order of the cases.

    Every process works on one thread: results must not depend on how a sum was split.

    Args:
        work: picklable; its exceptions are raised here with the case's name before them.
        cases: what to work on.
        workers: processes; 0 works in this one.
        progress: told after each case.

    Raises:
        InputError: from ``work``, naming the case.
        IsoposeError: a case failed for another reason, or its process died.
    """
    if workers <= 0:
        for done, case in enumerate(cases, start=1):
            with _naming(case), one_thread():
                result = work(case)
            if progress:
                progress(done, len(cases))
            yield result
        return
    # Spawned, not forked: torch's and SimpleITK's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        futures = [pool.submit(work, case) for case in cases]
        for done, (case, future) in enumerate(zip(cases, futures, strict=True), start=1):
            with _naming(case):
                result = future.result()
            if progress:
                progress(done, len(cases))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on a single thread, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_worker() -> None:
    torch.set_num_threads(1)


@contextmanager
def _naming(case: Case) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise IsoposeError(
            f"{case.id}: a worker process died at or near this case, most often for want of memory; "
            "run again with fewer workers"
        ) from None
    except InputError as error:
        raise InputError(f"{case.id}: {error}") from None
    except IsoposeError as error:
        raise IsoposeError(f"{case.id}: {error}") from None
    except MemoryError:
        raise IsoposeError(f"{case.id}: out of memory; run with fewer workers") from None
    except OSError as error:
        raise IsoposeError(f"{case.id}: {error.strerror or error} ({error.filename or 'disk'})") from None
