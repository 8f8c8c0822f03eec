"""The report of a study: tables beside the paper's, figures and raw numbers."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isopose import __version__
from isopose.errors import IsoposeError
from isopose.evaluation.evaluate import CaseScores
from isopose.evaluation.html import Picture, Section, limits_section, write_report
from isopose.evaluation.summary import METRICS, age_strata, size_strata, summarise
from isopose.evaluation.tables import METRIC_NAMES, NO_VALUE, Cell, Column, Table, to_latex, to_markdown
from isopose.files import read_json, replacing, write_json, write_text
from isopose.models.folder import versions
from isopose.study.arms import ARMS, BASELINE, Published
from isopose.study.figures import against_size, box_plots, learning_curves
from isopose.study.plan import STUDY, Options, config_of
from isopose.study.results import (
    COVERAGE,
    ArmResult,
    Difference,
    Results,
    differences,
    goal,
    load_results,
    time_to,
)

#: Names by which labels are the paper's two.
PAPERS = {"kidney": "kidney", "tumour": "tumour", "tumor": "tumour"}
CAPTIONS = {
    1: "Table 1: from other patients to these",
    2: "Table 2: pose and size against augmentation",
    3: "Table 3: the crop and the size of the U-Net's input",
}
PAPER_NOTE = (
    "The paper's columns are La Barbera et al., ISBI 2021: 80 children with renal tumours, slices of "
    "512 x 512 pixels, one GPU. Another dataset, another machine: they are there to be compared in their "
    "order, not in their height."
)


def write_study_report(output: Path, options: Options) -> Path:
    """Write ``report.html``, ``report.md``, ``tables.tex``, CSVs and JSON of what is finished.

    Returns:
        The HTML report.

    Raises:
        IsoposeError: no run is finished.
    """
    results = load_results(output)
    if not results:
        raise IsoposeError(f"{output}: no run is finished yet, so there is nothing to report")
    sections: list[Section] = []
    for preset, by_arm in results.items():
        sections += _preset_sections(output, preset, by_arm)
    facts = _facts(output, options, results)
    phantom = (options.dataset / "phantom.json").exists()
    limits = limits_section(phantom=phantom, more=(PAPER_NOTE,))
    lead = (
        "The experiment of the paper on this dataset: the same network, the same patients and the same "
        "number of training steps in every arm; arms differ in what they are named for. Dice in per cent, "
        "mean (standard deviation) over patients, in 3D on each scan's own grid, a patient's seeds averaged "
        "first.",
    )
    report = output / "report.html"
    write_report(report, title="isopose study", lead=lead, facts=facts, sections=[*sections, limits])
    figures = sorted(path.name for path in (output / "figures").glob("*.png"))
    write_text(output / "report.md", _markdown(lead, facts, [*sections, limits], figures))
    main = [table for section in sections for table in section.tables if table.caption.startswith("Table")]
    write_text(output / "tables.tex", "\n".join(to_latex(table) for table in main))
    write_text(output / "scores.csv", _scores_csv(results))
    write_text(output / "runs.csv", _runs_csv(results))
    write_json(output / "study-results.json", _json(output, options, results))
    return report


def _preset_sections(output: Path, preset: str, results: Mapping[str, ArmResult]) -> list[Section]:
    baseline = BASELINE if BASELINE in results else next(iter(results))
    labels = _labels(results)
    tables = [
        _paper_table(preset, number, [r for r in results.values() if r.arm.table == number], labels)
        for number in (2, 3, 1)
        if any(r.arm.table == number for r in results.values())
    ]
    compared = differences(results, baseline)
    pictures = _pictures(output, preset, results, labels)
    return [
        Section(f"Preset {preset}: the paper's tables", tables=tuple(tables), notes=(PAPER_NOTE,)),
        Section(
            f"Preset {preset}: against {baseline}",
            text=(
                "Dice of each arm minus that of the same patients in "
                f"{baseline}, in points; {COVERAGE:.0%} bootstrap interval over patients; p of Wilcoxon's "
                "signed-rank test, corrected after Holm for all rows of this table.",
            ),
            tables=(_difference_table(compared),),
        ),
        Section(f"Preset {preset}: scores", tables=(_score_table(results),), pictures=pictures),
        Section(
            f"Preset {preset}: cost",
            text=(
                "Training by stage, by the clock, without preprocessing, which the arms of a fold share. "
                "Memory is what the U-Net's training held at its peak beyond what was there before it: "
                "resident on a CPU, allocated on a GPU.",
            ),
            tables=(_cost_table(results), _time_table(results, labels, baseline)),
        ),
        *_strata_sections(preset, results),
    ]


def _labels(results: Mapping[str, ArmResult]) -> tuple[str, ...]:
    """Single labels, in their order, without unions."""
    return tuple(t for t in next(iter(results.values())).targets if "+" not in t)


def _paper_table(preset: str, number: int, results: Sequence[ArmResult], labels: Sequence[str]) -> Table:
    """One of the paper's tables: ours, then the paper's row."""
    papers = [label for label in labels if label in PAPERS]
    columns = (
        Column("Architecture", text=True),
        Column("Training time", text=True),
        *((Column("U-Net input", text=True), Column("Memory (MB)")) if number == 3 else ()),
        *(Column(f"Dice {label}", text=True) for label in labels),
        Column("Paper: training", text=True),
        *((Column("Paper: memory (GB)", 2),) if number == 3 else ()),
        *(Column(f"Paper: Dice {label}", text=True) for label in papers),
    )
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        published = result.arm.published
        memory = result.mean([run.memory_mb() for run in result.runs])
        rows.append(
            (
                result.arm.title,
                _clock(result.seconds) if result.runs[0].history else "none",
                *((_input(result), memory) if number == 3 else ()),
                *(_spread(result, label) for label in labels),
                _clock(3600.0 * published.hours) if published and published.hours else NO_VALUE,
                *((published.memory_gb if published else None,) if number == 3 else ()),
                *(_published(published, label) for label in papers),
            )
        )
    return Table(f"{CAPTIONS[number]} ({preset} preset)", columns, tuple(rows))


def _input(result: ArmResult) -> str:
    return result.arm.name.removeprefix("crop-")


def _spread(result: ArmResult, target: str) -> str:
    """Mean (sd) in per cent over patients."""
    statistic = summarise(result.cases, target).dice
    if statistic.mean is None:
        return NO_VALUE
    return f"{100 * statistic.mean:.2f}" + (
        f" ({100 * statistic.sd:.2f})" if statistic.sd is not None else ""
    )


def _published(published: Published | None, label: str) -> str:
    if published is None:
        return NO_VALUE
    mean, sd = getattr(published, PAPERS[label])
    return f"{mean:.2f} ({sd:.2f})"


def _difference_table(compared: Sequence[Difference]) -> Table:
    columns = (
        Column("Arm", text=True),
        Column("Target", text=True),
        Column("Patients"),
        Column("Difference (points)", 1),
        Column(f"{COVERAGE:.0%} interval", text=True),
        Column("Better for"),
        Column("p (Holm)", 4),
    )
    rows = tuple(
        (
            each.arm,
            each.target,
            each.patients,
            100 * each.mean,
            f"{100 * each.low:+.1f} to {100 * each.high:+.1f}",
            each.better,
            each.p_value,
        )
        for each in compared
    )
    return Table("Differences by patient", columns, rows)


def _score_table(results: Mapping[str, ArmResult]) -> Table:
    columns = (
        Column("Arm", text=True),
        Column("Target", text=True),
        Column("Patients"),
        *(Column(f"{METRIC_NAMES[m]}: {what}", 1 if m == "hd95_mm" else 3)
          for m in METRICS for what in ("mean", "sd", "median", "worst")),
        Column("Missed"),
    )  # fmt: skip
    rows = []
    for name, result in results.items():
        for target in result.targets:
            summary = summarise(result.cases, target)
            values: list[Cell] = []
            for metric in METRICS:
                statistic = getattr(summary, metric)
                values += [statistic.mean, statistic.sd, statistic.median, statistic.worst]
            rows.append((name, target, summary.dice.patients, *values, summary.missed))
    return Table(
        "Scores over patients",
        columns,
        tuple(rows),
        notes=("worst and missed: of single scans in single runs; a patient's seeds are averaged elsewhere",),
    )


def _cost_table(results: Mapping[str, ArmResult]) -> Table:
    columns = (
        Column("Arm", text=True),
        Column("Runs"),
        Column("Training by stage", text=True),
        Column("CPU seconds"),
        Column("Memory of the U-Net (MB)"),
        Column("Peak of the process (MB)"),
        Column("Parameters", text=True),
        Column("Multiply-adds a slice", text=True),
        Column("Volumes predicted a minute", 1),
    )
    rows = []
    for name, result in results.items():
        stages = {
            stage: result.mean([run.seconds().get(stage) for run in result.runs])
            for stage in result.runs[0].seconds()
        }
        peaks = [v["peak_mb"] for run in result.runs for v in run.measures["memory"].values()]
        size = result.runs[0].size
        rows.append(
            (
                name,
                len(result.runs),
                ", ".join(f"{stage} {_clock(value or 0.0)}" for stage, value in stages.items()) or "none",
                result.cpu_seconds if stages else None,
                result.mean([run.memory_mb() for run in result.runs]),
                max(peaks) if peaks else None,
                f"{size['parameters'] / 1e6:.2f} M",
                f"{size['unet_multiply_adds'] / 1e9:.2f} G",
                result.volumes_a_minute,
            )
        )
    return Table("Cost", columns, tuple(rows))


def _time_table(results: Mapping[str, ArmResult], labels: Sequence[str], baseline: str) -> Table:
    """Time until an arm holds the validation Dice at which the baseline ends."""
    columns = (Column("Arm", text=True), *(Column(f"until {label}", text=True) for label in labels))
    goals = {label: goal(results[baseline], f"dice {label}") for label in labels}
    rows = []
    for name, result in results.items():
        if not result.runs[0].history:
            continue
        cells = []
        for label in labels:
            score = goals[label]
            seconds, count = (None, 0) if score is None else time_to(result, f"dice {label}", score)
            part = "" if count in (0, len(result.runs)) else f" ({count} of {len(result.runs)} runs)"
            cells.append("not reached" if seconds is None else _clock(seconds) + part)
        rows.append((name, *cells))
    peers = any(result.arm.peer for result in results.values())
    told = ", ".join(f"{label} {score:.3f}" for label, score in goals.items() if score is not None)
    return Table(
        f"Training until the validation Dice at which {baseline} ends",
        columns,
        tuple(rows),
        notes=(
            f"validation Dice to hold for three epochs: {told}; pose and crop included, validation not",
            *(("nnU-Net's is over all slices at once and not by patient: not comparable in height",) * peers),
        ),
    )


def _strata_sections(preset: str, results: Mapping[str, ArmResult]) -> list[Section]:
    """Mean Dice by age and by size."""
    tables = []
    for what, split in (("age", age_strata), ("body size", size_strata)):
        groups = {name: split(result.cases) for name, result in results.items()}
        names = list(dict.fromkeys(stratum for of_arm in groups.values() for stratum in of_arm))
        if len(names) < 2:
            continue
        columns = (Column("Arm", text=True), Column("Target", text=True), *(Column(n, 3) for n in names))
        rows = tuple(
            (name, target, *(_mean_dice(groups[name].get(stratum, ()), target) for stratum in names))
            for name, result in results.items()
            for target in result.targets
        )
        tables.append(Table(f"Dice by {what}", columns, rows))
    return [Section(f"Preset {preset}: by age and size", tables=tuple(tables))] if tables else []


def _mean_dice(cases: Sequence[CaseScores], target: str) -> float | None:
    return summarise(cases, target).dice.mean if cases else None


def _pictures(
    output: Path, preset: str, results: Mapping[str, ArmResult], labels: tuple[str, ...]
) -> tuple[Picture, ...]:
    """Figures, which are also written as files, and the steps of three patients."""
    drawn = {
        "boxes": (box_plots(results), "Dice of each patient by arm; the values are in scores.csv.",
                  "A dot is a patient, the box holds the middle half, the bar is the median."),
        "curves": (learning_curves(results, labels),
                   "Validation Dice against minutes of training, a line a run.",
                   "Validation Dice, the mean of three epochs, against the time of training."),
        "size": (against_size(results), "Dice of each scan against the body's width, with running medians.",
                 "Dice against body size: a dot is a scan of a run, the line a running median."),
    }  # fmt: skip
    pictures = []
    for name, (data, alt, caption) in drawn.items():
        if data is not None:
            with replacing(output / "figures" / f"{preset}-{name}.png") as path:
                path.write_bytes(data)
            pictures.append(Picture(data, alt, caption))
    for arm in ("crop-half", "crop-full", "pose", *results):
        run = results[arm].runs[0] if arm in results else None
        if run is not None and run.shown:
            for place, case in run.shown.items():
                path = output / run.folder / "shown" / "steps" / f"{case}.png"
                if path.exists():
                    pictures.append(
                        Picture(
                            path.read_bytes(),
                            f"Input, homogenised slice, crop, prediction and restored labels of {case}",
                            f"{case}, the {place} patient of {arm} (seed {run.seed}), step by step as in the "
                            "paper's Figure 3",
                        )
                    )
            break
    return tuple(pictures)


def _facts(output: Path, options: Options, results: Results) -> dict[str, str]:
    runs = [run for by_arm in results.values() for result in by_arm.values() for run in result.runs]
    patients = {case.patient for run in runs for case in run.evaluation.cases}
    facts = {"Runs": str(len(runs)), "Test patients": str(len(patients))}
    for preset in results:
        steps = config_of(options, preset, ARMS[0], 0).unet.optimiser
        facts[f"U-Net steps ({preset})"] = f"{steps.epochs * steps.iterations} of {steps.batch_size} slices"
    return facts | {"Device": _device(output, runs[0].folder), "isopose": __version__}


def _device(output: Path, folder: str) -> str:
    return str(read_json(output / folder / "result.json")["device"])


def _markdown(
    lead: Sequence[str], facts: Mapping[str, str], sections: Sequence[Section], figures: Sequence[str]
) -> str:
    lines = ["# isopose study", "", *lead, "", *(f"* {name}: {value}" for name, value in facts.items()), ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.text:
            lines += [paragraph, ""]
        for table in section.tables:
            lines += [to_markdown(table), ""]
        for note in (*section.notices, *section.notes):
            lines += [note, ""]
    lines += ["## Figures", "", *(f"![{Path(name).stem}](figures/{name})\n" for name in figures)]
    return "\n".join(lines).rstrip() + "\n"


def _scores_csv(results: Results) -> str:
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


def _runs_csv(results: Results) -> str:
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


def _json(output: Path, options: Options, results: Results) -> dict[str, Any]:
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
                "differences": [
                    asdict(each)
                    for each in differences(by_arm, BASELINE if BASELINE in by_arm else next(iter(by_arm)))
                ],
            }
            for preset, by_arm in results.items()
        },
    }


def _clock(seconds: float) -> str:
    """Hours and minutes; below an hour minutes and seconds."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = math.floor(seconds / 60 + 0.5)
    return f"{minutes // 60} h {minutes % 60:02d} min"
