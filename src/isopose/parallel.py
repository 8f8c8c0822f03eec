"""The same work for many things, in this process or in several, with the same results in the same order."""

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
Result = TypeVar("Result")

#: Called with the number of items done and of all items.
Progress = Callable[[int, int], None]

_DIED = (
    "a worker process died at this case, most often for want of memory; run again with fewer workers, or "
    "leave it out"
)


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Yield ``work(item)`` in the order of the items, for work that cannot do without any of them.

    Args:
        work: picklable.
        items: what to work on.
        name: of an item, for errors: a case's id.
        workers: processes; 0 works in this one.
        progress: called after each item.

    Raises:
        InputError: from ``work``, naming the item.
        IsoposeError: whatever else it raised, or its process died.
    """
    for result in attempts(work, items, name=name, workers=workers, progress=progress):
        if isinstance(result, Failed):
            raise result.error()
        yield result


def all_of(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    workers: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Result]:
    """Work on every item, and only then raise what stood in the way of some.

    Args:
        work, items, name, workers, progress: see :func:`in_order`.
        say: called with the line of each item that failed, as soon as it is known.

    Raises:
        InputError: items that cannot be used: the only one's line, or how many they are and the first one's.
        IsoposeError: the same where the program or the machine is to blame for one.
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
        raise together(failed, len(items))
    return results


def together(failed: Sequence[Failed], total: int) -> IsoposeError:
    """Return one error of all items, of so many in all, that could not be done."""
    if len(failed) == 1:
        return failed[0].error()
    why = (
        f"{len(failed)} of {total} cases cannot be used, the first: {failed[0].why}; mend them or take them "
        "out of the dataset"
    )
    return Failed(why, any(one.ours for one in failed)).error()


def attempts(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[Result | Failed]:
    """Yield ``work(item)`` in the order of the items, or why there is none: no item ends another's work.

    A worker process that dies, as for want of memory, takes none but its own item with it: what was in work
    at that moment is tried once more, each item alone.

    Args:
        work, items, name, workers, progress: see :func:`in_order`.

    Raises:
        RunError: what an item raised concerns all of them.
    """
    found = (
        _in_processes(work, items, name, min(workers, max(1, len(items))))
        if workers > 0
        else (_attempt(work, item, name(item)) for item in items)
    )
    for done, result in enumerate(found, start=1):
        if progress:
            progress(done, len(items))
        yield result


def _attempt(work: Callable[[Item], Result], item: Item, name: str) -> Result | Failed:
    """Work where the exception is raised: sent from another process, it has lost its place, if it comes."""
    try:
        return work(item)
    except Exception as error:
        told = failure_of(error)
        return Failed(f"{name}: {told}", not isinstance(told, InputError))


def _in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], name: Callable[[Item], str], workers: int
) -> Iterator[Result | Failed]:
    waiting = list(range(len(items)))
    results: dict[int, Result | Failed] = {}
    following = suspects = 0
    while waiting:
        # One of those that were in work when a worker died is what it died of.
        alone = suspects > 0
        pool = ProcessPoolExecutor(1 if alone else workers, _context(), _start_worker)
        broken = False
        try:
            futures: dict[int, Future[Result | Failed]] = {}
            with suppress(BrokenProcessPool):
                for number in waiting[:1] if alone else waiting:
                    futures[number] = pool.submit(_attempt, work, items[number], name(items[number]))
            for number, future in futures.items():
                try:
                    results[number] = future.result()
                except BrokenProcessPool:
                    broken = True
                    if alone:
                        results[number] = Failed(f"{name(items[number])}: {_DIED}", ours=True)
                except Exception as error:  # what came of it cannot be sent here
                    results[number] = Failed(f"{name(items[number])}: {failure_of(error)}", ours=True)
                while following in results:
                    yield results.pop(following)
                    following += 1
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        waiting = [n for n in waiting if n >= following and n not in results]
        # Begun in their order, one more than there are workers at a time.
        suspects = suspects - 1 if alone else (workers + 1 if broken else 0)


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
    """Return a worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "in a worker"
    parent.join()
    os._exit(1)
