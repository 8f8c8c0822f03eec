"""The same work for many things, in this process or in several, with the same results in the same order."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from typing import TypeVar

import SimpleITK as sitk

from isopose.errors import InputError, IsoposeError
from isopose.silence import silence

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Called with the number of items done and of all items.
Progress = Callable[[int, int], None]


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Yield ``work(item)`` in the order of the items.

    Args:
        work: picklable; its exceptions are raised here with the item's name before them.
        items: what to work on.
        name: of an item, for errors: a case's id.
        workers: processes; 0 works in this one.
        progress: told after each item.

    Raises:
        InputError: from ``work``, naming the item.
        IsoposeError: the disk or the memory failed an item, or its process died.
    """
    if workers <= 0:
        for done, item in enumerate(items, start=1):
            with _naming(name(item)):
                result = work(item)
            if progress:
                progress(done, len(items))
            yield result
        return
    pool = ProcessPoolExecutor(min(workers, max(1, len(items))), _context(), _start_worker)
    try:
        futures = [pool.submit(work, item) for item in items]
        for done, (item, future) in enumerate(zip(items, futures, strict=True), start=1):
            with _naming(name(item)):
                result = future.result()
            if progress:
                progress(done, len(items))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> BaseContext:
    """How workers begin: not as forks of this process, for the threads of its libraries do not survive that.

    On Linux they are forks of a process that has loaded what all need, so that loading it, which takes
    seconds, is waited for once. It has no threads but OpenBLAS's, which end themselves before a fork.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["isopose.data.preprocess"])
    return context


def _start_worker() -> None:
    silence()
    # A terminal sends Ctrl-C to the workers too; the parent ends them, and alone says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "in a worker"
    parent.join()
    os._exit(1)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise IsoposeError(
            f"{name}: a worker process died at or near this case, most often for want of memory; "
            "run again with fewer workers"
        ) from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except IsoposeError as error:
        raise IsoposeError(f"{name}: {error}") from None
    except MemoryError:
        raise IsoposeError(f"{name}: out of memory; run with fewer workers") from None
    except OSError as error:
        raise IsoposeError(f"{name}: {error.strerror or error} ({error.filename or 'disk'})") from None
