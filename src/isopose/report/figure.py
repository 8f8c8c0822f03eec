"""One picture of the steps of a prediction, in the manner of the paper's Figure 3."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon
from PIL import Image

from isopose.files import replacing
from isopose.labels import class_colors

#: Soft-tissue window for images in HU.
WINDOW_HU = (-160.0, 240.0)

#: Maximum size of a picture in bytes, which keeps reports with many pictures small.
LARGEST_PICTURE = 400_000

#: Most voxels of a scan from which its display range is computed.
_MAX_VOXELS = 1_000_000

_BACKGROUND, _TEXT_COLOR, _MUTED_COLOR, _WARNING = "#101418", "#f2f4f6", "#a9b4be", "#ffc14d"
_FRAME, _REFERENCE, _CROP, _TRUTH = "#56b4e9", "#ff8fc7", "#ff7f50", "#ffffff"

_CELL_INCHES = 2.3
_TEXT_INCHES = 1.9


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What happened to one axial slice.

    All images lie as :meth:`isopose.geometry.volume.Volume.reoriented` stores them: rows grow to the back and
    columns to the patient's left, so that a picture with row 0 on top is in radiological display. Corners are
    ``(x, y)`` pixel centers in drawing order, origin in the center of the first pixel.

    Args:
        native: ``(H, W)`` in HU or normalized.
        native_spacing_yx: pixel size along ``(y, x)`` in mm.
        frame_outline: ``(4, 2)`` corners of the homogenized square in native pixels.
        frame_image: ``(N, N)`` input of the pose network.
        frame_mask: ``(N, N)`` bool, the body that was found in it.
        homogenized: ``(N, N)``.
        reference_mask: ``(N, N)`` bool, the reference patient's body in the homogenized frame.
        crop_outline: ``(4, 2)`` corners of the crop in homogenized pixels.
        cropped: ``(M, M)``.
        crop_classes: ``(M, M)`` class indices predicted in the crop.
        native_classes: ``(H, W)`` restored class indices.
        native_truth: ``(H, W)`` true class indices, where known.
        native_window: display range of the native image; None: by its values.
        heading: short name of the slice.
        lines: text beside the slice (pose, scale, confidence).
        warnings: problems of the slice.
    """

    native: np.ndarray
    native_spacing_yx: tuple[float, float]
    frame_outline: np.ndarray
    frame_image: np.ndarray
    frame_mask: np.ndarray
    homogenized: np.ndarray
    reference_mask: np.ndarray
    crop_outline: np.ndarray
    cropped: np.ndarray
    crop_classes: np.ndarray
    native_classes: np.ndarray
    native_truth: np.ndarray | None = None
    native_window: tuple[float, float] | None = None
    heading: str = ""
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def draw_steps(rows: Sequence[Steps], path: Path, label_names: Sequence[str]) -> None:
    """Draw slices as rows of one PNG: input, homogenized, cropped, prediction in crop, restored.

    The picture's resolution falls until the file is below :data:`LARGEST_PICTURE`.

    Raises:
        ValueError: no row, or another ending than ``.png``.
    """
    path = Path(path)
    if not rows or path.suffix.lower() != ".png":
        raise ValueError(f"expected at least one slice and a .png file, got {len(rows)} and {path.name}")
    png = steps_png(rows, label_names)
    with replacing(path) as temporary:
        temporary.write_bytes(png)


def steps_png(rows: Sequence[Steps], label_names: Sequence[str]) -> bytes:
    """Return the picture of :func:`draw_steps` as bytes; the same input gives the same bytes."""
    figure = _draw_figure(rows, label_names)
    png = b""
    for dpi in (150, 125, 105, 90, 75, 60):
        png = _encode(figure, dpi)
        if len(png) <= LARGEST_PICTURE:
            break
    return png


