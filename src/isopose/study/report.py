"""The report of a study: tables beside the paper's, figures and raw numbers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from isopose.errors import IsoposeError
from isopose.evaluation.metrics import METRICS
from isopose.files import replacing, write_json, write_text
from isopose.io.datasets import open_dataset
from isopose.io.truth import true_rolls
from isopose.report.html import Picture, ReportSection, limits_section, write_report
from isopose.report.tables import Table, to_latex, to_markdown
from isopose.study.arms import ARMS, FURTHER_COMPARISONS
from isopose.study.figures import against_size, box_plots, learning_curves
from isopose.study.lengths import Length
from isopose.study.pace import pace_table, time_table
from isopose.study.plan import Options, arms_of, config_of, jobs_of, patients_of
from isopose.study.protocol import GOALS, primary
from isopose.study.raw import numbers, runs_csv, scores_csv
from isopose.study.results import (
    PAIRED_SCORES,
    ArmResult,
    Results,
    SeedAndFold,
    StudyRun,
    baseline_of,
    differences,
    load_results,
    load_sources,
    pairs_with_baseline,
)
from isopose.study.statistics import COVERAGE
from isopose.study.stns import lengths_by_arm, notes_of, stn_table
from isopose.study.strata import group_tables
from isopose.study.tables import (
    PAPER_NOTE,
    cost_table,
    difference_table,
    failure_table,
    goal_table,
    in_table,
    paper_table,
    score_table,
    single_labels,
)
from isopose.version import __version__


def write_study_report(output: Path, options: Options) -> Path:
    """Write ``report.html``, ``report.md``, ``tables.tex``, CSV and JSON files of all finished runs.

    Returns:
        The HTML report.

    Raises:
        IsoposeError: no run is finished.
    """
    results = load_results(output)
    if not results:
        raise IsoposeError(f"{output}: no run is finished yet, so there is nothing to report")
    sections = _make_primary_section(results)
    rolls = true_rolls(open_dataset(options.dataset, options.labels).root)
    figures: dict[str, Picture] = {}
    for preset, by_arm in results.items():
        pictures = _draw_pictures(output, preset, by_arm)
        figures |= pictures
        lengths = lengths_by_arm(options, preset, by_arm)
        twins = _note_twins(options, preset)
        sections += _make_preset_sections(preset, by_arm, pictures, twins, lengths, rolls)
    for name, picture in figures.items():
        with replacing(output / "figures" / name) as path:
            path.write_bytes(picture.data)
    facts = _collect_facts(options, results)
    phantom = (options.dataset / "phantom.json").exists()
    if phantom:
        facts["Patients"] = "synthetic phantoms, no real patients"
    limits = limits_section(phantom=phantom, more=(PAPER_NOTE,))
    lead = (
        "The paper's experiment on this dataset. All arms have the same patients and the same number of "
        "training steps. They use the same network, except nnU-Net's arms, which use nnU-Net's own. Each arm "
        "differs only in what its name says. Dice is in percent in Tables 1 to 3, and between 0 and 1 "
        "elsewhere. It is computed in 3D on each scan's own grid and averaged over each patient's seeds; "
        "then mean (standard deviation) over patients.",
    )
    report = output / "report.html"
    write_report(report, title="isopose study", lead=lead, facts=facts, sections=[*sections, limits])
    write_text(output / "report.md", _to_markdown(lead, facts, [*sections, limits], figures))
    main = [table for section in sections for table in section.tables if table.caption.startswith("Table")]
    write_text(output / "tables.tex", "\n".join(to_latex(table) for table in main))
    write_text(output / "scores.csv", scores_csv(results))
    write_text(output / "runs.csv", runs_csv(results, load_sources(output)))
    write_json(output / "study-results.json", numbers(output, options, results))
    return report


def _note_uneven_runs(results: Mapping[str, ArmResult]) -> tuple[str, ...]:
    """Return a note if arms have different seeds or folds, because their means are then not comparable."""
    runs: dict[str, list[str]] = {}
    for name, result in results.items():
        runs.setdefault(_format_places(result.places), []).append(name)
    if len(runs) < 2:
        return ()
    summary = "; ".join(f"{which}: {', '.join(names)}" for which, names in sorted(runs.items(), reverse=True))
    return (
        f"Not all arms were run with the same seeds and folds ({summary}): compare the arms by the "
        "differences by patient, not by these means.",
    )


def _format_places(places: Collection[SeedAndFold]) -> str:
    """Return seeds, and their folds if there are several, as text."""
    seeds = sorted({seed for seed, _ in places})
    folds = {seed: sorted(fold for s, fold in places if s == seed) for seed in seeds}
    if all(of_seed == [0] for of_seed in folds.values()):
        return f"seeds {', '.join(map(str, seeds))}"
    return ", ".join(f"seed {seed} folds {' '.join(map(str, folds[seed]))}" for seed in seeds)


def _describe_machine(run: StudyRun) -> str:
    """Return hardware and versions of a run, as far as it recorded them."""
    if "processor" not in run.made:
        return "not recorded"
    made = run.made
    versions = ", ".join(f"{key} {made[key]}" for key in ("isopose", "torch", "nnunetv2") if key in made)
    return f"{made['device']}, {made['processor']}, {made['threads']} threads; {versions}"


def _note_machines(results: Mapping[str, ArmResult]) -> tuple[str, ...]:
    """Return a note if runs come from different machines, because their times are then not comparable."""
    # nnU-Net's version is only in its own arms.
    made = {
        _describe_machine(run).partition(", nnunetv2")[0]
        for result in results.values()
        for run in result.runs
    }
    if len(made) < 2 and made != {"not recorded"}:
        return ()
    machines = " | ".join(sorted(made))
    return (
        f"These runs may come from different machines or versions ({machines}), so their times and memory "
        "may not be comparable; runs.csv lists the machine and the versions of each run.",
    )


def _make_paper_table(
    preset: str,
    number: int,
    results: Mapping[str, ArmResult],
    labels: Sequence[str],
    lengths: Mapping[str, Mapping[str, Length]],
) -> Table:
    """Return one of the paper's tables, with notes on the runs in it."""
    inside = {name: result for name, result in results.items() if in_table(result, number)}
    notes = (*notes_of(preset, inside, lengths), *_note_uneven_runs(inside), *_note_machines(inside))
    return paper_table(preset, number, list(inside.values()), labels, notes)


