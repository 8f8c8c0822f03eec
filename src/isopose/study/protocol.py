"""The study's protocol, decided before the study is run: comparisons, scores, strata, and goals.

``docs/study.md`` describes it in words. Nothing here may change once a study by it has begun.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isopose.evaluation.evaluate import CaseScores
from isopose.study.results import Difference, Results, Strata, differences, smoothed
from isopose.study.statistics import holm

#: Label names that stand for the paper's two structures.
PAPER_STRUCTURES = {"kidney": "kidney", "tumor": "tumor", "tumour": "tumor"}
#: Significance level for p, corrected over all goals.
ALPHA = 0.05
#: An arm has stopped rising when its validation Dice gains less than this from the fifth before the last of
#: its U-Net's epochs to the last.
MIN_RISE, LAST_PART = 0.005, 5
#: Strata: name, lower limit (included) and upper limit (excluded), in ml or degrees.
VOLUMES: tuple[tuple[str, float, float], ...] = (
    ("below 20 ml", 0.0, 20.0),
    ("20 to 100 ml", 20.0, 100.0),
    ("100 ml and more", 100.0, np.inf),
)
ROLLS: tuple[tuple[str, float, float], ...] = (
    ("below 10 degrees", 0.0, 10.0),
    ("10 to 25 degrees", 10.0, 25.0),
    ("25 degrees and more", 25.0, np.inf),
)


@dataclass(frozen=True)
class Goal:
    """What one comparison must show in one structure.

    Args:
        preset, arm, against: the two arms.
        structure: the paper's name of it, see :data:`PAPER_STRUCTURES`.
        points: of Dice in percent.
        kind: ``gain``: the mean difference is at least ``points``, its interval lies above 0, and its
            corrected p is below :data:`ALPHA`; ``no worse``: the interval lies above ``points``.
    """

    preset: str
    arm: str
    against: str
    structure: str
    points: float
    kind: Literal["gain", "no worse"]

    def is_reached(self, difference: Difference) -> bool:
        """Return whether a difference reaches the goal; with too few patients for a test it does not."""
        if difference.p_value is None:
            return False
        if self.kind == "no worse":
            return 100.0 * difference.low > self.points
        return difference.low > 0.0 and difference.p_value < ALPHA and 100.0 * difference.mean >= self.points


#: The primary comparisons, and the family over which p is corrected.
GOALS: tuple[Goal, ...] = (
    Goal("paper", "pose", "augmented", "tumor", 1.6, "gain"),
    Goal("paper", "pose", "augmented", "kidney", -0.9, "no worse"),
    Goal("default", "default", "augmented", "tumor", 3.0, "gain"),
    Goal("default", "default", "augmented", "kidney", 1.0, "gain"),
    Goal("default", "default", "nnunet", "tumor", 3.0, "gain"),
    Goal("default", "default", "nnunet", "kidney", 1.0, "gain"),
    Goal("default", "nnunet-homogenized", "nnunet", "tumor", 2.0, "gain"),
    Goal("default", "nnunet-homogenized", "nnunet", "kidney", -0.9, "no worse"),
)


def primary(results: Results) -> list[tuple[Goal, Difference]]:
    """Return the difference of each goal whose two arms were run, p corrected over all goals.

    A goal that was not run counts in the correction, as if it had the largest p.
    """
    found: list[tuple[Goal, Difference]] = []
    for goal in GOALS:
        pairs = differences(results.get(goal.preset, {}), [(goal.arm, goal.against)])
        found += [(goal, each) for each in pairs if PAPER_STRUCTURES.get(each.target) == goal.structure]
    corrected = iter(holm([each.raw_p for _, each in found if each.raw_p is not None], len(GOALS)))
    return [
        (goal, replace(each, p_value=None if each.raw_p is None else next(corrected))) for goal, each in found
    ]


def volume_strata(cases: Sequence[CaseScores]) -> dict[str, tuple[CaseScores, ...]]:
    """Return scans by the volume of the tumor, or of the last label; those without it are left out."""
    if not cases:
        return {}
    labels = [target for target in cases[0].scores if "+" not in target]
    target = next((label for label in labels if PAPER_STRUCTURES.get(label) == "tumor"), labels[-1])
    return _split({case.case: case.scores[target].truth_ml or -1.0 for case in cases}, cases, VOLUMES)


def roll_strata(rolls: Mapping[str, float]) -> Strata:
    """Return a function that groups scans by how far the patient is turned from lying on the back.

    Args:
        rolls: true angle in radians by case; cases without one are left out.
    """

    def split(cases: Sequence[CaseScores]) -> dict[str, tuple[CaseScores, ...]]:
        turns = {case.case: abs(np.degrees(rolls[case.case])) for case in cases if case.case in rolls}
        return _split(turns, cases, ROLLS)

    return split


def _split(
    values: Mapping[str, float], cases: Sequence[CaseScores], limits: Sequence[tuple[str, float, float]]
) -> dict[str, tuple[CaseScores, ...]]:
    groups = {
        name: tuple(case for case in cases if low <= values.get(case.case, -1.0) < high)
        for name, low, high in limits
    }
    return {name: members for name, members in groups.items() if members}


def curve_rise(curve: Sequence[tuple[float, float]]) -> float | None:
    """Return by how much the mean of the last fifth of a curve exceeds the mean of the fifth before it.

    Args:
        curve: seconds and validation score of each epoch.

    Returns:
        The difference; None below ten epochs, of which a fifth would be a single one.
    """
    scores = [score for _, score in smoothed(curve)]
    part = len(scores) // LAST_PART
    if part < 2:
        return None
    return float(np.mean(scores[-part:]) - np.mean(scores[-2 * part : -part]))
