"""The raw numbers of a study as CSV and JSON: everything the tables show, and its sources."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from isopose.evaluation.metrics import METRICS
from isopose.evaluation.summary import summarize
from isopose.files import read_json
from isopose.io.datasets import open_dataset
from isopose.io.truth import true_rolls
from isopose.models.folder import versions
from isopose.study.arms import ARMS, FURTHER_COMPARISONS, SOURCE
from isopose.study.plan import STUDY_FILE, Options, config_of
from isopose.study.protocol import primary
from isopose.study.results import (
    PAIRED_SCORES,
    ArmResult,
    Clock,
    Results,
    StudyRun,
    baseline_of,
    differences,
    goals,
    pairs_with_baseline,
    times_to,
)
from isopose.study.strata import strata_of
from isopose.study.tables import single_labels


def scores_csv(results: Results) -> str:
    """Return every score of every scan in every run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["preset", "arm", "seed", "fold", "case", "patient", "age_years", "body_size_mm", "target", *METRICS,
         "outcome", "truth_ml", "prediction_ml", "folder"]
    )  # fmt: skip
    for preset, by_arm in results.items():
        for name, result in by_arm.items():
            for run in result.runs:
                for case in run.evaluation.cases:
                    for target, scores in case.scores.items():
                        writer.writerow(
                            [preset, name, run.seed, run.fold, case.case, case.patient, case.age_years,
                             case.body_size_mm, target, *(getattr(scores, m) for m in METRICS),
                             scores.outcome, scores.truth_ml, scores.prediction_ml, run.folder]
                        )  # fmt: skip
    return text.getvalue()


def runs_csv(results: Results, sources: Mapping[str, Sequence[StudyRun]]) -> str:
    """Return cost, hardware and folder of every run by stage; a run without training has a row without stage.

    Args:
        results: of the arms.
        sources: trainings on the source dataset, by preset.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["preset", "arm", "seed", "fold", "stage", "epochs", "seconds", "cpu_seconds", "memory_before_mb",
         "memory_peak_mb", "predict_seconds_median", "device", "processor", "threads", "precision", "folder",
         "roll_slope", "roll_degrees_from_truth", "roll_degrees_from_moments"]
    )  # fmt: skip
    runs = [(p, name, run) for p, arms in results.items() for name, arm in arms.items() for run in arm.runs]
    runs += [(preset, SOURCE.name, run) for preset, of_preset in sources.items() for run in of_preset]
    for preset, name, run in runs:
        cpu = run.seconds("cpu_seconds")
        predicted = [value["seconds"] for value in run.measures["predict"].values()]
        for stage, seconds in (run.seconds() or {"": 0.0}).items():
            memory = run.measures["memory"].get(stage, {})
            epochs = sum(row["stage"] == stage for row in run.history)
            turning = (run.stn.get("turning") or {}) if stage == "pose" else {}
            writer.writerow(
                [preset, name, run.seed, run.fold, stage, epochs, round(seconds, 2),
                 round(cpu.get(stage, 0.0), 2), memory.get("before_mb"), memory.get("peak_mb"),
                 round(median(predicted), 3) if predicted else None,
                 *(run.made.get(key) for key in ("device", "processor", "threads", "precision")), run.folder,
                 *(turning.get(key) for key in ("slope", "degrees_from_truth", "degrees_from_moments"))]
            )  # fmt: skip
    return text.getvalue()


def numbers(output: Path, options: Options, results: Results) -> dict[str, Any]:
    """Return everything the tables show, and its sources, as JSON-able values."""
    rolls = true_rolls(open_dataset(options.dataset, options.labels).root)
    return {
        "versions": versions(),
        "study": read_json(output / STUDY_FILE),
        "primary": [
            {"goal": asdict(goal), "reached": goal.is_reached(difference), **asdict(difference)}
            for goal, difference in primary(results)
        ],
        "presets": {
            preset: {
                "configuration": config_of(options, preset, ARMS[0], 0).model_dump(mode="json"),
                "arms": {
                    name: {
                        "settings": list(result.arm.settings),
                        "folders": [run.folder for run in result.runs],
                        "made": [dict(run.made) for run in result.runs],
                        "stn": [dict(run.stn) for run in result.runs],
                        "sides": [dict(run.sides) for run in result.runs],
                        "seconds": result.seconds,
                        "cpu_seconds": result.cpu_seconds,
                        "memory_mb": result.mean([run.memory_mb() for run in result.runs]),
                        "volumes_a_minute": result.volumes_a_minute,
                        "predict": [dict(run.measures["predict"]) for run in result.runs],
                        "memory": [dict(run.measures["memory"]) for run in result.runs],
                        "cpu_seconds_to_baseline": _time_to_dice(by_arm, result, "cpu_seconds"),
                        "seconds_to_baseline": _time_to_dice(by_arm, result, "seconds"),
                        "size": dict(result.runs[0].size),
                        "scores": {t: summarize(result.cases, t).to_json() for t in result.targets},
                        "histories": [list(run.history) for run in result.runs],
                    }
                    for name, result in by_arm.items()
                },
                "differences": {
                    metric: [asdict(each) for each in differences(by_arm, _pair_arms(by_arm), metric=metric)]
                    for metric in PAIRED_SCORES
                },
                "further": [asdict(each) for each in differences(by_arm, FURTHER_COMPARISONS)],
                "strata": {
                    stratum: [asdict(each) for each in differences(by_arm, _pair_arms(by_arm), split)]
                    for stratum, split in strata_of(rolls).items()
                },
            }
            for preset, by_arm in results.items()
        },
    }


def _pair_arms(by_arm: Mapping[str, ArmResult]) -> list[tuple[str, str]]:
    return pairs_with_baseline(by_arm, baseline_of(by_arm))


def _time_to_dice(
    by_arm: Mapping[str, ArmResult], result: ArmResult, clock: Clock
) -> dict[str, dict[str, float | None]]:
    """Return, by label and run (``seed-S-fold-F``), the time until the baseline's final validation Dice."""
    baseline = by_arm[baseline_of(by_arm)]
    out = {}
    for label in single_labels(by_arm):
        key = f"dice {label}"
        times = times_to(result, key, goals(baseline, key), clock)
        out[label] = {f"seed-{seed}-fold-{fold}": seconds for (seed, fold), seconds in times.items()}
    return out
