"""Decide by cross-validation which rule, if any, cleans up each label.

Every patient was predicted by a model that was not trained on it. A rule is kept if it raises the label's
mean Dice over these patients and does not lower that of any union.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isopose.geometry.volume import Volume
from isopose.inference.postprocess import Components, Midline, Rule, components_to_keep
from isopose.labels import Labels, words_of

#: Volumes in ml below which parts may be removed.
VOLUMES_ML = (0.1, 0.3, 1.0, 3.0, 10.0)
#: Differences of Dice up to this are rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """Which rules are kept, and why.

    Args:
        rules: at most one for each label.
        evidence: for each label the mean Dice over patients without a rule (``none``) and with each that was
            tried, given the rules of the labels before it.
    """

    rules: tuple[Rule, ...]
    evidence: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Counts:
    """Voxel counts of one scan, from which the Dice with any rules can be computed.

    Args:
        patient: scans with the same value are of one patient.
        targets: for each target the voxels predicted, of the ground truth, and of both.
        removed: for each rule the voxels that it removes, and how many of them are in each target's
            ground truth.
    """

    patient: str
    targets: Mapping[str, tuple[int, int, int]]
    removed: Mapping[Rule, tuple[int, Mapping[str, int]]]

    def dice(self, target: str, rules: Sequence[Rule]) -> float:
        """Return the Dice of a target with rules for its labels; 1 where neither has a voxel."""
        predicted, true, both = self.targets[target]
        for rule in rules:
            voxels, of_truth = self.removed[rule]
            predicted, both = predicted - voxels, both - of_truth[target]
        return 2.0 * both / (predicted + true) if predicted + true else 1.0


def candidates(label: str, *, sides: bool) -> tuple[Rule, ...]:
    """Return the rules to try for a label, the one that removes least first.

    Args:
        label: its name.
        sides: whether poses tell left from right; a label that names its side does not need it.
    """
    by_side = sides and not {"left", "right"} & set(words_of(label))
    return (
        *(Rule(label, "volume", ml) for ml in VOLUMES_ML),
        *([Rule(label, "largest on each side")] if by_side else []),
        Rule(label, "largest"),
    )


def count(
    prediction: Volume,
    truth: Volume,
    labels: Labels,
    rules: Sequence[Rule],
    midline: Midline | None,
    patient: str,
    labeled: np.ndarray | None = None,
) -> Counts:
    """Count the voxels of one scan; voxels that were not annotated count in neither map.

    Args:
        prediction: stored label values, reoriented to the patient's axes.
        truth: on the same grid.
        labels: names and stored values.
        rules: to try.
        midline: of the body; None if the pose is uncertain.
        patient: see :class:`Counts`.
        labeled: ``(z, y, x)`` booleans, True where the scan was annotated; None: everywhere.
    """
    targets = labels.targets()
    reference = {target: np.isin(truth.array, values) for target, values in targets.items()}
    voxels = {}
    for target, values in targets.items():
        predicted = np.isin(prediction.array, values)
        if labeled is not None:
            predicted &= labeled
        overlap = int(np.count_nonzero(predicted & reference[target]))
        voxels[target] = int(predicted.sum()), int(reference[target].sum()), overlap
    components = {
        name: Components.of(prediction.array, labels.values[name]) for name in {rule.label for rule in rules}
    }
    removed: dict[Rule, tuple[int, Mapping[str, int]]] = {}
    for rule in rules:
        label_components = components[rule.label]
        false_positives = ~components_to_keep(label_components, rule, prediction.voxel_ml, midline)
        voxels_removed, of_truth = 0, dict.fromkeys(targets, 0)
        for z, mask in label_components.in_slices(false_positives):
            if labeled is not None:
                mask = mask & labeled[z]
            voxels_removed += int(np.count_nonzero(mask))
            for target, target_mask in reference.items():
                of_truth[target] += int(np.count_nonzero(target_mask[z] & mask))
        removed[rule] = voxels_removed, of_truth
    return Counts(patient, voxels, removed)


def decide(counts: Sequence[Counts], labels: Labels, *, sides: bool) -> Decision:
    """Return for each label the rule that raises its mean Dice most, if one does.

    Args:
        counts: of all scans, with all :func:`candidates` of all labels.
        labels: names and stored values.
        sides: as for :func:`candidates`.
    """
    chosen: dict[str, Rule] = {}
    evidence: dict[str, Mapping[str, float]] = {}
    targets = labels.targets()
    for label in labels.names:
        unions = [
            name for name, values in targets.items() if name != label and labels.values[label] in values
        ]

        def mean(target: str, extra: Sequence[Rule] = ()) -> float:
            rules_so_far = [rule for name, rule in chosen.items() if labels.values[name] in targets[target]]
            return _mean_dice(counts, target, [*rules_so_far, *extra])

        before = {target: mean(target) for target in (label, *unions)}
        dice_by_rule = {rule: mean(label, [rule]) for rule in candidates(label, sides=sides)}
        evidence[label] = {"none": before[label], **{str(rule): dice for rule, dice in dice_by_rule.items()}}
        helpful = [
            rule
            for rule, dice in dice_by_rule.items()
            if dice > before[label] + ROUNDING
            and all(mean(union, [rule]) >= before[union] - ROUNDING for union in unions)
        ]
        if helpful:
            chosen[label] = max(helpful, key=lambda rule: dice_by_rule[rule])
    return Decision(tuple(chosen.values()), evidence)


def _mean_dice(counts: Sequence[Counts], target: str, rules: Sequence[Rule]) -> float:
    """Return the mean over patients of the mean over their scans."""
    dice_by_patient: dict[str, list[float]] = {}
    for counts_of_scan in counts:
        dice_by_patient.setdefault(counts_of_scan.patient, []).append(counts_of_scan.dice(target, rules))
    return float(np.mean([np.mean(values) for values in dice_by_patient.values()]))
