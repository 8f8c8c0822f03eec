"""``isopose demo``: the whole pipeline on a phantom cohort, ending with a report."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isopose.choices import Modality
from isopose.config import Config
from isopose.errors import IsoposeError
from isopose.evaluation.evaluate import Evaluation, evaluate
from isopose.evaluation.summary import compare, summarize
from isopose.inference.files import predict_scans
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.scans import find_scans
from isopose.models.folder import Model
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.progress import Reporter
from isopose.report.html import (
    Picture,
    ReportSection,
    comparison_section,
    evaluation_sections,
    limits_section,
    write_report,
)
from isopose.report.plots import training_curves
from isopose.report.steps import write_steps
from isopose.report.tables import write_evaluation
from isopose.training.fit import fit
from isopose.version import __version__

#: Number of patients, fraction of test patients, slices per patient and pixels per side.
CASES, TEST_FRACTION, SLICES, SIZE = 50, 0.2, 20, 192

#: A reduced default preset, which two cores train in a few minutes.
SMALL_PRESET: Mapping[str, Any] = {
    "data": {"size": 192},
    "pose": {"size": 64, "optimizer": {"epochs": 4, "min_epochs": 4, "iterations": 40}},
    "crop": {"size": 64, "optimizer": {"epochs": 8, "min_epochs": 8, "iterations": 40}},
    "unet": {"base_features": 16, "optimizer": {"epochs": 6, "min_epochs": 6, "iterations": 70}},
    "train": {"validation_slices": 100},
}

#: The same network, number of steps and jitter at the same size, on slices that are not homogenized. Without
#: the jitter the comparison would credit homogenization with augmentation (0.05 of kidney, 0.06 of tumor
#: Dice).
NOT_HOMOGENIZED_PRESET: Mapping[str, Any] = {
    **SMALL_PRESET,
    "pose": {"start": "identity", "learned": False, "size": 64},
    "crop": {"enabled": False},
}


@dataclass(frozen=True)
class ScoredModel:
    """One of the two trained models and its scores on the test patients."""

    name: str
    folder: Path
    model: Model
    evaluation: Evaluation
    seconds: float


def run_demo(output: Path, *, workers: int, seed: int, reporter: Reporter, modality: Modality = "ct") -> Path:
    """Make phantoms, train with and without homogenization, predict unseen patients, score and report.

    Finished steps of an interrupted run are not repeated.

    Args:
        output: folder for everything, including ``report.html``.
        workers: number of processes for phantoms and preprocessing.
        seed: of the cohort and of training.
        reporter: receives progress.
        modality: of the phantoms.

    Returns:
        The report's path.

    Raises:
        InputError: the folder holds a demo with other phantoms.
    """
    with reporter.counting("phantoms") as progress:
        cohort = write_cohort(
            output / "cohort",
            cases=CASES,
            slices=SLICES,
            size=SIZE,
            seed=seed,
            test_fraction=TEST_FRACTION,
            modality=modality,
            workers=workers,
            progress=progress,
        )
    dataset = open_dataset(cohort)
    settings = [f"train.seed={seed}"]
    arms = [
        _arm(name, output, dataset, load_config(base=dict(base), settings=settings), workers, reporter)
        for name, base in (("with", SMALL_PRESET), ("without", NOT_HOMOGENIZED_PRESET))
    ]
    report = output / "report.html"
    _write(report, dataset, arms[0], arms[1])
    for arm in arms:
        reporter.say(f"{arm.name:>7} homogenization: {_line(arm.evaluation)}  ({arm.seconds:.0f} s)")
    reporter.say("these results are from phantoms and say nothing about patients")
    return report


def _arm(
    name: str, output: Path, dataset: Dataset, config: Config, workers: int, reporter: Reporter
) -> ScoredModel:
    started = time.monotonic()
    folder = output / name
    reporter.say(f"--- {name} homogenization")
    model = fit(
        dataset,
        folder / "model",
        config,
        resume=True,
        store=output / "store",
        workers=workers,
        reporter=reporter,
    )
    scans = find_scans([dataset.root / "imagesTs"])
    outcomes = predict_scans(
        model, scans, folder / "predictions", probabilities=False, reporter=reporter, steps=write_steps
    )
    failed = [outcome.problem for outcome in outcomes if outcome.problem]
    if failed:
        raise IsoposeError(f"demo: {len(failed)} test patients could not be predicted: {failed[0]}")
    with reporter.counting("evaluate") as progress:
        evaluation = evaluate(
            folder / "predictions", dataset, cases=[scan.name for scan in scans], progress=progress
        )
    write_evaluation(evaluation, folder / "scores")
    return ScoredModel(name, folder, model, evaluation, time.monotonic() - started)


def _write(report: Path, dataset: Dataset, ours: ScoredModel, plain: ScoredModel) -> None:
    ages = [case.age_years for case in dataset.cases if case.age_years is not None]
    training = ours.model.info.training
    order = sorted(ours.evaluation.cases, key=lambda case: _dice(case.scores["tumor"].dice))
    cases_shown = {"worst": order[0].case, "median": order[len(order) // 2].case, "best": order[-1].case}
    pictures = tuple(
        Picture(
            (ours.folder / "predictions" / "steps" / f"{case}.png").read_bytes(),
            alt=f"Input, homogenized slice, crop, prediction and restored labels of {case}",
            caption=f"{case}, the {place} tumor Dice of the test patients",
        )
        for place, case in cases_shown.items()
    )
    curves = tuple(
        Picture(
            training_curves(arm.model.info.history),
            alt=f"Loss of each stage {arm.name} homogenization",
            caption=f"{arm.name.capitalize()} homogenization",
        )
        for arm in (ours, plain)
    )
    steps, crop = ours.model.config.unet.optimizer, ours.model.config.crop.optimizer
    whole = load_config().crop.optimizer
    write_report(
        report,
        title="isopose demo",
        lead=(
            "A U-Net trained on slices brought to one pose and size, and the same network trained for the "
            "same number of steps on the original slices, both scored on phantom patients that neither "
            "has seen."
        ),
        facts={
            "Training patients": str(training.patients),
            "Validation patients": str(training.validation_cases),
            "Test patients": str(len(ours.evaluation.cases)),
            "Images": dataset.channels[0],
            "Age": f"{min(ages):.1f} to {max(ages):.1f} years",
            "U-Net steps": f"{steps.epochs * steps.iterations} of {steps.batch_size} slices",
            "STN2 steps": f"{crop.epochs * crop.iterations} of {crop.batch_size} slices: shortened, the "
            f"default preset has {whole.epochs * whole.iterations}",
            "STN1": "not trained here: the shipped roll network and moments give the pose, so this demo does "
            "not test the paper preset",
            "isopose": __version__,
        },
        sections=[
            comparison_section(compare(plain.evaluation, ours.evaluation)),
            ReportSection(
                "Step by step",
                text=(
                    "As in the paper's Figure 3. The blue square on the input becomes the homogenized slice. "
                    "The pink line is the reference patient's outline; the orange square is the crop.",
                ),
                pictures=pictures,
            ),
            *evaluation_sections(ours.evaluation),
            ReportSection("Training", pictures=curves),
            limits_section(phantom=True),
        ],
    )


def _line(evaluation: Evaluation) -> str:
    parts = []
    for target in evaluation.targets:
        statistic = summarize(evaluation.cases, target).statistics["dice"]
        parts.append(f"{target} Dice {statistic.mean:.3f} ({statistic.sd:.3f})")
    return "  ".join(parts)


def _dice(value: float | None) -> float:
    return -1.0 if value is None else value
