import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from isopose.labels import class_colors
from isopose.report.figure import (
    LARGEST_PICTURE,
    WINDOW_HU,
    Steps,
    _draw_figure,
    draw_steps,
    steps_png,
    window,
)

NAMES = ("kidney", "tumor")
GREEN, YELLOW = (np.array(to_rgb(color)) for color in class_colors(NAMES))
COLUMNS = ("Input", "Body", "Homogenized", "Cropped", "Prediction in crop", "Restored")


def steps(**changes):
    """A patient whose right front (row and column 0) is bright; kidney on the right, tumor on the left."""
    native = np.full((80, 80), -150.0)
    native[:40, :40] = 200.0
    native[0, 0] = -1000.0  # HU
    classes = np.zeros((80, 80), dtype=np.uint8)
    classes[50:70, 10:30] = 1
    classes[50:70, 50:70] = 2
    square = np.array([[10, 5], [70, 10], [65, 70], [5, 65]], dtype=float)
    frame = np.pad(np.zeros((20, 20)), 22) - 500.0
    frame[10:30, 40:60] = 200.0
    values = {
        "native": native,
        "native_spacing_yx": (1.0, 1.0),
        "frame_outline": square,
        "frame_image": frame,
        "frame_mask": frame > 0.0,
        "homogenized": frame,
        "reference_mask": np.pad(np.ones((40, 40), dtype=bool), 12),
        "crop_outline": np.array([[16, 16], [48, 16], [48, 48], [16, 48]], dtype=float),
        "cropped": frame[16:48, 16:48],
        "crop_classes": np.pad(np.ones((10, 10), dtype=np.uint8), 11),
        "native_classes": classes,
    }
    return Steps(**(values | changes))


