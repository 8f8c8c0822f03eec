"""``isopose wrap --ray``: run another program on homogenized scans with the workers of a cluster."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isopose.cluster.cases import CaseItems, JsonRecords, mirror_of_masks
from isopose.cluster.cohort import Cohort, locked, run_cohort
from isopose.cluster.homogenize import settle_reference
from isopose.cluster.model import PackedModel
from isopose.cluster.places import Mirror, Place
from isopose.cluster.pool import cluster
from isopose.config import HomogenizeConfig
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.homogenize.command import Command
from isopose.homogenize.dataset import report_modality, report_warnings
from isopose.homogenize.wrap import Wrapped, check_output, open_scans, wrap_scan, wrap_settings
from isopose.homogenize.wrapped import LOGS, WrapSettings, wrap_provenance
from isopose.inference.files import record_name
from isopose.io.cases import Case, report_unusable
from isopose.io.masks import with_masks
from isopose.io.results.formats import NIFTI, check_formats
from isopose.labels import Labels
from isopose.progress import Reporter


@dataclass
class WrapWork(CaseItems, JsonRecords):
    """See :class:`~isopose.cluster.cohort.CohortWork`.

    Args:
        packed: model that estimates the poses; None: the shipped network.
        settings: settings for all scans.
        output: folder for the results and for the output that the command prints.
    """

    packed: PackedModel | None
    settings: WrapSettings
    output: Place
    unpacked: TemporaryDirectory[str] | None = field(default=None, init=False)

    def open(self) -> None:
        if self.packed is not None:
            self.unpacked = self.packed.unpack()
            homogenizing = replace(self.settings.homogenizing, model=Path(self.unpacked.name))
            self.settings = replace(self.settings, homogenizing=homogenizing)

    def record(self, item: Case) -> str:
        return record_name(item.id)

    def work(self, item: Case, root: Path) -> Wrapped:
        program = self.settings.command.words[0]
        if shutil.which(program) is None:
            raise InputError(
                f"{os.uname().nodename}: the program {program} is missing or not executable; install it on "
                "every machine"
            )
        check_formats(item.image, self.settings.formats)
        with TemporaryDirectory(prefix="isopose-") as work:
            homogenizing = replace(self.settings.homogenizing, root=Path(work))
            settings = replace(self.settings, output=root, homogenizing=homogenizing)
            outcome = wrap_scan(item, settings, reported=InputError)
        # Published separately, because results are published only if all are complete, and the log is needed
        # most if they are not.
        log = root / LOGS / f"{item.id}.log"
        if log.is_file():
            (self.output / LOGS / log.name).publish(log)
            log.unlink()
        problem = outcome.problem and outcome.problem.replace(str(root), str(self.output))
        return replace(outcome, problem=problem)

    def without_slices(self, record: dict[str, Any]) -> dict[str, Any]:
        return record


def wrap_on_cluster(
    scans: Place,
    output: Place,
    command: Command,
    address: str,
    config: HomogenizeConfig,
    *,
    model: Place | None,
    labels: Mapping[str, int] | None,
    formats: Sequence[str] = (NIFTI,),
    series: str | None,
    masks: Place | None = None,
    reporter: Reporter,
) -> list[Wrapped]:
    """Run a command on homogenized scans with the workers of a cluster; see ``docs/guides/cluster.md``.

    Writes the files that :func:`~isopose.homogenize.wrap.wrap` writes, and ``cohort/``.

    Args:
        scans: as for :func:`~isopose.homogenize.wrap.open_scans`, on a disk that all machines share, or a
            URL.
        output: folder, on a shared disk or a URL.
        command: command for one scan; its program must be installed on each machine.
        address: of the cluster; see :func:`~isopose.cluster.pool.cluster`. Each worker has a GPU if the
            cluster has any.
        config: pose and size; the reference is a case, or a path on this machine.
        model: folder of the model that estimates the poses; it is sent to the workers.
        labels: name to value of the labels that the command writes; None: they have no names.
        formats: of label maps, see :func:`~isopose.io.results.formats.choose_formats`.
        series: as given to :func:`~isopose.homogenize.wrap.open_scans`.
        masks: folder of the user's own body masks, on a shared disk or a URL; None: bodies are found.
        reporter: receives messages and progress.

    Returns:
        The outcomes of unusable scans, then those of the others in their order.

    Raises:
        InputError: the command takes all scans at once, the model or reference does not exist, or a format
            needs label names.
        IsoposeError: a place or the cluster cannot be reached.
    """
    if command.batch:
        raise InputError(
            "--ray: the command runs once for each scan, got {inputs}; use {input} with {output} or "
            "{output_folder}, or leave --ray out"
        )
    packed = None if model is None else PackedModel.of(model)
    names = Labels.create(labels) if labels else Labels({})
    with ExitStack() as stack:
        below = Path(stack.enter_context(TemporaryDirectory(prefix="isopose-")))
        mirror, where = Mirror.of_dataset(scans, below / "in")
        mask_mirror = mirror_of_masks(masks, below)
        opened = with_masks(open_scans(where, series), mask_mirror.folder if mask_mirror else None)
        unusable = report_unusable(opened.unusable, reporter.say)
        if not opened.cases:
            return unusable
        mirrors = [mirror, *([mask_mirror] if mask_mirror else [])]
        if output.local is not None and scans.local is not None:
            check_output(opened, output.local, formats, names)
        folder = Path(stack.enter_context(packed.unpack())) if packed else None
        report_modality(config, opened, reporter)
        config, reference = settle_reference(config, opened, model, folder, mirrors, below)
        settings = wrap_settings(
            opened, below / "out", command, config, folder, reference, names, formats, series, keep=False
        )
        # Each worker unpacks its own copy of the model.
        settings = replace(settings, homogenizing=replace(settings.homogenizing, model=None))
        stack.enter_context(locked(output))
        report_warnings(settings.homogenizing, reporter)
        pool = stack.enter_context(cluster(address, "auto"))
        settings_hash = hash_of([wrap_provenance(settings, "", None), series])
        cohort = Cohort(mirrors, output, settings_hash, "wrap")
        work = WrapWork(packed, settings, output)
        return [*unusable, *run_cohort(pool, work, opened.cases, cohort, reporter)]
