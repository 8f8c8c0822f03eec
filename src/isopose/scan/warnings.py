"""Warnings about the pose and crop of one scan, one line for each kind."""

import math
from typing import Final

import numpy as np

from isopose.choices import Contrast
from isopose.geometry.pose import POSE_SIZE
from isopose.models.pose import HAND_SOURCE, POSE_SOURCES, PoseTransformer
from isopose.scan.pose import RollDecision, ScanPose
from isopose.scan.prior import TURNED_ROLL
from isopose.settings import PredictConfig

#: Mean logit from which a scan counts as mirrored, by the contrast of the roll network. CT: of 500 unseen
#: phantoms none comes near it (at most 0.2), 98 % exceed it when mirrored; two real scans, turned and scaled
#: in 120 ways, have at most -1.8. Any contrast: of 60 phantoms in MR and 60 MR made of real CT none exceeds
#: it, 47 and 20 do when mirrored (benchmarks/pose_mr.py).
MIRRORED_SCORE: Final[dict[Contrast, float]] = {"ct": 0.7, "any": 0.4}


def pose_warnings(
    scan: ScanPose, transformer: PoseTransformer, settings: PredictConfig, *, joint: bool = False
) -> list[str]:
    """Return the warnings about the pose of a scan.

    Args:
        scan: poses of slices, or of a volume.
        transformer: STN1.
        settings: thresholds of confidence and agreement.
        joint: whether a joint network refined STN1's poses.
    """
    has_body, config = scan.has_body, transformer.config
    total = int(has_body.sum())
    learned = joint or transformer.localization is not None
    lines = []
    for source, name in enumerate(POSE_SOURCES):
        count = _slice_count(scan, scan.source == source)
        if count is not None and source == HAND_SOURCE:
            lines.append(f"the pose was set by hand{count}")
        elif count is not None and name != ("learned" if learned else config.start):
            lines.append(f"pose fell back to {name}{count}")
    if transformer.plane == "axial" and abs(scan.roll) > TURNED_ROLL:
        lines.append(
            f"rotated by {math.degrees(scan.roll):+.0f} degrees relative to the position in the file's "
            "header: turned back; check the sides"
        )
    if scan.decision is not None and scan.decision.header_kept and HAND_SOURCE not in scan.source:
        return [*lines, _header_warning(scan.decision, estimated=not transformer.keeps_header)]
    if transformer.roll is not None:
        count = _slice_count(scan, has_body & (scan.confidence < settings.min_confidence))
        if count is not None:
            lines.append(f"low confidence in the roll of the patient{count}")
        if total and float(scan.mirrored[has_body].mean()) > MIRRORED_SCORE[config.contrast]:
            lines.append("looks like its own mirror image (liver on the left); check the sides in the header")
    count = _slice_count(scan, has_body & (scan.agreement < settings.min_pose_dice))
    if count is not None and (joint or config.learned or config.start != "identity"):
        lines.append(f"low agreement{count}: the outline does not match the reference")
    return lines


def _header_warning(decision: RollDecision, *, estimated: bool) -> str:
    """Return the warning about a scan that keeps its header's roll.

    Args:
        decision: about the roll.
        estimated: whether a network estimated the roll.
    """
    if not decision.outline_visible:
        return "no outline of a body is visible: its pose and size are left as the file has them"
    if not estimated:
        return "the roll was not estimated: left as the file's header says"
    if abs(decision.shown_degrees) > math.degrees(TURNED_ROLL) and decision.odds >= 1.0:
        return (
            f"its slices show a patient rotated by {decision.shown_degrees:+.0f} degrees against the file's "
            f"header, but at odds of {decision.odds:.1f} only ({decision.needed_odds:g} are needed): left as "
            "the header says; check the sides"
        )
    return "no slice shows the roll of the patient (is it a trunk?): left as the file's header says"


def crop_warnings(scan: ScanPose) -> list[str]:
    """Return the warnings about crops: where one cut a structure, and where one may still do so."""
    lines = []
    for rows, text in (
        (scan.widened, "the crop cut a structure and was widened"),
        (scan.cut_off, "a structure may be cut off by the crop"),
    ):
        count = _slice_count(scan, rows)
        if count is not None:
            lines.append(text + count)
    return lines


def _slice_count(scan: ScanPose, rows: np.ndarray) -> str | None:
    """Return `` in N of M slices`` to append to a warning; None if no row is selected.

    Args:
        scan: slices, or a volume, for which the text is empty.
        rows: ``(z,)`` booleans, the slices to which the warning applies.
    """
    count = int(rows.sum())
    if not count:
        return None
    return f" in {count} of {int(scan.has_body.sum())} slices" if scan.pose.shape[1] == POSE_SIZE else ""
