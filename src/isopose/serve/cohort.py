"""A finished cohort for the review page: cases with their scores, and people's decisions."""

import csv
import io
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isopose.choices import Modality
from isopose.errors import InputError
from isopose.evaluation.evaluate import CaseScores, Evaluation, label_maps
from isopose.files import hash_of, read_json, read_text, replacing, write_json, write_text
from isopose.inference.files import record_name
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, read_volume
from isopose.io.scans import check_names, find_scans
from isopose.labels import Labels, class_colors
from isopose.serve.values import shown_values
from isopose.serve.viewing import FORMAT, describe_scan, read_view, write_label_map, write_scan

#: Maximum length of a comment in characters.
LONGEST_COMMENT = 1000
#: Pixels along the longer side of a thumbnail.
THUMBNAIL = 96
#: Columns of ``review.csv``.
COLUMNS = ("case", "decision", "comment")
#: Number of cached cases; each takes the space of a scan.
MAX_CACHED_CASES = 6


@dataclass(frozen=True)
class Reviewed:
    """One case of a cohort.

    Args:
        case: its id.
        prediction: label map.
        record: record of the prediction, empty if there is none.
        image: scan, if known.
        truth: ground-truth label map, if known.
        against: another prediction of the case, if given.
        scores: of the prediction, if there is ground truth.
        scores_against: of the other prediction, if there is ground truth.
        modality: of the scan, if known.
    """

    case: str
    prediction: Path
    record: dict[str, Any]
    image: Path | None
    truth: Path | None
    against: Path | None
    scores: CaseScores | None
    scores_against: CaseScores | None
    modality: Modality | None

    @property
    def key(self) -> str:
        """Return the cache key; other files under the same names have another key."""
        files = [self.prediction, self.image, self.truth, self.against]
        there = [(str(path), path.stat()) for path in files if path is not None and path.exists()]
        return hash_of([self.case, [[name, stat.st_mtime_ns, stat.st_size] for name, stat in there]])[:16]

    def row(self, targets: tuple[str, ...]) -> dict[str, Any]:
        """Return the case's row of the table."""
        slices = self.record.get("slices") or []
        confidence = [one["confidence"] for one in slices if one.get("confidence") is not None]
        if "confidence" in self.record:
            confidence = [self.record["confidence"]]
        return {
            "case": self.case,
            "dice": _list_dice(self.scores, targets),
            "against": _list_dice(self.scores_against, targets),
            "confidence": min(confidence) if confidence else None,
            "volumes_ml": self.record.get("volumes_ml") or {},
            "size_mm": _compute_size(self.record),
            "age_years": None if self.scores is None else self.scores.age_years,
            "warnings": self.record.get("warnings") or [],
            "image": self.image is not None,
        }


@dataclass(frozen=True)
class ReviewedCohort:
    """All cases, and the folder of the page's own files."""

    cases: tuple[Reviewed, ...]
    labels: Labels
    targets: tuple[str, ...]
    folder: Path


def open_cohort(
    predictions: Path,
    folder: Path,
    *,
    truth: Path | None,
    images: Path | None,
    against: Path | None,
    labels: Mapping[str, int] | None,
    scores: Evaluation | None,
    scores_against: Evaluation | None,
) -> ReviewedCohort:
    """Join each prediction with its record, scan, ground truth and scores.

    Args:
        predictions: folder of label maps, with their records where isopose made them.
        folder: for the page's own files.
        truth: dataset, or folder of ground-truth label maps.
        images: folder of the scans, named like the predictions; else those of the dataset.
        against: folder of other predictions of the same cases.
        labels: stored value of each label, instead of those of the dataset or the records.
        scores: scores of the predictions.
        scores_against: scores of the other predictions.

    Raises:
        InputError: there is no prediction, or the labels are unknown.
    """
    predicted = label_maps(predictions)
    if not predicted:
        raise InputError(f"{predictions}: expected a folder of predicted label maps, found none")
    records = {case: _read_record(path.with_name(record_name(case))) for case, path in predicted.items()}
    known_images, known_truths, named, channels = _read_dataset(truth)
    if images is not None:
        known_images = {scan.name: scan.path for scan in check_names(find_scans([images]))}
    compared = label_maps(against) if against is not None else {}
    values = labels or named or next((one["labels"] for one in records.values() if one.get("labels")), None)
    if not values:
        raise InputError(f"{predictions}: the labels are unknown; give them, e.g. --label kidney=1")
    evaluated, compared_evaluated = _index_by_case(scores), _index_by_case(scores_against)
    cases = tuple(
        Reviewed(
            case,
            path,
            records[case],
            known_images.get(case),
            known_truths.get(case),
            compared.get(case),
            evaluated.get(case),
            compared_evaluated.get(case),
            _modality_of(records[case], channels),
        )
        for case, path in sorted(predicted.items())
    )
    label_set = Labels.create(values)
    return ReviewedCohort(cases, label_set, scores.targets if scores else tuple(label_set.targets()), folder)


