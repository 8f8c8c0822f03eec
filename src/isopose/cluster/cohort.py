"""Process a cohort on a cluster: fetch each scan to a worker, process it there, and publish its results.

``OUTPUT/cohort/`` holds the state of the run: ``run.json``, by which workers check that they see the same
output folder, and lists of finished scans (``done-*.jsonl``), each with a hash of its sources and settings.
If a run is interrupted, the same command continues it.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

from isopose.cluster.places import Mirror, Place, local_path_of
from isopose.cluster.pool import Pool
from isopose.errors import InputError, IsoposeError, RunError
from isopose.files import hash_of, only_writer, output_folder
from isopose.io.sources import companion_files
from isopose.isolation import Failed, failure_of
from isopose.outputs import Outcome, hashes, listed, sweep
from isopose.progress import Reporter

Item = TypeVar("Item")
R = TypeVar("R")

#: Folder in the output for the state of the run.
STATE_FOLDER = "cohort"
#: Seconds between two lists of finished scans, and between two lines of progress.
FLUSH_SECONDS, REPORT_SECONDS = 10.0, 5.0


class CohortWork(Protocol[Item, R]):
    """The work on each scan; picklable. ``R`` is the type of the records."""

    def open(self) -> None:
        """Load what all scans need, once in each worker."""

    def name(self, item: Item) -> str:
        """Return the scan's name, unique in the cohort."""

    def sources(self, item: Item) -> list[Path]:
        """Return the scan's file or folder, and its label file and body mask if there are any."""

    def with_paths(self, item: Item, paths: list[Path]) -> Item:
        """Return the item with other paths to its sources, in the order of :meth:`sources`."""

    def record(self, item: Item) -> str:
        """Return the relative path of the record, the file that is written last."""

    def read(self, path: Path) -> R | None:
        """Read a record; return None or raise an InputError if it is damaged."""

    def files(self, item: Item, record: R) -> Iterable[str]:
        """Return the relative paths of the files that belong to a record."""

    def work(self, item: Item, root: Path) -> Outcome[R]:
        """Process the scan in a folder that holds its earlier results; complete ones are kept."""

    def without_slices(self, record: R) -> R:
        """Return a record without the parts that grow with the number of slices, which would fill memory."""

    def warnings(self, record: R) -> Sequence[str]:
        """Return the warnings about a result, one line each."""


@dataclass(frozen=True)
class Cohort:
    """Sources, output and settings of a run.

    Args:
        mirrors: mirrors that contain all sources.
        output: folder for the results.
        settings_sha256: hash of everything besides the scan that a result depends on.
        command: name of the command, for progress and ``run.json``.
    """

    mirrors: Sequence[Mirror]
    output: Place
    settings_sha256: str
    command: str

    def origin(self, path: Path) -> Place:
        """Return the original place of a source in one of the mirrors."""
        origins = (mirror.origin(path) for mirror in self.mirrors)
        return next((place for place in origins if place is not None), Place(str(path)))

    def sources(self, paths: Iterable[Path]) -> list["StampedSource"]:
        """Return the sources of one item.

        Raises:
            InputError: a source is missing from a folder that this machine can see, so that workers could not
                read it either.
        """
        paths = list(paths)
        for path in paths:
            if not path.exists() and path.parent.is_dir():
                raise InputError(f"{self.origin(path)}: no such file or folder")
        return [self.source(path) for path in paths]

    def source(self, path: Path) -> "StampedSource":
        """Return a source with the stamps of its files, as far as this machine can see them."""
        mirror = next((m for m in self.mirrors if m.origin(path) is not None), None)
        try:
            stamps = mirror.stamp(path) if mirror else Place(str(path)).files()
            if self.origin(path).local is not None and path.is_file():
                # The voxels of a header file may lie in another file beside it (.mhd and .raw).
                companions = {str(one): Place(str(one)).files().get("", "") for one in companion_files(path)}
                stamps |= {os.path.relpath(name, path): stamp for name, stamp in companions.items()}
        except InputError:
            raise
        except IsoposeError:  # missing; the scan's outcome will report it
            stamps = {}
        return StampedSource(self.origin(path), stamps)

    def stamp(self, sources: Sequence["StampedSource"]) -> str:
        """Return a hash of everything that the results of a scan with these sources depend on."""
        return hash_of([self.settings_sha256, *(source.stamps for source in sources)])


@dataclass(frozen=True)
class StampedSource:
    """File or folder of a scan, label map or mask, with the stamps of its files by relative path."""

    origin: Place
    stamps: dict[str, str]

    def local_path(self, below: Path) -> Path:
        """Return a path at which this machine can read it; files of a URL are copied below a folder."""
        return local_path_of(self.origin, list(self.stamps), below / Path(self.origin.url).name)


@contextmanager
def locked(output: Place) -> Iterator[None]:
    """Create and lock the output folder if it is on a disk; object storage has no locks."""
    with ExitStack() as stack:
        if output.local is not None:
            stack.enter_context(only_writer(output_folder(output.local)))
        yield


