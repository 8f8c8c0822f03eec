"""The plane of a stack of slices, and the body mask in it."""

from itertools import permutations, product

import numpy as np
import pytest

from bright import stored_otherwise
from isopose.choices import Plane
from isopose.data.doubts import check_values, scan_warnings
from isopose.data.modality import with_poses_of
from isopose.data.plane import (
    DIRECTIONS,
    EXTENT_NAMES,
    check_plane,
    mask_in_plane,
    outline_warnings,
    plane_of,
    pose_outline,
    position_mm,
)
from isopose.errors import InputError
from isopose.geometry.volume import Volume, axes_of
from isopose.presets import load_config
from isopose.settings import DataConfig

#: Voxels left-right, front-back, head-foot, and the plane that they show.
VOXELS: list[tuple[tuple[float, float, float], Plane | None]] = [
    ((0.8, 0.8, 5.0), "axial"),
    ((1.0, 6.0, 1.2), "coronal"),
    ((6.0, 1.0, 1.0), "sagittal"),
    ((1.0, 1.3, 1.2), None),
    ((0.3, 0.3, 1.2), None),
    ((4.0, 4.0, 2.0), None),
]


def scan(spacing: tuple[float, ...]) -> Volume:
    return Volume(np.zeros((4, 5, 6)), np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(("spacing", "plane"), VOXELS)
def test_the_axis_of_largest_spacing_gives_the_plane_in_every_storage_order(
    spacing: tuple[float, float, float], plane: Plane | None
) -> None:
    for axes, flips in product(permutations(range(3)), [(False, True, False), (True, False, True)]):
        assert plane_of(stored_otherwise(scan(spacing), axes, flips)) == plane


def test_another_plane_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError) as refused:
        check_plane(scan((1.0, 6.0, 1.0)), "axial")
    assert str(refused.value) == (
        "coronal slices (voxels of 1.00 x 6.00 x 1.00 mm left-right, front-back, head-foot), expected axial "
        "ones; set --plane coronal (fit: --set data.plane=coronal), or use a model of coronal slices"
    )
    check_plane(scan((1.0, 6.0, 1.0)), "coronal")
    check_plane(scan((1.0, 1.1, 1.0)), "sagittal")
    with pytest.raises(InputError, match=r"^axial slices .* expected sagittal ones"):
        check_values(scan((1.0, 1.0, 5.0)), "ct", "sagittal")


def test_voxels_of_the_expected_plane_are_not_unusual() -> None:
    volume = Volume(np.linspace(-1000, 900, 64 * 64 * 20).reshape(64, 20, 64), np.diag([4.0, 9.0, 4.0, 1.0]))
    assert not any("axial slices" in line for line in scan_warnings(volume, (200, 150), "ct", "coronal"))
    assert any("axial slices" in line for line in scan_warnings(volume, (200, 150), "ct"))


def test_an_axial_body_mask_is_transferred_to_the_slices() -> None:
    rng = np.random.default_rng(0)
    volume = stored_otherwise(scan((1.0, 6.0, 1.0)), (2, 0, 1), (True, False, True))
    marked = volume.with_array(rng.random(volume.array.shape) > 0.5)
    planes: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
    for plane in planes:
        np.testing.assert_array_equal(
            mask_in_plane(marked.reoriented().array, volume, plane), marked.reoriented(plane).array
        )


def test_all_slices_have_the_outline_of_where_the_body_is_thick() -> None:
    body = np.zeros((8, 6, 12), bool)
    body[1:7, :, 3:9] = True
    body[3, :, 1:11] = True  # thin to both sides, as arms
    seen = pose_outline(body, "coronal")
    assert not seen[[0, 7]].any()
    for z in range(1, 7):
        np.testing.assert_array_equal(seen[z].any(axis=0), [False] * 3 + [True] * 6 + [False] * 3)
    assert pose_outline(body, "axial") is body


def test_a_body_cut_by_the_edges_gives_a_warning() -> None:
    body = np.ones((8, 6, 12), bool)
    assert [*outline_warnings(body, "axial")] == []
    (line,) = outline_warnings(body, "coronal")
    assert "left and right" in line
    body[:, :, -3:] = False
    assert [*outline_warnings(body, "coronal")] == []


def test_slices_are_counted_along_the_axis_of_their_plane() -> None:
    volume = Volume(np.zeros((4, 5, 6)), np.diag([2.0, 3.0, 4.0, 1.0]))
    result = {
        plane: position_mm(volume.reoriented(plane).world_from_index, plane)
        for plane in ("axial", "coronal", "sagittal")
    }
    # The first sagittal slice is the leftmost, 10 mm to the left; to the right is counted.
    assert result == {"axial": 0.0, "coronal": 0.0, "sagittal": -10.0}


def test_the_roll_network_is_for_axial_slices() -> None:
    for settings, start in (([], "header"), (["pose.start=identity"], "identity")):
        config = with_poses_of(load_config(settings=["data.plane=coronal", *settings]), ["T2"])
        assert config.pose.start == start
    assert with_poses_of(load_config(), ["T2"]).pose.start == "anatomy"
    assert DataConfig().plane == "axial"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.plane=coronal", "dims=3"], "dims is 3, with data.plane=coronal only 2 is possible"),
        (["data.plane=sagittal", "stn=joint"], "stn is"),
        (["data.plane=coronal", "unet.context=1"], "unet.context is 1"),
        (["data.plane=coronal", "pose.start=moments"], "choose header or identity"),
        (["data.plane=sagittal", "unet.mirror=0.5"], "swap front and back"),
        (["data.plane=sagittal", "predict.mirror=true"], "swap front and back"),
        (["data.plane=oblique"], "data.plane"),
    ],
)
def test_settings_that_a_plane_does_not_support_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(settings=settings)


def test_nothing_is_mirrored_in_sagittal_slices() -> None:
    assert load_config(settings=["data.plane=sagittal"]).mirrored == 0.0
    assert not load_config(settings=["data.plane=sagittal"]).averaged
    assert load_config(settings=["data.plane=coronal"]).mirrored == 0.5
    assert load_config("paper", settings=["data.plane=sagittal"]).pose.learned


@pytest.mark.parametrize("plane", DIRECTIONS)
def test_names_of_directions_agree_with_the_axes(plane: Plane) -> None:
    """The names match the volume's axes in LPS."""
    of_axis = ("across", "front to back", "head to foot")
    columns, rows, _ = axes_of(plane).T
    assert DIRECTIONS[plane] == tuple(of_axis[np.abs(axis).argmax()] for axis in (columns, rows))
    assert [EXTENT_NAMES[direction] for direction in of_axis] == ["width", "depth", "height"]