def window(image: np.ndarray) -> tuple[float, float]:
    """Return the display range: the soft-tissue window for HU, else the 0.5 to 99.5 percentiles."""
    if float(image.min()) < -200.0:
        return WINDOW_HU
    low, high = (float(v) for v in np.percentile(image, [0.5, 99.5]))
    return (low, high) if high > low else (low - 1.0, low + 1.0)


def window_of_scan(array: np.ndarray) -> tuple[float, float]:
    """Return the display range of a scan whose values have no unit, such as MR, the same for all its slices.

    It runs from the first percentile, which is air, to the 99.5th percentile of the values above the mean,
    which belong to the patient, however small the patient is in the image.

    Args:
        array: any shape, finite.
    """
    subsampled = array.reshape(-1)[:: -(-array.size // _MAX_VOXELS)].astype(np.float64)
    bright = subsampled[subsampled > subsampled.mean()]
    if not bright.size:
        return float(subsampled[0]) - 1.0, float(subsampled[0]) + 1.0
    low, high = float(np.percentile(subsampled, 1.0)), float(np.percentile(bright, 99.5))
    return low, high


def _draw_figure(rows: Sequence[Steps], label_names: Sequence[str]) -> Figure:
    headings = ("Input", "Body", "Homogenized", "Cropped", "Prediction in crop", "Restored")
    width = _TEXT_INCHES + _CELL_INCHES * len(headings) + 0.15
    top, bottom = 0.4, 0.42
    height = top + _CELL_INCHES * len(rows) + bottom
    figure = Figure(figsize=(width, height), facecolor=_BACKGROUND)
    cells = figure.subplots(
        len(rows),
        len(headings),
        squeeze=False,
        gridspec_kw={
            "left": _TEXT_INCHES / width,
            "right": 1 - 0.1 / width,
            "top": 1 - top / height,
            "bottom": bottom / height,
            "wspace": 0.04,
            "hspace": 0.04,
        },
    )
    for axes, heading in zip(cells[0], headings, strict=True):
        axes.set_title(heading, color=_TEXT_COLOR, size=10, pad=5)
    colors = class_colors(label_names)
    for row, line in zip(rows, cells, strict=True):
        _draw_row(row, list(line), colors)
        _write_text(figure, line[0], row)
    _draw_legend(figure, rows, label_names, colors)
    return figure


def _draw_row(row: Steps, cells: list[Axes], colors: tuple[str, ...]) -> None:
    aspect = row.native_spacing_yx[0] / row.native_spacing_yx[1]
    for axes in cells:
        axes.set_facecolor("black")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#2b333b")
    native, frame, homogenized, cropped, predicted, restored = cells
    for axes in (native, restored):
        _show_image(axes, row.native, aspect, row.native_window)
        _mark_sides(axes)
    _draw_box(native, row.frame_outline, _FRAME)
    _widen(native, row.frame_outline)
    _show_image(frame, row.frame_image)
    _draw_outline(frame, row.frame_mask, _FRAME, 1.2)
    _show_image(homogenized, row.homogenized)
    _draw_outline(homogenized, row.reference_mask, _REFERENCE, 1.2)
    _draw_box(homogenized, row.crop_outline, _CROP)
    for axes in (cropped, predicted):
        _show_image(axes, row.cropped)
        for spine in axes.spines.values():
            spine.set_color(_CROP)
    _draw_classes(predicted, row.crop_classes, colors)
    _draw_classes(restored, row.native_classes, colors)
    if row.native_truth is not None:
        for index in range(1, len(colors) + 1):
            _draw_outline(restored, row.native_truth == index, _TRUTH, 0.7)


def _show_image(
    axes: Axes, image: np.ndarray, aspect: float = 1.0, display_range: tuple[float, float] | None = None
) -> None:
    low, high = window(image) if display_range is None else display_range
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, origin="upper")
    # A frame may reach beyond the image; the axes stay on it, else the image would shrink to make room.
    axes.set_autoscale_on(False)
    axes.set_anchor("C")


def _draw_classes(axes: Axes, classes: np.ndarray, colors: tuple[str, ...]) -> None:
    overlay = np.zeros((*classes.shape, 4), dtype=np.float32)
    for index, color in enumerate(colors, start=1):
        overlay[classes == index] = (*to_rgb(color), 0.45)
    axes.imshow(overlay, aspect=axes.get_aspect(), origin="upper", interpolation="nearest")
    for index, color in enumerate(colors, start=1):
        _draw_outline(axes, classes == index, color, 1.0)


def _draw_outline(axes: Axes, mask: np.ndarray, color: str, width: float) -> None:
    if mask.any():
        # Padded, so that an outline along the border of the image is closed.
        padded = np.pad(mask.astype(np.float32), 1)
        y, x = (np.arange(-1, n + 1) for n in mask.shape)
        axes.contour(x, y, padded, levels=[0.5], colors=[color], linewidths=width)


def _draw_box(axes: Axes, corners: np.ndarray, color: str) -> None:
    axes.add_patch(Polygon(np.asarray(corners), closed=True, fill=False, edgecolor=color, linewidth=1.4))


def _widen(axes: Axes, corners: np.ndarray) -> None:
    """Make room for a frame that reaches beyond the image, by at most a fifth of the image on each side."""
    x0, x1 = axes.get_xlim()
    bottom, top = axes.get_ylim()
    (left, upper), (right, lower) = np.min(corners, axis=0) - 2, np.max(corners, axis=0) + 2
    room_x, room_y = 0.2 * (x1 - x0), 0.2 * (bottom - top)
    axes.set_xlim(max(min(x0, left), x0 - room_x), min(max(x1, right), x1 + room_x))
    axes.set_ylim(min(max(bottom, lower), bottom + room_y), max(min(top, upper), top - room_y))


def _mark_sides(axes: Axes) -> None:
    """Mark the patient's right (R) and left (L) side of the image."""
    for x, side in ((0.03, "R"), (0.97, "L")):
        align = "left" if x < 0.5 else "right"
        axes.text(x, 0.5, side, color=_MUTED_COLOR, size=8, ha=align, va="center", transform=axes.transAxes)


def _write_text(figure: Figure, axes: Axes, row: Steps) -> None:
    """Write heading, lines and warnings to the left of the row."""
    width, height = figure.get_size_inches()
    left, y = 0.15 / width, axes.get_position(original=True).y1 - 0.05 / height
    entries = [(row.heading, _TEXT_COLOR, "bold")] if row.heading else []
    entries += [(line, _MUTED_COLOR, "normal") for line in row.lines]
    entries += [(f"! {line}", _WARNING, "normal") for line in row.warnings]
    for text, color, weight in entries:
        lines = textwrap.wrap(text, 27) or [""]
        wrapped = "\n".join(lines)
        figure.text(left, y, wrapped, color=color, size=8, weight=weight, va="top", linespacing=1.25)
        y -= (0.155 * len(lines) + 0.03) / height


def _draw_legend(
    figure: Figure, rows: Sequence[Steps], label_names: Sequence[str], colors: tuple[str, ...]
) -> None:
    entries: list[Patch | Line2D] = [
        Line2D([], [], color=_FRAME, label="homogenized frame"),
        Line2D([], [], color=_REFERENCE, label="reference body"),
        Line2D([], [], color=_CROP, label="crop"),
    ]
    entries += [Patch(color=c, label=n) for n, c in zip(label_names, colors, strict=True)]
    if any(row.native_truth is not None for row in rows):
        entries.append(Line2D([], [], color=_TRUTH, linewidth=0.9, label="ground truth"))
    figure.legend(
        handles=entries,
        loc="lower center",
        ncols=len(entries),
        frameon=False,
        labelcolor=_TEXT_COLOR,
        fontsize=8,
        handlelength=1.4,
        columnspacing=1.6,
    )


def _encode(figure: Figure, dpi: int) -> bytes:
    """Return a PNG with a palette: a third of the size, without visible difference."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    stream = io.BytesIO()
    palette = picture.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
