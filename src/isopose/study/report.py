"""The report of a study: tables beside the paper's, figures and raw numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from isopose import __version__
from isopose.errors import IsoposeError
from isopose.evaluation.html import Picture, Section, limits_section, write_report
from isopose.evaluation.tables import to_latex, to_markdown
from isopose.files import read_json, replacing, write_json, write_text
from isopose.study.arms import ARMS
from isopose.study.figures import against_size, box_plots, learning_curves
from isopose.study.plan import Options, config_of
from isopose.study.raw import numbers, runs_csv, scores_csv
from isopose.study.results import COVERAGE, ArmResult, Results, baseline_of, differences, load_results
from isopose.study.tables import (
    cost_table,
    difference_table,
    labels_of,
    paper_table,
    score_table,
    strata_tables,
    time_table,
)

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
    write_text(output / "scores.csv", scores_csv(results))
    write_text(output / "runs.csv", runs_csv(results))
    write_json(output / "study-results.json", numbers(output, options, results))
    return report


def _uneven(results: Mapping[str, ArmResult]) -> tuple[str, ...]:
    """Say where arms were run with different seeds, so that nobody compares their means."""
    seeds: dict[str, list[str]] = {}
    for name, result in results.items():
        seeds.setdefault(", ".join(map(str, sorted({seed for seed, _ in result.places}))), []).append(name)
    if len(seeds) < 2:
        return ()
    ordered = sorted(seeds.items(), reverse=True)
    told = "; ".join(f"seeds {which}: {', '.join(names)}" for which, names in ordered)
    return (
        f"Not all arms were run with the same seeds ({told}), so compare them by the differences below and "
        "not by these means.",
    )


def _preset_sections(output: Path, preset: str, results: Mapping[str, ArmResult]) -> list[Section]:
    baseline = baseline_of(results)
    labels = labels_of(results)
    tables = [
        paper_table(preset, number, [r for r in results.values() if r.arm.table == number], labels)
        for number in (2, 3, 1)
        if any(r.arm.table == number for r in results.values())
    ]
    compared = differences(results, baseline)
    pictures = _pictures(output, preset, results, labels)
    strata = strata_tables(results, baseline)
    return [
        Section(
            f"Preset {preset}: the paper's tables",
            tables=tuple(tables),
            notes=(*_uneven(results), PAPER_NOTE),
        ),
        Section(
            f"Preset {preset}: against {baseline}",
            text=(
                "Dice of each arm minus that of the same patients in "
                f"{baseline}, in points; {COVERAGE:.0%} bootstrap interval over patients; p of Wilcoxon's "
                "signed-rank test, corrected after Holm for all rows of this table. Seeds and folds that "
                "both have.",
            ),
            tables=(difference_table(compared, "Differences by patient"),),
        ),
        Section(f"Preset {preset}: scores", tables=(score_table(results),), pictures=pictures),
        Section(
            f"Preset {preset}: cost",
            text=(
                "Training by stage, by the clock, without preprocessing, which the arms of a fold share. "
                "Memory is what the U-Net's training held at its peak beyond what was there before it: "
                "resident on a CPU, allocated on a GPU.",
            ),
            tables=(cost_table(results), time_table(results, labels, baseline)),
        ),
        *([Section(f"Preset {preset}: by age and size", tables=tuple(strata))] if strata else []),
    ]


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
