"""``isopose predict --ray``: scans predicted by the workers of a cluster, each with the model loaded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isopose.cluster.cohort import Cohort, held, run_cohort
from isopose.cluster.model import PackedModel
from isopose.cluster.places import Mirror, Place
from isopose.cluster.pool import cluster
from isopose.devices import choose_device
from isopose.errors import InputError
from isopose.files import hash_of, read_json
from isopose.inference.files import (
    Outcome,
    Scan,
    check_apart,
    check_steps,
    find_scans,
    predict_scan,
    record_name,
    settings_of,
)
from isopose.io.results.formats import check_source
from isopose.models.folder import Model, for_prediction, load_model, with_precision
from isopose.progress import Reporter, Silent

#: Of a record, what grows with the scan's length; it lies in the output, a cohort's need not fit in memory.
_LONG = ("slices",)


@dataclass
class PredictJob:
    """See :class:`~isopose.cluster.cohort.Job`."""

    packed: PackedModel
    formats: tuple[str, ...]
    probabilities: bool
    steps: bool
    device: str
    precision: str | None
    model: Model | None = field(default=None, init=False)

    def open(self) -> None:
        with self.packed.unpack() as folder:
            loaded = load_model(Path(folder), choose_device(self.device))
        self.model = for_prediction(with_precision(loaded, self.precision))

    def name(self, item: Scan) -> str:
        return item.name

    def sources(self, item: Scan) -> list[Path]:
        return [item.path]

    def moved(self, item: Scan, paths: list[Path]) -> Scan:
        return replace(item, path=paths[0])

    def record(self, item: Scan) -> str:
        return record_name(item.name)

    def listed(self, record: Path) -> list[str]:
        return [str(name) for name in read_json(record)["files"]]

    def work(self, item: Scan, root: Path) -> Outcome:
        assert self.model is not None, "opened"
        check_source(item.path, self.formats)
        return predict_scan(
            self.model,
            item,
            root,
            self.formats,
            self.probabilities,
            self.steps,
            Silent(),
            reported=InputError,
        )

    def told(self, item: Scan, result: Outcome, renamed: Callable[[str], str]) -> Outcome:
        problem = None if result.problem is None else renamed(result.problem)
        return Outcome(item, _short(result.record), problem)

    def problem(self, result: Outcome) -> str | None:
        return result.problem

    def warnings(self, result: Outcome) -> list[str]:
        return [] if result.record is None else result.record["warnings"]

    def failed(self, item: Scan, why: str) -> Outcome:
        return Outcome(item, None, f"{item.name}: {why}")

    def known(self, item: Scan, record: Path) -> Outcome:
        values = read_json(record)
        return Outcome(item, _short({**values, "warnings": [*values["warnings"]]}), None)


def _short(record: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if record is None else {key: value for key, value in record.items() if key not in _LONG}


def predict_on_cluster(
    model: Place,
    inputs: Sequence[Place],
    output: Place,
    address: str,
    *,
    formats: Sequence[str],
    series: str | None,
    probabilities: bool,
    steps: bool,
    device: str,
    precision: str | None,
    reporter: Reporter,
) -> list[Outcome]:
    """Predict scans anywhere with the workers of a cluster; see ``docs/guides/cluster.md``.

    Args:
        model: folder; it is sent to the workers.
        inputs: as for :func:`~isopose.inference.files.find_scans`, on a disk that all machines see, or URLs.
        output: folder, on a shared disk or a URL.
        address: of the cluster; see :func:`~isopose.cluster.pool.cluster`.
        formats, series, probabilities, steps: as for :func:`~isopose.inference.files.predict_scans`.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the U-Net; None: the model's.
        reporter: where progress goes.

    Returns:
        One for each scan; their records without what lies in the output for each slice.

    Raises:
        IsoposeError: a place or the cluster cannot be reached.
    """
    packed = PackedModel.of(model)
    with packed.unpack() as folder:
        loaded = with_precision(load_model(Path(folder)), precision)
    if steps:
        check_steps(loaded)
    settings = hash_of([*settings_of(loaded), list(formats), probabilities, steps, series])
    with TemporaryDirectory(prefix="isopose-") as below:
        mirrors = [Mirror.make(place, Path(below) / str(n)) for n, place in enumerate(inputs)]
        if output.local is not None:
            check_apart([place.local for place in inputs if place.local is not None], output.local)
        scans = find_scans([mirror.folder for mirror in mirrors], series)
        if output.local is not None and any(output.local == scan.path.parent for scan in scans):
            raise InputError(
                f"{output}: holds the scans, which results might overwrite; choose another folder"
            )
        with held(output), cluster(address, device) as pool:
            kind = "cuda" if pool.gpus else "cpu"
            job = PredictJob(packed, tuple(formats), probabilities, steps, kind, precision)
            cohort = Cohort(mirrors, output, settings, "predict")
            return run_cohort(pool, job, scans, cohort, reporter)
