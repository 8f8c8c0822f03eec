"""Apply a function to many items, in this process or in several, with results in the order of the items."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from typing import TypeVar

import SimpleITK as sitk

from isopose.errors import InputError, IsoposeError
from isopose.isolation import Failed, failure_of
from isopose.silence import silence

Item = TypeVar("Item")
R = TypeVar("R")

#: Called with the number of items done and of all items.
Progress = Callable[[int, int], None]

_WORKER_DIED = (
    "a worker process died at this case, probably because memory ran out; run again with fewer workers, or "
    "leave it out"
)


def in_order(
    work: Callable[[Item], R],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[R]:
    """Yield ``work(item)`` in the order of the items; the first failure ends the iteration.

    Args:
        work: picklable function of an item.
        items: the arguments of ``work``.
        name: returns an item's name for error messages, such as a case's id.
        workers: number of processes; 0 works in this process.
        progress: called after each item with the number of finished items and of all items.

    Raises:
        InputError: from ``work``, naming the item.
        IsoposeError: ``work`` raised another error, or its process died.
    """
    for result in attempts(work, items, name=name, workers=workers, progress=progress):
        if isinstance(result, Failed):
            raise result.error()
        yield result


def all_of(
    work: Callable[[Item], R],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    workers: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> list[R]:
    """Return ``work(item)`` of all items; failures are raised after all items have been tried.

    Args:
        work, items, name, workers, progress: see :func:`in_order`.
        say: called with the message of each failed item immediately.

    Raises:
        InputError: some items cannot be used: the message of the only one, or their number and the first
            message.
        IsoposeError: the same, if the program or the machine caused one of the failures.
    """
    results, failed = [], []
    for result in attempts(work, items, name=name, workers=workers, progress=progress):
        if not isinstance(result, Failed):
            results.append(result)
            continue
        failed.append(result)
        if say:
            say(f"  error: {result.why}")
    if failed:
        raise joint_failure(failed, len(items))
    return results


def joint_failure(failed: Sequence[Failed], total: int) -> IsoposeError:
    """Return one error for all failed items of ``total``."""
    if len(failed) == 1:
        return failed[0].error()
    why = (
        f"{len(failed)} of {total} cases cannot be used, the first: {failed[0].why}; fix them or take them "
        "out of the dataset"
    )
    return Failed(why, any(one.internal for one in failed)).error()


def attempts(
    work: Callable[[Item], R],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[R | Failed]:
    """Yield ``work(item)``, or a :class:`~isopose.isolation.Failed`, in the order of the items.

    The failure of an item does not affect other items. If a worker process dies, the items in progress at
    that moment are tried once more, one at a time, so that only the item that killed the worker fails.

    Args:
        work, items, name, workers, progress: see :func:`in_order`.

    Raises:
        RunError: an item raised an error that concerns all items.
    """
    outcomes = (
        _in_processes(work, items, name, min(workers, max(1, len(items))))
        if workers > 0
        else (_attempt(work, item, name(item)) for item in items)
    )
    for done, result in enumerate(outcomes, start=1):
        if progress:
            progress(done, len(items))
        yield result


def _attempt(work: Callable[[Item], R], item: Item, name: str) -> R | Failed:
    """Run ``work`` and convert its exception in the process that raised it.

    Exceptions sent between processes lose their traceback, and some cannot be sent.
    """
    try:
        return work(item)
    except Exception as error:
        failure = failure_of(error)
        return Failed(f"{name}: {failure}", not isinstance(failure, InputError))


def _in_processes(
    work: Callable[[Item], R], items: Sequence[Item], name: Callable[[Item], str], workers: int
) -> Iterator[R | Failed]:
    waiting = list(range(len(items)))
    results: dict[int, R | Failed] = {}
    following = suspects = 0
    while waiting:
        # If a worker died, one of the items in progress caused it.
        one_at_a_time = suspects > 0
        pool = ProcessPoolExecutor(1 if one_at_a_time else workers, _context(), _start_worker)
        broken = False
        try:
            futures: dict[int, Future[R | Failed]] = {}
            with suppress(BrokenProcessPool):
                for number in waiting[:1] if one_at_a_time else waiting:
                    futures[number] = pool.submit(_attempt, work, items[number], name(items[number]))
            for number, future in futures.items():
                try:
                    results[number] = future.result()
                except BrokenProcessPool:
                    broken = True
                    if one_at_a_time:
                        results[number] = Failed(f"{name(items[number])}: {_WORKER_DIED}", internal=True)
                except Exception as error:  # the result or exception cannot be pickled
                    results[number] = Failed(f"{name(items[number])}: {failure_of(error)}", internal=True)
                while following in results:
                    yield results.pop(following)
                    following += 1
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        waiting = [n for n in waiting if n >= following and n not in results]
        # Items are started in order, at most one more than there are workers at a time.
        suspects = suspects - 1 if one_at_a_time else (workers + 1 if broken else 0)


def _context() -> BaseContext:
    """Return the way to start workers: never as forks of this process, whose threads would not survive.

    On Linux workers are forked from a server process that has already imported the libraries, so that the
    import, which takes seconds, happens once. Its only threads are OpenBLAS's, which end before a fork.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["isopose.data.preprocess"])
    return context


def _start_worker() -> None:
    silence()
    # A terminal sends Ctrl-C to the workers as well; the parent ends them and reports it once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent dies; it would wait for work forever."""
    parent = parent_process()
    assert parent is not None, "in a worker"
    parent.join()
    os._exit(1)
