"""Tables of how fast arms learn: time to a score, scores at equal steps and time, and the final gain."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from isopose.report.tables import NO_VALUE, Cell, Column, Table
from isopose.study.protocol import MIN_RISE, curve_rise
from isopose.study.results import CLOCKS, ArmResult, Clock, SeedAndFold, StudyRun, goals, smoothed, times_to
from isopose.study.tables import format_time

#: nnU-Net's validation scores beside those of other arms, and those of its homogenized arms.
PEER_NOTE = (
    "nnU-Net computes its validation Dice over all slices together, not by patient: not comparable with that "
    "of the other arms"
)
UPRIGHT_NOTE = "nnU-Net's homogenized arms are validated on homogenized slices, before restoring"


def time_table(results: Mapping[str, ArmResult], labels: Sequence[str], baseline: str) -> Table:
    """Return the time until runs reach the final validation Dice of the baseline with the same seed and fold.

    In brackets: this time as a fraction of the baseline's own, over the runs that reach it.
    """
    columns = (
        Column("Arm", text=True),
        *(Column(f"{label}{of}", text=True) for of in ("", ", CPU s") for label in labels),
    )
    wanted = {label: goals(results[baseline], f"dice {label}") for label in labels}
    rows = []
    for name, result in results.items():
        if not result.runs[0].history:
            continue
        cells = []
        for clock in CLOCKS:
            for label in labels:
                key = f"dice {label}"
                cells.append(
                    _format_times(
                        times_to(result, key, wanted[label], clock),
                        times_to(results[baseline], key, wanted[label], clock),
                        clock,
                    )
                )
        rows.append((name, *cells))
    times = "; ".join(
        f"{label} " + ", ".join(f"{score:.3f}" for _, score in sorted(of_label.items()))
        for label, of_label in wanted.items()
        if of_label
    )
    return Table(
        f"Training time to reach the final validation Dice of {baseline}",
        columns,
        tuple(rows),
        notes=(
            f"time until the validation Dice (mean of three epochs) reaches the final one of {baseline} with "
            f"the same seed and fold ({times}); it includes the training of pose and crop, but no "
            f"validation; in brackets: the time divided by that of {baseline}",
            *_note_peers(results),
        ),
    )


def _format_times(
    times: Mapping[SeedAndFold, float | None], of_baseline: Mapping[SeedAndFold, float | None], clock: Clock
) -> str:
    """Format the mean time of runs that reach a score, its fraction of the baseline's, and their number."""
    pairs = [(seconds, of_baseline.get(place)) for place, seconds in times.items() if seconds is not None]
    if not pairs:
        return "not reached" if times else NO_VALUE
    seconds = sum(mine for mine, _ in pairs) / len(pairs)
    theirs = sum(its or 0.0 for _, its in pairs) / len(pairs)
    part = f" ({seconds / theirs:.2f})" if theirs > 0 else ""
    some = "" if len(pairs) == len(times) else f", {len(pairs)} of {len(times)} runs"
    return (format_time(seconds) if clock == "seconds" else f"{seconds:.0f}") + part + some


def pace_table(results: Mapping[str, ArmResult], labels: Sequence[str], baseline: str) -> Table:
    """Return validation Dice at equal steps, at equal CPU time and at the end, and whether it still rises."""
    trained = {name: result for name, result in results.items() if result.runs[0].history}
    epochs = min((len(_find_epochs(run)) for one in trained.values() for run in one.runs), default=0)
    ends = [
        curve[-1][0]
        for run in results[baseline].runs
        for label in labels
        if (curve := run.curve(f"dice {label}", "cpu_seconds"))
    ]
    seconds = float(np.mean(ends)) if ends else None
    columns = (
        Column("Arm", text=True),
        *(
            Column(f"{label}: {where}", text=True)
            for label in labels
            for where in ("at equal steps", "at equal CPU time", "at the end")
        ),
        Column("Gain at the end (points)", 1),
        Column("Stopped rising", text=True),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, result in trained.items():
        cells: list[Cell] = []
        for label in labels:
            curves = [smoothed(run.curve(f"dice {label}", "cpu_seconds")) for run in result.runs]
            early = [smoothed(_truncated(run, epochs).curve(f"dice {label}")) for run in result.runs]
            cells += [
                _format_band([curve[-1][1] for curve in early if curve]),
                _format_band(
                    [score for curve in curves if (score := _find_score(curve, seconds)) is not None]
                ),
                _format_band([curve[-1][1] for curve in curves if curve]),
            ]
        rises = [
            value
            for label in labels
            if (
                found := [
                    r for run in result.runs if (r := curve_rise(run.curve(f"dice {label}"))) is not None
                ]
            )
            for value in [float(np.mean(found))]
        ]
        most = max(rises, default=None)
        stopped = NO_VALUE if most is None else "yes" if most < MIN_RISE else "no"
        rows.append((name, *cells, None if most is None else 100.0 * most, stopped))
    at = "no run" if seconds is None else f"after {seconds:.0f} CPU seconds of training, when {baseline} ends"
    notes = (
        "validation Dice (mean of three epochs): mean over seeds and folds (lowest to highest); equal steps: "
        f"after {epochs} epochs of the U-Net; equal CPU time: {at}, including the training of pose and crop "
        "(an arm that ended earlier: its last value; an arm whose U-Net has not started: none yet)",
        "gain at the end: mean over the last fifth of the U-Net's epochs minus the mean over the fifth "
        "before it, averaged over seeds, for the label that gains most; stopped rising: less than "
        f"{100 * MIN_RISE:g} points",
        *_note_peers(trained),
    )
    return Table("Validation Dice during training", columns, tuple(rows), notes=notes)


def _note_peers(results: Mapping[str, ArmResult]) -> tuple[str, ...]:
    """Return notes on nnU-Net's validation scores in a table."""
    peers = [result.arm.peer for result in results.values()]
    mixed = any(peers) and not all(peers)
    upright = any(peer.homogenized for peer in peers if peer)
    return (*((PEER_NOTE,) * mixed), *((UPRIGHT_NOTE,) * upright))


def _find_epochs(run: StudyRun) -> list[int]:
    """Return the indices of the U-Net's epochs in a run's history."""
    return [place for place, row in enumerate(run.history) if row["stage"] == "unet"]


def _truncated(run: StudyRun, epochs: int) -> StudyRun:
    """Return a run cut after a number of the U-Net's epochs, some of which have no Dice in nnU-Net."""
    places = _find_epochs(run)[:epochs]
    return replace(run, history=run.history[: places[-1] + 1] if places else ())


def _find_score(curve: Sequence[tuple[float, float]], seconds: float | None) -> float | None:
    """Return the last score before a time; None if there is none."""
    reached = [score for at, score in curve if seconds is not None and at <= seconds]
    return reached[-1] if reached else None


def _format_band(scores: Sequence[float]) -> str:
    """Format the mean of scores and, of several, the lowest and highest."""
    if not scores:
        return "none yet"
    mean = f"{np.mean(scores):.3f}"
    return mean if len(scores) == 1 else f"{mean} ({min(scores):.3f} to {max(scores):.3f})"
