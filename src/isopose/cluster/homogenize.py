"""``isopose homogenize --ray``: homogenize a dataset with the workers of a cluster."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from isopose.cluster.cases import CaseItems, case_with_paths, mirror_of_masks, sources_of
from isopose.cluster.cohort import STATE_FOLDER as COHORT
from isopose.cluster.cohort import Cohort, locked, run_cohort
from isopose.cluster.model import PackedModel
from isopose.cluster.places import Mirror, Place
from isopose.cluster.pool import cluster
from isopose.config import HomogenizeConfig
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.homogenize.case import HomogenizeSettings, make_case
from isopose.homogenize.dataset import (
    homogenize_settings,
    open_input,
    report_modality,
    report_warnings,
    resolved_config,
)
from isopose.homogenize.estimator import open_estimator
from isopose.homogenize.head import begin, check_claim, finish, head_of
from isopose.homogenize.record import FOLDER, HEAD, CaseRecord, read_record
from isopose.homogenize.reference import ReferenceOutline, find_reference, reference_case
from isopose.io.cases import Case, Dataset, check_one_channel, report_unusable
from isopose.io.masks import with_masks
from isopose.outputs import Outcome
from isopose.progress import Reporter


@dataclass
class HomogenizeWork(CaseItems):
    """See :class:`~isopose.cluster.cohort.CohortWork`."""

    packed: PackedModel | None
    settings: HomogenizeSettings
    unpacked: TemporaryDirectory[str] | None = field(default=None, init=False)

    def open(self) -> None:
        if self.packed is not None:
            self.unpacked = self.packed.unpack()
            self.settings = replace(self.settings, model=Path(self.unpacked.name))

    def record(self, item: Case) -> str:
        return f"{FOLDER}/{item.id}.json"

    def read(self, path: Path) -> CaseRecord:
        return read_record(path)

    def files(self, item: Case, record: CaseRecord) -> list[str]:
        return [*record.files]

    def work(self, item: Case, root: Path) -> Outcome[CaseRecord]:
        return make_case(item, settings=replace(self.settings, root=root), reported=InputError)

    def without_slices(self, record: CaseRecord) -> CaseRecord:
        return replace(record, slices=())

    def warnings(self, record: CaseRecord) -> tuple[str, ...]:
        return record.warnings


def homogenize_on_cluster(
    dataset: Place,
    output: Place,
    address: str,
    config: HomogenizeConfig,
    *,
    labels: Mapping[str, int] | None,
    model: Place | None,
    series: str | None = None,
    masks: Place | None = None,
    reporter: Reporter,
) -> list[Outcome[CaseRecord]]:
    """Homogenize a dataset on a disk or a URL with the workers of a cluster; see ``docs/guides/cluster.md``.

    Writes the same files as :func:`~isopose.homogenize.dataset.homogenize`, byte for byte, and ``cohort/``.

    Args:
        dataset: as for :func:`~isopose.homogenize.dataset.open_input`, on a disk that all machines share, or
            a URL.
        output: folder, on a shared disk or a URL.
        address: of the cluster; see :func:`~isopose.cluster.pool.cluster`.
        config: one pose for a scan or several, the size, and the reference: a case, or a path on this
            machine.
        labels: name to stored value; replaces the layout's own labels.
        model: folder of the model that estimates the poses; it is sent to the workers.
        series: as given to :func:`~isopose.homogenize.dataset.open_input`.
        masks: folder of the user's own body masks, on a shared disk or a URL; None: bodies are found.
        reporter: receives messages and progress.

    Returns:
        The outcomes of unusable cases, then those of the others in their order; their records lack the
        entries of single slices, which are in the output.
    """
    packed = None if model is None else PackedModel.of(model)
    with ExitStack() as stack:
        below = Path(stack.enter_context(TemporaryDirectory(prefix="isopose-")))
        mirror, where = Mirror.of_dataset(dataset, below / "in")
        opened = open_input(where, labels, series)
        check_one_channel(opened, "--ray")
        mask_mirror = mirror_of_masks(masks, below)
        opened = with_masks(opened, mask_mirror.folder if mask_mirror else None)
        unusable = report_unusable(opened.unusable, reporter.say)
        if not opened.cases:
            return unusable
        mirrors = [mirror, *([mask_mirror] if mask_mirror else [])]
        folder = Path(stack.enter_context(packed.unpack())) if packed else None
        report_modality(config, opened, reporter)
        config, reference = settle_reference(config, opened, model, folder, mirrors, below)
        config = config.model_copy(update={"reference": None})
        estimator = open_estimator(folder, config, reference)
        settings = homogenize_settings(opened, below / "out", config, None, reference, estimator, series)
        head = head_of(opened, settings, estimator)
        # A local mirror of the output, so that the functions for a single machine can be used.
        published = {name for name in _list_names(output) if not name.startswith(f"{COHORT}/")}
        for name in published:
            (settings.root / name).parent.mkdir(parents=True, exist_ok=True)
            (settings.root / name).touch()
        if HEAD in published:
            (output / HEAD).fetch(settings.root / HEAD)
        check_claim(settings, opened)
        stack.enter_context(locked(output))
        begin(settings, head)
        report_warnings(settings, reporter)
        (output / "dataset.json").remove()
        (output / HEAD).publish(settings.root / HEAD)
        pool = stack.enter_context(cluster(address))
        work = HomogenizeWork(packed, settings)
        cohort = Cohort(mirrors, output, hash_of([settings.sha256, series]), "homogenize")
        outcomes = [*unusable, *run_cohort(pool, work, opened.cases, cohort, reporter)]
        finish(opened, settings, head, outcomes)
        for name in ("patients.csv", "dataset.json", HEAD):
            file = settings.root / name
            if file.is_file() and (name != "patients.csv" or file.stat().st_size):
                (output / name).publish(file)
        return outcomes


def settle_reference(
    config: HomogenizeConfig,
    dataset: Dataset,
    model: Place | None,
    unpacked: Path | None,
    mirrors: Sequence[Mirror],
    below: Path,
) -> tuple[HomogenizeConfig, ReferenceOutline | None]:
    """Return the configuration with its modality and plane decided, and the outline of the reference, if any.

    Args:
        config: as given by the user.
        dataset: lists the mirrored cases.
        model: the user's model, or None.
        unpacked: folder with this machine's copy of the model, or None.
        mirrors: mirrors that contain the cases.
        below: folder for the files of a reference case, which are fetched so that this machine can read them.
    """
    config = resolved_config(config, dataset, unpacked)
    # Messages and records name the user's path, not that of the unpacked copy.
    named = model.local if model is not None and model.local is not None else unpacked
    cases = _with_reference_here(dataset.cases, config, mirrors, below)
    return config, find_reference(config, named, cases)


def _with_reference_here(
    cases: Sequence[Case], config: HomogenizeConfig, mirrors: Sequence[Mirror], below: Path
) -> list[Case]:
    """Return the cases; the files of a reference among them are fetched to this machine."""
    case = reference_case(config.reference, cases)
    if case is None:
        return [*cases]
    cohort = Cohort(mirrors, mirrors[0].place, "", "reference")
    local_paths = [
        cohort.source(path).local_path(below / "reference" / str(number))
        for number, path in enumerate(sources_of(case))
    ]
    return [case_with_paths(other, local_paths) if other is case else other for other in cases]


def _list_names(output: Place) -> list[str]:
    """Return the relative paths of the files in the output, which need not exist."""
    if output.local is not None and not output.local.exists():
        return []
    return [*output.files()]
