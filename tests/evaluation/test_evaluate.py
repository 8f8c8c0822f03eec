import csv
import json

import numpy as np
import pytest

from isopose.errors import InputError
from isopose.evaluation.evaluate import Evaluation, evaluate, open_truth
from isopose.files import read_json, sha256
from isopose.geometry.volume import Volume
from isopose.io.datasets import Case, Dataset
from isopose.io.images import write_labels
from isopose.labels import Labels
from isopose.report.tables import write_evaluation

KIDNEY_TUMOR = Labels.create({"kidney": 1, "tumor": 2})
GRID = np.array([[0.8, 0, 0, -100], [0, 0.8, 0, -90], [0, 0, 3.0, 40], [0, 0, 0, 1]], dtype=float)


def organs(kidney=(4, 14), tumor=None):
    array = np.zeros((8, 20, 24), dtype=np.uint8)
    array[2:6, 5:15, slice(*kidney)] = 1
    if tumor:
        array[2:6, 5:15, slice(*tumor)] = 2
    return array


def save(folder, case, array, grid=GRID, ending=".nii.gz"):
    folder.mkdir(exist_ok=True)
    path = folder / f"{case}{ending}"
    write_labels(Volume(array, grid), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Three cases: perfect; half of the kidney and no tumor predicted; no tumor in prediction and truth."""
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    save(labels, "case_2", organs(tumor=(14, 18)))
    save(predictions, "case_2", organs(tumor=(14, 18)))
    save(labels, "case_10", organs(tumor=(14, 18)))
    save(predictions, "case_10", organs((9, 14)), ending=".nrrd")
    save(labels, "case_1", organs())
    save(predictions, "case_1", organs())
    return predictions, labels


def test_predictions_of_other_structures_give_a_warning(folders):
    predictions, labels = folders
    notes = []
    for case, names in (("case_1", {"Kidney": 1}), ("case_2", {"liver": 1, "tumor": 2}), ("case_10", [1])):
        (predictions / f"{case}.json").write_text(json.dumps({"labels": names}))
    evaluate(predictions, labels, KIDNEY_TUMOR, note=notes.append)
    assert notes == [
        "case_2: the record says liver, scored as kidney; are these the right predictions and labels?"
    ]


def test_scores_per_target_and_union_in_natural_order(folders):
    evaluation = evaluate(*folders, KIDNEY_TUMOR)
    assert evaluation.targets == ("kidney", "tumor", "kidney+tumor")
    assert [case.case for case in evaluation.cases] == ["case_1", "case_2", "case_10"]
    one, two, ten = (case.scores for case in evaluation.cases)
    assert [one[t].dice for t in evaluation.targets] == [1.0, None, 1.0]
    assert [two[t].dice for t in evaluation.targets] == [1.0, 1.0, 1.0]
    # Kidney: 5 of 10 columns; union: 5 of 14.
    assert ten["kidney"].dice == pytest.approx(2 * 5 / 15)
    assert ten["kidney+tumor"].dice == pytest.approx(2 * 5 / 19)
    assert ten["kidney"].hd95_mm == pytest.approx(4.0)  # five columns of 0.8 mm
    assert (ten["tumor"].dice, ten["tumor"].hd95_mm, ten["tumor"].outcome) == (0.0, None, "missed")
    assert ten["tumor"].truth_ml == pytest.approx(4 * 10 * 4 * 0.8 * 0.8 * 3 / 1000)


def test_provenance_names_every_file_by_its_hash(folders):
    evaluation = evaluate(*folders, KIDNEY_TUMOR)
    inputs = evaluation.provenance["inputs"]
    assert inputs["case_10"] == {
        "prediction": sha256(folders[0] / "case_10.nrrd"),
        "label": sha256(folders[1] / "case_10.nii.gz"),
    }
    assert evaluation.provenance["labels"]["values"] == {"kidney": 1, "tumor": 2}


def test_json_round_trip_keeps_the_evaluation(folders, tmp_path):
    evaluation = evaluate(*folders, KIDNEY_TUMOR, ages_years={"case_2": 3.5}, tolerance_mm=1.0)
    write_evaluation(evaluation, tmp_path / "out")
    assert Evaluation.from_json(read_json(tmp_path / "out" / "scores.json")) == evaluation


def test_written_files_are_the_same_bytes_for_any_number_of_workers(folders, tmp_path):
    calls = []
    write_evaluation(evaluate(*folders, KIDNEY_TUMOR), tmp_path / "a")
    parallel = evaluate(*folders, KIDNEY_TUMOR, workers=3, progress=lambda done, n: calls.append((done, n)))
    write_evaluation(parallel, tmp_path / "b")
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for name in ("scores.csv", "scores.json", "scores.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_csv_has_one_row_per_case_and_target(folders, tmp_path):
    write_evaluation(evaluate(*folders, KIDNEY_TUMOR, ages_years={"case_2": 3.5}), tmp_path / "out")
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    row = next(r for r in rows if (r["case"], r["target"]) == ("case_10", "tumor"))
    assert (row["dice"], row["hd95_mm"], row["outcome"], row["age_years"]) == ("0.0", "", "missed", "")
    assert next(r for r in rows if r["case"] == "case_2")["age_years"] == "3.5"


def test_patients_own_identifiers_stay_out(folders, tmp_path):
    predictions, labels = folders
    cases = tuple(
        Case(f"case_{n}", labels, labels / f"case_{n}.nii.gz", patient=patient, age_years=age)
        for n, patient, age in ((10, "DOE^JANE", 4.0), (2, "DOE^JANE", 1.5), (1, "ROE", None))
    )
    evaluation = evaluate(predictions, Dataset("d", "csv", labels, KIDNEY_TUMOR, cases))
    assert [(c.case, c.patient, c.age_years) for c in evaluation.cases] == [
        ("case_1", "case_1", None),
        ("case_2", "case_2", 1.5),
        ("case_10", "case_2", 4.0),
    ]
    write_evaluation(evaluation, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert "DOE" not in path.read_text()
        assert "ROE" not in path.read_text()


def test_a_label_stored_on_other_axes_is_matched_by_position(folders):
    predictions, labels = folders
    array = organs(tumor=(14, 18))
    # KiTS19's way: the same voxels, stored with the slices as the last and a flipped first axis.
    flipped = np.ascontiguousarray(array[:, :, ::-1].transpose(2, 1, 0))
    grid = GRID @ np.array([[0, 0, -1, 23], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    save(labels, "case_2", flipped, grid)
    two = evaluate(predictions, labels, KIDNEY_TUMOR, cases=["case_2"]).cases[0]
    assert {target: scores.dice for target, scores in two.scores.items()} == {
        "kidney": 1.0,
        "tumor": 1.0,
        "kidney+tumor": 1.0,
    }


def test_missing_predictions_are_refused_or_listed(folders):
    predictions, labels = folders
    (predictions / "case_2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"no prediction for 1 of 3 cases: case_2;"):
        evaluate(predictions, labels, KIDNEY_TUMOR)
    evaluation = evaluate(predictions, labels, KIDNEY_TUMOR, allow_missing=True)
    assert evaluation.missing == ("case_2",)
    assert [case.case for case in evaluation.cases] == ["case_1", "case_10"]
    for path in predictions.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="3 of 3 cases"):
        evaluate(predictions, labels, KIDNEY_TUMOR, allow_missing=True)


def test_chosen_cases_and_predictions_without_label(folders):
    predictions, labels = folders
    save(predictions, "case_77", organs())
    evaluation = evaluate(predictions, labels, KIDNEY_TUMOR, cases={"case_2"})
    assert [case.case for case in evaluation.cases] == ["case_2"]
    assert evaluation.unlabeled == ("case_77",)
    with pytest.raises(InputError, match="no label for case_77"):
        evaluate(predictions, labels, KIDNEY_TUMOR, cases={"case_77"})


def shifted_grid(by):
    grid = GRID.copy()
    grid[0, 3] += by
    return grid


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p, q: save(p, "case_2", organs()[:-1]),
            "case_2: with the prediction.*24 x 20 x 8.*24 x 20 x 7",
        ),
        (lambda p, q: save(p, "case_2", organs(), shifted_grid(0.8)), "case_2: with the prediction.*mm"),
        (lambda p, q: save(p, "case_2", organs() * 7), "case_2: .*unknown label value 7"),
        (lambda p, q: (p / "case_2.nii.gz").write_bytes(b"no image"), "case_2: "),
        (lambda p, q: save(p, "case_2", organs(), ending=".mha"), "case_2: two label maps"),
        (lambda p, q: [path.unlink() for path in q.iterdir()], "nothing to score"),
        (lambda p, q: [path.unlink() for path in p.iterdir()] and p.rmdir(), "expected a folder"),
    ],
)
def test_bad_input_names_the_case_in_one_line(folders, spoil, message):
    spoil(*folders)
    with pytest.raises(InputError, match=message) as error:
        evaluate(*folders, KIDNEY_TUMOR, workers=2)
    assert "\n" not in str(error.value)


def test_folder_needs_labels_and_ages_must_be_plausible(folders):
    with pytest.raises(InputError, match="give them"):
        evaluate(*folders)
    with pytest.raises(InputError, match="case_1: age of -1"):
        evaluate(*folders, KIDNEY_TUMOR, ages_years={"case_1": -1.0})


@pytest.mark.parametrize("value", [None, {}, {"format": "isopose-evaluation/1"}, {"format": "other/1"}])
def test_damaged_json_is_refused(value):
    with pytest.raises(InputError, match="evaluat"):
        Evaluation.from_json(value)


def test_summary_is_in_the_json(folders, tmp_path):
    write_evaluation(evaluate(*folders, KIDNEY_TUMOR), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "scores.json").read_text())["summary"]["all"]["all"]["tumor"]
    assert (summary["missed"], summary["empty"], summary["dice"]["patients"]) == (1, 1, 2)
    assert summary["dice"]["mean"] == pytest.approx(0.5)
    assert (summary["hd95_mm"]["without_value"], summary["hd95_mm"]["worst_case"]) == (1, "case_10")


def test_folder_takes_its_labels_from_the_dataset_around_it(tmp_path):
    labels = {"background": 0, "kidney": 2, "tumor": 5}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    root = tmp_path / "Dataset001_Kidney"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(description))
    stored = np.array([0, 2, 5], dtype=np.uint8)
    save(root / "labelsTr", "case_1", stored[organs(tumor=(14, 18))])
    save(root / "imagesTr", "case_1_0000", organs())
    save(tmp_path / "predictions", "case_1", stored[organs((9, 14))])
    from_folder = evaluate(tmp_path / "predictions", *open_truth(root / "labelsTr"))
    from_dataset = evaluate(tmp_path / "predictions", *open_truth(root))
    for evaluation in (from_folder, from_dataset):
        scores = evaluation.cases[0].scores
        assert scores["kidney"].dice == pytest.approx(2 * 5 / 15)
        assert scores["tumor"].outcome == "missed"
    renamed = evaluate(tmp_path / "predictions", *open_truth(root, {"organ": 2, "mass": 5}))
    assert renamed.targets == ("organ", "mass")
    with pytest.raises(InputError, match="no such dataset"):
        evaluate(tmp_path / "predictions", *open_truth(tmp_path / "nowhere"))


def test_scans_without_any_label_on_either_side_are_counted_as_empty(tmp_path):
    for folder in ("predictions", "labels"):
        save(tmp_path / folder, "case_1", np.zeros((4, 5, 6), dtype=np.uint8))
    evaluation = evaluate(tmp_path / "predictions", tmp_path / "labels", KIDNEY_TUMOR)
    assert {scores.outcome for scores in evaluation.cases[0].scores.values()} == {"empty"}


def test_ignored_voxels_are_scored_as_if_cut_from_the_scan(tmp_path):
    """Scores equal those of both files cropped to labeled slices, without surfaces at the ignored region."""
    truth, predicted = organs(tumor=(14, 18)), organs((6, 14), tumor=(15, 18))
    ignore = Labels.create({"kidney": 1, "tumor": 2, "ignore": 3})
    drawn = [2, 4]
    sparse = np.full_like(truth, 3)
    sparse[drawn] = truth[drawn]
    for case in ("case_1", "case_2"):
        save(tmp_path / "predictions", case, predicted)
    save(tmp_path / "labels", "case_1", sparse)
    save(tmp_path / "labels", "case_2", truth)
    save(tmp_path / "cut_labels", "case_1", truth[drawn])
    save(tmp_path / "cut_predictions", "case_1", predicted[drawn])
    partly, whole = evaluate(tmp_path / "predictions", tmp_path / "labels", ignore).cases
    [cut] = evaluate(tmp_path / "cut_predictions", tmp_path / "cut_labels", KIDNEY_TUMOR).cases
    for target in ("kidney", "tumor", "kidney+tumor"):
        a, b = partly.scores[target], cut.scores[target]
        assert (a.dice, a.truth_ml, a.prediction_ml) == (b.dice, b.truth_ml, b.prediction_ml)
        assert 0.5 < a.dice < 1.0
        assert (a.surface_dice, a.hd95_mm) == (None, None)
        assert whole.scores[target].surface_dice is not None


def test_undrawn_slices_are_not_scored_on_request(tmp_path):
    truth = organs(tumor=(14, 18))
    sparse = np.zeros_like(truth)
    sparse[[2, 4]] = truth[[2, 4]]
    save(tmp_path / "predictions", "case_1", truth)
    save(tmp_path / "labels", "case_1", sparse)
    plain = evaluate(tmp_path / "predictions", tmp_path / "labels", KIDNEY_TUMOR)
    result = evaluate(tmp_path / "predictions", tmp_path / "labels", KIDNEY_TUMOR, undrawn="ignore")
    assert plain.cases[0].scores["kidney"].dice == pytest.approx(2 * 2 / (2 + 4))
    assert result.cases[0].scores["kidney"].dice == 1.0
    assert result.provenance["undrawn"] == "ignore"
    assert "undrawn" not in plain.provenance
    text = write_and_read(result, tmp_path / "out")
    assert "partly labeled" in text
    assert "partly labeled" not in write_and_read(plain, tmp_path / "plain")


def write_and_read(evaluation, folder):
    write_evaluation(evaluation, folder)
    return next(folder.glob("*.md")).read_text()


def test_a_prediction_of_the_ignore_value_is_refused(tmp_path):
    save(tmp_path / "labels", "case_1", organs())
    save(tmp_path / "predictions", "case_1", organs() * 3)
    labels = Labels.create({"kidney": 1, "ignore": 3})
    with pytest.raises(InputError, match="unknown label value 3"):
        evaluate(tmp_path / "predictions", tmp_path / "labels", labels)
