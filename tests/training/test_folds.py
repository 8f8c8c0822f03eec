"""Training all folds: shared store and reference, several processes, resuming, cross-validation, ensemble."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from isopose.config import Config
from isopose.data.splits import split
from isopose.errors import BusyError, InputError, IsoposeError
from isopose.evaluation.crossvalidation import PREDICTIONS, SCORES, cross_validate
from isopose.evaluation.evaluate import Evaluation
from isopose.files import only_writer, read_json, sha256
from isopose.inference.ensemble import load_ensemble
from isopose.inference.predict import predict
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.images import read_labels, read_volume
from isopose.models.folder import for_prediction, load_model
from isopose.training.fit import fit
from isopose.training.folds import check_folds, fit_folds, fold_folder, of_fold
from reporters import RecordingReporter

SHORT = ("unet.optimizer.epochs=1", "pose.learned=false", "crop.enabled=false")


@dataclass(frozen=True)
class Folds:
    """A model of three folds, and all that it was made from."""

    folder: Path
    dataset: Dataset
    config: Config
    evaluation: Evaluation
    lines: list[str]


@pytest.fixture(scope="module")
def folds(cohort: Path, tiny, tmp_path_factory) -> Folds:
    folder, dataset, config = tmp_path_factory.mktemp("folds") / "M", open_dataset(cohort), tiny(*SHORT)
    reporter = RecordingReporter()
    # Another process trains the second fold.
    held = fold_folder(folder, 1)
    assert fit_folds(dataset, folder, config, reporter=_Holding(held, reporter)) is False
    assert (folder / "fold-0" / "model.json").exists()
    assert not (held / "model.json").exists()
    assert (folder / "fold-2" / "model.json").exists()
    with pytest.raises(InputError, match="not all of its folds are trained; continue with --resume"):
        load_ensemble([folder])
    stamps = [(folder / name / "model.json").stat().st_mtime_ns for name in ("fold-0", "fold-2")]
    assert fit_folds(dataset, folder, config, resume=True, reporter=reporter) is True
    # What was trained is not trained again.
    assert stamps == [(folder / name / "model.json").stat().st_mtime_ns for name in ("fold-0", "fold-2")]
    evaluation = cross_validate(dataset, folder, config, reporter=reporter)
    return Folds(folder, dataset, config, evaluation, reporter.lines)


class _Holding(RecordingReporter):
    """Let another process hold a fold's folder from the start of fold 0 until no fold is left to train."""

    def __init__(self, folder: Path, reporter: RecordingReporter) -> None:
        super().__init__()
        self.folder, self.reporter, self.process = folder, reporter, None

    def say(self, text: str) -> None:
        self.reporter.say(text)
        if self.process is None and text.startswith("fold 0"):
            self.folder.mkdir(parents=True)
            code = (
                "import sys; from pathlib import Path; from isopose.files import only_writer\n"
                "with only_writer(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
            )
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(self.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self.process.stdout.readline() == b"held\n"
        if "all trained by other processes" in text:
            self.process.communicate()


def test_folds_in_training_elsewhere_are_skipped(folds: Folds) -> None:
    assert folds.lines.count("fold 1 is trained by another process") >= 1
    assert "1 of 3 folds are left, all trained by other processes" in folds.lines
    assert [line for line in folds.lines if line.startswith("fold ") and " of 3" in line].count(
        "fold 0 of 3"
    ) == 1


def test_folds_share_normalization_frame_and_reference(folds: Folds) -> None:
    members = load_ensemble([folds.folder]).members
    training = [case for case in folds.dataset.cases if case.split != "test"]
    assert len(training) == 6
    assert {member.fingerprint.cases for member in members} == {6}
    assert all(member.fingerprint == members[0].fingerprint for member in members)
    assert all(member.info.reference == members[0].info.reference for member in members)
    mask = members[0].pipeline.pose.reference_mask
    assert all(np.array_equal(member.pipeline.pose.reference_mask, mask) for member in members)
    # One store of all cases; the test patient is in none.
    [store] = (folds.folder / "work" / "store").glob("*/store.json")
    assert sorted(read_json(store)["cases"]) == sorted(case.id for case in training)
    assert len(list((folds.folder / "work" / "store").glob("fingerprint-*.json"))) == 1
    for n, member in enumerate(members):
        train, held = split(folds.dataset, of_fold(folds.config, n).train)
        seen = member.info.training
        assert seen.images_sha256 == tuple(sha256(case.image) for case in train)
        assert seen.validation_images_sha256 == tuple(sha256(case.image) for case in held)
    assert len({member.weights_sha256 for member in members}) == 3


def test_each_patient_is_scored_by_the_fold_that_did_not_see_it(folds: Folds) -> None:
    scored = {case.case: case.scores["kidney"].dice for case in folds.evaluation.cases}
    assert len(scored) == 6
    for n in range(3):
        member = load_model(fold_folder(folds.folder, n))
        for case in split(folds.dataset, of_fold(folds.config, n).train)[1]:
            kept = read_labels(folds.folder / PREDICTIONS / f"{case.id}.nii.gz").array
            assert np.array_equal(predict(for_prediction(member), read_volume(case.image)).labels.array, kept)
            truth = read_labels(case.label).array
            marked = np.count_nonzero(kept == 1) + np.count_nonzero(truth == 1)
            dice = 2 * np.count_nonzero((kept == 1) & (truth == 1)) / marked
            assert scored[case.id] == pytest.approx(dice)
            record = read_json(folds.folder / PREDICTIONS / f"{case.id}.json")
            assert record["model_sha256"] == member.weights_sha256
    assert Evaluation.from_json(read_json(folds.folder / SCORES)) == folds.evaluation


def test_the_manifest_names_the_folds_and_no_case(folds: Folds) -> None:
    text = (folds.folder / "model.json").read_text()
    manifest = json.loads(text)
    assert manifest["members"] == [
        {"folder": f"fold-{n}", "weights_sha256": sha256(folds.folder / f"fold-{n}" / "weights.safetensors")}
        for n in range(3)
    ]
    assert set(manifest["clean_up_dice"]) == {"kidney", "tumor"}
    mean = np.mean([case.scores["kidney"].dice for case in folds.evaluation.cases])
    assert manifest["clean_up_dice"]["kidney"]["none"] == pytest.approx(mean)
    for word in ("Muster", "Erika", str(folds.dataset.root), str(folds.folder)):
        assert word not in text
    result = predict(load_ensemble([folds.folder]), read_volume(folds.dataset.cases[0].image))
    assert result.labels.array.shape == read_volume(folds.dataset.cases[0].image).array.shape


def test_a_finished_model_is_kept_and_other_settings_are_refused(folds: Folds) -> None:
    before = {path: path.stat().st_mtime_ns for path in folds.folder.rglob("*") if path.is_file()}
    assert fit_folds(folds.dataset, folds.folder, folds.config, resume=True) is True
    assert cross_validate(folds.dataset, folds.folder, folds.config) == folds.evaluation
    assert {path: path.stat().st_mtime_ns for path in folds.folder.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="not empty; add --resume"):
        fit_folds(folds.dataset, folds.folder, folds.config)
    other = folds.config.model_copy(update={"train": folds.config.train.model_copy(update={"seed": 3})})
    with pytest.raises(InputError, match="was started with another config"):
        fit_folds(folds.dataset, folds.folder, other, resume=True)
    with only_writer(folds.folder), pytest.raises(BusyError):
        cross_validate(folds.dataset, folds.folder, folds.config)
    # A fold alone is a model as any other.
    again = fit(folds.dataset, folds.folder / "fold-1", of_fold(folds.config, 1), resume=True)
    assert again.weights_sha256 == load_model(folds.folder / "fold-1").weights_sha256


def test_cross_validation_uses_the_given_masks(folds: Folds, tmp_path: Path) -> None:
    """Missing masks are reported, although results without masks exist."""
    lost = tuple(replace(case, mask=tmp_path / f"{case.id}.nii.gz") for case in folds.dataset.cases)
    finished = (folds.folder / "model.json").read_bytes()
    (folds.folder / "model.json").unlink()
    try:
        with pytest.raises(IsoposeError, match=r"cannot be cross-validated .*nii\.gz: no such file"):
            cross_validate(replace(folds.dataset, cases=lost), folds.folder, folds.config)
    finally:
        (folds.folder / "model.json").write_bytes(finished)


def test_splits_without_folds_are_refused(folds: Folds, tiny) -> None:
    for settings in (("train.fold=1",), ("train.fold=all",)):
        with pytest.raises(InputError, match="--folds all trains a model of each fold"):
            check_folds(folds.dataset, tiny(*settings))
    first, *rest = folds.dataset.cases
    with pytest.raises(InputError, match="names its validation cases, so there are no folds"):
        check_folds(replace(folds.dataset, cases=(replace(first, split="val"), *rest)), tiny())
    with pytest.raises(InputError, match="9 folds need as many labeled patients"):
        check_folds(folds.dataset, tiny("train.folds=9"))


def test_folds_all_and_fold_all_are_distinguished_in_one_line(folds: Folds, isopose, tmp_path) -> None:
    arguments = ("fit", folds.dataset.root, "--model", tmp_path / "M", "--folds")
    for more, line in (
        (("all", "--fold", "all"), "--folds all trains a model of each fold, --fold all a single model"),
        (("3",), "--folds: expected all, got '3'; --set train.folds=N"),
    ):
        code, _, error = isopose(*arguments, *more)
        assert (code, len(error.splitlines())) == (2, 1)
        assert line in error
    assert not (tmp_path / "M").exists()
