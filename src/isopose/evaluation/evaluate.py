"""Score a folder of predictions against ground-truth labels, scan by scan."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from isopose.choices import Undrawn
from isopose.data.drawn import classes_of
from isopose.data.plane import plane_of
from isopose.errors import InputError, first_names, printable
from isopose.evaluation.metrics import SURFACE_TOLERANCE_MM, Scores, joint_box, score
from isopose.files import composed, hash_of, sha256
from isopose.geometry.volume import Volume
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.endings import ending, stem
from isopose.io.images import read_labels
from isopose.io.layouts.table import MAX_AGE_YEARS
from isopose.isolation import Failed, failure_of
from isopose.labels import IGNORED, Labels
from isopose.outputs import earlier_record
from isopose.parallel import joint_failure
from isopose.renamed import EVALUATION, with_present_names
from isopose.strict import first_problem
from isopose.version import __version__

FORMAT = "isopose-evaluation/1"
#: Largest number of cases that a message lists.
MAX_NAMED_CASES = 10


@dataclass(frozen=True)
class CaseScores:
    """The scores of one scan.

    Args:
        case: the scan's id.
        patient: scans with the same value are of one patient. It is the id of the patient's first case and
            not the patient's own identifier, which stays out of every report.
        scores: target name to its scores.
        age_years: age at the scan in years, where known.
        body_size_mm: a length that stands for the body's size in mm, where known.
    """

    case: str
    patient: str
    scores: Mapping[str, Scores]
    age_years: float | None = None
    body_size_mm: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All scores of a set of predictions, and their sources.

    Args:
        targets: what was scored, in the order of :meth:`isopose.labels.Labels.targets`.
        cases: one entry per scored scan, by ascending id.
        missing: ids of scans that have a label and no prediction; they are in no mean.
        unlabeled: ids of predictions without a label, which were left alone.
        failed: ids of scans that could not be scored, each with one line that says why; they are in no mean.
        tolerance_mm: tolerance of the surface Dice in mm.
        provenance: version, labels and SHA-256 of every file read.
    """

    targets: tuple[str, ...]
    cases: tuple[CaseScores, ...]
    missing: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    tolerance_mm: float = SURFACE_TOLERANCE_MM
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON-able values; ``None`` stays null."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any) -> "Evaluation":
        """Parse the output of :meth:`to_json`; unknown keys are ignored.

        Raises:
            InputError: the value is not an evaluation, or has another format.
        """
        actual = value.get("format") if isinstance(value, Mapping) else None
        if actual != FORMAT:
            raise InputError(f"expected an evaluation of format {FORMAT!r}, got {actual!r}; evaluate again")
        try:
            return TypeAdapter(cls).validate_python(with_present_names(value, EVALUATION))
        except ValidationError as error:
            raise InputError(f"the evaluation is damaged ({first_problem(error)}); evaluate again") from None


@dataclass(frozen=True)
class _Pair:
    """A prediction and the label map it is compared with; fields as in :class:`CaseScores`."""

    case: str
    patient: str
    age_years: float | None
    prediction: Path
    label: Path


#: The scores of a scan, and the SHA-256 of its two files.
_Scored = tuple[CaseScores, dict[str, str]]


