"""``isopose study``: estimate the duration, do each run in its own process, write the report."""

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isopose.config import Config
from isopose.errors import InputError, IsoposeError
from isopose.files import only_writer, output_folder, read_json, write_json
from isopose.io.datasets import Dataset
from isopose.progress import Reporter
from isopose.study.arms import BY_NAME, SOURCE, UNTRAINED, Arm
from isopose.study.homogenized import STAGE as HOMOGENIZING
from isopose.study.job import write_job
from isopose.study.nnunet_trainer import lengths
from isopose.study.plan import (
    MIN_EPOCHS,
    SHORTENED,
    STAGES,
    Options,
    PlannedRun,
    add_sources,
    arms_of,
    check_options,
    claim_study,
    config_of,
    held_out,
    is_done,
    jobs_of,
    known_widths,
    measure_widths,
    notes_of_length,
    patients_of,
    settle_epochs,
    source_job,
    source_of,
)

#: Exit codes of a run that was stopped and did not fail: its own code, by SIGINT, by SIGTERM.
STOPPED_EXIT_CODES = (130, -2, -15)
#: Seconds of a batch and of a validation, by ``preset/arm`` and stage.
StageSeconds = Mapping[str, Mapping[str, float]]
#: Batches per epoch, and epochs, of the trial that estimates an arm's time.
TRIED_ITERATIONS, TRIED_EPOCHS = 4, 2


class RunFailed(IsoposeError):
    """A run failed; the others may continue."""


@dataclass(frozen=True)
class Study:
    """Settings that all runs of a study share."""

    output: Path
    options: Options
    workers: int
    reporter: Reporter


def run_study(
    output: Path,
    options: Options,
    *,
    arms: Sequence[str] | None = None,
    budget_s: float | None = None,
    workers: int = 0,
    reporter: Reporter,
) -> Path:
    """Do all runs that are not finished and write the report.

    Args:
        output: the study's folder; a study with the same options in it is continued.
        options: options of the study.
        arms: names of the arms to run now; None: all. The report shows all finished arms.
        budget_s: seconds for all runs of the study together. It shortens the U-Net of every arm to the same
            fraction of its epochs; STN1 and STN2 keep all of theirs. It is fixed when a study first starts.
        workers: processes for preprocessing.
        reporter: receives messages and progress.

    Returns:
        The path of the HTML report.

    Raises:
        InputError: the options are not possible, the budget is too small, or the folder holds something else.
        IsoposeError: a run failed; finished runs are kept.
    """
    check_options(options)
    chosen = arms_of(options, arms)
    output_folder(output)
    with only_writer(output):
        return _run_study(output, options, chosen, budget_s, workers, reporter)


def _run_study(
    output: Path,
    options: Options,
    chosen: Sequence[Arm],
    budget_s: float | None,
    workers: int,
    reporter: Reporter,
) -> Path:
    from isopose.study.report import write_study_report
    from isopose.study.results import load_results

    options, settled = claim_study(output, options)
    if settled and budget_s is not None:
        reporter.say("note: this study's length was fixed when it first started; --budget has no effect")
    for line in notes_of_length(output):
        reporter.say(line)
    study = Study(output, options, workers, reporter)
    jobs, twins = jobs_of(options, chosen)
    for twin, name in twins.items():
        reporter.say(f"{twin} has the same configuration as {name}: not run again")
    seconds, untried = _estimate_batches(study, jobs)
    jobs = [job for job in jobs if _can_run(output, job, seconds)]
    if not settled and jobs:
        if budget_s is not None:
            scale = _fit_into_budget(output, options, jobs, seconds, budget_s)
            study = replace(study, options=replace(options, scale=scale))
        settle_epochs(output, study.options)
    _report_estimate(study, jobs, seconds)
    with reporter.counting("body sizes") as progress:
        data = config_of(options, options.presets[0], chosen[0], options.seeds[0]).data
        measure_widths(output, [patients_of(options, fold) for fold in range(options.folds)], data, progress)
    failed = [*untried, *_run_all(study, jobs, seconds)]
    message = f"{len(failed)} of the runs failed: {', '.join(failed)}; run the same command to try them again"
    if failed and not load_results(output):
        raise IsoposeError(message)
    report = write_study_report(output, study.options)
    if failed:
        raise IsoposeError(f"{message}; report of the others: {report}")
    return report


def _can_run(output: Path, job: PlannedRun, seconds: StageSeconds) -> bool:
    """Return whether a run is finished, or its trial (if it starts from a source, the source's) succeeded."""
    if is_done(output, job):
        return True
    key = _name_arm(source_job(job.preset, job.seed)) if _find_arm(job).source else _name_arm(job)
    return key in seconds