def _make_preset_sections(
    preset: str,
    results: Mapping[str, ArmResult],
    drawn: Mapping[str, Picture],
    twins: Sequence[str],
    lengths: Mapping[str, Mapping[str, Length]],
    rolls: Mapping[str, float],
) -> list[ReportSection]:
    baseline = baseline_of(results)
    labels = single_labels(results)
    tables = [
        _make_paper_table(preset, number, results, labels, lengths)
        for number in (2, 3, 1)
        if any(r.arm.table == number for r in results.values())
    ]
    pictures = tuple(drawn.values())
    strata = group_tables(results, baseline, rolls)
    stns, of_stns = stn_table(results, lengths), notes_of(preset, results, lengths)
    return [
        ReportSection(
            f"Preset {preset}: the paper's tables",
            notices=of_stns,
            tables=tuple(tables),
            notes=tuple(twins),
        ),
        *([_make_stn_section(preset, stns)] if stns else []),
        _make_comparison_section(preset, results, baseline),
        ReportSection(
            f"Preset {preset}: scores",
            tables=(score_table(results), failure_table(results)),
            pictures=pictures,
        ),
        _make_cost_section(preset, results, baseline),
        *([ReportSection(f"Preset {preset}: by group of patients", tables=tuple(strata))] if strata else []),
    ]


def _make_comparison_section(preset: str, results: Mapping[str, ArmResult], baseline: str) -> ReportSection:
    """Return a section on the differences from the baseline and between other arms."""
    compared = [
        difference_table(
            differences(results, pairs_with_baseline(results, baseline), metric=metric),
            f"{METRICS[metric].title}: differences by patient",
        )
        for metric in PAIRED_SCORES
    ]
    further = differences(results, FURTHER_COMPARISONS)
    if further:
        compared.append(difference_table(further, "Dice: differences between other arms"))
    return ReportSection(
        f"Preset {preset}: against {baseline}",
        text=(
            f"Scores of each arm minus those of {baseline} for the same patients, in percentage points, over "
            f"the seeds and folds that both arms have. The {COVERAGE:.0%} interval is a bootstrap over "
            "patients and seeds. With one seed it does not include the variance between trainings; with two "
            "it estimates that variance poorly. p tests the patients' means over seeds.",
        ),
        tables=tuple(compared),
    )


def _make_cost_section(preset: str, results: Mapping[str, ArmResult], baseline: str) -> ReportSection:
    """Return a section on time, memory, and validation Dice along training."""
    labels = single_labels(results)
    peers = {name: result for name, result in results.items() if result.arm.peer}
    return ReportSection(
        f"Preset {preset}: cost",
        text=(
            "Training time is the wall-clock time of each stage, without preprocessing, which the arms "
            "share. Memory is the peak during the U-Net's training minus the memory in use before it: "
            "resident memory on a CPU, allocated memory on a GPU. The training time includes validation; the "
            "time to reach a Dice does not. runs.csv lists the folder of each run.",
        ),
        notices=_note_machines(results),
        tables=(
            cost_table(results),
            pace_table(results, labels, baseline),
            time_table(results, labels, baseline),
            *([time_table(peers, labels, "nnunet")] if "nnunet" in peers and baseline != "nnunet" else []),
        ),
    )


def _make_primary_section(results: Results) -> list[ReportSection]:
    """Return the comparisons that were decided beforehand, if any of them was run."""
    found = primary(results)
    if not found:
        return []
    text = (
        f"These comparisons were decided before the study was run (docs/study.md): {len(GOALS)} goals, of "
        f"which {len(found)} were run. All other comparisons in this report are secondary."
    )
    return [ReportSection("Primary comparisons", text=(text,), tables=(goal_table(found),))]