def run_cohort(
    pool: Pool, work: CohortWork[Item, R], items: Sequence[Item], cohort: Cohort, reporter: Reporter
) -> list[Outcome[R]]:
    """Process all items; a failed item is reported, and the others continue.

    Args:
        pool: workers.
        work: the work on each item.
        items: items whose sources lie in the cohort's mirrors.
        cohort: sources, output and settings.
        reporter: receives messages and progress.

    Returns:
        One outcome for each item, in the order of the items, with short records.

    Raises:
        IsoposeError: a place cannot be reached, or no worker is alive.
    """
    sources, results = _find_sources(work, items, cohort)
    names = [work.name(item) for item in items]
    stamps = {names[number]: cohort.stamp(item_sources) for number, item_sources in sources.items()}
    ledger = Ledger(cohort.output / STATE_FOLDER)
    finished = {name for name, stamp in ledger.read().items() if stamps.get(name) == stamp}
    earlier = _read_finished(work, items, finished, cohort.output)
    results |= earlier
    for result in results.values():
        _report(reporter, work, result)
    if earlier:
        reporter.say(f"{len(earlier)} of {len(items)} are done already, with the same scans and settings")
    token = _write_run_file(cohort, len(items))
    pending = [number for number in range(len(items)) if number not in results]
    tasks = [_Task(items[number], sources[number]) for number in pending]
    started = last_report = time.monotonic()
    with reporter.counting(cohort.command) as progress:
        try:
            answers = pool.run(SetUp(work, cohort.output, token), tasks, reporter.say)
            for done, (task, answer) in enumerate(answers, start=1):
                number = pending[task]
                result = _fail(names[number], answer.why) if isinstance(answer, Failed) else answer
                results[number] = result
                if result.problem is None:
                    ledger.add(names[number], stamps[names[number]])
                _report(reporter, work, result)
                now = time.monotonic()
                if now - last_report > REPORT_SECONDS or done == len(tasks):
                    last_report = now
                    seconds = (now - started) / done * (len(tasks) - done)
                    rest = f"  about {seconds:.0f} s left" if done < len(tasks) else ""
                    reporter.say(f"[{len(results)}/{len(items)}]{rest}")
                progress(len(results), len(items))
        finally:
            ledger.flush()
            if cohort.output.local is not None:  # object storage has no partial files
                sweep(cohort.output.local)
    return [results[number] for number in range(len(items))]


def _find_sources(
    work: CohortWork[Item, R], items: Sequence[Item], cohort: Cohort
) -> tuple[dict[int, list[StampedSource]], dict[int, Outcome[R]]]:
    """Return the sources of items by item number, and failed outcomes of items whose sources are missing."""
    sources: dict[int, list[StampedSource]] = {}
    failed: dict[int, Outcome[R]] = {}
    for number, item in enumerate(items):
        try:
            sources[number] = cohort.sources(work.sources(item))
        except Exception as error:
            failed[number] = _fail(work.name(item), str(failure_of(error)))
    return sources, failed


def _write_run_file(cohort: Cohort, scans: int) -> str:
    """Write ``run.json`` to the output; return its token, by which workers recognize the folder."""
    token = uuid.uuid4().hex
    values = {"command": cohort.command, "scans": scans, "settings_sha256": cohort.settings_sha256}
    (cohort.output / STATE_FOLDER / "run.json").write_json({**values, "token": token})
    return token


def _report(reporter: Reporter, work: CohortWork[Item, R], outcome: Outcome[R]) -> None:
    """Report the problem or the warnings of an outcome."""
    if outcome.problem is not None:
        reporter.say(f"  error: {outcome.problem}")
    for warning in () if outcome.record is None else work.warnings(outcome.record):
        reporter.say(f"  warning: {outcome.name}: {warning}")


def _fail(name: str, why: str) -> Outcome[R]:
    """Return the outcome of a scan that failed."""
    return Outcome(name, None, f"{name}: {why}")


def _read_finished(
    work: CohortWork[Item, R], items: Sequence[Item], finished: set[str], output: Place
) -> dict[int, Outcome[R]]:
    """Return the outcomes of items that were finished before and whose records still exist."""
    records = {n: work.record(item) for n, item in enumerate(items) if work.name(item) in finished}
    contents = output.read(list(records.values()))
    finished_outcomes: dict[int, Outcome[R]] = {}
    with TemporaryDirectory(prefix="isopose-") as scratch:
        path = Path(scratch) / "record.json"
        for number, record in records.items():
            if record in contents:
                path.write_bytes(contents[record])
                content = _read_record(work, path)
                if content is not None:  # otherwise damaged: the scan is processed again
                    name = work.name(items[number])
                    finished_outcomes[number] = Outcome(name, work.without_slices(content), None, made=False)
    return finished_outcomes


def _read_record(work: CohortWork[Item, R], path: Path) -> R | None:
    try:
        return work.read(path)
    except InputError:
        return None


