"""Where the modality comes from, and which settings depend on it."""

import numpy as np
import pytest

from isopose.data.doubts import check_values, scan_warnings
from isopose.data.modality import modality_of, with_poses_of
from isopose.data.normalization import normalizations_of
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.presets import load_config
from isopose.settings import DataConfig


def test_the_modality_comes_from_the_channel_name_unless_it_is_set() -> None:
    auto = DataConfig()
    assert [modality_of(auto, [name]) for name in ("CT", "ct", "MR", "T2", "FLAIR")] == [
        "ct",
        "ct",
        *["mr"] * 3,
    ]
    assert modality_of(DataConfig(modality="mr"), ["CT"]) == "mr"
    assert modality_of(DataConfig(modality="ct"), ["T1"]) == "ct"


def test_a_modality_that_is_set_decides_the_normalization() -> None:
    assert normalizations_of(DataConfig(modality="mr"), ["CT"]) == ("zscore",)
    assert normalizations_of(DataConfig(modality="ct"), ["T1"]) == ("ct",)
    assert normalizations_of(DataConfig(modality="mr", normalization="raw"), ["T1"]) == ("raw",)


def test_mr_uses_the_roll_network_of_any_contrast() -> None:
    config = load_config()
    assert with_poses_of(config, ["CT"]) is config
    assert config.pose.contrast == "ct"
    assert with_poses_of(config, ["T2"]).pose.contrast == "any"
    of_any = load_config(settings=["pose.contrast=any"])
    assert with_poses_of(of_any, ["CT"]) is of_any


@pytest.mark.parametrize(("spacing", "plane"), [((1.0, 6.0, 1.0), "coronal"), ((6.0, 1.0, 1.0), "sagittal")])
def test_slices_of_another_plane_are_refused(spacing: tuple[float, ...], plane: str) -> None:
    scan = Volume(np.zeros((30, 30, 30)), np.diag([*spacing, 1.0]))
    with pytest.raises(InputError, match=f"^{plane} slices .* expected axial ones"):
        check_values(scan, "mr")
    check_values(scan, "ct")


def test_axial_slices_and_cubes_are_not_refused() -> None:
    for spacing in ((1.0, 1.0, 6.0), (1.2, 1.2, 1.2), (1.0, 1.5, 1.2)):
        check_values(Volume(np.zeros((9, 9, 9)), np.diag([*spacing, 1.0])), "mr")


def test_no_hounsfield_units_are_expected_of_mr() -> None:
    array = np.linspace(0, 90, 300 * 300 * 20).reshape(20, 300, 300)
    scan = Volume(array, np.diag([1.0, 1.0, 4.0, 1.0]))
    assert [line for line in scan_warnings(scan, (250, 200), "mr") if "value" in line] == []
    assert any("too little for CT" in line for line in scan_warnings(scan, (250, 200)))
    check_values(scan.with_array(array * 1e6), "mr")
    negative = scan.with_array(array - 45)
    assert any("none below 0" in line for line in scan_warnings(negative, (250, 200), "mr"))
