"""``isopose preprocess --ray``: preprocess the training cases into a store with the workers of a cluster."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from isopose.cluster.cases import CaseItems, case_with_paths, mirror_of_masks, sources_of
from isopose.cluster.cohort import Cohort, StampedSource, locked, run_cohort
from isopose.cluster.places import Mirror, Place
from isopose.cluster.pool import Pool, cluster
from isopose.config import Config
from isopose.data.fingerprint import CaseFacts, Fingerprint, case_facts, reduce_facts
from isopose.data.record import Record, read_stored_record
from isopose.data.splits import measured_cases, split
from isopose.data.store import folder_name, store_head, write_case
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.io.cases import check_one_channel
from isopose.io.datasets import Case, Dataset, open_dataset
from isopose.io.masks import with_masks
from isopose.isolation import Failed, failure_of
from isopose.labels import Labels
from isopose.outputs import Outcome
from isopose.parallel import joint_failure
from isopose.progress import Reporter
from isopose.settings import DataConfig
from isopose.training.preprocessing import fingerprint_path


@dataclass
class PreprocessWork(CaseItems):
    """See :class:`~isopose.cluster.cohort.CohortWork`."""

    fingerprint: Fingerprint
    labels: Labels
    config: DataConfig

    def open(self) -> None:
        """Do nothing: preprocessing needs no model."""

    def record(self, item: Case) -> str:
        return f"cases/{folder_name(item.id)}/record.json"

    def read(self, path: Path) -> Record | None:
        return read_stored_record(path.parent)

    def files(self, item: Case, record: Record) -> list[str]:
        return [f"cases/{folder_name(item.id)}/{name}" for name in record.arrays]

    def work(self, item: Case, root: Path) -> Outcome[Record]:
        write_case(item, root=root, fingerprint=self.fingerprint, labels=self.labels, config=self.config)
        return Outcome(item.id, self.read(root / self.record(item)), None)

    def without_slices(self, record: Record) -> Record:
        return replace(record, presence=(), body_fraction=(), undrawn=())

    def warnings(self, record: Record) -> tuple[str, ...]:
        return record.warnings


@dataclass(frozen=True)
class _Measure:
    """Set up a worker to measure cases for the fingerprint."""

    labels: Labels
    config: DataConfig
    channels: tuple[str, ...]

    def __call__(self) -> Callable[[tuple[Case, list[StampedSource]]], CaseFacts | Failed]:
        return self.measure

    def measure(self, task: tuple[Case, list[StampedSource]]) -> CaseFacts | Failed:
        """Fetch and measure one case; a case that cannot be used is returned as Failed, nothing is raised."""
        case, sources = task
        with TemporaryDirectory(prefix="isopose-") as scratch:
            paths = [source.local_path(Path(scratch) / str(n)) for n, source in enumerate(sources)]
            try:
                return case_facts(case_with_paths(case, paths), self.labels, self.config, self.channels)
            except InputError as error:
                message = str(error)
                for path, source in zip(paths, sources, strict=True):
                    message = message.replace(str(path), str(source.origin))
                return Failed(message)


def preprocess_on_cluster(
    dataset: Place,
    store: Place,
    address: str,
    config: Config,
    *,
    labels: Mapping[str, int] | None,
    masks: Place | None = None,
    reporter: Reporter,
) -> tuple[Place, list[Outcome[Record]]]:
    """Preprocess training cases into a store with the workers of a cluster; see ``docs/guides/cluster.md``.

    Args:
        dataset: as for :func:`~isopose.io.datasets.open_dataset`, on a disk that all machines share, or a
            URL.
        store: folder for stores, on a shared disk or a URL.
        address: of the cluster; see :func:`~isopose.cluster.pool.cluster`.
        config: configuration of the training, which decides its cases and their preprocessing.
        labels: name to stored value; replaces the layout's own labels.
        masks: folder of the user's own body masks, on a shared disk or a URL; None: bodies are found.
        reporter: receives messages and progress.

    Returns:
        The store, which is complete if all cases could be used, and one outcome for each case.

    Raises:
        InputError: a training case cannot be measured for the fingerprint; all such cases are reported.
    """
    with TemporaryDirectory(prefix="isopose-") as below:
        mirror, where = Mirror.of_dataset(dataset, Path(below))
        opened = open_dataset(where, labels)
        check_one_channel(opened, "--ray")
        mask_mirror = mirror_of_masks(masks, Path(below))
        opened = with_masks(opened, mask_mirror.folder if mask_mirror else None)
        mirrors = [mirror, *([mask_mirror] if mask_mirror else [])]
        training, validation = measured_cases(*split(opened, config.train), config.train)
        unlabeled = next((case.id for case in (*training, *validation) if case.label is None), None)
        if unlabeled is not None:
            raise InputError(f"{unlabeled}: expected a label file for a training case, got none")
        with locked(store), cluster(address) as pool:
            fingerprint = _measure_fingerprint(pool, training, opened, config.data, mirrors, store, reporter)
            head = store_head(fingerprint, opened.labels, config.data)
            key = hash_of(head)
            root, cases = store / key[:12], (*training, *validation)
            names = [folder_name(case.id) for case in cases]
            # Without store.json, a folder with incomplete cases is not read as a store.
            (root / "store.json").remove()
            work = PreprocessWork(fingerprint, opened.labels, config.data)
            outcomes = run_cohort(pool, work, cases, Cohort(mirrors, root, key, "preprocess"), reporter)
            if not any(outcome.problem for outcome in outcomes):
                (root / "store.json").write_json({**head, "key": key, "cases": names})
    return root, outcomes


def _measure_fingerprint(
    pool: Pool,
    training: Sequence[Case],
    dataset: Dataset,
    config: DataConfig,
    mirrors: Sequence[Mirror],
    store: Place,
    reporter: Reporter,
) -> Fingerprint:
    """Measure the fingerprint of the training cases; keep it beside the store, for ``fit --store``."""
    cohort = Cohort(mirrors, store, "", "fingerprint")
    labels, channels = dataset.labels, dataset.channels
    sources: dict[int, list[StampedSource]] = {}
    failed: list[Failed] = []

    def fail(number: int, why: str, *, internal: bool) -> None:
        failed.append(Failed(f"{training[number].id}: {why}", internal))
        reporter.say(f"  error: {failed[-1].why}")

    for number, case in enumerate(training):
        try:
            sources[number] = cohort.sources(sources_of(case))
        except Exception as error:
            fail(number, str(failure_of(error)), internal=True)
    if all(mirror.place.local is not None for mirror in mirrors):
        name = fingerprint_path(Path(), tuple(training), labels, config, channels).name
    else:
        stamps = [
            [training[number].id, cohort.stamp(case_sources)] for number, case_sources in sources.items()
        ]
        key = hash_of([stamps, config.model_dump(mode="json"), labels.stored, list(channels)])
        name = f"fingerprint-{key[:12]}.json"
    stored = store.read([name]).get(name)
    if stored is not None and not failed:
        return Fingerprint.from_json(json.loads(stored), str(store / name))
    numbers = list(sources)
    tasks = [(training[number], sources[number]) for number in numbers]
    facts: dict[int, CaseFacts] = {}
    with reporter.counting("fingerprint") as progress:
        answers = pool.run(_Measure(labels, config, channels), tasks, reporter.say)
        for done, (task, answer) in enumerate(answers, start=1):
            if isinstance(answer, Failed):
                fail(numbers[task], answer.why, internal=answer.internal)
            else:
                facts[numbers[task]] = answer
            progress(done, len(tasks))
    if failed:
        raise joint_failure(failed, len(training))
    fingerprint = reduce_facts([facts[n] for n in range(len(training))], labels, config, channels)
    (store / name).write_json(fingerprint.to_json())
    return fingerprint
