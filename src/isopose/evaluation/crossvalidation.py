"""Cross-validation: score each patient by the fold that did not see it, and make one model of the folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isopose.config import Config
from isopose.data.drawn import classes_of
from isopose.data.splits import split
from isopose.devices import choose_device
from isopose.errors import InputError, IsoposeError
from isopose.evaluation.cleaning import Counts, Decision, candidates, count, decide
from isopose.evaluation.evaluate import Evaluation, evaluate
from isopose.files import only_writer, read_json, write_json
from isopose.inference.ensemble import Ensemble, is_model, save_ensemble
from isopose.inference.files import predict_scans
from isopose.inference.record import recorded_midline
from isopose.io.cases import Case
from isopose.io.datasets import Dataset
from isopose.io.images import read_labels
from isopose.io.scans import scan_of
from isopose.labels import IGNORED, Labels
from isopose.models.folder import Model, for_prediction, load_model
from isopose.progress import Reporter, Silent
from isopose.training.folds import fold_folder, of_fold

#: The scores, in the model's folder.
SCORES = "cross-validation.json"
#: The label maps that were scored, in the model's folder.
PREDICTIONS = Path("work") / "cross-validation"


@dataclass(frozen=True)
class _Unseen:
    """A patient's scan, the fold that did not see it, and how it predicted it."""

    case: Case
    model: Model
    record: Mapping[str, Any]


def cross_validate(
    dataset: Dataset, folder: Path, config: Config, *, workers: int = 0, reporter: Reporter | None = None
) -> Evaluation:
    """Predict and score each patient with the fold that was not trained on it, and join the folds to a model.

    Writes ``folder/cross-validation.json``, and last ``folder/model.json``, which names the folds and the
    postprocessing rules that the scores decide. Finished predictions are not repeated. The scores are those
    of the label maps before postprocessing.

    Args:
        dataset: dataset with which the folds were trained.
        folder: folder in which :func:`isopose.training.folds.fit_folds` has trained all folds.
        config: configuration with which they were trained.
        workers: number of scans scored at once.
        reporter: receives progress.

    Raises:
        BusyError: another process cross-validates in the folder.
        InputError: a scan differs from the one in the training of the folds.
        IsoposeError: a scan cannot be predicted.
    """
    reporter = reporter or Silent()
    with only_writer(folder):
        if is_model(folder):
            return Evaluation.from_json(read_json(folder / SCORES))
        folds = range(config.train.folds)
        device = choose_device(config.train.device)
        members = [load_model(fold_folder(folder, fold), device) for fold in folds]
        validation_cases = [split(dataset, of_fold(config, fold).train)[1] for fold in folds]
        unseen = _predict(members, validation_cases, folder / PREDICTIONS, reporter)
        with reporter.counting("score") as progress:
            evaluation = evaluate(
                folder / PREDICTIONS,
                dataset,
                cases=[one.case.id for one in unseen],
                undrawn=config.data.undrawn,
                workers=workers,
                progress=progress,
            )
        decision = _decide(unseen, dataset.labels, folder / PREDICTIONS, reporter)
        write_json(folder / SCORES, evaluation.to_json())
        names = [fold_folder(folder, fold).name for fold in folds]
        save_ensemble(folder, Ensemble(tuple(members), decision.rules), names, decision.evidence)
        for rule in decision.rules:
            reporter.say(f"cleaning up {rule.label}: {rule}")
        return evaluation


def _predict(
    members: Sequence[Model], validation_cases: Sequence[Sequence[Case]], output: Path, reporter: Reporter
) -> list[_Unseen]:
    """Predict each fold's validation cases with its model."""
    unseen: list[_Unseen] = []
    total = sum(map(len, validation_cases))
    with reporter.counting("cross-validate") as progress:
        for member, cases in zip(members, validation_cases, strict=True):
            fused, validated = for_prediction(member), member.info.training.validation_images_sha256
            for case in cases:
                [outcome] = predict_scans(
                    fused, [scan_of(case)], output, probabilities=False, reporter=Silent()
                )
                if outcome.record is None:
                    raise IsoposeError(f"{case.id}: cannot be cross-validated ({outcome.problem})")
                if outcome.record["input_sha256"] not in validated:
                    raise InputError(
                        f"{case.id}: the scan was changed since its fold was trained; train in another folder"
                    )
                unseen.append(_Unseen(case, member, outcome.record))
                progress(len(unseen), total)
    return unseen


def _decide(unseen: Sequence[_Unseen], labels: Labels, predictions: Path, reporter: Reporter) -> Decision:
    """Decide which rules clean up the labels."""
    config = unseen[0].model.config
    # Only a reference that was turned upright and centered has its midline at x = 0; sagittal slices lie
    # beside it.
    plane = config.data.plane
    sides = config.pose_estimated and config.pose.fill is not None and plane != "sagittal"
    rules = [rule for label in labels.names for rule in candidates(label, sides=sides)]
    counts: list[Counts] = []
    with reporter.counting("try cleaning up") as progress:
        for scan in unseen:
            assert scan.case.label is not None, "a validation case has a label"
            stored = read_labels(predictions / f"{scan.case.id}.nii.gz")
            truth = read_labels(scan.case.label, like=stored).reoriented(plane)
            prediction = stored.reoriented(plane)
            midline = (
                recorded_midline(scan.record, prediction, config.predict.min_confidence) if sides else None
            )
            labeled = classes_of(truth.array, labels, config.data.undrawn) != IGNORED
            counts.append(count(prediction, truth, labels, rules, midline, scan.case.patient, labeled))
            progress(len(counts), len(unseen))
    return decide(counts, labels, sides=sides)
