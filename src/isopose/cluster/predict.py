"""``isopose predict --ray``: predict scans with the workers of a cluster, which load the model once each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isopose.cluster.cases import JsonRecords, mirror_of_masks
from isopose.cluster.cohort import Cohort, locked, run_cohort
from isopose.cluster.model import PackedModel
from isopose.cluster.places import Mirror, Place
from isopose.cluster.pool import cluster
from isopose.devices import choose_device
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.inference.files import DrawSteps, check_steps, predict_scan, record_name
from isopose.inference.record import decisive_settings
from isopose.io.cases import report_unusable, unusable_case
from isopose.io.masks import mask_path
from isopose.io.results.formats import check_formats
from isopose.io.scans import Scan, check_output_apart, find_scans
from isopose.models.folder import Model, for_prediction, load_model, with_precision
from isopose.outputs import Outcome
from isopose.progress import Reporter, Silent

#: Entries of a record that grow with the number of slices.
_PER_SLICE_KEYS = ("slices",)


@dataclass
class PredictWork(JsonRecords):
    """See :class:`~isopose.cluster.cohort.CohortWork`."""

    packed: PackedModel
    formats: tuple[str, ...]
    probabilities: bool
    steps: DrawSteps | None
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
        return [item.path] if item.mask is None else [item.path, item.mask]

    def with_paths(self, item: Scan, paths: list[Path]) -> Scan:
        return replace(item, path=paths[0], mask=None if item.mask is None else paths[1])

    def record(self, item: Scan) -> str:
        return record_name(item.name)

    def work(self, item: Scan, root: Path) -> Outcome[dict[str, Any]]:
        assert self.model is not None, "opened"
        check_formats(item.path, self.formats)
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

    def without_slices(self, record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key not in _PER_SLICE_KEYS}


def predict_on_cluster(
    model: Place,
    inputs: Sequence[Place],
    output: Place,
    address: str,
    *,
    formats: Sequence[str],
    series: str | None,
    probabilities: bool,
    steps: DrawSteps | None,
    device: str,
    precision: str | None,
    masks: Place | None = None,
    reporter: Reporter,
) -> list[Outcome[dict[str, Any]]]:
    """Predict scans on a disk or at URLs with the workers of a cluster; see ``docs/guides/cluster.md``.

    Args:
        model: folder of the model; it is sent to the workers.
        inputs: as for :func:`~isopose.io.scans.find_scans`, on a disk that all machines share, or
            URLs.
        output: folder, on a shared disk or a URL.
        address: of the cluster; see :func:`~isopose.cluster.pool.cluster`.
        formats, series, probabilities, steps: as for :func:`~isopose.inference.files.predict_scans`.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the U-Net; None: the model's.
        masks: folder of the user's own body masks, on a shared disk or a URL; None: bodies are found.
        reporter: receives messages and progress.

    Returns:
        One outcome for each scan; their records lack the entries of single slices, which are in the output.

    Raises:
        IsoposeError: a place or the cluster cannot be reached.
    """
    packed = PackedModel.of(model)
    with packed.unpack() as folder:
        loaded = with_precision(load_model(Path(folder)), precision)
    if len(loaded.channels) > 1:
        raise InputError(
            f"--ray: predicts with models of one channel, this one sees {', '.join(loaded.channels)}; leave "
            "--ray out"
        )
    if steps is not None:
        check_steps(loaded)
    settings = hash_of([*decisive_settings(loaded), list(formats), probabilities, steps is not None, series])
    with TemporaryDirectory(prefix="isopose-") as below:
        mirrors = [Mirror.make(place, Path(below) / str(n)) for n, place in enumerate(inputs)]
        if output.local is not None:
            check_output_apart([place.local for place in inputs if place.local is not None], output.local)
        scans = find_scans([mirror.folder for mirror in mirrors], series)
        if output.local is not None and any(output.local == scan.path.parent for scan in scans):
            raise InputError(
                f"{output}: holds the scans, which results might overwrite; choose another folder"
            )
        mask_mirror = mirror_of_masks(masks, Path(below))
        if mask_mirror is not None:
            mirrors.append(mask_mirror)
            scans = [replace(scan, mask=mask_path(mask_mirror.folder, scan.name)) for scan in scans]
        with locked(output), cluster(address, device) as pool:
            device_type = "cuda" if pool.gpus else "cpu"
            work = PredictWork(packed, tuple(formats), probabilities, steps, device_type, precision)
            cohort = Cohort(mirrors, output, settings, "predict")
            unusable = [unusable_case(scan.name, scan.problem) for scan in scans if scan.problem is not None]
            outcomes = report_unusable(unusable, reporter.say)
            usable = [scan for scan in scans if scan.problem is None]
            return [*outcomes, *run_cohort(pool, work, usable, cohort, reporter)]
