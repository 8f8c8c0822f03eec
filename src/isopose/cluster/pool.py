"""Process many items on a Ray cluster; an item whose worker dies is tried again on another one."""

import logging
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import SimpleITK as sitk
import torch

from isopose.errors import InputError, IsoposeError, RunError
from isopose.isolation import Failed, line_of
from isopose.silence import silence
from isopose.version import __version__

Item = TypeVar("Item")
R = TypeVar("R")

#: Attempts for each item: if three workers die with the same item, the item is the likely cause.
MAX_TRIES = 3
#: Consecutive failed items after which the run ends: the cause is then likely the machines or the storage.
MAX_FAILED_ITEMS = 20
#: Seconds without any worker after which the run ends; machines may join until then.
WORKER_TIMEOUT = 300.0
#: Consecutive workers that die while starting, after which the run ends.
MAX_FAILED_STARTS = 8
#: Devices of workers; with ``auto`` each has a GPU if the cluster has any.
DEVICES = ("auto", "cpu", "cuda")


class Worker(Generic[Item, R]):
    """A Ray actor: set up once, then given one item after the other."""

    def __init__(self, set_up: Callable[[], Callable[[Item], R]], version: str, threads: int) -> None:
        self.set_up, self.version, self.threads = set_up, version, threads

    def ready(self) -> None:
        """Set up the worker. Not in the constructor, whose exceptions Ray returns only as text."""
        silence()
        if self.version != __version__:
            raise InputError(
                f"{os.uname().nodename}: has isopose {__version__}, expected {self.version}; install the same"
            )
        torch.set_num_threads(self.threads)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(self.threads)
        try:
            self.work = self.set_up()
        except Exception as error:
            raise line_of(error) from None

    def do(self, item: Item) -> R:
        """Process one item; exceptions are converted here, because Ray could not send all of them."""
        try:
            return self.work(item)
        except Exception as error:
            raise line_of(error) from None