def _make_stn_section(preset: str, table: Table) -> ReportSection:
    """Return a section on the training length of STN1 and STN2 and the roll errors of STN1."""
    return ReportSection(
        f"Preset {preset}: STN1 and STN2",
        text=(
            "A study shortens only the U-Net, because STN1 learns size first and rotation last. Its "
            "validation score, the overlap of the masks, does not show whether it has learned rotation: a "
            "trunk that is rotated by ten degrees has an overlap of 0.95 to 0.98 with an upright one.",
        ),
        tables=(table,),
    )


def _draw_pictures(output: Path, preset: str, results: Mapping[str, ArmResult]) -> dict[str, Picture]:
    """Return file name to figure: scores, curves, and the steps of three patients."""
    peers = any(result.arm.peer for result in results.values())
    drawn = {
        "boxes": (box_plots(results), "Dice of each patient by arm; the values are in scores.csv.",
                  "Each dot is a patient. The box shows the quartiles, the line in it the median."),
        "curves": (learning_curves(results, single_labels(results)),
                   "Validation Dice against CPU seconds of training, with bands over seeds.",
                   "Validation Dice (mean of three epochs) against CPU seconds of training: the mean of the "
                   "runs, and a band from the lowest to the highest, where all runs have values."
                   + " nnU-Net (dashed) computes it over all slices together, not by patient: not comparable "
                   "with the other arms." * peers),
        "size": (against_size(results), "Dice of each scan against the body's width, with running medians.",
                 "Dice against body width in some arms. Each dot is a scan of one run; the line is a running "
                 "median."),
    }  # fmt: skip
    pictures = {
        f"{preset}-{name}.png": Picture(data, alt, caption)
        for name, (data, alt, caption) in drawn.items()
        if data is not None
    }
    for arm in ("crop-half", "crop-full", "pose", *results):
        run = results[arm].runs[0] if arm in results else None
        if run is not None and run.shown:
            for place, case in run.shown.items():
                path = output / run.folder / "shown" / "steps" / f"{case}.png"
                if path.exists():
                    pictures[f"{preset}-steps-{place}.png"] = Picture(
                        path.read_bytes(),
                        f"Input, homogenized slice, crop, prediction and restored labels of {case}",
                        f"{case}, the {place} patient of {run.folder}, step by step as in the paper's "
                        "Figure 3.",
                    )
            break
    return pictures


def _note_twins(options: Options, preset: str) -> list[str]:
    """Return notes on arms that are not run because an earlier arm has the same configuration."""
    _, twins = jobs_of(replace(options, presets=(preset,)), arms_of(options, None))
    return [
        f"{twin} has the same configuration as {name} and is not run again." for twin, name in twins.items()
    ]


def _collect_facts(options: Options, results: Results) -> dict[str, str]:
    """Return facts about the patients, beside the paper's, and the training."""
    runs = [run for by_arm in results.values() for result in by_arm.values() for run in result.runs]
    scans = list({case.case: case for run in runs for case in run.evaluation.cases}.values())
    facts = {
        "Runs": str(len(runs)),
        "Channels": ", ".join(open_dataset(options.dataset, options.labels).channels),
        "Training and validation patients": _count_patients(options),
        "Test patients": str(len({case.patient for case in scans})),
    }
    for name, unit, values in (
        (
            "Ages of the test patients",
            "years",
            [case.age_years for case in scans if case.age_years is not None],
        ),
        (
            "Body widths of the test patients",
            "mm",
            [c.body_size_mm for c in scans if c.body_size_mm is not None],
        ),
    ):
        if values:
            facts[name] = f"{min(values):.3g} to {max(values):.3g} {unit}"
    for preset in results:
        steps = config_of(options, preset, ARMS[0], 0).unet.optimizer
        facts[f"U-Net steps ({preset})"] = f"{steps.epochs * steps.iterations} of {steps.batch_size} slices"
    machines = sorted({_describe_machine(run) for run in runs})
    return facts | {
        "Hardware and versions": " | ".join(machines),
        "Report written by": f"isopose {__version__}",
    }


def _count_patients(options: Options) -> str:
    """Return the number of training and validation patients; it may differ between folds."""
    numbers = set()
    for fold in range(options.folds):
        cases = [case for case in patients_of(options, fold).cases if case.label is not None]
        numbers.add(len({case.patient for case in cases if case.split != "test"}))
    return " or ".join(map(str, sorted(numbers))) + " in each fold" * (options.folds > 1)


def _to_markdown(
    lead: Sequence[str],
    facts: Mapping[str, str],
    sections: Sequence[ReportSection],
    figures: Mapping[str, Picture],
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
    lines += ["## Figures", ""]
    for name, picture in figures.items():
        lines += [
            f"![{picture.alt}](figures/{name})",
            "",
            f"*{name.removesuffix('.png')}.* {picture.caption}",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"
