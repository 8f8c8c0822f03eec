"""Figures of a study: learning against time, Dice by patient, Dice against body size."""

import io
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from isopose.study.arms import BY_NAME
from isopose.study.results import ArmResult, smoothed

#: Arms whose Dice is drawn against body size.
DRAWN_ARMS = ("augmented", "pose", "crop-half", "nnunet")


def _to_png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90, metadata={"Software": None})
    plt.close(figure)
    return out.getvalue()


def _color_of(arm: str) -> tuple[float, ...]:
    """Return an arm's color, the same in every figure."""
    return plt.get_cmap("tab20")(list(BY_NAME).index(arm) % 20)


def learning_curves(results: Mapping[str, ArmResult], labels: tuple[str, ...]) -> bytes | None:
    """Plot the validation Dice of each label against CPU seconds of training, with one line per arm.

    CPU seconds (STN1 and STN2 included) are used because other work on the machine lengthens wall-clock time.
    nnU-Net's validation Dice is computed differently, so its lines are dashed.
    """
    trained = {name: result for name, result in results.items() if result.runs[0].history}
    labels_drawn = [
        label for label in labels if any(r.runs[0].curve(f"dice {label}") for r in trained.values())
    ]
    if not labels_drawn:
        return None
    figure, axes = plt.subplots(
        1,
        len(labels_drawn),
        figsize=(5.2 * len(labels_drawn) + 1.4, 4.6),
        squeeze=False,
        layout="constrained",
    )
    for axis, label in zip(axes[0], labels_drawn, strict=True):
        for name, result in trained.items():
            band = band_of([smoothed(run.curve(f"dice {label}", "cpu_seconds")) for run in result.runs])
            if band is not None:
                seconds, mean, low, high = band
                style = "--" if result.arm.peer else "-"
                axis.plot(seconds, mean, color=_color_of(name), lw=1.4, ls=style, label=name)
                axis.fill_between(seconds, low, high, color=_color_of(name), alpha=0.15, lw=0)
        axis.set(title=label, xlabel="CPU seconds of training", ylabel="validation Dice", ylim=(0.0, 1.0))
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return _to_png(figure)


def band_of(
    curves: Sequence[Sequence[tuple[float, float]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Return seconds, and the mean, minimum and maximum of the curves at these seconds.

    The band covers the range that all curves have in common, so that it always averages the same runs. Curves
    are interpolated linearly between epochs.

    Args:
        curves: seconds and score of each run.
    """
    arrays = [np.array(curve, dtype=float) for curve in curves if len(curve)]
    if not arrays:
        return None
    first, last = max(one[0, 0] for one in arrays), min(one[-1, 0] for one in arrays)
    seconds = np.unique(np.concatenate([one[:, 0] for one in arrays]))
    seconds = seconds[(seconds >= first) & (seconds <= last)]
    if not len(seconds):
        return None
    scores = np.stack([np.interp(seconds, one[:, 0], one[:, 1]) for one in arrays])
    return seconds, scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0)


def box_plots(results: Mapping[str, ArmResult]) -> bytes:
    """Plot the Dice of each patient, averaged over seeds, by arm and target."""
    targets = next(iter(results.values())).targets
    height = 0.36 * len(results) + 1.4
    size = (4.4 * len(targets), height)
    figure, axes = plt.subplots(
        1, len(targets), figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    names = list(results)
    for axis, target in zip(axes[0], targets, strict=True):
        values = [list(results[name].by_patient(target).values()) for name in names]
        axis.boxplot(values, orientation="horizontal", showfliers=False, widths=0.6)
        for place, dots in enumerate(values, start=1):
            # Jitter by index instead of random jitter: the same scores give the same picture.
            spread = place + (np.arange(len(dots)) % 5 - 2) * 0.06
            axis.plot(dots, spread, ".", color="tab:blue", ms=5, alpha=0.7)
        lowest = min(map(min, filter(None, values)), default=0.0)
        axis.set(title=target, xlabel="Dice of a patient", xlim=(lowest - 0.03, 1.03))
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(1, len(names) + 1), names)
    axes[0][0].invert_yaxis()
    return _to_png(figure)


def against_size(results: Mapping[str, ArmResult]) -> bytes | None:
    """Return Dice of each scan against the body's width by target, with a running median for each arm.

    Shows the arms in :data:`DRAWN_ARMS`, since more colors are hard to distinguish; the first arms if none of
    them was run.
    """
    names_drawn = [name for name in DRAWN_ARMS if name in results] or list(results)[: len(DRAWN_ARMS)]
    sized_cases = {
        name: [case for case in results[name].cases if case.body_size_mm is not None] for name in names_drawn
    }
    if not any(sized_cases.values()):
        return None
    targets = next(iter(results.values())).targets
    figure, axes = plt.subplots(
        1, len(targets), figsize=(4.6 * len(targets) + 1.2, 4.0), squeeze=False, layout="constrained"
    )
    for axis, target in zip(axes[0], targets, strict=True):
        for name, cases in sized_cases.items():
            points = sorted(
                (case.body_size_mm or 0.0, case.scores[target].dice)
                for case in cases
                if case.scores[target].dice is not None
            )
            if not points:
                continue
            size, dice = np.array(points, dtype=float).T
            axis.plot(size, dice, ".", color=_color_of(name), ms=3, alpha=0.5)
            reach = max(3, len(size) // 5)
            middle = [np.median(dice[max(0, n - reach) : n + reach + 1]) for n in range(len(size))]
            axis.plot(size, middle, color=_color_of(name), lw=1.4, label=name)
        axis.set(title=target, xlabel="width of the body, mm", ylabel="Dice", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return _to_png(figure)