def evaluate(
    predictions: Path,
    truth: Dataset | Path,
    labels: Labels | None = None,
    *,
    cases: Collection[str] | None = None,
    body_sizes_mm: Mapping[str, float] | None = None,
    ages_years: Mapping[str, float] | None = None,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
    undrawn: Undrawn = "background",
    allow_missing: bool = False,
    allow_failed: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score every prediction against the label of the same case, in 3D on the scan's own grid.

    Voxels that were not annotated count in neither map, as if the scan did not contain them. A case that has
    any gets no surface scores, because the distance of a surface that enters these voxels is unknown.

    Args:
        predictions: folder of label maps with the labels' stored values, named by the case and any ending of
            :data:`isopose.io.endings.READABLE`.
        truth: a dataset, or a folder of label maps named like the predictions.
        labels: what to score; by default the dataset's own, and needed with a folder.
        cases: score these only, e.g. one fold's validation cases; by default all that have a label.
        body_sizes_mm: a length per case that stands for body size (such as its width), for the strata.
        ages_years: age per case in years; fills in where the dataset says nothing.
        tolerance_mm: tolerance of the surface Dice in mm.
        undrawn: meaning of slices without any label, see :func:`isopose.data.drawn.classes_of`.
        allow_missing: list scans without a prediction instead of refusing.
        allow_failed: list scans that cannot be scored instead of raising after all others are scored.
        workers: number of scans scored at once, at least one.
        progress: called with (scans done, scans in all) after each scan.
        note: called with a message if label values were rounded, or if the records of predictions name them
            differently.

    Raises:
        InputError: nothing to score, a missing or ambiguous prediction, an unreadable file, an unknown label
            value, or a prediction on another grid than its label; the message names the case.
    """
    labels = labels or (truth.labels if isinstance(truth, Dataset) else None)
    if labels is None:
        raise InputError(f"{truth}: the labels are unknown; give them, e.g. --label kidney=1 --label tumor=2")
    predicted = label_maps(Path(predictions))
    labeled = _truths(truth, ages_years or {})
    to_score = _cases_to_score(labeled, cases)
    missing = _missing(predictions, to_score, predicted, allow_missing)
    pairs = _pairs(to_score, predicted, labeled)
    if note is not None:
        for line in _other_names(pairs, labels):
            note(line)
    sizes = body_sizes_mm or {}
    work = partial(
        _score_pair, labels=labels, undrawn=undrawn, sizes=sizes, tolerance_mm=tolerance_mm, note=note
    )
    scored, failed = _score_all(partial(_try_score, work), pairs, allow_failed, workers, progress)
    inputs = {result.case: hashes for result, hashes in scored}
    return Evaluation(
        targets=tuple(labels.targets()),
        cases=tuple(result for result, _ in scored),
        missing=missing,
        unlabeled=tuple(sorted(set(predicted) - set(labeled))),
        failed={case: result.why for case, result in failed.items()},
        tolerance_mm=float(tolerance_mm),
        provenance={
            "isopose": __version__,
            "labels": labels.to_json(),
            **({} if undrawn == "background" else {"undrawn": undrawn}),
            "inputs": inputs,
            "inputs_sha256": hash_of(inputs),
        },
    )


def open_truth(truth: Path, labels: Mapping[str, int] | None = None) -> tuple[Dataset | Path, Labels | None]:
    """Open the ground-truth labels at a path, as :func:`evaluate` takes them.

    Args:
        truth: a dataset of any layout that :func:`isopose.io.datasets.open_dataset` reads, or a folder of
            label maps. Of the latter the labels are named by ``labels``, or by the dataset that the folder
            lies in (as ``labelsTr``).
        labels: name to stored value; replaces the dataset's own labels.

    Returns:
        The dataset or the folder, and its labels, None where the dataset has them.

    Raises:
        InputError: no dataset and no label maps, or unusable labels.
    """
    truth = Path(truth)
    named = None if labels is None else Labels.create(labels)
    if not truth.is_dir() or (truth / "dataset.json").exists() or not label_maps(truth):
        return open_dataset(truth, labels), named
    if named is None and (truth.parent / "dataset.json").exists():
        named = open_dataset(truth.parent).labels
    return truth, named


def label_maps(folder: Path) -> dict[str, Path]:
    """Return case id to file for every label map of a folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of label maps, found none")
    maps: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not ending(path) or path.name.startswith("."):
            continue
        case = composed(stem(path))
        if case in maps:
            raise InputError(
                f"{case}: two label maps, {maps[case].name} and {path.name}, in {folder}; keep one"
            )
        maps[case] = path
    return maps


def _truths(
    truth: Dataset | Path, ages_years: Mapping[str, float]
) -> dict[str, tuple[Path, str, float | None]]:
    """Return case id to label file, patient group and age for every case with a label."""
    if not isinstance(truth, Dataset):
        return {case: (path, case, ages_years.get(case)) for case, path in label_maps(Path(truth)).items()}
    ordered = sorted(truth.cases, key=lambda case: _natural_key(case.id))
    first: dict[str, str] = {}
    for case in ordered:
        first.setdefault(case.patient, case.id)
    return {
        case.id: (
            case.label,
            first[case.patient],
            ages_years.get(case.id) if case.age_years is None else case.age_years,
        )
        for case in ordered
        if case.label is not None
    }


def _cases_to_score(labeled: Collection[str], cases: Collection[str] | None) -> list[str]:
    """Return the case ids to score, in natural order."""
    unknown = sorted(set(cases or ()) - set(labeled), key=_natural_key)
    if unknown:
        raise InputError(f"no label for {first_names(unknown, MAX_NAMED_CASES)}; cases to score need one")
    to_score = sorted(labeled if cases is None else set(cases), key=_natural_key)
    if not to_score:
        raise InputError("nothing to score: no case with a label was found")
    return to_score


def _missing(
    predictions: Path, to_score: Sequence[str], predicted: Collection[str], allowed: bool
) -> tuple[str, ...]:
    """Return the wanted cases without a prediction.

    Raises:
        InputError: there are some and they are not allowed, or no case has a prediction.
    """
    missing = tuple(case for case in to_score if case not in predicted)
    if missing and (not allowed or len(missing) == len(to_score)):
        raise InputError(
            f"{predictions}: no prediction for {len(missing)} of {len(to_score)} cases: "
            f"{first_names(missing, MAX_NAMED_CASES)}; predict them, give the folder of the labels that were "
            "predicted (DATASET/labelsTs), or allow missing ones (--allow-missing)"
        )
    return missing


def _pairs(
    to_score: Sequence[str],
    predicted: Mapping[str, Path],
    labeled: Mapping[str, tuple[Path, str, float | None]],
) -> list[_Pair]:
    """Return prediction and label of each case that has both.

    Raises:
        InputError: the age of a wanted case is implausible.
    """
    pairs = []
    for case in to_score:
        label, patient, age = labeled[case]
        if age is not None and not 0 <= age <= MAX_AGE_YEARS:
            raise InputError(
                f"{case}: age of {age:g} years, expected 0 to {MAX_AGE_YEARS}; correct it or leave it out"
            )
        if case in predicted:
            pairs.append(_Pair(case, patient, age, predicted[case], label))
    return pairs


def _other_names(pairs: Sequence[_Pair], labels: Labels) -> list[str]:
    """Return a warning for each label that the records of predictions name differently than the scores."""
    scored = {value: name for name, value in labels.values.items()}
    cases: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        record = earlier_record(pair.prediction.parent / f"{stem(pair.prediction)}.json") or {}
        recorded = record.get("labels")
        for label, value in recorded.items() if isinstance(recorded, dict) else ():
            wanted = scored.get(value) if isinstance(value, int) else None
            if wanted is not None and wanted.casefold() != str(label).casefold():
                cases.setdefault((str(label), wanted), []).append(pair.case)
    return [
        f"{first_names(case_ids, MAX_NAMED_CASES)}: the record says {printable(label)}, scored as {wanted}; "
        "are these the right predictions and labels?"
        for (label, wanted), case_ids in cases.items()
    ]


def _score_all(
    score_one: Callable[[_Pair], _Scored | Failed],
    pairs: Sequence[_Pair],
    allow_failed: bool,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[_Scored], dict[str, Failed]]:
    """Score the scans, some at once; return scores in the order of the scans, and failures by case.

    Raises:
        IsoposeError: scans cannot be scored, and that is not allowed; raised after all others were scored.
    """
    scored: list[_Scored] = []
    failed: dict[str, Failed] = {}
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            for pair, result in zip(pairs, pool.map(score_one, pairs), strict=True):
                if isinstance(result, Failed):
                    failed[pair.case] = result
                else:
                    scored.append(result)
                if progress is not None:
                    progress(len(scored) + len(failed), len(pairs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failed and not allow_failed:
        raise joint_failure(list(failed.values()), len(pairs))
    return scored, failed


def _try_score(score_one: Callable[[_Pair], _Scored], pair: _Pair) -> _Scored | Failed:
    """Score one scan, or say why it cannot be scored."""
    try:
        return score_one(pair)
    except Exception as error:
        failure = failure_of(error)
        # The message is stored with the scores, which must not contain paths.
        why = str(failure).replace(str(pair.prediction), f"prediction {pair.prediction.name}")
        why = why.replace(str(pair.label), f"label {pair.label.name}")
        return Failed(f"{pair.case}: {why}", not isinstance(failure, InputError))


def _score_pair(
    pair: _Pair,
    labels: Labels,
    undrawn: Undrawn,
    sizes: Mapping[str, float],
    tolerance_mm: float,
    note: Callable[[str], None] | None,
) -> _Scored:
    """Score one scan; return the SHA-256 of its two files as well."""

    def note_for(path: Path) -> Callable[[str], None]:
        return lambda line: note(f"{pair.case}: {path}: {line}") if note else None

    prediction = read_labels(pair.prediction, note=note_for(pair.prediction))
    truth = read_labels(pair.label, note=note_for(pair.label))
    if not prediction.same_grid(truth):
        truth = _on_grid(pair, prediction)
    unlabeled = None
    if labels.ignore is not None or undrawn == "ignore":
        unlabeled = _unlabeled(pair, truth, labels, undrawn)
    # Crop to the labels' box first: most of a scan is background, and each step below is done per target.
    box = joint_box(prediction.array, truth.array) or (slice(1), slice(1), slice(1))
    predicted, reference = prediction.array[box], truth.array[box]
    # Predictions are ignored where the ground truth was not annotated.
    for path, array, label_set in (
        (pair.prediction, predicted, replace(labels, ignore=None)),
        (pair.label, reference, labels),
    ):
        try:
            label_set.to_classes(array)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    is_partly_labeled = unlabeled is not None and bool(unlabeled.any())
    if unlabeled is not None:
        predicted, reference = (np.where(unlabeled[box], 0, array) for array in (predicted, reference))
    spacing_zyx = prediction.spacing[::-1]
    scores = {
        target: score(
            np.isin(predicted, values),
            np.isin(reference, values),
            spacing_zyx,
            None if is_partly_labeled else tolerance_mm,
        )
        for target, values in labels.targets().items()
    }
    result = CaseScores(pair.case, pair.patient, scores, pair.age_years, sizes.get(pair.case))
    return result, {"prediction": sha256(pair.prediction), "label": sha256(pair.label)}


def _unlabeled(pair: _Pair, truth: Volume, labels: Labels, undrawn: Undrawn) -> np.ndarray:
    """Return which voxels of the label's own array were not annotated."""
    plane = plane_of(truth) or "axial"
    try:
        classes = classes_of(truth.reoriented(plane).array, labels, undrawn)
    except InputError as error:
        raise InputError(f"{pair.label}: {error}") from None
    return truth.reorientation(plane).undo(classes == IGNORED)


def _on_grid(pair: _Pair, prediction: Volume) -> Volume:
    """Return the label on the prediction's grid; rounded headers and another axis order are undone."""
    try:
        return read_labels(pair.label, like=prediction)
    except InputError as error:
        raise InputError(f"with the prediction {pair.prediction.name} as the image: {error}") from None


def _natural_key(case: str) -> list[tuple[int, int | str]]:
    """Return a sort key that puts case_9 before case_10."""
    parts = re.split(r"(\d+)", case)
    return [(1, int(part)) if part.isdecimal() else (0, part) for part in parts if part]
