"""The benchmark that holds the phantoms' sizes against masks of patients."""

import numpy as np
import pytest

from isopose.geometry.volume import Volume
from test_benchmarks import load


def test_kidneys_tumor_and_field_are_measured_in_the_axes_of_the_patient(monkeypatch) -> None:
    """The axial axis is stored first in KiTS: measured by the header, not by the order of the array."""
    sizes = load("phantom_sizes")
    array = np.zeros((40, 60, 60), dtype=np.uint8)
    # Healthy: 10 x 10 x 20 voxels; the other 10 x 5 x 20 beside the tumor of 10 x 10 x 10; a speck.
    array[10:30, 20:30, 40:50] = 1
    array[10:30, 20:30, 10:15] = 1
    array[15:25, 20:30, 16:26] = 2
    array[0, 0, 0] = 1
    upright = Volume(array, np.diag([1.0, 1.0, 3.0, 1.0]))
    stored = Volume(
        np.ascontiguousarray(array.transpose(2, 1, 0)),
        np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]]),
    )
    for volume in (upright, stored):
        result = sizes.measure(volume)
        assert result.healthy_ml == pytest.approx(6.0)
        assert result.kidneys_ml == pytest.approx(9.003)
        assert result.tumor_ml == pytest.approx(3.0)
        assert result.healthy_mm == pytest.approx(57.0)
        assert result.field_mm == 60.0
    with pytest.raises(ValueError, match="two kidneys"):
        sizes.measure(upright.with_array(np.zeros_like(array)))

    [phantom] = sizes.draw(1, 16.0)
    assert phantom.kidneys_ml > 1.5 * phantom.healthy_ml > 0.0
    table = sizes.table({"one": result}, [phantom] * 2, 16.0)
    assert table.splitlines()[4].startswith("| both kidneys, ml | 9 | ")
    assert table.count("\n| ") == 7
