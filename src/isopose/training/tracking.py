"""Log training curves: always to TensorBoard event files, on request to MLflow and Weights & Biases.

Only the settings and the rows of the history leave the machine: no path, case, command line or output.
"""

import importlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from isopose.config import Config
from isopose.errors import InputError
from isopose.files import read_json, write_json
from isopose.progress import Reporter, StageReport
from isopose.version import __version__

#: Logs a row of the history.
LogRow = Callable[[Mapping[str, Any]], None]
#: Project or experiment, and name of the run, where runs are listed.
PROJECT, RUN = "isopose", "fit"


@contextmanager
def curves(folder: Path, done: int) -> Iterator[LogRow]:
    """Yield a function that logs a row of the history; epochs after ``done`` of a killed run are purged."""
    # Imported here: TensorBoard takes a second that no other command should wait for.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=str(folder), purge_step=done + 1 if done else None) as writer:

        def log_row(row: Mapping[str, Any]) -> None:
            for name, value in _scalars(row).items():
                writer.add_scalar(name, value, row["epoch"])
            writer.flush()

        yield log_row


class Tracked:
    """A reporter that also logs every epoch to trackers.

    Runs begin with the first stage, once the model's folder is claimed, and continue when the training is
    resumed. A tracker that fails during training is reported and dropped; the training continues.

    Args:
        reporter: receives all reports as well.
        names: of :data:`TRACKERS`.
        work: folder where the runs' identifiers are kept.
        config: the settings to log.

    Raises:
        InputError: an unknown tracker, or one that is not installed.
    """

    def __init__(self, reporter: Reporter, names: Sequence[str], work: Path, config: Config) -> None:
        for name in names:
            if name not in TRACKERS:
                raise InputError(f"--track: expected one of {', '.join(TRACKERS)}, got {name!r}")
            try:
                importlib.import_module(name)
            except ImportError:
                raise InputError(
                    f"--track {name}: not installed; add the extra: pip install 'isopose[{name}]'"
                ) from None
        self.reporter, self.names = reporter, tuple(dict.fromkeys(names))
        self.ids_path = work / "tracking.json"
        self.settings = _settings(config)
        self.loggers: dict[str, LogRow] | None = None
        self.runs = ExitStack()

    def __enter__(self) -> "Tracked":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.runs.__exit__(*error)
        except Exception as problem:
            # The model is already written, or the training's own error is the one to report.
            self.say(f"--track: the runs could not be ended ({_line(problem)})")

    def say(self, text: str) -> None:
        """See :class:`~isopose.progress.Reporter`."""
        self.reporter.say(text)

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """See :class:`~isopose.progress.Reporter`."""
        with self.reporter.counting(what) as count:
            yield count

    @contextmanager
    def stage(self, name: str, epochs: int, iterations: int, done: int) -> Iterator[StageReport]:
        """See :class:`~isopose.progress.Reporter`.

        Raises:
            InputError: a tracker does not begin.
        """
        if self.loggers is None:
            self.loggers = self._begin()
        with self.reporter.stage(name, epochs, iterations, done) as report:
            yield _TrackedStage(report, self)

    def _begin(self) -> dict[str, LogRow]:
        run_ids = read_json(self.ids_path) if self.ids_path.exists() else {}
        loggers: dict[str, LogRow] = {}
        for name in self.names:
            try:
                run = TRACKERS[name](self.ids_path.parent, run_ids.get(name), self.settings)
                run_ids[name], loggers[name] = self.runs.enter_context(run)
            except Exception as error:
                raise InputError(f"--track {name}: {_line(error)}") from error
        if loggers:
            write_json(self.ids_path, run_ids)
        return loggers

    def log(self, row: Mapping[str, Any]) -> None:
        """Log an epoch to all trackers that still work."""
        assert self.loggers is not None, "within a stage"
        for name, log_row in list(self.loggers.items()):
            try:
                log_row(row)
            except Exception as error:
                del self.loggers[name]
                self.say(f"{name}: {_line(error)}; the training continues without it")


class _TrackedStage:
    def __init__(self, report: StageReport, tracked: Tracked) -> None:
        self.report, self.tracked = report, tracked

    def step(self) -> None:
        self.report.step()

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.tracked.log(row)
        self.report.epoch(row)


@contextmanager
def _mlflow(_work: Path, run_id: str | None, settings: Mapping[str, Any]) -> Iterator[tuple[str, LogRow]]:
    """Log to the MLflow server at ``MLFLOW_TRACKING_URI``."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    # Not mlflow.start_run, which adds who runs what from where.
    client = MlflowClient()
    if run_id is None:
        experiment_found = client.get_experiment_by_name(PROJECT)
        experiment = experiment_found.experiment_id if experiment_found else client.create_experiment(PROJECT)
        run_id = client.create_run(experiment, run_name=RUN).info.run_id
        params = [Param(key, str(value)) for key, value in settings.items()]
        # MLflow's limit of parameters per request.
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
    client.update_run(run_id, status="RUNNING")

    def log_row(row: Mapping[str, Any]) -> None:
        now, epoch = int(time.time() * 1000), row["epoch"]
        # Names of labels may hold what MLflow's may not.
        numbers = {re.sub(r"[^\w\-. /]", "_", key): float(value) for key, value in _scalars(row).items()}
        client.log_batch(run_id, [Metric(key, value, now, epoch) for key, value in numbers.items()])

    try:
        yield run_id, log_row
    except BaseException as error:
        client.set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    client.set_terminated(run_id)


@contextmanager
def _wandb(work: Path, run_id: str | None, settings: Mapping[str, Any]) -> Iterator[tuple[str, LogRow]]:
    """Log to a run of the account, or to a local one, according to ``WANDB_MODE``."""
    import wandb

    private = {
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "silent": True,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    run = wandb.init(
        project=PROJECT,
        name=RUN,
        id=run_id,
        resume="allow",
        dir=str(work),
        config=dict(settings),
        settings=wandb.Settings(**private),
    )
    stages: set[str] = set()

    def log_row(row: Mapping[str, Any]) -> None:
        stage, step = row["stage"], f"{row['stage']}/epoch"
        if stage not in stages:
            # Each stage counts its own epochs from 1, and a run's own steps may not go back.
            run.define_metric(step, hidden=True)
            run.define_metric(f"{stage}/*", step_metric=step)
            stages.add(stage)
        run.log({**_scalars(row), step: row["epoch"]})

    try:
        yield run.id, log_row
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


#: By the name of their package, which is the extra's too.
TRACKERS = {"mlflow": _mlflow, "wandb": _wandb}


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a row under ``stage/name``."""
    return {f"{row['stage']}/{k}": v for k, v in row.items() if k not in ("stage", "epoch")}


def _settings(config: Config) -> dict[str, Any]:
    """Return all settings as ``section.key``, without the case named as reference."""
    values = config.flat()
    values.pop("pose.reference", None)
    return {"isopose": __version__, **values}


def _line(error: Exception) -> str:
    """Return an exception's message in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