def rendered(rows, names=NAMES, dpi=80):
    """Each cell's pixels in 0 to 1, by row and column heading."""
    figure = _draw_figure(rows, names)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3] / 255.0
    columns = len(figure.axes) // len(rows)
    headings = [axes.get_title() for axes in figure.axes[:columns]]
    cells = {}
    for index, axes in enumerate(figure.axes):
        x0, y0, x1, y1 = (round(v) for v in axes.get_window_extent().extents)
        height = picture.shape[0]
        cells[index // columns, headings[index % columns]] = picture[height - y1 : height - y0, x0:x1]
    return cells


def center_of(cell, color, tolerance=0.06):
    """Mean (x, y) in 0 to 1 of the pixels of a color, and how many there are."""
    y, x = np.nonzero(np.abs(cell - color).max(axis=-1) < tolerance)
    return x.mean() / cell.shape[1], y.mean() / cell.shape[0], len(x)


def tinted(color, gray):
    return 0.45 * color + 0.55 * gray


def test_columns_are_the_steps_of_the_paper():
    assert [heading for _, heading in rendered([steps()])] == list(COLUMNS)


def test_row_zero_is_on_top_and_the_patients_right_on_the_viewers_left():
    cell = rendered([steps()])[0, "Input"]
    height, width = cell.shape[:2]
    quarter = (
        cell[height // 8 : height // 4, width // 8 : width // 4].mean(),
        cell[-height // 4 :, -width // 4 :].mean(),
    )
    assert quarter[0] > 0.8  # 200 HU
    assert quarter[1] < 0.2  # -150 HU


def test_restored_classes_lie_where_they_are_in_the_array():
    cell = rendered([steps()])[0, "Restored"]
    dark = 10 / 400  # -150 HU in the window of -160 to 240
    x, y, n = center_of(cell, tinted(GREEN, dark))
    assert (x, y) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.75, abs=0.02))
    assert n > 0.03 * cell.shape[0] * cell.shape[1]  # 20 x 20 of 80 x 80 pixels, less the outline
    x, y, _ = center_of(cell, tinted(YELLOW, dark))
    assert (x, y) == (pytest.approx(0.75, abs=0.02), pytest.approx(0.75, abs=0.02))


def test_the_prediction_is_drawn_in_its_own_crop_alone():
    cells = rendered([steps()])
    assert center_of(cells[0, "Prediction in crop"], GREEN)[2] > 20
    assert (np.abs(cells[0, "Cropped"] - GREEN).max(axis=-1) < 0.2).sum() == 0


def test_frame_crop_and_reference_are_drawn_at_their_corners():
    cells = rendered([steps()])
    x, y, _ = center_of(cells[0, "Input"], np.array(to_rgb("#56b4e9")), 0.1)
    assert (x, y) == (pytest.approx(38 / 80, abs=0.03), pytest.approx(38 / 80, abs=0.03))
    cell = cells[0, "Homogenized"]
    crop = np.abs(cell - np.array(to_rgb("#ff7f50"))).max(axis=-1) < 0.1
    rows, columns = np.nonzero(crop)
    for positions, size in ((rows, cell.shape[0]), (columns, cell.shape[1])):
        assert positions.min() / size == pytest.approx(16.5 / 64, abs=0.02)
        assert positions.max() / size == pytest.approx(48.5 / 64, abs=0.02)
    reference = np.abs(cell - np.array(to_rgb("#ff8fc7"))).max(axis=-1) < 0.1
    assert np.nonzero(reference)[0].min() / cell.shape[0] == pytest.approx(12 / 64, abs=0.02)


def test_anisotropic_pixels_keep_their_true_shape():
    tall = steps(native_spacing_yx=(2.0, 1.0), frame_outline=np.zeros((4, 2)) + 40)
    for heading in ("Input", "Restored"):
        height, width = rendered([tall])[0, heading].shape[:2]
        assert height / width == pytest.approx(2.0, rel=0.03)


def test_a_frame_beyond_the_image_stays_visible():
    out = np.array([[-12, -12], [92, -12], [92, 92], [-12, 92]], dtype=float)
    cell = rendered([steps(frame_outline=out)])[0, "Input"]
    frame = np.abs(cell - np.array(to_rgb("#56b4e9"))).max(axis=-1) < 0.15
    for axis in (0, 1):
        positions = np.flatnonzero(frame.any(axis=axis))
        assert positions.min() < 0.04 * len(frame)
        assert positions.max() > 0.96 * len(frame)


def test_truth_is_an_outline_over_the_restored_slice_only_where_known():
    truth = np.zeros((80, 80), dtype=np.uint8)
    truth[5:35, 45:75] = 2
    white = np.ones(3)
    with_truth, without = (rendered([steps(native_truth=t)], dpi=160)[0, "Restored"] for t in (truth, None))
    corner = (slice(0, with_truth.shape[0] // 2), slice(with_truth.shape[1] // 2 + 4, None))
    assert center_of(with_truth[corner], white, 0.35)[2] > 200
    assert (np.abs(without[corner] - white).max(axis=-1) < 0.35).sum() < 20  # the letter L


def test_the_body_gets_a_column():
    mask = np.pad(np.ones((30, 30), dtype=bool), 17)
    cells = rendered([steps(frame_image=np.full((64, 64), -500.0), frame_mask=mask)])
    assert [heading for row, heading in cells if row == 0][1] == "Body"
    cell = cells[0, "Body"]
    outline = np.nonzero(np.abs(cell - np.array(to_rgb("#56b4e9"))).max(axis=-1) < 0.4)
    for positions, size in zip(outline, cell.shape, strict=False):
        assert positions.min() / size == pytest.approx(17 / 64, abs=0.02)
        assert positions.max() / size == pytest.approx(47 / 64, abs=0.02)


def test_text_and_legend_show_pose_and_classes():
    row = steps(heading="slice 7", lines=("scale 0.9",), warnings=("fell back",))
    figure = _draw_figure([row], NAMES)
    assert [text.get_text() for text in figure.texts] == ["slice 7", "scale 0.9", "! fell back"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["homogenized frame", "reference body", "crop", "kidney", "tumor"]


def test_the_image_file_is_small_and_reproducible(tmp_path):
    rng = np.random.default_rng(0)
    noisy = steps(
        native=rng.normal(0, 150, (256, 256)),
        native_classes=rng.integers(0, 2, (256, 256)),
        homogenized=rng.normal(0, 150, (256, 256)),
        cropped=rng.normal(0, 150, (256, 256)),
        crop_classes=np.zeros((256, 256), dtype=int),
    )
    draw_steps([noisy] * 2, tmp_path / "deep" / "steps.png", NAMES)
    written = (tmp_path / "deep" / "steps.png").read_bytes()
    assert len(written) <= LARGEST_PICTURE
    with Image.open(io.BytesIO(written)) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert steps_png([steps()], NAMES) == steps_png([steps()], NAMES)


def test_empty_masks_and_constant_images_draw(tmp_path):
    blank = steps(
        native=np.zeros((40, 50)),
        native_classes=np.zeros((40, 50), dtype=int),
        crop_classes=np.zeros((32, 32), dtype=int),
        reference_mask=np.zeros((64, 64), dtype=bool),
    )
    cell = rendered([blank])[0, "Restored"]
    for color in (GREEN, YELLOW):
        assert (np.abs(cell - color).max(axis=-1) < 0.3).sum() == 0


def test_window_is_soft_tissue_for_hu_and_the_bulk_of_values_otherwise():
    assert window(np.array([-1024.0, 30.0, 1500.0])) == WINDOW_HU
    normal = np.random.default_rng(0).normal(0, 1, 100_000)
    low, high = window(normal)
    assert (low, high) == (pytest.approx(-2.576, abs=0.05), pytest.approx(2.576, abs=0.05))
    assert window(np.zeros(5)) == (-1.0, 1.0)


def test_an_empty_figure_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one slice"):
        draw_steps([], tmp_path / "steps.png", NAMES)
    with pytest.raises(ValueError, match=r"steps\.jpg"):
        draw_steps([steps()], tmp_path / "steps.jpg", NAMES)
    assert list(tmp_path.iterdir()) == []
