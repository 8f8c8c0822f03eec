"""Homogenize the study's patients for nnU-Net's arms, and restore nnU-Net's predictions."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from isopose.choices import Modality
from isopose.errors import InputError
from isopose.files import read_json, write_json
from isopose.homogenize.case import image_path
from isopose.homogenize.dataset import homogenize
from isopose.homogenize.record import record_path
from isopose.homogenize.restore import restore
from isopose.io.datasets import Dataset
from isopose.presets import homogenize_config
from isopose.progress import Reporter, Silent
from isopose.study.measure import timed
from isopose.study.results import CLOCKS

#: Name of the stage in a run's history, and of the file with the seconds of each case.
STAGE, SECONDS = "homogenize", "homogenize-seconds.json"

CaseSeconds = dict[str, dict[str, float]]


@dataclass(frozen=True)
class HomogenizedPatients:
    """The homogenized patients of a fold.

    Args:
        root: folder of the dataset that ``isopose homogenize`` wrote.
        seconds: wall-clock and CPU seconds by case.
        learned: ids of the training and validation cases.
        channels: number of images of each case.
    """

    root: Path
    seconds: CaseSeconds
    learned: tuple[str, ...]
    channels: int

    @property
    def row(self) -> dict[str, Any]:
        """Row for a run's history; it counts in every arm and seed, although it was done only once."""
        total: dict[str, float] = {
            clock: sum(self.seconds[case][clock] for case in self.learned) for clock in CLOCKS
        }
        return {"stage": STAGE, "epoch": 1, **total, "validation_seconds": 0.0}

    def predict(self, predictor: Any, case: str, homogenized_folder: Path, output: Path) -> dict[str, float]:
        """Predict a homogenized scan and restore the prediction to the scan's own grid.

        Args:
            predictor: nnU-Net's predictor.
            case: the case's id.
            homogenized_folder: folder for predictions in the homogenized frame.
            output: folder for predictions on the scans' own grids.

        Returns:
            The seconds for homogenizing, predicting and restoring.

        Raises:
            InputError: the prediction cannot be restored.
        """
        homogenized_folder.mkdir(parents=True, exist_ok=True)
        # Remove an earlier result that was not timed; otherwise the time to find it would be measured.
        for path in (output / f"{case}.json", output / f"{case}.nii.gz"):
            path.unlink(missing_ok=True)
        with timed() as timing:
            sources = [str(image_path(self.root, case, number)) for number in range(self.channels)]
            predictor.predict_from_files_sequential([sources], [str(homogenized_folder / case)])
            [restored] = restore(homogenized_folder / f"{case}.nii.gz", self.root, output, reporter=Silent())
        if restored.problem is not None:
            raise InputError(restored.problem)
        return {clock: timing[clock] + self.seconds[case][clock] for clock in CLOCKS}


def homogenize_patients(
    dataset: Dataset,
    root: Path,
    size: int,
    reporter: Reporter,
    *,
    modality: Literal["auto"] | Modality = "auto",
) -> HomogenizedPatients:
    """Homogenize every labeled patient once for all arms and seeds of a fold, and time each.

    Args:
        dataset: with its test cases marked.
        root: folder of nnU-Net's raw dataset.
        size: pixels per side of the reference's frame.
        reporter: receives progress.
        modality: of the scans; ``auto``: as the dataset's channels say.

    Raises:
        InputError: a patient cannot be homogenized.
    """
    cases = tuple(case for case in dataset.cases if case.label is not None)
    seconds_file = root.parent / SECONDS
    seconds: CaseSeconds = read_json(seconds_file) if seconds_file.exists() else {}
    if not (root / "dataset.json").exists() or any(case.id not in seconds for case in cases):
        for case in cases:
            if case.id not in seconds:
                record_path(root, case.id).unlink(missing_ok=True)
        timing = _Timing(reporter, [case.id for case in cases], seconds, seconds_file)
        # Without workers, because their CPU seconds would not be counted.
        config = homogenize_config(size=size, modality=modality)
        outcomes = homogenize(replace(dataset, cases=cases), root, config, reporter=timing)
        problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
        if problems:
            raise InputError(f"{problems[0]} ({len(problems)} in total; leave out the patients or the arm)")
    learned = tuple(case.id for case in cases if case.split != "test")
    return HomogenizedPatients(root, seconds, learned, len(dataset.channels))


class _Timing(Silent):
    """Pass progress on, and record the seconds of each newly homogenized case."""

    def __init__(self, reporter: Reporter, cases: list[str], seconds: CaseSeconds, path: Path) -> None:
        self.reporter, self.cases, self.seconds, self.path = reporter, cases, seconds, path

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Measure the time between two calls, which is that of one case."""
        with self.reporter.counting(what) as progress:
            before = _read_clocks()

            def count(done: int, total: int) -> None:
                nonlocal before
                now, case = _read_clocks(), self.cases[done - 1]
                if case not in self.seconds:
                    self.seconds[case] = {clock: now[clock] - before[clock] for clock in CLOCKS}
                    write_json(self.path, self.seconds)
                before = now
                progress(done, total)

            yield count


def _read_clocks() -> dict[str, float]:
    return {"seconds": time.monotonic(), "cpu_seconds": time.process_time()}
