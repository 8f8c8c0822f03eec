"""Errors of estimated poses: angle, size, center and confidence, of phantoms and of turned scans."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pose_figures import THRESHOLDS
from pose_scans import Scan

from isopose.geometry.symmetry import symmetry_axis
from isopose.scan.prior import CORRECT_WITHIN


@dataclass(frozen=True)
class Estimate:
    """One contender's of one scan: angle in radians, spreads along the patient's axes and center in mm."""

    angle: np.ndarray
    extent: np.ndarray
    center: np.ndarray
    dice: np.ndarray
    confidence: np.ndarray | None
    seconds: float

    def of(self, rows: np.ndarray) -> "Estimate":
        """Some slices only."""
        names = ("angle", "extent", "center", "dice", *(() if self.confidence is None else ("confidence",)))
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def errors_of_phantoms(scans: list[Scan], estimates: list[Estimate]) -> dict[str, Any]:
    pairs = list(zip(scans, estimates, strict=True))
    roll = [wrapped(e.angle - s.roll) for s, e in pairs]
    size = np.concatenate([np.abs(e.extent / s.spread_mm - 1.0).max(axis=1) for s, e in pairs])
    mean = np.concatenate([np.abs(np.sqrt((e.extent / s.spread_mm).prod(axis=1)) - 1.0) for s, e in pairs])
    center = np.concatenate([np.linalg.norm(e.center - s.middle_mm, axis=1) for s, e in pairs])
    return {
        "rotation": _spread(np.degrees(np.abs(np.concatenate(roll)))),
        "scale": _spread(100.0 * size),
        "mean_scale": _spread(100.0 * mean),
        "center": _spread(center),
        "swaps": int(sum(np.median(np.abs(r)) > math.pi / 2 for r in roll)),
        "confidence": _rates(roll, estimates),
        "angles": np.degrees(np.concatenate(roll)).round(3).tolist(),
    }


def errors_of_turned(scans: list[Scan], estimates: list[Estimate]) -> dict[str, Any]:
    """Of turned scans against the same scan as it lies, and of that against upright."""
    plain = {
        s.name.split("_")[0]: (s, e)
        for s, e in zip(scans, estimates, strict=True)
        if s.name.endswith("_0000")
    }
    rolls, absolute, sizes, means, centers, used = [], [], [], [], [], []
    leans: dict[str, np.ndarray] = {}
    for scan, estimate in zip(scans, estimates, strict=True):
        first, before = plain[scan.name.split("_")[0]]
        if scan is first:
            leans[scan.name.split("_")[0]] = wrapped(estimate.angle)
            continue
        common, here, there = np.intersect1d(scan.slices, first.slices, return_indices=True)
        assert len(common), scan.name
        angle, factor = scan.applied[0], scan.applied[1]
        rolls.append(wrapped(estimate.angle[here] - before.angle[there] - angle))
        absolute.append(wrapped(estimate.angle - angle))
        ratio = estimate.extent[here] / before.extent[there] / factor
        sizes.append(np.abs(ratio - 1.0).max(axis=1))
        means.append(np.abs(np.sqrt(ratio.prod(axis=1)) - 1.0))
        centers.append(np.linalg.norm(estimate.center[here] - scan.moved(before.center[there]), axis=1))
        used.append(estimate)
    return {
        "rotation": _spread(np.degrees(np.abs(np.concatenate(rolls)))),
        "scale": _spread(100.0 * np.concatenate(sizes)),
        "mean_scale": _spread(100.0 * np.concatenate(means)),
        "center": _spread(np.concatenate(centers)),
        "swaps": int(sum(np.median(np.abs(a)) > math.pi / 2 for a in absolute)),
        "lean": _spread(np.degrees(np.abs(np.concatenate([*leans.values()])))),
        "leans": {name: float(np.degrees(np.median(angle))) for name, angle in leans.items()},
        "absolute": _spread(np.degrees(np.abs(np.concatenate(absolute)))),
        "confidence": _rates(absolute, used),
        "angles": np.degrees(np.concatenate(rolls)).round(3).tolist(),
    }


def _rates(errors: list[np.ndarray], estimates: list[Estimate]) -> dict[str, Any] | None:
    """By threshold: part of the bad poses that are caught, part of the good that are refused."""
    if estimates[0].confidence is None:
        return None
    error = np.abs(np.concatenate(errors))
    confidence = np.concatenate([e.confidence for e in estimates if e.confidence is not None])
    bad = error > CORRECT_WITHIN
    edges = np.quantile(confidence, np.linspace(0.0, 1.0, 11))
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, 9)
    calibration = [
        [float(confidence[place == k].mean()), float((~bad[place == k]).mean())]
        for k in range(10)
        if (place == k).any()
    ]
    return {"bad": int(bad.sum()), "calibration": calibration} | {
        f"{threshold:.2f}": {
            "caught": _part(confidence < threshold, bad),
            "good_refused": _part(confidence < threshold, ~bad),
            "bad_of_kept": _part(bad, confidence >= threshold),
        }
        for threshold in THRESHOLDS
    }


def _part(of: np.ndarray, where: np.ndarray) -> float | None:
    return float(of[where].mean()) if where.any() else None


def _spread(values: np.ndarray) -> dict[str, float]:
    names = ("median", "p90", "p95", "p99", "worst")
    return dict(zip(names, np.nanpercentile(values, (50, 90, 95, 99, 100)).tolist(), strict=True))


def spread_of_dice(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "p1": float(np.percentile(values, 1)), "worst": float(values.min())}


def wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + math.pi) % (2.0 * math.pi) - math.pi


def leans_by_symmetry(scans: list[Scan]) -> dict[str, float]:
    """Return by scan how far its image's own mirror axis leans, degrees, the median over slices."""
    as_they_lie = [scan for scan in scans if scan.name.endswith("_0000")]
    return {
        scan.name.split("_")[0]: math.degrees(float(symmetry_axis(scan.images, scan.masks).angle.median()))
        for scan in as_they_lie
    }


def leaning(scans: list[Scan], leans: dict[str, float]) -> list[Scan]:
    """Return rotated scans whose true roll is the rotation that was applied plus the lean of the patient.

    Args:
        scans: rotated scans, with the applied rotation as their roll.
        leans: lean of the patient in the scan before it was rotated, degrees, by the name of that scan.
    """
    return [replace(s, roll=s.roll + math.radians(leans[s.name.split("_")[0]])) for s in scans]
