"""Small plots as SVG that follow the reader's light or dark mode and need no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import isfinite

import numpy as np
from matplotlib.ticker import MaxNLocator

from isopose.evaluation.evaluate import Evaluation
from isopose.evaluation.metrics import Scores
from isopose.evaluation.summary import badness

#: Colors reach a contrast of 4.5 (text) and 3 (marks) against white and against #14181c.
_STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#4a545e;font-variant-numeric:tabular-nums}
.title{font-weight:600;fill:#1b2127}.grid{stroke:#dde2e7}.mark{fill:#1b7f5c;stroke:#fff;stroke-width:1}
.bad{fill:#b4530a}.line{fill:none;stroke:#1b7f5c;stroke-width:2;stroke-linejoin:round}
.box{fill:#1b7f5c;fill-opacity:.12;stroke:#1b7f5c}.median{stroke:#1b2127;stroke-width:2}
@media (prefers-color-scheme:dark){text{fill:#b3bdc7}.title{fill:#eef1f4}.grid{stroke:#323a42}
.mark{fill:#4fd6a0;stroke:#14181c}.bad{fill:#ff9a52}.line{stroke:#4fd6a0}
.box{fill:#4fd6a0;stroke:#4fd6a0}.median{stroke:#eef1f4}}
"""


_DICE_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class _Panel:
    """A rectangle of the picture in pixels, and the data that its sides stand for."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    y_ticks: tuple[float, ...] = ()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a data point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def frame(self, title: str, x_label: str = "", whole: bool = False) -> str:
        """Title, grid lines and tick labels."""
        parts = [_draw_text(self.left, self.top - 10, title, "title")]
        for tick in self.y_ticks or MaxNLocator(4).tick_values(*self.y):
            if self.y[0] <= tick <= self.y[1]:
                _, y = self.at(self.x[0], tick)
                parts.append(_draw_line(self.left, y, self.left + self.width, y))
                parts.append(_draw_text(self.left - 7, y + 4, f"{tick:.4g}", anchor="end"))
        for tick in MaxNLocator(5, integer=whole).tick_values(*self.x):
            if self.x[0] <= tick <= self.x[1]:
                x, y = self.at(tick, self.y[0])
                parts.append(_draw_text(x, y + 17, f"{tick:.4g}", anchor="middle"))
        if x_label:
            position = self.left + self.width / 2, self.top + self.height + 35
            parts.append(_draw_text(*position, x_label, anchor="middle"))
        return "".join(parts)


def _draw_text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _draw_line(x0: float, y0: float, x1: float, y1: float, kind: str = "grid") -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _draw_dot(x: float, y: float, bad: bool = False) -> str:
    # Missed structures are squares, so that they differ not only in color.
    if bad:
        return f'<rect class="mark bad" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _to_svg(width: float, height: float, parts: Sequence[str]) -> bytes:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"><style>{_STYLE}</style>'
    return (head + box + "".join(parts) + "</svg>\n").encode()


def _find_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the values' range with a little room, never empty."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high) * 0.1, 0.5)
    return low - room, high + room


def training_curves(history: Sequence[Mapping[str, float | str]]) -> bytes:
    """Loss over the epochs of each stage.

    Args:
        history: rows in order with keys ``stage``, ``epoch`` and ``loss``; other keys are ignored, and a loss
            that is not finite leaves a gap in its curve.

    Returns:
        An SVG: one column per stage.

    Raises:
        ValueError: no row with a finite loss.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in history:
        curves.setdefault(str(row["stage"]), []).append((float(row["epoch"]), float(row["loss"])))
    if not any(isfinite(loss) for curve in curves.values() for _, loss in curve):
        raise ValueError("the training history holds no finite loss")
    width, height, gap, top = 250.0, 130.0, 62.0, 34.0
    parts = []
    for column, (stage, curve) in enumerate(curves.items()):
        finite = [point for point in curve if isfinite(point[1])]
        if not finite:
            continue
        epochs, losses = _find_range([x for x, _ in curve]), _find_range([y for _, y in finite])
        panel = _Panel(gap + column * (width + gap), top, width, height, epochs, losses)
        parts.append(panel.frame(f"{stage}: loss", "epoch", whole=True))
        for is_finite, part in groupby(curve, key=lambda point: isfinite(point[1])):
            if is_finite:
                path = " ".join("{:.1f},{:.1f}".format(*panel.at(*point)) for point in part)
                parts.append(f'<polyline class="line" points="{path}"/>')
        parts.append(_draw_dot(*panel.at(*finite[-1])))
    return _to_svg(gap + len(curves) * (width + gap) - gap / 2, top + height + gap - 10, parts)