def _run_all(study: Study, jobs: Sequence[PlannedRun], seconds: StageSeconds) -> list[str]:
    """Do all unfinished runs; return the names of those that failed."""
    failed: list[str] = []
    left = [job for job in add_sources(study.output, jobs) if not is_done(study.output, job)]
    # Estimated and measured seconds of the runs so far; their ratio corrects the estimate of the others.
    estimated = elapsed = 0.0
    for number, job in enumerate(left, start=1):
        rest = sum(_estimate_run(study.options, one, seconds) for one in left[number - 1 :])
        pace = elapsed / estimated if estimated > 0 else 1.0
        study.reporter.say(
            f"--- [{number}/{len(left)}] {job.name}; about {_format_time(pace * rest)} left for all runs"
        )
        started = time.monotonic()
        try:
            _run_job(study, job)
        except RunFailed as error:
            # An arm that diverges must not stop the others.
            study.reporter.say(f"error: {error}, see above; continuing with the other runs")
            failed.append(str(error))
        estimated += _estimate_run(study.options, job, seconds)
        elapsed += time.monotonic() - started
    return failed


def _find_arm(job: PlannedRun) -> Arm:
    return SOURCE if job.arm == SOURCE.name else BY_NAME[job.arm]


def _open_dataset(study: Study, job: PlannedRun) -> tuple[Path, Dataset]:
    """Return the path of a run's dataset, and the dataset with its splits."""
    options = study.options
    if job.arm == SOURCE.name:
        assert options.source is not None, "checked by arms_of"
        return options.source, source_of(options)
    return options.dataset, patients_of(options, job.fold)


def _run_job(study: Study, job: PlannedRun) -> None:
    """Do a run in a process of its own."""
    path, dataset = _open_dataset(study, job)
    of_source = job.arm == SOURCE.name
    config = config_of(study.options, job.preset, _find_arm(job), job.seed)
    folder = study.output / "runs" / job.place
    # A source whose model was deleted is trained again, although its result exists.
    (folder / "result.json").unlink(missing_ok=True)
    sizes = {} if of_source else known_widths(study.output, dataset)
    _start_process(study, folder, job, path, dataset, config, sizes=sizes, predict=not of_source)


def _start_process(
    study: Study,
    folder: Path,
    job: PlannedRun,
    path: Path,
    dataset: Dataset,
    config: Config,
    *,
    sizes: dict[str, float],
    predict: bool,
    trial: bool = False,
) -> None:
    of_source = job.arm == SOURCE.name
    labels = study.options.source_labels if of_source else study.options.labels
    begun = _find_arm(job).source and not of_source
    source = study.output / "runs" / source_job(job.preset, job.seed).place / "model" if begun else None
    # One store for each normalization, which depends on the preset and on the training patients.
    store = "source" if _find_arm(job).source else f"fold-{job.fold}"
    peer = _find_arm(job).peer
    # nnU-Net normalizes by all training and validation patients, independent of the preset.
    store = f"{peer.store}-fold-{job.fold}" if peer else f"{job.preset}-{store}"
    write_job(
        folder,
        dataset,
        config,
        arm=job.arm,
        store=study.output / "stores" / store,
        source=source,
        labels=dict(labels) if labels else None,
        path=path,
        sizes=sizes,
        predict=predict,
        workers=study.workers,
        trial=trial,
    )
    child = subprocess.Popen([sys.executable, "-m", "isopose", "study-run", str(folder)])
    try:
        code = child.wait()
    finally:
        # A signal such as Ctrl-C may have reached both processes; then the child has ended already.
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code in STOPPED_EXIT_CODES:
        raise IsoposeError(f"{job.name}: stopped; finished runs are kept, give the same command to continue")
    if code != 0:
        raise RunFailed(f"{job.name} (code {code})")


def _name_arm(job: PlannedRun) -> str:
    """Return the name of an arm in the estimates."""
    return f"{job.preset}/{job.arm}"