def _read_dataset(
    truth: Path | None,
) -> tuple[dict[str, Path], dict[str, Path], Mapping[str, int] | None, tuple[str, ...] | None]:
    """Return scans and label maps by case, the labels' stored values and the channels, as far as known."""
    if truth is None:
        return {}, {}, None, None
    if truth.is_dir() and not (truth / "dataset.json").exists() and (maps := label_maps(truth)):
        image_folder = truth.with_name(truth.name.replace("labels", "images"))
        scans = {}
        if image_folder != truth and image_folder.is_dir():
            scans = {scan.name: scan.path for scan in check_names(find_scans([image_folder]))}
        if not (truth.parent / "dataset.json").exists():
            return scans, maps, None, None
        around = open_dataset(truth.parent)
        return scans, maps, around.labels.stored, around.channels
    dataset = open_dataset(truth)
    return (
        {case.id: case.image for case in dataset.cases},
        {case.id: case.label for case in dataset.cases if case.label is not None},
        dataset.labels.stored,
        # A table does not tell the modality of its scans.
        None if dataset.layout == "manifest" else dataset.channels,
    )


def _modality_of(record: Mapping[str, Any], channels: tuple[str, ...] | None) -> Modality | None:
    """Return the modality of the scan that is shown (the first channel); None if it is unknown.

    Args:
        record: of the prediction; with several channels it tells of the one that shows the pose.
        channels: names of the dataset's channels, if there is a dataset.
    """
    recorded = record.get("modality")
    if (channels is None or len(channels) == 1) and recorded in ("ct", "mr"):
        return "mr" if recorded == "mr" else "ct"
    return None if channels is None else "ct" if channels[0].casefold() == "ct" else "mr"


