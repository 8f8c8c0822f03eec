"""Scans that show no trunk or contradict their header are reported or refused, with the shipped networks."""

import math

import numpy as np
import pytest

from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.homogenize.estimator import open_estimator
from isopose.homogenize.scan import homogenize_scan
from isopose.io.images import read_volume
from isopose.presets import homogenize_config

SLICES, SIDE = 12, 192
Y, X = np.meshgrid(*[(np.arange(SIDE) - SIDE / 2 + 0.5) * 1.5] * 2, indexing="ij")


def scan(plane: np.ndarray) -> Volume:
    noise = np.random.default_rng(0).normal(0.0, 10.0, (SLICES, SIDE, SIDE))
    return Volume((plane + noise).astype(np.int16), np.diag([1.5, 1.5, 5.0, 1.0]))


def head() -> Volume:
    radius = np.hypot(X / 75, Y / 95)
    plane = np.select([radius < 0.87, radius < 0.95, radius < 1.0], [35.0, 1000.0, 60.0], -1000.0)
    plane[np.hypot(X / 12, Y / 25) < 1] = 8.0
    return scan(plane)


def legs() -> Volume:
    plane = np.full((SIDE, SIDE), -1000.0)
    for side in (-1, 1):
        plane[np.hypot((X - side * 70) / 55, Y / 60) < 1] = 50.0
        plane[np.hypot((X - side * 70) / 14, Y / 14) < 1] = 900.0
    return scan(plane)


def cylinder() -> Volume:
    return scan(np.where(np.hypot(X, Y) < 100, 0.0, -1000.0))


@pytest.fixture(scope="module")
def estimator():
    return open_estimator(None, homogenize_config(size=128))


def warnings_of(estimator, volume: Volume) -> str:
    return "\n".join(homogenize_scan(estimator, volume).warnings)


@pytest.mark.parametrize("make", [head, legs, cylinder], ids=lambda make: make.__name__)
@pytest.mark.parametrize("per", ["volume", "smooth", "slice"])
def test_scans_without_a_trunk_keep_their_pose_with_one_warning(make, per) -> None:
    result = homogenize_scan(open_estimator(None, homogenize_config(size=128, per=per)), make())
    assert [line for line in result.warnings if "roll of the patient" in line] == [
        "no slice shows the roll of the patient (is it a trunk?): left as the file's header says"
    ]
    np.testing.assert_allclose(result.poses.pose[:, 0], 0.0, atol=1e-6)
    assert result.poses.decision.header_kept
    assert result.poses.decision.odds < result.poses.decision.needed_odds == 10.0


@pytest.fixture(scope="module")
def real(real_ct) -> Volume:
    return read_volume(real_ct / "abdomen.nii.gz").reoriented()


def test_a_patient_as_in_the_header_gives_no_warning(estimator, real) -> None:
    assert warnings_of(estimator, real) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: hu[:, :, ::-1], "looks like its own mirror image"),
        (lambda hu: hu[:, ::-1, ::-1], "rotated by -178 degrees relative to the position in the file's"),
        (lambda hu: (hu.astype(int) + 1024).clip(0), "the HU offset (often -1024) seems to be missing"),
        (lambda hu: hu.clip(-100, 150), "span too little for CT in HU"),
    ],
    ids=["mirrored", "upside down", "no offset", "windowed"],
)
def test_a_real_scan_that_was_changed_is_reported(estimator, real, change, words) -> None:
    corrupted = real.with_array(np.ascontiguousarray(change(real.array)).astype(np.int16))
    assert words in warnings_of(estimator, corrupted)


@pytest.mark.parametrize("side", [30, 40])
def test_a_narrow_field_of_view_without_an_outline_keeps_pose_and_size(estimator, real, side) -> None:
    """A scan cropped around the aorta: the square border is not the outline of a body."""
    height, width = real.array.shape[1:]
    y, x = height // 2 - side // 2, width // 2 - side // 2
    cut = Volume(
        np.ascontiguousarray(real.array[:, y : y + side, x : x + side]), np.diag([3.0, 3.0, 3.0, 1.0])
    )
    result = homogenize_scan(estimator, cut)
    assert [line for line in result.warnings if "outline" in line] == [
        "no outline of a body is visible: its pose and size are left as the file has them"
    ]
    # In true millimeters: the homogenized frame shows as many as its own side has.
    shown_mm = result.transform.frame.fov_mm * np.exp(result.poses.pose[:, 1:3])
    np.testing.assert_allclose(shown_mm, estimator.side_mm, rtol=1e-5)
    np.testing.assert_allclose(result.poses.pose[:, 0], 0.0, atol=1e-6)


TRUNKS = ("dicom-series", "abdomen.nii.gz", *(f"trunk/chest-{name}.nii.gz" for name in (
    "upper-abdomen", "female", "arms-up",
)))  # fmt: skip


@pytest.mark.parametrize("name", TRUNKS)
def test_real_trunks_give_no_warning_and_are_turned_upright_from_any_side(real_ct, name) -> None:
    volume = read_volume(real_ct / name).reoriented()
    smooth = open_estimator(None, homogenize_config(size=128, per="smooth"))
    straight = homogenize_scan(smooth, volume)
    assert not [line for line in straight.warnings if "roll of the patient" in line or "turned" in line]
    seen = straight.poses
    degrees = np.degrees(seen.pose[seen.has_body, 0])
    assert np.abs(degrees).max() < 5.0
    assert np.abs(np.diff(degrees)).max() < 1.0, "no slice jumps"
    assert seen.confidence[seen.has_body].min() > 0.8
    for quarters in (1, 2, 3):
        turned = _turned(volume, quarters)
        result = homogenize_scan(smooth, turned)
        assert any("rotated by" in line for line in result.warnings), result.warnings
        back = math.degrees(result.poses.roll) - math.degrees(seen.roll) + 90.0 * quarters
        assert abs((back + 180.0) % 360.0 - 180.0) < 3.0


def _turned(volume: Volume, quarters: int) -> Volume:
    """Rotate the patient by quarter turns against the header, from +y to +x."""
    dx, dy, dz = volume.spacing
    spacing = [dx, dy, dz, 1.0] if quarters % 2 == 0 else [dy, dx, dz, 1.0]
    return Volume(np.ascontiguousarray(np.rot90(volume.array, quarters, axes=(1, 2))), np.diag(spacing))


def test_another_modality_is_refused(estimator, real) -> None:
    """Values as in MR: zero outside the body, arbitrary tissue intensities."""
    signal = np.where(real.array < -300, 0, (real.array.clip(-150, 250) + 150) * 2).astype(np.int16)
    with pytest.raises(InputError, match="is it a CT in Hounsfield units"):
        homogenize_scan(estimator, real.with_array(signal))
