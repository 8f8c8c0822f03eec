"""The raw numbers of a study: all that the tables show, and from what, as CSV and JSON."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isopose.evaluation.summary import METRICS, summarise
from isopose.files import read_json
from isopose.models.folder import versions
from isopose.study.arms import ARMS
from isopose.study.plan import STUDY, Options, config_of
from isopose.study.results import Results, baseline_of, differences


def scores_csv(results: Results) -> str:
    """Every score of every scan in every run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["preset", "arm", "seed", "fold", "case", "patient", "age_years", "body_size_mm", "target", *METRICS,
         "outcome", "truth_ml", "prediction_ml"]
    )  # fmt: skip
    for preset, by_arm in results.items():
        for name, result in by_arm.items():
            for run in result.runs:
                for case in run.evaluation.cases:
                    for target, scores in case.scores.items():
                        writer.writerow(
                            [preset, name, run.seed, run.fold, case.case, case.patient, case.age_years,
                             case.body_size_mm, target, *(getattr(scores, m) for m in METRICS),
                             scores.outcome, scores.truth_ml, scores.prediction_ml]
                        )  # fmt: skip
    return text.getvalue()


def runs_csv(results: Results) -> str:
    """What every run cost, and where its files are."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["preset", "arm", "seed", "fold", "stage", "epochs", "seconds", "cpu_seconds", "memory_before_mb",
         "memory_peak_mb", "folder"]
    )  # fmt: skip
    for preset, by_arm in results.items():
        for name, result in by_arm.items():
            for run in result.runs:
                cpu = run.seconds("cpu_seconds")
                for stage, seconds in run.seconds().items():
                    memory = run.measures["memory"].get(stage, {})
                    epochs = sum(row["stage"] == stage for row in run.history)
                    writer.writerow(
                        [preset, name, run.seed, run.fold, stage, epochs, round(seconds, 2),
                         round(cpu[stage], 2), memory.get("before_mb"), memory.get("peak_mb"), run.folder]
                    )  # fmt: skip
    return text.getvalue()


def numbers(output: Path, options: Options, results: Results) -> dict[str, Any]:
    """All that the tables show, and from what."""
    return {
        "versions": versions(),
        "study": read_json(output / STUDY),
        "presets": {
            preset: {
                "configuration": config_of(options, preset, ARMS[0], 0).model_dump(mode="json"),
                "arms": {
                    name: {
                        "settings": list(result.arm.settings),
                        "folders": [run.folder for run in result.runs],
                        "seconds": result.seconds,
                        "cpu_seconds": result.cpu_seconds,
                        "memory_mb": result.mean([run.memory_mb() for run in result.runs]),
                        "volumes_a_minute": result.volumes_a_minute,
                        "size": dict(result.runs[0].size),
                        "scores": {t: asdict(summarise(result.cases, t)) for t in result.targets},
                        "histories": [list(run.history) for run in result.runs],
                    }
                    for name, result in by_arm.items()
                },
                "differences": [asdict(each) for each in differences(by_arm, baseline_of(by_arm))],
            }
            for preset, by_arm in results.items()
        },
    }
