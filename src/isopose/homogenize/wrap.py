"""``isopose wrap``: run another program on homogenized scans, and restore its results to each scan's grid."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, TypeVar

from isopose import outputs
from isopose.config import HomogenizeConfig
from isopose.errors import InputError, counted
from isopose.files import only_writer, output_folder
from isopose.homogenize.case import IMAGE_EXTENSION, image_path, make_case
from isopose.homogenize.command import Command, exit_description, run_command
from isopose.homogenize.command_output import CommandOutput, printable_names, sort_by_case, visible_files
from isopose.homogenize.dataset import (
    homogenize_settings,
    refuse_series,
    report_modality,
    report_warnings,
    resolved_config,
    scans_as_dataset,
)
from isopose.homogenize.estimator import PoseEstimator, open_estimator
from isopose.homogenize.process import process_cases, report_outcome
from isopose.homogenize.record import record_path
from isopose.homogenize.reference import ReferenceOutline, find_reference
from isopose.homogenize.wrapped import (
    LOGS,
    MAPS,
    Run,
    WrapSettings,
    complete_record,
    remove_results,
    write_restored,
)
from isopose.inference.files import PROBABILITIES
from isopose.io.cases import Case, Dataset, check_one_channel, is_usable_id, report_unusable
from isopose.io.datasets import is_dataset, open_dataset
from isopose.io.results.formats import NIFTI, check_formats, open_dicom, result_files
from isopose.io.scans import check_output_apart
from isopose.isolation import Failed, failure_of, named
from isopose.labels import Labels
from isopose.outputs import Outcome
from isopose.parallel import attempts
from isopose.progress import Reporter

#: Folder in the output during a run: homogenized scans, and the files that the command reads and writes.
WORK = "work"
#: Subfolder for finished runs of the command (``--keep``), and prefix of the folders of runs in progress.
RUNS, RUNNING = "runs", "running-"
#: Log of a command that is run once for all scans.
LOG_OF_ALL = "command.log"

#: A record is the contents of ``NAME.json``.
Wrapped = Outcome[dict[str, Any]]

Item = TypeVar("Item")


def open_scans(path: Path, series: str | None = None) -> Dataset:
    """Open scans as a dataset without labels: a dataset, a file, a folder of files, or a DICOM series.

    Args:
        path: see :func:`~isopose.io.datasets.open_dataset` and :func:`~isopose.io.scans.find_scans`.
        series: number or instance UID, for DICOM that holds several series.

    Raises:
        InputError: none of these, or a series is chosen of an input that is not DICOM.
    """
    if is_dataset(path):
        refuse_series(path, series)
        dataset = open_dataset(path, allow_unusable=True)
        check_one_channel(dataset, "wrap")
        cases = tuple(replace(case, label=None) for case in dataset.cases)
        return replace(dataset, cases=cases, labels=Labels({}))
    return scans_as_dataset(path, series)


def wrap(
    scans: Dataset,
    output: Path,
    command: Command,
    config: HomogenizeConfig,
    *,
    model: Path | None = None,
    labels: Mapping[str, int] | None = None,
    formats: Sequence[str] = (NIFTI,),
    series: str | None = None,
    keep: bool = False,
    workers: int = 0,
    reporter: Reporter,
) -> list[Wrapped]:
    """Run a command on homogenized scans and restore its output; a scan that fails does not stop the others.

    For the written files see ``docs/formats.md``; the record of each scan is written last. A scan is skipped
    if its results are complete and from the same isopose, scan, command and settings.

    Args:
        scans: see :func:`open_scans`.
        output: folder for the results.
        command: see :func:`~isopose.homogenize.command.read_command`.
        config: pose and size.
        model: folder of a model whose pose networks are used; None: the shipped network.
        labels: label value by name, as the command writes them; None: without names.
        formats: of label maps, see :func:`~isopose.io.results.formats.choose_formats`.
        series: as given to :func:`open_scans`.
        keep: keep homogenized scans and the command's files in ``work``.
        workers: number of processes; each runs the command on another scan.
        reporter: receives progress.

    Returns:
        The outcomes of unusable scans, then those of the others in their order.

    Raises:
        InputError: no such model or reference, a format that a scan does not support or that lacks names,
            or a result would replace a scan.
        RunError: the output is full or cannot be written to.
    """
    output, names = Path(output), Labels.create(labels) if labels else Labels({})
    unusable = report_unusable(scans.unusable, reporter.say)
    if not scans.cases:
        return unusable
    check_output(scans, output, formats, names)
    report_modality(config, scans, reporter)
    config = resolved_config(config, scans, model)
    reference = find_reference(config, model, scans.cases)
    settings = wrap_settings(
        scans, output, command, config, model, reference, names, formats, series, keep=keep
    )
    output_folder(output)
    with only_writer(output):
        report_warnings(settings.homogenizing, reporter)
        for outcome in unusable:
            # It may have results from a run in which no other scan had its name.
            if is_usable_id(outcome.name):
                remove_results(settings, outcome.name)
        return [*unusable, *_wrap_all(scans.cases, settings, workers, reporter)]


def wrap_settings(
    scans: Dataset,
    output: Path,
    command: Command,
    config: HomogenizeConfig,
    model: Path | None,
    reference: ReferenceOutline | None,
    labels: Labels,
    formats: Sequence[str],
    series: str | None,
    *,
    keep: bool,
) -> WrapSettings:
    """Return the settings that all scans of a run share.

    Args:
        scans: see :func:`open_scans`.
        output: folder.
        command: to be run.
        config: pose and size, with the scans' modality.
        model: folder of the model whose pose networks are used; None: the shipped network.
        reference: the reference, already loaded.
        labels: names of the label values that the command writes; may be empty.
        formats: of label maps.
        series: as given to :func:`open_scans`.
        keep: leave homogenized scans and the command's files in ``work``.

    Raises:
        InputError: a model that estimates no pose, or is of another modality.
    """
    estimator = open_estimator(model, config, reference)
    homogenizing = homogenize_settings(scans, output / WORK, config, model, reference, estimator, series)
    pose = _pose_record(config, estimator)
    return WrapSettings(output, command, labels, tuple(formats), keep, homogenizing, pose)


def _wrap_all(
    cases: Sequence[Case], settings: WrapSettings, workers: int, reporter: Reporter
) -> list[Wrapped]:
    _sweep(settings)
    try:
        if settings.command.batch:
            outcomes = _wrap_batch(cases, settings, workers, reporter)
        else:
            work = partial(wrap_scan, settings=settings)
            outcomes = _process(work, cases, attrgetter("id"), settings, workers, reporter)
    finally:
        # A stopped worker cannot remove the file that it was writing.
        _sweep(settings)
        outputs.remove_empty([settings.output / PROBABILITIES, settings.output / MAPS])
    if not settings.keep:
        # Not after an interruption: the next run continues from these files.
        outputs.remove([settings.homogenizing.root])
    return outcomes


def check_output(scans: Dataset, output: Path, formats: Sequence[str], labels: Labels) -> None:
    """Check before a run that results replace no scan and that all formats can be written.

    Raises:
        InputError: a result would replace a scan, or a scan does not support a format or lacks names for it.
    """
    if scans.layout == "scans":
        check_output_apart([scans.root], output)
    dicom_formats = [name for name in formats if name != NIFTI]
    if dicom_formats and not labels.values:
        raise InputError(
            f"--format {dicom_formats[0]}: needs the name of each label, which label maps do not hold; name "
            "each value that the command writes (--label kidney=1)"
        )
    for case in scans.cases:
        check_formats(case.image, formats)
        results = result_files(output, case.id, formats).values()
        if os.path.realpath(case.image) in map(os.path.realpath, results):
            raise InputError(f"{case.image}: would be overwritten by its result; choose another --output")


def _pose_record(config: HomogenizeConfig, estimator: PoseEstimator) -> dict[str, Any]:
    """Return the settings of pose and size for the records."""
    return {
        **config.model_dump(mode="json", exclude={"reference"}),
        # Not the name that the user gave: a path may contain a patient's name.
        "reference": asdict(estimator.reference),
        "poses_from": estimator.origin,
        "poses_sha256": estimator.sha256,
        "side_mm": estimator.side_mm,
        "pixel_mm": estimator.pixel_mm,
    }


def _sweep(settings: WrapSettings) -> None:
    """Remove files of interrupted runs that the next run cannot use."""
    outputs.sweep(settings.output)
    outputs.remove(settings.homogenizing.root.glob(f"{RUNNING}*"))


def _wrap_batch(
    cases: Sequence[Case], settings: WrapSettings, workers: int, reporter: Reporter
) -> list[Wrapped]:
    """Homogenize all scans without a result, run the command once on them, and restore its results."""
    with reporter.counting("homogenize") as progress:
        work = partial(_prepare, settings=settings)
        results = attempts(work, cases, name=attrgetter("id"), workers=workers, progress=progress)
        outcomes, homogenized = dict[str, Wrapped](), list[Case]()
        for case, result in zip(cases, results, strict=True):
            outcome = Wrapped(case.id, None, result.why) if isinstance(result, Failed) else result
            if outcome is None:
                homogenized.append(case)
            else:
                outcomes[case.id] = outcome
                if outcome.problem is not None:
                    remove_results(settings, case.id)
                report_outcome(outcome, case.id, itemgetter("warnings"), reporter)
    if homogenized:
        outcomes |= _run_batch(homogenized, settings, workers, reporter)
    return [outcomes[case.id] for case in cases]


def _run_batch(
    cases: Sequence[Case], settings: WrapSettings, workers: int, reporter: Reporter
) -> dict[str, Wrapped]:
    """Run the command once on homogenized scans, restore its results, and return the outcomes by scan."""
    with _run_folder(settings, "all") as folder:
        inputs, written = folder / "inputs", folder / "outputs"
        inputs.mkdir()
        written.mkdir()
        for case in cases:
            _copy_image(settings, case.id, inputs / f"{case.id}_0000{IMAGE_EXTENSION}")
        log = settings.output / LOGS / LOG_OF_ALL
        reporter.say(f"the command runs on {counted(len(cases), 'scan')}; its output: {log}")
        run = _run_command(settings.command, {"inputs": inputs, "outputs": written}, log, len(cases))
        # Whatever a failed command wrote may be incomplete: none of it counts.
        files = [] if run.exit_code else visible_files(written)
        files_by_case, unassigned = sort_by_case(files, [case.id for case in cases])
        if unassigned:
            reporter.say(f"  ignored, they belong to no scan: {printable_names(unassigned)}")
        outputs_of_cases = [(case, CommandOutput.of(written, files_by_case[case.id])) for case in cases]
        items = [(case, output) for case, output in outputs_of_cases if output.images or output.npz_files]
        work = partial(_restore_batch_output, settings=settings, run=run)
        restored = (
            _process(work, items, lambda item: item[0].id, settings, workers, reporter) if items else []
        )
    outcomes = {outcome.name: outcome for outcome in restored}
    missing = [case.id for case in cases if case.id not in outcomes]
    if missing:
        # One message for all of them.
        what = ", so that none of its output counts" if run.exit_code else " and wrote no result"
        why = f"{printable_names(missing)}: the command {exit_description(run.exit_code)}{what}; see {log}"
        for name in missing:
            outcomes[name] = Wrapped(name, None, why)
            remove_results(settings, name)
        reporter.say(f"  error: {why}")
    return outcomes


def _process(
    work: Callable[[Item], Wrapped],
    items: Sequence[Item],
    name: Callable[[Item], str],
    settings: WrapSettings,
    workers: int,
    reporter: Reporter,
) -> list[Wrapped]:
    """Process an item for each scan; older results of a scan that fails are removed."""
    return process_cases(
        work,
        items,
        name=name,
        title="wrap",
        warnings_of=itemgetter("warnings"),
        discard=lambda item: remove_results(settings, name(item)),
        workers=workers,
        reporter=reporter,
    )


def wrap_scan(case: Case, settings: WrapSettings, reported: type[Exception] = Exception) -> Wrapped:
    """Homogenize a scan, run the command on it and restore its result, unless the result exists.

    Exceptions of type ``reported`` become the outcome's problem. All others are raised, so that a cluster can
    try again after a temporary error.

    Raises:
        RunError: an error that concerns all scans, such as a full disk.
    """
    outcome = _prepare(case, settings=settings, reported=reported)
    if outcome is not None:
        return outcome
    try:
        with _run_folder(settings, case.id) as folder:
            image, written = folder / f"{case.id}{IMAGE_EXTENSION}", folder / "output"
            _copy_image(settings, case.id, image)
            written.mkdir()
            paths = {"input": image, "output": written / image.name, "output_folder": written}
            run = _run_command(settings.command, paths, settings.output / LOGS / f"{case.id}.log", 1)
            if run.exit_code:
                raise InputError(f"{case.id}: the command {exit_description(run.exit_code)}; see {run.log}")
            record = _restore(case, CommandOutput.of(written, visible_files(written)), settings, run)
        if not settings.keep:
            root = settings.homogenizing.root
            outputs.remove([record_path(root, case.id), image_path(root, case.id)])
        return Wrapped(case.id, record, None)
    except reported as error:
        return Wrapped(case.id, None, named(str(failure_of(error)), case.id))


def _restore_batch_output(item: tuple[Case, CommandOutput], *, settings: WrapSettings, run: Run) -> Wrapped:
    """Restore the files for one scan that a run of the command on all scans wrote."""
    case, output = item
    try:
        return Wrapped(case.id, _restore(case, output, settings, run), None)
    except Exception as error:
        return Wrapped(case.id, None, named(str(failure_of(error)), case.id))


def _restore(case: Case, output: CommandOutput, settings: WrapSettings, run: Run) -> dict[str, Any]:
    """Restore and write the command's files for a scan; errors name the scan and the command's log."""
    try:
        return write_restored(case, output, run, settings)
    except InputError as error:
        raise InputError(f"{case.id}: {error}; output of the command: {run.log}") from None


def _prepare(case: Case, *, settings: WrapSettings, reported: type[Exception] = Exception) -> Wrapped | None:
    """Homogenize a scan; return its outcome if its results exist or it failed, else None."""
    try:
        earlier = complete_record(case, settings)
        if earlier is not None:
            return Wrapped(case.id, earlier, None, made=False)
        outcome = make_case(case, settings=settings.homogenizing, reported=reported)
        if outcome.record is None:
            return Wrapped(case.id, None, outcome.problem)
        # Check this before the command runs, which may take long.
        native = outcome.record.transform.native
        open_dicom(case.image, settings.homogenizing.series, settings.formats, native)
    except reported as error:
        return Wrapped(case.id, None, named(str(failure_of(error)), case.id))
    return None


@contextmanager
def _run_folder(settings: WrapSettings, name: str) -> Iterator[Path]:
    """Yield a new temporary folder for a run of the command; ``settings.keep`` moves it to ``runs/NAME``.

    It is new because a program may still write to an older one if isopose was killed.
    """
    work = settings.homogenizing.root
    work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=RUNNING, dir=work))
    try:
        yield folder
    finally:
        if settings.keep:
            target = work / RUNS / name
            outputs.remove([target])
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
        else:
            outputs.remove([folder])


def _copy_image(settings: WrapSettings, name: str, target: Path) -> None:
    """Copy a homogenized scan to the path of the command's input, which the command may overwrite."""
    shutil.copyfile(image_path(settings.homogenizing.root, name), target)


def _run_command(command: Command, paths: Mapping[str, Path], log: Path, scans: int) -> Run:
    """Run the command on homogenized scans; ``paths`` replace its placeholders."""
    started = time.monotonic()
    # Absolute, since a program may change its working folder.
    code = run_command(command.filled({name: path.absolute() for name, path in paths.items()}), log)
    return Run(code, round(time.monotonic() - started, 1), scans, log)
