"""Choice of postprocessing rules: only those that raise the Dice of unseen patients are kept."""

import numpy as np
import pytest

from isopose.evaluation.cleaning import Counts, candidates, count, decide
from isopose.geometry.volume import Volume
from isopose.inference.postprocess import Rule
from isopose.labels import Labels

LABELS = Labels.create({"kidney": 1, "tumor": 2})
#: A voxel has 1 ml.
MATRIX = np.diag([10.0, 10.0, 10.0, 1.0])


def counted(predicted: np.ndarray, truth: np.ndarray, patient: str = "a", labels: Labels = LABELS) -> Counts:
    rules = [rule for label in labels.names for rule in candidates(label, sides=False)]
    return count(Volume(predicted, MATRIX), Volume(truth, MATRIX), labels, rules, None, patient)


def scene() -> np.ndarray:
    truth = np.zeros((5, 20, 20), np.uint8)
    truth[1:4, 2:6, 2:6] = 1
    return truth


def test_a_rule_that_raises_dice_is_kept() -> None:
    truth = scene()
    predicted = truth.copy()
    predicted[2, 15, 15:19] = 1  # four ml, false
    decision = decide([counted(predicted, truth)], LABELS, sides=False)
    # Of rules that help as much the one that removes least.
    assert decision.rules == (Rule("kidney", "volume", 10.0),)
    evidence = decision.evidence["kidney"]
    assert evidence["none"] == pytest.approx(2 * 48 / (48 + 52))
    assert evidence["volume 3 ml"] == evidence["none"]
    assert evidence["volume 10 ml"] == evidence["largest"] == 1.0


def test_a_rule_without_effect_is_not_kept() -> None:
    truth = scene()
    truth[1:4, 12:15, 12:15] = 1  # a true second kidney
    decision = decide([counted(truth, truth)], LABELS, sides=False)
    assert decision.rules == ()
    assert decision.evidence["kidney"]["none"] == 1.0
    assert decision.evidence["kidney"]["largest"] == pytest.approx(2 * 48 / (48 + 75))


def test_a_rule_that_harms_one_patient_more_than_it_helps_another_is_not_kept() -> None:
    truth, second = scene(), scene()
    second[2, 15, 15:19] = 1
    predicted = truth.copy()
    predicted[2, 15, 15:17] = 1
    # Twice the same scan of the first patient counts once.
    counts = [counted(predicted, truth, "a"), counted(predicted, truth, "a"), counted(second, second, "b")]
    assert decide(counts, LABELS, sides=False).rules == (Rule("kidney", "volume", 3.0),)
    counts[2] = counted(second, second, "b")
    truth[2, 15, 15:17] = 1
    harmed = [counted(truth, truth, "a"), counted(second, second, "b")]
    assert decide(harmed, LABELS, sides=False).rules == ()


def test_a_rule_that_lowers_a_union_is_not_kept() -> None:
    truth = scene()
    predicted = truth.copy()
    # The tumor is a kidney's voxels by mistake: removing it helps the tumor and harms kidney+tumor.
    predicted[1:4, 2:6, 2] = 2
    predicted[2, 18, 18] = 2
    truth[2, 18, 18] = 2
    decision = decide([counted(predicted, truth)], LABELS, sides=False)
    assert decision.evidence["tumor"]["none"] == pytest.approx(2 / (13 + 1))
    # Keeping the largest part alone would remove the true one.
    assert decision.rules == ()


def test_a_false_alarm_that_is_removed_counts_as_right() -> None:
    truth = scene()
    predicted = truth.copy()
    predicted[0, 19, 19] = 2
    counts = counted(predicted, truth)
    assert counts.dice("tumor", []) == 0.0
    assert counts.dice("tumor", [Rule("tumor", "volume", 3.0)]) == 1.0
    assert decide([counts], LABELS, sides=False).rules == (Rule("tumor", "volume", 3.0),)


def test_dice_with_rules_is_that_of_the_cleaned_label_map() -> None:
    random = np.random.default_rng(0)
    truth = (random.random((5, 20, 20)) < 0.3).astype(np.uint8) * random.integers(1, 3, (5, 20, 20), np.uint8)
    predicted = np.where(random.random(truth.shape) < 0.2, random.integers(0, 3, truth.shape), truth)
    predicted = predicted.astype(np.uint8)
    from isopose.inference.postprocess import clean_up

    counts = counted(predicted, truth)
    rules = [Rule("kidney", "volume", 3.0), Rule("tumor", "largest")]
    cleaned = predicted.copy()
    clean_up(cleaned, rules, LABELS, (10.0, 10.0, 10.0), None)
    assert (cleaned != predicted).any()
    for target, values in LABELS.targets().items():
        own = [rule for rule in rules if LABELS.values[rule.label] in values]
        p, t = np.isin(cleaned, values), np.isin(truth, values)
        assert counts.dice(target, own) == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))


def test_a_label_with_a_side_in_its_name_has_no_side_rule() -> None:
    kinds = {
        label: [rule.keep for rule in candidates(label, sides=True)] for label in ("kidney", "kidney_left")
    }
    assert "largest on each side" in kinds["kidney"]
    assert "largest on each side" not in kinds["kidney_left"]
    assert "largest on each side" not in [rule.keep for rule in candidates("kidney", sides=False)]


def test_unannotated_slices_do_not_affect_the_choice_of_rules() -> None:
    """A predicted part in slices that were not annotated is not a false alarm that a rule may remove."""
    truth = np.zeros((4, 20, 20), np.uint8)
    truth[1:3, 4:10, 4:10] = 1
    predicted = truth.copy()
    predicted[3, 15:17, 15:17] = 1
    labels = Labels.create({"kidney": 1})
    rule = Rule("kidney", "largest")
    labeled = np.ones(truth.shape, bool)
    labeled[3] = False
    volumes = Volume(predicted, MATRIX), Volume(truth, MATRIX)
    known = count(*volumes, labels, [rule], None, "a", labeled)
    assert known.targets["kidney"] == (72, 72, 72)
    assert known.removed[rule] == (0, {"kidney": 0})
    everywhere = count(*volumes, labels, [rule], None, "a")
    assert everywhere.targets["kidney"] == (76, 72, 72)
    assert everywhere.removed[rule] == (4, {"kidney": 0})