def _estimate_batches(
    study: Study, jobs: Sequence[PlannedRun]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the seconds of a batch and of a validation by stage, measured once for each arm.

    The trial does a few batches of every stage in a process of its own, on the study's own patients.

    Returns:
        The seconds by ``preset/arm``; and the names of the arms whose trial failed, which are not run.
    """
    path = study.output / "estimate.json"
    measured: dict[str, dict[str, float]] = read_json(path) if path.exists() else {}
    untried: list[str] = []
    every = add_sources(study.output, jobs)
    # The source's trial also estimates the arms that start from it: needed even for a finished source.
    to_do = [job for job in every if job.arm == SOURCE.name or not is_done(study.output, job)]
    pairs = dict.fromkeys((job.preset, job.arm) for job in to_do)
    for preset, arm in pairs:
        job = PlannedRun(preset, arm, study.options.seeds[0], 0)
        key = _name_arm(job)
        if key in measured or arm in UNTRAINED:
            continue
        # Fine-tuning takes at most the time of training from scratch; the source's model does not exist yet.
        if _find_arm(job).source and arm != SOURCE.name:
            of_source = measured.get(f"{preset}/{SOURCE.name}")
            measured |= {key: of_source} if of_source else {}
            continue
        study.reporter.say(f"estimating the time of {key} in a short trial")
        try:
            measured[key] = _try_briefly(study, job)
        except RunFailed as error:
            study.reporter.say(f"error: {error}, see above; continuing without this arm")
            untried.append(str(error))
        write_json(path, measured)
    return measured, untried


def _try_briefly(study: Study, job: PlannedRun) -> dict[str, float]:
    config = config_of(study.options, job.preset, _find_arm(job), job.seed)
    update = {"epochs": TRIED_EPOCHS, "iterations": TRIED_ITERATIONS, "min_epochs": TRIED_EPOCHS}
    sections = {
        stage: getattr(config, stage).model_copy(
            update={"optimizer": getattr(config, stage).optimizer.model_copy(update=update)}
        )
        for stage in STAGES
    }
    folder, short = study.output / "tried" / job.place, config.model_copy(update=sections)
    path, dataset = _open_dataset(study, job)
    if not (folder / "result.json").exists():
        _start_process(study, folder, job, path, dataset, short, sizes={}, predict=False, trial=True)
    out: dict[str, float] = {}
    history = read_json(folder / "result.json")["history"]
    shutil.rmtree(folder)
    # The last epoch counts, since the first warms up. Scans homogenized for the trial are kept for the runs.
    for row in (row for row in history if row["stage"] != HOMOGENIZING):
        stage, batch, validation = row["stage"], 1.0 / TRIED_ITERATIONS, 1.0
        if "slices_a_batch" in row:
            # nnU-Net's batches have another number of slices, and its validation length follows its training.
            slices, optimizer = row["slices_a_batch"], config.unet.optimizer
            tried, of_validation = lengths(sections["unet"].optimizer, slices)
            whole, of_whole = lengths(optimizer, slices)
            batch, validation = whole / tried / optimizer.iterations, of_whole / of_validation
        out[f"{stage} batch"] = batch * (row["seconds"] - row["validation_seconds"])
        out[f"{stage} validation"] = validation * row["validation_seconds"]
    return out


def _estimate_run(options: Options, job: PlannedRun, seconds: StageSeconds) -> float:
    """Return the estimated seconds of a run's training."""
    return sum(_estimate_stages(options, job, seconds).values())


def _estimate_stages(options: Options, job: PlannedRun, seconds: StageSeconds) -> dict[str, float]:
    """Return the estimated seconds of each stage of a run's training."""
    if job.arm in UNTRAINED:
        return {}
    config = config_of(options, job.preset, _find_arm(job), job.seed)
    tried = seconds[_name_arm(job)]
    out: dict[str, float] = {}
    for stage in dict.fromkeys(key.rpartition(" ")[0] for key in tried):
        # The joint network's optimizer is the crop's.
        optimizer = getattr(config, "crop" if stage == "joint" else stage).optimizer
        batch, validation = tried[f"{stage} batch"], tried[f"{stage} validation"]
        out[stage] = optimizer.epochs * (optimizer.iterations * batch + validation)
    return out


def _fit_into_budget(
    output: Path, options: Options, jobs: Sequence[PlannedRun], seconds: StageSeconds, budget_s: float
) -> float:
    """Return the fraction of the U-Net's epochs, the same for every arm, with which all runs fit the budget.

    STN1 and STN2 are never shortened, so their time is subtracted from the budget first.

    Raises:
        InputError: less than :data:`MIN_EPOCHS` epochs of the U-Net would be left.
    """
    every = [_estimate_stages(options, job, seconds) for job in add_sources(output, jobs)]
    unets = sum(stages.get(SHORTENED, 0.0) for stages in every)
    whole = sum(sum(stages.values()) for stages in every) - unets
    scale = min(1.0, max(0.0, budget_s - whole) / unets) if unets > 0 else 1.0
    for preset in options.presets:
        epochs = config_of(options, preset, BY_NAME["pose"], options.seeds[0]).unet.optimizer.epochs
        if round(scale * epochs) < min(MIN_EPOCHS, epochs):
            least = whole + unets * min(MIN_EPOCHS, epochs) / epochs
            stns = f" STN1 and STN2 need {_format_time(whole)} and are not shortened;" if whole else ""
            raise InputError(
                f"--budget: {_format_time(budget_s)} leaves {scale * epochs:.1f} of {epochs} epochs for each "
                f"U-Net;{stns} give at least {_format_time(least)}, fewer arms or seeds, or a smaller "
                "configuration"
            )
    return scale


def _report_estimate(study: Study, jobs: Sequence[PlannedRun], seconds: StageSeconds) -> None:
    """Report the estimated duration of each arm before the study starts."""
    every = add_sources(study.output, jobs)
    dataset = patients_of(study.options, 0)
    where = "" if study.options.folds == 1 else " in the first fold"
    study.reporter.say(f"{len(held_out(dataset))} test scans{where}")
    by_arm: dict[str, float] = {}
    for job in every:
        if not is_done(study.output, job):
            key = f"{job.preset} {job.arm}"
            by_arm[key] = by_arm.get(key, 0.0) + _estimate_run(study.options, job, seconds)
    for key, value in by_arm.items():
        study.reporter.say(f"estimate: {key:<28} {_format_time(value)}")
    done = sum(is_done(study.output, job) for job in every)
    total = _format_time(sum(by_arm.values()))
    study.reporter.say(f"estimate: {len(every) - done} of {len(every)} runs to do, about {total} of training")


def _format_time(seconds: float) -> str:
    """Format hours and minutes; seconds below two minutes."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