def score_dots(evaluation: Evaluation) -> bytes:
    """Dice of every scan, one lane per target, over a box of quartiles and the median.

    Returns:
        An SVG. A structure that was missed or a false alarm is a square; the worst scan has its id beside it.
    """
    label = max(90.0, 7.5 * max(len(target) for target in evaluation.targets) + 20)
    lane, width = 62.0, 560.0
    panel = _Panel(label, 30, width, lane * len(evaluation.targets), (0.0, 1.0), (0.0, 1.0))
    parts = [_draw_text(label, 18, "Dice of every scan", "title")]
    for tick in np.linspace(0, 1, 6):
        x, _ = panel.at(float(tick), 0)
        parts.append(_draw_line(x, panel.top, x, panel.top + panel.height))
        parts.append(_draw_text(x, panel.top + panel.height + 18, f"{tick:.1f}", anchor="middle"))
    for index, target in enumerate(evaluation.targets):
        middle = panel.top + lane * (index + 0.5)
        parts.append(_draw_text(label - 14, middle + 4, target, anchor="end"))
        scans = [(case.case, case.scores[target]) for case in evaluation.cases]
        values = [(case, s, s.dice) for case, s in scans if s.dice is not None]
        if not values:
            parts.append(_draw_text(label + 8, middle + 4, "in no scan"))
            continue
        low, median, high = (
            panel.at(float(v), 0)[0] for v in np.percentile([dice for *_, dice in values], [25, 50, 75])
        )
        box = f'x="{low:.1f}" y="{middle - 17:.1f}" width="{max(high - low, 1):.1f}" height="34" rx="3"'
        parts += [
            f'<rect class="box" {box}/>',
            _draw_line(median, middle - 17, median, middle + 17, "median"),
        ]
        for number, (_, scores, dice) in enumerate(values):
            # Jitter by index instead of random jitter: the same scores give the same picture.
            parts.append(_draw_dot(panel.at(dice, 0)[0], middle + (number % 5 - 2) * 5.5, _is_bad(scores)))
        worst, _, dice = max(values, key=lambda value: badness(value[1], "dice"))
        x = panel.at(dice, 0)[0]
        anchor = "start" if x < label + width / 2 else "end"
        parts.append(_draw_text(x, middle + 29, f"worst: {worst}", anchor=anchor))
    return _to_svg(label + width + 24, panel.top + panel.height + 30, parts)


def score_against_age(evaluation: Evaluation) -> bytes | None:
    """Dice of every scan over the patient's age, one panel per target.

    Returns:
        An SVG, or ``None`` where no age is known.
    """
    with_age = [(case.age_years, case) for case in evaluation.cases if case.age_years is not None]
    if not with_age:
        return None
    width, height, gap = 250.0, 170.0, 56.0
    parts = []
    for index, target in enumerate(evaluation.targets):
        left = gap + (index % 3) * (width + gap)
        top = 34.0 + (index // 3) * (height + 70)
        oldest = max(age for age, _ in with_age)
        # The dots of 0 and 1 are drawn whole, so the axis reaches a little beyond.
        ages = _find_range([0.0, max(oldest, 1.0)])
        panel = _Panel(left, top, width, height, ages, (-0.04, 1.04), _DICE_TICKS)
        parts.append(panel.frame(target, "age (years)"))
        for age, case in with_age:
            scores = case.scores[target]
            if scores.dice is not None:
                parts.append(_draw_dot(*panel.at(age, scores.dice), _is_bad(scores)))
    columns, rows = min(3, len(evaluation.targets)), -(-len(evaluation.targets) // 3)
    return _to_svg(gap + columns * (width + gap) - gap / 2, 34 + rows * (height + 70) - 20, parts)


def _is_bad(scores: Scores) -> bool:
    return scores.outcome in ("missed", "false alarm")