@dataclass
class Ledger:
    """The lists of finished scans, ``done-*.jsonl``, in order of time; the last entry of a scan counts.

    Args:
        folder: where the lists are written.
        fresh: stamp by name of the scans that are not written yet.
        flushed: when the last list was written, in seconds of the monotonic clock.
    """

    folder: Place
    fresh: dict[str, str] = field(default_factory=dict)
    flushed: float = field(default_factory=time.monotonic)

    def read(self) -> dict[str, str]:
        """Return the stamps of finished scans by name; invalid lines are ignored."""
        try:
            lists = sorted(name for name in self.folder.files() if name.startswith("done-"))
        except InputError:
            raise
        except IsoposeError:  # no such folder
            return {}
        finished = {}
        contents = self.folder.read(lists)
        for name in lists:
            for line in contents.get(name, b"").decode("utf-8", "replace").splitlines():
                try:
                    entry = json.loads(line)
                    finished[str(entry["name"])] = str(entry["made_from"])
                except (ValueError, KeyError, TypeError):
                    continue
        return finished

    def add(self, name: str, stamp: str) -> None:
        """Add a finished scan; it is written within some seconds, together with others."""
        self.fresh[name] = stamp
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write all added entries."""
        if self.fresh:
            rows = [{"name": name, "made_from": stamp} for name, stamp in self.fresh.items()]
            with TemporaryDirectory(prefix="isopose-") as scratch:
                path = Path(scratch) / "done.jsonl"
                path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
                (self.folder / f"done-{time.time_ns():020d}.jsonl").publish(path)
            self.fresh = {}
        self.flushed = time.monotonic()


@dataclass(frozen=True)
class _Task:
    """An item and its sources."""

    item: Any
    sources: list[StampedSource]


@dataclass(frozen=True)
class SetUp:
    """Set up a worker.

    Args:
        work: the work on each item.
        output: folder for the results.
        token: token in ``run.json``.
    """

    work: CohortWork[Any, Any]
    output: Place
    token: str

    def __call__(self) -> Callable[[_Task], Any]:
        """Check that the worker sees the output folder, load what the work needs, and return :meth:`do`.

        Raises:
            InputError: the folder on this machine is another one.
        """
        mark = self.output.read([f"{STATE_FOLDER}/run.json"]).get(f"{STATE_FOLDER}/run.json", b"{}")
        if json.loads(mark).get("token") != self.token:
            raise InputError(
                f"{self.output}: is not the same folder on every machine; choose one on a disk that all "
                "share, or a URL"
            )
        self.work.open()
        return self.do

    def do(self, task: _Task) -> Any:
        """Process one item on a worker: fetch its files, publish the results, remove the copies."""
        with TemporaryDirectory(prefix="isopose-") as scratch:
            inputs = Path(scratch) / "in"
            paths = [source.local_path(inputs / str(number)) for number, source in enumerate(task.sources)]

            def renamed(text: str) -> str:
                for path, source in zip(paths, task.sources, strict=True):
                    text = text.replace(str(path), str(source.origin))
                return text

            root = Path(scratch) / "out"
            root.mkdir()
            item = self.work.with_paths(task.item, paths)
            name, record = self.work.name(item), self.work.record(item)
            published = _fetch_published(self.work, item, self.output, root)
            try:
                result = self.work.work(item, root)
            except InputError as error:
                result = _fail(name, str(error))
            except RunError as error:
                # It concerns this machine's temporary disk, not the output; another machine may have room.
                raise IsoposeError(f"{os.uname().nodename}: {error}") from None
            _publish(self.output, record, root, published)
            problem = None if result.problem is None else renamed(result.problem)
            record_to_send = None if result.record is None else self.work.without_slices(result.record)
            return replace(result, record=record_to_send, problem=problem)


def _fetch_published(work: CohortWork[Item, R], item: Item, output: Place, root: Path) -> dict[str, str]:
    """Copy the published results of a scan to a folder, so that complete ones are not made again.

    Returns:
        Hashes of the results by relative path; empty without a record.
    """
    record = work.record(item)
    content = output.read([record]).get(record)
    if content is None:
        return {}
    (root / record).parent.mkdir(parents=True, exist_ok=True)
    (root / record).write_bytes(content)
    published = _read_record(work, root / record)
    for name in () if published is None else listed({"files": work.files(item, published)}):
        if (output / name).exists():
            (output / name).fetch(root / name)
    return _hash_files(root)


def _hash_files(root: Path) -> dict[str, str]:
    """Return the SHA-256 of all files below a folder by relative path."""
    return hashes(root, (path for path in sorted(root.rglob("*")) if path.is_file()))


def _publish(output: Place, record: str, root: Path, published: dict[str, str]) -> None:
    """Make the published results equal to those in a folder.

    The record is removed first and published last: where it exists, the files beside it are complete.
    """
    produced = _hash_files(root)
    if record not in produced:
        # The scan failed; files without a record are not results.
        produced = {}
    if produced == published:
        return
    if record in published:
        (output / record).remove()
    for name in published.keys() - produced.keys() - {record}:
        (output / name).remove()
    for name, digest in produced.items():
        if name != record and published.get(name) != digest:
            (output / name).publish(root / name)
    if record in produced:
        (output / record).publish(root / record)
