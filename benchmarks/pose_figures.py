"""Tables and the picture of ``pose.py``, from its results."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from isopose.files import replacing
from isopose.presets import load_config

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Confidence below which a pose is doubted; the default is among them.
THRESHOLDS = (0.5, 0.7, 0.8, 0.9)
#: Contenders whose lean stands beside that of the image's own mirror axis.
LEANS = ("moments", "isopose, smooth", "isopose, volume")


def tables_of(results: dict[str, Any]) -> str:
    """Return all tables in Markdown."""
    lines = []
    for part, title in (
        ("all", "every slice"),
        ("registered", "the middle slice of some scans, all methods"),
    ):
        for group, rows in results[part].items():
            first = next(iter(rows.values()))
            lines += [f"### {group}: {title} ({first['scans']} scans, {first['slices']} slices)", ""]
            head = [
                "method",
                "rotation error, °: median / p95 / p99 / worst",
                "scale error, %: median / p95",
                "center error, mm: median / p95",
                "mask Dice: mean / p1 / worst",
                "side swaps, scans",
                "ms per slice",
            ]
            if part == "all":
                head.append("ms per scan")
            if group == "real":
                head.append("lean, °: median / p95")
            lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
            lines += [_row(name, row, part, group) for name, row in rows.items()] + [""]
    if "symmetry" in results:
        lines += _leans(results["symmetry"], results["all"]["real"])
    default = load_config().predict.min_confidence
    lines += [f"### Confidence (default threshold: {default})", ""]
    lines += [
        "| scans: method | threshold | bad poses, slices | bad poses flagged | good poses flagged "
        "| bad among the unflagged |",
        "| --- " * 6 + "|",
    ]
    for group, rows in results["all"].items():
        for name, row in rows.items():
            found = row["confidence"]
            for threshold in THRESHOLDS if found and name == "isopose, smooth" else (default,):
                if found:
                    rates = found[f"{threshold:.2f}"]
                    cells = [_per_cent(rates[key]) for key in ("caught", "good_refused", "bad_of_kept")]
                    bad = f"{found['bad']} of {row['slices']}"
                    lines.append(f"| {group}: {name} | {threshold} | {bad} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _leans(symmetry: dict[str, float], rows: dict[str, Any]) -> list[str]:
    """Return a table of how far each real scan as it lies leans: by its own mirror axis, and as estimated."""
    named = {name: row["leans"] for name, row in rows.items() if name in LEANS}
    head = ["scan: lean, °", "by the mirror axis of the image", *named]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for scan, axis in symmetry.items():
        lines.append(
            " | ".join([f"| {scan}", f"{axis:+.1f}", *(f"{v[scan]:+.1f}" for v in named.values())]) + " |"
        )
    return [*lines, ""]


def _row(name: str, row: dict[str, Any], part: str, group: str) -> str:
    r, s, c, d = row["rotation"], row["scale"], row["center"], row["dice"]
    cells = [
        name,
        f"{r['median']:.2f} / {r['p95']:.1f} / {r['p99']:.1f} / {r['worst']:.0f}",
        f"{s['median']:.2f} / {s['p95']:.1f}",
        f"{c['median']:.2f} / {c['p95']:.1f}",
        f"{d['mean']:.4f} / {d['p1']:.3f} / {d['worst']:.3f}",
        str(row["swaps"]),
        f"{row['ms_slice']:.2f}",
    ]
    if part == "all":
        cells.append(f"{row['ms_volume']:.1f}")
    if group == "real":
        cells.append(f"{row['lean']['median']:.1f} / {row['lean']['p95']:.1f}")
    return "| " + " | ".join(cells) + " |"


def _per_cent(part: float | None) -> str:
    return "-" if part is None else f"{part:.2%}"


def draw_errors(results: dict[str, Any], path: Path) -> None:
    """Draw for every contender how many slices are within an angle."""
    panels = [(part, group) for part in ("all", "registered") for group in results[part]]
    rows = -(-len(panels) // 3)
    figure, grid = plt.subplots(rows, 3, figsize=(13.5, 3.9 * rows + 1.2), sharey=True, squeeze=False)
    axes = grid.ravel()
    for unused in axes[len(panels) :]:
        unused.axis("off")
    colors = plt.get_cmap("tab20")
    names = list(dict.fromkeys(name for part, group in panels for name in results[part][group]))
    for axis, (part, group) in zip(axes, panels, strict=False):
        for name, row in results[part][group].items():
            error = np.sort(np.abs(row["angles"]))
            style = "-" if name.startswith("isopose") else "--" if name.startswith("Simple") else ":"
            share = (np.arange(len(error)) + 1) / len(error)
            axis.plot(np.maximum(error, 0.02), share, style, label=name, color=colors(names.index(name) % 20))
        axis.set(xscale="log", xlim=(0.05, 180), xlabel="rotation error, degrees", ylim=(0, 1))
        axis.set_title(f"{group}, {'all slices' if part == 'all' else 'slices that were registered'}")
        axis.axvline(6.0, color="gray", linewidth=0.8)
        axis.grid(alpha=0.3)
    for first in grid[:, 0]:
        first.set_ylabel("part of the slices within")
    handles = {
        h.get_label(): h for axis in axes for h in axis.get_lines() if not h.get_label().startswith("_")
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