@dataclass(frozen=True)
class Pool:
    """Workers of a connected cluster.

    Args:
        gpus: number of GPUs of each worker.
        cpus: number of CPUs of each worker.
    """

    gpus: int = 0
    cpus: int = 1

    def run(
        self,
        set_up: Callable[[], Callable[[Item], R]],
        items: Sequence[Item],
        say: Callable[[str], None],
    ) -> Iterator[tuple[int, R | Failed]]:
        """Process items, and yield the number and the result of each as soon as it is done.

        A worker has one item at a time. If it dies, another worker takes its item. Machines may join and
        leave during the run.

        Args:
            set_up: picklable; called once on each worker, returns the function for an item.
            items: picklable.
            say: called with messages about failed workers.

        Raises:
            IsoposeError: from ``set_up``; no worker is alive; or a :class:`~isopose.errors.RunError` of an
                item on :data:`MAX_TRIES` workers.
        """
        return _Run(self, set_up, items, say).results()

    def capacity(self) -> int:
        """Return the number of workers that the machines have room for at present."""
        import ray

        resources = ray.cluster_resources()
        room = int(resources.get("CPU", 0) // self.cpus)
        return min(room, int(resources.get("GPU", 0) // self.gpus)) if self.gpus else room


class _Run(Generic[Item, R]):
    """State of one :meth:`Pool.run`: items that wait, workers that start, work or are idle, and failures."""

    def __init__(
        self,
        pool: Pool,
        set_up: Callable[[], Callable[[Item], R]],
        items: Sequence[Item],
        say: Callable[[str], None],
    ) -> None:
        import ray

        self.pool, self.items, self.say = pool, items, say
        self.actor: Any = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_restarts=0)(Worker)
        # Stored once for all workers: it may hold a large model.
        self.set_up = ray.put(set_up)
        self.waiting = deque(range(len(items)))
        self.tries: Counter[int] = Counter()
        self.starting: dict[Any, Any] = {}
        self.busy: dict[Any, tuple[Any, int]] = {}
        self.idle: list[Any] = []
        self.died_at_start = self.given_up = 0
        self.last_alive = time.monotonic()

    def results(self) -> Iterator[tuple[int, R | Failed]]:
        import ray

        try:
            while self.waiting or self.busy:
                self._start_workers()
                while self.idle and self.waiting:
                    actor, number = self.idle.pop(), self.waiting.popleft()
                    self.busy[actor.do.remote(self.items[number])] = (actor, number)
                refs = [*self.busy, *self.starting]
                if not refs:
                    time.sleep(0.5)
                    continue
                done, _ = ray.wait(refs, num_returns=1, timeout=1.0)
                for ref in done:
                    if ref in self.starting:
                        self._on_started(ref)
                    else:
                        yield from self._on_answer(ref)
        finally:
            for actor in [*self.starting.values(), *(actor for actor, _ in self.busy.values()), *self.idle]:
                ray.kill(actor)

    def _start_workers(self) -> None:
        """Start as many workers as there are items and free machines.

        Raises:
            IsoposeError: no machine has had room for a worker for :data:`WORKER_TIMEOUT` seconds.
        """
        capacity = self.pool.capacity()
        if self.busy or self.idle:
            self.last_alive = time.monotonic()
        elif time.monotonic() - self.last_alive > WORKER_TIMEOUT:
            raise IsoposeError(
                f"for {WORKER_TIMEOUT:.0f} s no machine has had {self.pool.cpus} CPU and {self.pool.gpus} "
                "GPU free for a worker; start machines and give the same command again to continue"
            )
        alive = len(self.busy) + len(self.starting) + len(self.idle)
        for _ in range(min(capacity, len(self.waiting) + len(self.busy)) - alive):
            actor = self.actor.remote(self.set_up, __version__, self.pool.cpus)
            self.starting[actor.ready.remote()] = actor

    def _on_started(self, ref: Any) -> None:
        """Add a worker that is set up to the idle ones.

        Raises:
            IsoposeError: the set-up raised it, or too many workers in a row died.
        """
        import ray
        from ray.exceptions import RayError

        actor = self.starting.pop(ref)
        try:
            ray.get(ref)
        except RayError as error:
            failure = _find_failure(error)
            if isinstance(failure, IsoposeError):
                raise failure from None
            self.died_at_start += 1
            if self.died_at_start >= MAX_FAILED_STARTS:
                raise IsoposeError(f"workers die while they start, the last one: {failure}") from None
            return
        self.died_at_start = 0
        self.idle.append(actor)

    def _on_answer(self, ref: Any) -> Iterator[tuple[int, R | Failed]]:
        """Yield the result of an item; queue the item again if its worker failed and attempts are left.

        Raises:
            IsoposeError: too many items in a row failed, or the item's own :class:`RunError`.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        actor, number = self.busy.pop(ref)
        try:
            result = ray.get(ref)
        except RayError as error:
            self.tries[number] += 1
            is_alive = isinstance(error, RayTaskError)
            if is_alive:
                # The worker itself may be broken (a full disk, a GPU in error) and would fail every item.
                ray.kill(actor)
            failure = _find_failure(error)
            why = failure if is_alive else "the worker died"
            if self.tries[number] < MAX_TRIES:
                self.say(f"  item {number + 1}: {why}; trying again")
                self.waiting.append(number)
                return
            if isinstance(failure, RunError):
                raise failure from None
            hint = (
                ""
                if is_alive
                else ", probably because memory ran out; give it more memory, or leave the item out"
            )
            self.given_up += 1
            if self.given_up >= MAX_FAILED_ITEMS:
                raise IsoposeError(
                    f"the last {MAX_FAILED_ITEMS} items all failed {MAX_TRIES} times, the last one: {why}; "
                    "fix that, and give the same command again to continue"
                ) from None
            yield number, Failed(f"{why}, {MAX_TRIES} times{hint}", internal=True)
            return
        self.given_up = 0
        self.idle.append(actor)
        yield number, result


def _find_failure(error: Exception) -> IsoposeError | str:
    """Return the isopose error that a Ray error wraps, or the class name of any other error."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, IsoposeError):
        return type(cause)(str(cause))
    return type(cause if isinstance(cause, Exception) else error).__name__


def _probe(address: str) -> None:
    """Check that a cluster responds; Ray itself would wait ten minutes or more."""
    resolved = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if resolved in ("local", "auto"):
        return
    host, _, port = resolved.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise InputError(f"--ray {resolved}: expected auto, local or HOST:PORT, e.g. 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray {resolved}: nothing answers there ({error}); start a cluster (ray start --head), or give "
            "local"
        ) from None


@contextmanager
def cluster(address: str, device: str = "cpu") -> Iterator[Pool]:
    """Connect to a cluster and yield a pool of its workers.

    Args:
        address: ``local`` starts a cluster on this machine's cores for the run; ``auto`` or ``HOST:PORT``
            connects to a running one.
        device: ``auto``: each worker has a GPU if the cluster has any; ``cuda``: each must have one; ``cpu``.

    Raises:
        InputError: Ray is not installed, there is no cluster, or it has no such device.
    """
    if device not in DEVICES:
        raise InputError(
            f"--device {device}: Ray assigns the devices of workers; expected {', '.join(DEVICES)}"
        )
    # Ray must not send usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            "--ray: Ray is not installed; add the extra: pip install 'isopose[cluster]'"
        ) from None
    _probe(address)
    with ExitStack() as stack:
        # Ray reports lost machines at length on stdout, where results belong; the run reports what matters.
        devnull = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(devnull))
        stack.callback(ray.shutdown)
        _connect(address)
        gpus = device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0) >= 1
        if device == "cuda" and not gpus:
            raise InputError(f"--device cuda: the cluster at {address} has no GPU; expected auto or cpu")
        yield Pool(gpus=int(gpus))


def _connect(address: str) -> None:
    """Connect to a cluster, or start a local one, and restore the handlers of signals.

    Raises:
        InputError: there is no cluster at the address.
    """
    import ray

    main = threading.current_thread() is threading.main_thread()
    handlers = (
        {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    )
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.FATAL,
            include_dashboard=False if address == "local" else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--ray {address}: no Ray cluster there ({reason}); start one (ray start --head), or give local"
        ) from None
    finally:
        # Ray's handlers would end the process without a message.
        for number, handler in handlers.items():
            signal.signal(number, handler)