class Decisions:
    """People's decisions, stored in ``review.csv`` after every change.

    Args:
        path: CSV file; read if it exists.
        cases: ids of all cases that are shown.

    Raises:
        InputError: the file does not hold decisions of a review.
    """

    def __init__(self, path: Path, cases: tuple[str, ...]) -> None:
        self.path = path
        self.of: dict[str, tuple[str, str]] = {}
        self._others: list[tuple[str, str, str]] = []
        if path.exists():
            text = read_text(path, "decisions of a review (CSV)")
            rows = list(csv.reader(io.StringIO(text)))
            if not rows or tuple(rows[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
                raise InputError(f"{path}: expected columns {', '.join(COLUMNS)}; move it away to start over")
            for case, decision, comment in rows[1:]:
                if case in cases:
                    self.of[case] = (decision, _unescape(comment))
                else:
                    # Decisions on cases that are not shown now are kept.
                    self._others.append((case, decision, comment))

    def decide(self, case: str, decision: str, comment: str) -> None:
        """Set a decision and comment, or remove both if they are empty."""
        self.of[case] = (decision, comment)
        if not decision and not comment:
            del self.of[case]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        rows = [(case, decision, _escape(comment)) for case, (decision, comment) in self.of.items()]
        writer.writerows(sorted(rows + self._others))
        write_text(self.path, text.getvalue())


def _escape(comment: str) -> str:
    """Return a comment with a leading quote if a spreadsheet would take it for a formula."""
    return f"'{comment}" if comment[:1] in ("=", "+", "-", "@", "\t", "\r", "'") and comment else comment


def _unescape(comment: str) -> str:
    return comment[1:] if comment.startswith("'") else comment


def thumbnail(cohort: ReviewedCohort, case: Reviewed) -> Path:
    """Return a PNG of the slice with most labeled pixels and its labels, made if missing.

    Raises:
        InputError: the scan or the label map cannot be read.
    """
    path = cohort.folder / "thumbnails" / f"{case.key}.png"
    if path.exists():
        return path
    if case.image is None:
        labels = read_labels(case.prediction)
        image = labels.with_array(np.zeros(labels.array.shape, np.int16))
    else:
        image = read_volume(case.image)
        labels = read_labels(case.prediction, image)
    reoriented, classes = image.reoriented(), cohort.labels.to_classes(labels.reoriented().array)
    marked = (classes > 0).sum(axis=(1, 2))
    z = int(marked.argmax()) if marked.any() else len(marked) // 2
    # The pictures of the table look like that of the case.
    values = shown_values(reoriented.array, case.modality)
    low, high = values.usual
    gray = np.clip((values.stored(reoriented.array[z]).astype(np.float32) - low) / (high - low), 0, 1) * 255
    picture = np.repeat(gray[..., None], 3, axis=2)
    for index, color in enumerate(class_colors(cohort.labels.names), start=1):
        tint = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
        picture[classes[z] == index] = 0.5 * picture[classes[z] == index] + 0.5 * tint
    image_drawn = Image.fromarray(picture.astype(np.uint8))
    height, width = picture.shape[0] * reoriented.spacing[1], picture.shape[1] * reoriented.spacing[0]
    scale = THUMBNAIL / max(height, width)
    image_drawn = image_drawn.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR
    )
    with replacing(path) as temporary:
        image_drawn.save(temporary, format="PNG")
    return path


def case_view(cohort: ReviewedCohort, number: int) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a case's scan and label maps for the page, and the contents of ``view.json``.

    The folders of the last :data:`MAX_CACHED_CASES` cases are kept.

    Raises:
        InputError: a file cannot be read, or a label map is not on the scan's grid.
    """
    case = cohort.cases[number]
    place = cohort.folder / "views" / case.key
    if read_view(place) is None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if case.image is not None:
            image = read_volume(case.image)
        else:
            blank = read_labels(case.prediction)
            image = blank.with_array(np.zeros(blank.array.shape, np.int16))
        reoriented, values = write_scan(place, image, case.modality)
        label_maps_shown = {"labels": case.prediction, "truth": case.truth, "against": case.against}
        for name, path in label_maps_shown.items():
            if path is not None and path.exists():
                write_label_map(place, read_labels(path, image), cohort.labels, f"{name}.nii")
        marked = np.flatnonzero((read_labels(case.prediction, image).reoriented().array > 0).any(axis=(1, 2)))
        best = int(marked[len(marked) // 2]) if len(marked) else reoriented.array.shape[0] // 2
        maps_present = [name for name in label_maps_shown if (place / f"{name}.nii").exists()]
        write_json(
            place / "view.json",
            {
                "format": FORMAT,
                **describe_scan(reoriented, cohort.labels, values),
                "best": best,
                "maps": maps_present,
            },
        )
    else:
        (place / "view.json").touch()
    # Newest first. An incomplete folder has no view.json, and is made again when it is requested.
    ready = sorted((cohort.folder / "views").glob("*/view.json"), key=lambda one: -one.stat().st_mtime_ns)
    for old in ready[MAX_CACHED_CASES:]:
        shutil.rmtree(old.parent, ignore_errors=True)
    value: dict[str, Any] = read_json(place / "view.json")
    return place, value


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _index_by_case(scores: Evaluation | None) -> dict[str, CaseScores]:
    return {} if scores is None else {one.case: one for one in scores.cases}


def _list_dice(scores: CaseScores | None, targets: tuple[str, ...]) -> dict[str, float | None] | None:
    return None if scores is None else {target: scores.scores[target].dice for target in targets}


def _compute_size(record: Mapping[str, Any]) -> float | None:
    """Return the side in mm of the square that is scaled to the reference; it grows with the body."""
    frame = record.get("frame")
    if not frame:
        return None
    if record.get("scales"):
        scale = float(np.sqrt(np.prod(record["scales"][:2])))
    elif record.get("slices"):
        scale = statistics.median((one["scale_x"] * one["scale_y"]) ** 0.5 for one in record["slices"])
    else:
        return None
    return float(scale * frame["fov_mm"])
